"""Predicts what more labels would bring, from a learning curve and three laws fitted to it.

A prediction is shown only if half of the labels would have predicted the last doubling.

Laws of the accuracy y after n labels: constant y = a; log-linear y = a + b log n; power law y = a − b n^−c with the
asymptote a ≤ 1. Each is fitted by least squares, weighted with the inverse variance of each size. A law's weight is its
likelihood in back-tests: it is fitted to the first k sizes, from k = 3 on, and predicts the next one. The interval is a
bootstrap of whole resamplings; each draw takes one law, with a probability equal to the law's weight. Resamplings share
most of their labels, so the spread of the draws is widened by √((1/J + ρ)/(1/J)) (Nadeau and Bengio, Machine Learning
52 (2003), 239–281).

This module imports NumPy, so it is imported where it is used and not with the package.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from trimtab.errors import DataError
from trimtab.feedback.comparison_model import Floats
from trimtab.feedback.intervals import RESAMPLES, Estimate

Law = Literal["constant", "log-linear", "power law"]
LAWS: tuple[Law, ...] = ("constant", "log-linear", "power law")

SIZES, RESAMPLINGS = 6, 10
"""Usual number of sizes and of resamplings of a learning curve."""
MAX_FACTOR = 4
"""Largest multiple of the present number of labels for which a prediction is made."""
WORTHWHILE_GAIN = 0.01
"""A gain whose upper end is below this is no reason to label more."""
REQUIRED_COVERAGE = 0.8
"""Share of the resamplings at the last size that the interval predicted from half of the labels must contain."""
EXPONENTS = np.geomspace(0.05, 2.0, 25)
"""Exponents c of the power law that are tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningCurve:
    """Accuracy of a model that is trained on more and more labels."""

    sizes: tuple[int, ...]
    """Numbers of labels, ascending; the last is at least twice the one before."""
    values: Floats
    """``[S, J]``: accuracy at each of S sizes in each of J resamplings, which draw different labels and test sets."""
    shared: float = 0.25
    """ρ, the size of a resampling's test set divided by that of its training set; 0: resamplings are independent."""

    def __post_init__(self) -> None:
        count, sizes = len(self.sizes), self.sizes
        if self.values.ndim != 2 or self.values.shape[0] != count or self.values.shape[1] < 2 or count < 5:
            raise DataError(
                f"a learning curve of shape {self.values.shape} for {count} sizes; expected five sizes or more "
                f"({SIZES} is usual), each with a value of every resampling (two or more, {RESAMPLINGS} is usual)"
            )
        if any(b <= a for a, b in pairwise(sizes)) or sizes[0] < 1 or sizes[-1] < 2 * sizes[-2]:
            raise DataError(f"sizes {sizes}: expected ascending, from 1 on, and the last one twice the one before")
        if not np.isfinite(self.values).all():
            raise DataError(
                f"{int((~np.isfinite(self.values)).sum())} values of the learning curve are NaN; score again"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What more labels would bring."""

    shown: bool
    """True: half of the labels would have predicted the last doubling, so the prediction can be trusted."""
    covered: float
    """Share of the resamplings at the last size that the interval predicted from half of the labels contains."""
    weights: dict[Law, float]
    """Weight of each law."""
    accuracy: Estimate
    """Accuracy at the requested number of labels."""
    gain: Estimate
    """Gain in accuracy over the present number of labels."""
    factor: float
    """Requested labels, as a multiple of the present number."""

    @property
    def enough(self) -> bool:
        """True: even the upper end of the gain is below one percentage point, so more labels will not help."""
        return self.shown and self.gain.high is not None and self.gain.high < WORTHWHILE_GAIN

    def line(self) -> str:
        """The outlook in words."""
        if not self.shown:
            return (
                f"no prediction: from half of the labels the interval would have held {self.covered:.0%} of the "
                f"resamplings at all of them ({REQUIRED_COVERAGE:.0%} are needed)"
            )
        gain = self.gain
        assert gain.value is not None and gain.low is not None and gain.high is not None
        text = f"{self.factor:g} × the labels: gain {gain.value:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}]"
        return f"more will not help; {text}" if self.enough else text


def doubling_sizes(largest: int, count: int = SIZES) -> tuple[int, ...]:
    """Sizes that double up to ``largest``.

    >>> doubling_sizes(800)
    (25, 50, 100, 200, 400, 800)

    Raises:
        DataError: too few labels for so many doublings.
    """
    sizes = tuple(largest // 2 ** (count - 1 - k) for k in range(count))
    if sizes[0] < 2:
        raise DataError(f"{largest} labels are too few for a learning curve of {count} sizes; {2**count} are needed")
    return sizes


def predict_gain(curve: LearningCurve, *, factor: float = MAX_FACTOR, seed: int = 0) -> Outlook:
    """Predict what ``factor`` times the labels would bring.

    Raises:
        DataError: a factor of 1 or less, or more than four.
    """
    if not 1 < factor <= MAX_FACTOR:
        raise DataError(
            f"a prediction for {factor:g} times the labels; ask for more than 1 and at most {MAX_FACTOR} times, beyond "
            "which nothing is known"
        )
    sizes = np.array(curve.sizes, dtype=float)
    rng = np.random.default_rng(seed)
    half_draws, _ = _draws(sizes[:-1], curve.values[:-1], sizes[-1:], curve.shared, rng)
    # The prediction is for the mean of the resamplings; a single one scatters around it.
    noise = rng.standard_normal(len(half_draws)) * curve.values[-2].std(ddof=1)
    low, high = np.quantile(half_draws[:, 0] + noise, [0.025, 0.975])
    covered = float(((curve.values[-1] >= low) & (curve.values[-1] <= high)).mean())
    targets = np.array([sizes[-1], factor * sizes[-1]])
    draws, weights = _draws(sizes, curve.values, targets, curve.shared, rng)
    return Outlook(
        shown=covered >= REQUIRED_COVERAGE,
        covered=covered,
        weights=dict(zip(LAWS, weights.tolist(), strict=True)),
        accuracy=_estimate(f"accuracy at {round(targets[1])} labels", draws[:, 1], curve),
        gain=_estimate(f"gain of {round(targets[1] - targets[0])} more labels", draws[:, 1] - draws[:, 0], curve),
        factor=factor,
    )


def _estimate(name: str, draws: Floats, curve: LearningCurve) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(name=name, value=float(np.median(draws)), low=float(low), high=float(high), n=curve.values.size)


def _draws(
    sizes: Floats, values: Floats, targets: Floats, shared: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Predictions at the targets, ``[RESAMPLES, T]``, and the mean weight of each law."""
    count = values.shape[1]
    error = values.std(axis=1, ddof=1) / math.sqrt(count)
    error = np.maximum(error, max(1e-6, 0.25 * float(error.mean())))  # a size whose resamplings agree is not exact
    resamples = rng.integers(0, count, (RESAMPLES, count))
    means, centre = values[:, resamples].mean(axis=2).T, values.mean(axis=1)
    spread_factor = _student(count - 1) * math.sqrt(count / (count - 1) * (1 + shared * count))
    means = centre + spread_factor * (means - centre)  # [RESAMPLES, S]
    weights = _back_test(sizes, means, error * spread_factor)
    mean_weights = weights.mean(axis=0)
    drawn_laws = rng.choice(len(LAWS), RESAMPLES, p=mean_weights)
    predicted = np.stack([_fit(name, sizes, means, error, targets) for name in LAWS])
    return predicted[drawn_laws, np.arange(RESAMPLES)], mean_weights


def _student(freedom: int) -> float:
    """Width of Student's 95 % interval over that of the normal one; needed because the errors are estimated."""
    stats: Any = import_module("scipy.stats")
    return float(stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975))


