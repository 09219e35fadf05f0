"""The file that a blind reader fills in: CSV or JSON lines, one row for each prompt, without the models' names.

=============  =========================================================================================
``id``         id of the row; only the run's folder records which model wrote which answer
``prompt``     the prompt
``A``, ``B``   the two answers, in random order
``preferred``  to fill in: ``A``, ``B`` or ``tie``
``sensible_A``, ``sensible_B``  optional: is the answer faithful to the prompt and does it make sense, ``yes`` or ``no``
``comment``    optional
``reader``     to fill in: the reader's name; ``--reader`` names the reader of rows that leave it empty
=============  =========================================================================================
"""

import csv
import io
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError, DataError
from trimtab.files import write_atomic

COLUMNS = ("id", "prompt", "A", "B", "preferred", "sensible_A", "sensible_B", "comment", "reader")
"""Columns of the file, in order."""

READER_COLUMNS = ("preferred", "sensible_A", "sensible_B", "comment", "reader")
"""Columns that a reader fills in."""

EMPTY = "(an empty answer)"
"""Shown instead of an answer without text."""

FORMULA = ("=", "+", "-", "@", "\t")
"""Spreadsheets take a cell that begins like this for a formula, so an apostrophe is put before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row as it was read back."""

    line: int
    """Line of the file, counted from 1; for a row of several lines, the last one."""
    values: Mapping[str, str]
    """Values by column, without surrounding white space; empty for columns that the file lacks."""

    @property
    def filled(self) -> bool:
        """True if the reader wrote anything."""
        return any(self.values[name] for name in READER_COLUMNS)


def check_suffix(path: Path) -> None:
    """Refuse files that are neither CSV nor JSON lines.

    Raises:
        ConfigError: the suffix is wrong; the message names the two allowed ones.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise ConfigError(f"{path}: a blind reading is a .csv file (for a spreadsheet) or a .jsonl file; rename it")


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write the rows for a reader; cells that a spreadsheet would take for a formula are written as text."""
    full = [{name: row.get(name, "") for name in COLUMNS} for row in rows]
    if path.suffix.lower() == ".jsonl":
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in full))
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list[str](COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"'{v}" if v.startswith(FORMULA) else v for k, v in row.items()} for row in full)
    write_atomic(path, text.getvalue().encode("utf-8-sig"))  # the byte order mark tells spreadsheets that it is UTF-8


def read_rows(path: Path) -> list[Row]:
    """Read a file back; empty rows are skipped.

    Raises:
        ConfigError: the suffix is neither ``.csv`` nor ``.jsonl``.
        DataError: the file is unreadable, not UTF-8, or lacks the column ``id`` or ``preferred``.
    """
    check_suffix(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the name") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; save it again as “CSV UTF-8”") from None
    numbered_rows = _read_jsonl(path, text) if path.suffix.lower() == ".jsonl" else _read_csv(text)
    rows = []
    for line, values in numbered_rows:
        by_name = {str(k).strip().lower(): v for k, v in values.items() if k is not None}
        if not any(map(_text, by_name.values())):
            continue
        if not {"id", "preferred"} <= by_name.keys():
            raise DataError(
                f"{path}:{line}: has the columns {', '.join(by_name)}; expected {', '.join(COLUMNS)}, as "
                "`trimtab eval RECIPE --blind FILE` writes them"
            )
        rows.append(Row(line=line, values={name: _text(by_name.get(name.lower())) for name in COLUMNS}))
    return rows


def same_text(cell: str, answer: str) -> bool:
    """True if a cell contains this answer; white space and spreadsheets' changes to text do not count."""
    return _normalised(cell) == _normalised(answer or EMPTY)


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text.strip().removeprefix("'")).split())


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _read_csv(text: str) -> list[tuple[int, dict[str, Any]]]:
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)  # spreadsheets save with the separator of their language
    csv.field_size_limit(10_000_000)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    return [(reader.line_num, row) for row in reader]


def _read_jsonl(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                values = json.loads(content)
            except ValueError as error:
                raise DataError(f"{path}:{line}: not JSON ({error}); write one object on each line") from None
            if not isinstance(values, dict):
                raise DataError(f"{path}:{line}: expected an object, got {type(values).__name__}")
            rows.append((line, values))
    return rows
