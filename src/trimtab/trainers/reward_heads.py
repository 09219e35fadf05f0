"""Initial weights of a reward model's heads."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from trimtab.algos import fit_ridge_bradley_terry
from trimtab.models import PASS_TOKENS, FrozenStates, Role
from trimtab.trainers.outliers import hidden_states
from trimtab.trainers.rankings import PairTable, Ranking


def init_reward_head(role: Role, seed: int) -> None:
    """Normal weights with standard deviation 1/√(d + 1) (Stiennon et al. 2020), zero bias, for every head."""
    assert role.scalar is not None
    generator = torch.Generator().manual_seed(seed)
    count, width = role.scalar.weight.shape
    with torch.no_grad():
        role.scalar.weight.copy_(torch.randn(count, width, generator=generator) / (width + 1) ** 0.5)
        role.scalar.bias.zero_()


PROBE_RANKINGS = 512
"""Largest number of rankings that the initial head is fitted to."""

PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Ridge penalties that cross-validation chooses from, in units of one ranking's loss."""

FOLDS = 4
"""Folds of the cross-validation."""


@torch.no_grad()
def probe_reward_head(
    role: Role, rankings: Sequence[Ranking], states: FrozenStates, micro_batch_tokens: int = PASS_TOKENS
) -> None:
    """Set each head to a penalised Bradley–Terry fit on the features as they are, before any weight is trained.

    Linear probing, then fine-tuning: Kumar et al. 2022 (arXiv 2202.10054). A random head moves the adapters in a random
    direction in the first steps, which destroys features that a small data set cannot teach again. Features are
    standardised; the penalty is chosen by four-fold cross-validation over rankings.
    """
    assert role.scalar is not None
    for head in range(len(role.scalar.weight)):
        own = [r for r in rankings if r.head == head and len(r.pairs())][:PROBE_RANKINGS]
        weight, bias = _probe(role, own, states, micro_batch_tokens)
        role.scalar.weight[head] = weight
        role.scalar.bias[head] = bias


def _probe(
    role: Role, chosen: Sequence[Ranking], states: FrozenStates, micro_batch_tokens: int
) -> tuple[Tensor, float]:
    """Weight and bias of one head."""
    features = hidden_states(role, chosen, states=states, micro_batch_tokens=micro_batch_tokens)
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    features = (features - mean) / std
    table = PairTable.of(chosen)
    gaps, fold = features[table.better] - features[table.worse], torch.tensor(table.rankings) % FOLDS
    targets = torch.tensor(table.probabilities, dtype=torch.float64)
    weights = torch.tensor(table.weights, dtype=torch.float64)

    def heldout_loss(penalty: float) -> float:
        total = 0.0
        for number in range(FOLDS):
            out = fold == number
            if bool(out.any()) and bool((~out).any()):
                z = gaps[out] @ fit_ridge_bradley_terry(gaps[~out], targets[~out], weights[~out], penalty=penalty)
                total += float((weights[out] * (softplus(z) - targets[out] * z)).sum())
        return total

    penalty = min(PENALTIES, key=heldout_loss)
    head = fit_ridge_bradley_terry(gaps, targets, weights, penalty=penalty) / std
    return head, -float(head @ mean)
