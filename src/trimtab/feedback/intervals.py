"""Intervals for shares and means, in plain Python; an interval is ``(low, high)``.

Shares (win rates, accuracies) use Wilson's score interval, which keeps its coverage near 0 and 1,
where the bootstrap gives an interval of width zero. Means of unbounded numbers use the percentile
bootstrap. Items that share a prompt are not independent; both families take that into account.
"""

import math
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache
from statistics import NormalDist, fmean
from typing import Annotated, TypeVar

from pydantic import BeforeValidator

from trimtab.errors import ScoringError
from trimtab.records import Record

Group = TypeVar("Group")

RESAMPLES = 1000
"""Bootstrap samples behind every interval."""

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that may be NaN or infinite; JSON has null instead, which is read back as NaN."""


class Estimate(Record):
    """An estimate with its uncertainty, or the reason why there is none."""

    name: str = ""
    """Name of the estimate on pages and in reports."""
    value: float | None = None
    """The estimate; None if it is undefined."""
    low: float | None = None
    """Lower end of the 95 % interval; None if there is no interval."""
    high: float | None = None
    """Upper end of the 95 % interval; None if there is no interval."""
    n: int = 0
    """Number of items that it was estimated from."""
    reason: str = ""
    """Why there is no value, or a remark on how it was estimated."""


def wilson_interval(successes: float, n: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a binomial share.

    All p with ``(p̂ − p)² ≤ z² p (1 − p) / n``. E. B. Wilson, JASA 22 (1927), 209–212.

    Args:
        successes: successes among the ``n`` trials; may be fractional (a tie counts half).
        n: number of trials, or the effective number of independent trials; above 0.
        confidence: nominal coverage.

    >>> low, high = wilson_interval(81, 263)
    >>> round(low, 4), round(high, 4)
    (0.2553, 0.3662)
    """
    if not 0 < n or not 0 <= successes <= n:
        raise ScoringError(f"a share needs 0 <= successes <= n and n > 0, got {successes} of {n}; pass scored items")
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    share = successes / n
    centre = share + z2 / (2 * n)
    half_width = math.sqrt(z2 * share * (1 - share) / n + (z2 / (2 * n)) ** 2)
    scale = 1 + z2 / n
    return max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale)


