"""How well a model finds the first wrong step: ProcessBench's F1 with an interval, and a baseline."""

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import chain

from trimtab.errors import DataError
from trimtab.feedback import Estimate
from trimtab.feedback.intervals import middle_95, resampled

First = int | None
"""Index of the first wrong step; None: all steps are right."""


def first_wrong(logits: Sequence[float], threshold: float = 0.0) -> First:
    """The first step whose logit is at or below a threshold; None: no step.

    >>> first_wrong([2.0, -1.0, 3.0]), first_wrong([2.0, 1.0])
    (1, None)
    """
    return next((i for i, z in enumerate(logits) if z <= threshold), None)


def first_error_f1(
    name: str, predicted: Sequence[First], truth: Sequence[First], clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """Harmonic mean of the accuracies on solutions with a wrong step and on those without, with a bootstrap interval.

    A prediction for a wrong solution must name exactly the first wrong step, and one for a right solution must name
    none. Source: ProcessBench, Zheng et al. 2024 (arXiv 2412.06559), section 3.

    Raises:
        DataError: the solutions are all right or all wrong, so that one of the two accuracies is undefined, or the
            numbers of solutions and predictions differ.
    """
    if len(predicted) != len(truth) or {first is None for first in truth} != {True, False}:
        wrong = sum(first is not None for first in truth)
        raise DataError(
            f"{name}: {wrong} of {len(truth)} solutions have a wrong step, and {len(predicted)} are predicted; F1 "
            "needs solutions with one and without, and a prediction for each"
        )
    groups: dict[Hashable, list[tuple[bool, bool]]] = {}
    for i, (predicted_step, true_step) in enumerate(zip(predicted, truth, strict=True)):
        groups.setdefault(i if clusters is None else clusters[i], []).append(
            (true_step is None, predicted_step == true_step)
        )
    pool = list(groups.values())

    def f1(solutions: Sequence[list[tuple[bool, bool]]]) -> float | None:
        return _f1(list(chain.from_iterable(solutions)))

    low, high = middle_95(resampled(pool, f1, seed=0))
    return Estimate(name=name, value=f1(pool), low=low, high=high, n=len(truth))


def _f1(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    right_hits = [hit for is_right, hit in pairs if is_right]
    wrong_hits = [hit for is_right, hit in pairs if not is_right]
    if not right_hits or not wrong_hits:
        return None
    a, b = sum(right_hits) / len(right_hits), sum(wrong_hits) / len(wrong_hits)
    return 2 * a * b / (a + b) if a + b else 0.0


def modal_first(truth: Sequence[First]) -> int:
    """The index of the step that is most often the first wrong one: the baseline that a model has to beat.

    Raises:
        DataError: no solution has a wrong step.
    """
    counts = Counter(first for first in truth if first is not None)
    if not counts:
        raise DataError(f"none of {len(truth)} solutions has a wrong step, so there is no most frequent one")
    return min(counts, key=lambda index: (-counts[index], index))
