"""Likelihoods of votes on pairs of answers, with ties and with the habits of each annotator.

Shapes: N votes on pairs of K answers by A annotators. A vote on the pair (i, j) by annotator a depends on two
numbers: the gap ``d = γ_a (x_i − x_j) + s b_a`` with the answers' scores x, the annotator's skill γ_a (1 typical,
0 a coin, below 0 contrary), position bias b_a and s = 1 if i was shown before j, −1 if after, 0 if unknown;
and the tie parameter τ_a.

- Davidson: P(i) : P(tie) : P(j) = e^{d/2} : e^τ : e^{−d/2}, so ν = e^τ. Davidson, JASA 65 (1970), 317–328.
- Rao–Kupper: P(i) = σ(d − η), P(j) = σ(−d − η), P(tie) the rest, with η = e^τ = log θ. Rao and Kupper, JASA 62 (1967),
  194–204.

This module imports NumPy, so it is imported where it is used and not with the package.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
TieModel = Literal["davidson", "rao_kupper"]

FIRST, TIE, SECOND = 0, 1, 2
"""Outcomes of a vote, in the pair's own order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Votes:
    """Votes on pairs, as arrays."""

    first: Ints
    """``[N]``, the pair's first answer, 0 … K − 1."""
    second: Ints
    """``[N]``, its second answer."""
    outcome: Ints
    """``[N]``, :data:`FIRST`, :data:`TIE` or :data:`SECOND`."""
    annotator: Ints
    """``[N]``, 0 … A − 1."""
    shown: Floats
    """``[N]``, 1: the first answer was shown before the second; −1: after it; 0: not known."""
    weight: Floats
    """``[N]``, number of votes that each counts for; above 0."""
    answers: int
    """K."""
    annotators: int
    """A."""

    def __len__(self) -> int:
        return len(self.first)

    def part(self, index: Any) -> "Votes":
        """The votes that an index or a mask selects, with K and A unchanged."""
        arrays = {n: getattr(self, n)[index] for n in ("first", "second", "outcome", "annotator", "shown", "weight")}
        return Votes(**arrays, answers=self.answers, annotators=self.annotators)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """The parameters of the likelihood."""

    score: Floats
    """``[K]``, x; log-odds between answers, mean about 0."""
    skill: Floats
    """``[A]``, γ."""
    tie: Floats
    """``[A]``, τ."""
    position: Floats
    """``[A]``, b; log-odds in favour of the answer shown earlier."""


POINTS = ((0.0, 2 / 3), (3**0.5, 1 / 6), (-(3**0.5), 1 / 6))
"""Gauss–Hermite points in standard deviations, and their weights: exact for polynomials of the fifth degree."""


def gaps(votes: Votes, parameters: Parameters, shift: Floats | float = 0.0) -> tuple[Floats, Floats]:
    """Gap d and tie parameter τ of every vote, ``[N]`` each, with ``shift`` added to x_i − x_j."""
    p, a = parameters, votes.annotator
    score_gap = p.score[votes.first] - p.score[votes.second] + shift
    return p.skill[a] * score_gap + votes.shown * p.position[a], p.tie[a]


def outcome_logs(model: TieModel, d: Floats, tau: Floats) -> tuple[Floats, Floats, Floats]:
    """Log P of the three outcomes, and their derivatives by d and by τ.

    Args:
        model: the likelihood.
        d: ``[N]``.
        tau: ``[N]``.

    Returns:
        three of ``[N, 3]``: log P, ∂ log P/∂d, ∂ log P/∂τ.
    """
    zero = np.zeros_like(d)
    if model == "davidson":
        logits = np.stack([d / 2, tau, -d / 2], axis=1)
        logs = logits - np.logaddexp(np.logaddexp(logits[:, 0], logits[:, 2]), tau)[:, None]
        probability = np.exp(logs)
        mean_slope = (probability[:, 0] - probability[:, 2]) / 2
        by_d = np.stack([0.5 - mean_slope, -mean_slope, -0.5 - mean_slope], axis=1)
        by_tau = np.stack([zero, zero + 1, zero], axis=1) - probability[:, 1:2]
        return logs, by_d, by_tau
    eta = np.exp(tau)
    first, second = _log_sigmoid(d - eta), _log_sigmoid(-d - eta)
    log_tie_factor = 2 * eta + np.log(-np.expm1(-2 * eta))  # log(θ² − 1)
    logs = np.stack([first, log_tie_factor + first + second, second], axis=1)
    not_first, not_second = -np.expm1(first), -np.expm1(second)
    by_d = np.stack([not_first, not_first - not_second, -not_second], axis=1)
    tie_slope = 2 / -np.expm1(-2 * eta) - not_first - not_second
    by_tau = eta[:, None] * np.stack([-not_first, tie_slope, -not_second], axis=1)
    return logs, by_d, by_tau


