"""What to label next: inclusion probabilities, the arms, the test set, and estimates that are corrected."""

import json
import math
from itertools import combinations

import numpy as np
import pytest

from trimtab.cli.app import run_app
from trimtab.config import parse_config
from trimtab.errors import ConfigError, DataError
from trimtab.feedback.acquisition import (
    AcquisitionConfig,
    ItemScores,
    arm_weights,
    choose_items,
    corrected_share,
    d_optimal_design,
    in_test_set,
    inclusion_probabilities,
    read_scores,
    systematic_sample,
)
from trimtab.records import Comparison, Prompt
from trimtab.records.annotation import Answer, Submission, Task, judgements_of


def items(count: int) -> list[Comparison]:
    return [Comparison.of(Prompt.from_text(f"q{n}"), [f"a{n}", f"b{n}"]) for n in range(count)]


def scores(comparisons: list[Comparison], gaps: np.ndarray) -> list[ItemScores]:
    return [
        ItemScores(id=c.id, scores=tuple((float(g), 0.0) for g in row), features=((float(row[0]), 1.0), (0.0, 0.5)))
        for c, row in zip(comparisons, gaps, strict=True)
    ]


def test_inclusion_probabilities_by_hand():
    assert inclusion_probabilities(np.array([1.0, 1, 2]), 2).tolist() == pytest.approx([0.5, 0.5, 1.0])
    # 8/10 of 2 would be 1.6: it is certain, and the other label goes to the two others
    assert inclusion_probabilities(np.array([1.0, 1, 8]), 2).tolist() == pytest.approx([0.5, 0.5, 1.0])
    with pytest.raises(ConfigError, match="3 labels are to be drawn from 2 items"):
        inclusion_probabilities(np.array([1.0, 0, 1]), 3)


def test_items_are_drawn_with_their_probabilities():
    rng = np.random.default_rng(0)
    wanted = inclusion_probabilities(rng.random(30), 8)
    counts = np.zeros(30)
    for _ in range(3000):
        drawn = systematic_sample(wanted, rng)
        assert len(set(drawn.tolist())) == 8
        counts[drawn] += 1
    assert np.abs(counts / 3000 - wanted).max() < 4 * math.sqrt(0.25 / 3000)


def test_design_is_the_known_one():
    """On a line from −1 to 1, D-optimal designs of slope and intercept have all weight at both ends (Fedorov 1972)."""
    x = np.linspace(-1, 1, 21)
    weights = d_optimal_design(np.stack([np.ones(21), x], 1), np.ones(21), count=10**6, rounds=2000)
    assert weights[[0, -1]] == pytest.approx([0.5, 0.5], abs=0.01)
    rows = np.random.default_rng(0).normal(size=(40, 3))
    design = d_optimal_design(rows, np.ones(40), count=10**9, rounds=5000)
    scaled = rows / np.sqrt((rows**2).mean(0))
    gradient = np.einsum("nd,de,ne->n", scaled, np.linalg.inv(scaled.T @ (design[:, None] * scaled)), scaled)
    assert gradient.max() == pytest.approx(3, abs=0.01)  # Kiefer and Wolfowitz 1960: the maximum is the dimension


def test_arms_prefer_what_they_should():
    gaps = np.array([[3.0, 3.1], [0.1, -0.1], [1.0, -2.0], [2.0, 2.0]])
    assert arm_weights("margin", gaps, count=1).argmax() == 1
    assert arm_weights("variance", gaps, count=1).argmax() == 2
    for arm in ("random", "margin", "variance"):
        assert arm_weights(arm, gaps, count=2).sum() == pytest.approx(1)


def test_test_set_is_random_and_the_same_in_every_round():
    comparisons = items(400)
    gaps = np.random.default_rng(1).normal(size=(400, 2))
    config = AcquisitionConfig(count=100, test=0.25, arms={"random": 0.3, "margin": 0.7})
    drawn = choose_items(comparisons, scores(comparisons, gaps), config, seed=3)
    reserve = {i for i, c in enumerate(comparisons) if in_test_set(c.prompt.id, 0.25, 3)}
    assert 70 < len(reserve) < 130
    tests = [c for c in drawn if c.arm == "test"]
    assert len(drawn) == 100 and len(tests) == 25 and {c.index for c in tests} <= reserve
    assert not reserve & {c.index for c in drawn if c.arm != "test"}
    assert all(c.propensity == 25 / len(reserve) for c in tests)
    again = choose_items(comparisons[::-1], [None] * 400, config.model_copy(update={"arms": {"random": 1.0}}), seed=3)
    assert {399 - c.index for c in again if c.arm == "test"} <= reserve
    close = [abs(gaps[c.index].mean()) for c in drawn if c.arm == "margin"]
    alike = [abs(gaps[c.index].mean()) for c in drawn if c.arm == "random"]
    assert len(close) > 35 and np.mean(close) < 0.5 * np.mean(alike)
    assert min(c.propensity for c in drawn) >= 0.3 * 75 / (400 - len(reserve)) - 1e-9  # everyone has a chance


