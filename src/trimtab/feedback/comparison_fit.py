"""Scores of answers and habits of annotators from votes on pairs: MAP, empirical Bayes, Laplace intervals.

With habits, the log-likelihood is averaged over the uncertainty of x_i − x_j from the round before (a Gaussian
variational bound with Laplace's variances; Opper and Archambeau, Neural Computation 21 (2009), 786–792). At a joint
maximum instead, thousands of scores with few votes each fit the noise: skills spread without limit
while scores shrink.

Priors: x_k ~ N(0, σ_x²); γ_a ~ N(1, σ_γ²); τ_a ~ N(μ_τ, σ_τ²); b_a ~ N(μ_b, σ_b²), with the common μ_τ and μ_b
estimated too; μ_b ~ N(0, ½²), so that better answers that happen to be shown first are not explained away. The
priors keep the values of answers that never lost, and of annotators with few votes, finite. The prior
deviations are MacKay's:
σ² = (Σ m² + n₀ s₀²) / (Σ (1 − v/σ²) + n₀) with the posterior means m (from the prior's mean) and variances v, and
n₀ = 2 imagined observations of the deviation s₀ (MacKay, Neural Computation 4 (1992), 415–447, section 4). Intervals
are Laplace's, from the expected information of all votes at the maximum, with the prior deviations and μ taken as
known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from trimtab.errors import ConfigError
from trimtab.feedback.annotator_facts import Habit
from trimtab.feedback.comparison_model import (
    POINTS,
    TIE,
    Floats,
    Ints,
    Parameters,
    TieModel,
    Votes,
    expected_log_likelihood,
    information,
)

HABITS: tuple[Habit, ...] = ("tie", "skill", "position")
"""What may differ between annotators."""

DENSE = 2500
"""Largest number of answers whose covariance is computed as one matrix (50 MB); see :func:`_covariance`."""

_INITIAL_DEVIATIONS = {"score": 1.0, "skill": 0.5, "tie": 0.7, "position": 0.3}
"""s₀, and the deviations of the first round."""
# Larger prior deviations are never plausible.
_MAX_DEVIATIONS = {"score": 5.0, "skill": 1.0, "tie": 3.0, "position": 3.0}
_PSEUDO_OBSERVATIONS = 2.0
# Prior deviations of μ_τ and μ_b: a bias common to all is seldom large.
_COMMON_DEVIATIONS = {"tie": 10.0, "position": 0.5}
_MAX_ROUNDS = 12
_TIE_BOUNDS = (-9.0, 4.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonFit:
    """Estimates with their uncertainty."""

    model: TieModel
    """The likelihood."""
    habits: tuple[Habit, ...]
    """What differs between annotators."""
    parameters: Parameters
    """Parameters at the maximum."""
    deviations: dict[str, float]
    """Prior standard deviations σ of ``score`` and of each habit."""
    common_tie: float
    """μ_τ."""
    common_position: float
    """μ_b."""
    variance: Floats
    """``[K]``, variance of each score."""
    skill_deviation: Floats
    """``[A]``, standard deviation of γ_a; 0 if it is not fitted."""
    tie_deviation: Floats
    """``[A]``, standard deviation of τ_a; 0 if it is common to all."""
    position_deviation: Floats
    """``[A]``, standard deviation of b_a; 0 if it is common to all."""
    pair_variance: Floats
    """``[P]``, variance of x_i − x_j for the requested pairs."""

    def __str__(self) -> str:
        return f"{self.model} of {len(self.parameters.score)} answers by {len(self.parameters.skill)} annotators"


def fit_comparisons(
    votes: Votes,
    *,
    model: TieModel = "davidson",
    habits: tuple[Habit, ...] = HABITS,
    pairs: tuple[Ints, Ints] | None = None,
    deviations: dict[str, float] | None = None,
) -> ComparisonFit:
    """Fit scores and habits.

    Args:
        votes: at least one.
        model: ``davidson`` or ``rao_kupper``.
        habits: what differs between annotators; () fits one tie parameter and one position bias for all.
        pairs: first and second answers of pairs whose difference needs a variance; None: none.
        deviations: fixed prior standard deviations; None: all are estimated.

    Raises:
        ConfigError: there are no votes.
    """
    if not len(votes):
        raise ConfigError("there is no vote to fit; pass votes with a winner or a tie")
    sigma = _INITIAL_DEVIATIONS | (deviations or {})
    problem = _Problem(votes, model, habits)
    point, gap_variance = problem.start(), None
    for iteration in range(_MAX_ROUNDS):
        point = problem.maximise(point, sigma, gap_variance, exact=False)
        new_sigma, gap_variance = problem.update_deviations(point, sigma, gap_variance)
        new_sigma = sigma | {n: s for n, s in new_sigma.items() if n not in (deviations or {})}
        converged = all(abs(np.log(new_sigma[n] / sigma[n])) < 0.02 for n in new_sigma)
        sigma = new_sigma
        if converged and (iteration > 1 or not habits):
            break
    point = problem.maximise(point, sigma, gap_variance, exact=True)
    no_pairs = np.zeros(0, dtype=np.int64)
    blocks = problem.curvature(point, sigma, gap_variance)
    variance, pair_variance, habit_deviation = _covariance(
        blocks, *(pairs or (no_pairs, no_pairs)), skills="skill" in habits
    )
    zeros = np.zeros(votes.annotators)
    habit_deviations = {h: habit_deviation[:, i] if h in habits else zeros for i, h in enumerate(HABITS)}
    return ComparisonFit(
        model=model,
        habits=habits,
        parameters=problem.parameters(point),
        deviations={n: sigma[n] for n in ("score", *habits)},
        common_tie=float(point[problem.common_tie]),
        common_position=float(point[problem.common_position]),
        variance=variance,
        skill_deviation=habit_deviations["skill"],
        tie_deviation=habit_deviations["tie"],
        position_deviation=habit_deviations["position"],
        pair_variance=pair_variance,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Curvature:
    """Blocks of the negative log-posterior's second derivatives at the maximum."""

    answers: Any
    """Sparse ``[K, K]``."""
    crossed: Any
    """Sparse ``[K, 3A]``, answers by habits."""
    habits: Floats
    """``[A, 3, 3]``; 1e12 on the diagonal where a habit is not fitted."""


