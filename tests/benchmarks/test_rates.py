"""The sweep of learning rates on a tiny model: every stage has its numbers, and a mad rate shows."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.rates import STAGES, main
from trimtab.testing import save_model, sentences, tiny_model
from trimtab.trainers.defaults import RATES


def files(folder: Path) -> dict[str, Path]:
    """Demonstrations and preferences of made-up sentences."""
    questions, better, worse = (
        sentences(30, words=3),
        sentences(30, words=4, start=300),
        sentences(30, words=5, start=600),
    )
    rows = {
        "demonstrations": [{"prompt": a, "completion": b} for a, b in zip(questions, better, strict=True)],
        "preferences": [
            {"prompt": a, "chosen": b, "rejected": c} for a, b, c in zip(questions, better, worse, strict=True)
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: folder / f"{name}.jsonl" for name in rows}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_is_measured(stage: str, tmp_path: Path, capsys):
    model = save_model(tmp_path / "model", tiny_model(width=16, layers=2, context=256))
    data = files(tmp_path)["demonstrations" if stage == "sft" else "preferences"]
    out = tmp_path / "rates.json"
    assert main([str(data), "--stage", stage, "--model", str(model), "--factors", "1", "1000", "--json", str(out)]) == 0
    cells = json.loads(out.read_text())["cells"]
    usual = RATES[STAGES[stage]]
    assert [(c["kind"], c["lr"]) for c in cells] == [
        (kind, pytest.approx(factor * usual[kind])) for kind in ("lora", "full") for factor in (1, 1000)
    ]
    for cell in cells:
        assert cell["updates"] == 3 and cell["error"] is None and math.isfinite(cell["loss"])
        assert (cell["accuracy"] is None) == (stage == "sft")
    if stage != "reward":
        assert all(gentle["plain_kl"] < wild["plain_kl"] for gentle, wild in (cells[:2], cells[2:]))
        assert cells[0]["plain_before"] == pytest.approx(cells[2]["plain_before"], rel=1e-4)
    assert "*" in capsys.readouterr().out  # the default rate is marked


def test_too_few_rows_are_refused(tmp_path: Path, capsys):
    model = save_model(tmp_path / "model", tiny_model(width=16, layers=2, context=256))
    data = files(tmp_path)["demonstrations"]
    assert main([str(data), "--model", str(model), "--limit", "1", "--json", str(tmp_path / "r.json")]) == 3
    assert "give at least 10" in capsys.readouterr().err
