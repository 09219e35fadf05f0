"""The annotation benchmark, made small: nothing acknowledged is lost, nothing is given out twice."""

import json
from typing import Any

import pytest

pytest.importorskip("psutil")
from benchmarks.annotation import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--people", "4", "--overlap", "2", "--pause", "0.05"]) == 0
    return json.loads(capsys.readouterr().out)


def test_load(capsys: pytest.CaptureFixture[str]):
    result = run(capsys, "load", "--items", "60", "--judged", "40", "--seconds", "60")
    assert result["acknowledged"] == 60 * 2 - 40  # to the end, and not one more
    assert (result["missing"], result["twice"], result["over_overlap"]) == (0, 0, 0)


def test_killed_and_started_again(capsys: pytest.CaptureFixture[str]):
    result = run(capsys, "kill", "--items", "4000", "--kills", "3", "--seconds", "120")
    assert result["kills"] == 3
    assert result["acknowledged"] > 0
    assert (result["missing"], result["twice"], result["over_overlap"]) == (0, 0, 0)
