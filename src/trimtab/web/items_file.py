"""Items from a file: our own rows, or any format with comparisons, preferences or ratings."""

import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.errors import DataError
from trimtab.records import Comparison, Preference, Rating, load
from trimtab.records.annotation import Task
from trimtab.records.readers import Row, read_rows
from trimtab.storage.tasks import parse_task, parse_tasks

_FIRST_ROWS = 100
MOST_BYTES = 200_000_000
"""Maximum size of an uploaded file when unpacked, in bytes."""


def read_items(source: str) -> Iterator[Task | str]:
    """The tasks of a file; for each row that is no task, the reason instead.

    Rows with ``prompt`` and ``answers``, ``completions`` or ``steps`` are tasks, whole or short
    (:func:`~trimtab.storage.tasks.parse_task`), in JSON lines or a JSON list, gzipped or not. Every other format that
    ``trimtab data check`` knows is read as comparisons, preferences (without the chosen answer) or ratings.

    Raises:
        DataError: the file cannot be read.
    """
    rows = read_rows(Path(source))
    head = list(itertools.islice(rows, _FIRST_ROWS))
    first = next((row.columns for row in head if isinstance(row, Row)), None)
    if not head:
        raise DataError(f"{source}: holds no rows; give a file with items in it")
    if first is not None and not _is_task(first):
        yield from _tasks_of_records(source)
        return
    for row in itertools.chain(head, rows):
        if isinstance(row, Row):
            yield from parse_tasks([row.columns])
        else:
            yield f"line {row.line}: {row.reason}"


def _is_task(row: dict[str, Any]) -> bool:
    return (
        "prompt" in row
        and bool({"answers", "completions", "steps"} & row.keys())
        and not {"ranks", "label"} & row.keys()
    )


def tasks_in(raw: bytes) -> list[Task | str]:
    """Tasks of an uploaded file: JSON lines or a JSON list, gzipped or not; reasons instead of invalid rows.

    Raises:
        DataError: the file is not UTF-8, a damaged gzip file, or too large when unpacked.
    """
    if raw.startswith(b"\x1f\x8b"):
        unpacker = zlib.decompressobj(wbits=31)
        try:
            raw = unpacker.decompress(raw, MOST_BYTES)
        except zlib.error:
            raise DataError("the file is a damaged gzip file; pack it again") from None
        if not unpacker.eof:
            raise DataError(f"the file is cut, or has more than {MOST_BYTES} bytes when unpacked; send it in parts")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"the file is not UTF-8 (byte {error.start}); save it as UTF-8 JSON lines") from None
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError):
            rows = None
        if isinstance(rows, list):
            return list(parse_tasks(rows))
    return [task_of_line(line) for line in text.split("\n") if line.strip()]


def task_of_line(line: str) -> Task | str:
    """A line of JSON as a task, or the reason why it is not one."""
    try:
        return parse_task(json.loads(line))
    except (ValueError, RecursionError):
        return "not JSON"
    except DataError as error:
        return str(error)


def _tasks_of_records(source: str) -> Iterator[Task | str]:
    problem = ""
    for kind in (Comparison, Preference, Rating):
        try:
            loaded = load(source, kind=kind)
        except DataError as error:
            problem = problem or str(error)
            continue
        if loaded.records:
            for record in loaded.records:
                if isinstance(record, Rating):
                    yield Task.of(record.prompt, [record.completion], kind="thumbs")
                else:
                    yield Task.of(record.prompt, record.completions, metadata=record.metadata)
            yield from (f"line {refusal.line}: {refusal.reason}" for refusal in loaded.refused)
            return
    raise DataError(f"{source}: holds no items to judge; {problem}")
