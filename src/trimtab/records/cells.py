"""Columns of a row to typed values and turns, and the columns and keys that carry meaning beside the text.

A record holds text. A column or key that changes what the text means is therefore

- rendered: ``system`` and ``history`` become turns in front of the others;
- honoured: ``weight`` and ``tie`` of a preference, and the flags by which a turn or a row is not to be trained
  (:data:`FLAGS`, :data:`TRAINED`, :data:`UNTRAINED`);
- or a reason to refuse the row: tools, pictures, a reasoning text, a template of its own (:data:`BEYOND_TEXT`).

Other columns stay in the metadata; :func:`trimtab.records.importers.read` lists them once, with their count.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.config import LARGEST
from trimtab.records import literals
from trimtab.records.readers import kind_of
from trimtab.records.types import Message, Role

Columns = Mapping[str, Any]

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
    "developer": "system",
}
"""Names of speakers in the formats in use."""

_TOOL_CALLS = ("function_call", "function-call", "tool_call", "tool-call", "tool_calls")

SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "sys")
"""Columns that hold the system message."""

HISTORY = ("history", "chat_history", "conversation_history")
"""Columns that hold earlier turns."""

WEIGHTS = ("weight", "sample_weight", "example_weight", "loss_weight")
"""Columns that say how much a row counts."""

TIES = ("tie", "is_tie")
"""Columns that say, where true, that neither of two answers is better."""

BEYOND_TEXT = (
    *("tools", "functions", "tool_calls", "function_call", "available_tools"),
    *("images", "image", "videos", "video", "audios", "audio", "documents", "files", "attachments"),
    *("reasoning_content", "thinking"),
    *("chat_template", "chat_template_kwargs"),
    *("input_ids", "attention_mask", "token_type_ids", "loss_mask", "completion_mask", "assistant_masks"),
)
"""Columns that a record of text cannot hold; a row in which one is not empty is refused."""

SWITCHES = (
    *("train_on_inputs", "train_on_input", "train_on_prompt", "mask_history"),
    *("train_on_last_turn_only", "train_on_last_turn", "last_turn_only"),
)
"""Columns that ask for a loss on other turns than all of the assistant's; a row in which one is true is refused."""

_LEFT_OUT = (
    *("ignore", "ignored", "ignore_loss", "no_loss", "no_train", "do_not_train"),
    *("skip", "exclude", "excluded", "deleted", "is_deleted"),
)

_PART_OF = ("is_train", "include")
"""Flags that name a split or a conversation where they are true; true of a user's turn, they ask for nothing."""

UNTRAINED = ("masked", "is_masked", *_LEFT_OUT)
"""Keys of a turn, and columns of a row, that say where true that it is not trained."""

FLAGS = (
    *("weight", "train", "training", "trainable", "trained", "is_train", "to_train", "train_on_turn", "learn"),
    *("loss", "loss_mask", "loss_weight", "compute_loss", "calculate_loss", "supervised", "include"),
    *UNTRAINED,
)
"""Keys of a turn that say whether it is trained."""

TRAINED = ("train", "trainable", "to_train", "use_for_training", "include_in_training")
"""Columns that say, where false, that the row is not trained; ``is_train`` names a split and is no such flag."""

TURN_BEYOND_TEXT = (
    *("tool_calls", "function_call", "tool_call_id", "tools", "functions"),
    *("images", "image", "videos", "video", "audios", "audio", "documents", "files", "attachments"),
    *("reasoning_content", "reasoning", "reasoning_details", "thinking", "thoughts", "refusal", "recipient", "channel"),
    *("prefix", "partial", "mask", "loss_scale", "train_detail", "training_detail"),
)
"""Keys of a turn that a record cannot hold; a row in which one is not empty is refused."""

PASSAGES = ("document", "article", "paragraph", "background")
"""Columns that belong to a question, unless they hold one word of ASCII: an id, an address or a topic."""

QUESTION = ("input", "context", "passage", *PASSAGES, "choices", "options")
"""Columns that belong to a question. Beside a prompt that does not contain them the row is refused."""

MEANING = frozenset((*SYSTEM, *HISTORY, *WEIGHTS, *TRAINED, *UNTRAINED, "mask", *BEYOND_TEXT, *SWITCHES))
"""Columns that are handled for every format and are no metadata."""


class RowError(ValueError):
    """A row cannot become a record; the text is the reason."""


# Values -----------------------------------------------------------------------------------


def get(columns: Columns, name: str) -> Any:
    """A column that must be there."""
    if columns.get(name) is None:
        raise RowError(f"{name!r} is {'null' if name in columns else 'missing'}")
    return columns[name]


def text(columns: Columns, name: str) -> str:
    """A column of text."""
    value = get(columns, name)
    if not isinstance(value, str):
        raise RowError(f"{name!r} is {kind_of(value)}, expected text")
    return value


