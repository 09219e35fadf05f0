"""Finds where a score stopped rising while a policy trained, and fits the forms of Gao et al. to such curves.

The points are the steps of a run: their KL to the reference and a mean score of their answers. Points of different
steps have independent errors, because each step draws its own answers; the noise of a point is estimated from
neighbours, σ² = Σ (y_{i+1} − y_i)² / (2·(n − 1)) (von Neumann et al., Annals of Mathematical Statistics 12, 1941,
153–162).

The highest mean is never below the last one, so a turn must not be found and tested on the same points. The peak is
chosen on every other point, and the fall after it is measured on the points between; then the roles are swapped. The
turn is real if the mean of both falls is above zero by 1.96 standard errors of a single fall, which is conservative.
The rise before the peak is tested in the same way, read backwards: a score that only falls has no turn.
"""

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from trimtab.errors import DataError
from trimtab.feedback.intervals import RESAMPLES, Estimate
from trimtab.records import Record

FEWEST_POINTS = 12
"""Smallest number of points for finding a turn."""

FEWEST_FITTED = 6
"""Smallest number of points for fitting a form."""

Form = Literal["rl", "best_of_n"]
"""``rl``: d·(α − β·log d); ``best_of_n``: d·(α − β·d)."""


class Turn(Record):
    """Where a score was highest, or why no turn was found."""

    score: str
    """Name of the score on the page."""
    found: bool
    """True: the score rose and then fell, both beyond chance."""
    step: Estimate
    """Step of the highest mean, with the percentile interval of a residual bootstrap; no value: no turn was found."""
    distance: Estimate
    """√KL at that step, in √nats."""
    fall: Estimate
    """How far the score fell from its highest to its last mean, in its own units."""


class GaoFit(Record):
    """A form of Gao et al. 2022 (arXiv 2210.10760), equations 1 and 2, fitted by least squares."""

    score: str
    """Name of the score on the page."""
    form: Form
    """The form; d = √KL in √nats, and the form is 0 at d = 0."""
    alpha: float
    """α, in units of the score per √nat."""
    beta: float
    """β: how fast the gain is lost."""
    explained: float
    """R²: share of the variance around the mean that the form explains; negative if the form is worse than the mean."""
    peak: float | None
    """d at which the form is highest; None: the form has no peak, because β is not above 0."""


