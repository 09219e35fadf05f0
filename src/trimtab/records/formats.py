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
trl-preference         prompt (or instruction with input, question, conversations or   Preference
                       messages), chosen, rejected (text or messages); or chosen,
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

Columns and keys that carry meaning beside the text (``system``, ``history``, ``weight``, flags of turns that are not
to be trained, ``tools``, …) are rendered, honoured or refused as :mod:`trimtab.records.cells` says. ``kto_tag``, or a
``label`` of true, false, yes or no, makes a Rating of a row in the formats messages, sharegpt, alpaca and
question-answer. All other columns are kept in the metadata of the prompt or demonstration, and :func:`unread` names
them. Whatever cannot become a record raises :class:`RowError` with a reason that never quotes the row's text.

Departures from the sources. ``trl-prompt-completion`` teaches every assistant turn of the prompt
as well, because a :class:`Demonstration` does. Equal scores in ``ultrafeedback`` are ties, also in
the binarized files that call one of two equals chosen. Score columns rank and become no margin.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trimtab.records import cells, literals
from trimtab.records.cells import FLAGS, MEANING, TURN_BEYOND_TEXT, Columns, RowError
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

READ_BY_REWARDS = frozenset(("reference", "answer", "instruction_id_list", "kwargs"))
"""Metadata that the rewards by rule read (:mod:`trimtab.feedback.verifiers`)."""

_TURN_KEYS = frozenset(("role", "content", "from", "value", "name", *FLAGS, *TURN_BEYOND_TEXT))
_LISTS = ("messages", "conversations", "completions", "instances")
_THUMBS = ("true", "false", "yes", "no")
_ITEM_KEYS = {
    "completions": frozenset(("response", "overall_score", "fine-grained_score", "model")),
    "instances": frozenset(("input", "output")),
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
            found = form.read(columns, {})
        else:
            columns = literals.without_nan(columns)
            cells.check_meaning(columns)
            found = form.read(columns, _metadata(form, columns)[0])
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
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                known = _ITEM_KEYS.get(name, _TURN_KEYS)
                keys |= dict.fromkeys(f"{name}[].{key}" for key in item if key not in known)
    return [*names, *(f"{name} (dropped)" for name in dropped), *keys]


def doubts(form: Format, columns: Columns) -> list[str]:
    """What is odd about a row that is used all the same, in sentences that name no text of it."""
    if form.name == "ultrafeedback" and _scores_contradict(columns):
        return ["overall_score and fine-grained_score order its answers differently; overall_score counts"]
    return []


# Pieces of rows.


def _metadata(form: Format, columns: Columns) -> tuple[dict[str, Any], list[str]]:
    """The columns not used, as plain JSON, and the names of those that have no JSON form; null is left out."""
    used = {*form.uses(columns), *MEANING}
    kept: dict[str, Any] = {}
    dropped = []
    for name, value in columns.items():
        value = literals.without_nan(value)
        if name in used or value is None:
            continue
        try:
            kept |= literals.plain({name: value})
        except (TypeError, ValueError):
            dropped.append(str(name)[:40])
    return kept, dropped


def _prompt(turns: Sequence[Message], metadata: dict[str, Any]) -> Prompt:
    if not turns:
        raise RowError("no prompt before the answer")
    if not turns[-1].content.strip():
        raise RowError("the prompt's last turn is empty")
    return Prompt(id=message_id(turns), messages=tuple(turns), metadata=metadata)


def _conversation(turns: Sequence[Message], metadata: dict[str, Any], untrained: Sequence[int] = ()) -> Record:
    """A demonstration, or a prompt where nobody answers; ``untrained`` counts from the last turn (0) backwards."""
    if all(turn.role != "assistant" for turn in turns):
        return _prompt(turns, metadata)
    places = tuple(sorted(len(turns) - 1 - place for place in untrained))
    return Demonstration(id=message_id(turns), messages=tuple(turns), untrained=places, metadata=metadata)


def _untrained(columns: Columns, name: str) -> list[int]:
    """Places of the turns not to be trained in a column of turns, counted from its last turn (0) backwards."""
    places = cells.untrained(columns, name)
    last = len(cells.turns(columns, name, "assistant")) - 1 if places else 0
    return [last - place for place in places]


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


def _check_trained(columns: Columns, *names: str) -> None:
    """Refuse a row whose judged answer is flagged as not to be trained."""
    for name in names:
        if 0 in _untrained(columns, name):
            raise RowError(f"{name!r}: the answer is not to be trained")


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
    chosen: list[Message],
    rejected: list[Message],
    metadata: dict[str, Any],
    *,
    margin: float | None = None,
    weight: float = 1.0,
) -> Preference:
    shared = _split(chosen, rejected)
    prompt = _prompt(chosen[:shared], metadata)
    answers = _answer(chosen[shared:], "chosen"), _answer(rejected[shared:], "rejected")
    return Preference.pair(prompt, *answers, margin=margin, weight=weight)


