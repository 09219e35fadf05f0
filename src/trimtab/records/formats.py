r"""The row formats of other tools: each row to the records it holds.

=====================  ==============================================================  ====================
format                 columns                                                         becomes
=====================  ==============================================================  ====================
records                our own JSON lines (:mod:`trimtab.records.types`)               the record it is
oasst                  prompt (a message with replies in replies), OpenAssistant       Preference per ranked
                                                                                       reply set, Demonstration
                                                                                       per best-ranked path
ultrafeedback          instruction, completions (response, overall_score or            Preference
                       fine-grained_score); or chosen, rejected, score_chosen,
                       score_rejected
trl-unpaired           prompt, completion, label (true: thumbs up)                     Rating
trl-preference         prompt (or instruction with input, question, conversations,     Preference
                       messages or input), chosen, rejected (text or messages); or
                       chosen, rejected as whole conversations; margin and tie where
                       given
hh                     chosen, rejected: "\n\nHuman: … \n\nAssistant: …" transcripts       Preference
two-answers            instruction, input or prompt, output_1, output_2, label or      Preference
                       preference (1 or 2), and its like
                       (:mod:`trimtab.records.two_answers`)
openai-preference      input (messages), preferred_output, non_preferred_output        Preference
trl-prompt-completion  prompt, completion (text or messages)                           Demonstration
messages               messages (role, content)                                        Demonstration, or
                                                                                       Prompt without answer
sharegpt               conversations (from, value)                                     the same
alpaca                 instruction, input, output; or instances of input, output       Demonstration
question-answer        question, answer (kept as metadata.reference too)               Demonstration
trl-prompt-only        prompt (text or messages)                                       Prompt
=====================  ==============================================================  ====================

Columns and keys that carry meaning beside the text (``system``, ``history``, ``weight``, flags of turns that are not
to be trained, ``tools``, …) are rendered, honoured or refused as :mod:`trimtab.records.cells` says. ``kto_tag``, or a
``label`` of true, false, yes or no, makes a Rating of a row in the formats messages, sharegpt, alpaca and
question-answer. All other columns are kept in the metadata of the prompt or demonstration, and :func:`unread` names
them. Whatever cannot become a record raises :class:`RowError` with a reason that never quotes the row's text.

Departures from the sources. ``trl-prompt-completion`` teaches every assistant turn of the prompt
as well, because a :class:`Demonstration` does. Equal scores in ``ultrafeedback`` are ties, also in
the binarized files that call one of two equals chosen. Score columns rank and become no margin.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trimtab.records import cells, literals, rows, two_answers
from trimtab.records.cells import FLAGS, MEANING, TURN_BEYOND_TEXT, Columns, RowError
from trimtab.records.types import Record

READ_BY_REWARDS = frozenset(("reference", "answer", "instruction_id_list", "kwargs"))
"""Metadata that the rewards by rule read (:mod:`trimtab.feedback.verifiers`)."""

_TURN_KEYS = frozenset(("role", "content", "from", "value", "name", *FLAGS, *TURN_BEYOND_TEXT))
_LISTS = ("messages", "conversations", "completions", "instances")
_ITEM_KEYS = {
    "completions": frozenset(("response", "overall_score", "fine-grained_score", "model")),
    "instances": frozenset(("input", "output")),
    "input": frozenset(("messages", "tools", "functions")),
    "question": frozenset(("full_text",)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How one kind of file writes its rows."""

    name: str
    """What ``--format`` calls it."""
    columns: str
    """The columns it needs, for messages."""
    matches: Callable[[Columns], bool]
    """True: the row has this format's columns (their content is not checked yet)."""
    uses: Callable[[Columns], Sequence[str]]
    """The columns of a row that it reads."""
    read: Callable[[Columns, dict[str, Any]], list[Record]]
    """The records of a row, given the row and its metadata; raises :class:`RowError` or pydantic's
    ``ValidationError``."""


def read_row(form: Format, columns: Columns) -> list[Record]:
    """The records a row holds, at least one.

    Raises:
        RowError: the row cannot become a record of this format.
    """
    try:
        if form.name == "records":
            records = form.read(columns, {})
        else:
            columns = literals.without_nan(columns)
            cells.check_meaning(columns)
            records = form.read(columns, _metadata(form, columns)[0])
    except ValidationError as error:
        raise RowError(explain(error)) from None
    except RecursionError:
        raise RowError("nested too deeply") from None
    if not records:
        raise RowError("holds no answer")
    return records


