"""The profile of a step on a random model: every phase has its time, its floor and what was done in it."""

from dataclasses import replace
from pathlib import Path

import pytest

import benchmarks.phases
from benchmarks.phases import WORKLOADS, main
from trimtab.testing import save_model, tiny_model


@pytest.mark.slow
def test_each_phase_has_time_floor_and_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    model = save_model(tmp_path / "model", tiny_model(width=16, context=192))
    small = (replace(WORKLOADS[1], batch=2, new_tokens=3, context=192, top_layers=1),)
    monkeypatch.setattr(benchmarks.phases, "WORKLOADS", small)
    page = tmp_path / "profile.md"
    assert main(["--model", str(model), "--repeats", "1", "--threads", "1", "--out", str(page)]) == 0
    text = page.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    rows = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in text.splitlines() if "|" in line
    }
    for phase in ("sample", "score and infer", "update"):
        seconds, operations, moved, floor = map(float, rows[phase][1:5])
        assert 0 < floor < seconds and max(operations, moved) <= floor * 1.01 <= (operations + moved) * 1.02
        assert sum(int(share.rstrip("%")) for share in rows[phase][6:]) == pytest.approx(100, abs=2)
    parts = sum(float(rows[phase][1]) for phase in ("sample", "score and infer", "update"))
    assert float(rows["the step"][1]) == pytest.approx(parts, rel=0.01)