def tied_wilson_interval(wins: int, ties: int, losses: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson interval of (wins + ties/2) / n, which is narrower with ties, because they reduce the variance.

    An outcome of 0, ½ or 1 with mean p and share of ties t has variance p (1 − p) − t/4. So n outcomes are worth
    n p (1 − p) / (p (1 − p) − t/4) outcomes without ties, and Wilson's interval is computed for that number. The
    variance is estimated with half a win and half a loss added, so that it is not 0 if all outcomes are ties. Without
    ties the result equals :func:`wilson_interval`. The exact coverage is in ``tests/evals/test_winrate.py``.

    Args:
        wins: outcomes of 1.
        ties: outcomes of ½.
        losses: outcomes of 0.
        confidence: nominal coverage.

    >>> low, high = tied_wilson_interval(10, 20, 10)
    >>> round(low, 3), round(high, 3)
    (0.392, 0.608)
    """
    n = wins + ties + losses
    if min(wins, ties, losses) < 0 or n < 1:
        raise ScoringError(f"a win rate needs outcomes, got {wins} wins, {ties} ties and {losses} losses")
    share = (wins + ties / 2) / n
    p = (wins + ties / 2 + 0.5) / (n + 1)
    effective = n * p * (1 - p) / (p * (1 - p) - ties / (n + 1) / 4) if ties else float(n)
    return wilson_interval(share * effective, effective, confidence=confidence)


def median_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of a median between two order statistics; None: too few values for the confidence.

    The sign test inverted: the ends are the d-th smallest and the d-th largest value, with the largest d for which
    ``P(B < d) ≤ (1 − confidence) / 2``, B binomial (n, ½). W. R. Thompson, Annals of Mathematical Statistics 7 (1936),
    122–128.

    >>> median_interval([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    (2, 9)
    """
    ordered, tail, d = sorted(values), 0.0, 0
    n = len(ordered)
    while n:
        log_binomial = math.lgamma(n + 1) - math.lgamma(d + 1) - math.lgamma(n - d + 1)  # the logarithm of n over d
        tail += math.exp(log_binomial - n * math.log(2))
        if tail > (1 - confidence) / 2:
            break
        d += 1
    return (ordered[d - 1], ordered[n - d]) if d else None


def clustered_share(rows: Iterable[tuple[float, Hashable]], *, name: str = "", reason: str = "") -> Estimate:
    """A share of outcomes with the interval of :func:`clustered_wilson_interval`.

    Args:
        rows: outcome (1 right, 0 wrong, 0.5 tied) and group of each item.
        name: of the estimate.
        reason: why there is no share, if there are no rows.
    """
    items = list(rows)
    if not items:
        return Estimate(name=name, reason=reason)
    outcomes, clusters = [outcome for outcome, _ in items], [cluster for _, cluster in items]
    low, high = clustered_wilson_interval(outcomes, clusters)
    return Estimate(name=name, value=fmean(outcomes), low=low, high=high, n=len(items))


def clustered_wilson_interval(
    outcomes: Sequence[float], clusters: Sequence[Hashable], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson interval of a share whose items come in groups (all pairs of one prompt).

    The number of trials is replaced by an effective number: n divided by the design effect, times
    ``(t_{n−1} / t_{G−1})²``, because a variance from few groups is uncertain. The design effect is the variance of the
    ratio estimator between the G groups, ``Var = G/(G−1) · Σ_c (Σ_{i∈c} (x_i − p̂))² / n²``, divided by
    ``p̂ (1 − p̂) / (n − 1)``. Source: E. L. Korn and B. I. Graubard, Survey Methodology 24 (1998), 193–201, who use the
    effective number in Clopper and Pearson's interval.

    Departures: Wilson's interval, and a floor. The effective number is at most the number of items and at least
    ``n² / Σ_c n_c²``, which is the number of groups if all have the same size: if the items of each group agree, a
    group counts once. A group also counts once if every outcome is the same, because the data then say nothing about
    the variance within a group. With one item per group, the result is Wilson's interval. Decision 72 has its coverage.

    Args:
        outcomes: 1 right, 0 wrong, 0.5 tied.
        clusters: the group of each outcome.
        confidence: nominal coverage.
    """
    _require(len(outcomes) == len(clusters) and len(outcomes) > 0, "outcomes and clusters of equal length", outcomes)
    n = len(outcomes)
    share, sizes, residuals = cluster_residuals(outcomes, clusters)
    groups, squares = len(sizes), math.fsum(r * r for r in residuals.values())
    if share in (0.0, 1.0) or groups == 1:
        effective = float(groups)
    else:
        variance = groups / (groups - 1) * squares / n**2
        effective = n * min(1.0, share * (1 - share) / (n - 1) / variance) if variance else float(n)
        effective *= (student_quantile(n - 1, confidence) / student_quantile(groups - 1, confidence)) ** 2
        effective = max(effective, n**2 / math.fsum(size * size for size in sizes.values()))
    return wilson_interval(share * effective, effective, confidence=confidence)


@cache
def student_quantile(freedom: int, confidence: float = 0.95) -> float:
    """The t for which Student's distribution has a share of ``confidence`` between −t and t.

    Up to 100 degrees of freedom it is computed from the distribution's finite series, M. Abramowitz and I. A. Stegun
    (1964), 26.7.3 and 26.7.4; beyond that, from the expansion 26.7.5 about the normal quantile.

    >>> [round(student_quantile(freedom), 3) for freedom in (1, 4, 19, 1000)]
    [12.706, 2.776, 2.093, 1.962]
    """
    if freedom > 100:
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, math.pi / 2  # of θ = arctan(t / √ν)
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _student_share(freedom, angle) < confidence else (low, angle)
    return math.tan(low) * math.sqrt(freedom)


def _student_share(freedom: int, angle: float) -> float:
    """Share of Student's distribution between −t and t, with t = √ν · tan(angle)."""
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))


def weighted_share(
    outcomes: Sequence[float], clusters: Sequence[Hashable], weights: Sequence[float]
) -> tuple[float, float]:
    """Estimate a share of a population from items drawn with unequal probabilities, and the effective number of items.

    The share is Hájek's e = Σ w x / W with w = 1/π. n = e (1 − e) / Var with the linearised variance between the G
    clusters, Var = G/(G−1) · Σ_c (Σ_{i∈c} w_i (x_i − e))² / W², at most Kish's W² / Σw² (Korn and Graubard, as in
    :func:`clustered_wilson_interval`, which also widens for few clusters). If all outcomes are the same, the variance
    within a cluster is unknown, and n is Kish's number over clusters; with a single cluster n is 1.

    Args:
        outcomes: 0 … 1.
        clusters: the group of each outcome.
        weights: inverse probability with which each item was drawn.
    """
    share, sizes, residuals = cluster_residuals(outcomes, clusters, weights)
    total, groups = math.fsum(weights), len(sizes)
    if groups == 1:
        return share, 1.0
    if share in (0.0, 1.0):
        return share, total**2 / math.fsum(s * s for s in sizes.values())
    kish = total**2 / math.fsum(w * w for w in weights)
    variance = groups / (groups - 1) * math.fsum(r * r for r in residuals.values()) / total**2
    return share, min(kish, share * (1 - share) / variance) if variance else kish


