"""Records to the rows that TRL's trainers read."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import DataError
from trimtab.files import write_atomic
from trimtab.records.cells import RowError
from trimtab.records.types import Demonstration, Message, Preference, Prompt, Rating, Record, strict_pairs


def write_trl(path: Path, records: Iterable[Record]) -> int:
    """Write records of one kind as the JSON lines TRL's trainers read, atomically.

    Rankings become one conversational ``prompt``/``chosen``/``rejected`` row for each strict pair
    (ties give none), demonstrations ``messages``, ratings ``prompt``/``completion``/``label`` and
    prompts ``prompt``.

    Returns:
        The number of rows written.

    Raises:
        DataError: TRL has no row for this kind, two kinds are mixed, or there is no row to write.
    """
    kinds: set[str] = set()
    lines: list[str] = []
    for record in records:
        kinds.add(type(record).__name__)
        try:
            lines += [json.dumps(row, ensure_ascii=False) + "\n" for row in trl_rows(record)]
        except RowError as error:
            raise DataError(f"{path}: {error}; write it as records instead") from None
    if len(kinds) > 1:
        raise DataError(f"{path}: {' and '.join(sorted(kinds))} do not fit in one TRL file; write one file for each")
    if not lines:
        raise DataError(f"{path}: no row to write; rankings need at least one strict preference")
    write_atomic(path, "".join(lines))
    return len(lines)


def trl_rows(record: Record) -> list[dict[str, Any]]:
    """A record as rows that TRL's trainers read, conversational form.

    A ranking gives one row for each strict pair, none for ties. Weights, soft labels, ids and
    metadata have no place in these rows.

    Raises:
        RowError: TRL has no row for such a record.
    """

    def answer(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    match record:
        case Preference():
            margin = {} if record.margin is None else {"margin": record.margin}
            return [
                {
                    "prompt": _plain(record.prompt.messages),
                    "chosen": answer(winner.text),
                    "rejected": answer(loser.text),
                }
                | margin
                for winner, loser in strict_pairs(record)
            ]
        case Demonstration():
            if record.untrained:
                raise RowError(
                    "TRL trains every turn of the assistant, and a demonstration has some that are not to be"
                )
            return [{"messages": _plain(record.messages)}]
        case Rating():
            row = {"prompt": _plain(record.prompt.messages), "completion": answer(record.completion.text)}
            return [row | {"label": record.good}]
        case Prompt():
            return [{"prompt": _plain(record.messages)}]
        case _:
            raise RowError(f"TRL has no row for a {type(record).__name__}")


def _plain(turns: Sequence[Message]) -> list[dict[str, str]]:
    return [turn.model_dump() for turn in turns]