def number(columns: Columns, name: str) -> float:
    """A column with a number, which may be written as text."""
    value = get(columns, name)
    converted = literals.number(value)
    if converted is None:
        raise RowError(f"{name!r} is {kind_of(value)}, expected a finite number below {LARGEST:g}")
    return converted


def boolean(columns: Columns, name: str) -> bool:
    """A column with a boolean, which may be written as 0 and 1, or as text."""
    value = get(columns, name)
    converted = literals.boolean(value)
    if converted is None:
        raise RowError(f"{name!r} is {kind_of(value)}, expected true or false")
    return converted


def listing(columns: Columns, name: str) -> list[Columns]:
    """A column with a list of objects, which may be written as text."""
    value = get(columns, name)
    if isinstance(value, str):
        value = literals.parse(value) or value
    if not literals.is_list(value):
        raise RowError(f"{name!r} is {kind_of(value)}, expected a list")
    for index, item in enumerate(value):
        if not literals.is_object(item):
            raise RowError(f"{name}[{index}] is {kind_of(item)}, expected an object")
    return value


def role(columns: Columns, name: str) -> Role:
    """A column with a speaker's name."""
    if text(columns, name).lower() in _TOOL_CALLS:
        raise RowError("calls a tool, and a record holds text only")
    speaker = ROLES.get(text(columns, name).lower())
    if speaker is None:
        raise RowError(f"{name!r} is none of {', '.join(ROLES)}")
    return speaker


def is_empty(value: Any) -> bool:
    """True: the value says nothing (null, false, zero, blank text, an empty list or object, written as text or not)."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "[]", "{}", "null", "none", "false")
    if literals.is_object(value):
        return all(is_empty(inner) for inner in value.values())
    return not value


# Turns ------------------------------------------------------------------------------------


def messages(columns: Columns, name: str) -> list[Message]:
    """A list of ``role``/``content`` or ``from``/``value`` objects as turns."""
    turns: list[Message] = []
    for index, item in enumerate(listing(columns, name)):
        try:
            turns.append(_message(item))
        except RowError as error:
            raise RowError(f"{name}[{index}]: {error}") from None
    if not turns:
        raise RowError(f"{name!r} is empty")
    return turns


def turns(columns: Columns, name: str, speaker: Role) -> list[Message]:
    """A column that holds one turn's text, one turn, or a list of turns."""
    value = columns.get(name)
    if isinstance(value, dict):
        return messages({name: [value]}, name)
    if isinstance(value, list):
        return messages(columns, name)
    return [Message(role=speaker, content=text(columns, name))]


def untrained(columns: Columns, name: str) -> list[int]:
    """Places in a list of turns of the assistant's turns that are not to be trained."""
    value = columns.get(name)
    items = [value] if literals.is_object(value) else value if literals.is_list(value) else []
    turns = [(place, item) for place, item in enumerate(items) if literals.is_object(item)]
    return [place for place, item in turns if _speaker(item) == "assistant" and not _trained(item)]


def _speaker(item: Columns) -> Role:
    return role(item, "from" if "from" in item else "role")


def _message(item: Columns) -> Message:
    speaker = _speaker(item)
    for key in TURN_BEYOND_TEXT:
        if not is_empty(item.get(key)):
            reason = "calls a tool" if key in ("tool_calls", "function_call") else f"has {key!r}"
            raise RowError(f"{reason}, and a record holds text only")
    name = item.get("name")
    if not is_empty(name) and ROLES.get(str(name).lower()) != speaker:
        raise RowError("has a 'name', which a record does not hold; write the speaker's name into the text")
    trained = _trained(item)
    sets_loss = any(item.get(key) is not None for key in FLAGS if key not in (*_LEFT_OUT, *_PART_OF))
    if speaker != "assistant" and trained and sets_loss:
        raise RowError("asks for a loss on this turn, and only the assistant's turns are trained")
    content = "value" if "value" in item and item.get("content") is None else "content"
    return Message(role=speaker, content=_content(item, content))


def _content(item: Columns, name: str) -> str:
    """The text of a turn: one string, or a list of parts that are all text."""
    value = item.get(name)
    if not literals.is_list(value):
        return text(item, name)
    parts: list[Any] = [
        part.get("text") if literals.is_object(part) and part.get("type") == "text" else None for part in value
    ]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise RowError(f"{name!r} is a list, expected text or parts that are all text")
    return "".join(str(part) for part in parts)


def _trained(item: Columns) -> bool:
    """False: a flag of this turn takes it out of the loss."""
    flags: list[bool] = []
    for key in FLAGS:
        if item.get(key) is None:
            continue
        value = literals.boolean(item[key])
        if value is None:
            raise RowError(f"{key!r} is {kind_of(item[key])}, expected 0 or 1: a turn is trained or it is not")
        flags.append(value != (key in UNTRAINED))
    return all(flags)


# What a row says beside its text -----------------------------------------------------------


