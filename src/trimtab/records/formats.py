r"""The row formats of other tools: each row to the records it holds, and records back to TRL's rows.

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
trl-preference         prompt, chosen, rejected (text or messages); or chosen,         Preference
                       rejected as whole conversations; margin where given
hh                     chosen, rejected: "\n\nHuman: … \n\nAssistant: …" transcripts       Preference
trl-prompt-completion  prompt, completion (text or messages)                           Demonstration
messages               messages (role, content)                                        Demonstration, or
                                                                                       Prompt without answer
sharegpt               conversations (from, value)                                     the same
alpaca                 instruction, input, output; or instances of input, output       Demonstration
question-answer        question, answer (kept as metadata.reference too)               Demonstration
trl-prompt-only        prompt (text or messages)                                       Prompt
=====================  ==============================================================  ====================

Columns a format does not use are kept in the metadata of the prompt or demonstration. Whatever
cannot become a record raises :class:`RowError` with a reason that never quotes the row's text.

Departures from the sources. ``trl-prompt-completion`` teaches every assistant turn of the prompt
as well, because a :class:`Demonstration` does. Equal scores in ``ultrafeedback`` are ties, also in
the binarized files that call one of two equals chosen. Score columns rank and become no margin.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from pydantic import ValidationError

from trimtab.records.readers import kind_of
from trimtab.records.types import (
    Comparison,
    Completion,
    Demonstration,
    Judgement,
    Message,
    Preference,
    Prompt,
    Rating,
    Record,
    Role,
    content_id,
)

Columns = Mapping[str, Any]

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
}


class RowError(ValueError):
    """A row cannot become a record; the text is the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How one kind of file writes its rows."""

    name: str
    """What ``--format`` calls it."""
    columns: str
    """The columns it needs, for messages."""
    matches: Callable[[Columns], bool]
    """True: the row has this format's columns (their content is not checked yet)."""
    read: Callable[[Columns], list[Record]]
    """The records of a row; raises :class:`RowError` or pydantic's ``ValidationError``."""


def read_row(form: Format, columns: Columns) -> list[Record]:
    """The records a row holds, at least one.

    Raises:
        RowError: the row cannot become a record of this format.
    """
    try:
        found = form.read(columns)
    except ValidationError as error:
        raise RowError(explain(error)) from None
    except RecursionError:
        raise RowError("nested too deeply") from None
    if not found:
        raise RowError("holds no answer")
    return found


def explain(error: ValidationError) -> str:
    """The first thing pydantic found, as a reason without the value."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")[:200]
    return f"{where!r}: {message}" if where else message


# Pieces of rows.


def _get(columns: Columns, name: str) -> Any:
    if columns.get(name) is None:
        raise RowError(f"{name!r} is {'null' if name in columns else 'missing'}")
    return columns[name]


def _text(columns: Columns, name: str) -> str:
    value = _get(columns, name)
    if not isinstance(value, str):
        raise RowError(f"{name!r} is {kind_of(value)}, expected text")
    return value


def _number(columns: Columns, name: str) -> float:
    value = _get(columns, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"{name!r} is {kind_of(value)}, expected a finite number")
    return float(value)


def _list(columns: Columns, name: str) -> list[Columns]:
    value = _get(columns, name)
    if not isinstance(value, list):
        raise RowError(f"{name!r} is {kind_of(value)}, expected a list")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise RowError(f"{name}[{index}] is {kind_of(item)}, expected an object")
    return value


def _role(columns: Columns, name: str) -> Role:
    role = _ROLES.get(_text(columns, name).lower())
    if role is None:
        raise RowError(f"{name!r} is none of {', '.join(_ROLES)}")
    return role


def _messages(columns: Columns, name: str) -> list[Message]:
    """A list of ``role``/``content`` or ``from``/``value`` objects as turns."""
    turns = []
    for index, item in enumerate(_list(columns, name)):
        speaker, content = ("from", "value") if "from" in item else ("role", "content")
        try:
            role = _role(item, speaker)
            if item.get("tool_calls") or item.get("function_call"):
                raise RowError("calls a tool, and a record holds text only")
            turns.append(Message(role=role, content=_text(item, content)))
        except RowError as error:
            raise RowError(f"{name}[{index}]: {error}") from None
    if not turns:
        raise RowError(f"{name!r} is empty")
    return turns


def _turns(columns: Columns, name: str, role: Role) -> list[Message]:
    """A column that holds one turn's text, or a list of turns."""
    if isinstance(columns.get(name), list):
        return _messages(columns, name)
    return [Message(role=role, content=_text(columns, name))]