def _back_test(sizes: Floats, means: Floats, error: Floats) -> Floats:
    """Weight of each law in each draw, ``[RESAMPLES, 3]``: how well it predicts each size from those before it."""
    log_likelihood = np.zeros((len(LAWS), len(means)))
    for size_count in range(3, len(sizes)):
        scale = math.hypot(error[size_count], error[:size_count].mean())
        for number, law in enumerate(LAWS):
            prediction = _fit(
                law, sizes[:size_count], means[:, :size_count], error[:size_count], sizes[size_count : size_count + 1]
            )[:, 0]
            log_likelihood[number] -= 0.5 * ((prediction - means[:, size_count]) / scale) ** 2
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=0))
    return (likelihood / likelihood.sum(axis=0)).T


def _fit(law: Law, sizes: Floats, means: Floats, error: Floats, targets: Floats) -> Floats:
    """Predictions of one law at the targets, ``[B, T]``, fitted to each row of ``means`` ``[B, S]``."""
    precision = 1 / error**2
    if law == "constant":
        level = means @ precision / precision.sum()
        return np.repeat(level[:, None], len(targets), axis=1)
    if law == "log-linear":
        slope, level, _ = _line(np.log(sizes), means, precision)
        return np.minimum(level[:, None] + np.maximum(slope, 0)[:, None] * np.log(targets / sizes[0]), 1.0)
    best_error = np.full(len(means), np.inf)
    predicted = np.empty((len(means), len(targets)))
    for exponent in EXPONENTS:
        powers = sizes**-exponent
        slope, _, _ = _line(powers, means, precision)
        slope = np.minimum(slope, 0.0)  # accuracy does not fall with more labels
        asymptote = np.minimum((means - slope[:, None] * powers) @ precision / precision.sum(), 1.0)
        error_sum = (means - asymptote[:, None] - slope[:, None] * powers) ** 2 @ precision
        better = error_sum < best_error
        best_error[better] = error_sum[better]
        predicted[better] = (asymptote[:, None] + slope[:, None] * targets**-exponent)[better]
    return predicted


