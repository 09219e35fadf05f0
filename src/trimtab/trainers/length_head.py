"""A second head that learns the length signal, so that the reward does not (ODIN).

L = L_R(q + l) + λ_L (|ρ(q, n)| − ρ(l, n)) + λ_O |cos(W_q, W_l)|

q and l are the outputs of the quality and the length head, n the answers' lengths in tokens, L_R the loss of the
labels, and ρ the correlation among answers to the same prompt, over the whole optimiser step. The reward is q alone.
Source: Chen et al. 2024 (ODIN, arXiv 2402.07319), section 3. There ρ is over all answers of a batch, and W is
normalised, as the cosine does here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from trimtab.algos import length_correlation
from trimtab.config import Config
from trimtab.models import FrozenStates, Role
from trimtab.trainers.rankings import RankingBatch


class LengthConfig(Config):
    """A second head that follows length, in training only."""

    correlation: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """λ_L: how strongly the reward is kept from following the length of answers, and the length head is made to follow
    it."""
    orthogonality: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """λ_O: how strongly the two heads are kept from reading the same direction of the hidden state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthTerms:
    """The length terms of one optimiser step, computed over all its answers."""

    slopes: dict[tuple[int, ...], Tensor]
    """``[B, 2]`` for each micro-batch, by its rankings' places: gradient of |ρ(q, n)| − ρ(l, n) by both outputs."""
    value: float
    """|ρ(q, n)| − ρ(l, n)."""
    of_quality: float
    """ρ(q, n)."""
    of_length: float
    """ρ(l, n)."""
    rankings: int
    """Number of rankings in the step."""

    def loss(self, role: Role, part: RankingBatch, numbers: Tensor, config: LengthConfig) -> Tensor:
        """A micro-batch's share of the length terms; the sum does not depend on how the step is cut."""
        assert role.scalar is not None
        share = len(part.rankings) / self.rankings
        # slopes times numbers sum to 0 over the step, since a correlation does not depend on scale
        followed = (self.slopes[tuple(part.places)] * numbers).sum() + share * self.value
        quality, length = role.scalar.weight
        cosine = torch.nn.functional.cosine_similarity(quality, length, dim=0).abs()
        return config.correlation * followed + config.orthogonality * share * cosine


@torch.no_grad()
def length_terms(role: Role, parts: Sequence[RankingBatch], states: FrozenStates | None) -> LengthTerms:
    """Compute the correlations over a whole step, in one pass without gradients and without dropout."""
    numbers = torch.cat([role.head_scores(part.tokens, states=states) for part in parts])
    rankings = [r for part in parts for r in part.rankings]
    lengths = [float(len(s) - r.prompt_length) for r in rankings for s in r.sequences]
    owners = [i for i, r in enumerate(rankings) for _ in r.sequences]
    n = torch.tensor(lengths, device=numbers.device)
    owner = torch.tensor(owners, device=numbers.device)
    quality, by_quality = length_correlation(numbers[:, 0], n, owner)
    length, by_length = length_correlation(numbers[:, 1], n, owner)
    slopes = torch.stack([by_quality if quality >= 0 else -by_quality, -by_length], dim=1)
    sizes = [sum(len(r.sequences) for r in part.rankings) for part in parts]
    return LengthTerms(
        slopes={tuple(part.places): own for part, own in zip(parts, slopes.split(sizes), strict=True)},
        value=abs(quality) - length,
        of_quality=quality,
        of_length=length,
        rankings=len(rankings),
    )
