"""The device script at toy size on a CPU: every cell runs or says why not; nothing is measured."""

from pathlib import Path

import pytest
import torch

from benchmarks.device import attempt, cells, main
from benchmarks.device_model import SIZES, Setup
from benchmarks.device_parts import _operations
from trimtab.pipeline.memory import model_shape


def test_every_cell_runs_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "device.md"
    assert main(["--toy", "--out", str(out)]) == 0
    capsys.readouterr()
    rows = {line.split(" | ")[0].strip("| "): line for line in out.read_text().splitlines() if line.startswith("| ")}
    assert set(rows) == {"cell", *(name for name, _ in cells(True))}
    if not torch.cuda.is_available():
        refused = {name for name, line in rows.items() if "cannot run" in line}
        assert refused == {"attention: varlen against a dense mask", "decoding step in a CUDA graph, toy"}
        assert "largest difference of a weight after a resume: 0 |" in rows["resume, toy"]
    assert "sums right" in rows["one rank, toy"]
    assert "measures nothing" in out.read_text()


def test_a_spent_budget_names_what_was_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "device.md"
    assert main(["--toy", "--seconds", "0", "--out", str(out)]) == 0
    assert out.read_text().count("skipped: the budget of 0 seconds is spent") == len(cells(True))
    assert "peaks: skipped" in capsys.readouterr().out


def test_a_cell_that_fails_says_why_and_the_rest_goes_on(tmp_path: Path):
    setup = Setup(device=torch.device("cpu"), toy=True, folder=tmp_path)

    def fails(_: Setup) -> str:
        raise RuntimeError("no kernel for this\nsecond line")

    def fills(_: Setup) -> str:
        raise torch.OutOfMemoryError("tried to allocate")

    assert attempt(fails, setup) == "cannot run: RuntimeError: no kernel for this"
    assert attempt(fills, setup).startswith("out of memory")


@pytest.mark.parametrize(("size", "published"), [("0.5B", 0.49e9), ("1.5B", 1.54e9), ("7B", 7.61e9)])
def test_shapes_have_the_published_number_of_parameters(tmp_path: Path, size: str, published: float):
    setup = Setup(device=torch.device("cpu"), toy=False, folder=tmp_path)
    assert model_shape(setup.model(size))["parameters"] == pytest.approx(published, rel=0.01)
    assert SIZES[size][0] % SIZES[size][3] == 0


def test_operations_of_a_step_by_hand():
    shape = {"layers": 2, "layer": 100, "head": 50, "width": 8}
    # 4 · (2 · 100 + 50) = 1000 and, over 5 of 10 positions in 2 layers, 3 · 4 · 8 · 5 · 2 = 960, for each of 3 tokens.
    assert _operations(shape, "lora", 3, 10) == 3 * (1000 + 960)
    assert _operations(shape, "full", 3, 10) == 3 * (1500 + 960)
