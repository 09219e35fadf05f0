"""How many more labels: planted curves are recovered, predictions are held back, and gains of arms."""

import json

import numpy as np
import pytest

from trimtab.cli.app import run_app
from trimtab.errors import DataError
from trimtab.feedback.learning_curve import LearningCurve, doubling_sizes, gain_over_random, predict_gain
from trimtab.records import Preference, Prompt, write_records

SIZES = doubling_sizes(1600)
PLANTED = {
    "constant": lambda n: 0.7 + 0 * n,
    "log-linear": lambda n: 0.5 + 0.03 * np.log(n),
    "power law": lambda n: 0.8 - 0.8 * n**-0.4,
}


def planted(law, seed, *, spread=0.02):
    sizes = np.array(SIZES, dtype=float)
    noise = np.random.default_rng(seed).normal(0, spread, (len(SIZES), 10)) * (400 / sizes[:, None]) ** 0.25
    return LearningCurve(sizes=SIZES, values=PLANTED[law](sizes)[:, None] + noise, shared=0.0)


@pytest.mark.parametrize("law", PLANTED)
def test_planted_curve_is_recovered(law):
    truth = PLANTED[law](4.0 * SIZES[-1]) - PLANTED[law](1.0 * SIZES[-1])
    outlook = predict_gain(planted(law, 1, spread=0.005))
    assert outlook.shown and max(outlook.weights, key=outlook.weights.get) == law
    assert outlook.gain.value == pytest.approx(truth, abs=0.006) and outlook.gain.low <= truth <= outlook.gain.high
    assert outlook.enough == (law == "constant")
    assert outlook.line().startswith("more will not help" if law == "constant" else "4 × the labels: gain +")


@pytest.mark.slow
@pytest.mark.parametrize("law", PLANTED)
def test_coverage(law):
    truth, target = PLANTED[law](4.0 * SIZES[-1]) - PLANTED[law](1.0 * SIZES[-1]), PLANTED[law](4.0 * SIZES[-1])
    outlooks = [predict_gain(planted(law, seed), seed=seed) for seed in range(200)]
    assert np.mean([o.gain.low <= truth <= o.gain.high for o in outlooks]) >= 0.88
    assert np.mean([o.accuracy.low <= target <= o.accuracy.high for o in outlooks]) >= 0.88
    assert np.mean([o.shown for o in outlooks]) >= 0.9


def test_nothing_is_predicted_where_the_last_doubling_was_not():
    """A model that begins to learn at the last size only: half of the labels said that it never would."""
    values = np.full((6, 10), 0.5) + np.random.default_rng(0).normal(0, 0.005, (6, 10))
    values[-1] += 0.2
    outlook = predict_gain(LearningCurve(sizes=SIZES, values=values))
    assert not outlook.shown and not outlook.enough and outlook.line().startswith("no prediction")


def test_shared_labels_widen_the_interval():
    curve = planted("log-linear", 0)
    apart = predict_gain(curve).gain
    together = predict_gain(LearningCurve(sizes=curve.sizes, values=curve.values, shared=0.25)).gain
    assert together.high - together.low > 1.2 * (apart.high - apart.low)


def test_bad_curves():
    good = planted("constant", 0)
    with pytest.raises(DataError, match="at most 4 times"):
        predict_gain(good, factor=5)
    with pytest.raises(DataError, match="6 values of the learning curve are NaN"):
        values = good.values.copy()
        values[:, 0] = np.nan
        LearningCurve(sizes=SIZES, values=values)
    with pytest.raises(DataError, match="ascending"):
        LearningCurve(sizes=SIZES[::-1], values=good.values)
    with pytest.raises(DataError, match="too few for a learning curve"):
        doubling_sizes(40)


def test_gain_of_an_arm_by_hand():
    random = [[0.6, 0.7], [0.6, 0.6], [0.5, 0.7]]
    arm = [[0.61, 0.72], [0.62, 0.64], [0.53, 0.76]]
    gain = gain_over_random(arm, random, [100, 200])
    assert gain.value == pytest.approx(0.02)  # .01, .02 and .03 per 100 labels
    assert (gain.low, gain.high) == pytest.approx(
        (0.02 - 4.3027 * 0.01 / 3**0.5, 0.02 + 4.3027 * 0.01 / 3**0.5), rel=1e-4
    )
    with pytest.raises(DataError, match="three repetitions"):
        gain_over_random(arm[:2], random[:2], [100, 200])


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trimtab.evals.baselines.PENALTIES", (1.0,))  # not what is tested here
    rng, rows = np.random.default_rng(0), []
    for n in range(90):
        words = [" ".join(rng.choice(["tea", "milk", "salt", "soup"], 4)) for _ in range(2)]
        tea = [w.count("tea") for w in words]
        if tea[0] != tea[1]:
            better, worse = words if tea[0] > tea[1] else words[::-1]
            rows.append(Preference.pair(Prompt.from_text(f"q{n}"), better, worse))
    write_records(tmp_path / "preferences.jsonl", rows * 2)
    assert run_app(["curve", str(tmp_path / "preferences.jsonl")]) == 0
    assert "labels: accuracy" in capsys.readouterr().out
    (tmp_path / "curve.json").write_text(json.dumps({"sizes": SIZES, "values": planted("constant", 0).values.tolist()}))
    assert run_app(["curve", "--own", str(tmp_path / "curve.json")]) == 0
    assert "more will not help" in capsys.readouterr().out
    (tmp_path / "curve.json").write_text("{}")
    assert run_app(["curve", "--own", str(tmp_path / "curve.json")]) == DataError.exit_code
    assert "not a learning curve" in capsys.readouterr().err
