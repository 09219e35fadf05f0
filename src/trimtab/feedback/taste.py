"""Models what single annotators like beyond what all like: one shared direction in the features of answers.

A vote by annotator a on the answers i and j has the gap d = γ_a (x_i − x_j + t) + s b_a of
:mod:`trimtab.feedback.comparison_model`, with the taste

    t = (u_a − ū) v · (φ_i − φ_j)

φ are features of the answers' texts. The direction v ~ N(0, σ² I) is shared by all annotators (rank one), in units of
the root mean squares of the differences; u_a ~ N(0, 1) says how far annotator a follows it. Only annotators with at
least :data:`MIN_VOTES` votes have a taste; ū is their mean by votes, so that what they share stays in the scores. Votes
are counted by weight, so all pairs of a ranking of K answers count as K − 1.

A taste is used only if it lowers the log-loss of held-out votes. The pairs of one ranking share its annotator's noise,
so they are fitted together or held out together. ``python -m benchmarks.taste`` measures what a taste gains on people's
votes.

This module imports NumPy and SciPy, so it is imported where it is used and not with the package.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.feedback.comparison_fit import Habit, fit_comparisons
from trimtab.feedback.comparison_model import POINTS, Floats, Ints, Parameters, TieModel, Votes, observed_logs
from trimtab.feedback.habit_selection import FOLDS, vote_folds

MIN_VOTES = 50
"""Votes that an annotator needs for a taste."""

DEVIATIONS = (0.1, 0.3, 1.0)
"""Values of σ that are tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Taste:
    """A fitted taste."""

    direction: Floats
    """``[F]``, v, in log-odds for one unit of each feature."""
    strength: Floats
    """``[A]``, u_a − ū; 0: the annotator has too few votes."""

    def offsets(self, differences: Floats, annotator: Ints) -> Floats:
        """The t of each vote, ``[N]``, from φ_i − φ_j (``[N, F]``) and annotators; 0 for numbers outside 0 … A − 1."""
        in_range = (annotator >= 0) & (annotator < len(self.strength))
        return np.where(in_range, self.strength[np.where(in_range, annotator, 0)], 0.0) * (differences @ self.direction)


@dataclass(frozen=True, kw_only=True, slots=True)
class TasteChoice:
    """The taste that is used, and what was tried."""

    taste: Taste | None
    """None: a taste does not lower the log-loss, or too few annotators have enough votes."""
    annotators: int
    """Number of annotators with enough votes."""
    without: float
    """Mean log-loss of held-out votes without a taste, in nats over the three outcomes."""
    trials: tuple[tuple[float, float], ...]
    """Each σ that was tried, and the log-loss with it."""
    losses: tuple[Floats, Floats]
    """Losses of all votes without a taste and with the best one, ``[N]`` each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossFit:
    """Scores and habits for each vote, fitted without that vote."""

    model: TieModel
    """The likelihood."""
    votes: Votes
    """All votes."""
    parameters: tuple[Parameters, ...]
    """For each fold, fitted to the votes of the other folds."""
    fold: Ints
    """``[N]``, fold of each vote."""
    variance: Floats
    """``[N]``, variance of x_i − x_j."""

    def logs(self, taste: Floats) -> tuple[Floats, Floats]:
        """Log P(outcome), averaged over the scores' variance, and its slope by t, ``[N]`` each."""
        logs, slope = np.zeros(len(self.votes)), np.zeros(len(self.votes))
        for number, fold_parameters in enumerate(self.parameters):
            in_fold = self.fold == number
            if in_fold.any():
                logs[in_fold], slope[in_fold] = mixed_logs(
                    self.model, self.votes.part(in_fold), fold_parameters, self.variance[in_fold], taste[in_fold]
                )
        return logs, slope

    def part(self, mask: NDArray[np.bool_]) -> "CrossFit":
        """The votes that a mask selects."""
        return CrossFit(
            model=self.model, votes=self.votes.part(mask), parameters=self.parameters, fold=self.fold[mask],
            variance=self.variance[mask],
        )  # fmt: skip


def mixed_logs(
    model: TieModel, votes: Votes, parameters: Parameters, variance: Floats, taste: Floats
) -> tuple[Floats, Floats]:
    """Log Σ_k w_k P(outcome | x_i − x_j + √variance z_k + t) with three Gauss–Hermite points, and its slope by t.

    The sum is taken in logs, so that even a vote as unlikely as e^{−1000} has a finite loss and a slope.
    """
    skill, tau = parameters.skill[votes.annotator], parameters.tie[votes.annotator]
    score_gap = parameters.score[votes.first] - parameters.score[votes.second] + taste
    position_bias = votes.shown * parameters.position[votes.annotator]
    logs, slopes = np.zeros((len(POINTS), len(votes))), np.zeros((len(POINTS), len(votes)))
    for number, (z, weight) in enumerate(POINTS):
        gap = skill * (score_gap + z * np.sqrt(variance)) + position_bias
        point_logs, slopes[number], _ = observed_logs(model, gap, tau, votes.outcome)
        logs[number] = np.log(weight) + point_logs
    total = np.logaddexp.reduce(logs, axis=0)
    return total, (np.exp(logs - total) * slopes).sum(0) * skill


