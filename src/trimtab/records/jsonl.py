"""Records to JSON lines and back, whole files at a time and atomically."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from trimtab.errors import DataError
from trimtab.files import write_atomic
from trimtab.records.types import Record, Rollout

R = TypeVar("R", bound=Record | Rollout)


def to_plain(record: Record | Rollout) -> dict[str, Any]:
    """A record as plain JSON values, fields at their defaults left out for :class:`Record`."""
    if isinstance(record, Rollout):
        return asdict(record) | {"prompt": to_plain(record.prompt)}
    return record.model_dump(mode="json", exclude_defaults=True)


def write_records(path: Path, records: Iterable[Record | Rollout]) -> int:
    """Write records as JSON lines, atomically. Returns how many."""
    lines = [json.dumps(to_plain(r), ensure_ascii=False) for r in records]
    try:
        write_atomic(path, "".join(line + "\n" for line in lines))
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path}: a text holds half a surrogate pair, which UTF-8 cannot write ({error.reason})"
        ) from None
    return len(lines)


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Read what :func:`write_records` wrote.

    Raises:
        DataError: with file, line number and reason, if the file is missing or a line is damaged.
    """
    adapter = TypeAdapter(kind)
    records: list[R] = []
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run the stage that writes it first") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); it was not written here") from None
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand inside a string
        if not line.strip():
            continue
        try:
            records.append(adapter.validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{path}:{number}: not a {kind.__name__}: {where}: {first['msg']}") from None
    return records
