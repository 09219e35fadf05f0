"""Chooses which habits of annotators to model: those that lower the log-loss of held-out votes.

This module imports NumPy, so it is imported where it is used and not with the package.
"""

from collections.abc import Sequence

import numpy as np

from trimtab.feedback.annotator_facts import Habit, HabitTrial
from trimtab.feedback.comparison_fit import HABITS, fit_comparisons
from trimtab.feedback.comparison_model import Floats, Ints, TieModel, Votes, vote_probabilities

FOLDS = 3
"""Number of folds of the cross-validation."""


def vote_folds(rows: int, group: Ints | None, rng: np.random.Generator) -> Ints:
    """The fold of every vote, ``[N]``; the rows of one judgement share its noise, so they share a fold.

    With two rows or more there are at least two folds: the rows of a single judgement are divided.

    Args:
        rows: N, the number of votes.
        group: ``[N]``, the number of the judgement that each row belongs to; None: each row is a judgement of its own.
        rng: draws one fold for each judgement.
    """
    judgement = np.arange(rows) if group is None else np.unique(group, return_inverse=True)[1]
    if not judgement.any():
        judgement = np.arange(rows)
    judgement_fold = rng.integers(0, FOLDS, int(judgement.max(initial=-1)) + 1)
    if len(np.unique(judgement_fold)) < 2:
        judgement_fold = np.arange(len(judgement_fold)) % FOLDS
    return judgement_fold[judgement]


def select_habits(
    votes: Votes, *, model: TieModel, habits: Sequence[Habit] = HABITS, group: Ints | None = None, seed: int = 0
) -> tuple[tuple[Habit, ...], list[HabitTrial]]:
    """Add habits one by one, each only if it lowers the three-fold cross-validated log-loss.

    The order is tie, position, skill: a few votes show an annotator's tie rate and the side that they favour, but a
    skill needs answers that others judged too.

    Args:
        votes: at least two.
        model: the likelihood.
        habits: the habits to choose from.
        group: ``[N]``, the number of the judgement that each row belongs to; None: each row is a judgement of its own.
        seed: of the folds.

    Returns:
        the chosen habits, and all trials.
    """
    fold = vote_folds(len(votes), group, np.random.default_rng(seed))

    def trial(chosen: tuple[Habit, ...]) -> float:
        losses: list[Floats] = []
        weights: list[Floats] = []
        for number in range(FOLDS):
            train, test = votes.part(fold != number), votes.part(fold == number)
            if not len(train) or not len(test):
                continue
            fit = fit_comparisons(train, model=model, habits=chosen, pairs=(test.first, test.second))
            probabilities = vote_probabilities(model, test, fit.parameters, fit.pair_variance)
            losses.append(-np.log(probabilities[np.arange(len(test)), test.outcome]))
            weights.append(test.weight)
        return float(np.average(np.concatenate(losses), weights=np.concatenate(weights)))

    chosen: tuple[Habit, ...] = ()
    best = trial(chosen)
    trials = [HabitTrial(habits=chosen, log_loss=best, kept=True)]
    order: tuple[Habit, ...] = ("tie", "position", "skill")
    for habit in order:
        if habit not in habits:
            continue
        candidate: tuple[Habit, ...] = (*chosen, habit)
        loss = trial(candidate)
        trials.append(HabitTrial(habits=candidate, log_loss=loss, kept=loss < best))
        if loss < best:
            chosen, best = candidate, loss
    return chosen, trials
