"""One row of another tool's data file to records: a function for each format, and the pieces that they share.

:mod:`trimtab.records.formats` has the table of formats that calls these functions.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trimtab.records import cells, literals
from trimtab.records.cells import Columns, RowError
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
    message_id,
)

_THUMBS = ("true", "false", "yes", "no")


# Pieces of rows ----------------------------------------------------------------------------


def _prompt(turns: Sequence[Message], metadata: dict[str, Any]) -> Prompt:
    if not turns:
        raise RowError("no prompt before the answer")
    if not turns[-1].content.strip():
        raise RowError("the prompt's last turn is empty")
    return Prompt(id=message_id(turns), messages=tuple(turns), metadata=metadata)


def _conversation(turns: Sequence[Message], metadata: dict[str, Any], untrained: Sequence[int] = ()) -> Record:
    """A demonstration, or a prompt where there is no answer; ``untrained`` counts from the last turn (0) backwards."""
    if all(turn.role != "assistant" for turn in turns):
        return _prompt(turns, metadata)
    places = tuple(sorted(len(turns) - 1 - place for place in untrained))
    return Demonstration(id=message_id(turns), messages=tuple(turns), untrained=places, metadata=metadata)


def _untrained(columns: Columns, name: str) -> list[int]:
    """Places of the turns not to be trained in a column of turns, counted from its last turn (0) backwards."""
    places = cells.untrained(columns, name)
    last = len(cells.turns(columns, name, "assistant")) - 1 if places else 0
    return [last - place for place in places]


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
    tie: bool = False,
) -> Preference:
    shared = _split(chosen, rejected)
    prompt = _prompt(chosen[:shared], metadata)
    answers = _answer(chosen[shared:], "chosen"), _answer(rejected[shared:], "rejected")
    if tie:
        if margin:
            raise RowError("is a tie and has a margin")
        return _ranking(prompt, [Completion(text=answer) for answer in answers], [0.0, 0.0], weight=weight)
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
    """A rating where the row has a thumb, otherwise a demonstration, or a prompt where there is no answer."""
    cells.check_weight(columns)
    thumb = _thumb(columns)
    if thumb is None:
        return _conversation(turns, metadata, untrained)
    if 0 in untrained:
        raise RowError("the answer is not to be trained")
    return _rating(turns[:-1], _answer(turns[-1:], "answer"), cells.boolean(columns, thumb), metadata)


# One function per format ------------------------------------------------------------------


def read_records(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    """A record of trimtab's own."""
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
    if not literals.is_list(messages):
        return None
    answered = any(literals.is_object(turn) and turn.get("role") == "assistant" for turn in messages)
    return Demonstration if answered else Prompt


def is_record(columns: Columns) -> bool:
    """True: the columns are those of a record of trimtab's own."""
    kind = _record_kind(columns)
    if kind is None or not isinstance(columns.get("id"), str) or not columns.keys() <= kind.model_fields.keys():
        return False
    # {id, messages} is also what other tools write; such turns may have more keys than role and content
    return all(literals.is_object(turn) and set(turn) == {"role", "content"} for turn in columns.get("messages", ()))


