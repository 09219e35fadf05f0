"""Losses of reward models."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | None = None,
    probability: Tensor | None = None,
    centring: float = 0.0,
) -> Tensor:
    """−log σ(r_w − r_l − m) per pair, ``[P]``; soft label p: −p·log σ(Δ) − (1 − p)·log σ(−Δ)."""
    delta = chosen - rejected
    if margin is not None:
        delta = delta - margin
    loss = -logsigmoid(delta)
    if probability is not None:
        loss = probability * loss - (1 - probability) * logsigmoid(-delta)
    return loss + centring * (chosen + rejected).square()


def ranking_pairs(ranks: Sequence[int]) -> Tensor:
    """All strict pairs (better, worse) of a ranking, ``[P, 2]`` indices; ties make no pair."""
    pairs = [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