def _rest(columns: Columns, *used: str) -> dict[str, Any]:
    """The columns not used, as plain JSON; what is null is left out."""
    rest: dict[str, Any] = {}
    for name, value in columns.items():
        if name in used or value is None:
            continue
        try:
            text = json.dumps({name: value}, ensure_ascii=False, allow_nan=False, default=_date)
            text.encode()
            rest |= json.loads(text)
        except (TypeError, ValueError):
            raise RowError(f"{str(name)[:40]!r} is no plain JSON value; drop that column") from None
    return rest


def _date(value: Any) -> str:
    if isinstance(value, date):  # and datetime, its subclass
        return value.isoformat()
    raise TypeError


def _prompt(turns: Sequence[Message], metadata: dict[str, Any]) -> Prompt:
    if not turns:
        raise RowError("no prompt before the answer")
    if not turns[-1].content.strip():
        raise RowError("the prompt's last turn is empty")
    return Prompt(id=message_id(turns), messages=tuple(turns), metadata=metadata)


def _conversation(turns: Sequence[Message], metadata: dict[str, Any]) -> Record:
    if all(turn.role != "assistant" for turn in turns):
        return _prompt(turns, metadata)
    return Demonstration(id=message_id(turns), messages=tuple(turns), metadata=metadata)


def message_id(turns: Sequence[Message]) -> str:
    """The id that :meth:`Prompt.of` and :meth:`Demonstration.of` give to these turns."""
    return content_id([turn.model_dump() for turn in turns])


def _answer(turns: Sequence[Message], name: str) -> str:
    if len(turns) != 1:
        raise RowError(f"{name!r} is {len(turns)} turns, expected one assistant turn")
    if turns[0].role != "assistant":
        raise RowError(f"{name!r} ends with a turn that is not the assistant's")
    if not turns[0].content.strip():
        raise RowError(f"{name!r}: the answer is empty")
    return turns[0].content


def _split(chosen: list[Message], rejected: list[Message]) -> int:
    """How many turns two conversations share before their answers: at most all but the last."""
    shared = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared += 1
    if max(len(chosen), len(rejected)) - shared > 1:
        raise RowError("'chosen' and 'rejected' differ before the last turn")
    return shared


def _pair(
    chosen: list[Message], rejected: list[Message], rest: dict[str, Any], margin: float | None = None
) -> Preference:
    shared = _split(chosen, rejected)
    prompt = _prompt(chosen[:shared], rest)
    return Preference.pair(
        prompt, _answer(chosen[shared:], "chosen"), _answer(rejected[shared:], "rejected"), margin=margin
    )


def _ranking(prompt: Prompt, answers: list[Completion], values: list[float], **metadata: Any) -> Preference:
    """Rank answers by ascending ``values``; equal values share a rank, and ranks have no gaps."""
    if len(answers) < 2:
        raise RowError(f"{len(answers)} answer to rank, expected two or more")
    order = {value: rank for rank, value in enumerate(sorted(set(values)))}
    ranks = tuple(order[value] for value in values)
    identity = content_id(prompt.id, [answer.text for answer in answers], ranks)
    return Preference(id=identity, prompt=prompt, completions=tuple(answers), ranks=ranks, metadata=metadata)


