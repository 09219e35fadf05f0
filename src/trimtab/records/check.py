"""What is in a set of data files, before anybody trains on it: counts, lengths, leaks, refusals.

Quotes no text of the data: only line numbers, counts and reasons.
"""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import DataError
from trimtab.records.importers import convert, read
from trimtab.records.readers import Refusal
from trimtab.records.types import (
    Comparison,
    Demonstration,
    Message,
    Preference,
    Prompt,
    Rating,
    Record,
    content_id,
    message_id,
    strict_pairs,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """The spread of some lengths."""

    min: int
    """Shortest."""
    median: float
    """Half are not longer."""
    p95: int
    """95 % are not longer (nearest rank)."""
    max: int
    """Longest."""

    @classmethod
    def of(cls, values: Iterable[int]) -> "Lengths | None":
        """Summarise; None where there is nothing to summarise."""
        ordered = sorted(values)
        if not ordered:
            return None
        p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
        return cls(min=ordered[0], median=statistics.median(ordered), p95=p95, max=ordered[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class FileCheck:
    """What one source holds."""

    source: str
    """The file or hub data set."""
    format: str
    """Name of the format it was read as."""
    rows: int
    """Rows read, refused ones included."""
    records: dict[str, int]
    """Number of records of each kind; a row may hold several."""
    prompt_characters: Lengths | None
    """All turns before the answer together."""
    prompt_words: Lengths | None
    """The same in words, separated by white space."""
    answer_characters: Lengths | None
    """Every answer; of a demonstration the last."""
    answer_words: Lengths | None
    """The same in words."""
    duplicates: int
    """Records whose prompt, answers and labels all came before."""
    empty_answers: int
    """Answers without text: in records, or the reason why a row was refused."""
    pairs: int
    """Strict pairs (one answer better than another) in all preferences."""
    identical_pairs: int
    """Strict pairs whose two answers are the same text."""
    chosen_longer: float | None
    """Share of strict pairs whose better answer has more characters: what always guessing the
    longest answer would get right. None without pairs."""
    refused: tuple[Refusal, ...]
    """Every row that cannot be used, with line and reason."""
    unread: dict[str, int]
    """Columns and keys of turns that no part of trimtab reads by itself, with the number of rows that have them."""
    doubts: dict[str, int]
    """What is odd about usable rows, with their number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """What two sources have in common, compared letter by letter."""

    sources: tuple[str, str]
    """The two."""
    prompts: int
    """Different prompts that are in both."""
    answers: int
    """Different pairs of prompt and answer that are in both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """The result of :func:`check`."""

    files: tuple[FileCheck, ...]
    """One entry for each source, in the order given."""
    leaks: tuple[Leak, ...]
    """Every two sources that share a prompt."""


@dataclass(frozen=True, slots=True)
class _Seen:
    prompts: set[str]
    answers: set[str]


def check(
    sources: Sequence[str | Path], *, format: str = "auto", limit: int | None = None, kind: type[Record] = Record
) -> CheckReport:
    """Examine data sources one by one and against each other.

    Args:
        sources: files or hub data sets, as in :func:`~trimtab.records.importers.load`.
        format: name of their format, or ``auto``.
        limit: the most rows to read of each; None reads all.
        kind: the kind of record to make of every row; :class:`Record` keeps what each is by nature.

    Raises:
        DataError: a source cannot be read or has an unknown format. Refused rows are reported instead.
    """
    if not sources:
        raise DataError("no file to check; give at least one")
    files, seen = zip(*(_check_one(source, format, limit, kind) for source in sources), strict=True)
    leaks: list[Leak] = []
    for (one, in_one), (other, in_other) in itertools.combinations(zip(files, seen, strict=True), 2):
        if prompts := len(in_one.prompts & in_other.prompts):
            answers = len(in_one.answers & in_other.answers)
            leaks.append(Leak(sources=(one.source, other.source), prompts=prompts, answers=answers))
    return CheckReport(files=files, leaks=tuple(leaks))


def _check_one(source: str | Path, format: str, limit: int | None, kind: type[Record]) -> tuple[FileCheck, _Seen]:
    loaded = read(source, kind=kind, format=format, limit=limit)
    records = [_waiting(record) if kind is Record else record for record in loaded.records]
    prompts: list[str] = []
    answers: list[str] = []
    seen = _Seen(set(), set())
    contents: set[str] = set()
    for record in records:
        turns, texts = prompt_and_answers(record)
        answers += texts
        key = message_id(turns)
        if turns:
            prompts.append("\n".join(turn.content for turn in turns))
            seen.prompts.add(key)
            seen.answers.update(content_id(key, text) for text in texts)
        contents.add(content_id(type(record).__name__, key, texts, _label(record)))
    pairs = [
        (better.text, worse.text)
        for record in records
        if isinstance(record, Preference)
        for better, worse in strict_pairs(record)
    ]
    empty = sum(not text.strip() for text in answers)
    refused_empty = sum(r.reason.endswith(("answer is empty", "assistant turn is empty")) for r in loaded.refused)
    return FileCheck(
        source=loaded.source,
        format=loaded.format,
        rows=loaded.rows,
        records=dict(Counter(type(record).__name__.lower() for record in records)),
        prompt_characters=Lengths.of(map(len, prompts)),
        prompt_words=Lengths.of(len(text.split()) for text in prompts),
        answer_characters=Lengths.of(map(len, answers)),
        answer_words=Lengths.of(len(text.split()) for text in answers),
        duplicates=len(records) - len(contents),
        empty_answers=empty + refused_empty,
        pairs=len(pairs),
        identical_pairs=sum(better == worse for better, worse in pairs),
        chosen_longer=sum(len(better) > len(worse) for better, worse in pairs) / len(pairs) if pairs else None,
        refused=loaded.refused,
        unread=loaded.unread,
        doubts=loaded.doubts,
    ), seen


def _waiting(record: Record) -> Record:
    """A conversation that ends with the user's turn is a prompt, whatever was answered before."""
    if isinstance(record, Demonstration) and record.messages[-1].role != "assistant":
        return convert(record, Prompt)[0]
    return record


def prompt_and_answers(record: Record) -> tuple[tuple[Message, ...], list[str]]:
    """The turns before the answer, and the answers."""
    match record:
        case Prompt():
            return record.messages, []
        case Demonstration():
            if record.messages[-1].role != "assistant":
                return record.messages, []
            return record.messages[:-1], [record.messages[-1].content]
        case Preference() | Comparison():
            return record.prompt.messages, [answer.text for answer in record.completions]
        case Rating():
            return record.prompt.messages, [record.completion.text]
        case _:
            return (), []


def _label(record: Record) -> object:
    match record:
        case Preference():
            return record.ranks
        case Rating():
            return record.good
        case Prompt() | Demonstration() | Comparison():
            return None
        case _:
            return record.model_dump(mode="json")