def cluster_residuals(
    outcomes: Sequence[float], clusters: Sequence[Hashable], weights: Sequence[float] | None = None
) -> tuple[float, dict[Hashable, float], dict[Hashable, float]]:
    """The sums from which the variance of a clustered share is computed.

    Returns:
        the share p̂ = Σ w x / Σ w; Σ_{i∈c} w_i by cluster; Σ_{i∈c} w_i (x_i − p̂) by cluster. Without weights w = 1.
    """
    weights = [1.0] * len(outcomes) if weights is None else weights
    share = math.fsum(w * x for w, x in zip(weights, outcomes, strict=True)) / math.fsum(weights)
    sizes: dict[Hashable, float] = {}
    residuals: dict[Hashable, float] = {}
    for weight, outcome, cluster in zip(weights, outcomes, clusters, strict=True):
        sizes[cluster] = sizes.get(cluster, 0.0) + weight
        residuals[cluster] = residuals.get(cluster, 0.0) + weight * outcome - weight * share
    return share, sizes, residuals


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean. B. Efron, Annals of Statistics 7 (1979), 1–26.

    Whole clusters are drawn with replacement and the mean is taken over all their values.

    Args:
        values: one per item, finite.
        clusters: the group of each value (its prompt); None: every value is its own group.
        resamples: number of samples drawn.
        seed: of the private random generator; equal seeds give equal intervals.
        confidence: nominal coverage.
    """
    groups = range(len(values)) if clusters is None else clusters
    _require(len(values) == len(groups) and len(values) > 0, "at least one value and one cluster for each", values)
    _require(all(map(math.isfinite, values)), "finite values", values)
    sums: dict[Hashable, tuple[float, int]] = {}
    for value, group in zip(values, groups, strict=True):
        total, count = sums.get(group, (0.0, 0))
        sums[group] = (total + value, count + 1)

    def mean(drawn: Sequence[tuple[float, int]]) -> float:
        return math.fsum(s for s, _ in drawn) / sum(n for _, n in drawn)

    means = resampled(list(sums.values()), mean, seed=seed, resamples=resamples)
    return _quantile(means, (1 - confidence) / 2), _quantile(means, (1 + confidence) / 2)


def paired_bootstrap_interval(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(a) − mean(b), where ``a[i]`` and ``b[i]`` belong together.

    Pairs are drawn together, so effects that both share (such as an easy prompt) cancel. The other arguments are as in
    :func:`bootstrap_interval`.
    """
    _require(len(a) == len(b), f"two sequences of equal length, the other has {len(b)}", a)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return bootstrap_interval(differences, clusters, resamples=resamples, seed=seed, confidence=confidence)


def resampled(
    groups: Sequence[Group],
    statistic: Callable[[Sequence[Group]], float | None],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> list[float]:
    """Values of a statistic over bootstrap samples of groups, ascending; values of None are left out."""
    draw = random.Random(seed)
    values = (statistic(draw.choices(groups, k=len(groups))) for _ in range(resamples))
    return sorted(value for value in values if value is not None)


def middle_95(ordered: Sequence[float], *, outwards: bool = False) -> tuple[float, float]:
    """Ends of the middle 95 % of ascending values: the nearest values, or with ``outwards`` the next ones outside."""
    low, high = 0.025 * (len(ordered) - 1), 0.975 * (len(ordered) - 1)
    return (ordered[int(low)], ordered[math.ceil(high)]) if outwards else (ordered[round(low)], ordered[round(high)])


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between order statistics (type 7 of Hyndman and Fan, 1996)."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def _require(condition: bool, expected: str, values: Sequence[float]) -> None:
    if not condition:
        examples = [value for value in values if not math.isfinite(value)][:3] or list(values[:3])
        raise ScoringError(
            f"an interval needs {expected}; got {len(values)} values such as {examples}; score them again"
        )
