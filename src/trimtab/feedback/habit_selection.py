"""Which habits of annotators are worth modelling: those that lower the log-loss of votes that were not fitted.

NumPy is imported here, so this module is imported where it is used and not with the package.
"""

from collections.abc import Sequence

import numpy as np

from trimtab.feedback.annotator_facts import Habit, HabitTrial
from trimtab.feedback.comparison_fit import HABITS, fit_comparisons
from trimtab.feedback.comparison_model import Floats, Ints, TieModel, Votes, vote_probabilities

FOLDS = 3
"""Of the cross-validation."""


def vote_folds(rows: int, group: Ints | None, rng: np.random.Generator) -> Ints:
    """The fold of every vote, ``[N]``, so that the rows of one judgement, which share its noise, fall together.

    There are at least two folds where there are two rows: the rows of a single judgement are divided.

    Args:
        rows: N.
        group: ``[N]``, the number of the judgement that each row belongs to; None: each row is a judgement of its own.
        rng: draws one fold for each judgement.
    """
    number = np.arange(rows) if group is None else np.unique(group, return_inverse=True)[1]
    if not number.any():
        number = np.arange(rows)
    drawn = rng.integers(0, FOLDS, int(number.max(initial=-1)) + 1)
    if len(np.unique(drawn)) < 2:
        drawn = np.arange(len(drawn)) % FOLDS
    return drawn[number]


def select_habits(
    votes: Votes, *, model: TieModel, habits: Sequence[Habit] = HABITS, group: Ints | None = None, seed: int = 0
) -> tuple[tuple[Habit, ...], list[HabitTrial]]:
    """Add habits one by one, each only if three-fold cross-validated log-loss falls.

    The order is tie, position, skill: tie rates and the side that an annotator favours show in few votes, while a skill
    needs answers that others judged too.

    Args:
        votes: two at least.
        model: the likelihood.
        habits: what may be kept.
        group: ``[N]``, the number of the judgement that each row belongs to; None: each row is a judgement of its own.
        seed: of the folds.

    Returns:
        the habits to keep, and all that was tried.
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
            shares = vote_probabilities(model, test, fit.parameters, fit.pair_variance)
            losses.append(-np.log(shares[np.arange(len(test)), test.outcome]))
            weights.append(test.weight)
        return float(np.average(np.concatenate(losses), weights=np.concatenate(weights)))

    chosen: tuple[Habit, ...] = ()
    best = trial(chosen)
    trials = [HabitTrial(habits=chosen, log_loss=best, kept=True)]
    order: tuple[Habit, ...] = ("tie", "position", "skill")
    for habit in order:
        if habit not in habits:
            continue
        wider: tuple[Habit, ...] = (*chosen, habit)
        loss = trial(wider)
        trials.append(HabitTrial(habits=wider, log_loss=loss, kept=loss < best))
        if loss < best:
            chosen, best = wider, loss
    return chosen, trials
