"""The judge's benchmark on a random model: what it compares is the same."""

import json
from pathlib import Path

from benchmarks.judging import main

from ..kit import save_model, tiny_model


def test_it_measures_and_the_numbers_agree(tmp_path: Path, capsys):
    model = save_model(tmp_path / "model", tiny_model(layers=2, width=16, context=4096))
    line = ["--model", str(model), "--pairs", "4", "--separate", "2", "--threads", "1", "--words", "6", "--blocks", "2"]
    assert main([*line, "--out", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["pairs"] == 4 and found["separate_questions"] == 4 and found["largest_difference"] < 1e-4
    assert "times as fast" in capsys.readouterr().out
