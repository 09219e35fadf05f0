import math
import random

import pytest

from trimtab.errors import ScoringError
from trimtab.evals import evaluate_reward_model
from trimtab.feedback import wilson_interval
from trimtab.records import Completion, Preference, Prompt


def preference(index, texts, ranks):
    return Preference(
        id=f"c{index}",
        prompt=Prompt.from_text(f"question {index}"),
        completions=tuple(Completion(text=text) for text in texts),
        ranks=tuple(ranks),
    )


def test_all_strict_pairs_by_hand():
    # Ranking a > b = c: strict pairs (a, b) and (a, c). Scores rank a over b, tie a with c.
    # Lengths 3, 1, 5: the longest-answer rule is right on (a, b), wrong on (a, c).
    result = evaluate_reward_model([preference(0, ["aaa", "b", "ccccc"], (0, 1, 1))], [[1.0, 0.0, 1.0]])
    assert (result.pairs, result.prompts) == (2, 1)
    assert result.accuracy.value == 0.75
    assert result.longest.value == 0.5
    assert result.gain.value == 0.25


def test_calibration_by_hand():
    # Both pairs have confidence 3/4 (score difference ln 3); one is right, one wrong.
    pairs = [preference(0, ["a", "b"], (0, 1)), preference(1, ["a", "b"], (1, 0))]
    result = evaluate_reward_model(pairs, [[math.log(3), 0.0]] * 2)
    assert result.ece == pytest.approx(0.25)
    assert result.log_loss == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    (row,) = result.calibration
    assert (row.n, row.accuracy, row.confidence) == (2, 0.5, pytest.approx(0.75))
    assert row.low <= 0.75 <= row.high
    assert (row.accuracy_low, row.accuracy_high) == pytest.approx(wilson_interval(1, 2))


def test_log_loss_is_bradley_terry():
    result = evaluate_reward_model([preference(0, ["a", "b"], (0, 1))], [[1.2, 0.4]])
    assert result.log_loss == pytest.approx(0.371100666, abs=1e-9)  # golden of the algorithm notes


def test_extreme_scores_stay_finite():
    result = evaluate_reward_model([preference(0, ["a", "b"], (0, 1))], [[-1e6, 1e6]])
    assert result.log_loss == 2e6
    assert result.ece == 1.0


def test_planted_calibration():
    draw = random.Random(0)
    pairs, honest, boastful = [], [], []
    for index in range(3000):
        r = [draw.gauss(0, 1), draw.gauss(0, 1)]
        first = draw.random() < 1 / (1 + math.exp(r[1] - r[0]))
        pairs.append(preference(index, ["x", "x"], (0, 1) if first else (1, 0)))
        honest.append(r)
        boastful.append([4 * v for v in r])
    true, false = evaluate_reward_model(pairs, honest), evaluate_reward_model(pairs, boastful)
    assert true.ece < 0.03
    assert false.ece > 0.15
    assert true.accuracy == false.accuracy
    assert true.log_loss < math.log(2) < false.log_loss
    assert sum(row.n for row in true.calibration) == 3000
    assert true.longest.value == 0.5  # equal lengths are ties
    inside = [row.accuracy_low <= row.confidence <= row.accuracy_high for row in true.calibration]
    assert sum(inside) >= len(inside) - 1


def test_interval_counts_prompts():
    # One prompt asked forty times is one prompt's worth of evidence.
    repeated = [preference(index % 4, ["a", "bb"], (0, 1)) for index in range(40)]
    scores = [[1.0, 0.0] if index % 4 else [0.0, 1.0] for index in range(40)]
    result = evaluate_reward_model(repeated, scores)
    assert (result.accuracy.low, result.accuracy.high) == pytest.approx(wilson_interval(3, 4))
    assert result.prompts == 4


@pytest.mark.parametrize(
    ("scores", "message"),
    [([], "scores for 0"), ([[1.0]], "expected 2 finite"), ([[1.0, math.inf]], "expected 2 finite")],
)
def test_refuses_scores(scores, message):
    with pytest.raises(ScoringError, match=message):
        evaluate_reward_model([preference(0, ["a", "b"], (0, 1))], scores)


def test_refuses_ties_only():
    with pytest.raises(ScoringError, match="strict pair"):
        evaluate_reward_model([preference(0, ["a", "b"], (0, 0))], [[1.0, 2.0]])
