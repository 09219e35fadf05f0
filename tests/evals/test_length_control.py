"""The win rate at equal length: against statsmodels, planted truths, and where there is nothing to fit."""

import math
import random

import pytest

from trimtab.errors import ScoringError
from trimtab.evals import length_controlled
from trimtab.feedback import wilson_interval


def drawn(count: int, theta: float, gamma: float, *, seed: int = 0, shift: float = 0.0) -> tuple[list, list]:
    """Outcomes and differences of length with a planted θ and γ; the unit of length is its standard deviation."""
    draw = random.Random(seed)
    differences = [draw.gauss(shift, 10) for _ in range(count)]
    chances = [1 / (1 + math.exp(-theta - gamma * math.tanh(d / 10))) for d in differences]
    return [float(draw.random() < p) for p in chances], differences


@pytest.mark.parametrize("alike", [True, False])
def test_it_is_the_fit_of_statsmodels_with_the_wider_of_its_intervals(alike):
    """Where judgements of a prompt are alike, the clustered interval is wider; otherwise that of the likelihood."""
    sm = pytest.importorskip("statsmodels.api")
    outcomes, differences = drawn(300, 0.4, 1.2)
    clusters = [i // 3 for i in range(300)]
    if alike:
        outcomes = [outcomes[i - i % 3] for i in range(300)]
    else:
        outcomes[:40] = [0.5] * 40
    mean = sum(differences) / 300
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / 300)
    design = sm.add_constant([math.tanh(d / spread) for d in differences])
    model = sm.GLM(outcomes, design, family=sm.families.Binomial())
    clustered = model.fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
    plain = model.fit()
    assert (clustered.bse[0] > plain.bse[0]) == alike
    fitted = clustered if alike else plain
    low, high = fitted.conf_int()[0]
    result = length_controlled(outcomes, differences, clusters, prior=1e6)
    assert result is not None
    assert result.slope == pytest.approx(fitted.params[1], rel=1e-5)
    assert math.log(result.rate / (1 - result.rate)) == pytest.approx(fitted.params[0], rel=1e-5)
    assert math.log(result.low / (1 - result.low)) == pytest.approx(low, rel=1e-4)
    assert math.log(result.high / (1 - result.high)) == pytest.approx(high, rel=1e-4)


def test_wins_by_length_alone_vanish_at_equal_length():
    outcomes, differences = drawn(2000, 0.0, 2.5, shift=8)
    result = length_controlled(outcomes, differences)
    assert sum(outcomes) / 2000 > 0.65 and result is not None
    assert result.low < 0.5 < result.high and result.slope == pytest.approx(2.5, abs=0.4)


def test_wins_without_length_stay():
    outcomes, differences = drawn(2000, 1.0, 0.0, shift=8)
    result = length_controlled(outcomes, differences)
    assert result is not None and result.low < 1 / (1 + math.exp(-1)) < result.high and result.low > 0.5


@pytest.mark.parametrize("theta", [0.0, 1.0])
def test_its_interval_covers(theta):
    covered = 0
    for seed in range(300):
        result = length_controlled(*drawn(100, theta, 1.0, seed=seed))
        assert result is not None
        covered += result.low <= 1 / (1 + math.exp(-theta)) <= result.high
    assert 0.91 <= covered / 300 <= 0.985  # 95 % with the error of 300 draws


def test_a_clean_sweep_is_finite_and_symmetric():
    differences = [float(i % 7) for i in range(40)]
    won, lost = length_controlled([1.0] * 40, differences), length_controlled([0.0] * 40, differences)
    assert won is not None and lost is not None and 0.8 < won.rate < 1 and won.high <= 1
    assert lost.rate == pytest.approx(1 - won.rate)


@pytest.mark.parametrize(
    ("outcomes", "differences"), [([1.0] * 19, [float(i) for i in range(19)]), ([1.0] * 30, [2.0] * 30)]
)
def test_without_enough_to_fit_there_is_no_number(outcomes, differences):
    assert length_controlled(outcomes, differences) is None


@pytest.mark.parametrize(("outcomes", "differences"), [([1.0], []), ([2.0], [1.0])])
def test_what_does_not_fit_together_is_refused(outcomes, differences):
    with pytest.raises(ScoringError, match="equal length needs outcomes"):
        length_controlled(outcomes, differences)


@pytest.mark.parametrize("count", [20, 50])
def test_the_interval_of_a_clean_sweep_is_no_narrower_than_wilsons(count):
    result = length_controlled([1.0] * count, drawn(count, 0.0, 0.0)[1])
    assert result is not None
    assert result.low <= wilson_interval(count, count)[0] + 0.02 and result.high > 0.985


@pytest.mark.parametrize(("count", "theta"), [(20, 2.5), (50, -2.5)])
def test_its_interval_covers_near_0_and_1(count, theta):
    results = [length_controlled(*drawn(count, theta, 0.0, seed=seed)) for seed in range(300)]
    covered = sum(r is not None and r.low <= 1 / (1 + math.exp(-theta)) <= r.high for r in results)
    assert covered / 300 >= 0.92  # 95 % less the error of 300 draws
