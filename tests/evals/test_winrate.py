import math

import pytest

from trimtab.errors import ScoringError
from trimtab.evals import win_rate
from trimtab.feedback import wilson_interval
from trimtab.feedback.intervals import tied_wilson_interval


def test_counts_by_hand():
    result = win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 3.0 + 1e-12, 5.0])
    assert (result.wins, result.ties, result.losses, result.n) == (1, 2, 1, 4)
    assert result.rate == 0.5
    # p = 2/4; with half a win and half a loss more the variance is 1/4 − (2/5)/4 = 0.15, so 4 · 0.25/0.15 outcomes
    assert (result.low, result.high) == pytest.approx(wilson_interval(10 / 3, 20 / 3))


def test_tie_width_is_an_argument():
    assert win_rate([1.0, 1.4], [1.2, 1.0], tie=0.3).ties == 1


def test_a_clean_sweep_is_not_certain():
    result = win_rate([1.0] * 20, [0.0] * 20)
    assert result.rate == result.high == 1.0
    assert result.low == pytest.approx(0.8389, abs=5e-5)  # mirror image of Newcombe's 0 of 20


def coverage(n: int, win: float, tie: float) -> float:
    """Probability that the interval has the truth in it: over all counts of wins, ties and losses, so exact."""
    shares, truth, total = (win, tie, 1 - win - tie), win + tie / 2, 0.0
    for wins in range(n + 1):
        for ties in range(n - wins + 1):
            counts = (wins, ties, n - wins - ties)
            if any(count and share < 1e-12 for count, share in zip(counts, shares, strict=True)):
                continue
            log = math.lgamma(n + 1) - sum(math.lgamma(count + 1) for count in counts)
            log += sum(count * math.log(share) for count, share in zip(counts, shares, strict=True) if count)
            if log > -18:
                low, high = tied_wilson_interval(*counts)
                total += math.exp(log) * (low - 1e-12 <= truth <= high + 1e-12)
    return total


TRUTHS = [(0.5, 0.0), (0.7, 0.0), (0.9, 0.0), (0.6, 0.2), (0.4, 0.5), (0.3, 0.4), (0.85, 0.1), (0.93, 0.04)]


@pytest.mark.parametrize("n", [20, 50])
@pytest.mark.parametrize(("win", "tie"), TRUTHS)
def test_coverage(n, win, tie):
    """93 to 97 %, up to the steps that a share of few outcomes takes."""
    assert 0.93 <= coverage(n, win, tie) <= 0.976


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 200])
@pytest.mark.parametrize(("win", "tie"), TRUTHS)
def test_coverage_with_many_prompts(n, win, tie):
    assert 0.93 <= coverage(n, win, tie) <= 0.97


@pytest.mark.parametrize("n", [20, 200])
@pytest.mark.parametrize(("win", "tie", "truth"), [(0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 0.5)])
def test_certain_outcomes_are_covered_and_not_claimed_to_be_certain(n, win, tie, truth):
    low, high = tied_wilson_interval(round(n * win), round(n * tie), n - round(n * win) - round(n * tie))
    assert low <= truth <= high and high - low > 1 / n


def test_intervals_without_ties_are_wilsons_and_mirror_each_other():
    assert tied_wilson_interval(7, 0, 3) == pytest.approx(wilson_interval(7, 10))
    low, high = tied_wilson_interval(7, 5, 3)
    assert tied_wilson_interval(3, 5, 7) == pytest.approx((1 - high, 1 - low))
    with pytest.raises(ScoringError, match="0 wins, 0 ties and 0 losses"):
        tied_wilson_interval(0, 0, 0)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "got 0 and 0"),
        ([1.0], [1.0, 2.0], "got 1 and 2"),
        ([1.0, math.nan], [0.0, 0.0], "prompt 1: scores nan"),
    ],
)
def test_refuses(a, b, message):
    with pytest.raises(ScoringError, match=message):
        win_rate(a, b)
