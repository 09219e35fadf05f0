"""An AI judge: a model decides which of two answers follows a principle better.

Each reply is stored under a hash of its whole question, so a judge that was killed, or whose constitution
was edited, is asked only new questions. Two answers are always shown in both orders, and the two
probabilities are averaged,

    p(i better) = ½ [p(i | i shown first) + p(i | i shown second)],

which removes a constant preference for one position (Bai et al., "Constitutional AI", 2022, section 4.1,
ask in one order). If the two orders name different winners, the pair is a tie by rank, and its probability
stays the average. In a ranking of more than two answers, such a pair counts half for each answer. A reply
that names no option counts as a failure, never as a winner.

The model is called through :data:`Ask`: the local model's log-probabilities (``rollout.options``) or an
endpoint (``feedback.endpoint``).
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.constitution import Constitution, compare_answers, rate_answer
from trimtab.records import Comparison, Judgement, Message, Record, content_id

FAILURES = {
    "empty": "the reply was empty",
    "refused": "the judge refused",
    "neither": "the reply names none of the options",
    "both": "the reply names several options",
    "malformed": "the reply was not what the protocol says",
    "cut": "the reply was cut at max_tokens (with reasoning: reason_tokens) before it named an option",
    "too long": "the question does not fit the judge's context, or the reply is longer than allowed",
}
"""Reasons for a missing answer, by kind."""

LOST = " lost "
"""In the journal's key of a cost without a reply: separates the question's key from the time."""

CUT = " cut "
"""In the journal's key of a reply that was cut: separates the question's key from the limit."""

LETTERS = ("A", "B")
DIGITS = ("1", "2", "3", "4", "5")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question to a judge."""

    key: str
    """Hash of the judge and of everything below."""
    messages: tuple[Message, ...]
    """The conversation; the judge speaks next."""
    options: tuple[str, ...]
    """The answers the judge may give."""
    reason: bool = False
    """True: the judge reasons first and ends with ``Answer: <option>``."""


class Reply(Record):
    """A judge's reply to one question."""

    probabilities: tuple[float, ...] | None = None
    """P(option), in the order of the options, sum 1; None: no usable answer."""
    failure: str = ""
    """A key of :data:`FAILURES`; empty: there is an answer."""
    hard: bool = False
    """True: the answer was read from the text, without log-probabilities; the probabilities are 0 and 1."""
    text: str = ""
    """The reply's text, up to a limit."""
    limit: str = ""
    """The setting that cut the reply, such as ``max_tokens=8``; empty: the reply is whole."""
    characters: int = 0
    """Length of the whole reply."""
    model: str = ""
    """The model's own name for itself."""
    tokens_in: int = 0
    """Tokens read."""
    tokens_out: int = 0
    """Tokens written."""
    cost: float = 0.0
    """Cost of the reply, in the currency of the prices."""
    seconds: float = 0.0
    """Time between question and reply."""
    at: str | None = None
    """Time of the reply, ISO 8601 in UTC; None for the local model."""

    @model_validator(mode="after")
    def _either(self) -> "Reply":
        if (self.probabilities is None) == (self.failure == ""):
            raise ValueError("a reply has probabilities or a failure")
        if self.failure and self.failure not in FAILURES:
            raise ValueError(f"unknown failure {self.failure!r}")
        return self


Ask = Callable[[Sequence[Question], Callable[[Mapping[str, Reply]], None]], None]
"""Asks questions; passes replies by key to its second argument as they arrive, in any order, a few at a time."""


