"""Items from a file: our own rows, or any format that holds comparisons or preferences."""

import json
from collections.abc import Iterator
from pathlib import Path

from trimtab.errors import DataError
from trimtab.records import Comparison, Preference, Rating, load
from trimtab.records.annotation import Task
from trimtab.storage.tasks import parse_task


def read_items(source: str) -> Iterator[Task | str]:
    """Tasks of a file, or for a row that is none the reason why.

    JSON lines with ``answers``, ``completions`` or ``steps`` are tasks, whole or short
    (:func:`~trimtab.storage.tasks.parse_task`). Everything else that ``trimtab data check`` knows is
    read as comparisons, preferences (without saying which answer was chosen) or ratings.

    Raises:
        DataError: the file cannot be read.
    """
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig") if path.suffix in (".jsonl", ".ndjson") else None
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if text is not None and _is_ours(text):
        yield from map(task_of_line, (line for line in text.split("\n") if line.strip()))
        return
    yield from _other(source)


def _is_ours(text: str) -> bool:
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError:
        return True  # not JSON: said line by line
    if not isinstance(row, dict) or "ranks" in row:
        return not isinstance(row, dict)
    return "prompt" in row and bool({"answers", "completions", "steps"} & set(row)) and "label" not in row


def task_of_line(line: str) -> Task | str:
    """A line of JSON as a task, or the reason why it is none."""
    try:
        return parse_task(json.loads(line))
    except (ValueError, RecursionError):
        return "not JSON"
    except DataError as error:
        return str(error)


def _other(source: str) -> Iterator[Task | str]:
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
                    yield Task.of(record.prompt, record.completions)
            yield from (f"line {refusal.line}: {refusal.reason}" for refusal in loaded.refused)
            return
    raise DataError(f"{source}: holds no items to judge; {problem}")
