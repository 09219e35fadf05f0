"""The benchmark of the server, made small."""

import json
from pathlib import Path

import pytest

from benchmarks.serving import main


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_load(tiny: Path, capsys):
    assert main(["--target", str(tiny), "--streams", "2", "--queue", "1", "--tokens", "4"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["streams"]["accepted"], result["full"]["accepted"]) == (2, 3)
    overload = result["overload"]
    assert overload["accepted"] + overload["refused"] == 12 and overload["failed"] == 0 and overload["accepted"] >= 3