def test_correction_undoes_the_choice():
    """An arm that looks for close pairs finds ties; the corrected share is that of all pairs."""
    comparisons = items(500)
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=(500, 1))
    tied = np.abs(gaps[:, 0]) < 0.3
    config = AcquisitionConfig(count=120, test=0.0, arms={"random": 0.25, "margin": 0.75})
    known = scores(comparisons, gaps)
    raw, corrected, held = [], [], 0
    for seed in range(60):
        drawn = choose_items(comparisons, known, config, seed=seed)
        outcomes = [float(tied[c.index]) for c in drawn]
        estimate = corrected_share("ties", outcomes, [c.propensity for c in drawn])
        raw.append(np.mean(outcomes))
        corrected.append(estimate.value)
        held += estimate.low <= tied.mean() <= estimate.high
    assert np.mean(raw) > tied.mean() + 0.2
    assert np.mean(corrected) == pytest.approx(tied.mean(), abs=0.03)
    assert held >= 54


def test_correction_by_hand():
    estimate = corrected_share("x", [1.0, 0.0, 1.0], [0.5, 1.0, 0.25])
    assert estimate.value == pytest.approx((2 + 4) / 7)
    with pytest.raises(DataError, match="a propensity is 0; expected above 0"):
        corrected_share("x", [1.0], [0.0])


def test_bad_scores_are_dropped_and_counted(tmp_path):
    comparisons = items(5)
    ids = [c.id for c in comparisons]
    rows = [
        {"id": ids[0], "scores": [[1.0, 2.0]]},
        {"id": ids[1], "scores": [[None, 2.0]]},
        {"id": ids[2], "scores": [[1.0]]},
        {"id": "other", "scores": [[1.0, 2.0]]},
        {"id": ids[0], "scores": [[1.0, 2.0]]},
    ]
    path = tmp_path / "scores.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + f'\n{{"id": "{ids[3]}", "scores": [[NaN, 1.0]]}}\n')
    scored, dropped = read_scores(path, comparisons)
    assert [row is not None for row in scored] == [True, False, False, False, False]
    assert dropped == {
        "a score is NaN or infinite": 2,
        "another number of answers than the item": 1,
        "no such item": 1,
        "the item has scores already": 1,
    }
    path.write_text('{"id": 3}')
    with pytest.raises(DataError, match=r"scores.jsonl:1: .*a row is"):
        read_scores(path, comparisons)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"margin": 1.0}, "the arm random has no share"),
        ({"random": 0.5, "margin": 0.7}, "must be above 0 and add up to 1"),
    ],
)
def test_arms_without_a_chance_for_all_are_refused(arms, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(AcquisitionConfig, {"count": 5, "arms": arms}, where="here")


def test_arms_say_what_they_need():
    comparisons = items(20)
    for arm, rows, message in (
        ("margin", [None] * 20, "needs the scores of a reward model"),
        ("variance", scores(comparisons, np.ones((20, 1))), "two models or more"),
        ("design", [ItemScores(id=c.id, scores=((1.0, 0.0),)) for c in comparisons], "needs features"),
    ):
        config = AcquisitionConfig(count=5, test=0.0, arms={"random": 0.5, arm: 0.5})
        with pytest.raises(ConfigError, match=message):
            choose_items(comparisons, rows, config, seed=0)


def test_propensity_reaches_the_judgement_and_the_queue_the_app(tmp_path, capsys):
    source, queue, project = tmp_path / "items.jsonl", tmp_path / "queue.jsonl", tmp_path / "project"
    tasks = [Task.of(Prompt.from_text(f"q{n}"), [f"a{n}", f"b{n}"]) for n in range(60)]
    source.write_text("".join(t.model_dump_json(exclude_defaults=True) + "\n" for t in tasks))
    rows = [{"id": t.id, "scores": [[0.1 * n, 0.0], [0.1 * n, 0.3]]} for n, t in enumerate(tasks)]
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arms = ["--scores", str(tmp_path / "scores.jsonl"), "--arm", "margin=0.5", "--arm", "random=0.5"]
    assert run_app(["queue", str(source), str(queue), "--count", "10", *arms]) == 0
    assert "10 of 60 items" in capsys.readouterr().out
    drawn = [Task.model_validate_json(line) for line in queue.read_text().splitlines()]
    assert {t.metadata["acquisition"]["arm"] for t in drawn} <= {"test", "random", "margin"}
    submission = Submission(
        id="s", task=drawn[0].id, annotator="a", shown_order=(0, 1), verdict="judged", answers=(Answer(ranks=(0, 1)),)
    )
    [judgement] = judgements_of(drawn[0], submission)
    assert judgement.propensity == drawn[0].metadata["acquisition"]["propensity"]
    assert run_app(["annotate", str(project), "--items", str(queue), "--no-serve"]) == 0
    assert "10 items added" in capsys.readouterr().out
    assert run_app(["queue", str(source), str(queue), "--count", "5", "--arm", "margin"]) == 2
    assert "expected NAME=SHARE" in capsys.readouterr().err


def test_pairs_of_a_set_are_drawn_together_at_most_once():
    wanted = np.full(6, 0.5)
    rng = np.random.default_rng(0)
    seen = {tuple(sorted(systematic_sample(wanted, rng).tolist())) for _ in range(400)}
    assert seen == set(combinations(range(6), 3))  # in random order every subset can be drawn