class JudgeConfig(Config):
    """How a judge is prompted."""

    mode: Literal["direct", "reason", "rubric"] = "direct"
    """What the judge answers. ``direct``: the letter of the better answer. ``reason``: a chain of thought, then the
    letter. ``rubric``: a rating from 1 to 5 of one answer alone, for each objective."""
    principles: int | None = Field(default=1, ge=1)
    """Principles drawn for each item; the judge is asked about each of them. None: all."""
    objectives: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Tags of the constitution that ``rubric`` rates; None: all. Each is a criterion; ``overall`` is their mean."""
    clamp: tuple[float, float] = (0.4, 0.6)
    """Lowest and highest probability in mode ``reason``, because models are too sure after reasoning."""
    seed: int = 0
    """Seed for drawing the principles."""

    @model_validator(mode="after")
    def _range(self) -> "JudgeConfig":
        low, high = self.clamp
        if not 0 <= low < 0.5 < high <= 1:
            raise ValueError(f"clamp must lie around .5 within 0 to 1, got {low:g} to {high:g}")
        return self


class Verdict(Record):
    """The comparison of two answers of an item by one principle."""

    item: str
    """Id of the item."""
    pair: tuple[int, int]
    """Indices of the two answers, i < j."""
    principle: str
    """Id of the principle, or the objective of a rubric."""
    weight: float = 1.0
    """Weight of the principle."""
    first: float | None = None
    """P(i better) with i shown first; None: no answer."""
    second: float | None = None
    """P(i better) with i shown second; None: no answer."""
    probability: float | None = None
    """Mean of ``first`` and ``second``, after clamping; None if one is missing."""
    failures: tuple[str, ...] = ()
    """Failures of the replies without an answer."""
    ordered: bool = True
    """False: the answers were rated one by one, so there is no order and ``first`` equals ``second``."""

    @property
    def contradicts(self) -> bool:
        """True: the two orders name different winners."""
        return contradict(self.first, self.second)


def contradict(first: float | None, second: float | None) -> bool:
    """True: P(i better) with i shown first and P(i better) with i shown second name different winners."""
    return first is not None and second is not None and (first - 0.5) * (second - 0.5) < 0


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The result of a judge run."""

    judgements: tuple[Judgement, ...]
    """One per item and criterion, in the order of the items; the same records as people's judgements."""
    verdicts: tuple[Verdict, ...]
    """One per pair of answers and principle."""
    replies: dict[str, Reply]
    """All replies that were used, by key."""
    asked: int
    """Questions asked in this run; the others had been answered before."""
    lost: float = 0.0
    """Cost of requests without a reply."""

    @property
    def cost(self) -> float:
        """Cost of all replies that were used, and of requests without a reply."""
        return math.fsum(r.cost for r in self.replies.values()) + self.lost


@dataclass(frozen=True, kw_only=True, slots=True)
class _ItemQuestion:
    """A question with the item, answers and principle it is about."""

    item: Comparison
    answers: tuple[int, int]
    """For a comparison (shown first, shown second); for a rubric (answer, answer)."""
    principle: str
    weight: float
    question: Question


def judge(
    items: Sequence[Comparison],
    constitution: Constitution,
    ask: Ask,
    config: JudgeConfig,
    *,
    name: str,
    identity: Any,
    journal: MutableMapping[str, dict[str, Any]],
    progress: Callable[[int, int], None] | None = None,
) -> Judged:
    """Judge items; questions answered in the journal are not asked again.

    Args:
        items: the items; with more than two answers, every pair is a question.
        constitution: the principles.
        ask: the model.
        config: how the model is asked.
        name: the annotator's name on the judgements.
        identity: identifies the judge (model, endpoint, temperature); part of each question's key.
        journal: replies by key; each new reply is written there immediately.
        progress: called with (answered, all) questions.

    Raises:
        JudgeError: the judge cannot continue; everything answered is in the journal.
    """
    all_questions = [a for item in items for a in _questions(item, constitution, config, identity)]
    questions = {a.question.key: a.question for a in all_questions}
    earlier_keys = set(journal)
    replies = replies_to(questions, ask, journal, progress)
    by_item: dict[str, list[_ItemQuestion]] = {}
    for a in all_questions:
        by_item.setdefault(a.item.id, []).append(a)
    verdicts: list[Verdict] = []
    judgements: list[Judgement] = []
    for item in {i.id: i for i in items}.values():
        questions_of_item = by_item[item.id]
        item_verdicts = (
            _rubric_verdicts(questions_of_item, replies)
            if config.mode == "rubric"
            else _verdicts(questions_of_item, replies, config)
        )
        verdicts += item_verdicts
        keys = list(dict.fromkeys(a.question.key for a in questions_of_item))
        judgements += _judgements(
            item, item_verdicts, [replies[k] for k in keys], keys, name, constitution.version, config
        )
    used_keys = {_journal_key(key, reply) for key, reply in replies.items()}
    lost_replies = (
        reply
        for key, reply in journal.items()
        if key not in used_keys and key.partition(CUT if CUT in key else LOST)[0] in questions
    )
    return Judged(
        judgements=tuple(judgements),
        verdicts=tuple(verdicts),
        replies=replies,
        asked=len(used_keys - earlier_keys),
        lost=math.fsum(r.get("cost", 0.0) for r in lost_replies),
    )