def cross_fit(
    votes: Votes, *, model: TieModel, habits: tuple[Habit, ...], group: Ints | None = None, seed: int = 0
) -> CrossFit:
    """For each of three folds, fit scores and habits to the other two; ``group`` is as in :func:`select_taste`."""
    fold = vote_folds(len(votes), group, np.random.default_rng(seed))
    variance = np.zeros(len(votes))
    parameters: list[Parameters] = []
    for number in range(FOLDS):
        test = fold == number
        train = votes if test.all() else votes.part(~test)
        fit = fit_comparisons(train, model=model, habits=habits, pairs=(votes.first[test], votes.second[test]))
        parameters.append(fit.parameters)
        variance[test] = fit.pair_variance
    return CrossFit(model=model, votes=votes, parameters=tuple(parameters), fold=fold, variance=variance)


def annotators_with_enough(votes: Votes) -> Ints:
    """Numbers of the annotators with at least :data:`MIN_VOTES` votes by weight, in order."""
    return np.flatnonzero(_counts(votes) >= MIN_VOTES - 1e-6)


def _counts(votes: Votes) -> Floats:
    """Votes of each annotator by weight, ``[A]``."""
    counts = np.bincount(votes.annotator, weights=votes.weight, minlength=votes.annotators)
    return np.asarray(counts, dtype=np.float64)


def fit_taste(fitted: CrossFit, differences: Floats, *, eligible: Ints, deviation: float, seed: int = 0) -> Taste:
    """The most probable u and v.

    Args:
        fitted: the votes; their scores and habits stay fixed.
        differences: ``[N, F]``, φ_i − φ_j.
        eligible: numbers of the annotators who have a taste, in order; determined from all votes, of which ``fitted``
            may be a part.
        deviation: σ.
        seed: of the small numbers that the search starts from.
    """
    optimize: Any = import_module("scipy.optimize")  # it has no type stubs
    votes = fitted.votes
    features = int(differences.shape[1])
    strength, rms = np.zeros(votes.annotators), np.sqrt((differences**2).mean(0))
    scale = np.where(rms > 1e-9, rms, np.inf)  # a feature that never differs gets no weight
    counts = _counts(votes)[eligible]
    if not counts.sum():
        return Taste(direction=np.zeros(features), strength=strength)
    eligible_index = np.full(votes.annotators, -1)
    eligible_index[eligible] = np.arange(len(eligible))
    is_eligible = eligible_index[votes.annotator] >= 0
    eligible_fit, scaled_differences, voter = (
        fitted.part(is_eligible),
        (differences / scale)[is_eligible],
        eligible_index[votes.annotator[is_eligible]],
    )
    share = counts / counts.sum()

    def negative_log_posterior(point: Floats) -> tuple[float, Floats]:
        u, v = point[: len(eligible)], point[len(eligible) :]
        centred_strength, projection = u - share @ u, scaled_differences @ v
        logs, slope = eligible_fit.logs(centred_strength[voter] * projection)
        weighted = eligible_fit.votes.weight * slope
        by_centred = np.bincount(voter, weighted * projection, len(eligible))
        by_u, by_v = by_centred - share * by_centred.sum(), (centred_strength[voter] * weighted) @ scaled_differences
        penalty = (u @ u + v @ v / deviation**2) / 2
        return float(penalty - eligible_fit.votes.weight @ logs), np.concatenate([u - by_u, v / deviation**2 - by_v])

    start = np.random.default_rng(seed).normal(0, 0.1, len(eligible) + features)
    point: Floats = optimize.minimize(
        negative_log_posterior, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}
    ).x
    u = point[: len(eligible)]
    strength[eligible] = u - share @ u
    return Taste(direction=point[len(eligible) :] / scale, strength=strength)


def select_taste(
    votes: Votes,
    differences: Floats,
    *,
    model: TieModel,
    habits: Sequence[Habit],
    group: Ints | None = None,
    seed: int = 0,
) -> TasteChoice:
    """Fit a taste, and use it if it lowers the three-fold cross-validated log-loss.

    Scores and habits are those of :func:`cross_fit`. The votes are then divided into three folds again; u and v are
    fitted to two of them and tested on the third. So nothing is tested on a vote that it was fitted to.

    Args:
        votes: at least two.
        differences: ``[N, F]``, φ_i − φ_j.
        model: the likelihood.
        habits: what else differs between annotators.
        group: ``[N]``, the number of the judgement that each row belongs to; the rows of one judgement are fitted or
            held out together. None: each row is a judgement of its own.
        seed: of the folds.
    """
    fitted = cross_fit(votes, model=model, habits=tuple(habits), group=group, seed=seed)
    fold = vote_folds(len(votes), group, np.random.default_rng([seed, 1]))
    losses_without = -fitted.logs(np.zeros(len(votes)))[0]
    without = float(np.average(losses_without, weights=votes.weight))
    eligible = annotators_with_enough(votes)
    best_losses = losses_without
    trials: list[tuple[float, float]] = []
    chosen: float | None = None
    for deviation in DEVIATIONS if len(eligible) > 1 else ():
        taste = np.zeros(len(votes))
        for number in range(FOLDS):
            test = fold == number
            if test.any() and not test.all():
                fold_taste = fit_taste(
                    fitted.part(~test), differences[~test], eligible=eligible, deviation=deviation, seed=seed
                )
                taste[test] = fold_taste.offsets(differences[test], votes.annotator[test])
        losses = -fitted.logs(taste)[0]
        loss = float(np.average(losses, weights=votes.weight))
        if loss < float(np.average(best_losses, weights=votes.weight)):
            best_losses, chosen = losses, deviation
        trials.append((deviation, loss))
    taste = None if chosen is None else fit_taste(fitted, differences, eligible=eligible, deviation=chosen, seed=seed)
    return TasteChoice(
        taste=taste,
        annotators=len(eligible),
        without=without,
        trials=tuple(trials),
        losses=(losses_without, best_losses),
    )