def vote_probabilities(
    model: TieModel,
    votes: Votes,
    parameters: Parameters,
    variance: Floats | None = None,
    shift: Floats | float = 0.0,
) -> Floats:
    """P(first), P(tie), P(second) of every vote, ``[N, 3]``.

    Args:
        model: the likelihood.
        votes: their outcomes are not used.
        parameters: parameters of answers and annotators.
        variance: ``[N]``, variance of x_i − x_j to average over (Gauss–Hermite, 7 points); None: 0.
        shift: ``[N]``, added to x_i − x_j.
    """
    if variance is None:
        return np.exp(outcome_logs(model, *gaps(votes, parameters, shift))[0])
    points, weights = np.polynomial.hermite_e.hermegauss(7)
    total = np.zeros((len(votes), 3))
    for point, weight in zip(points, weights / weights.sum(), strict=True):
        total += weight * np.exp(outcome_logs(model, *gaps(votes, parameters, shift + point * np.sqrt(variance)))[0])
    return total


def information(
    model: TieModel, votes: Votes, parameters: Parameters, shift: Floats | float = 0.0
) -> tuple[Floats, Floats, Floats]:
    """Expected information of every vote about d and τ: ``[N]`` each of (d, d), (d, τ), (τ, τ), times its weight."""
    logs, by_d, by_tau = outcome_logs(model, *gaps(votes, parameters, shift))
    weighted = np.exp(logs) * votes.weight[:, None]
    return (weighted * by_d**2).sum(1), (weighted * by_d * by_tau).sum(1), (weighted * by_tau**2).sum(1)


def observed_logs(model: TieModel, d: Floats, tau: Floats, outcome: Ints) -> tuple[Floats, Floats, Floats]:
    """:func:`outcome_logs` of the observed outcomes only, ``[N]`` each, in a fraction of the time."""
    sign = 1.0 - outcome  # 1 first, 0 tie, −1 second
    tied = outcome == TIE
    if model == "davidson":
        half_gap = np.clip(d / 2, -300, 300)
        exp_half_gap = np.exp(half_gap)
        weight = np.exp(tau)
        total = exp_half_gap + 1 / exp_half_gap + weight
        mean_slope = (exp_half_gap - 1 / exp_half_gap) / total / 2
        log_total = np.log(total) + np.abs(d / 2) - np.abs(half_gap)
        return np.where(tied, tau, sign * d / 2) - log_total, sign / 2 - mean_slope, tied - weight / total
    eta = np.exp(tau)
    sigmoid_input = np.where(tied, d, sign * d) - eta
    logs, complement = _log_sigmoid(sigmoid_input), 1 / (1 + np.exp(np.clip(sigmoid_input, -300, 300)))
    other_input = -d[tied] - eta[tied]
    other_complement = 1 / (1 + np.exp(np.clip(other_input, -300, 300)))
    by_d, by_eta = np.where(tied, 1.0, sign) * complement, -complement
    logs[tied] += 2 * eta[tied] + np.log(-np.expm1(-2 * eta[tied])) + _log_sigmoid(other_input)
    by_d[tied] -= other_complement
    by_eta[tied] += 2 / -np.expm1(-2 * eta[tied]) - other_complement
    return logs, by_d, eta * by_eta


def log_likelihood(
    model: TieModel, votes: Votes, parameters: Parameters, shift: Floats | float = 0.0
) -> tuple[float, Parameters]:
    """Σ_n w_n log P(outcome_n), and its gradient, which has the shape of the parameters.

    ``shift``: ``[N]``, added to x_i − x_j.
    """
    logs, by_d, by_tau = observed_logs(model, *gaps(votes, parameters, shift), votes.outcome)
    slope = votes.weight * by_d
    a, skill = votes.annotator, parameters.skill[votes.annotator]
    score_gap = parameters.score[votes.first] - parameters.score[votes.second] + shift
    gradient = Parameters(
        score=_sum(votes.first, slope * skill, votes.answers) - _sum(votes.second, slope * skill, votes.answers),
        skill=_sum(a, slope * score_gap, votes.annotators),
        tie=_sum(a, votes.weight * by_tau, votes.annotators),
        position=_sum(a, slope * votes.shown, votes.annotators),
    )
    return float(votes.weight @ logs), gradient


def expected_log_likelihood(
    model: TieModel, votes: Votes, parameters: Parameters, variance: Floats | None
) -> tuple[float, Parameters]:
    """:func:`log_likelihood`, averaged over x_i − x_j with the given variances, ``[N]``; None: all 0."""
    if variance is None:
        return log_likelihood(model, votes, parameters)
    deviation = np.sqrt(variance)
    parts = [(w, log_likelihood(model, votes, parameters, z * deviation)) for z, w in POINTS]
    gradient = {
        name: np.sum([w * getattr(slope, name) for w, (_, slope) in parts], axis=0)
        for name in ("score", "skill", "tie", "position")
    }
    return sum(w * value for w, (value, _) in parts), Parameters(**gradient)


def _sum(indices: Ints, values: Floats, size: int) -> Floats:
    return np.asarray(np.bincount(indices, weights=values, minlength=size), dtype=np.float64)


def _log_sigmoid(x: Floats) -> Floats:
    return -np.logaddexp(0, -x)
