"""Critique and revision: a model rewrites its own answers by principles, and the rewrites become training data.

Bai et al., "Constitutional AI: Harmlessness from AI Feedback", 2022, section 3: answer → (critique → revision)
once per round, one principle drawn for each round. Two departures. A revision must be better than
what it replaces by a judge who compares the two under the round's principle in both orders; where it is
worse, or the judge does not decide, the earlier answer stays, and that is counted. And the model may first be
asked whether the answer violates the principle at all; if not, it is left as it is.

Everything that is written or judged is kept under a hash of what was asked, so a killed run goes on
where it stopped and draws nothing twice.
"""

from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.constitution import Constitution, ask_critique, ask_revision, ask_violation, compare_answers
from trimtab.feedback.intervals import Estimate
from trimtab.feedback.judge import LETTERS, Ask, Question, Reply, contradict, question
from trimtab.feedback.judge_report import first_wins, share
from trimtab.records import Demonstration, Message, Prompt, Record, content_id

Write = Callable[[Sequence[Prompt], Callable[[Mapping[str, str]], None]], None]
"""Writes the next turn of conversations and hands texts over by the prompt's id, in any portions."""

Outcome = Literal["kept", "no violation", "worse", "undecided", "no verdict", "unchanged", "empty"]


class RevisionConfig(Config):
    """How answers are criticised and rewritten."""

    rounds: int = Field(default=2, ge=1)
    """Rounds; each draws one principle."""
    critique: bool = True
    """False: the revision is asked for without a critique before it."""
    violation_first: bool = False
    """True: ask whether the answer violates the principle; without a violation there is no revision."""
    violation_threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    """P(violation) from which an answer is rewritten."""
    seed: int = 0
    """Of the drawing of principles."""


class Revision(Record):
    """One round for one prompt, as it went."""

    prompt: str
    """Id of the prompt."""
    round: int
    """From 0."""
    principle: str
    """Id of the principle drawn."""
    answer: str
    """What was to be rewritten."""
    violation: float | None = None
    """P(the answer violates the principle); None: not asked, or no answer."""
    critique: str = ""
    """What the model said about its answer."""
    revision: str = ""
    """What it wrote instead."""
    first: float | None = None
    """P(the revision follows the principle better) where it was shown first; None: not judged, or no answer."""
    second: float | None = None
    """The same where it was shown second."""
    probability: float | None = None
    """Mean of both; None unless both are there."""
    outcome: Outcome
    """``kept``: the revision replaces the answer. All other outcomes leave the answer as it was; ``undecided``: the
    judge's two orders name different winners, or neither names one."""