def find_turn(score: str, steps: Sequence[float], kl: Sequence[float], values: Sequence[float], *, seed: int) -> Turn:
    """Find the turn of one score.

    Args:
        score: its name.
        steps: number of each point's step.
        kl: KL to the reference, nats per answer; an estimate below 0 counts as 0.
        values: mean score of each step's answers.
        seed: of the bootstrap.

    Raises:
        DataError: lengths differ, or a number is NaN or infinite.
    """
    if not len(steps) == len(kl) == len(values):
        raise DataError(
            f"{score}: {len(steps)} steps, {len(kl)} KLs and {len(values)} scores; give one of each per step"
        )
    if not_finite := [x for x in (*steps, *kl, *values) if not math.isfinite(x)]:
        raise DataError(
            f"{score}: {len(not_finite)} numbers are not finite, the first is {not_finite[0]}; leave these steps out"
        )
    count = len(values)
    if count < FEWEST_POINTS:
        reason = f"{count} steps are too few to look for a turn; at least {FEWEST_POINTS} are needed"
        return _no_turn(score, count, reason)
    width = _width(count)
    noise = math.sqrt(sum((b - a) ** 2 for a, b in pairwise(values)) / (2 * (count - 1)))
    smooth = _smooth(values, width)
    fall, rise = _mean_fall(values), _mean_fall(values[::-1])
    margin = 1.96 * noise * math.sqrt(2 / _width(count // 2))
    fall_estimate = Estimate(value=fall, low=fall - margin, high=fall + margin, n=count)
    if fall <= margin or smooth[-1] >= max(smooth):
        return _no_turn(score, count, "no turn found", fall_estimate)
    if rise <= margin:
        return _no_turn(score, count, "it fell, and had not risen before beyond chance", fall_estimate)
    rng, residual_scale = random.Random(seed), 1 / math.sqrt(1 - 1 / width)
    residuals = [(v - s) * residual_scale for v, s in zip(values, smooth, strict=True)]
    peaks = sorted(
        _peak(_smooth([s + r for s, r in zip(smooth, rng.choices(residuals, k=count), strict=True)], width))
        for _ in range(RESAMPLES)
    )
    peak_interval = peaks[int(0.025 * RESAMPLES)], peaks[int(0.975 * RESAMPLES) - 1]
    distances = _smooth([math.sqrt(max(0.0, x)) for x in kl], width)
    peak = _peak(smooth)
    return Turn(
        score=score,
        found=True,
        step=Estimate(value=steps[peak], low=steps[peak_interval[0]], high=steps[peak_interval[1]], n=count),
        distance=Estimate(
            value=distances[peak], low=distances[peak_interval[0]], high=distances[peak_interval[1]], n=count
        ),
        fall=fall_estimate,
    )


def _no_turn(score: str, count: int, reason: str, fall: Estimate | None = None) -> Turn:
    no_estimate = Estimate(n=count, reason=reason)
    return Turn(score=score, found=False, step=no_estimate, distance=no_estimate, fall=fall or no_estimate)


def _width(count: int) -> int:
    """Number of points averaged around each point: odd, about a sixth of all, at least three."""
    return max(3, count // 6 | 1)


def _smooth(values: Sequence[float], width: int) -> list[float]:
    """Mean of up to ``width`` points around each point, equally many on either side; fewer at the ends."""
    means = []
    for index in range(len(values)):
        half_width = min(width // 2, index, len(values) - 1 - index)
        window = (
            values[index - half_width : index + half_width + 1] if half_width else values[max(0, index - 1) : index + 2]
        )
        means.append(sum(window) / len(window))
    return means


def _peak(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], -i))


def _mean_fall(values: Sequence[float]) -> float:
    """Mean of two falls after the peak: the peak is chosen on one half of the points, the fall measured on the rest."""
    return (_fall(values[::2], values[1::2]) + _fall(values[1::2], values[::2])) / 2


def _fall(choosing: Sequence[float], measuring: Sequence[float]) -> float:
    """Mean around the peak of ``choosing`` minus the last mean, both of ``measuring``."""
    width = _width(len(measuring))
    peak = _peak(_smooth(choosing, width))
    window_start = min(max(0, peak - width // 2), len(measuring) - width)
    return sum(measuring[window_start : window_start + width]) / width - sum(measuring[-width:]) / width


def fit_form(score: str, kl: Sequence[float], gains: Sequence[float], form: Form) -> GaoFit:
    """Fit one of the forms, which are linear in α and β, so least squares has one solution.

    Args:
        score: its name.
        kl: nats per answer; points at or below 0 say nothing and are left out.
        gains: the score minus its value at d = 0.
        form: the form to fit.

    Raises:
        DataError: fewer than six points above 0, a number that is not finite, or all points at one KL.

    >>> d = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    >>> fit = fit_form("gold", [x * x for x in d], [x * (2.0 - 0.5 * x) for x in d], "best_of_n")
    >>> round(fit.alpha, 6), round(fit.beta, 6), round(fit.peak, 6)
    (2.0, 0.5, 2.0)
    """
    points = [(math.sqrt(k), g) for k, g in zip(kl, gains, strict=True) if k > 0]
    if len(points) < FEWEST_FITTED:
        raise DataError(
            f"{score}: {len(points)} points with a KL above 0; a form of two numbers is fitted to {FEWEST_FITTED} or "
            "more: train for more steps"
        )
    if not all(math.isfinite(x) for point in points for x in point):
        raise DataError(f"{score}: a KL or a gain is not finite; leave these points out")
    columns = [(d, -d * (d if form == "best_of_n" else math.log(d))) for d, _ in points]
    aa, ab, bb = (sum(c[i] * c[j] for c in columns) for i, j in ((0, 0), (0, 1), (1, 1)))
    ay, by = (sum(c[i] * g for c, (_, g) in zip(columns, points, strict=True)) for i in (0, 1))
    determinant = aa * bb - ab * ab
    if determinant <= 1e-9 * aa * bb:
        raise DataError(f"{score}: all points lie at nearly the same KL, so no form can be told from them")
    alpha, beta = (bb * ay - ab * by) / determinant, (aa * by - ab * ay) / determinant
    mean = sum(g for _, g in points) / len(points)
    residual_sum = sum((g - alpha * a - beta * b) ** 2 for (a, b), (_, g) in zip(columns, points, strict=True))
    total = sum((g - mean) ** 2 for _, g in points)
    peak = None
    if beta > 0:
        peak = alpha / (2 * beta) if form == "best_of_n" else math.exp(min(alpha / beta - 1, 700.0))
    return GaoFit(
        score=score, form=form, alpha=alpha, beta=beta, explained=1 - residual_sum / total if total else 0.0, peak=peak
    )