class _Problem:
    """The posterior as a function of one vector: x, then μ_τ and μ_b, then each fitted habit of every annotator."""

    def __init__(self, votes: Votes, model: TieModel, habits: tuple[Habit, ...]) -> None:
        self.votes: Votes = votes
        self.model: TieModel = model
        self.habits: tuple[Habit, ...] = habits
        k, a = votes.answers, votes.annotators
        self.common_tie, self.common_position = k, k + 1
        self.slices: dict[Habit, slice] = {h: slice(k + 2 + i * a, k + 2 + (i + 1) * a) for i, h in enumerate(habits)}
        self.size = k + 2 + len(habits) * a

    def start(self) -> Floats:
        """All answers equal, all annotators alike, ties as often as observed."""
        ties = float(self.votes.weight[self.votes.outcome == TIE].sum())
        share = (ties + 0.5) / (float(self.votes.weight.sum()) + 1.5)
        nu = 2 * share / (1 - share)
        point = np.zeros(self.size)
        # between equals: Davidson ν/(2 + ν) = share; Rao–Kupper tanh(η/2) = share
        tie = np.log(nu) if self.model == "davidson" else np.log(2 * np.arctanh(min(share, 0.99)))
        point[self.common_tie] = np.clip(tie, *_TIE_BOUNDS)
        if "skill" in self.slices:
            point[self.slices["skill"]] = 0.0  # γ − 1, up to a constant
        if "tie" in self.slices:
            point[self.slices["tie"]] = point[self.common_tie]
        return point

    def parameters(self, point: Floats) -> Parameters:
        """The vector as parameters."""
        a = self.votes.annotators
        common_values = {"skill": 1.0, "tie": point[self.common_tie], "position": point[self.common_position]}
        values = {h: point[self.slices[h]] if h in self.slices else np.full(a, common_values[h]) for h in HABITS}
        if "skill" in self.slices:
            values["skill"] = 1.0 + values["skill"] - values["skill"].mean()
        return Parameters(
            score=point[: self.votes.answers],
            skill=values["skill"],
            tie=values["tie"],
            position=values["position"],
        )

    def loss(self, point: Floats, sigma: dict[str, float], gap_variance: Floats | None) -> tuple[float, Floats]:
        """Negative log-posterior, up to a constant, and its gradient; ``gap_variance``: of each vote's x_i − x_j."""
        value, likelihood_gradient = expected_log_likelihood(
            self.model, self.votes, self.parameters(point), gap_variance
        )
        gradient = np.zeros(self.size)
        k = self.votes.answers
        gradient[:k] = point[:k] / sigma["score"] ** 2 - likelihood_gradient.score
        penalty = float((point[:k] ** 2).sum()) / sigma["score"] ** 2
        common_slopes: tuple[tuple[int, Habit, Floats], ...] = (
            (self.common_tie, "tie", likelihood_gradient.tie),
            (self.common_position, "position", likelihood_gradient.position),
        )
        for common_index, habit, habit_slope in common_slopes:
            gradient[common_index] = point[common_index] / _COMMON_DEVIATIONS[habit] ** 2
            penalty += float(point[common_index] ** 2) / _COMMON_DEVIATIONS[habit] ** 2
            if habit not in self.slices:
                gradient[common_index] -= habit_slope.sum()
        for habit, habit_slice in self.slices.items():
            centred = self._centred(point, habit)
            penalty += float((centred**2).sum()) / sigma[habit] ** 2
            habit_gradient = centred / sigma[habit] ** 2 - getattr(likelihood_gradient, habit)
            if habit == "skill":
                habit_gradient -= habit_gradient.mean()
            else:
                gradient[self._common_index(habit)] -= centred.sum() / sigma[habit] ** 2
            gradient[habit_slice] = habit_gradient
        return penalty / 2 - value, gradient

    def maximise(self, point: Floats, sigma: dict[str, float], gap_variance: Floats | None, *, exact: bool) -> Floats:
        """The maximum from a start."""
        optimize: Any = import_module("scipy.optimize")
        bounds = [(None, None)] * self.size
        tie = self.slices.get("tie", slice(0, 0))
        for index in (self.common_tie, *range(tie.start, tie.stop)):
            bounds[index] = _TIE_BOUNDS  # type: ignore[call-overload]
        result = optimize.minimize(
            self.loss,
            point,
            args=(sigma, gap_variance),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={
                "maxiter": 500 if exact else 60,
                "maxcor": 20,
                "ftol": 1e-11 if exact else 1e-7,
                "gtol": 1e-5 if exact else 1e-3,
            },
        )
        return result.x

    def update_deviations(
        self, point: Floats, sigma: dict[str, float], gap_variance: Floats | None
    ) -> tuple[dict[str, float], Floats | None]:
        """Prior deviations that the estimates speak for, and, with habits, the variance of each vote's x_i − x_j."""
        blocks, k = self.curvature(point, sigma, gap_variance), self.votes.answers
        variance, new_gap_variance, deviation = _covariance(
            blocks, self.votes.first, self.votes.second, skills="skill" in self.habits
        )
        means = {"score": (point[:k], variance)}
        for habit in self.slices:
            means[habit] = (self._centred(point, habit), deviation[:, HABITS.index(habit)] ** 2)
        new_sigma: dict[str, float] = {}
        for name, (mean, posterior_variance) in means.items():
            effective_count = np.clip(1 - posterior_variance / sigma[name] ** 2, 0, 1).sum()
            squared_deviation = (float((mean**2).sum()) + _PSEUDO_OBSERVATIONS * _INITIAL_DEVIATIONS[name] ** 2) / (
                effective_count + _PSEUDO_OBSERVATIONS
            )
            new_sigma[name] = float(np.clip(np.sqrt(squared_deviation), 0.02, _MAX_DEVIATIONS[name]))
        return new_sigma, new_gap_variance if self.habits else None

    def curvature(self, point: Floats, sigma: dict[str, float], gap_variance: Floats | None) -> _Curvature:
        """Expected second derivatives, by blocks."""
        sparse: Any = import_module("scipy.sparse")
        votes, p = self.votes, self.parameters(point)
        k, a = votes.answers, votes.annotators
        shifts = ((0.0, 1.0),) if gap_variance is None else ((z * np.sqrt(gap_variance), w) for z, w in POINTS)
        parts = [(w, information(self.model, votes, p, shift)) for shift, w in shifts]
        dd, dt, tt = (np.sum([w * part[n] for w, part in parts], axis=0) for n in range(3))
        skill, score_gap = p.skill[votes.annotator], p.score[votes.first] - p.score[votes.second]
        i, j, gap_info = votes.first, votes.second, dd * skill**2
        diagonal = np.arange(k)
        answers = sparse.csr_matrix(
            (
                np.concatenate([gap_info, gap_info, -gap_info, -gap_info, np.full(k, sigma["score"] ** -2)]),
                (np.concatenate([i, j, i, j, diagonal]), np.concatenate([i, j, j, i, diagonal])),
            ),
            shape=(k, k),
        )
        # ∂d/∂(τ, γ, b) = (–, score_gap, shown); τ enters by itself
        slopes = {"skill": score_gap, "position": votes.shown}
        crossed = {"tie": dt * skill} | {h: dd * skill * s for h, s in slopes.items()}
        within = {("tie", "tie"): tt} | {("tie", h): dt * s for h, s in slopes.items()}
        within |= {(h, g): dd * s * t for h, s in slopes.items() for g, t in slopes.items()}
        rows: list[Ints] = []
        columns: list[Ints] = []
        values: list[Floats] = []
        habits = np.zeros((a, 3, 3))
        for number, habit in enumerate(HABITS):
            if habit not in self.slices:
                habits[:, number, number] = 1e12
                continue
            rows += [i, j]
            columns += [3 * votes.annotator + number] * 2
            values += [crossed[habit], -crossed[habit]]
            habits[:, number, number] += sigma[habit] ** -2
            for other in range(number, 3):
                if HABITS[other] in self.slices:
                    sums = np.bincount(votes.annotator, weights=within[habit, HABITS[other]], minlength=a)
                    habits[:, number, other] += sums
                    if other != number:
                        habits[:, other, number] += sums
        empty = np.zeros(0, dtype=np.int64)
        crossed_matrix = sparse.csr_matrix(
            (
                np.concatenate([*values, np.zeros(0)]),
                (np.concatenate([*rows, empty]), np.concatenate([*columns, empty])),
            ),
            shape=(k, 3 * a),
        )
        return _Curvature(answers=answers, crossed=crossed_matrix, habits=habits)

    def _centred(self, point: Floats, habit: Habit) -> Floats:
        """A habit's values minus the prior's mean; skills average 1."""
        values = point[self.slices[habit]]
        return values - (values.mean() if habit == "skill" else point[self._common_index(habit)])

    def _common_index(self, habit: Habit) -> int:
        return self.common_tie if habit == "tie" else self.common_position