# One function per format.


def _read_records(columns: Columns) -> list[Record]:
    kind = _record_kind(columns)
    if kind is None:
        raise RowError("has the columns of no record")
    return [kind.model_validate(columns)]


def _record_kind(columns: Columns) -> type[Record] | None:
    if "annotator" in columns:
        return Judgement
    if "good" in columns:
        return Rating
    if "completions" in columns:
        return Preference if "ranks" in columns else Comparison
    messages = columns.get("messages")
    if not isinstance(messages, list):
        return None
    answered = any(isinstance(turn, dict) and turn.get("role") == "assistant" for turn in messages)
    return Demonstration if answered else Prompt


def _is_record(columns: Columns) -> bool:
    kind = _record_kind(columns)
    if kind is None or not isinstance(columns.get("id"), str) or not columns.keys() <= kind.model_fields.keys():
        return False
    # {id, messages} is also what other tools write; theirs may have more in a turn than role and content
    return all(isinstance(turn, dict) and turn.keys() == {"role", "content"} for turn in columns.get("messages", ()))


def _read_oasst(columns: Columns) -> list[Record]:
    root = _get(columns, "prompt") if "prompt" in columns else columns
    if not isinstance(root, dict):
        raise RowError(f"'prompt' is {kind_of(root)}, expected a message with replies")
    rest = _rest(columns, "prompt", "text", "role", "replies")
    return [*_rankings(root, [], rest), *_best_paths(root, [], rest)]


def _said(node: Columns) -> Message:
    return Message(role=_role(node, "role"), content=_text(node, "text"))


def _replies(node: Columns) -> list[Columns]:
    return [r for r in (_list(node, "replies") if node.get("replies") else []) if not r.get("deleted")]


def _rankings(node: Columns, before: list[Message], rest: dict[str, Any]) -> Iterator[Preference]:
    """Every set of sibling answers of which two or more are ranked, with the conversation so far."""
    turns = [*before, _said(node)]
    replies = _replies(node)
    ranked = [r for r in replies if r.get("rank") is not None and _said(r).role == "assistant"]
    if len(ranked) > 1 and turns[-1].role != "assistant":
        answers = [Completion(text=_answer([_said(r)], "text"), model=r.get("model_name")) for r in ranked]
        yield _ranking(_prompt(turns, rest), answers, [_number(r, "rank") for r in ranked])
    for reply in replies:
        yield from _rankings(reply, turns, rest)


def _best_paths(node: Columns, before: list[Message], rest: dict[str, Any]) -> Iterator[Demonstration]:
    """The conversations that follow every question and, of its answers, those of the best rank."""
    turns = [*before, _said(node)]
    replies = _replies(node)
    ranks = [_number(r, "rank") for r in replies if r.get("rank") is not None]
    if ranks:
        replies = [r for r in replies if r.get("rank") == min(ranks)]
    longer = [path for reply in replies for path in _best_paths(reply, turns, rest)]
    if longer:
        yield from longer
    elif turns[-1].role == "assistant":
        yield Demonstration(id=message_id(turns), messages=tuple(turns), metadata=rest)


def _read_ultrafeedback(columns: Columns) -> list[Record]:
    if "chosen" in columns:
        chosen, rejected = _turns(columns, "chosen", "assistant"), _turns(columns, "rejected", "assistant")
        rest = _rest(columns, "prompt", "messages", "chosen", "rejected", "score_chosen", "score_rejected")
        pair = _pair(_whole(columns, chosen), _whole(columns, rejected), rest)
        scores = [_number(columns, "score_chosen"), _number(columns, "score_rejected")]
        if scores[0] < scores[1]:
            raise RowError("'score_chosen' is lower than 'score_rejected'")
        return [_ranking(pair.prompt, list(pair.completions), [-s for s in scores], scores=scores)]
    prompt = _prompt(_turns(columns, "instruction", "user"), _rest(columns, "instruction", "completions"))
    given = _list(columns, "completions")
    name = "overall_score" if all(c.get("overall_score") is not None for c in given) else "fine-grained_score"
    answers = [
        Completion(text=_answer(_turns(c, "response", "assistant"), "response"), model=c.get("model")) for c in given
    ]
    scores = [_number(c, name) for c in given]
    return [_ranking(prompt, answers, [-s for s in scores], scores=scores)]


