"""Any data file or hub data set to records, with an account of every row that was refused.

::

    loaded = load("Anthropic/hh-rlhf#harmless-base@test", kind=Preference)
    loaded.records        # what can be trained on
    loaded.refused        # line and reason of everything else
"""

import difflib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import ValidationError

from trimtab.errors import DataError
from trimtab.records.cells import RowError
from trimtab.records.formats import FORMATS, Format, doubts, explain, read_row, unread
from trimtab.records.readers import Refusal, Row, read_rows
from trimtab.records.types import (
    Comparison,
    Demonstration,
    Judgement,
    Message,
    Preference,
    Prompt,
    Rating,
    Record,
    content_id,
    message_id,
)

R = TypeVar("R", bound=Record)

KINDS: dict[str, type[Record]] = {
    kind.__name__.lower(): kind for kind in (Prompt, Demonstration, Preference, Rating, Judgement, Comparison)
}
"""The records a data file can hold, by the names the command line gives them."""

_PEEK = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded(Generic[R]):
    """What a source gave."""

    records: tuple[R, ...]
    """The usable records, in the order of the source."""
    format: str
    """Name of the format they were read as."""
    source: str
    """The file or hub data set."""
    rows: int
    """Rows read, refused ones included; one row may hold several records."""
    refused: tuple[Refusal, ...]
    """Every row that could not become a record, with the reason."""
    duplicates: int = 0
    """Prompts left out because the same one came before; 0 for other kinds."""
    lines: tuple[int, ...] = ()
    """Line or row number of each record."""
    unread: dict[str, int] = field(default_factory=dict[str, int])
    """Columns and keys of turns that no part of trimtab reads by itself, with the number of usable rows that have them
    (see :func:`~trimtab.records.formats.unread`)."""
    doubts: dict[str, int] = field(default_factory=dict[str, int])
    """What is odd about usable rows, with their number."""


def load(source: str | Path, *, kind: type[R], format: str = "auto", limit: int | None = None) -> Loaded[R]:
    """Read all records of one kind, converting where that makes sense (see :func:`convert`).

    Args:
        source: a file, or ``owner/name[#part][@split]`` on the Hugging Face hub.
        kind: the record to make of each row; equal prompts are kept once, other kinds as they come.
        format: a name in :data:`~trimtab.records.formats.FORMATS`; ``auto`` finds it from the columns.
        limit: the most rows to read; None reads all.

    Raises:
        DataError: the source cannot be read, its format is unknown, or no row of it is usable.
    """
    loaded = read(source, kind=kind, format=format, limit=limit, unique=True)
    if not loaded.records:
        raise DataError(
            f"{source}: none of {loaded.rows} rows is usable as {kind.__name__}, read as {loaded.format!r}: "
            f"{_top_reasons(loaded.refused)}. Correct them, or name another format ({', '.join(FORMATS)})"
        )
    return loaded


def read(
    source: str | Path, *, kind: type[R], format: str = "auto", limit: int | None = None, unique: bool = False
) -> Loaded[R]:
    """Read as :func:`load` does, but also return when every row is refused.

    Args:
        source: as in :func:`load`.
        kind: as in :func:`load`; with :class:`Record` every row keeps the kinds it holds by nature.
        format: as in :func:`load`.
        limit: as in :func:`load`.
        unique: True: keep the first of equal prompts and count the others.

    Raises:
        DataError: the source cannot be read or its format is unknown.
    """
    rows = read_rows(source, limit=limit, unreadable=True)
    head = list(itertools.islice(rows, _PEEK))
    form = _format(source, format, head)
    records: list[R] = []
    refused: list[Refusal] = []
    known: dict[str, Prompt] = {}
    names: Counter[str] = Counter()
    odd: Counter[str] = Counter()
    lines: list[int] = []
    count = duplicates = 0
    for row in itertools.chain(head, rows):
        count += 1
        try:
            if isinstance(row, Refusal):
                raise RowError(row.reason)
            for record in _of_kind(read_row(form, row.columns), kind):
                if unique and isinstance(record, Prompt):
                    first = known.setdefault(record.id, record)
                    if first.messages != record.messages:
                        raise RowError("its id belongs to another prompt above")
                    if first is not record:
                        duplicates += 1
                        continue
                records.append(record)
                lines.append(row.line)
            names.update(unread(form, row.columns))
            odd.update(doubts(form, row.columns))
        except RowError as error:
            refused.append(Refusal(line=row.line, reason=str(error)))
    return Loaded(
        records=tuple(records),
        format=form.name,
        source=str(source),
        rows=count,
        refused=tuple(refused),
        duplicates=duplicates,
        lines=tuple(lines),
        unread=dict(names.most_common()),
        doubts=dict(odd),
    )


