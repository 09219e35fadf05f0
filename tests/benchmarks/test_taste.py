"""The benchmark of tastes: what it reads, and lines that are not as they should be."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.taste import main, read

LINE: dict[str, Any] = {
    "debate": "d", "a1_id": "x", "a1": "Yes, of course.", "a2_id": "y", "a2": "No!",
    "annotations": [{"worker": "w1", "value": "a1"}, {"worker": "w2", "value": "equal"}],
}  # fmt: skip


def file_of(folder: Path, *lines: str) -> str:
    path = folder / "votes.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_votes_of_the_first_debates(tmp_path: Path):
    other = LINE | {"debate": "e", "a1_id": "z"}
    path = file_of(tmp_path, json.dumps(LINE), json.dumps(other))
    votes, phi, owners = read(path, 1)
    assert (votes.outcome.tolist(), votes.annotator.tolist(), owners) == ([0, 1], [0, 1], ["d", "d"])
    assert votes.answers == len(phi) == 2
    assert read(path, 2)[0].answers == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: "),
        (json.dumps({k: v for k, v in LINE.items() if k != "a2"}), ":2: has no a2; needed are debate"),
        (
            json.dumps(LINE | {"annotations": [{"worker": "w", "value": "a3"}]}),
            ":2: annotations is not a list of votes",
        ),
        (json.dumps(LINE | {"annotations": "a1"}), ":2: annotations is not a list of votes"),
    ],
)
def test_a_line_that_is_not_usable_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
):
    path = file_of(tmp_path, json.dumps(LINE), line)
    assert main([path]) == 3
    assert f"{path}{message}" in capsys.readouterr().err


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]):
    assert main(["nowhere.jsonl"]) == 3
    assert "nowhere.jsonl: no such file" in capsys.readouterr().err
