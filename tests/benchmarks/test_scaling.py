"""Cost against size: what grows, and what the table makes of it."""

import json
from dataclasses import replace

import pytest

from benchmarks import scaling
from benchmarks.scaling import AXES, Point, main, markdown, measure, points, rows


def test_every_axis_has_one_two_four_and_eight_times():
    outcome = points(("rloo",), {})
    assert [(axis, times) for _, axis, times, _ in outcome] == [
        (None, 1),
        *((axis, times) for axis in ("tokens", "answers", "vocabulary") for times in (2, 4, 8)),
    ]
    start = outcome[0][3]
    grown = {(axis, times): p for _, axis, times, p in outcome}
    assert grown["tokens", 8].tokens == 8 * start.tokens and grown["tokens", 8].vocabulary == start.vocabulary
    assert {axis for axes in AXES.values() for axis in axes} == {"tokens", "answers", "vocabulary"}


SMALL = Point(step="sft", prompts=2, tokens=8, vocabulary=300, layers=2, width=16)


@pytest.mark.parametrize("step", AXES)
def test_a_step_of_twice_the_tokens_passes_twice_the_tokens_through_the_model(step, monkeypatch):
    """What is timed is the work that the column names, counted at the final norm, which every pass goes through."""
    passed: list[int] = []
    backbone = scaling._backbone

    def counting(point):
        made = backbone(point)
        made.model.model.norm.register_forward_pre_hook(lambda module, states: passed.append(states[0][..., 0].numel()))
        return made

    monkeypatch.setattr(scaling, "_backbone", counting)
    counts = []
    for tokens in (16, 32):
        passed.clear()
        result = measure(replace(SMALL, step=step, tokens=tokens), 1)
        assert len(result["seconds"]) == 1 and result["median"] == result["seconds"][0]
        counts.append(sum(passed))
    assert counts[0] > 0 and counts[1] / counts[0] == pytest.approx(2, rel=0.15)


def result(axis: str | None, times: int, seconds: float, mib: float) -> dict:
    return {"step": "sft", "axis": axis, "times": times, "median": seconds, "step_mib": mib}


def test_power_is_one_where_cost_is_linear():
    grown = [result("tokens", t, 0.5 * t, 100.0) for t in (2, 4, 8)]
    report = {"results": [result(None, 1, 0.5, 100.0), *grown]}
    assert rows(report) == [
        ("sft", "tokens", "0.50", "1.00", "2.00", "4.00", "1.00", "100", "100", "100", "100", "0.00")
    ]
    report["results"][-1] = {"step": "sft", "axis": "tokens", "times": 8, "error": "exit code 1: no"}
    assert rows(report)[0][5:7] == ("failed", "–")


@pytest.mark.slow
def test_command_line_measures_apart_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.scaling.TIMES", (1, 2))
    monkeypatch.setitem(AXES, "sft", ("tokens",))
    out, page = tmp_path / "scaling.json", tmp_path / "scaling.md"
    line = ["--only", "sft", "--repeats", "1", "--threads", "1", "--width", "16"]
    assert main([*line, "--json", str(out), "--out", str(page)]) == 0
    report = json.loads(out.read_text())
    assert [(r["axis"], r["times"]) for r in report["results"]] == [(None, 1), ("tokens", 2)]
    assert all(r["loaded_mib"] > 100 for r in report["results"])
    assert "python -m benchmarks.scaling --only sft" in page.read_text() and markdown(report) == page.read_text()
    assert "tokens" in capsys.readouterr().out
