"""Replies by key in an append-only file, so that no question is asked twice."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from trimtab.errors import DataError, StorageError
from trimtab.files import storage_errors


class Journal(MutableMapping[str, dict[str, Any]]):
    """A mapping from keys to plain JSON objects, on disk.

    Each assignment is one line, flushed to the disk before it returns. A last line cut by a kill is removed when
    the journal is opened again. Only one process at a time can open a journal; the lock is released when the process
    ends.

    Args:
        path: the file; created if missing.

    Raises:
        StorageError: another process has the journal open, or the file cannot be written.
        DataError: a line other than the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, dict[str, Any]] = {}
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise StorageError(f"{path}: another process is writing it; wait for it or choose another folder") from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __getitem__(self, key: str) -> dict[str, Any]:
        """The value of a key."""
        return self._values[key]

    def __setitem__(self, key: str, value: dict[str, Any]) -> None:
        """Write one line; an existing key keeps its first value."""
        self.update({key: value})

    def update(self, values: Mapping[str, dict[str, Any]], /) -> None:  # type: ignore[override]
        """Write several lines with one flush to the disk."""
        new = {key: value for key, value in values.items() if key not in self._values}
        lines = [json.dumps({"key": key, **value}, allow_nan=False) + "\n" for key, value in new.items()]
        with storage_errors(self.path):
            self._file.write("".join(lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        self._values |= new

    def __delitem__(self, key: str) -> None:
        """Not supported: a journal only grows."""
        raise TypeError("a journal only grows")

    def __iter__(self) -> Iterator[str]:
        """Keys, oldest first."""
        return iter(self._values)

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._values)

    def close(self) -> None:
        """Close the file and release its lock."""
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        self._file.seek(0)
        length = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break  # cut by a kill: it was never acknowledged
            try:
                value = json.loads(line)
                self._values.setdefault(value.pop("key"), value)
            except (ValueError, KeyError, AttributeError):
                raise DataError(f"{self.path}:{number}: damaged line; remove it and run again") from None
            length += len(line)
        with storage_errors(self.path):
            self._file.truncate(length)
            self._file.seek(0, os.SEEK_END)