def replies_to(
    questions: Mapping[str, Question],
    ask: Ask,
    journal: MutableMapping[str, dict[str, Any]],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Reply]:
    """Replies to questions, by key; questions that the journal answers are not sent again.

    A reply that was cut at a limit has a key of its own in the journal, so the question stays open and ``ask`` decides
    whether it is worth another request.

    Args:
        questions: by key.
        ask: the model.
        journal: replies by key; each new reply is written there immediately.
        progress: called with (answered, all) questions.
    """
    replies = {key: Reply.model_validate(journal[key]) for key in questions if key in journal}

    def keep(new: Mapping[str, Reply]) -> None:
        journal.update({_journal_key(k, r): r.model_dump(mode="json", exclude_defaults=True) for k, r in new.items()})
        replies.update({key: reply for key, reply in new.items() if key in questions})
        if progress is not None:
            progress(len(replies), len(questions))

    if progress is not None:
        progress(len(replies), len(questions))
    unanswered = [q for key, q in questions.items() if key not in replies]
    if unanswered:
        ask(unanswered, keep)
    return replies


def _journal_key(key: str, reply: Reply) -> str:
    return f"{key}{CUT}{reply.limit}" if reply.limit else key


def question(
    identity: Any, messages: tuple[Message, ...], options: tuple[str, ...], *, reason: bool = False
) -> Question:
    """Make a question and its key."""
    key = content_id(identity, [m.model_dump() for m in messages], options, reason)
    return Question(key=key, messages=messages, options=options, reason=reason)


def questions_of(item: Comparison, constitution: Constitution, config: JudgeConfig, identity: Any) -> list[Question]:
    """All questions about an item."""
    return [a.question for a in _questions(item, constitution, config, identity)]


def _questions(item: Comparison, constitution: Constitution, config: JudgeConfig, identity: Any) -> list[_ItemQuestion]:
    texts = [c.text for c in item.completions]
    questions: list[_ItemQuestion] = []
    if config.mode == "rubric":
        for objective in config.objectives or constitution.tags:
            principles = constitution.tagged(objective)
            for i, text in enumerate(texts):
                rating_question = question(identity, rate_answer(item.prompt, text, principles), DIGITS)
                questions.append(
                    _ItemQuestion(item=item, answers=(i, i), principle=objective, weight=1.0, question=rating_question)
                )
        return questions
    reason = config.mode == "reason"
    principles = constitution.draw(config.principles, config.seed, item.id)
    for i, j in itertools.permutations(range(len(texts)), 2):
        for principle in principles:
            messages = compare_answers(item.prompt, texts[i], texts[j], principle, reason=reason)
            comparison_question = question(identity, messages, LETTERS, reason=reason)
            questions.append(
                _ItemQuestion(
                    item=item,
                    answers=(i, j),
                    principle=principle.id,
                    weight=principle.weight,
                    question=comparison_question,
                )
            )
    return questions


def _verdicts(questions: Sequence[_ItemQuestion], replies: Mapping[str, Reply], config: JudgeConfig) -> list[Verdict]:
    by_answers = {(a.answers, a.principle): a for a in questions}
    verdicts: list[Verdict] = []
    for (answers, principle), a in by_answers.items():
        i, j = answers
        if i > j:
            continue
        reply, swapped_reply = replies[a.question.key], replies[by_answers[(j, i), principle].question.key]
        first = None if reply.probabilities is None else reply.probabilities[0]
        second = None if swapped_reply.probabilities is None else swapped_reply.probabilities[1]
        mean = None
        if first is not None and second is not None:
            low, high = config.clamp if config.mode == "reason" else (0.0, 1.0)
            mean = (min(max(first, low), high) + min(max(second, low), high)) / 2
        verdicts.append(
            Verdict(
                item=a.item.id,
                pair=answers,
                principle=principle,
                weight=a.weight,
                first=first,
                second=second,
                probability=mean,
                failures=tuple(r.failure for r in (reply, swapped_reply) if r.failure),
            )
        )
    return verdicts


