"""Critique and revision: a model rewrites its own answers by principles, and the rewrites become training data.

Bai et al., "Constitutional AI: Harmlessness from AI Feedback", 2022, section 3: answer → (critique → revision)
once per round, with one principle drawn for each round. There are two departures. First, a judge compares each
revision with the answer it would replace, under the round's principle and in both orders; a revision that is
worse, or on which the judge does not decide, is discarded and counted. Second, the model may first be asked
whether the answer violates the principle; if it does not, the answer stays as it is.

Every text and verdict is stored under a hash of its question, so a killed run continues where it stopped and
samples nothing twice.
"""

from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.constitution import Constitution, Principle, ask_critique, ask_revision, ask_violation, compare_answers
from trimtab.feedback.intervals import clustered_share
from trimtab.feedback.judge import LETTERS, Ask, Question, Reply, contradict, question, replies_to
from trimtab.feedback.judge_report import Biases, first_wins
from trimtab.records import Demonstration, Message, Prompt, Record, content_id

Write = Callable[[Sequence[Prompt], Callable[[Mapping[str, str]], None]], None]
"""Writes the next turn of conversations; passes texts by prompt id to its second argument, a few at a time."""

Outcome = Literal["kept", "no violation", "worse", "undecided", "no verdict", "unchanged", "empty"]


class RevisionConfig(Config):
    """How answers are criticised and rewritten."""

    rounds: int = Field(default=2, ge=1)
    """Number of rounds; each draws one principle."""
    critique: bool = True
    """False: revisions are requested without a critique."""
    violation_first: bool = False
    """True: first ask whether the answer violates the principle, and revise it only if it does."""
    violation_threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    """An answer is rewritten if P(violation) is at least this."""
    seed: int = 0
    """Seed of the draw of principles."""


class Revision(Record):
    """One round for one prompt."""

    prompt: str
    """Id of the prompt."""
    round: int
    """From 0."""
    principle: str
    """Id of the principle drawn."""
    answer: str
    """The answer to be rewritten."""
    violation: float | None = None
    """P(the answer violates the principle); None: not asked, or no answer."""
    critique: str = ""
    """The model's critique of its answer."""
    revision: str = ""
    """The rewritten answer."""
    first: float | None = None
    """P(the revision follows the principle better) with the revision shown first; None: not judged, or no answer."""
    second: float | None = None
    """The same with the revision shown second."""
    probability: float | None = None
    """Mean of ``first`` and ``second``; None if one is missing."""
    outcome: Outcome
    """``kept``: the revision replaces the answer. All other outcomes leave the answer as it was; ``undecided``: the
    judge's two orders name different winners, or neither names one."""


@dataclass(frozen=True, kw_only=True)
class Revised:
    """The result for all prompts."""

    demonstrations: tuple[Demonstration, ...]
    """Prompt and last answer, if a revision was kept or no round found a violation."""
    revisions: tuple[Revision, ...]
    """Every round of every prompt, by round and then by prompt."""
    answers: dict[str, str]
    """The first answer to each prompt, by its id."""
    counts: dict[str, int]
    """Rounds by outcome; ``left_out``: prompts without a demonstration."""


