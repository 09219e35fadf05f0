import math
import random

import pytest

from trimtab.errors import ScoringError
from trimtab.evals import win_rate
from trimtab.feedback import wilson_interval


def test_counts_by_hand():
    result = win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 3.0 + 1e-12, 5.0])
    assert (result.wins, result.ties, result.losses, result.n) == (1, 2, 1, 4)
    assert result.rate == 0.5
    assert (result.low, result.high) == pytest.approx(wilson_interval(2, 4))


def test_tie_width_is_an_argument():
    assert win_rate([1.0, 1.4], [1.2, 1.0], tie=0.3).ties == 1


def test_a_clean_sweep_is_not_certain():
    result = win_rate([1.0] * 20, [0.0] * 20)
    assert result.rate == result.high == 1.0
    assert result.low == pytest.approx(0.8389, abs=5e-5)  # mirror image of Newcombe's 0 of 20


@pytest.mark.parametrize("n", [40, 200])
@pytest.mark.parametrize(("win", "tie"), [(0.5, 0.0), (0.78, 0.0), (0.6, 0.2), (0.4, 0.5), (0.93, 0.04)])
def test_coverage_by_simulation(n, win, tie):
    draw = random.Random(f"{n} {win} {tie}")
    truth, runs = win + tie / 2, 600
    covered = 0
    for _ in range(runs):
        outcome = draw.choices((1.0, 0.0, -1.0), (win, tie, 1 - win - tie), k=n)
        result = win_rate(outcome, [0.0] * n)
        covered += result.low <= truth <= result.high
    assert covered / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)
    if tie == 0.5:  # with many ties it is wider than need be, as documented
        assert covered / runs > 0.97


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
