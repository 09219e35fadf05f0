"""Where a score turned: planted curves, and the forms of Gao et al. from their own numbers."""

import math
import random

import pytest

from trimtab.errors import DataError
from trimtab.evals import find_turn, fit_form

N = 40


def curve(shape, seed: int, noise: float = 0.1):
    """Steps, KL and a noisy score; √KL goes from 0 to 3."""
    draw = random.Random(seed)
    x = [i / (N - 1) for i in range(N)]
    return list(range(1, N + 1)), [9 * a * a for a in x], [shape(a) + draw.gauss(0, noise) for a in x]


def test_a_planted_turn_is_found_where_it_is():
    turn = find_turn("gold", *curve(lambda x: 4 * x * (1 - x), 0), seed=0)
    low, value, high = turn.step.low, turn.step.value, turn.step.high
    assert turn.found and low is not None and value is not None and high is not None
    assert low <= 20.5 <= high and high - low <= 12  # the middle of 40 steps
    assert turn.distance.low is not None and turn.distance.high is not None
    assert turn.distance.low <= 1.5 <= turn.distance.high  # √KL in the middle
    assert turn.fall.value == pytest.approx(0.85, abs=0.2)  # 1 at the top, about .15 over the last steps


@pytest.mark.parametrize("shape", [lambda x: x, lambda x: min(2 * x, 1), lambda x: 0.0], ids=["rises", "flat end", "0"])
def test_noise_is_no_turn(shape):
    turns = [find_turn("gold", *curve(shape, seed), seed=0) for seed in range(6)]
    assert not any(turn.found for turn in turns)
    assert {turn.step.reason for turn in turns} == {"no turn found"} and turns[0].step.value is None


def test_a_score_that_only_falls_did_not_turn():
    turns = [find_turn("gold", *curve(lambda x: -x, seed), seed=0) for seed in range(6)]
    assert not any(turn.found for turn in turns)
    assert {turn.step.reason for turn in turns} == {"it fell, and had not risen before beyond chance"}
    assert all(turn.fall.low is not None and turn.fall.low > 0 for turn in turns)


@pytest.mark.slow
@pytest.mark.parametrize("points", [24, 60])
def test_false_turns_and_coverage(points):
    """At most 2.5 % of 200 flat curves turn, within chance; intervals of planted turns cover at least 95 %."""

    def share(shape, wanted):
        hits = 0
        for seed in range(200):
            draw = random.Random(seed)
            x = [i / (points - 1) for i in range(points)]
            turn = find_turn(
                "s", range(points), [9 * a * a for a in x], [shape(a) + draw.gauss(0, 0.1) for a in x], seed=0
            )
            hits += wanted(turn)
        return hits / 200

    assert share(lambda x: min(2 * x, 1), lambda turn: turn.found) <= 0.05
    middle = (points - 1) / 2
    assert share(lambda x: 4 * x * (1 - x), lambda t: t.found and t.step.low <= middle <= t.step.high) >= 0.95


def test_too_few_steps_and_bad_numbers():
    turn = find_turn("gold", range(11), range(11), range(11), seed=0)
    assert not turn.found and turn.step.reason == "11 steps are too few to look for a turn; at least 12 are needed"
    with pytest.raises(DataError, match=r"1 numbers are not finite, the first is nan"):
        find_turn("gold", range(12), range(12), [math.nan, *range(11)], seed=0)
    with pytest.raises(DataError, match="12 steps, 11 KLs"):
        find_turn("gold", range(12), range(11), range(12), seed=0)


def test_the_form_of_online_alignment():
    """d (α − β log d) with α = 1, β = 0.5 is highest at d = e^{α/β − 1} = e."""
    d = [0.5, 1.0, 2.0, 3.0, 4.0, 6.0]
    fit = fit_form("gold", [x * x for x in d], [x * (1.0 - 0.5 * math.log(x)) for x in d], "rl")
    assert (fit.alpha, fit.beta, fit.explained) == pytest.approx((1.0, 0.5, 1.0))
    assert fit.peak == pytest.approx(math.e)


def test_a_form_is_not_fitted_to_five_points():
    with pytest.raises(DataError, match=r"5 points with a KL above 0; a form of two numbers is fitted to 6 or more"):
        fit_form("gold", [0.0, 1, 2, 3, 4, 5], [0.0] * 6, "rl")
    with pytest.raises(DataError, match="nearly the same KL"):
        fit_form("gold", [2.0] * 6, [1.0] * 6, "best_of_n")
    rising = fit_form("proxy", [1.0, 4, 9, 16, 25, 36], [1.0, 2, 3, 4, 5, 6], "best_of_n")
    assert rising.peak is None or rising.peak > 1e6  # β is 0