def _ranking(
    prompt: Prompt, answers: list[Completion], values: list[float], *, weight: float = 1.0, **metadata: Any
) -> Preference:
    """Rank answers by ascending ``values``; equal values share a rank, and ranks have no gaps."""
    if len(answers) < 2:
        raise RowError(f"{len(answers)} answer to rank, expected two or more")
    order = {value: rank for rank, value in enumerate(sorted(set(values)))}
    ranks = tuple(order[value] for value in values)
    return Preference(
        id=content_id(prompt.id, [answer.text for answer in answers], ranks),
        prompt=prompt,
        completions=tuple(answers),
        ranks=ranks,
        weight=weight,
        metadata=metadata,
    )


def _rating(turns: Sequence[Message], answer: str, good: bool, metadata: dict[str, Any]) -> Rating:
    prompt = _prompt(turns, metadata)
    return Rating(id=content_id(prompt.id, answer, good), prompt=prompt, completion=Completion(text=answer), good=good)


def _thumb(columns: Columns) -> str | None:
    """The column with a thumb on the answer, in formats that may have one.

    A ``label`` that is not true, false, yes or no is a class of the data's own, and metadata.
    """
    if columns.get("kto_tag") is not None:
        return "kto_tag"
    label = columns.get("label")
    is_thumb = isinstance(label, bool) or (isinstance(label, str) and label.strip().lower() in _THUMBS)
    return "label" if is_thumb else None


def _rated_or_shown(
    columns: Columns, turns: Sequence[Message], metadata: dict[str, Any], untrained: Sequence[int] = ()
) -> Record:
    """A rating where the row has a thumb, otherwise a demonstration, or a prompt where nobody answers."""
    cells.check_weight(columns)
    thumb = _thumb(columns)
    if thumb is None:
        return _conversation(turns, metadata, untrained)
    if 0 in untrained:
        raise RowError("the answer is not to be trained")
    return _rating(turns[:-1], _answer(turns[-1:], "answer"), cells.boolean(columns, thumb), metadata)


# One function per format.