def _read_unpaired(columns: Columns) -> list[Record]:
    prompt = _prompt(_turns(columns, "prompt", "user"), _rest(columns, "prompt", "completion", "label"))
    answer = _answer(_turns(columns, "completion", "assistant"), "completion")
    good = _get(columns, "label")
    if not isinstance(good, bool):
        raise RowError(f"'label' is {kind_of(good)}, expected true or false")
    return [
        Rating(id=content_id(prompt.id, answer, good), prompt=prompt, completion=Completion(text=answer), good=good)
    ]


def _read_preference(columns: Columns) -> list[Record]:
    chosen, rejected = (_whole(columns, _turns(columns, name, "assistant")) for name in ("chosen", "rejected"))
    margin = None if columns.get("margin") is None else _number(columns, "margin")
    return [_pair(chosen, rejected, _rest(columns, "prompt", "chosen", "rejected", "margin"), margin)]


def _whole(columns: Columns, answer: list[Message]) -> list[Message]:
    """The conversation up to and with ``answer``, which may hold the prompt already."""
    given = columns.get("prompt")
    if answer[0].role != "assistant":
        if isinstance(given, list) and answer[: len(given)] != _messages(columns, "prompt"):
            raise RowError("'chosen' and 'rejected' are whole conversations that do not begin with 'prompt'")
        return answer
    return [*_turns(columns, "prompt", "user"), *answer]


def _read_hh(columns: Columns) -> list[Record]:
    rest = _rest(columns, "chosen", "rejected")
    return [_pair(_transcript(columns, "chosen"), _transcript(columns, "rejected"), rest)]


def _transcript(columns: Columns, name: str) -> list[Message]:
    before, *parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + _text(columns, name).lstrip())
    if before.strip() or not parts:
        raise RowError(f"{name!r} does not begin with a 'Human:' turn")
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [Message(role=roles[speaker], content=content.strip()) for speaker, content in pairs]


def _read_prompt_completion(columns: Columns) -> list[Record]:
    prompt = _prompt(_turns(columns, "prompt", "user"), _rest(columns, "prompt", "completion"))
    turns = (*prompt.messages, *_turns(columns, "completion", "assistant"))
    return [Demonstration(id=message_id(turns), messages=turns, metadata=prompt.metadata)]


def _read_messages(columns: Columns) -> list[Record]:
    return [_conversation(_messages(columns, "messages"), _rest(columns, "messages"))]


def _read_sharegpt(columns: Columns) -> list[Record]:
    return [_conversation(_messages(columns, "conversations"), _rest(columns, "conversations"))]


def _read_alpaca(columns: Columns) -> list[Record]:
    rest = _rest(columns, "instruction", "input", "output", "instances")
    found: list[Record] = []
    for item in _list(columns, "instances") if "instances" in columns else [columns]:
        given = _text(item, "input") if item.get("input") is not None else ""
        question = _text(columns, "instruction") + (f"\n\n{given}" if given.strip() else "")
        prompt = _prompt([Message(role="user", content=question)], rest)
        answer = Message(role="assistant", content=_text(item, "output"))
        found.append(_conversation([*prompt.messages, answer], rest))
    return found


def _read_question_answer(columns: Columns) -> list[Record]:
    answer = _text(columns, "answer")
    turns = [Message(role="user", content=_text(columns, "question")), Message(role="assistant", content=answer)]
    return [_conversation(turns, _rest(columns, "question", "answer") | {"reference": answer})]