def revise(
    prompts: Sequence[Prompt],
    constitution: Constitution,
    write: Write,
    ask: Ask,
    config: RevisionConfig,
    *,
    identity: Any,
    journal: MutableMapping[str, dict[str, Any]],
    progress: Callable[[int, int], None] | None = None,
) -> Revised:
    """Answer, criticise and rewrite.

    Args:
        prompts: prompts to answer; usually red-team prompts.
        constitution: the principles to criticise by.
        write: the model that answers, criticises and rewrites.
        ask: the judge of revisions, and of violations.
        config: rounds and modes.
        identity: identifies the models and their sampling; part of every key.
        journal: texts and replies by key.
        progress: called with (steps done, all steps); each round is one step, and so are the first answers.
    """
    source = _Journalled(write, ask, identity, journal)
    by_id = {p.id: p for p in prompts}
    first_answers = source.texts({p.id: p.messages for p in by_id.values()}, "answer")
    answers = dict(first_answers)
    revisions: list[Revision] = []
    for number in range(config.rounds):
        if progress is not None:
            progress(1 + number, 1 + config.rounds)
        principles = {name: constitution.draw(1, config.seed, name, number)[0] for name in by_id}
        this_round = _round(number, by_id, answers, principles, source, config)
        answers |= {r.prompt: r.revision for r in this_round if r.outcome == "kept"}
        revisions += this_round
    if progress is not None:
        progress(1 + config.rounds, 1 + config.rounds)
    outcomes = {name: {r.outcome for r in revisions if r.prompt == name} for name in by_id}
    usable = [n for n in by_id if answers[n] and ("kept" in outcomes[n] or outcomes[n] == {"no violation"})]
    demonstrations = tuple(
        Demonstration.of(
            [*by_id[n].messages, Message(role="assistant", content=answers[n])],
            constitution=constitution.version,
            revised=answers[n] != first_answers[n],
        )
        for n in usable
    )
    counts = {str(outcome): n for outcome, n in Counter(r.outcome for r in revisions).items()}
    return Revised(
        demonstrations=demonstrations,
        revisions=tuple(revisions),
        answers=first_answers,
        counts={**counts, "left_out": len(by_id) - len(usable)},
    )


def _round(
    number: int,
    prompts: Mapping[str, Prompt],
    answers: Mapping[str, str],
    principles: Mapping[str, Principle],
    source: "_Journalled",
    config: RevisionConfig,
) -> list[Revision]:
    """One round for all prompts: violations, critiques, revisions, and the judge's comparison of both answers."""
    outcomes: dict[str, Outcome] = {name: "empty" for name in prompts if not answers[name]}
    violations: dict[str, float | None] = {}
    if config.violation_first:
        violations = source.violations({n: (prompts[n], answers[n], principles[n]) for n in prompts if answers[n]})
        for name, probability in violations.items():
            if probability is None:
                outcomes[name] = "no verdict"
            elif probability < config.violation_threshold:
                outcomes[name] = "no violation"
    names = [n for n in prompts if n not in outcomes]
    critiques = dict.fromkeys(names, "")
    if config.critique:
        requests = {n: ask_critique(prompts[n], answers[n], principles[n]) for n in names}
        critiques = source.texts(requests, f"critique {number}")
    requests = {n: ask_revision(prompts[n], answers[n], principles[n], critiques[n]) for n in names}
    rewritten = source.texts(requests, f"revision {number}")
    for name in names:
        if not rewritten[name]:
            outcomes[name] = "empty"
        elif rewritten[name] == answers[name]:
            outcomes[name] = "unchanged"
    verdicts = source.comparisons(
        {n: (prompts[n], rewritten[n], answers[n], principles[n]) for n in names if n not in outcomes}
    )
    revisions: list[Revision] = []
    for name in prompts:
        first, second = verdicts.get(name, (None, None))
        order_probabilities = None if first is None or second is None else (first, second)
        revisions.append(
            Revision(
                prompt=name,
                round=number,
                principle=principles[name].id,
                answer=answers[name],
                violation=violations.get(name),
                critique=critiques.get(name, ""),
                revision=rewritten.get(name, ""),
                first=first,
                second=second,
                probability=None if order_probabilities is None else sum(order_probabilities) / 2,
                outcome=outcomes[name] if name in outcomes else _outcome(order_probabilities),
            )
        )
    return revisions


def _outcome(order_probabilities: tuple[float, float] | None) -> Outcome:
    """What becomes of a revision, by P(it is better) with it shown first and with it shown second."""
    if order_probabilities is None:
        return "no verdict"
    probability = sum(order_probabilities) / 2
    if probability == 0.5 or contradict(*order_probabilities):
        return "undecided"
    return "kept" if probability > 0.5 else "worse"


