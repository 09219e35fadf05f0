"""Suites: rows are recognised by their columns, measures counted by hand, and what is missing is said."""

import gzip
import json
from pathlib import Path

import pytest

from trimtab.errors import DataError
from trimtab.evals.suite_page import render_suites
from trimtab.evals.suite_results import compare_suites, estimate, result_lines
from trimtab.evals.suites import SAMPLES, VARIANTS, Outcome, Suite, SuiteItem, load_suite
from trimtab.feedback.intervals import wilson_interval

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


def rows(folder: Path, *objects: dict, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in objects))
    return path


def kinds(suite: Suite) -> dict[str, int]:
    result: dict[str, int] = {}
    for item in suite.items:
        result[item.kind] = result.get(item.kind, 0) + 1
    return result


def test_the_suites_that_ship():
    assert {name: kinds(load_suite(name)) for name in SAMPLES} == {
        "honesty": {"choice": 45},
        "sycophancy": {"suggestion": 180},
        "refusals": {"harmful": 20, "benign": 20},
        "arithmetic": {"arithmetic": 40},
        "instructions": {"instructions": 24},
        "neutral": {"text": 16},
    }


def test_rows_are_recognised_by_their_columns(tmp_path):
    table = {"Type": "x", "Category": "y", "Question": "Q?", "Best Answer": "A", "Incorrect Answers": "B; C; B"}
    one = load_suite(f"mine={rows(tmp_path, table)}")
    assert [item.options for item in one.items] == [("A", "B"), ("A", "C")]
    assert len({item.cluster for item in one.items}) == 1
    assert kinds(
        load_suite(f"x={rows(tmp_path, {'prompt': 'p', 'label': 'unsafe'}, {'prompt': 'q', 'label': 'safe'})}")
    ) == {
        "harmful": 1,
        "benign": 1,
    }
    assert kinds(load_suite(f"harmful={rows(tmp_path, {'prompt': 'p', 'source': 's', 'category': None})}")) == {
        "harmful": 1
    }
    behaviour = {
        "behavior": "persona/b",
        "question": "Q",
        "answer_matching_behavior": " Yes",
        "answer_not_matching_behavior": " No",
    }
    assert load_suite(f"x={rows(tmp_path, behaviour)}").items[0].part == "b"
    unknown = {"prompt": "p", "instruction_id_list": ["language:response_language"], "kwargs": [{}]}
    known = {"prompt": "q", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    suite = load_suite(f"x={rows(tmp_path, unknown, known)}")
    assert len(suite.items) == 1 and list(suite.left_out.values()) == [1]


def test_what_cannot_be_used_is_said(tmp_path):
    with pytest.raises(DataError, match="no such suite; name one that ships"):
        load_suite("nothing")
    with pytest.raises(DataError, match="'x' is empty"):
        load_suite(f"x={rows(tmp_path)}")
    with pytest.raises(
        DataError, match=r"1 rows of the suite 'x' cannot be used:\n.*name the suite harmful, benign, judged"
    ):
        load_suite(f"x={rows(tmp_path, {'prompt': 'p'})}")
    with pytest.raises(DataError, match="both answers are the same"):
        load_suite(f"x={rows(tmp_path, {'question': 'p', 'right': 'a', 'wrong': 'a'})}")
    with pytest.raises(DataError, match="no such file"):
        load_suite(f"x={tmp_path / 'missing.jsonl'}")


def test_questions_are_drawn_whole():
    suite = load_suite("sycophancy", most=7, seed=3)
    assert len(suite.items) == 7 * len(VARIANTS) and len({item.cluster for item in suite.items}) == 7
    assert suite == load_suite("sycophancy", most=7, seed=3) != load_suite("sycophancy", most=7, seed=4)


def suggestions(*margins: tuple[float, float, float, float]) -> tuple[Suite, dict[str, Outcome]]:
    """A suite of sycophancy with margins of each question's variants."""
    items, outcomes = [], {}
    for number, of_question in enumerate(margins):
        for variant, margin in zip(VARIANTS, of_question, strict=True):
            key = f"{number}/{variant}"
            items.append(
                SuiteItem(id=key, cluster=str(number), kind="suggestion", prompt="", metadata={"variant": variant})
            )
            outcomes[key] = Outcome(value=margin)
    return Suite(name="s", source="", items=tuple(items)), outcomes


def test_sycophancy_by_hand():
    """Four questions answered rightly, of which three flip; two answered wrongly, of which one flips."""
    flips, stays, learns, deaf = (1.0, -1.0, 1.0, -1.0), (1.0, 1.0, 1.0, 1.0), (-1.0, -1.0, 1.0, -1.0), (-1.0,) * 4
    suite, outcomes = suggestions(flips, flips, flips, stays, learns, deaf)
    results = compare_suites([suite], {"a": {"s": outcomes}, "b": {"s": suggestions(*[stays] * 4, learns, deaf)[1]}})
    by = {row.measure: row for row in results.rows}
    assert by["flips_wrong"].values[0].value == 0.75 and by["flips_right"].values[0].value == 0.5
    assert by["sycophancy"].values[0].value == 0.25 and by["flips_doubt"].values[0].value == 0.75
    assert by["sycophancy"].changes[0].value == -0.75 and by["sycophancy"].items == 6
    assert by["flips_wrong"].values[0].low == wilson_interval(3, 4)[0]
    only_right = suggestions(stays, stays)
    row = compare_suites([only_right[0]], {"a": {"s": only_right[1]}}).rows[0]
    assert row.values[0].value is None and "none wrongly" in row.values[0].reason


def choices(*values: float | None, reason: str = "") -> tuple[Suite, dict[str, Outcome]]:
    items = [SuiteItem(id=str(i), cluster=str(i // 2), kind="choice", prompt="") for i in range(len(values))]
    outcomes = {
        str(i): Outcome(value=value, reason="" if value is not None else reason) for i, value in enumerate(values)
    }
    return Suite(name="c", source="", items=tuple(items)), outcomes


def test_pairs_are_compared_on_what_both_have():
    suite, before = choices(1.0, 1.0, -1.0, -1.0, None, 1.0, reason="too long")
    _, after = choices(1.0, 1.0, 1.0, -1.0, 1.0, None, reason="the judge failed")
    results = compare_suites([suite], {"a": {"c": before}, "b": {"c": after}})
    row = results.rows[0]
    assert [v.value for v in row.values] == [0.6, 0.8] and row.changes[0].value == 0.25 and row.changes[0].n == 4
    assert [note for note in results.notes if note.startswith("PARTIAL")] == [
        "PARTIAL: c: 1 of 6 items of a have no value (too long)",
        "PARTIAL: c: 1 of 6 items of b have no value (the judge failed)",
    ]
    assert "These results are partial" in render_suites(results, created_at="2026-01-01T00:00:00Z", made={})


def test_identical_checkpoints_one_question_and_no_interval_of_width_zero():
    suite, outcomes = choices(1.0, 1.0, 1.0, 1.0)
    results = compare_suites([suite], {"a": {"c": outcomes}, "b": {"c": outcomes}})
    assert "are they the same checkpoint?" in results.notes[0]
    change = results.rows[0].changes[0]
    assert change.low == -wilson_interval(0, 2)[1] == -change.high
    suite, outcomes = choices(1.0, -1.0)
    line = result_lines(compare_suites([suite], {"a": {"c": outcomes}}))[0]
    assert line == "c: True answers: a 50 % (n = 2, one question gives no interval)"


def test_perplexity_by_hand():
    items = tuple(SuiteItem(id=str(i), cluster=str(i), kind="text", prompt="x") for i in range(2))
    suite = Suite(name="t", source="", items=items)
    results = compare_suites(
        [suite],
        {
            name: {"t": {str(i): Outcome(value=v) for i, v in enumerate(values)}}
            for name, values in {"a": (0.0, 2.0), "b": (1.0, 2.0)}.items()
        },
    )
    row = results.rows[0]
    assert row.values[0].value == pytest.approx(2.718281828) and row.changes[0].value == pytest.approx(0.6487212707)
    assert estimate("neutral_text", []).reason == "nothing was measured"


@pytest.mark.skipif(
    not DATA.is_dir(), reason="NOT TESTED: the public data sets of ../shared/data are not on this machine"
)
def test_the_real_files_as_they_are():
    expected = {
        "honesty/truthfulqa.csv.gz": {"choice"},
        "honesty/sycophancy-probes-derived.jsonl.gz": {"suggestion"},
        "safety/xstest-prompts.csv.gz": {"harmful", "benign"},
        "safety/harmful-prompts.jsonl.gz": {"harmful"},
        "behaviour/anthropic-evals-persona36.jsonl.gz": {"behaviour"},
        "sft/ifeval-prompts.jsonl.gz": {"instructions"},
        "sft/gsm8k-test-first600.jsonl.gz": {"arithmetic"},
    }
    for name, kind in expected.items():
        with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
            count = sum(1 for _ in file)
        suite = load_suite(f"{'harmful' if 'harmful' in name else 'x'}={DATA / name}")
        assert kinds(suite).keys() == kind
        assert len(suite.items) + sum(suite.left_out.values()) >= 0.9 * min(count, 180)
