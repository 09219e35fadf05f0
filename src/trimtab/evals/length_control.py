"""The win rate at equal length: what remains of a model's wins if longer answers are no advantage.

For prompt i, let y_i be 1 if A's answer wins, ½ for a tie and 0 if it loses, and let d_i be the length of A's answer
minus that of B's, in words. The logistic regression

    P(y_i = 1) = σ(θ + γ · tanh(d_i / s)),    s the standard deviation of d,

gives σ(θ), the win rate at d = 0. Y. Dubois, B. Galambosi, P. Liang and T. Hashimoto, "Length-Controlled AlpacaEval"
(2024), https://arxiv.org/abs/2404.04475, equation 2, without its term for a prompt's difficulty, which needs many
models on each prompt. If one model's answers are nearly always longer, the data say little about equal length, and the
interval becomes wide. A weak normal prior on θ and γ (:data:`PRIOR`) keeps the fit finite if all outcomes agree.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, pstdev

from trimtab.errors import ScoringError
from trimtab.feedback.log_odds import sigmoid

PRIOR = 3.0
"""Standard deviation of the prior of θ and γ, in log-odds."""

MIN_OUTCOMES = 20
"""Smallest number of outcomes for a fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthControlled:
    """A win rate at equal length, with its 95 % interval."""

    rate: float
    """σ(θ)."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    slope: float
    """γ: the log-odds that a much longer answer gains."""


def length_controlled(
    outcomes: Sequence[float],
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    prior: float = PRIOR,
) -> LengthControlled | None:
    """Win rate of A at equal length; None below :data:`MIN_OUTCOMES` outcomes, or if all differences are the same.

    The interval is normal in log-odds. Its variance is the larger of two: the sandwich H⁻¹ (Σ_c g_c g_cᵀ) H⁻¹ of the
    clusters' scores, which allows for several judgements of one prompt, and the posterior variance H⁻¹. If all outcomes
    agree, the scores are nearly 0 and so is the sandwich, although the data do not determine θ; H⁻¹ does not vanish.

    Args:
        outcomes: 1 A won, ½ tie, 0 B won.
        differences: length of A's answer minus that of B's.
        clusters: the prompt of each outcome; None: all prompts differ.
        prior: standard deviation of the prior, in log-odds.

    Raises:
        ScoringError: different numbers of outcomes, differences and clusters, or an outcome outside [0, 1].
    """
    groups = range(len(outcomes)) if clusters is None else clusters
    if not len(outcomes) == len(differences) == len(groups) or not all(0 <= y <= 1 for y in outcomes):
        raise ScoringError(
            f"a win rate at equal length needs outcomes in [0, 1], each with a difference and a cluster; got "
            f"{len(outcomes)}, {len(differences)} and {len(groups)}"
        )
    if len(outcomes) < MIN_OUTCOMES or not (deviation := pstdev(differences)):
        return None
    xs = [math.tanh(d / deviation) for d in differences]
    theta, gamma = _fit(xs, outcomes, prior)
    a, b, c = _curvature(xs, theta, gamma, prior)
    scores: dict[Hashable, tuple[float, float]] = {}
    for x, y, group in zip(xs, outcomes, groups, strict=True):
        residual = y - sigmoid(theta + gamma * x)
        score_theta, score_gamma = scores.get(group, (0.0, 0.0))
        scores[group] = (score_theta + residual, score_gamma + residual * x)
    # The row of H⁻¹ that belongs to θ, times each cluster's score.
    determinant = a * c - b * b
    sandwich = math.fsum(((c * g - b * h) / determinant) ** 2 for g, h in scores.values())
    half_width = NormalDist().inv_cdf(0.975) * math.sqrt(max(sandwich, c / determinant))
    return LengthControlled(
        rate=sigmoid(theta), low=sigmoid(theta - half_width), high=sigmoid(theta + half_width), slope=gamma
    )


def _fit(xs: Sequence[float], ys: Sequence[float], prior: float) -> tuple[float, float]:
    """θ and γ with the highest posterior, by Newton's method; the objective is concave. Steps are at most 1."""
    mean = min(max(fmean(ys), 0.01), 0.99)
    theta, gamma = math.log(mean / (1 - mean)), 0.0
    for _ in range(100):
        theta_gradient, gamma_gradient = -theta / prior**2, -gamma / prior**2
        for x, y in zip(xs, ys, strict=True):
            residual = y - sigmoid(theta + gamma * x)
            theta_gradient, gamma_gradient = theta_gradient + residual, gamma_gradient + residual * x
        a, b, c = _curvature(xs, theta, gamma, prior)
        determinant = a * c - b * b
        theta_step, gamma_step = (
            (c * theta_gradient - b * gamma_gradient) / determinant,
            (a * gamma_gradient - b * theta_gradient) / determinant,
        )
        scale = 1 / max(1.0, abs(theta_step), abs(gamma_step))
        theta, gamma = theta + scale * theta_step, gamma + scale * gamma_step
        if max(abs(theta_step), abs(gamma_step)) < 1e-10:
            break
    return theta, gamma


def _curvature(xs: Sequence[float], theta: float, gamma: float, prior: float) -> tuple[float, float, float]:
    """The entries of the symmetric matrix H = Σ p (1 − p) (1, x)ᵀ(1, x) + 1/prior²."""
    a, b, c = 1 / prior**2, 0.0, 1 / prior**2
    for x in xs:
        p = sigmoid(theta + gamma * x)
        weight = p * (1 - p)
        a, b, c = a + weight, b + weight * x, c + weight * x * x
    return a, b, c
