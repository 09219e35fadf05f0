"""Measures and corrects the calibration of a judge's probabilities: is a confidence of 80 % right in 80 %?

Legend: p = a judge's P(first is better), y = people's label (1 first, 0 second, ½ tie or even votes). Every
function takes p and y with one weight each (1 unless said otherwise).
"""

import bisect
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from trimtab.errors import ScoringError
from trimtab.feedback.log_odds import logit, sigmoid

Calibrator = Callable[[float], float]
"""Maps a judge's probability to a calibrated one."""

Method = Literal["temperature", "isotonic", "none"]


def fit_temperature(p: Sequence[float], y: Sequence[float], weights: Sequence[float] | None = None) -> Calibrator:
    """Divide the log-odds by one number T > 0 that makes the labels most likely.

    q = σ(logit(p) / T), T = argmin −Σ w [y log q + (1−y) log(1−q)]; Guo et al., "On Calibration of Modern Neural
    Networks", 2017, section 4.2. The loss is convex in 1/T ≥ 0, and is minimised there by bisection. T is at most 1000,
    so an uninformative judge ends near one half.
    """
    weights = _checked(p, y, weights)
    logits = [logit(x) for x in p]

    def slope(s: float) -> float:
        return math.fsum(w * z * (sigmoid(s * z) - t) for w, z, t in zip(weights, logits, y, strict=True))

    low, high = 1e-3, 1e3
    if slope(low) >= 0:
        scale = low
    elif slope(high) <= 0:
        scale = high
    else:
        for _ in range(80):
            scale = math.sqrt(low * high)
            low, high = (scale, high) if slope(scale) < 0 else (low, scale)
        scale = math.sqrt(low * high)
    return lambda x: sigmoid(scale * logit(x))


def fit_isotonic(p: Sequence[float], y: Sequence[float], weights: Sequence[float] | None = None) -> Calibrator:
    """The monotone step function with the least squared error, interpolated linearly between the steps' centres.

    Pool adjacent violators; Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability
    estimates", 2002. Swapping the answers must swap the probability, so every (p, y) is also fitted as (1−p, 1−y).
    """
    weights = _checked(p, y, weights)
    sums_by_p: dict[float, list[float]] = {}  # weight, weighted sum of y, weighted sum of p
    for a, b, w in zip(p, y, weights, strict=True):
        for x, t in ((a, b), (1 - a, 1 - b)):
            x = round(x, 9)  # 1 − .3 and .7 must be equal keys
            sums = sums_by_p.setdefault(x, [0.0, 0.0, 0.0])
            for place, value in enumerate((w, w * t, w * x)):
                sums[place] += value
    blocks: list[list[float]] = []
    for x in sorted(sums_by_p):
        blocks.append(sums_by_p[x])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][0] >= blocks[-1][1] * blocks[-2][0]:
            popped = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], popped, strict=True)]
    xs, ys = [b[2] / b[0] for b in blocks], [b[1] / b[0] for b in blocks]

    def calibrated(x: float) -> float:
        place = bisect.bisect_left(xs, x)
        if place == 0:
            return ys[0]
        if place == len(xs):
            return ys[-1]
        share = (x - xs[place - 1]) / (xs[place] - xs[place - 1])
        return ys[place - 1] + share * (ys[place] - ys[place - 1])

    return calibrated


def fit(method: Method, p: Sequence[float], y: Sequence[float], weights: Sequence[float] | None = None) -> Calibrator:
    """A calibrator by name; with ``none`` or without labels, the identity."""
    if method == "none" or not p:
        return lambda x: x
    return (fit_temperature if method == "temperature" else fit_isotonic)(p, y, weights)


def cross_fitted(
    method: Method,
    p: Sequence[float],
    y: Sequence[float],
    groups: Sequence[Hashable],
    *,
    weights: Sequence[float] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> list[float]:
    """Calibrated probabilities of labelled items, each by a calibrator that saw no item of its group (its prompt).

    Groups are assigned to folds at random; with fewer groups than folds, each group is a fold.
    """
    weights = _checked(p, y, weights)
    names = sorted(set(groups), key=str)
    Random(seed).shuffle(names)
    fold = {name: number % min(folds, len(names)) for number, name in enumerate(names)}
    calibrated = [0.0] * len(p)
    for number in range(min(folds, len(names))):
        training = [i for i, g in enumerate(groups) if fold[g] != number]
        calibrator = fit(method, [p[i] for i in training], [y[i] for i in training], [weights[i] for i in training])
        for i, g in enumerate(groups):
            if fold[g] == number:
                calibrated[i] = calibrator(p[i])
    return calibrated


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """One bar of a reliability plot."""

    low: float
    """Lower edge of the bin."""
    high: float
    """Upper edge."""
    confidence: float
    """Mean confidence."""
    accuracy: float
    """Share of items on which people agree with the judge; a tie counts half."""
    n: int
    """Number of items."""


def reliability(
    p: Sequence[float], y: Sequence[float], weights: Sequence[float] | None = None, *, bins: int = 5
) -> tuple[list[Bin], float]:
    """Accuracy by confidence max(p, 1−p), in equal steps from ½ to 1, and the expected calibration error.

    ECE = Σ_b (W_b / W) |accuracy_b − confidence_b| with sums of weights W; Naeini et al., 2015. Empty bins are
    left out.
    """
    weights = _checked(p, y, weights)
    confidences = [max(x, 1 - x) for x in p]
    correct = [t if x > 0.5 else 1 - t if x < 0.5 else 0.5 for x, t in zip(p, y, strict=True)]
    rows: list[Bin] = []
    gaps: list[float] = []
    for low, high, members in confidence_bins(confidences, bins):
        total = math.fsum(weights[i] for i in members)
        confidence, accuracy = (math.fsum(v[i] * weights[i] for i in members) / total for v in (confidences, correct))
        gaps.append(total * abs(accuracy - confidence))
        rows.append(Bin(low=low, high=high, confidence=confidence, accuracy=accuracy, n=len(members)))
    return rows, math.fsum(gaps) / math.fsum(weights) if p else 0.0


def confidence_bins(confidences: Sequence[float], bins: int) -> list[tuple[float, float, list[int]]]:
    """Items by confidence in ½ … 1, in steps of equal width: (lower edge, upper edge, indices); empty bins left out."""
    members: dict[int, list[int]] = {}
    for i, confidence in enumerate(confidences):
        members.setdefault(min(bins - 1, int((confidence - 0.5) * 2 * bins)), []).append(i)
    return [(0.5 + b / (2 * bins), 0.5 + (b + 1) / (2 * bins), indices) for b, indices in sorted(members.items())]


def brier(p: Sequence[float], y: Sequence[float]) -> float:
    """Mean (p − y)²; p = ½ throughout gives ¼ on certain labels."""
    _checked(p, y, None)
    return math.fsum((a - b) ** 2 for a, b in zip(p, y, strict=True)) / len(p)


def _checked(p: Sequence[float], y: Sequence[float], weights: Sequence[float] | None) -> list[float]:
    checked = [1.0] * len(p) if weights is None else list(weights)
    if not len(p) == len(y) == len(checked):
        raise ScoringError(f"calibration needs one label and weight each, got {len(p)}, {len(y)} and {len(checked)}")
    out_of_range = [x for x in (*p, *y) if not 0 <= x <= 1]
    if out_of_range or any(not (math.isfinite(w) and w > 0) for w in checked):
        raise ScoringError(
            f"calibration needs probabilities in 0..1 and weights above 0, got {out_of_range[:3] or 'a weight'}"
        )
    return checked