def explain(error: ValidationError) -> str:
    """The first thing pydantic found, as a reason without the value."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")[:200]
    return f"{where!r}: {message}" if where else message


def unread(form: Format, columns: Columns) -> list[str]:
    """Columns of a row that no part of trimtab reads by itself, and keys of its turns that are dropped.

    Columns stay in the metadata, where a reward function of the user's may read them. One that has no JSON form, such
    as bytes, does not: its name is followed by ``(dropped)``. Keys of turns are written ``messages[].key``.
    """
    if form.name == "records":
        return []
    metadata, dropped = _metadata(form, columns)
    names = [name for name in metadata if name not in READ_BY_REWARDS]
    keys: dict[str, None] = {}
    for name in form.uses(columns):
        if form.name == "oasst":
            continue
        value = columns.get(name)
        if isinstance(value, str) and name in _LISTS:
            value = literals.parse(value)
        for item in value if literals.is_list(value) else [value]:
            if literals.is_object(item):
                known = _ITEM_KEYS.get(name, _TURN_KEYS)
                keys |= dict.fromkeys(f"{name}[].{key}" for key in item if key not in known)
    return [*names, *(f"{name} (dropped)" for name in dropped), *keys]


def doubts(form: Format, columns: Columns) -> list[str]:
    """What is odd about a row that is used all the same, in sentences that name no text of it."""
    if form.name == "ultrafeedback" and rows.scores_contradict(columns):
        return ["overall_score and fine-grained_score order its answers differently; overall_score counts"]
    if "chosen" in columns and form.name != "ultrafeedback":
        return [
            f"{chosen!r} is lower than {rejected!r}; 'chosen' counts"
            for chosen, rejected in rows.contradicting_scores(columns)
        ]
    return []


def _metadata(form: Format, columns: Columns) -> tuple[dict[str, Any], list[str]]:
    """The columns not used, as plain JSON, and the names of those that have no JSON form; null is left out."""
    used = {*form.uses(columns), *MEANING} - cells.other_meanings(columns)
    metadata: dict[str, Any] = {}
    dropped: list[str] = []
    for name, value in columns.items():
        value = literals.without_nan(value)
        if name in used or value is None:
            continue
        try:
            metadata |= literals.plain({name: value})
        except (TypeError, ValueError):
            dropped.append(str(name)[:40])
    return metadata, dropped


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (  # in the order in which they are tried: the more particular before the more general
        Format(
            name="records",
            columns="those of a trimtab record",
            matches=rows.is_record,
            uses=rows.uses(),
            read=rows.read_records,
        ),
        Format(
            name="oasst",
            columns="prompt with text, role and replies",
            matches=lambda c: isinstance(c.get("prompt"), dict) or rows.has("text", "role", "replies")(c),
            uses=rows.uses("prompt", "text", "role", "replies"),
            read=rows.read_oasst,
        ),
        Format(
            name="ultrafeedback",
            columns="instruction, completions; or chosen, rejected, score_chosen, score_rejected",
            matches=lambda c: (
                rows.has("instruction", "completions")(c)
                or rows.has("chosen", "rejected", "score_chosen", "score_rejected")(c)
            ),
            uses=rows.uses_ultrafeedback,
            read=rows.read_ultrafeedback,
        ),
        Format(
            name="trl-unpaired",
            columns="prompt, completion, label",
            matches=rows.has("prompt", "completion", "label"),
            uses=rows.uses("prompt", "completion", "label"),
            read=rows.read_unpaired,
        ),
        Format(
            name="trl-preference",
            columns="prompt (or instruction, question, conversations), chosen, rejected; or both as messages",
            matches=rows.is_preference,
            uses=rows.uses_pair,
            read=rows.read_preference,
        ),
        Format(
            name="hh",
            columns="chosen, rejected as transcripts",
            matches=rows.has("chosen", "rejected"),
            uses=rows.uses("chosen", "rejected", *cells.TIES),
            read=rows.read_hh,
        ),
        Format(
            name="two-answers",
            columns="instruction, input or prompt, output_1, output_2, label or preference; and its like",
            matches=lambda c: two_answers.layout(c) is not None,
            uses=two_answers.uses,
            read=two_answers.read,
        ),
        Format(
            name="openai-preference",
            columns="input with messages, preferred_output, non_preferred_output",
            matches=rows.has("input", "preferred_output", "non_preferred_output"),
            uses=rows.uses("input", "preferred_output", "non_preferred_output"),
            read=rows.read_openai_preference,
        ),
        Format(
            name="trl-prompt-completion",
            columns="prompt, completion",
            matches=rows.has("prompt", "completion"),
            uses=rows.uses("prompt", "completion"),
            read=rows.read_prompt_completion,
        ),
        Format(
            name="messages",
            columns="messages",
            matches=rows.has("messages"),
            uses=rows.uses_turns("messages"),
            read=rows.read_turns("messages"),
        ),
        Format(
            name="sharegpt",
            columns="conversations",
            matches=rows.has("conversations"),
            uses=rows.uses_turns("conversations"),
            read=rows.read_turns("conversations"),
        ),
        Format(
            name="alpaca",
            columns="instruction, input, output",
            matches=lambda c: "instruction" in c and ("output" in c or "instances" in c),
            uses=rows.uses_turns("instruction", "input", "output", "instances"),
            read=rows.read_alpaca,
        ),
        Format(
            name="question-answer",
            columns="question, answer",
            matches=rows.has("question", "answer"),
            uses=rows.uses_turns("question", "answer"),
            read=rows.read_question_answer,
        ),
        Format(
            name="trl-prompt-only",
            columns="prompt",
            matches=rows.has("prompt"),
            uses=rows.uses("prompt"),
            read=rows.read_prompt_only,
        ),
    )
}
"""Every format that is read, by name."""