def read_oasst(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    """An OpenAssistant tree: a preference for each ranked set of replies, a demonstration for each best path."""
    root = cells.get(columns, "prompt") if "prompt" in columns else columns
    if not literals.is_object(root):
        raise RowError(f"'prompt' is {kind_of(root)}, expected a message with replies")
    cells.check_weight(columns)
    return [*_rankings(root, [], metadata), *_best_paths(root, [], metadata)]


def _turn(node: Columns) -> Message:
    return Message(role=cells.role(node, "role"), content=cells.text(node, "text"))


def _replies(node: Columns) -> list[Columns]:
    return [r for r in (cells.listing(node, "replies") if node.get("replies") else []) if not r.get("deleted")]


def _rankings(node: Columns, before: list[Message], metadata: dict[str, Any]) -> Iterator[Preference]:
    """Every set of sibling answers of which two or more are ranked, with the conversation so far."""
    turns = [*before, _turn(node)]
    replies = _replies(node)
    ranked = [r for r in replies if r.get("rank") is not None and _turn(r).role == "assistant"]
    if len(ranked) > 1 and turns[-1].role != "assistant":
        answers = [Completion(text=_answer([_turn(r)], "text"), model=r.get("model_name")) for r in ranked]
        yield _ranking(_prompt(turns, metadata), answers, [cells.number(r, "rank") for r in ranked])
    for reply in replies:
        yield from _rankings(reply, turns, metadata)


def _best_paths(node: Columns, before: list[Message], metadata: dict[str, Any]) -> Iterator[Demonstration]:
    """The conversations that follow every question and, of its answers, those of the best rank."""
    turns = [*before, _turn(node)]
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


def read_ultrafeedback(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    """A preference by scores: of the binarized pair, or of all answers."""
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


def scores_contradict(columns: Columns) -> bool:
    """True: two answers are ordered one way by their overall scores and the other way by their fine-grained ones."""
    completions = columns.get("completions")
    if isinstance(completions, str):
        completions = literals.parse(completions)
    scores = [
        (literals.number(c.get("overall_score")), literals.number(c.get("fine-grained_score")))
        for c in (completions if literals.is_list(completions) else [])
        if literals.is_object(c)
    ]
    both = [(overall, fine) for overall, fine in scores if overall is not None and fine is not None]
    return any((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in itertools.combinations(both, 2))


_SCORE = re.compile(r"(chosen|rejected)|(?:avg|mean|overall|rating|score|reward|[ _-])+")


def contradicting_scores(columns: Columns) -> list[tuple[str, str]]:
    """Names of two scores, such as ``chosen_score`` and ``rejected_score``, of which that of the chosen is lower."""
    pairs: list[tuple[str, str]] = []
    for name in columns:
        other = str(name).replace("chosen", "rejected")
        if other == name or _SCORE.sub("", str(name)) or name == "chosen":
            continue
        chosen, rejected = literals.number(columns[name]), literals.number(columns.get(other))
        if chosen is not None and rejected is not None and chosen < rejected:
            pairs.append((str(name), other))
    return pairs


def read_unpaired(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    """A rating: prompt, completion and thumb."""
    cells.check_weight(columns)
    turns = cells.question(columns, "prompt")
    answer = _answer(cells.turns(columns, "completion", "assistant"), "completion")
    _check_trained(columns, "completion")
    return [_rating(turns, answer, cells.boolean(columns, "label"), metadata)]


def read_preference(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    """A preference between ``chosen`` and ``rejected``, texts or messages."""
    chosen, rejected = _whole(columns, "chosen"), _whole(columns, "rejected")
    _check_trained(columns, "chosen", "rejected")
    margin = None if columns.get("margin") in (None, "") else cells.number(columns, "margin")
    weight, tie = cells.weight(columns), cells.is_tie(columns)
    return [_pair(chosen, rejected, metadata, margin=margin, weight=weight, tie=tie)]


def _whole(columns: Columns, name: str) -> list[Message]:
    """The conversation up to and with an answer, whose column may hold the prompt already."""
    answer = cells.turns(columns, name, "assistant")
    if answer[0].role != "assistant":
        prompt = columns.get("prompt")
        if literals.is_list(prompt) and answer[: len(prompt)] != cells.messages(columns, "prompt"):
            raise RowError("'chosen' and 'rejected' are whole conversations that do not begin with 'prompt'")
        return cells.begin(columns, answer)
    return [*cells.question(columns, _asking(columns)), *answer]


def _asking(columns: Columns) -> str:
    """The column that holds the prompt of a preference."""
    return next((name for name in _ASKING if columns.get(name) is not None), "prompt")


_ASKING = ("prompt", "instruction", "question", "conversations", "messages", "input")


def read_hh(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    """A preference between two transcripts of ``Human:`` and ``Assistant:`` turns."""
    chosen, rejected = (cells.begin(columns, _transcript(columns, name)) for name in ("chosen", "rejected"))
    return [_pair(chosen, rejected, metadata, weight=cells.weight(columns), tie=cells.is_tie(columns))]


def read_openai_preference(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    """A preference of OpenAI's fine-tuning: ``input`` holds the prompt's messages."""
    given = cells.get(columns, "input")
    if not literals.is_object(given):
        raise RowError(f"'input' is {kind_of(given)}, expected an object with messages")
    cells.check_meaning(given)
    turns = cells.begin(columns, cells.messages(given, "messages"))
    names = ("preferred_output", "non_preferred_output")
    _check_trained(columns, *names)
    chosen, rejected = ([*turns, *cells.turns(columns, name, "assistant")] for name in names)
    return [_pair(chosen, rejected, metadata, weight=cells.weight(columns))]


def _transcript(columns: Columns, name: str) -> list[Message]:
    before, *parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + cells.text(columns, name).lstrip())
    if before.strip() or not parts:
        raise RowError(f"{name!r} does not begin with a 'Human:' turn")
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [Message(role=roles[speaker], content=content.strip()) for speaker, content in pairs]


def read_prompt_completion(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    """A demonstration: prompt and completion."""
    cells.check_weight(columns)
    prompt = _prompt(cells.question(columns, "prompt"), metadata)
    answer = cells.turns(columns, "completion", "assistant")
    untrained = _untrained(columns, "completion") + [len(answer) + i for i in _untrained(columns, "prompt")]
    return [_conversation([*prompt.messages, *answer], metadata, untrained)]


def read_turns(name: str) -> Callable[[Columns, dict[str, Any]], list[Record]]:
    """A conversation in a column of turns."""

    def read(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
        given = {name: cells.listing(columns, name)}
        turns = cells.begin(columns, cells.messages(given, name))
        return [_rated_or_shown(columns, turns, metadata, _untrained(given, name))]

    return read


def read_alpaca(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    """A demonstration for each ``output`` of an instruction."""
    records: list[Record] = []
    for item in cells.listing(columns, "instances") if "instances" in columns else [columns]:
        turns = cells.question({**columns, "input": item.get("input")}, "instruction")
        answer = Message(role="assistant", content=cells.text(item, "output"))
        records.append(_rated_or_shown(columns, [*_prompt(turns, metadata).messages, answer], metadata))
    return records


def read_question_answer(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    """A demonstration; the answer is also the reference of rewards by rule."""
    answer = cells.text(columns, "answer")
    turns = [*cells.question(columns, "question"), Message(role="assistant", content=answer)]
    return [_rated_or_shown(columns, turns, metadata | {"reference": answer})]


def read_prompt_only(columns: Columns, metadata: dict[str, Any]) -> list[Record]:
    """A prompt."""
    cells.check_weight(columns)
    return [_prompt(cells.question(columns, "prompt"), metadata)]


# How a format is recognised, and which columns it reads ---------------------------------------


def has(*names: str) -> Callable[[Columns], bool]:
    """True for rows that have all these columns."""
    return lambda columns: all(name in columns for name in names)


def uses(*names: str) -> Callable[[Columns], Sequence[str]]:
    """The same columns, whatever the row."""
    return lambda columns: names


def uses_turns(name: str, *more: str) -> Callable[[Columns], Sequence[str]]:
    """A column with turns, further ones, and the thumb where the row has one."""
    return lambda columns: (name, *more, *filter(None, [_thumb(columns)]))


def uses_pair(columns: Columns) -> Sequence[str]:
    """``chosen``, ``rejected``, and the columns of their prompt."""
    asking = _asking(columns)
    return ("chosen", "rejected", "margin", *cells.TIES, asking, *(("input",) if asking == "instruction" else ()))


def uses_ultrafeedback(columns: Columns) -> Sequence[str]:
    """The columns of the binarized pair, or of all answers."""
    pair = ("prompt", "messages", "chosen", "rejected", "score_chosen", "score_rejected")
    return pair if "chosen" in columns else ("instruction", "input", "completions")


def is_preference(columns: Columns) -> bool:
    """True: a pair with its prompt in a column, or in both conversations."""
    if not has("chosen", "rejected")(columns):
        return False
    if isinstance(columns["chosen"], list) or any(name in columns for name in _ASKING if name != "input"):
        return True
    chosen = columns["chosen"]  # beside a transcript, which holds its prompt, "input" is something else
    return "input" in columns and not (isinstance(chosen, str) and chosen.lstrip().startswith("Human:"))