def check_meaning(columns: Columns) -> None:
    """Refuse a row that a record of text cannot hold.

    Raises:
        RowError: with the column and what to do.
    """
    for name in BEYOND_TEXT:
        if not is_empty(columns.get(name)):
            raise RowError(f"has {name!r}, and a record holds text only; put it into the text, or drop the column")
    for name in SWITCHES:
        if not is_empty(columns.get(name)) and boolean(columns, name):
            raise RowError(
                f"{name!r} is true, and all turns of the assistant are trained and no others; drop the column"
            )
    for name in TRAINED:
        value = columns.get(name)
        if value is not None and literals.boolean(value) is False:
            raise RowError(f"{name!r} is false: the row is not to be trained")
    for name in UNTRAINED:
        if literals.boolean(columns.get(name)) is True:
            raise RowError(f"{name!r} is true: the row is not to be trained")
    labels = columns.get("labels")
    if literals.is_list(labels) and labels and all(type(label) is int for label in labels):
        raise RowError("'labels' are tokens, and a record holds text only")
    mask = columns.get("mask")
    if not is_empty(mask) and ROLES.get(str(mask).lower()) != "user":
        raise RowError("'mask' is not the user: all turns of the assistant are trained and no others; drop the column")


def other_meanings(columns: Columns) -> set[str]:
    """Columns named like a flag or a tie whose value is no boolean: they mean something else and are metadata."""
    given = [name for name in (*TRAINED, *UNTRAINED, *TIES) if not is_empty(columns.get(name))]
    return {name for name in given if literals.boolean(columns[name]) is None}


def is_tie(columns: Columns) -> bool:
    """True: a column says that neither answer is better."""
    return any(literals.boolean(columns.get(name)) is True for name in TIES)


def weight(columns: Columns) -> float:
    """How much a row counts, 1 unless it says so.

    Raises:
        RowError: 0, negative or no number.
    """
    product = 1.0
    for name in WEIGHTS:
        if columns.get(name) in (None, ""):
            continue
        value = number(columns, name)
        if value <= 0:
            raise RowError(f"{name!r} is {'0' if value == 0 else 'negative'}: the row counts for nothing")
        product *= value
    return product


def check_weight(columns: Columns) -> None:
    """Refuse a weight other than 1, for records that have none."""
    if weight(columns) != 1.0:
        raise RowError("has a weight, and only preferences can be weighted; repeat or drop the row")


def begin(columns: Columns, given: Sequence[Message]) -> list[Message]:
    """The turns with the row's ``system`` message and its earlier turns in front."""
    systems = {text(columns, name) for name in SYSTEM if not is_empty(columns.get(name))}
    if given and given[0].role == "system":
        systems.add(given[0].content)
        given = given[1:]
    if len(systems) > 1:
        raise RowError("has two different system messages")
    head = [Message(role="system", content=content) for content in systems]
    return [*head, *_history(columns), *given]


def _history(columns: Columns) -> list[Message]:
    """Earlier turns: a list of turns, or of pairs of question and answer."""
    given = [name for name in HISTORY if not is_empty(columns.get(name))]
    if not given:
        return []
    if len(given) > 1:
        raise RowError(f"has earlier turns in {given[0]!r} and in {given[1]!r}")
    [name] = given
    value = columns[name]
    if isinstance(value, str):
        value = literals.parse(value)
        if value is None:
            raise RowError(f"{name!r} is text, expected a list of turns or of pairs")
    if is_empty(value):
        return []
    if literals.is_list(value) and literals.is_object(value[0]):
        return messages({name: value}, name)
    turns: list[Message] = []
    for index, pair in enumerate(value if literals.is_list(value) else [value]):
        if not (literals.is_list(pair) and len(pair) == 2 and all(isinstance(turn, str) for turn in pair)):
            raise RowError(f"{name}[{index}] is no pair of question and answer")
        turns += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    return turns


def question(columns: Columns, name: str) -> list[Message]:
    """The turns of a prompt column, with ``input`` after an ``instruction`` and the row's system and history in front.

    Raises:
        RowError: a column that belongs to the question (:data:`QUESTION`) is no part of it.
    """
    question_turns = turns(columns, name, "user")
    if isinstance(columns.get(name), str):
        used: tuple[str, ...] = ()
        if name == "instruction" and not is_empty(columns.get("input")):
            joined = f"{question_turns[0].content}\n\n{text(columns, 'input')}"
            question_turns = [Message(role="user", content=joined)]
            used = ("input",)
        for other in QUESTION:
            value = columns.get(other)
            if other in used or other == name or is_empty(value):
                continue
            pieces = value if literals.is_list(value) else [value]
            if other in PASSAGES and all(re.fullmatch(r"[!-~]*", str(piece).strip()) for piece in pieces):
                continue
            if not all(str(piece).strip() in question_turns[0].content for piece in pieces):
                raise RowError(
                    f"{other!r} belongs to the question, and {name!r} does not contain it; "
                    "put it in there, or drop the column"
                )
    return begin(columns, question_turns)
