"""PRMBench: its rows, its score against counts by hand and another library's F1, and its intervals."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from trimtab.errors import DataError
from trimtab.evals.prm_bench import OVERALL, PrmBenchRow, prm_bench_scores, prm_score, read_prm_bench, step_counts
from trimtab.records import Prompt
from trimtab.records.annotation import StepLabel
from trimtab.records.steps import has_step_columns


def row(**changes: Any) -> dict[str, Any]:
    return {
        "original_question": "How many?",
        "modified_question": "How many apples?",
        "original_process": ["1. Two.", "2. Done."],
        "modified_process": ["1. Two.", "Step 2. Three.", "Done."],
        "modified_steps": [2],
        "error_steps": [2, 3],
        "reason": "",
        "idx": "p1",
        "question": "How many?",
        "classification": "circular",
    } | changes


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_a_row_as_it_is_published(tmp_path):
    bench = read_prm_bench(write(tmp_path / "b.jsonl", row()))
    (solution,) = bench.rows
    assert solution.label.steps == ("Two.", "Three.", "Done.")  # without their numbers
    assert solution.wrong == {1, 2} and solution.label.first_wrong == 1  # the files count from 1
    assert solution.label.prompt.text == "How many apples?" and solution.question == "How many?"
    assert (solution.kind, bench.refused, bench.repeated, bench.beyond) == ("circular", [], 0, 0)


def test_what_is_left_out_is_counted(tmp_path):
    rows = [
        row(),
        row(modified_process=["other"], error_steps=[1]),  # the same class and idx: the first counts
        row(classification="confidence", error_steps=[2, 7, 9]),  # two beyond the last step
        row(classification="multi_solutions", error_steps=[]),
        row(idx="p2", modified_process=["a", " "]),
        row(idx="p3", error_steps=[0]),
        row(idx="p4", error_steps="none"),
        row(idx="p5", modified_process=[]),
        {name: value for name, value in row(idx="p6").items() if name != "error_steps"},
    ]
    bench = read_prm_bench(write(tmp_path / "b.jsonl", *rows))
    assert [r.kind for r in bench.rows] == ["circular", "confidence", "multi_solutions"]
    assert (bench.repeated, bench.beyond) == (1, 2) and bench.rows[1].wrong == {1}
    assert bench.rows[2].label.first_wrong is None
    assert [r.line for r in bench.refused] == [5, 6, 7, 8, 9]
    assert "empty" in bench.refused[0].reason and "from 1" in bench.refused[1].reason
    with pytest.raises(DataError, match="none of 1 rows"):
        read_prm_bench(write(tmp_path / "c.jsonl", row(idx=None)))


def test_columns_tell_the_files_apart():
    assert not has_step_columns(row())
    assert has_step_columns({"problem": "a", "steps": [], "label": 1})
    assert has_step_columns({"prompt": "a", "completions": [], "labels": []})
    assert not has_step_columns({"prompt": "a", "completion": "b", "label": True})
    assert not has_step_columns({"prompt": "a", "chosen": "b", "rejected": "c"})


def test_counts_and_score_by_hand():
    assert step_counts(frozenset({1, 3}), [True, True, False, False]) == (1, 1, 1, 1)
    assert prm_score((1, 1, 1, 1)) == 0.5
    assert prm_score((8, 2, 0, 0)) == pytest.approx((16 / 18) / 2)  # nothing is called wrong
    assert prm_score((0, 3, 2, 0)) == pytest.approx((0 + 4 / 7) / 2)  # nothing right is found
    assert prm_score((0, 0, 0, 4), "multi_solutions") == 0.0


def solutions(count: int, seed: int) -> tuple[list[PrmBenchRow], list[list[bool]]]:
    """Random solutions of three classes on some questions, with random verdicts."""
    draw = random.Random(seed)
    rows, verdicts = [], []
    for n in range(count):
        steps = tuple(f"step {i}" for i in range(draw.randint(2, 6)))
        kind = draw.choice(["redundency", "circular", "multi_solutions"])
        wrong = frozenset() if kind == "multi_solutions" else frozenset(draw.sample(range(len(steps)), 1))
        label = StepLabel(
            id=str(n), prompt=Prompt.from_text(f"q{n}"), steps=steps, first_wrong=min(wrong, default=None)
        )
        rows.append(PrmBenchRow(label=label, wrong=wrong, kind=kind, question=f"q{n % (count // 2)}"))
        verdicts.append([draw.random() < (0.4 if i in wrong else 0.8) for i in range(len(steps))])
    return rows, verdicts


def test_scores_against_another_library():
    rows, verdicts = solutions(60, seed=1)
    scores = prm_bench_scores(rows, verdicts)
    assert list(scores) == [OVERALL, "simplicity", *dict.fromkeys(r.kind for r in rows)]  # other aspects lack classes

    def by_library(kinds: set[str], *, positive_only: bool = False) -> float:
        chosen = [(r, v) for r, v in zip(rows, verdicts, strict=True) if r.kind in kinds]
        truth = [i not in r.wrong for r, v in chosen for i in range(len(v))]
        called = [x for _, v in chosen for x in v]
        positive = f1_score(truth, called, pos_label=True)
        return positive if positive_only else (positive + f1_score(truth, called, pos_label=False)) / 2

    one, two = by_library({"redundency"}), by_library({"circular"})
    assert scores["redundency"].value == pytest.approx(one) and scores["circular"].value == pytest.approx(two)
    assert scores["simplicity"].value == pytest.approx((one + two) / 2)
    assert scores["multi_solutions"].value == pytest.approx(by_library({"multi_solutions"}, positive_only=True))
    assert scores[OVERALL].value == pytest.approx(by_library({"redundency", "circular", "multi_solutions"}))
    assert scores[OVERALL].n == 60 and scores["simplicity"].n == sum(r.kind != "multi_solutions" for r in rows)


def test_intervals_are_those_of_questions():
    """Against the spread of the score over fresh samples of questions."""
    fresh = [prm_bench_scores(*solutions(80, seed=s))[OVERALL] for s in range(40)]
    values = [e.value for e in fresh if e.value is not None]
    widths = [e.high - e.low for e in fresh if e.high is not None and e.low is not None]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(values), rel=0.35)
    rows, verdicts = solutions(20, seed=0)
    twice = prm_bench_scores(rows * 4, verdicts * 4)[OVERALL]  # copies of a question are no new questions
    once = prm_bench_scores(rows, verdicts)[OVERALL]
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high))


def test_verdicts_have_to_fit():
    rows, verdicts = solutions(4, seed=0)
    with pytest.raises(DataError, match="a verdict for each step"):
        prm_bench_scores(rows, verdicts[:3])
    with pytest.raises(DataError, match="0 solutions"):
        prm_bench_scores([], [])
