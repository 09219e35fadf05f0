"""Training loops, one file each, and what they share."""

from trimtab.trainers.checkpoint import Checkpoints, load_tensors, save_tensors, seed_step, step_seed
from trimtab.trainers.learner import Learner, Norms, OptimizerConfig, scheduled_lr
from trimtab.trainers.progress import Session
from trimtab.trainers.reward import (
    Ranking,
    RewardConfig,
    encode_preferences,
    score_rankings,
    split_holdout,
    train_reward,
)
from trimtab.trainers.rl import KLConfig, MissingEosConfig, PpoConfig, PpoRoles, check_ppo, rollout_batch, train_ppo
from trimtab.trainers.sft import SftConfig, mean_nll, train_sft

__all__ = [
    "Checkpoints",
    "KLConfig",
    "Learner",
    "MissingEosConfig",
    "Norms",
    "OptimizerConfig",
    "PpoConfig",
    "PpoRoles",
    "Ranking",
    "RewardConfig",
    "Session",
    "SftConfig",
    "check_ppo",
    "encode_preferences",
    "load_tensors",
    "mean_nll",
    "rollout_batch",
    "save_tensors",
    "scheduled_lr",
    "score_rankings",
    "seed_step",
    "split_holdout",
    "step_seed",
    "train_ppo",
    "train_reward",
    "train_sft",
]