def _line(x: Floats, means: Floats, precision: Floats) -> tuple[Floats, Floats, Floats]:
    """Slope, value at x[0], and mean of weighted straight lines through the rows of ``means``."""
    total = precision.sum()
    centre = float(x @ precision / total)
    mean = means @ precision / total
    slope = (means - mean[:, None]) @ (precision * (x - centre)) / float(precision @ (x - centre) ** 2)
    clipped_slope = np.maximum(slope, 0) if x[-1] > x[0] else slope
    return slope, mean + clipped_slope * (x[0] - centre), mean


def gain_over_random(
    arm: Sequence[Sequence[float]], random: Sequence[Sequence[float]], labels: Sequence[int]
) -> Estimate:
    """Accuracy that an arm gains over the random arm per 100 labels, with a 95 % interval over repetitions.

    At each size, the difference in accuracy is divided by the number of labels chosen by then; the gain is the mean
    over sizes, times 100. The interval is Student's over the repetitions, each of which compares both arms on one pool
    and one test set.

    Args:
        arm: ``arm[r][s]``, accuracy in repetition r after ``labels[s]`` labels.
        random: the same for the random arm.
        labels: numbers of labels that the arms chose, ascending; labels that both had before are not counted.

    Raises:
        DataError: fewer than three repetitions, or shapes that differ.
    """
    a, b = np.array(arm, dtype=float), np.array(random, dtype=float)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != len(labels) or len(a) < 3:
        raise DataError(
            f"arms of shape {a.shape} and {b.shape} for {len(labels)} sizes; give three repetitions or more"
        )
    gains = ((a - b) / np.array(labels, dtype=float) * 100).mean(axis=1)
    half_width = 1.96 * _student(len(gains) - 1) * float(gains.std(ddof=1)) / math.sqrt(len(gains))
    centre = float(gains.mean())
    return Estimate(
        name="gain per 100 labels", value=centre, low=centre - half_width, high=centre + half_width, n=len(gains)
    )
