"""A journal that is killed, shared, damaged."""

import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.errors import DataError, StorageError
from trimtab.storage import Journal


def test_what_was_written_is_there_again(tmp_path: Path):
    with Journal(tmp_path / "a" / "j.jsonl") as journal:
        journal["x"] = {"text": "one\u2028two"}
        journal.update({"y": {"n": 1}, "x": {"text": "other"}})
        assert len(journal) == 2 and journal["x"] == {"text": "one\u2028two"}  # the first stays
    with Journal(tmp_path / "a" / "j.jsonl") as journal:
        assert dict(journal) == {"x": {"text": "one\u2028two"}, "y": {"n": 1}}
        with pytest.raises(TypeError):
            del journal["x"]


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_cut_by_a_kill_goes_and_the_next_one_is_whole(tmp_path: Path, cut: int):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal["x"], journal["y"] = {"n": 1}, {"n": 2}
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path) as journal:
        assert dict(journal) == {"x": {"n": 1}}
        journal["z"] = {"n": 3}
    with Journal(path) as journal:
        assert dict(journal) == {"x": {"n": 1}, "z": {"n": 3}}


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"key": "x", "n": 1}\nnonsense\n{"key": "y", "n": 2}\n')
    with pytest.raises(DataError, match=r"j\.jsonl:2: damaged line"):
        Journal(path)


def test_two_processes_cannot_write_one(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    code = (
        "import sys; from pathlib import Path; from trimtab.storage.journal import Journal; Journal(Path(sys.argv[1]))"
    )
    with Journal(path):
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode and "another process is writing it" in done.stderr
    with pytest.raises(StorageError), Journal(path), Journal(path):
        pass


def test_kill_in_the_middle_of_writes(tmp_path: Path):
    """The child kills itself after the 30th acknowledged write; all thirty are there, none twice."""
    path = tmp_path / "j.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; from trimtab.storage.journal import Journal\n"
        "j = Journal(Path(sys.argv[1]))\n"
        "for n in range(100):\n"
        "    j[str(n)] = {'n': n}\n"
        "    if n == 29: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    with Journal(path) as journal:
        assert list(journal) == [str(n) for n in range(30)]
