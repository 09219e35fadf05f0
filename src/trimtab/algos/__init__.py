"""Formulas: tensors in, tensors out."""

from trimtab.algos.advantages import gae, whiten
from trimtab.algos.kl import AdaptiveKL, kl_k1, kl_k2, kl_k3, penalised_rewards
from trimtab.algos.masking import masked_mean, masked_sum
from trimtab.algos.policy import clip_fraction, clipped_policy_loss, clipped_value_loss
from trimtab.algos.reward import bradley_terry_loss, ranking_pairs

__all__ = [
    "AdaptiveKL",
    "bradley_terry_loss",
    "clip_fraction",
    "clipped_policy_loss",
    "clipped_value_loss",
    "gae",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "masked_mean",
    "masked_sum",
    "penalised_rewards",
    "ranking_pairs",
    "whiten",
]
