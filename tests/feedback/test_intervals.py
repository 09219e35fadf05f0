import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import ScoringError
from trimtab.feedback.intervals import (
    bootstrap_interval,
    clustered_wilson_interval,
    paired_bootstrap_interval,
    student_quantile,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, Table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_ends_solve_the_score_equation(n, share, confidence):
    successes = share * n
    z = {0.8: 1.2815515655446004, 0.95: 1.959963984540054, 0.99: 2.5758293035489004}[confidence]
    low, high = wilson_interval(successes, n, confidence=confidence)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert (successes / n - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_wilson_refuses_what_is_no_share(successes, n):
    with pytest.raises(ScoringError, match="a share needs"):
        wilson_interval(successes, n)


def test_clusters_of_one_give_wilson():
    outcomes = [1.0] * 7 + [0.0] * 5
    assert clustered_wilson_interval(outcomes, range(12)) == pytest.approx(wilson_interval(7, 12))


def test_clusters_that_agree_count_once():
    # Four prompts of five equal outcomes each carry the information of four, not of twenty.
    outcomes = [1.0] * 15 + [0.0] * 5
    clusters = [i // 5 for i in range(20)]
    assert clustered_wilson_interval(outcomes, clusters) == pytest.approx(wilson_interval(3, 4))


def test_all_right_counts_groups_and_never_more_than_the_items():
    assert clustered_wilson_interval([1.0] * 20, [i // 5 for i in range(20)]) == pytest.approx(wilson_interval(4, 4))
    opposed = clustered_wilson_interval([1.0, 0.0] * 10, [i // 2 for i in range(20)])  # variance 0 between groups
    few = 20 * (2.0930 / 2.2622) ** 2  # of a t table: 19 and 9 degrees of freedom
    assert opposed == pytest.approx(wilson_interval(few / 2, few), rel=1e-4)


def test_clusters_by_hand():
    # Three groups of two, 1, 2 and 0 right: Var = 3/2 · 2/36 = 1/12, and that of six items is ¼/5. With t of 5 and
    # 2 degrees of freedom, 2.5706 and 4.3027, six items are worth 6 · 3/5 · 0.357 = 1.28, less than three groups.
    assert clustered_wilson_interval([1, 0, 1, 1, 0, 0], "aabbcc") == pytest.approx(wilson_interval(1.5, 3))
    # Ten groups of four, of which five have 3 right and five 1: Var = 10/9 · 10/1600 = 1/144; of 40 items ¼/39.
    effective = 40 * (144 / 156) * (2.0227 / 2.2622) ** 2
    outcomes = [1, 1, 1, 0] * 5 + [0, 0, 0, 1] * 5
    interval = clustered_wilson_interval(outcomes, [i // 4 for i in range(40)])
    assert interval == pytest.approx(wilson_interval(effective / 2, effective), rel=1e-4)
    assert clustered_wilson_interval([1, 0, 1, 0], "aaaa") == wilson_interval(
        0.5, 1
    )  # one group says nothing of others


@pytest.mark.parametrize(("groups", "before"), [(5, 0.88), (10, 0.92)])
def test_coverage_with_few_clusters(groups: int, before: float):
    """Prompts with a share of their own, Beta with an intra-class correlation of one half; before: without t."""
    draw, covered, runs = random.Random(groups), 0, 800
    for _ in range(runs):
        shares = [draw.betavariate(0.5, 0.5) for _ in range(groups)]
        outcomes = [float(draw.random() < share) for share in shares for _ in range(5)]
        low, high = clustered_wilson_interval(outcomes, [i // 5 for i in range(len(outcomes))])
        covered += low <= 0.5 <= high
    assert before + 0.02 < covered / runs < 0.98


def uncorrected(outcomes: list[float], clusters: list[int]) -> tuple[float, float]:
    """The interval as it was before decision 72."""
    n, share = len(outcomes), sum(outcomes) / len(outcomes)
    sums: dict[int, float] = {}
    for outcome, cluster in zip(outcomes, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + outcome - share
    squares = sum(r * r for r in sums.values())
    effective = n * min(1.0, n * share * (1 - share) / squares) if squares else float(n)
    effective = float(len(sums)) if share in (0.0, 1.0) else effective
    return wilson_interval(share * effective, effective)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [3, 5, 10, 20])
def test_coverage_table(groups: int):
    """The table of decision 72; -s prints it."""
    draw, rates = random.Random(groups), {uncorrected: [], clustered_wilson_interval: []}
    for size, correlation, p in itertools.product((2, 5, 10), (0, 0.2, 0.5, 0.9, 0.99), (0.5, 0.7, 0.8, 0.9)):
        covered = dict.fromkeys(rates, 0)
        for _ in range(1000):
            scale = (1 - correlation) / correlation if correlation else 0
            shares = [draw.betavariate(p * scale, (1 - p) * scale) if scale else p for _ in range(groups)]
            outcomes = [float(draw.random() < share) for share in shares for _ in range(size)]
            clusters = [i // size for i in range(len(outcomes))]
            for interval in rates:
                low, high = interval(outcomes, clusters)
                covered[interval] += low <= p <= high
        for interval, count in covered.items():
            rates[interval].append(count / 1000)
    before, now = ((sum(r) / len(r), min(r)) for r in rates.values())
    print(f"\n| {groups} | {before[0]:.1%}, {before[1]:.1%} | {now[0]:.1%}, {now[1]:.1%} |")
    assert now[0] > 0.95 > before[0] and now[1] > before[1]


@pytest.mark.parametrize(
    ("freedom", "t"),  # the 97.5 % point in printed tables
    [
        *((1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622), (10, 2.2281), (29, 2.0452)),
        *((60, 2.0003), (100, 1.9840), (120, 1.9799), (1000, 1.9623)),
    ],
)
def test_quantiles_of_student(freedom: int, t: float):
    assert student_quantile(freedom) == pytest.approx(t, abs=6e-5)


def test_clustered_coverage_by_simulation():
    draw = random.Random(0)
    truth, covered, naive, runs = 0.65, 0, 0, 800
    for _ in range(runs):
        outcomes, clusters = [], []
        for cluster in range(50):
            shared = draw.random() < truth  # half of the pairs follow their prompt, the others are free
            for _ in range(6):
                outcomes.append(float(shared if draw.random() < 0.5 else draw.random() < truth))
                clusters.append(cluster)
        low, high = clustered_wilson_interval(outcomes, clusters)
        covered += low <= truth <= high
        low, high = wilson_interval(sum(outcomes), len(outcomes))
        naive += low <= truth <= high
    assert 0.93 <= covered / runs <= 0.975
    assert naive / runs < 0.86


def test_bootstrap_agrees_with_r():
    # R's package boot, boot.ci type "perc" of the mean, a million resamples.
    x = [10, 12, 12.5, 12.5, 13.9, 15, 21, 22, 23, 34, 50, 81, 89, 121, 134, 213]
    low, high = bootstrap_interval(x, resamples=60_000, seed=1)
    assert (low, high) == pytest.approx((28.86, 84.21), rel=0.01)
    assert paired_bootstrap_interval([v + 7 for v in x], [7.0] * 16, resamples=60_000, seed=1) == (low, high)


def test_bootstrap_is_seeded_and_pairs_cancel_what_is_shared():
    noise = [random.Random(4).gauss(0, 100) for _ in range(30)]
    assert paired_bootstrap_interval([v + 1 for v in noise], noise) == pytest.approx((1, 1))
    assert bootstrap_interval(noise, seed=1) == bootstrap_interval(noise, seed=1)


def test_bootstrap_draws_whole_clusters():
    # Two clusters: a resample is (0, 0), (0, 1) or (1, 1), so its mean is 0, a half or 1.
    assert bootstrap_interval([0, 0, 0, 1, 1, 1], "aaabbb") == (0.0, 1.0)
    # Within one cluster nothing varies.
    assert bootstrap_interval([0, 1, 0, 1], "aaaa") == (0.5, 0.5)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_bootstrap_refuses(values):
    with pytest.raises(ScoringError, match="an interval needs"):
        bootstrap_interval(values)


def test_lengths_must_agree():
    with pytest.raises(ScoringError, match="equal length"):
        paired_bootstrap_interval([1.0], [1.0, 2.0])
    with pytest.raises(ScoringError, match="equal length"):
        clustered_wilson_interval([1.0], [])


def test_median_interval_against_the_table():
    """Order statistics of Conover's table of the sign test: n = 6 gives (1, 6), 10 (2, 9), 20 (6, 15), 25 (8, 18)."""
    from trimtab.feedback import median_interval

    result = {n: median_interval(range(1, n + 1)) for n in (5, 6, 10, 20, 25)}
    assert result == {5: None, 6: (1, 6), 10: (2, 9), 20: (6, 15), 25: (8, 18)}
