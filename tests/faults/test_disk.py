"""A disk that is full or may not be written: said plainly, and what was there before is still there."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from trimtab import files
from trimtab.errors import StorageError
from trimtab.files import write_atomic, write_folder, write_json
from trimtab.models import AdapterConfig, Role, tensors
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.records import Completion, write_records
from trimtab.storage import RunFolder
from trimtab.testing import chat_messages, sentences, tiny_backbone, toy_recipe
from trimtab.trainers import Checkpoints, OptimizerConfig, Session, SftConfig, train_sft

REASONS = [
    (errno.ENOSPC, "the disk is full; free some space and run the same command again, finished work is kept"),
    (errno.EDQUOT, "the disk quota is used up"),
    (errno.EROFS, "the file system is read-only; choose another folder"),
    (errno.EACCES, "no permission to write there; choose another folder"),
    (errno.EIO, "Input/output error"),
]


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Let ``os.NAME`` fail, as the kernel would."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, name, fail)


@pytest.mark.parametrize(("code", "message"), REASONS)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_old_file_stays_whole(tmp_path: Path, monkeypatch, call: str, code: int, message: str):
    path = tmp_path / "notes.json"
    write_json(path, {"kept": True})
    with monkeypatch.context() as patch:
        refuse(patch, call, code)
        with pytest.raises(StorageError, match=message) as error:
            write_json(path, {"kept": False})
        assert str(path) in str(error.value)
        with pytest.raises(StorageError, match=message):
            write_records(path, [Completion(text="new")])
    assert path.read_text() == '{\n  "kept": true\n}\n'
    assert list(tmp_path.iterdir()) == [path]  # nothing half-written beside it


@pytest.mark.parametrize("call", ["fsync", "replace", "fill"])
def test_old_folder_stays_whole(tmp_path: Path, monkeypatch, call: str):
    path = tmp_path / "step-000001"
    write_folder(path, lambda folder: write_atomic(folder / "a", "old"))

    def fill(folder: Path) -> None:
        (folder / "a").write_text("new")
        if call == "fill":
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "fsync":
            refuse(patch, call, errno.ENOSPC)
        if call == "replace":
            real = os.replace
            patch.setattr(files.os, "replace", lambda a, b: refused() if Path(b) == path else real(a, b))

            def refused() -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(StorageError, match="the disk is full"):
            write_folder(path, fill)
    if call != "replace":  # the rename comes after the old one has made room
        assert (path / "a").read_text() == "old"
    assert [p for p in tmp_path.iterdir() if p != path] == []


def train(session: Session) -> dict[str, torch.Tensor]:
    role = Role.trainable(tiny_backbone(layers=1), "sft", AdapterConfig(rank=2), seed=1)
    examples = [role.backbone.chat.conversation(chat_messages("sing", text)) for text in sentences(12)]
    config = SftConfig(batch=4, epochs=3, optimizer=OptimizerConfig(lr=1e-3))
    train_sft(role, examples, config, seed=0, session=session)
    return role.state()


def test_checkpoint_on_a_full_disk_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted, save, saved = train(Session()), tensors.save_file, []

    def fills_up(tensors: Any, path: Path, metadata: Any = None) -> None:
        saved.append(path)
        if len(saved) > 5:  # two files each: the third checkpoint breaks in its second file
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "save_file", fills_up)
        with pytest.raises(StorageError, match=r"cannot be written.*No space left.*run the same command"):
            train(Session(checkpoints=Checkpoints(tmp_path, "print", every=2)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000004"]
    begun: list[int] = []
    rest = Session(checkpoints=Checkpoints(tmp_path, "print", every=2), planned=lambda done, total: begun.append(done))
    result = train(rest)
    assert begun == [4]
    assert all(torch.equal(result[n], wanted[n]) for n in wanted)


def finished(run: RunFolder, stage: str) -> bool:
    status = run.status(stage)
    return status is not None and status.state == "done"


@pytest.mark.parametrize("stage", ["sft", "preferences"])
def test_run_on_a_full_disk_keeps_what_was_finished(tmp_path: Path, monkeypatch, stage: str):
    recipe = toy_recipe(tmp_path, reward=None, align=None, evaluate=None)
    config, runs = load_recipe(recipe), tmp_path / "runs"
    run = RunFolder(runs / "toy")
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if f"stages/{stage}/" in str(target) and not str(target).endswith("status.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", replace)
        with pytest.raises(StorageError, match=rf"stages/{stage}/.*the disk is full"):
            run_recipe(config, recipe, runs=runs, ui=Silent())
    done = [name for name in ("sft", "sample", "label", "preferences") if finished(run, name)]
    assert done == (["sft", "sample", "label"] if stage == "preferences" else [])
    run_recipe(config, recipe, runs=runs, ui=Silent())
    assert all(finished(run, name) for name in ("sft", "sample", "label", "preferences"))


def test_writes_that_really_fail_half_way(tmp_path: Path):
    command = [sys.executable, "-m", "tests.faults.small_files", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="no permission to write there"):
            write_atomic(tmp_path / "a", "x")
        with pytest.raises(StorageError, match="no permission to write there"):
            RunFolder(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)