def _format(source: str | Path, name: str, head: Sequence[Row | Refusal]) -> Format:
    """The requested format, or the one that most of the first rows match."""
    known = "\n".join(f"  {form.name}: {form.columns}" for form in FORMATS.values())
    if name != "auto" and name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(f"format {name!r} is not known{hint}; known are auto and\n{known}")
    if not head:
        raise DataError(f"{source}: holds no rows; give a file with data in it")
    if name in FORMATS:
        return FORMATS[name]
    rows = [row.columns for row in head if isinstance(row, Row)]
    if not rows:
        reasons = _top_reasons([row for row in head if isinstance(row, Refusal)])
        is_table = Path(str(source).lower().removesuffix(".gz")).suffix in (".csv", ".tsv")
        expected = "a line of column names, then as many cells in each row" if is_table else "one JSON object a line"
        raise DataError(f"{source}: no row can be read: {reasons}. Expected {expected}, in UTF-8")
    votes = Counter(form.name for row in rows for form in itertools.islice(_matching(row), 1))
    if votes:
        return FORMATS[votes.most_common(1)[0][0]]
    seen = list(dict.fromkeys(str(column) for row in rows for column in row))
    names = ", ".join(repr(column[:40]) for column in seen[:20]) or "none"
    raise DataError(f"{source}: unknown format; columns seen: {names}. Rename them to one of these formats:\n{known}")


def _matching(row: dict[str, Any]) -> Iterable[Format]:
    return (form for form in FORMATS.values() if form.matches(row))


def _top_reasons(refused: Sequence[Refusal]) -> str:
    counts = Counter(refusal.reason for refusal in refused)
    return "; ".join(f"{reason} ({count} rows)" for reason, count in counts.most_common(3))


def _of_kind(records: list[Record], kind: type[R]) -> list[R]:
    """The records of the requested kind if a row holds any, else the others converted."""
    same = [record for record in records if isinstance(record, kind)]
    able = [record for record in records if (type(record), kind) in _CONVERSIONS]
    made = same or [new for record in able or records for new in convert(record, kind)]
    if kind is Prompt:  # the answers of one row often share their prompt
        return list({cast(Prompt, prompt).id: prompt for prompt in made}.values())
    return made


def convert(record: Record, kind: type[R]) -> list[R]:
    """What a record of another kind says as records of ``kind``.

    - Prompt: of anything that has one; the answer is dropped.
    - Demonstration: of a preference, its best answer (the first of equals); of a rating, an answer with thumbs up.
    - Comparison: of a preference, its answers without the ranks, to be judged again.
    - Rating: of a preference between two answers, the better as good and the worse as bad.

    Raises:
        RowError: there is no such conversion, or this record says nothing of that kind.
    """
    if isinstance(record, kind):
        return [record]
    conversion = _CONVERSIONS.get((type(record), kind))
    if conversion is None:
        raise RowError(f"holds a {type(record).__name__}, which cannot become a {kind.__name__}")
    try:
        return cast(list[R], conversion(record))
    except ValidationError as error:
        raise RowError(explain(error)) from None


def _prompt_of(record: Preference | Rating | Comparison) -> list[Record]:
    return [record.prompt]


def _unanswered(record: Demonstration) -> list[Record]:
    turns = record.messages
    if turns[-1].role != "assistant":
        return [Prompt(id=record.id, messages=turns, metadata=record.metadata)]
    while turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    if not turns:
        raise RowError("no prompt before the answer")
    return [Prompt(id=message_id(turns), messages=turns, metadata=record.metadata)]


def _best(record: Preference) -> list[Record]:
    if len(set(record.ranks)) == 1:
        raise RowError("no answer is better than another")
    best = record.completions[record.ranks.index(min(record.ranks))]
    turns = (*record.prompt.messages, Message(role="assistant", content=best.text))
    return [Demonstration(id=message_id(turns), messages=turns, metadata=record.prompt.metadata | record.metadata)]


def _liked(record: Rating) -> list[Record]:
    if not record.good:
        raise RowError("has thumbs down, and only good answers are imitated")
    turns = (*record.prompt.messages, Message(role="assistant", content=record.completion.text))
    return [Demonstration(id=message_id(turns), messages=turns, metadata=record.prompt.metadata)]


def _unjudged(record: Preference) -> list[Record]:
    return [Comparison.of(record.prompt, record.completions)]


def _thumbs(record: Preference) -> list[Record]:
    if len(record.completions) != 2 or len(set(record.ranks)) == 1:
        raise RowError("only a strict preference between two answers becomes ratings")
    return [
        Rating(
            id=content_id(record.prompt.id, answer.text, rank == min(record.ranks)),
            prompt=record.prompt,
            completion=answer,
            good=rank == min(record.ranks),
            source=record.source,
        )
        for answer, rank in zip(record.completions, record.ranks, strict=True)
    ]


_CONVERSIONS: dict[tuple[type[Record], type[Record]], Callable[[Any], list[Record]]] = {
    (Preference, Prompt): _prompt_of,
    (Rating, Prompt): _prompt_of,
    (Comparison, Prompt): _prompt_of,
    (Demonstration, Prompt): _unanswered,
    (Preference, Demonstration): _best,
    (Rating, Demonstration): _liked,
    (Preference, Comparison): _unjudged,
    (Preference, Rating): _thumbs,
}