@dataclass(frozen=True, kw_only=True)
class Revised:
    """What came of all prompts."""

    demonstrations: tuple[Demonstration, ...]
    """Prompt and last answer, where a revision was kept, or where every round found no violation."""
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
        prompts: what to answer; usually red-team prompts.
        constitution: what to criticise by.
        write: the model that answers, criticises and rewrites.
        ask: the judge of revisions, and of violations.
        config: rounds and modes.
        identity: what makes two models and their sampling the same; part of every key.
        journal: texts and replies by key.
        progress: called with (steps done, all steps); a round counts as one step, the first answers too.
    """
    total = 1 + config.rounds

    def texts(asked: Mapping[str, tuple[Message, ...]], purpose: str) -> dict[str, str]:
        """What the model says next in each conversation, by prompt id."""
        keys = {
            name: content_id("write", identity, purpose, [m.model_dump() for m in m_]) for name, m_ in asked.items()
        }
        missing = {keys[n]: Prompt(id=keys[n], messages=m_) for n, m_ in asked.items() if keys[n] not in journal}
        if missing:
            write(list(missing.values()), lambda found: journal.update({k: {"text": t} for k, t in found.items()}))
        return {name: str(journal[key]["text"]).strip() for name, key in keys.items()}

    def replies(asked: Mapping[Any, Question]) -> dict[Any, Reply]:
        missing = {q.key: q for q in asked.values() if q.key not in journal}
        if missing:
            ask(
                list(missing.values()),
                lambda found: journal.update(
                    {k: r.model_dump(mode="json", exclude_defaults=True) for k, r in found.items()}
                ),
            )
        return {name: Reply.model_validate(journal[q.key]) for name, q in asked.items()}

    by_id = {p.id: p for p in prompts}
    answers = texts({p.id: p.messages for p in by_id.values()}, "answer")
    current = dict(answers)
    done: list[Revision] = []
    if progress is not None:
        progress(1, total)
    for number in range(config.rounds):
        drawn = {name: constitution.draw(1, config.seed, name, number)[0] for name in by_id}
        steps: dict[str, dict[str, Any]] = {
            name: {"prompt": name, "round": number, "principle": drawn[name].id, "answer": current[name]}
            for name in by_id
        }
        going = [name for name in by_id if current[name]]
        if config.violation_first:
            found = replies(
                {n: question(identity, ask_violation(by_id[n], current[n], drawn[n]), ("Yes", "No")) for n in going}
            )
            for name, reply in found.items():
                steps[name]["violation"] = None if reply.probabilities is None else reply.probabilities[0]
                if reply.probabilities is None:
                    steps[name]["outcome"] = "no verdict"
                elif reply.probabilities[0] < config.violation_threshold:
                    steps[name]["outcome"] = "no violation"
            going = [n for n in going if "outcome" not in steps[n]]
        critiques = dict.fromkeys(going, "")
        if config.critique:
            critiques = texts({n: ask_critique(by_id[n], current[n], drawn[n]) for n in going}, f"critique {number}")
        rewritten = texts(
            {n: ask_revision(by_id[n], current[n], drawn[n], critiques[n]) for n in going}, f"revision {number}"
        )
        fresh = [n for n in going if rewritten[n] and rewritten[n] != current[n]]
        judged = replies(
            {
                (n, place): question(identity, compare_answers(by_id[n], *pair, drawn[n]), LETTERS)
                for n in fresh
                for place, pair in enumerate(((rewritten[n], current[n]), (current[n], rewritten[n])))
            }
        )
        for name in by_id:
            step = steps[name]
            if name in critiques:
                step |= {"critique": critiques[name], "revision": rewritten[name]}
            if "outcome" in step:
                pass
            elif name not in critiques or not rewritten[name]:
                step["outcome"] = "empty"
            elif name not in fresh:
                step["outcome"] = "unchanged"
            else:
                there, back = judged[name, 0].probabilities, judged[name, 1].probabilities
                first = None if there is None else there[0]
                second = None if back is None else back[1]
                step |= {"first": first, "second": second}
                if first is None or second is None:
                    step["outcome"] = "no verdict"
                else:
                    p = step["probability"] = (first + second) / 2
                    undecided = p == 0.5 or contradict(first, second)
                    step["outcome"] = "undecided" if undecided else "kept" if p > 0.5 else "worse"
            if step["outcome"] == "kept":
                current[name] = rewritten[name]
            done.append(Revision(**step))
        if progress is not None:
            progress(2 + number, total)
    outcomes = {name: {r.outcome for r in done if r.prompt == name} for name in by_id}
    usable = [n for n in by_id if current[n] and ("kept" in outcomes[n] or outcomes[n] == {"no violation"})]
    made = tuple(
        Demonstration.of(
            [*by_id[n].messages, Message(role="assistant", content=current[n])],
            constitution=constitution.version,
            revised=current[n] != answers[n],
        )
        for n in usable
    )
    counts = {str(k): n for k, n in Counter(r.outcome for r in done).items()}
    return Revised(
        demonstrations=made,
        revisions=tuple(done),
        answers=answers,
        counts={**counts, "left_out": len(by_id) - len(usable)},
    )


def by_principle(revisions: Sequence[Revision]) -> dict[str, dict[str, Any]]:
    """For each principle: rounds, outcomes, how often it fired.

    It fires where a violation was found, or, where that was not asked, where its revision was kept.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in sorted({r.principle for r in revisions}):
        mine = [r for r in revisions if r.principle == name]
        fired = sum(r.outcome != "no violation" if r.violation is not None else r.outcome == "kept" for r in mine)
        found[name] = {"rounds": len(mine), "fired": fired, "outcomes": dict(Counter(r.outcome for r in mine))}
    return found


def judge_biases(revisions: Sequence[Revision]) -> dict[str, Estimate]:
    """Of the judge who compared revisions with what they replace: ``position_bias``, ``flip_rate``, ``longer_wins``."""
    judged = [(r, r.first, r.second) for r in revisions if r.first is not None and r.second is not None]
    wins = [(first_wins(p), r.prompt) for r, first, second in judged for p in (first, 1 - second)]
    flips = [(float(contradict(first, second)), r.prompt) for r, first, second in judged]
    longer = [
        (float((r.probability > 0.5) == (len(r.revision) > len(r.answer))), r.prompt)
        for r, _, _ in judged
        if r.probability not in (None, 0.5) and len(r.revision) != len(r.answer)
    ]
    reason = "no revision was judged in both orders"
    return {
        "position_bias": share(wins, reason),
        "flip_rate": share(flips, reason),
        "longer_wins": share(longer, "no revision of another length has a verdict"),
    }
