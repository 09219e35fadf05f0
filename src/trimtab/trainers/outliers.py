"""How far answers are from a reward model's training answers, measured on its own hidden states.

A reward model's score means little far from its training data. The measure is the Mahalanobis distance of the last
hidden state from a Gaussian of the training answers: Lee et al. 2018 (arXiv 1807.03888); as a sign of reward hacking:
Miao et al. 2024 (InfoRM, arXiv 2402.09345). Shapes: B sequences, H hidden units.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.errors import TrainingError
from trimtab.models import PASS_TOKENS, FrozenStates, Role
from trimtab.trainers.rankings import Ranking, tokens_of_rankings

QUANTILE = 0.99
"""Share of training answers within the limit, among those that the Gaussian was not fitted to."""


@torch.no_grad()
def hidden_states(
    role: Role,
    rankings: Sequence[Ranking],
    *,
    states: FrozenStates | None = None,
    micro_batch_tokens: int = PASS_TOKENS,
) -> Tensor:
    """Last hidden state of every answer, ``[B, H]`` float64 on the CPU."""
    batch = tokens_of_rankings(rankings, role.backbone.device)
    features = torch.empty(batch.size, role.backbone.width, dtype=torch.float64)
    for index, part in batch.micro_batches(micro_batch_tokens):
        features[index.cpu()] = role.last_hidden(part, states=states).double().cpu()
    return features


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A Gaussian of the training answers, and the distance within which most of them lie."""

    mean: Tensor
    """``[H]``."""
    precision: Tensor
    """``[H, H]``."""
    limit: float
    """Quantile :data:`QUANTILE` of squared distances, over the training answers that the Gaussian was not fitted to."""

    def outliers(self, features: Tensor) -> Tensor:
        """``[B]`` bool, True: beyond the limit."""
        return squared_distances(features, self.mean, self.precision) > self.limit


def known_answers(features: Tensor, prompts: Sequence[Hashable]) -> Known:
    """Fit the Gaussian to the answers to every second prompt and the limit to the others.

    Answers to one prompt are similar, so further answers to the prompts of the fit are closer to the Gaussian than
    answers to a new prompt.

    Args:
        features: ``[B, H]``, of the training answers in a random order of prompts.
        prompts: the prompt of each answer.

    Raises:
        TrainingError: there are fewer than 20 answers, or only one prompt.
    """
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    if len(features) < 20 or len(places) < 2:
        raise TrainingError(
            f"{len(features)} training answers to {len(places)} prompts say too little about distances; at least 20 "
            "answers to 2 prompts are needed"
        )
    second = torch.tensor([places[prompt] % 2 == 1 for prompt in prompts])
    fitted, others = features[~second], features[second]
    precision = torch.linalg.inv(shrunk_covariance(fitted))
    distances = squared_distances(others, fitted.mean(0), precision)
    return Known(mean=fitted.mean(0), precision=precision, limit=float(distances.quantile(QUANTILE)))


def squared_distances(features: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """(x − μ)ᵀ P (x − μ) for every row, ``[B]``."""
    apart = features - mean
    return ((apart @ precision) * apart).sum(1)


def shrunk_covariance(features: Tensor) -> Tensor:
    """Ledoit and Wolf's covariance, which is invertible even with fewer rows than columns.

    (1 − δ) S + δ m I with m = tr S / H, δ = min(b², d²) / d², d² = ‖S − m I‖² / H, b² = Σ_i ‖x_i x_iᵀ − S‖² / (B² H).
    Source: Ledoit and Wolf, Journal of Multivariate Analysis 88 (2004), 365–411, section 3.

    Args:
        features: ``[B, H]``.

    Returns:
        ``[H, H]``.
    """
    x = features - features.mean(0)
    rows, width = x.shape
    sample = x.T @ x / rows
    scale = sample.trace() / width
    apart = (sample.square().sum() - width * scale**2) / width
    # Σ_i ‖x_i x_iᵀ − S‖² = Σ_i ‖x_i‖⁴ − B ‖S‖²
    noise = (x.square().sum(1).square().sum() - rows * sample.square().sum()) / (rows**2 * width)
    share = float((noise / apart).clamp(0, 1)) if float(apart) > 0 else 1.0
    return (1 - share) * sample + share * scale * torch.eye(width, dtype=x.dtype)