def _covariance(blocks: _Curvature, first: Ints, second: Ints, *, skills: bool) -> tuple[Floats, Floats, Floats]:
    """Variances of the scores ``[K]`` and of contrasts ``[P]``, and deviations of the habits ``[A, 3]``.

    Up to :data:`DENSE` answers with the uncertainty of the habits (Schur complement), given that skills average 1.
    Above, with the habits as known, one matrix for each group of connected answers; of a group of more than
    :data:`DENSE`, H⁻¹ = (D − W)⁻¹ is D⁻¹ + D⁻¹WD⁻¹ + …, of which the first term counts off the diagonal and the first
    two of even order on it: below the truth by about 1 / (comparisons of an answer).
    """
    inverse = np.linalg.inv(blocks.habits)
    a, k = len(inverse), blocks.answers.shape[0]
    conditional_variance = np.diagonal(inverse, axis1=1, axis2=2)
    if k > DENSE:
        return (*_sparse_covariance(blocks.answers, first, second), np.sqrt(conditional_variance))
    matrix = blocks.answers.toarray()
    if not blocks.crossed.nnz:
        covariance = _inverted(matrix)
        pair_variance = _contrasts(covariance.diagonal(), covariance[first, second], first, second)
        return covariance.diagonal().copy(), pair_variance, np.sqrt(conditional_variance)
    crossed = blocks.crossed.toarray().reshape(k, a, 3)
    projected = np.einsum("kas,ast->kat", crossed, inverse).reshape(k, 3 * a)
    matrix -= projected @ crossed.reshape(k, 3 * a).T
    covariance = _inverted(matrix)
    cross_covariance = -covariance @ projected  # [K, 3A], covariance of scores and habits
    variance = covariance.diagonal().copy()
    pair_variance = _contrasts(variance, covariance[first, second], first, second)
    habit_variance = conditional_variance - np.einsum("kh,kh->h", projected, cross_covariance).reshape(a, 3)
    if skills:  # condition on the sum of the skills
        score_skill_sum = cross_covariance[:, 1::3].sum(1)
        habit_skill_sum = -projected.T @ score_skill_sum
        habit_skill_sum += inverse[:, :, 1].ravel()
        skill_sum_variance = habit_skill_sum[1::3].sum()
        variance -= score_skill_sum**2 / skill_sum_variance
        pair_variance -= (score_skill_sum[first] - score_skill_sum[second]) ** 2 / skill_sum_variance
        habit_variance -= habit_skill_sum.reshape(a, 3) ** 2 / skill_sum_variance
    return variance, np.maximum(pair_variance, 0), np.sqrt(np.maximum(habit_variance, 0))


