"""Prompts to rollouts, and rollouts to rewards."""

from trimtab.rollout.drawn import forget_drawn, read_drawn, write_drawn
from trimtab.rollout.options import option_logprobs
from trimtab.rollout.rewards import (
    FunctionReward,
    HttpReward,
    ModelReward,
    NamedRewards,
    RewardSource,
    from_scorer,
    http_reward,
    split_steps,
)
from trimtab.rollout.sampler import LocalSampler, Sampler, SamplerConfig, make_sampler
from trimtab.rollout.scorer import RewardModelScorer, Scorer

__all__ = [
    "FunctionReward",
    "HttpReward",
    "LocalSampler",
    "ModelReward",
    "NamedRewards",
    "RewardModelScorer",
    "RewardSource",
    "Sampler",
    "SamplerConfig",
    "Scorer",
    "forget_drawn",
    "from_scorer",
    "http_reward",
    "make_sampler",
    "option_logprobs",
    "read_drawn",
    "split_steps",
    "write_drawn",
]
