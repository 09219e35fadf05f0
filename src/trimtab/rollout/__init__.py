"""Prompts to rollouts, and rollouts to rewards."""

from trimtab.rollout.sampler import LocalSampler, SamplerConfig
from trimtab.rollout.scorer import RewardModelScorer, Scorer

__all__ = ["LocalSampler", "RewardModelScorer", "SamplerConfig", "Scorer"]
