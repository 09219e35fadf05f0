"""From prompts to rollouts, and from rollouts to rewards."""

from trimtab.rollout.engines import make_sampler
from trimtab.rollout.ensemble import EnsembleConfig, RewardModels
from trimtab.rollout.opponents import MixtureOpponent, Opponent
from trimtab.rollout.options import option_logprobs
from trimtab.rollout.pool import Host, Pool, Worker, WorkerLostError
from trimtab.rollout.process import ProcessScorer
from trimtab.rollout.protocol import BackgroundSampler, Sampler, SamplerConfig, ValueHead, by_prompt
from trimtab.rollout.ray import RayConfig
from trimtab.rollout.remote import RemoteSampler, RemoteScorer, SamplerWorker, ScorerWorker
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
    "BackgroundSampler",
    "EnsembleConfig",
    "FunctionReward",
    "Host",
    "HttpReward",
    "LocalSampler",
    "MixtureOpponent",
    "ModelReward",
    "NamedRewards",
    "ObjectiveScorer",
    "Opponent",
    "Pool",
    "ProcessReward",
    "ProcessScorer",
    "RayConfig",
    "RemoteSampler",
    "RemoteScorer",
    "RewardModelScorer",
    "RewardModels",
    "RewardSource",
    "Sampler",
    "SamplerConfig",
    "SamplerWorker",
    "Scorer",
    "ScorerWorker",
    "ValueHead",
    "Worker",
    "WorkerLostError",
    "by_prompt",
    "http_reward",
    "load_rollouts",
    "make_sampler",
    "option_logprobs",
    "remove_states",
    "save_rollouts",
    "split_steps",
]
