"""Combines the scores of several reward models into one.

Shapes: M members, B answers.
"""

import math
from typing import Literal

from torch import Tensor

from trimtab.algos.checks import full, two_dimensional
from trimtab.errors import ConfigError, NonFiniteError, TrainingError

Combination = Literal["mean", "worst", "penalised"]
"""How the scores of an ensemble become one."""


def ensemble_score(scores: Tensor, combination: Combination, *, penalty: float = 1.0) -> Tensor:
    """One score per answer: the members' mean, the lowest of them, or the mean minus λ standard deviations.

    ``mean``: r̄ = (1/M) Σ_m r_m; ``worst``: min_m r_m; ``penalised``: r̄ − λ·s, s² = (1/M) Σ_m (r_m − r̄)². Source:
    Coste et al. 2023 (arXiv 2310.02743), section 3.2, where the penalty is on the variance s² instead of s, so that λ
    depends on the scale of the rewards there.

    Args:
        scores: ``[M, B]``, each member's scores, normalised so that their units agree.
        combination: which of the three.
        penalty: λ, not negative; used only by ``penalised``.

    Returns:
        ``[B]``; no gradient.

    Raises:
        ConfigError: an unknown combination, or a penalty that is negative, NaN or infinite.
        NonFiniteError: a score is NaN or infinite.
        TrainingError: the shape is another one, or there is no member.

    >>> import torch
    >>> scores = torch.tensor([[1.0, 3.0], [3.0, 3.0]])
    >>> [ensemble_score(scores, how).tolist() for how in ("mean", "worst", "penalised")]
    [[2.0, 3.0], [1.0, 3.0], [1.0, 3.0]]
    """
    if not 0.0 <= penalty < math.inf:
        raise ConfigError(f"the ensemble's penalty is {penalty}; set a finite number of at least 0")
    scores = _checked(scores)
    if combination == "mean":
        return scores.mean(dim=0)
    if combination == "worst":
        return scores.min(dim=0).values
    if combination == "penalised":
        return scores.mean(dim=0) - penalty * scores.std(dim=0, correction=0)
    raise ConfigError(f"the ensemble's score is {combination!r}; use 'mean', 'worst' or 'penalised'")


def ensemble_spread(scores: Tensor) -> Tensor:
    """Standard deviation of the members' scores of each answer, s = √((1/M) Σ_m (r_m − r̄)²).

    Source: Coste et al. 2023 (arXiv 2310.02743), section 3.2, whose variance is s².

    Args:
        scores: ``[M, B]``, each member's scores, normalised.

    Returns:
        ``[B]``, the scores' units; 0 for one member.

    Raises:
        NonFiniteError: a score is NaN or infinite.
        TrainingError: the shape is another one, or there is no member.
    """
    return _checked(scores).std(dim=0, correction=0)


def _checked(scores: Tensor) -> Tensor:
    two_dimensional(scores=scores)
    if not len(scores):
        raise TrainingError("an ensemble without members has no score; give it at least one row")
    finite = scores.isfinite().all(dim=1)
    if not bool(finite.all()):
        member = int((~finite).nonzero()[0])
        raise NonFiniteError(
            f"member {member + 1} of {len(scores)} gave a score that is NaN or infinite; train it again"
        )
    return full(scores.detach())