def _read_prompt_only(columns: Columns) -> list[Record]:
    return [_prompt(_turns(columns, "prompt", "user"), _rest(columns, "prompt"))]


def _has(*names: str) -> Callable[[Columns], bool]:
    return lambda columns: all(name in columns for name in names)


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (  # in the order in which they are tried: the more particular before the more general
        Format(name="records", columns="those of a trimtab record", matches=_is_record, read=_read_records),
        Format(
            name="oasst",
            columns="prompt with text, role and replies",
            matches=lambda c: isinstance(c.get("prompt"), dict) or _has("text", "role", "replies")(c),
            read=_read_oasst,
        ),
        Format(
            name="ultrafeedback",
            columns="instruction, completions; or chosen, rejected, score_chosen, score_rejected",
            matches=lambda c: (
                _has("instruction", "completions")(c) or _has("chosen", "rejected", "score_chosen", "score_rejected")(c)
            ),
            read=_read_ultrafeedback,
        ),
        Format(
            name="trl-unpaired",
            columns="prompt, completion, label",
            matches=_has("prompt", "completion", "label"),
            read=_read_unpaired,
        ),
        Format(
            name="trl-preference",
            columns="prompt, chosen, rejected; or chosen, rejected as lists of messages",
            matches=lambda c: _has("chosen", "rejected")(c) and ("prompt" in c or isinstance(c["chosen"], list)),
            read=_read_preference,
        ),
        Format(name="hh", columns="chosen, rejected as transcripts", matches=_has("chosen", "rejected"), read=_read_hh),
        Format(
            name="trl-prompt-completion",
            columns="prompt, completion",
            matches=_has("prompt", "completion"),
            read=_read_prompt_completion,
        ),
        Format(name="messages", columns="messages", matches=_has("messages"), read=_read_messages),
        Format(name="sharegpt", columns="conversations", matches=_has("conversations"), read=_read_sharegpt),
        Format(
            name="alpaca",
            columns="instruction, input, output",
            matches=lambda c: "instruction" in c and ("output" in c or "instances" in c),
            read=_read_alpaca,
        ),
        Format(
            name="question-answer",
            columns="question, answer",
            matches=_has("question", "answer"),
            read=_read_question_answer,
        ),
        Format(name="trl-prompt-only", columns="prompt", matches=_has("prompt"), read=_read_prompt_only),
    )
}
"""Every format that is read, by name."""


def trl_rows(record: Record) -> list[dict[str, Any]]:
    """A record as rows that TRL's trainers read, conversational form.

    A ranking gives one row for each strict pair, none for ties. Weights, soft labels, ids and
    metadata have no place in these rows.

    Raises:
        RowError: TRL has no row for such a record.
    """

    def said(role: Role, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    match record:
        case Preference():
            margin = {} if record.margin is None else {"margin": record.margin}
            return [
                {
                    "prompt": _plain(record.prompt.messages),
                    "chosen": said("assistant", winner.text),
                    "rejected": said("assistant", loser.text),
                }
                | margin
                for winner, loser in strict_pairs(record)
            ]
        case Demonstration():
            return [{"messages": _plain(record.messages)}]
        case Rating():
            answer = said("assistant", record.completion.text)
            return [{"prompt": _plain(record.prompt.messages), "completion": answer, "label": record.good}]
        case Prompt():
            return [{"prompt": _plain(record.messages)}]
    raise RowError(f"TRL has no row for a {type(record).__name__}")


def _plain(turns: Sequence[Message]) -> list[dict[str, str]]:
    return [turn.model_dump() for turn in turns]


def strict_pairs(record: Preference) -> list[tuple[Completion, Completion]]:
    """Every (better, worse) pair of a ranking; ties give none."""
    ranked = list(zip(record.ranks, record.completions, strict=True))
    return [(better, worse) for rank, better in ranked for other, worse in ranked if rank < other]
