"""Bets against enumeration: every sequence of outcomes with its probability, so that errors are exact."""

import math
from itertools import permutations, product

import pytest

from trimtab.errors import DataError
from trimtab.evals.betting import BETS, RiseTest, upper_bound


def chance(outcomes: tuple[int, ...], p: float) -> float:
    return p ** sum(outcomes) * (1 - p) ** (len(outcomes) - sum(outcomes))


def test_one_look_is_the_mean_over_the_bets():
    by_hand = sum((1 + bet / 0.25 * (1.0 - 0.25)) * (1 + bet / 0.25 * (0.0 - 0.25)) for bet in BETS) / len(BETS)
    assert RiseTest(0.25, steps=1).update([1.0, 0.0]) == pytest.approx(math.log(by_hand))


def test_the_start_of_the_rise_is_mixed_over_the_planned_steps():
    test, m = RiseTest(0.5, steps=3), 0.5
    test.update([0.0])
    test.update([1.0])
    test.update([1.0])
    by_hand = 0.0
    for bet in BETS:
        factors = [1 + bet / m * (x - m) for x in (0.0, 1.0, 1.0)]
        by_hand += sum(math.prod(factors[start:]) for start in range(3)) / 3 / len(BETS)
    assert test.log_e == pytest.approx(math.log(by_hand))


@pytest.mark.parametrize("m", [0.2, 0.5])
def test_it_is_a_fair_game_while_the_mean_is_the_bound_and_a_losing_one_below(m):
    """E[E] over all outcomes of four looks of two prompts; with p = m exactly 1."""

    def expectation(p: float) -> float:
        total = 0.0
        for outcomes in product((0, 1), repeat=8):
            test = RiseTest(m, steps=6)
            for look in range(4):
                test.update(outcomes[2 * look : 2 * look + 2])
            total += chance(outcomes, p) * math.exp(test.log_e)
        return total

    assert expectation(m) == pytest.approx(1.0)
    assert expectation(m / 2) < 1


def test_a_draw_without_replacement_is_no_better_than_fair():
    """All orders of a pool whose mean is the bound, half of it drawn."""
    pool = (0.0, 0.0, 0.25, 0.5, 1.0, 1.0)
    m, total, orders = sum(pool) / len(pool), 0.0, list(permutations(pool))
    for order in orders:
        test = RiseTest(m, steps=1)
        total += math.exp(test.update(order[:3]))
    assert total / len(orders) < 1


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_the_bound_is_below_the_mean_with_at_most_its_error(p, alpha):
    """Exact: over all sequences of ten outcomes."""
    missed = sum(chance(xs, p) for xs in product((0, 1), repeat=10) if upper_bound(xs, alpha) < p)
    assert missed <= alpha


def test_the_bound_narrows_with_numbers_and_widens_with_confidence():
    assert 0.25 < upper_bound([0.25] * 400, 0.05) < upper_bound([0.25] * 40, 0.05) < upper_bound([0.25] * 40, 0.001) < 1


def test_a_late_rise_is_noticed_and_silence_is_not():
    test = RiseTest(0.2, steps=200)
    for _ in range(150):
        assert test.update([0.1] * 16) < math.log(20)
    looks = next(i for i in range(50) if test.update([0.6] * 16) > math.log(1000))
    assert looks <= 5


def test_long_runs_do_not_overflow():
    test = RiseTest(0.01, steps=3000)
    for _ in range(200):
        test.update([1.0] * 300)
    assert math.isfinite(test.log_e) and (most := test.log_e) > 1e4
    for _ in range(3000):  # beyond the plan
        test.update([0.0] * 300)
    assert math.isfinite(test.log_e) and test.log_e < most


def test_a_bound_of_one_is_never_exceeded():
    assert RiseTest(1.0, steps=2).update([1.0] * 50) == 0.0


@pytest.mark.parametrize("values", [[], [1.1], [0.5, math.nan]])
def test_values_outside_the_unit_interval_are_refused(values):
    with pytest.raises(DataError, match=r"needs values in \[0, 1\]"):
        upper_bound(values, 0.05)