def _contrasts(variance: Floats, covariance: Floats, first: Ints, second: Ints) -> Floats:
    return np.maximum(variance[first] + variance[second] - 2 * covariance, 0)


def _sparse_covariance(matrix: Any, first: Ints, second: Ints) -> tuple[Floats, Floats]:
    k = matrix.shape[0]
    inverse_diagonal = 1 / matrix.diagonal()
    off_diagonal = matrix.copy()
    off_diagonal.setdiag(0.0)
    variance = inverse_diagonal + inverse_diagonal**2 * (off_diagonal.multiply(off_diagonal) @ inverse_diagonal)
    covariance = -np.asarray(off_diagonal[first, second]).ravel() * inverse_diagonal[first] * inverse_diagonal[second]
    for members, covariances in _by_component(matrix):
        position = np.full(k, -1)
        group = np.zeros(k, dtype=np.int64)
        position[members] = np.arange(members.shape[1])
        group[members] = np.arange(len(members))[:, None]
        variance[members] = np.diagonal(covariances, axis1=1, axis2=2)
        selected = position[first] >= 0
        i, j = first[selected], second[selected]
        covariance[selected] = covariances[group[i], position[i], position[j]]
    return variance, _contrasts(variance, covariance, first, second)


def _by_component(matrix: Any) -> Iterator[tuple[Ints, Floats]]:
    """Groups of connected answers of one size, ``[G, m]``, and their covariances ``[G, m, m]``."""
    graphs: Any = import_module("scipy.sparse.csgraph")
    _, component = graphs.connected_components(matrix, directed=False)
    order = np.argsort(component, kind="stable")
    sizes = np.bincount(component)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    for size in np.unique(sizes):
        if size > DENSE:
            continue
        batch = max(1, 20_000_000 // int(size) ** 2)
        size_starts = starts[sizes == size]
        for offset in range(0, len(size_starts), batch):
            members = order[size_starts[offset : offset + batch, None] + np.arange(size)]
            if len(members) == 1:
                yield members, _inverted(matrix[members[0]][:, members[0]].toarray())[None]
                continue
            rows = np.repeat(members, size, axis=1).ravel()
            columns = np.tile(members, (1, size)).ravel()
            values = np.asarray(matrix[rows, columns]).reshape(len(members), size, size)
            yield members, np.linalg.inv(values)


def _inverted(matrix: Floats) -> Floats:
    """Inverse of a positive definite matrix, which is overwritten."""
    linear: Any = import_module("scipy.linalg")
    lapack: Any = import_module("scipy.linalg.lapack")
    factor, _ = linear.cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    triangle = np.tril(inverse)
    return triangle + np.tril(triangle, -1).T
