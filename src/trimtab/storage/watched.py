"""Reads a run folder while it is written: the state of its stages, its metrics, its alarms, the answers of each step.

This module never writes and never waits for the run. A stage that is being written, was interrupted or was never begun
is read as far as it exists.
"""

import fcntl
import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trimtab.errors import DataError
from trimtab.records import Rollout, read_records
from trimtab.records.weights import reward_weights
from trimtab.storage.run import RunFolder

ALIGN = "align"
"""The stage that stores the answers of each step."""

ALARMS = "alarms.jsonl"
"""File of the alarms in a stage's folder, one line each."""

TOKENS = "tokens.json"
"""File of the text of each token, by id, in a stage's folder."""


class Tail:
    """The rows of a growing file of JSON lines; each line is parsed once.

    A file that was rewritten, as when a run is resumed, is read again from its beginning. Several threads may read one
    tail at the same time.

    Args:
        path: the file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._rows: list[dict[str, Any]] = []
        self._generation = 0
        self._file: tuple[int, int] | None = None
        self._read = 0

    def refresh(self) -> tuple[list[dict[str, Any]], int]:
        """Parse the lines added since the last call. A line without a line break is left for the next call.

        Returns:
            a copy of the list of all rows so far, and how often the file was rewritten since it was first read.
        """
        with self._lock:
            self._parse()
            return self._rows.copy(), self._generation

    def _parse(self) -> None:
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                if self._file is not None and (identity != self._file or status.st_size < self._read):
                    self._rows, self._read = [], 0
                    self._generation += 1
                self._file = identity
                file.seek(self._read)
                data = file.read()
        except OSError:
            return
        complete_lines = data[: data.rfind(b"\n") + 1]
        self._read += len(complete_lines)
        for line in complete_lines.split(b"\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                self._rows.append(row)


class WatchedRun:
    """One run to watch.

    Args:
        path: ``runs/NAME``.

    Raises:
        DataError: the folder contains no run.
    """

    def __init__(self, path: Path) -> None:
        if not (path / "stages").is_dir() and not (path / "config.yaml").is_file():
            raise DataError(f"{path}: no run; expected a folder that `trimtab run` made, for example runs/quickstart")
        self.path = path
        self._folder = RunFolder(path, create=False)
        first, number = self._folder.first, self._folder.number
        self.name = first.path.resolve().name + (f", round {number}" if number > 1 else "")
        self._tails: dict[Path, Tail] = {}

    def _tail(self, stage: str, file: str) -> Tail:
        path = self._folder.stage(stage) / file
        return self._tails.setdefault(path, Tail(path))

    # State --------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """The resolved recipe; empty if it is missing."""
        try:
            values = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return values if isinstance(values, dict) else {}

    def is_running(self) -> bool:
        """True if the process that last worked on the run holds its lock.

        The pid in the lock file alone is not enough, because the system may have given it to another process. The lock
        is tried only if that pid is alive, so that this check never blocks a run that is just starting.
        """
        try:
            with open(self._folder.first.path / ".lock", "rb") as file:
                try:
                    os.kill(int(file.read()), 0)
                except PermissionError:
                    pass  # alive, of another user
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except (OSError, ValueError):
            return False
        return False

    def stages(self) -> list[dict[str, Any]]:
        """Stages in the order they were begun: ``stage``, ``state``, ``steps`` logged, ``seconds``, ``counts``.

        ``state`` is ``done``, ``running``, or ``interrupted`` if the process that began the stage is gone.
        """
        running, rows = self.is_running(), []
        for folder in (self.path / "stages").glob("*"):
            status = self._folder.status(folder.name)
            if status is None:
                continue
            state = "interrupted" if status.state == "running" and not running else status.state
            rows.append(
                {
                    "stage": status.stage,
                    "state": state,
                    "steps": self.last_step(status.stage),
                    "seconds": status.seconds,
                    "counts": status.counts or {},
                    "began": (folder / "config.yaml").stat().st_mtime if (folder / "config.yaml").exists() else 0.0,
                }
            )
        return sorted(rows, key=lambda row: row["began"])

    def stamp(self) -> tuple[Any, ...]:
        """A value that changes whenever something that the dashboard shows of the run changes."""
        versions = []
        for name in ("metrics.jsonl", ALARMS, "status.json"):
            for path in sorted(self.path.glob(f"stages/*/{name}")):
                try:
                    status = path.stat()
                except OSError:
                    continue
                versions.append((path.parent.name, path.name, status.st_ino, status.st_size, status.st_mtime_ns))
        return (self.is_running(), *versions)

    # Numbers ------------------------------------------------------------------------------

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """The rows of a stage's metrics."""
        return self._tail(stage, "metrics.jsonl").refresh()[0]

    def last_step(self, stage: str) -> int:
        """Number of the last step that was logged; 0 if none was."""
        rows = self.metrics(stage)
        return int(rows[-1].get("step", 0)) if rows else 0

    def series(
        self, stage: str, keys: Sequence[str], *, start: int = 0, generation: int | None = None
    ) -> dict[str, Any]:
        """Columns of a stage's metrics, from row ``start`` on.

        Args:
            stage: name of the stage.
            keys: columns to return.
            start: number of rows that the caller has.
            generation: generation of the rows that the caller has; if the file was rewritten since, all rows are
                returned.

        Returns:
            ``generation``, ``start``, ``steps``, ``columns`` (None where a row lacks the key or its value is not
            finite; five significant digits), and ``keys`` (all columns of the file).
        """
        rows, current = self._tail(stage, "metrics.jsonl").refresh()
        if generation != current:
            start = 0
        new = rows[start:]
        names: dict[str, None] = {}
        for row in (*rows[:3], *rows[-3:]):
            names.update(dict.fromkeys(row))
        return {
            "generation": current,
            "start": start,
            "steps": [row.get("step", start + i + 1) for i, row in enumerate(new)],
            "columns": {key: [_shown(row.get(key)) for row in new] for key in keys},
            "keys": [name for name in names if name not in ("step", "time")],
        }

    def row(self, stage: str, step: int) -> dict[str, float | None]:
        """All numbers of one step; empty if the step was not logged."""
        for row in reversed(self.metrics(stage)):
            if row.get("step") == step:
                return {key: _shown(value) for key, value in row.items()}
        return {}

    def alarms(self) -> list[dict[str, Any]]:
        """Alarms so far, oldest first."""
        return self._tail(ALIGN, ALARMS).refresh()[0]

    # Answers ------------------------------------------------------------------------------

    def answers(self, step: int) -> list[Rollout]:
        """The answers of a step of alignment, from 1.

        Raises:
            DataError: the answers are not on the disk, or damaged.
        """
        path = self._folder.stage(ALIGN) / "samples" / f"step-{step - 1:06d}.jsonl"
        if not path.parent.is_dir():
            raise DataError("no answers are kept: this method samples none while it trains, or samples/ was deleted")
        if not path.exists():
            raise DataError(f"the answers of step {step} are not on the disk ({path.name} is missing)")
        return read_records(path, Rollout)

    def reward_weights(self) -> dict[str, float]:
        """The weight of each reward component; 1 if not named, 0 for a cost with a limit."""
        return reward_weights(self.config())

    def token_texts(self) -> list[str]:
        """The text of each token, by id; empty if the run did not write it."""
        try:
            texts = json.loads((self._folder.stage(ALIGN) / TOKENS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return texts if isinstance(texts, list) else []


def token_kl(rollout: Rollout) -> list[float] | None:
    """Log π − log ref of each token, in nats; None if the reference's log-probabilities were not stored."""
    if not rollout.tokens or len(rollout.reference_logprobs) != len(rollout.tokens):
        return None
    return [p - q for p, q in zip(rollout.logprobs, rollout.reference_logprobs, strict=True)]


def total_reward(rollout: Rollout, weights: Mapping[str, float]) -> float:
    """The weighted sum of an answer's reward components, before clipping and penalties."""
    return math.fsum(weights.get(name, 1.0) * value for name, value in rollout.rewards.items())


def _shown(value: Any) -> float | None:
    """A number with five significant digits; None for anything that is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.5g}")
