"""Calibrators recover what was planted, and do not see what they are measured on."""

import itertools
import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from trimtab.errors import ScoringError
from trimtab.feedback import brier, cross_fitted, fit_isotonic, fit_temperature, reliability


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def planted(temperature: float, count: int = 4000, seed: int = 0) -> tuple[list[float], list[float]]:
    """A judge whose log-odds are ``temperature`` times too large."""
    r = Random(seed)
    true = [r.gauss(0, 1.5) for _ in range(count)]
    return [sigmoid(temperature * z) for z in true], [float(r.random() < sigmoid(z)) for z in true]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(temperature: float):
    p, y = planted(temperature)
    calibrate = fit_temperature(p, y)
    for z in (-2.0, -0.5, 0.3, 1.0):
        assert calibrate(sigmoid(temperature * z)) == pytest.approx(sigmoid(z), abs=0.02)
    assert calibrate(0.5) == pytest.approx(0.5)


def test_temperature_is_the_likeliest_one_by_another_library():
    p, y = planted(2.0, 300)
    logits = [math.log(x / (1 - x)) for x in p]

    def loss(scale: float) -> float:
        return -sum(
            t * math.log(sigmoid(scale * z)) + (1 - t) * math.log(1 - sigmoid(scale * z))
            for z, t in zip(logits, y, strict=True)
        )

    best = minimize_scalar(loss, bounds=(0.01, 5), method="bounded", options={"xatol": 1e-8}).x
    assert fit_temperature(p, y)(0.8) == pytest.approx(sigmoid(best * math.log(4)), abs=1e-5)


def test_a_judge_that_knows_nothing_ends_at_one_half():
    r = Random(0)
    p, y = [r.random() for _ in range(2000)], [float(r.random() < 0.5) for _ in range(2000)]
    assert abs(fit_temperature(p, y)(0.95) - 0.5) < 0.06
    wrong = [1 - t for t in y]
    assert fit_temperature([0.9 if t else 0.1 for t in y], wrong)(0.9) <= 0.51  # never turned round, only flattened


def test_isotonic_by_hand():
    """(.6, 0), (.7, 1), (.8, 1) and mirrored (.4, 1), (.3, 0), (.2, 0): one block of .4 and .6 at ½."""
    calibrate = fit_isotonic([0.6, 0.7, 0.8], [0.0, 1.0, 1.0])
    assert calibrate(0.5) == pytest.approx(0.5)
    assert (
        calibrate(0.75) == pytest.approx(1.0)
        and calibrate(0.7) == pytest.approx(0.9)
        and calibrate(0.2) == pytest.approx(0.0)
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 1000).map(lambda n: n / 1000), st.sampled_from([0.0, 0.5, 1.0])),
        min_size=1,
        max_size=30,
    )
)
@settings(max_examples=60)
def test_isotonic_is_monotone_and_fair_to_both_places(rows):
    calibrate = fit_isotonic([p for p, _ in rows], [y for _, y in rows])
    at = [calibrate(n / 20) for n in range(21)]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(at))
    assert all(calibrate(n / 20) + calibrate(1 - n / 20) == pytest.approx(1, abs=1e-6) for n in range(21))


def test_cross_fitting_sees_no_item_of_the_same_prompt():
    """Turning the labels of one prompt round changes what others get, and nothing of its own."""
    p, y = planted(2.0, 100)
    groups = [n // 4 for n in range(100)]
    other = [1 - t if g == 7 else t for t, g in zip(y, groups, strict=True)]
    for method in ("temperature", "isotonic"):
        before, after = cross_fitted(method, p, y, groups), cross_fitted(method, p, other, groups)
        changed = {g for g, a, b in zip(groups, before, after, strict=True) if a != b}
        assert 7 not in changed and len(changed) >= 15


def test_ece_by_hand():
    """Two at .9, one right; two at .6 (one as .4), both right: ½|.5−.9| + ½|1−.6| = .4."""
    rows, error = reliability([0.9, 0.9, 0.6, 0.4], [1.0, 0.0, 1.0, 0.0], bins=5)
    assert [(b.n, b.accuracy) for b in rows] == [(2, 1.0), (2, 0.5)]
    assert error == pytest.approx(0.4)
    assert brier([0.9, 0.4], [1.0, 0.0]) == pytest.approx((0.01 + 0.16) / 2)


@pytest.mark.parametrize(("p", "y"), [([0.5], []), ([1.5], [1.0]), ([math.nan], [1.0])])
def test_what_is_no_probability_is_refused(p, y):
    with pytest.raises(ScoringError, match="calibration needs"):
        fit_temperature(p, y)


def test_calibration_error_with_weights():
    """.9 said, right in one of two; with weight 3 on the right one the accuracy is .75."""
    assert reliability([0.9, 0.9], [1.0, 0.0])[1] == pytest.approx(0.4)
    assert reliability([0.9, 0.9], [1.0, 0.0], [3.0, 1.0])[1] == pytest.approx(0.15)
