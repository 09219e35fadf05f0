"""Prompts to rollouts, and rollouts to rewards."""

from trimtab.rollout.engines import make_sampler
from trimtab.rollout.ensemble import EnsembleConfig, RewardModels
from trimtab.rollout.opponents import MixtureOpponent, Opponent
from trimtab.rollout.options import option_logprobs
from trimtab.rollout.process import ProcessScorer
from trimtab.rollout.protocol import Sampler, SamplerConfig, ValueHead
from trimtab.rollout.rewards import (
    FunctionReward,
    HttpReward,
    ModelReward,
    NamedRewards,
    ProcessReward,
    RewardSource,
    http_reward,
    split_steps,
)
from trimtab.rollout.sampler import LocalSampler
from trimtab.rollout.saved import load_rollouts, remove_states, save_rollouts
from trimtab.rollout.scorer import ObjectiveScorer, RewardModelScorer, Scorer

__all__ = [
    "EnsembleConfig",
    "FunctionReward",
    "HttpReward",
    "LocalSampler",
    "MixtureOpponent",
    "ModelReward",
    "NamedRewards",
    "ObjectiveScorer",
    "Opponent",
    "ProcessReward",
    "ProcessScorer",
    "RewardModelScorer",
    "RewardModels",
    "RewardSource",
    "Sampler",
    "SamplerConfig",
    "Scorer",
    "ValueHead",
    "http_reward",
    "load_rollouts",
    "make_sampler",
    "option_logprobs",
    "remove_states",
    "save_rollouts",
    "split_steps",
]
