"""The folder of one run: its stages, their fingerprints and status, metrics, and superseded results.

::

    runs/NAME/
      config.yaml                 the resolved configuration
      stages/STAGE/               outputs of a stage
        config.yaml               the resolved configuration it was last run with
        status.json               fingerprint, running | done, seconds, counts, SHA-256 of each output
        checkpoints/ samples/     while it trains
        metrics.jsonl             one line per step
      superseded/STAGE-FINGERPRINT/   a stage whose settings or inputs changed since; restored if they return
      replies/                    replies of judges and critics, by question; kept across all changes
      rounds/2/                   the second round, laid out like the run; sft and revise are the run's
      recipe.json                 where the recipe is, for commands that take the run's folder
      report.html, report.json    the page of the newest round

A stage is done only when its status file says so, and that file is written last.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from trimtab.errors import DataError, StorageError
from trimtab.files import sha256_file, storage_errors, write_atomic, write_json

T = TypeVar("T")

ROUNDS = "rounds"
"""Folder of the rounds after the first."""

REPLACE = "delete it and run again what writes it"
"""Next step to report if a file is unusable and its stage lists it among its outputs."""

START = "start"
"""Key in ``needs`` of a later round's stages: the fingerprint of the policy that the round starts from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Status of a stage."""

    stage: str
    """Name of the stage."""
    fingerprint: str
    """Fingerprint of the settings, inputs and code it was made with."""
    state: str
    """``running``: begun but not finished; ``done``: finished."""
    seconds: float = 0.0
    """Time spent in it, over all attempts."""
    counts: dict[str, Any] | None = None
    """Counts that the stage reports: rows, pairs, drops …"""
    outputs: dict[str, str] | None = None
    """SHA-256 of each output file."""
    memory_gb: float = 0.0
    """Largest resident memory of the process when it ended, over all attempts, in 10⁹ bytes."""
    needs: dict[str, str] | None = None
    """Fingerprints of the stages it was made from; None: an older version did not record them."""


