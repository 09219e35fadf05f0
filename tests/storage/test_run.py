"""Run folders: what counts as done, what is kept, and what a kill leaves behind."""

import hashlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from trimtab.errors import DataError, StorageError
from trimtab.storage import START, MetricsLog, RunFolder, read_json, read_metrics, require_space


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "first")


def finish(run: RunFolder, stage: str, fingerprint: str, text: str = "made", **counts: int) -> Path:
    folder = run.begin(stage, fingerprint)
    (folder / "out.txt").write_text(text)
    run.finish(stage, seconds=2.0, counts=counts, outputs=["out.txt"], memory_gb=1.5)
    return folder


def test_stage_is_done_only_when_its_status_says_so(run: RunFolder):
    assert run.status("sft") is None and not run.is_done("sft", "aaa")
    folder = run.begin("sft", "aaa")
    assert folder == run.path / "stages" / "sft"
    status = run.status("sft")
    assert status is not None and status.state == "running" and not run.is_done("sft", "aaa")
    finish(run, "sft", "aaa", rows=7)
    status = run.status("sft")
    assert status is not None
    assert (status.state, status.counts, status.memory_gb) == ("done", {"rows": 7}, 1.5)
    assert status.outputs == {"out.txt": hashlib.sha256(b"made").hexdigest()}
    assert run.is_done("sft", "aaa") and not run.is_done("sft", "bbb")


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_outputs_must_be_as_they_were_written(run: RunFolder, damage: str):
    folder = finish(run, "sft", "aaa")
    if damage == "gone":
        (folder / "out.txt").unlink()
    else:
        (folder / "out.txt").write_text("mage")
    assert not run.is_done("sft", "aaa")


def test_finishing_clears_the_checkpoints(run: RunFolder):
    folder = run.begin("sft", "aaa")
    (folder / "checkpoints" / "step-000001").mkdir(parents=True)
    finish(run, "sft", "aaa")
    assert not (folder / "checkpoints").exists()


def test_seconds_and_memory_add_up_over_attempts(run: RunFolder):
    run.begin("sft", "aaa")
    run.add_seconds("sft", 3.0, memory_gb=2.5)
    run.add_seconds("never begun", 3.0, memory_gb=9.0)
    run.begin("sft", "aaa")
    finish(run, "sft", "aaa")
    status = run.status("sft")
    assert status is not None and (status.seconds, status.memory_gb) == (5.0, 2.5)
    assert run.peak_memory() == 2.5


def test_continuing_keeps_what_is_there(run: RunFolder):
    folder = run.begin("sft", "aaa")
    (folder / "half").write_text("x")
    assert run.begin("sft", "aaa") == folder
    assert (folder / "half").exists()


def test_other_settings_set_the_old_result_aside_and_take_it_back(run: RunFolder):
    a, b = "a" * 64, "b" * 64
    finish(run, "reward", a, "from a")
    folder = run.begin("reward", b)
    assert list(folder.iterdir()) == [folder / "status.json"]
    assert (run.path / "superseded" / ("reward-" + "a" * 12) / "out.txt").read_text() == "from a"
    finish(run, "reward", b, "from b")
    assert (run.begin("reward", a) / "out.txt").read_text() == "from a"
    assert run.is_done("reward", a)
    assert (run.path / "superseded" / ("reward-" + "b" * 12) / "out.txt").read_text() == "from b"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"stage": "sft"}', '{"other": 1}', "\x00\x00"])
def test_damaged_status_is_not_done_and_nothing_is_deleted(run: RunFolder, content: str):
    folder = finish(run, "sft", "aaa")
    (folder / "status.json").write_text(content)
    assert run.status("sft") is None and not run.is_done("sft", "aaa")
    run.begin("sft", "aaa")
    assert (run.path / "superseded" / "sft-unknown" / "out.txt").read_text() == "made"
    finish(run, "sft", "aaa")
    assert run.is_done("sft", "aaa")


def test_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        RunFolder(tmp_path / "file" / "run")