class _Journalled:
    """The writing model and the judge; questions that the journal answers are not sent again."""

    def __init__(self, write: Write, ask: Ask, identity: Any, journal: MutableMapping[str, dict[str, Any]]) -> None:
        self._write, self._ask, self._identity, self._journal = write, ask, identity, journal

    def texts(self, conversations: Mapping[str, tuple[Message, ...]], purpose: str) -> dict[str, str]:
        """What the model writes next in each conversation, by prompt id."""
        keys = {
            name: content_id("write", self._identity, purpose, [m.model_dump() for m in messages])
            for name, messages in conversations.items()
        }
        missing = {
            keys[name]: Prompt(id=keys[name], messages=messages)
            for name, messages in conversations.items()
            if keys[name] not in self._journal
        }
        if missing:
            self._write(list(missing.values()), self._store_texts)
        return {name: str(self._journal[key]["text"]).strip() for name, key in keys.items()}

    def violations(self, cases: Mapping[str, tuple[Prompt, str, Principle]]) -> dict[str, float | None]:
        """P(the answer violates the principle) by prompt id; None: no answer."""
        questions = {
            name: question(self._identity, ask_violation(*case), ("Yes", "No")) for name, case in cases.items()
        }
        replies = self._replies(questions)
        return {name: None if r.probabilities is None else r.probabilities[0] for name, r in replies.items()}

    def comparisons(
        self, cases: Mapping[str, tuple[Prompt, str, str, Principle]]
    ) -> dict[str, tuple[float | None, float | None]]:
        """P(a case's first answer is better) with it shown first, and with it shown second; None: no answer."""
        questions = {
            (name, place): question(self._identity, compare_answers(prompt, *shown, principle), LETTERS)
            for name, (prompt, first_answer, second_answer, principle) in cases.items()
            for place, shown in enumerate(((first_answer, second_answer), (second_answer, first_answer)))
        }
        replies = self._replies(questions)
        return {name: (_probability_at(replies[name, 0], 0), _probability_at(replies[name, 1], 1)) for name in cases}

    def _replies(self, questions: Mapping[Any, Question]) -> dict[Any, Reply]:
        replies = replies_to({q.key: q for q in questions.values()}, self._ask, self._journal)
        return {name: replies[q.key] for name, q in questions.items()}

    def _store_texts(self, texts: Mapping[str, str]) -> None:
        self._journal.update({key: {"text": text} for key, text in texts.items()})


def _probability_at(reply: Reply, place: int) -> float | None:
    return None if reply.probabilities is None else reply.probabilities[place]


class PrincipleRounds(Record):
    """The rounds of one principle."""

    rounds: int
    """Number of rounds that drew it."""
    fired: int
    """Rounds in which a violation was found or, if that was not asked, in which the revision was kept."""
    outcomes: dict[Outcome, int]
    """Rounds by outcome."""


def by_principle(revisions: Sequence[Revision]) -> dict[str, PrincipleRounds]:
    """The rounds of each principle."""
    table: dict[str, PrincipleRounds] = {}
    for name in sorted({r.principle for r in revisions}):
        rounds = [r for r in revisions if r.principle == name]
        fired = sum(r.outcome != "no violation" if r.violation is not None else r.outcome == "kept" for r in rounds)
        outcomes: Counter[Outcome] = Counter(r.outcome for r in rounds)
        table[name] = PrincipleRounds(rounds=len(rounds), fired=fired, outcomes=dict(outcomes))
    return table


def judge_biases(revisions: Sequence[Revision]) -> Biases:
    """Biases of the judge of revisions."""
    judged = [(r, r.first, r.second) for r in revisions if r.first is not None and r.second is not None]
    wins = [(first_wins(p), r.prompt) for r, first, second in judged for p in (first, 1 - second)]
    flips = [(float(contradict(first, second)), r.prompt) for r, first, second in judged]
    longer = [
        (float((r.probability > 0.5) == (len(r.revision) > len(r.answer))), r.prompt)
        for r, _, _ in judged
        if r.probability not in (None, 0.5) and len(r.revision) != len(r.answer)
    ]
    reason = "no revision was judged in both orders"
    return Biases(
        position_bias=clustered_share(wins, reason=reason),
        flip_rate=clustered_share(flips, reason=reason),
        longer_wins=clustered_share(longer, reason="no revision of another length has a verdict"),
    )