class RunFolder:
    """Access to the folder of one run, or of one of its later rounds.

    Args:
        path: ``runs/NAME``, or ``runs/NAME/rounds/2``.
        create: True: create the folder if it is missing.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        if create:
            with storage_errors(path):
                path.mkdir(parents=True, exist_ok=True)

    # Rounds -------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """Number of the round; the run itself is round 1."""
        path = self.path.resolve()
        return int(path.name) if path.parent.name == ROUNDS and path.name.isdigit() else 1

    @property
    def first(self) -> "RunFolder":
        """The run, which is also its first round."""
        return self if self.number == 1 else RunFolder(Path(os.path.normpath(self.path / "../..")), create=False)

    def round(self, number: int) -> "RunFolder":
        """The folder of a round, which need not exist."""
        first = self.first
        return first if number == 1 else RunFolder(first.path / ROUNDS / str(number), create=False)

    def earlier(self) -> list["RunFolder"]:
        """The rounds before this one, oldest first."""
        return [self.round(number) for number in range(1, self.number)]

    def rounds(self) -> list["RunFolder"]:
        """All rounds that have been begun, oldest first, up to the first number that is missing."""
        folders = [self.first]
        while ((following := self.round(len(folders) + 1)).path / "config.yaml").is_file():
            folders.append(following)
        return folders

    def newest(self) -> "RunFolder":
        """The last round with a finished policy made from the current policy of the round before; else the run."""
        newest = self.first
        for later in self.rounds()[1:]:
            previous, status = newest.status("align"), later.status("align")
            if previous is None or status is None or not previous.state == status.state == "done":
                break
            if (status.needs or {}).get(START) != previous.fingerprint:
                break
            newest = later
        return newest

    # Work ---------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run and all its rounds for this process; the lock ends with the process, even if it is killed.

        Raises:
            StorageError: another process is working on this run.
        """
        path = self.first.path / ".lock"
        with storage_errors(path):
            file = open(path, "a+", encoding="utf-8")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise StorageError(
                    f"{self.path}: another process (pid {file.read().strip() or 'unknown'}) is working on this run; "
                    "wait for it, stop it, or use another name (--set name=...)"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def stage(self, name: str) -> Path:
        """Folder of a stage."""
        return self.path / "stages" / name

    def status(self, name: str) -> Status | None:
        """The status in the stage's status file; None if there is none."""
        return _read_status(self.stage(name))

    def is_finished(self, name: str) -> bool:
        """True if the stage's status file says that it was finished, with whatever settings."""
        status = self.status(name)
        return status is not None and status.state == "done"

    def is_done(self, name: str, fingerprint: str) -> bool:
        """True if the stage was finished with this fingerprint and its outputs have not changed since."""
        status = self.status(name)
        if status is None or status.state != "done" or status.fingerprint != fingerprint:
            return False
        outputs = {self.stage(name) / file: digest for file, digest in (status.outputs or {}).items()}
        return all(file.is_file() and sha256_file(file) == digest for file, digest in outputs.items())

    @property
    def place(self) -> str:
        """Prefix of file names inside the run's folder: empty, or ``rounds/2/``."""
        return "" if self.number == 1 else f"{ROUNDS}/{self.number}/"

    def made_from(self, name: str, earlier: str) -> bool:
        """True if stage ``name`` was made from the current result of ``earlier``, or if that was not recorded."""
        later, first = self.status(name), self.status(earlier)
        if later is None or first is None or later.needs is None:
            return True
        return later.needs.get(earlier, first.fingerprint) == first.fingerprint

    def begin(self, name: str, fingerprint: str, needs: Mapping[str, str] | None = None) -> Path:
        """Prepare the folder to run a stage, or to resume it.

        A result with another fingerprint moves to ``superseded/``; an earlier result with this fingerprint moves back.
        ``needs``: fingerprints of the stages it is made from.
        """
        folder = self.stage(name)
        with storage_errors(folder):
            status = self.status(name)
            if folder.exists() and (status is None or status.fingerprint != fingerprint):
                earlier_fingerprint = "unknown" if status is None else status.fingerprint[:12]
                self._move(folder, self.path / "superseded" / f"{name}-{earlier_fingerprint}")
            earlier = self.path / "superseded" / f"{name}-{fingerprint[:12]}"
            if not folder.exists() and earlier.exists():
                self._move(earlier, folder)
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.rglob(".*.tmp"):  # half-written by a process that was killed
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if self.status(name) is None:
            stored_needs = None if needs is None else dict(needs)
            self._write(Status(stage=name, fingerprint=fingerprint, state="running", needs=stored_needs))
        return folder

    def add_seconds(self, name: str, seconds: float, *, memory_gb: float) -> None:
        """Count time and memory of an attempt that did not finish."""
        status = self.status(name)
        if status is not None:
            peak = max(status.memory_gb, memory_gb)
            self._write(replace(status, seconds=status.seconds + seconds, memory_gb=peak))

    def peak_memory(self) -> float | None:
        """Largest memory of any finished stage, in 10⁹ bytes."""
        peaks = [s.memory_gb for s in map(_read_status, (self.path / "stages").glob("*")) if s is not None]
        return max(peaks, default=0.0) or None

    def finish(
        self, name: str, *, seconds: float, counts: Mapping[str, Any], outputs: Iterable[str], memory_gb: float
    ) -> None:
        """Mark a stage done, which is the last thing written for it, and delete its checkpoints."""
        folder = self.stage(name)
        status = self.status(name)
        assert status is not None
        hashes = {file: sha256_file(folder / file) for file in outputs}
        total = status.seconds + seconds
        peak = max(status.memory_gb, memory_gb)
        done = replace(status, state="done", seconds=total, counts=dict(counts), outputs=hashes, memory_gb=peak)
        self._write(done)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def _write(self, status: Status) -> None:
        write_json(self.stage(status.stage) / "status.json", {f.name: getattr(status, f.name) for f in fields(status)})

    def _move(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        os.replace(source, target)


class MetricsLog:
    """Steps of a stage as JSON lines, flushed at once.

    Args:
        folder: the stage's folder.
        done: number of finished steps; lines of later steps, which a killed process wrote after its last checkpoint,
            are removed.
        name: name of the file.
    """

    def __init__(self, folder: Path, done: int, name: str = "metrics.jsonl") -> None:
        self.path = folder / name
        if self.path.exists():
            rows = [row for row in read_metrics(self.path) if row.get("step", 0) <= done]
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        with storage_errors(self.path):
            self._file = open(self.path, "a", encoding="utf-8")

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Write one line."""
        row = {"time": round(time.time(), 3), **metrics}
        with storage_errors(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        with storage_errors(self.path):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def read_json(path: Path, *, next_step: str | None = None) -> Any:
    """A JSON file that a stage wrote.

    ``next_step``: how to create the file again; None: run the stage that lists it among its outputs.

    Raises:
        DataError: the file is missing or damaged; the message gives the next step.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        step = next_step or "run the stage that writes it first"
        raise DataError(f"{path}: cannot be read ({error.strerror}); {step}") from None
    except ValueError as error:
        step = next_step or "delete its folder and run again"
        raise DataError(f"{path}: damaged JSON ({error}); {step}") from None


def read_record(path: Path, kind: type[T], *, next_step: str | None = None) -> T:
    """A JSON file that a stage wrote from one value: a record, or a dict or list of records or plain values.

    ``next_step``: how to create the file again; None: run the stage that lists it among its outputs.

    Raises:
        DataError: the file is missing, damaged, or no such value; the message gives the field and the next step.
    """
    try:
        return TypeAdapter(kind).validate_python(read_json(path, next_step=next_step))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        value = "" if first["type"] == "missing" else f", got {str(first['input'])[:60]!r}"
        name = kind.__name__ if isinstance(kind, type) else "result"
        raise DataError(
            f"{path}: no valid {name}: {field}: {first['msg']}{value}; the file is damaged or by another "
            f"version of trimtab: {next_step or REPLACE}"
        ) from None


def require_space(path: Path, gigabytes: float) -> None:
    """Check that there is enough free disk space.

    Raises:
        StorageError: too little space is free; the message gives free and needed space.
    """
    free = shutil.disk_usage(path).free / 1e9
    if free < gigabytes:
        raise StorageError(
            f"{path}: {free:.2f} GB free, about {gigabytes:.2f} GB needed; free some space and run the same command"
        )


def _read_status(folder: Path) -> Status | None:
    try:
        fields = json.loads((folder / "status.json").read_text())
        return Status(**fields)
    except (OSError, ValueError, TypeError):
        return None
