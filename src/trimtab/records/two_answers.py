"""Rows that hold two answers side by side and say which is better: ``output_1``, ``output_2``, ``label``.

Each evaluation set names its columns in its own way; :data:`LAYOUTS` is the table of them. Departures from the sources:
a strength of preference (HelpSteer) and the two scores of WebGPT rank and become no margin.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.records import cells, literals
from trimtab.records.cells import Columns, RowError
from trimtab.records.types import Message, Preference, Prompt, Record, content_id, message_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The columns of one kind of file."""

    question: tuple[str, ...]
    """Columns that may hold the question; the first that is there does."""
    answers: tuple[str, str]
    """Columns of the two answers."""
    verdict: tuple[str, ...]
    """Columns of the verdict."""
    preferred: Callable[..., float]
    """P(the first answer is better) from the columns of the verdict, as numbers; 0.5 is a tie."""


def _one_or_two(value: float) -> float:
    """1: the first, 2: the second, 0 or 1.5: a tie; in between, 1 + P(the second is better), as AlpacaEval has it."""
    if value != 0 and not 1 <= value <= 2:
        raise ValueError("expected 1 or 2, 0 or 1.5 for a tie, or a number between 1 and 2")
    return 0.5 if value == 0 else 2 - value


def _position(value: float) -> float:
    """0: the first, 1: the second."""
    if value not in (0, 1):
        raise ValueError("expected 0 or 1")
    return 1 - value


def _first_is_one(value: float) -> float:
    """1: the first, 0: the second."""
    return 1 - _position(value)


def _sign(value: float) -> float:
    """Below zero: the first; above: the second; 0: a tie."""
    return 0.5 if value == 0 else float(value < 0)


def _higher(first: float, second: float) -> float:
    """The answer with the higher score; equal scores are a tie."""
    return _sign(second - first)


LAYOUTS = (
    # AlpacaFarm, AlpacaEval, LLMBar
    *(
        Layout(
            question=("instruction", "input", "prompt"),
            answers=("output_1", "output_2"),
            verdict=(verdict,),
            preferred=_one_or_two,
        )
        for verdict in ("preference", "label")
    ),
    # HelpSteer 2 and 3
    Layout(
        question=("prompt",),
        answers=("response_1", "response_2"),
        verdict=("preference_strength",),
        preferred=_sign,
    ),
    Layout(
        question=("context", "prompt"),
        answers=("response1", "response2"),
        verdict=("overall_preference",),
        preferred=_sign,
    ),
    # PKU-SafeRLHF
    Layout(
        question=("prompt",),
        answers=("response_0", "response_1"),
        verdict=("better_response_id",),
        preferred=_position,
    ),
    # WebGPT comparisons
    Layout(question=("question",), answers=("answer_0", "answer_1"), verdict=("score_0", "score_1"), preferred=_higher),
    # Stanford Human Preferences
    Layout(
        question=("history",),
        answers=("human_ref_A", "human_ref_B"),
        verdict=("labels",),
        preferred=_first_is_one,
    ),
)
"""Every layout that is read, in the order in which they are tried."""


def layout(columns: Columns) -> Layout | None:
    """The layout of a row; None: it has none of them."""
    return next(
        (one for one in LAYOUTS if _asking(one, columns) and {*one.answers, *one.verdict} <= set(columns)), None
    )


def _asking(one: Layout, columns: Columns) -> str | None:
    return next((name for name in one.question if columns.get(name) is not None), None)


def uses(columns: Columns) -> Sequence[str]:
    """The columns of the row's layout."""
    one = layout(columns)
    if one is None:
        return ()
    asking = _asking(one, columns) or ""
    return (asking, *(("input",) if asking == "instruction" else ()), *one.answers, *one.verdict)


def read(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    """A preference between the two answers, with a soft label where the verdict is between the two."""
    one = layout(columns)
    if one is None:
        raise RowError("has the columns of no layout of two answers; see the formats that are read")
    turns = _question(columns, _asking(one, columns) or "")
    if not turns or not turns[-1].content.strip():
        raise RowError("the prompt's last turn is empty")
    prompt = Prompt(id=message_id(turns), messages=tuple(turns), metadata=metadata)
    answers = tuple(cells.text(columns, name) for name in one.answers)
    for name, answer in zip(one.answers, answers, strict=True):
        if not answer.strip():
            raise RowError(f"{name!r}: the answer is empty")
    try:
        first = one.preferred(*(cells.number(columns, name) for name in one.verdict))
    except ValueError as error:
        raise error if isinstance(error, RowError) else RowError(f"{one.verdict[0]!r}: {error}") from None
    pair = Preference.pair(prompt, *answers, weight=cells.weight(columns))
    ranks = (int(first < 0.5), int(first > 0.5))
    probability = None if first in (0.0, 0.5, 1.0) else first
    identity = content_id(prompt.id, *answers, ranks, probability)
    return [pair.model_copy(update={"id": identity, "ranks": ranks, "probability": probability})]


def _question(columns: Columns, name: str) -> list[Message]:
    if name == "history":  # of SHP: the text of a post, not earlier turns
        return [Message(role="user", content=cells.text(columns, name))]
    if name == "question" and literals.is_object(columns[name]):  # of WebGPT: the text and where it is from
        return cells.question({"question": columns[name].get("full_text")}, name)
    return cells.question(columns, name)
