"""Step labels from files of other tools: each row a solution whose steps were judged, or the reason why it is none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from trimtab.errors import DataError
from trimtab.records.annotation import StepLabel
from trimtab.records.literals import is_list, parse
from trimtab.records.readers import Refusal, Row, read_rows
from trimtab.records.types import Message, Prompt, content_id

PROMPTS = ("prompt", "problem", "question", "input")
"""Columns that hold the prompt."""
FIRST_WRONG = ("first_wrong", "mistake_index", "label")
"""Columns that hold the index of the first wrong step, from 0; null or −1: none is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLabels:
    """What was read from a file."""

    records: list[StepLabel]
    """The labels."""
    refused: list[Refusal]
    """Rows that are none, with the reason."""


def load_steps(source: str | Path, *, limit: int | None = None) -> StepLabels:
    """Read step labels from JSON lines, JSON, CSV or parquet.

    Read are the export ``steps`` of the annotation app (``prompt``, ``steps``, ``first_wrong``), ProcessBench
    (``problem``, ``steps``, ``label``), BIG-Bench Mistake (``input``, ``steps``, ``mistake_index``), and TRL's stepwise
    supervision (``prompt``, ``completions``, ``labels`` with a boolean for each step). Labels after a first wrong step
    are not used.

    Raises:
        DataError: the file cannot be read, or no row is a step label.
    """
    records: list[StepLabel] = []
    refused: list[Refusal] = []
    for row in read_rows(source, limit=limit):
        if not isinstance(row, Row):
            refused.append(row)
            continue
        try:
            records.append(step_label(row.columns))
        except DataError as error:
            refused.append(Refusal(line=row.line, reason=str(error)))
    if not records:
        why = f"; line {refused[0].line}: {refused[0].reason}" if refused else ""
        raise DataError(f"{source}: none of {len(refused)} rows is a solution with judged steps{why}")
    return StepLabels(records=records, refused=refused)


def has_step_columns(columns: Mapping[str, Any]) -> bool:
    """True: a row of judged steps, by its columns, whether or not it can be used."""
    prompted = any(name in columns for name in PROMPTS)
    judged = "labels" in columns or ("steps" in columns and any(name in columns for name in FIRST_WRONG))
    return prompted and judged and ("steps" in columns or "completions" in columns)


def step_label(columns: Mapping[str, Any]) -> StepLabel:
    """One row as a step label.

    Raises:
        DataError: with what is wrong; it does not quote the row's text.
    """
    prompt_column = next((name for name in PROMPTS if columns.get(name)), None)
    steps = _list(columns.get("steps", columns.get("completions")))
    if prompt_column is None or steps is None or not all(isinstance(step, str) for step in steps):
        raise DataError(f"expected a prompt ({', '.join(PROMPTS)}) and steps, a list of texts")
    if "labels" in columns:
        first = _first_false(_list(columns["labels"]), len(steps))
    else:
        name = next((name for name in FIRST_WRONG if name in columns), None)
        if name is None:
            raise DataError(f"expected the first wrong step in one of {', '.join(FIRST_WRONG)}, or labels")
        first = columns[name]
        if isinstance(first, bool) or not (first is None or (isinstance(first, int | float) and first == int(first))):
            raise DataError(f"{name} is {type(first).__name__}; expected the number of a step from 0, or null for none")
        first = None if first is None or (first == -1 and name == "label") else int(first)
    known: dict[str, Any] = {
        name: columns[name] for name in ("id", "shares", "source", "annotator") if columns.get(name) is not None
    }
    prompt = _prompt(columns[prompt_column])
    texts = [str(step) for step in steps]
    try:
        return StepLabel.model_validate(
            {"id": content_id(prompt.id, texts), "source": "imported"}
            | {name: value for name, value in known.items() if name != "id" or isinstance(value, str)}
            | {"prompt": prompt, "steps": texts, "first_wrong": first}
        )
    except ValidationError as error:
        first_error = error.errors()[0]
        raise DataError(f"{first_error['msg'].removeprefix('Value error, ')}") from None


def _list(value: Any) -> Sequence[Any] | None:
    """A list, also where a cell of a CSV file spells it."""
    parsed = parse(value) if isinstance(value, str) else value
    return cast(Sequence[Any], parsed) if is_list(parsed) and parsed else None


def _first_false(labels: Sequence[Any] | None, count: int) -> int | None:
    if labels is None or len(labels) != count:
        raise DataError(f"{0 if labels is None else len(labels)} labels for {count} steps")
    if not all(label in (0, 1) for label in labels):
        raise DataError("a label is neither true nor false")
    return next((i for i, label in enumerate(labels) if not label), None)


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str):
        return Prompt.from_text(value)
    if isinstance(value, Mapping):  # a prompt as trimtab writes it
        try:
            return Prompt.model_validate(value)
        except ValidationError as error:
            raise DataError(f"prompt: {error.errors()[0]['msg']}") from None
    if is_list(value):
        return Prompt.of([Message.model_validate(turn) for turn in cast(Iterable[Any], value)])
    raise DataError(f"the prompt is {type(value).__name__}; expected a text, messages, or a prompt record")
