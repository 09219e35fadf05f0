"""Files and hub data sets to rows: plain objects, each with the line it came from.

A source is a path that exists, or ``owner/name[#part][@split]`` on the Hugging Face hub, where
``part`` is a configuration or a folder of that data set (``Anthropic/hh-rlhf#harmless-base@test``).

A line that cannot be read becomes a :class:`Refusal`, so that the caller can report it; a source
that cannot be read at all is a :class:`~trimtab.errors.DataError`.
"""

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, cast

from trimtab.errors import DataError, install_hint
from trimtab.records.literals import is_list, is_object, parse

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""File types that are read; each text type may be gzipped (``.gz``)."""

_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(#(?P<part>[^@#]+))?(@(?P<split>[^@#]+))?")
_TEXT = frozenset(
    "prompt chosen rejected completion instruction input output question answer text response reference system "
    "system_prompt system_message".split()
)
"""Columns whose cells in a CSV file are text even where it looks like a list, unless that is one of turns."""

_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?', flags=re.I)
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+\s*")
_HALF = b"\\ud"
_MOST_DIGITS = 4300
_GZIP, _UTF16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A row that cannot be used, and why; the reason never quotes the row's text."""

    line: int
    """Line in the file (JSON lines) or number of the row (all others), from 1."""
    reason: str
    """What is wrong with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One object of a data file."""

    line: int
    """Line in the file (JSON lines) or number of the row (all others), from 1."""
    columns: dict[str, Any]
    """Its plain JSON values. Lists and objects that a CSV cell spells are decoded; values of parquet files and hub data
    sets that JSON does not know (dates, bytes) are left as they come."""


def read_rows(source: str | Path, *, limit: int | None = None, unreadable: bool = False) -> Iterator[Row | Refusal]:
    """Read a file or a hub data set, one object at a time; blank lines are no rows.

    Args:
        source: a path, or ``owner/name[#part][@split]`` on the hub; split is ``train`` unless given.
        limit: the most rows to read, unusable ones included; None reads all.
        unreadable: True: a row may hold values that are :class:`Unreadable`; False: such a row is refused.

    Raises:
        DataError: the source does not exist, is of an unknown type, is no text, or is damaged.
    """
    rows = itertools.islice(_open(source, limit), limit)
    return rows if unreadable else map(_readable, rows)


def _readable(row: Row | Refusal) -> Row | Refusal:
    if isinstance(row, Row):
        for name, value in row.columns.items():
            if isinstance(value, Unreadable):
                return Refusal(line=row.line, reason=f"{str(name)[:40]!r} is {value.reason}")
    return row


