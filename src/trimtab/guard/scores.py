"""Calibration, thresholds and figures of a detector.

Legend: s = score, higher means more likely restricted; y = 1 restricted, 0 not.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from trimtab.errors import DataError
from trimtab.feedback.intervals import RESAMPLES, Estimate, clustered_share


def platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope a ≥ 0 and offset b with P(y = 1) ≈ σ(a z + b); J. Platt, 1999, without its smoothing of the labels.

    The two classes get the same total weight, so the offset assumes a prior of one half.
    """
    model: Any = LogisticRegression(C=1e3, class_weight="balanced", max_iter=1000)
    model.fit(np.asarray(logits).reshape(-1, 1), labels)
    return max(0.0, float(model.coef_[0, 0])), float(model.intercept_[0])


def threshold_for(
    benign: Sequence[float],
    budget: float,
    *,
    subjects: int | None = None,
    remedy: str = "give more ordinary texts (--data)",
) -> float:
    """The lowest threshold that at most a given share of benign scores exceeds; a score above it is blocked.

    With n scores and k = ⌊budget · n⌋ it is the (k + 1)-th largest score.

    Args:
        benign: scores of harmless texts.
        budget: share of these texts that may be blocked. Every text counts, even if several are about one subject.
        subjects: number of subjects (groups) of the texts, for the error message.
        remedy: what the error message says to do if there are too few texts.

    Raises:
        DataError: there are too few benign scores for the budget: n · budget < 1.

    >>> threshold_for([0.1, 0.2, 0.3, 0.9], 0.25)
    0.3
    """
    allowed = int(budget * len(benign) + 1e-9)
    if allowed < 1:
        subject_text = "" if subjects is None else f" about {subjects} subjects (every wording of a subject counts)"
        raise DataError(
            f"a budget of {budget:.2%} needs {round(1 / budget)} harmless texts or more and there are {len(benign)}"
            f"{subject_text}; "
            f"{remedy}, or raise the budget (--budget)"
        )
    return sorted(map(float, benign), reverse=True)[allowed]


def auroc(scores: Sequence[float], labels: Sequence[int]) -> float:
    """P(s of a restricted text > s of another), ties count half."""
    return float(roc_auc_score(labels, scores))


def tpr_at(scores: Sequence[float], labels: Sequence[int], rate: float = 0.01) -> float:
    """Share of restricted texts that are blocked at the threshold that blocks at most ``rate`` of the other texts."""
    benign = [s for s, y in zip(scores, labels, strict=True) if not y]
    limit = threshold_for(benign, rate)
    restricted = [s for s, y in zip(scores, labels, strict=True) if y]
    return sum(s > limit for s in restricted) / len(restricted)


def auroc_difference(
    a: Sequence[float], b: Sequence[float], labels: Sequence[int], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """AUROC(a) − AUROC(b) on the same texts, with a paired percentile bootstrap over texts within each class."""
    first, second, y = np.asarray(a), np.asarray(b), np.asarray(labels)
    draw = np.random.default_rng(seed)
    groups = [np.flatnonzero(y == label) for label in (0, 1)]
    differences = []
    for _ in range(resamples):
        rows = np.concatenate([draw.choice(group, len(group)) for group in groups])
        differences.append(roc_auc_score(y[rows], first[rows]) - roc_auc_score(y[rows], second[rows]))
    low, high = np.quantile(differences, [0.025, 0.975])
    return Estimate(value=auroc(a, labels) - auroc(b, labels), low=float(low), high=float(high), n=len(y))


def share(blocked: Sequence[bool], groups: Sequence[Hashable] | None = None, name: str = "") -> Estimate:
    """A share of blocked texts with Wilson's interval.

    Args:
        blocked: for each text, True: it is blocked.
        groups: subject of each text; texts of one subject are not independent, so the interval is
            :func:`~trimtab.feedback.intervals.clustered_wilson_interval`. None: each text is its own group.
        name: name of the estimate.
    """
    rows = zip(blocked, range(len(blocked)) if groups is None else groups, strict=True)
    return clustered_share(rows, name=name, reason="there is no such text")


def folds_of(groups: Sequence[Hashable], folds: int, seed: int = 0) -> np.ndarray:
    """A fold for each text, ``[N]``, the same for all texts of a group.

    Groups are assigned largest first, groups of equal size in random order.
    """
    names = sorted(set(groups), key=str)
    order = np.random.default_rng(seed).permutation(len(names))
    sizes = {name: 0 for name in names}
    for group in groups:
        sizes[group] += 1
    load = [0] * folds
    fold_of: dict[Hashable, int] = {}
    for name in sorted((names[i] for i in order), key=lambda n: -sizes[n]):
        fold_of[name] = load.index(min(load))
        load[fold_of[name]] += sizes[name]
    return np.array([fold_of[group] for group in groups])
