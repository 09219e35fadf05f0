"""What a reward model is measured beside: baselines, calibration, slices, edits, RewardBench 2."""

import json
import math
import random

import pytest

from trimtab.errors import DataError, ScoringError
from trimtab.evals import EDITS, edit_effects, evaluate_reward_model
from trimtab.evals.baselines import baseline_scores, fit_ridge, surface_features
from trimtab.evals.reward_bench import is_reward_bench, read_reward_bench, reward_bench_scores, ties_score
from trimtab.evals.reward_model import length_correlation
from trimtab.records import Completion, Preference, Prompt


def preference(index, texts, ranks=(0, 1), **metadata):
    return Preference(
        id=f"c{index}",
        prompt=Prompt.from_text(f"question {index}"),
        completions=tuple(Completion(text=text) for text in texts),
        ranks=tuple(ranks),
        metadata=metadata,
    )


def by_word(n: int, seed: int) -> list[Preference]:
    """The answer with "please" is better; lengths say nothing."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        texts = [" ".join(draw.choices("abcdefgh", k=6)) for _ in range(2)]
        rows.append(preference(f"{seed}-{i}", [f"{texts[0]} please", f"{texts[1]} indeed"]))
    return rows


@pytest.mark.parametrize("crossed", [True, False])
def test_words_and_lengths_are_found(crossed):
    train, test = by_word(60, 0), by_word(40, 1)
    scores = baseline_scores(test, train=None if crossed else train)
    result = evaluate_reward_model(test, scores["words"], baselines=scores)
    accuracy = {b.name: b.accuracy.value for b in result.baselines}
    assert result.accuracy.value == accuracy["words"] == 1.0
    assert accuracy["longest"] == accuracy["shortest"] == 0.5  # both words have six letters
    gain = next(b.gain for b in result.baselines if b.name == "longest")
    assert (gain.value, gain.low) == (0.5, 0.5)


def test_surface_features_see_form_and_cross_fitting_does_not_leak():
    rows = [preference(i, [f"item {i}!\n- one\n- two", f"item {i} one two three four"]) for i in range(25)]
    scores = baseline_scores(rows)
    assert all(s[0] > s[1] for s in scores["surface"])
    noise = random.Random(3)
    rows = [preference(i, [f"w{i} x", f"v{i} x"][:: noise.choice([1, -1])]) for i in range(60)]
    scores = baseline_scores(rows)  # a word of its own for each answer teaches nothing about other prompts
    accuracy = evaluate_reward_model(rows, scores["words"]).accuracy.value
    assert accuracy == pytest.approx(0.5, abs=0.2)


def test_surface_features_by_hand():
    features = surface_features("Is 42 ok? Yes.\nYes!")
    assert features[:4] == pytest.approx([math.log(20), math.log(6), math.log(2), math.log(4)])
    # words: Is 42 ok Yes Yes: 12 letters in 5 words, 4 different; 19 characters, 2 digits, 3 capitals; 2 marks, 3 ends
    assert features[4:] == pytest.approx([12 / 5, 4 / 5, 2 / 19, 3 / 19, 2 / 3])


def test_ridge_is_penalised_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="NOT TESTED: scikit-learn is not installed")
    import numpy as np

    rng = np.random.default_rng(0)
    gaps = rng.normal(size=(80, 5))
    target = (rng.random(80) < 1 / (1 + np.exp(-gaps[:, 0]))).astype(float)
    weight = rng.uniform(0.5, 2, 80)
    ours = fit_ridge(gaps, target, weight, penalty=2.0)
    theirs = linear_model.LogisticRegression(C=0.5, fit_intercept=False, tol=1e-8).fit(gaps, target, weight)
    assert ours == pytest.approx(theirs.coef_[0], abs=1e-3)


def test_one_prompt_teaches_nothing():
    row = preference(0, ["a", "bb"])
    assert baseline_scores([row])["words"] == [[0.0, 0.0]]


def test_brier_and_temperature_by_hand():
    # 200 pairs with confidence .9; 150 are right: Brier (3 · .01 + .81)/4; the right temperature gives .75.
    margin = math.log(9)
    rows = [preference(i, ["a", "b"]) for i in range(200)]
    result = evaluate_reward_model(rows, [[margin if i % 4 else 0.0, 0.0 if i % 4 else margin] for i in range(200)])
    assert result.brier == pytest.approx((3 * 0.01 + 0.81) / 4)
    assert result.ece == pytest.approx(0.15)
    assert result.calibrated_ece < 0.1  # a fold has 40 pairs, whose accuracy varies by .07
    assert all(abs(row.confidence - 0.75) < 0.06 for row in result.calibrated)


def test_slices_and_a_key_that_nothing_has():
    rows = [preference(i, ["a", "b"], topic="x" if i < 3 else "y") for i in range(5)]
    result = evaluate_reward_model(rows, [[1.0, 0.0]] * 4 + [[0.0, 1.0]], slice_by="topic")
    assert [(e.name, e.value, e.n) for e in result.slices] == [("x", 1.0, 3), ("y", 0.5, 2)]
    with pytest.raises(ScoringError, match="topic"):
        evaluate_reward_model(rows, [[1.0, 0.0]] * 5, slice_by="colour")


def test_correlation_with_length_is_within_prompts():
    rows = [preference(i, ["a" * (10 * i + 1), "a" * (10 * i + 3), "a" * (10 * i + 2)], (0, 1, 1)) for i in range(6)]
    scores = [[-50.0 * i, -50.0 * i + 2, -50.0 * i + 1] for i in range(6)]  # over all prompts: the shorter the better
    assert length_correlation(rows, scores).value == pytest.approx(1.0)
    assert length_correlation(rows, [[1.0, 1.0, 1.0]] * 6).value is None


# Edits ------------------------------------------------------------------------------------


def test_every_edit_keeps_what_was_said_and_changes_the_text():
    text = "Tea is hot. Ice is cold."
    for edit in EDITS.values():
        changed = edit(text)
        assert changed != text
        assert "Tea is hot." in changed and "Ice is cold." in changed


def test_effects_of_a_model_that_counts_exclamation_marks():
    rows = [preference(i, [f"Good {i}!", f"Bad {i}."]) for i in range(12)]

    def score(preferences):
        return [[float(c.text.count("!")) for c in p.completions] for p in preferences]

    effects = {e.edit: e for e in edit_effects(rows, score(rows), score)}
    # flattery adds one mark to every answer: 1 / σ = 2 deviations; the worse answer catches up but does not overtake
    assert effects["flattery"].raised.value == 1.0
    assert effects["flattery"].change.value == pytest.approx(2.0)
    assert effects["flattery"].overtakes.value == 0.0
    assert effects["padding"].raised.value == 0.5 and effects["padding"].change.value == 0.0
    # the last sentence again: the better answers get another mark
    assert effects["repetition"].raised.value == 0.75


def test_an_answer_that_no_longer_fits_is_left_out_and_counted():
    rows = [preference(i, [f"Good {i}.", f"Bad {i}."]) for i in range(4)]

    def rescore(preferences):
        return [None if n == 0 else [1.0, 5.0] for n, _ in enumerate(preferences)]

    effect = edit_effects(rows, [[1.0, 0.0]] * 4, rescore)[0]
    assert effect.raised.n == 6 and "1 preferences" in effect.change.reason
    assert effect.overtakes.value == 1.0
    nothing = edit_effects(rows, [[1.0, 0.0]] * 4, lambda p: [None] * len(p))[0]
    assert nothing.raised.value is None and "none of 4" in nothing.raised.reason


# RewardBench 2 ----------------------------------------------------------------------------


def bench_file(folder, rows):
    path = folder / "bench.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_a_reward_bench_file_is_read_and_scored(tmp_path):
    rows = [
        {"id": "1", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math"},
        {"id": "2", "prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math"},
        {"id": "3", "prompt": "r", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Focus"},
    ]
    path = bench_file(tmp_path, rows)
    assert is_reward_bench(path)
    preferences = read_reward_bench(path)
    assert preferences[0].ranks == (0, 1, 1, 1)
    # best alone: 1; shared by two: ½; another is better: 0
    table = reward_bench_scores(preferences, [[2, 1, 0, 0], [2, 2, 0, 0], [1, 2, 0, 0]])
    assert (table["Math"].value, table["Focus"].value, table["average"].value) == (0.75, 0.0, 0.375)


def test_ties_by_hand():
    rows = [
        ("ref:1", 1, [3.0, 1.0]),  # gap 2
        ("tied:1", 2, [3.0, 2.5, 0.5]),  # spread ½, gap 2: clear; min(2, 2) > ½
        ("ref:2", 1, [0.0, 1.0]),  # wrong, gap −1
        ("tied:2", 2, [4.0, 3.0, 1.0]),  # spread 1, gap 2: clear, but min(2, −1) < 1
    ]
    bonus = (math.tanh(2 / 0.5 - 1) + math.tanh(-1 / 1 - 1)) / 2
    assert ties_score(rows) == pytest.approx(0.3 * 1 + 0.3 * 0.5 + 0.2 * 1 + 0.2 * 0.5 + 0.01 * bonus)
    with pytest.raises(ScoringError, match=r"ref:N and tied:N"):
        ties_score(rows[:1])


@pytest.mark.parametrize(
    "row", [{"id": "1"}, {"id": "1", "prompt": "p", "chosen": [], "rejected": ["b"], "subset": "s"}]
)
def test_a_broken_row_is_named(tmp_path, row):
    good = {"id": "0", "prompt": "p", "chosen": ["a"], "rejected": ["b"], "subset": "s"}
    with pytest.raises(DataError, match="row 2"):
        read_reward_bench(bench_file(tmp_path, [good, row]))