def _open(source: str | Path, limit: int | None) -> Iterator[Row | Refusal]:
    path = Path(source)
    suffix = next((s for s in SUFFIXES if path.name.lower().removesuffix(".gz").endswith(s)), None)
    hub = None if isinstance(source, Path) or suffix else _HUB.fullmatch(source)
    if not _exists(path):
        if hub is None:
            raise DataError(f"{source}: no such file; give a file, or a hub data set as owner/name[#part][@split]")
        return _hub_rows(source, hub["name"], hub["part"], hub["split"] or "train", limit)
    if path.is_dir():
        raise DataError(f"{source}: is a folder; give a data file in it ({', '.join(SUFFIXES)})")
    if suffix is None:
        raise DataError(f"{source}: unknown file type; expected {', '.join(SUFFIXES)}, or one of these with .gz")
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    return readers.get(suffix, _csv_rows)(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name no file can have: too long, or with a NUL
        return False


@contextmanager
def _text_file(path: Path) -> Generator[IO[bytes]]:
    """Open a text file's bytes, unpacked where gzipped, and past its UTF-8 mark."""
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            with gzip.open(raw) if packed else raw as file:
                head = file.read(3)
                if head.startswith(_UTF16):
                    raise DataError(f"{path}: is UTF-16 text; save it as UTF-8 and try again")
                file.seek(3 if head == b"\xef\xbb\xbf" else 0)
                yield file  # pyright: ignore[reportReturnType]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); get or make it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path and its rights") from None


def _jsonl_rows(path: Path) -> Iterator[Row | Refusal]:
    with _text_file(path) as file:
        for line, raw in enumerate(file, 1):
            if raw.strip():
                yield _parsed(line, raw)


def _parsed(line: int, raw: bytes) -> Row | Refusal:
    try:
        return _as_row(line, _parse(raw.strip()), halves=_HALF in raw.lower())
    except _Unreadable as error:
        return Refusal(line=line, reason=str(error))


def _json_rows(path: Path) -> Iterator[Row | Refusal]:
    with _text_file(path) as file:
        raw = file.read()
    if not raw.strip():
        return
    try:
        value = _parse(raw)
    except _Unreadable as error:
        if not error.more_follows:
            raise DataError(f"{path}: {error}; correct the file, or save one object a line as .jsonl") from None
        yield from _jsonl_rows(path)  # JSON lines that go by the name of .json
        return
    if is_object(value):
        lists = [v for v in value.values() if is_list(v)]
        if len(lists) != 1:
            raise DataError(f"{path}: an object with {len(lists)} lists in it; expected a list of objects, or one list")
        value = lists[0]
    if not is_list(value):
        raise DataError(f"{path}: holds {kind_of(value)}; expected a list of objects, or an object with one list")
    halves = _HALF in raw.lower()
    yield from (_as_row(line, item, halves=halves) for line, item in enumerate(value, 1))


def _csv_rows(path: Path) -> Iterator[Row | Refusal]:
    csv.field_size_limit(2**31 - 1)  # one answer may be longer than the 128 KiB that csv allows by default
    with _text_file(path) as file:
        start, header = file.tell(), file.readline().decode("utf-8", "replace")
        if (given := _SEPARATOR_LINE.fullmatch(header)) is not None:  # Excel's
            yield from _separated(path, file, given[1])
        else:
            file.seek(start)
            yield from _separated(path, file, _separator(header))


def _separator(header: str) -> str:
    """The character that parts a header line into the most columns, a comma where none does; not one inside quotes."""
    outside = re.sub(r'"[^"]*("|$)', "", header)
    return max(",\t;|", key=outside.count)


def _separated(path: Path, file: IO[bytes], separator: str) -> Iterator[Row | Refusal]:
    """Rows of a CSV file whose header has this separator; spreadsheets write a semicolon where the comma is decimal."""
    with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        reader = csv.DictReader(text, strict=True, delimiter=separator)
        line = 0
        try:
            names = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            if len(set(names)) < len(names):
                raise DataError(f"{path}: two columns have the same name; rename one of them")
            for line, row in enumerate(reader, 1):
                yield _csv_row(line, row, len(names), decimal_comma=separator == ";")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 after row {line} ({error.reason}); save it as UTF-8") from None
        except csv.Error as error:
            raise DataError(f"{path}: not a CSV file after row {line} ({error}); correct it there") from None


def _csv_row(line: int, row: dict[Any, Any], columns: int, *, decimal_comma: bool) -> Row | Refusal:
    if None in row or None in row.values():
        count = columns + len(row.get(None, ())) - sum(value is None for value in row.values())
        return Refusal(line=line, reason=f"{count} cells for {columns} columns")
    if decimal_comma:
        row = {name: _decimal_point(name, text) for name, text in row.items()}
    return Row(line=line, columns={name: _cell(name, text) for name, text in row.items()})


def _decimal_point(name: str, text: str) -> str:
    """A cell that is a number with a decimal comma, and not text by its column, with a point."""
    return text.replace(",", ".") if name.lower() not in _TEXT and _DECIMAL_COMMA.fullmatch(text) else text


def _cell(name: str, text: str) -> Any:
    """The value of a CSV cell, which is text unless it spells a list, an object, NaN or the boolean of a label."""
    plain = text.strip().lower()
    if plain == "nan":
        return None
    if name == "label" and plain in ("true", "false"):  # other spellings may be a class of the user's own
        return plain == "true"
    value = parse(text)
    if value is None or (name.lower() in _TEXT and not _are_turns(value)):
        return text
    return value


def _are_turns(value: list[Any] | dict[str, Any]) -> bool:
    """True: turns, each with a speaker and what it says."""
    turns: list[Any] = value if is_list(value) else [value]
    return bool(turns) and all(
        is_object(turn) and turn.keys() & {"role", "from"} and turn.keys() & {"content", "value"} for turn in turns
    )


def _parquet_rows(path: Path) -> Iterator[Row | Refusal]:
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(f"{path}: reading parquet needs pyarrow; {install_hint('data')}") from None
    try:
        with parquet.ParquetFile(path) as file:
            batches = (_batch_rows(batch) for batch in file.iter_batches(batch_size=1024))
            for line, item in enumerate(itertools.chain.from_iterable(batches), 1):
                yield _as_row(line, item)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable parquet file ({_first_line(error)}); get or make it again") from None


def _batch_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch; a cell that Python cannot hold, such as a date after the year 9999, is ``Unreadable``."""
    try:
        return batch.to_pylist(maps_as_pydicts="lossy")
    except (ValueError, OverflowError):
        columns = {name: [_scalar(cell) for cell in batch.column(name)] for name in batch.schema.names}
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _scalar(cell: Any) -> Any:
    try:
        return cell.as_py(maps_as_pydicts="lossy")
    except (ValueError, OverflowError):
        return Unreadable("a value that Python cannot hold")


def _hub_rows(
    source: str | Path, name: str, part: str | None, split: str, limit: int | None
) -> Iterator[Row | Refusal]:
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise DataError(f"{source}: no such file, and the hub needs datasets; {install_hint('data')}") from None
    options: dict[str, Any] = {"split": split, "streaming": limit is not None}
    try:
        if part is None:
            dataset = datasets.load_dataset(name, **options)
        else:
            try:
                dataset = datasets.load_dataset(name, name=part, **options)
            except ValueError:  # no configuration has that name; then it is a folder
                dataset = datasets.load_dataset(name, data_dir=part, **options)
        for line, item in enumerate(dataset, 1):
            yield _as_row(line, item)
    except Exception as error:  # whatever hub, network and decoders raise, the user needs one clear line
        raise DataError(
            f"{source}: no such file, and no data set from the hub ({type(error).__name__}: {_first_line(error)}); "
            "check the name, the network and your login, or download a file and give its path"
        ) from None


def _as_row(line: int, value: Any, *, halves: bool = False) -> Row | Refusal:
    """An object as a row; ``halves``: it may hold halves of surrogate pairs."""
    if isinstance(value, dict):
        columns = cast("dict[str, Any]", value)
        return Row(line=line, columns=_without_halves(columns) if halves else columns)
    return Refusal(line=line, reason=f"a row must be an object, not {kind_of(value)}")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A value that a data file can hold and Python or Unicode cannot; a column that is used may not hold it."""

    reason: str
    """What it is."""


class _Unreadable(Exception):
    more_follows = False


def _parse(raw: bytes) -> Any:
    """Strict JSON, except that NaN, infinity and integers of over 4,300 digits count as null, as pandas means NaN."""
    try:
        text = raw.decode()
        return json.loads(text, parse_constant=lambda _: None, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise _Unreadable(f"not UTF-8 text ({error.reason} at byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        unreadable = _Unreadable(f"not JSON ({error.msg.removesuffix(' at')}, character {error.pos + 1})")
        unreadable.more_follows = error.msg == "Extra data"
        raise unreadable from None
    except (ValueError, RecursionError):
        raise _Unreadable("not usable JSON (nested too deeply)") from None


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= _MOST_DIGITS else None


def _without_halves(row: dict[str, Any]) -> dict[str, Any]:
    """A row in which a column that holds half of a surrogate pair is :class:`Unreadable`."""
    columns: dict[str, Any] = {}
    for name, value in row.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            value = Unreadable("half of a surrogate pair, which is no Unicode text")
        columns[name.encode("utf-8", "replace").decode()] = value
    return columns


def kind_of(value: Any) -> str:
    """A value's type in the words of JSON, for messages: never the value."""
    if isinstance(value, Unreadable):
        return value.reason
    names: dict[type[Any], str] = {
        type(None): "null",
        bool: "a boolean",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    kind = cast("type[Any]", type(value))
    return names.get(kind, "a number" if isinstance(value, int | float) else f"a {kind.__name__}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0][:200]