def _rubric_verdicts(questions: Sequence[_ItemQuestion], replies: Mapping[str, Reply]) -> list[Verdict]:
    """Turn expected scores into probabilities: σ of their difference, in points of the scale."""
    by_objective: dict[str, list[_ItemQuestion]] = {}
    for a in questions:
        by_objective.setdefault(a.principle, []).append(a)
    verdicts: list[Verdict] = []
    for objective, rating_questions in by_objective.items():
        for a, b in itertools.combinations(sorted(rating_questions, key=lambda x: x.answers), 2):
            pair_replies = [replies[x.question.key] for x in (a, b)]
            scores = [expected_score(r) for r in pair_replies]
            p = None
            if scores[0] is not None and scores[1] is not None:
                p = 1 / (1 + math.exp(scores[1] - scores[0]))
            verdicts.append(
                Verdict(
                    item=a.item.id,
                    pair=(a.answers[0], b.answers[0]),
                    principle=objective,
                    first=p,
                    second=p,
                    probability=p,
                    failures=tuple(r.failure for r in pair_replies if r.failure),
                    ordered=False,
                )
            )
    return verdicts


def expected_score(reply: Reply) -> float | None:
    """Mean of a rubric's digits under the reply's probabilities; None: no answer."""
    if reply.probabilities is None:
        return None
    return math.fsum(int(d) * p for d, p in zip(DIGITS, reply.probabilities, strict=True))


def combine(verdicts: Sequence[Verdict]) -> dict[tuple[int, int], tuple[float, float, float]]:
    """Weighted means over principles: (probability, first, second) of each pair that has an answer."""
    by_pair: dict[tuple[int, int], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.probability is not None:
            by_pair.setdefault(verdict.pair, []).append(verdict)

    def mean(group: Sequence[Verdict], values: Sequence[float]) -> float:
        return math.fsum(v.weight * x for v, x in zip(group, values, strict=True)) / math.fsum(v.weight for v in group)

    return {
        pair: (
            mean(group, [v.probability or 0.0 for v in group]),
            mean(group, [v.first or 0.0 for v in group]),
            mean(group, [v.second or 0.0 for v in group]),
        )
        for pair, group in by_pair.items()
    }


def _judgements(
    item: Comparison,
    verdicts: Sequence[Verdict],
    replies: Sequence[Reply],
    keys: Sequence[str],
    name: str,
    version: str,
    config: JudgeConfig,
) -> list[Judgement]:
    principles = list(dict.fromkeys(v.principle for v in verdicts))
    by_principle = {p: [v for v in verdicts if v.principle == p] for p in principles}
    has_criteria = len(principles) > 1 or config.mode == "rubric"
    groups = {"overall": list(verdicts)} | (by_principle if has_criteria else {})
    times = [r.at for r in replies if r.at]
    # Both orders were shown; the one on the record is drawn at random.
    is_reversed = int(content_id("shown", item.id), 16) % 2 == 1
    shown = tuple(reversed(range(len(item.completions)))) if is_reversed else tuple(range(len(item.completions)))
    judgements: list[Judgement] = []
    for criterion, group in groups.items():
        ranks, probability = _ranks(group, len(item.completions))
        failures = Counter(f for v in group for f in v.failures)
        if ranks is not None and probability is not None and is_reversed:
            probability = 1 - probability
        judgements.append(
            Judgement(
                id=content_id("ai", name, keys, criterion),
                item=item.id,
                annotator=name,
                source="ai",
                shown_order=shown,
                ranks=None if ranks is None else tuple(ranks[i] for i in shown),
                verdict="unsure" if ranks is None else "ranked",
                strength=None if probability is None else round(abs(2 * probability - 1), 6),
                probability=probability,
                criterion=criterion,
                principle=",".join(dict.fromkeys(v.principle for v in group)),
                guideline=version,
                seconds=round(math.fsum(r.seconds for r in replies), 3),
                comment="" if ranks else "; ".join(FAILURES[f] for f in failures),
                created_at=max(times) if times else None,
            )
        )
    return judgements


def _ranks(verdicts: Sequence[Verdict], count: int) -> tuple[list[int] | None, float | None]:
    """Ranks by mean probability of being better, tied if the orders contradict; None if a pair has no answer."""
    pairs = combine(verdicts)
    if len(pairs) < math.comb(count, 2):
        return None, None
    if count == 2:
        p, first, second = pairs[0, 1]
        if contradict(first, second) or math.isclose(p, 0.5, abs_tol=1e-9):
            return [0, 0], p
        return ([0, 1] if p > 0.5 else [1, 0]), p
    scores = [0.0] * count
    for (i, j), (p, first, second) in pairs.items():
        p = 0.5 if contradict(first, second) else p
        scores[i] += p
        scores[j] += 1 - p
    levels = sorted({round(s, 9) for s in scores}, reverse=True)
    return [levels.index(round(s, 9)) for s in scores], None