def _read_records(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
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


def _read_oasst(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    root = cells.get(columns, "prompt") if "prompt" in columns else columns
    if not isinstance(root, dict):
        raise RowError(f"'prompt' is {kind_of(root)}, expected a message with replies")
    cells.check_weight(columns)
    return [*_rankings(root, [], metadata), *_best_paths(root, [], metadata)]


def _said(node: Columns) -> Message:
    return Message(role=cells.role(node, "role"), content=cells.text(node, "text"))


def _replies(node: Columns) -> list[Columns]:
    return [r for r in (cells.listing(node, "replies") if node.get("replies") else []) if not r.get("deleted")]


def _rankings(node: Columns, before: list[Message], metadata: dict[str, Any]) -> Iterator[Preference]:
    """Every set of sibling answers of which two or more are ranked, with the conversation so far."""
    turns = [*before, _said(node)]
    replies = _replies(node)
    ranked = [r for r in replies if r.get("rank") is not None and _said(r).role == "assistant"]
    if len(ranked) > 1 and turns[-1].role != "assistant":
        answers = [Completion(text=_answer([_said(r)], "text"), model=r.get("model_name")) for r in ranked]
        yield _ranking(_prompt(turns, metadata), answers, [cells.number(r, "rank") for r in ranked])
    for reply in replies:
        yield from _rankings(reply, turns, metadata)


def _best_paths(node: Columns, before: list[Message], metadata: dict[str, Any]) -> Iterator[Demonstration]:
    """The conversations that follow every question and, of its answers, those of the best rank."""
    turns = [*before, _said(node)]
    replies = _replies(node)
    ranks = [cells.number(r, "rank") for r in replies if r.get("rank") is not None]
    if ranks:
        best = min(ranks)
        replies = [r for r in replies if r.get("rank") is not None and cells.number(r, "rank") == best]
    longer = [path for reply in replies for path in _best_paths(reply, turns, metadata)]
    if longer:
        yield from longer
    elif turns[-1].role == "assistant":
        yield Demonstration(id=message_id(turns), messages=tuple(turns), metadata=metadata)


def _read_ultrafeedback(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    weight = cells.weight(columns)
    if "chosen" in columns:
        pair = _pair(_whole(columns, "chosen"), _whole(columns, "rejected"), metadata)
        _check_trained(columns, "chosen", "rejected")
        scores = [cells.number(columns, "score_chosen"), cells.number(columns, "score_rejected")]
        if scores[0] < scores[1]:
            raise RowError("'score_chosen' is lower than 'score_rejected'")
        return [_ranking(pair.prompt, list(pair.completions), [-s for s in scores], weight=weight, scores=scores)]
    prompt = _prompt(cells.question(columns, "instruction"), metadata)
    given = cells.listing(columns, "completions")
    answers = [
        Completion(text=_answer(cells.turns(c, "response", "assistant"), "response"), model=c.get("model"))
        for c in given
    ]
    scores = [cells.number(c, _score_column(given)) for c in given]
    return [_ranking(prompt, answers, [-s for s in scores], weight=weight, scores=scores)]


def _score_column(completions: Sequence[Columns]) -> str:
    """``overall_score`` where all answers have one, else ``fine-grained_score``."""
    overall = all(c.get("overall_score") not in (None, "") for c in completions)
    return "overall_score" if overall else "fine-grained_score"


def _scores_contradict(columns: Columns) -> bool:
    """True: two answers are ordered one way by their overall scores and the other way by their fine-grained ones."""
    completions = columns.get("completions")
    if isinstance(completions, str):
        completions = literals.parse(completions)
    scores = [
        (literals.number(c.get("overall_score")), literals.number(c.get("fine-grained_score")))
        for c in (completions if isinstance(completions, list) else [])
        if isinstance(c, Mapping)
    ]
    both = [(overall, fine) for overall, fine in scores if overall is not None and fine is not None]
    return any((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in itertools.combinations(both, 2))


def _read_unpaired(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    cells.check_weight(columns)
    asked = cells.question(columns, "prompt")
    answer = _answer(cells.turns(columns, "completion", "assistant"), "completion")
    _check_trained(columns, "completion")
    return [_rating(asked, answer, cells.boolean(columns, "label"), metadata)]


def _read_preference(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    chosen, rejected = _whole(columns, "chosen"), _whole(columns, "rejected")
    _check_trained(columns, "chosen", "rejected")
    margin = None if columns.get("margin") in (None, "") else cells.number(columns, "margin")
    return [_pair(chosen, rejected, metadata, margin=margin, weight=cells.weight(columns))]


def _whole(columns: Columns, name: str) -> list[Message]:
    """The conversation up to and with an answer, whose column may hold the prompt already."""
    answer = cells.turns(columns, name, "assistant")
    if answer[0].role != "assistant":
        given = columns.get("prompt")
        if isinstance(given, list) and answer[: len(given)] != cells.messages(columns, "prompt"):
            raise RowError("'chosen' and 'rejected' are whole conversations that do not begin with 'prompt'")
        return cells.begin(columns, answer)
    return [*cells.question(columns, _asking(columns)), *answer]


def _asking(columns: Columns) -> str:
    """The column that holds the prompt of a preference."""
    return next((name for name in _ASKING if columns.get(name) is not None), "prompt")


_ASKING = ("prompt", "instruction", "question", "conversations", "messages")


def _read_hh(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    chosen, rejected = (cells.begin(columns, _transcript(columns, name)) for name in ("chosen", "rejected"))
    return [_pair(chosen, rejected, metadata, weight=cells.weight(columns))]


def _transcript(columns: Columns, name: str) -> list[Message]:
    before, *parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + cells.text(columns, name).lstrip())
    if before.strip() or not parts:
        raise RowError(f"{name!r} does not begin with a 'Human:' turn")
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [Message(role=roles[speaker], content=content.strip()) for speaker, content in pairs]


def _read_prompt_completion(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    cells.check_weight(columns)
    prompt = _prompt(cells.question(columns, "prompt"), metadata)
    answer = cells.turns(columns, "completion", "assistant")
    untrained = _untrained(columns, "completion") + [len(answer) + i for i in _untrained(columns, "prompt")]
    return [_conversation([*prompt.messages, *answer], metadata, untrained)]


def _read_messages(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    return [_read_turns(columns, "messages", metadata)]


def _read_sharegpt(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    return [_read_turns(columns, "conversations", metadata)]


def _read_turns(columns: Columns, name: str, metadata: dict[str, Any]) -> Record:
    given = {name: cells.listing(columns, name)}
    turns = cells.begin(columns, cells.messages(given, name))
    return _rated_or_shown(columns, turns, metadata, _untrained(given, name))


def _read_alpaca(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    found: list[Record] = []
    for item in cells.listing(columns, "instances") if "instances" in columns else [columns]:
        asked = cells.question({**columns, "input": item.get("input")}, "instruction")
        answer = Message(role="assistant", content=cells.text(item, "output"))
        found.append(_rated_or_shown(columns, [*_prompt(asked, metadata).messages, answer], metadata))
    return found


def _read_question_answer(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    answer = cells.text(columns, "answer")
    turns = [*cells.question(columns, "question"), Message(role="assistant", content=answer)]
    return [_rated_or_shown(columns, turns, metadata | {"reference": answer})]


def _read_prompt_only(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    cells.check_weight(columns)
    return [_prompt(cells.question(columns, "prompt"), metadata)]


def _has(*names: str) -> Callable[[Columns], bool]:
    return lambda columns: all(name in columns for name in names)


def _uses(*names: str) -> Callable[[Columns], Sequence[str]]:
    return lambda columns: names


def _uses_turns(name: str, *more: str) -> Callable[[Columns], Sequence[str]]:
    """A column with turns, further ones, and the thumb where the row has one."""
    return lambda columns: (name, *more, *filter(None, [_thumb(columns)]))


def _uses_pair(columns: Columns) -> Sequence[str]:
    asking = _asking(columns)
    return ("chosen", "rejected", "margin", asking, *(("input",) if asking == "instruction" else ()))


def _uses_ultrafeedback(columns: Columns) -> Sequence[str]:
    pair = ("prompt", "messages", "chosen", "rejected", "score_chosen", "score_rejected")
    return pair if "chosen" in columns else ("instruction", "input", "completions")


def _is_preference(columns: Columns) -> bool:
    if not _has("chosen", "rejected")(columns):
        return False
    return any(name in columns for name in _ASKING) or isinstance(columns["chosen"], list)


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (  # in the order in which they are tried: the more particular before the more general
        Format(
            name="records",
            columns="those of a trimtab record",
            matches=_is_record,
            uses=_uses(),
            read=_read_records,
        ),
        Format(
            name="oasst",
            columns="prompt with text, role and replies",
            matches=lambda c: isinstance(c.get("prompt"), dict) or _has("text", "role", "replies")(c),
            uses=_uses("prompt", "text", "role", "replies"),
            read=_read_oasst,
        ),
        Format(
            name="ultrafeedback",
            columns="instruction, completions; or chosen, rejected, score_chosen, score_rejected",
            matches=lambda c: (
                _has("instruction", "completions")(c) or _has("chosen", "rejected", "score_chosen", "score_rejected")(c)
            ),
            uses=_uses_ultrafeedback,
            read=_read_ultrafeedback,
        ),
        Format(
            name="trl-unpaired",
            columns="prompt, completion, label",
            matches=_has("prompt", "completion", "label"),
            uses=_uses("prompt", "completion", "label"),
            read=_read_unpaired,
        ),
        Format(
            name="trl-preference",
            columns="prompt (or instruction, question, conversations), chosen, rejected; or both as messages",
            matches=_is_preference,
            uses=_uses_pair,
            read=_read_preference,
        ),
        Format(
            name="hh",
            columns="chosen, rejected as transcripts",
            matches=_has("chosen", "rejected"),
            uses=_uses("chosen", "rejected"),
            read=_read_hh,
        ),
        Format(
            name="trl-prompt-completion",
            columns="prompt, completion",
            matches=_has("prompt", "completion"),
            uses=_uses("prompt", "completion"),
            read=_read_prompt_completion,
        ),
        Format(
            name="messages",
            columns="messages",
            matches=_has("messages"),
            uses=_uses_turns("messages"),
            read=_read_messages,
        ),
        Format(
            name="sharegpt",
            columns="conversations",
            matches=_has("conversations"),
            uses=_uses_turns("conversations"),
            read=_read_sharegpt,
        ),
        Format(
            name="alpaca",
            columns="instruction, input, output",
            matches=lambda c: "instruction" in c and ("output" in c or "instances" in c),
            uses=_uses_turns("instruction", "input", "output", "instances"),
            read=_read_alpaca,
        ),
        Format(
            name="question-answer",
            columns="question, answer",
            matches=_has("question", "answer"),
            uses=_uses_turns("question", "answer"),
            read=_read_question_answer,
        ),
        Format(
            name="trl-prompt-only",
            columns="prompt",
            matches=_has("prompt"),
            uses=_uses("prompt"),
            read=_read_prompt_only,
        ),
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
            if record.untrained:
                raise RowError(
                    "TRL trains every turn of the assistant, and a demonstration has some that are not to be"
                )
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
