"""Files that are either whole or absent: write aside, flush to disk, rename.

A full or read-only disk becomes a :class:`~trimtab.errors.StorageError` that says so; what was
there before stays as it was.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimtab.errors import StorageError


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` about ``path`` into a :class:`StorageError` with the next step."""
    try:
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again, finished work is kept",
            errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
            errno.EROFS: "the file system is read-only; choose another folder",
            errno.EACCES: "no permission to write there; choose another folder",
        }.get(error.errno or 0)
        if reason is None:
            raise StorageError(f"{path}: {error.strerror or error}") from error
        raise StorageError(f"{path}: {reason}") from error


def locate(name: str, beside: Path) -> str:
    """A path with ``~`` expanded, looked up from the current folder first and then from ``beside``.

    Where it is in neither, it comes back as it is: it may be the name of something on a hub.
    """
    path = Path(os.path.expanduser(name))  # unlike Path.expanduser, leaves a home that nobody has as it is
    for place in (path, beside / path):
        try:
            if place.exists():
                return str(place)
        except (OSError, ValueError):  # a name no file can have: too long, or with a NUL
            break
    return str(path) if name.startswith("~") else name


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` so that ``path`` holds either the old content or all of the new one."""
    raw = data.encode() if isinstance(data, str) else data
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(aside, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused by JSON's rules."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write a folder aside, then rename it to ``path``.

    A process killed in the middle leaves no ``path`` or a complete one, never a part of it. A
    folder that already stands there (the same step written before) is removed first, so give
    each version a name of its own.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            fill(aside)
            for file in aside.rglob("*"):
                if file.is_file():
                    with open(file, "rb+") as handle:
                        os.fsync(handle.fileno())
            if path.exists():
                shutil.rmtree(path)
            os.replace(aside, path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        _sync_folder(path.parent)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a plain value's canonical JSON, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