def test_one_process_at_a_time(run: RunFolder):
    with run.lock():
        with pytest.raises(StorageError, match=rf"another process \(pid {os.getpid()}\) is working on this run"):
            with RunFolder(run.path).lock():
                pass
        with RunFolder(run.path.with_name("second")).lock():
            pass
    with pytest.raises(KeyError), run.lock():
        raise KeyError  # however it ends
    with run.lock():
        pass


# Metrics ------------------------------------------------------------------------------------


def lines(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "time"} for row in read_metrics(folder / "metrics.jsonl")]


def write(folder: Path, done: int, steps: range) -> None:
    log = MetricsLog(folder, done)
    for step in steps:
        log({"step": step, "loss": step / 10})
    log.close()


def test_metrics_are_on_disk_at_once(tmp_path: Path):
    log = MetricsLog(tmp_path, 0)
    log({"step": 1, "loss": 0.5})
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}]
    log.close()


def test_steps_after_the_checkpoint_are_written_again(tmp_path: Path):
    write(tmp_path, 0, range(1, 8))
    write(tmp_path, 4, range(5, 9))
    assert [row["step"] for row in lines(tmp_path)] == list(range(1, 9))


def test_line_cut_by_a_kill_is_left_out_and_removed(tmp_path: Path):
    write(tmp_path, 0, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"time": 1.0, "ste')
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3]
    write(tmp_path, 3, range(4, 5))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_no_metrics_yet(tmp_path: Path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


# Reading and room ---------------------------------------------------------------------------


def test_json_that_is_missing_or_damaged(tmp_path: Path):
    with pytest.raises(DataError, match="run the stage that writes it first"):
        read_json(tmp_path / "reward.json")
    (tmp_path / "reward.json").write_text('{"mean": ')
    with pytest.raises(DataError, match=r"damaged JSON.*delete its folder and run again"):
        read_json(tmp_path / "reward.json")


def test_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 150_000_000))
    require_space(tmp_path, 0.1)
    with pytest.raises(StorageError, match=r"0\.15 GB free, about 0\.20 GB needed"):
        require_space(tmp_path, 0.2)


def begun(round_folder: RunFolder) -> None:
    """Give a round its recipe."""
    round_folder.path.mkdir(parents=True, exist_ok=True)
    (round_folder.path / "config.yaml").write_text("name: demo\n")


def test_a_later_round_is_a_folder_of_the_run(run: RunFolder, monkeypatch):
    assert run.number == 1 and run.first is run and run.rounds() == [run] and run.place == ""
    third = run.round(3)
    assert third.path == run.path / "rounds" / "3" and third.number == 3 and third.place == "rounds/3/"
    assert third.first.path == run.path and [r.number for r in third.earlier()] == [1, 2]
    begun(third)
    run.round(2).path.mkdir()
    assert [r.number for r in run.rounds()] == [1], "round 2 has no recipe: it was not begun"
    begun(run.round(2))
    assert [r.number for r in third.rounds()] == [1, 2, 3]
    with third.lock(), pytest.raises(StorageError, match="another process"), RunFolder(run.path).lock():
        pass
    monkeypatch.chdir(third.path)
    assert RunFolder(Path("."), create=False).number == 3
    assert RunFolder(Path("."), create=False).first.path.resolve() == run.path.resolve()


def test_the_newest_round_is_made_from_those_before(run: RunFolder):
    def aligned(round_folder: RunFolder, fingerprint: str, start: str | None) -> None:
        begun(round_folder)
        folder = RunFolder(round_folder.path).begin("align", fingerprint, {} if start is None else {START: start})
        (folder / "out.txt").write_text("made")
        round_folder.finish("align", seconds=1.0, counts={}, outputs=["out.txt"], memory_gb=1.0)

    assert run.newest().number == 1
    aligned(run, "aaa", None)
    aligned(run.round(2), "bbb", "aaa")
    aligned(run.round(3), "ccc", "other")
    assert run.newest().number == 2, "round 3 started from another round 2"
    run.round(3).begin("align", "ddd", {START: "bbb"})
    assert run.newest().number == 2, "round 3 is not finished"
    aligned(run.round(3), "ddd", "bbb")
    assert run.newest().number == run.round(2).newest().number == 3
    aligned(run, "eee", None)
    assert run.newest().number == 1, "round 1 was made again"
