"""What each principle of a constitution does to the labels.

Legend: a principle *was asked* of a pair of answers if the judge gave a verdict by it; it *fires* on the pair if both
orders name the same winner and p is at least ``margin`` away from one half; two principles *conflict* on a pair if
both fire for different answers.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from trimtab.feedback.intervals import Estimate, clustered_share
from trimtab.feedback.judge import Verdict, combine
from trimtab.feedback.judge_report import shown
from trimtab.records import Comparison, Record

Pair = tuple[str, tuple[int, int]]
"""Item id and the indices of two answers."""


class PrincipleEffect(Record):
    """What one principle does; shares are clustered by prompt."""

    asked: int
    """Pairs of answers that it was asked of."""
    no_answer: int
    """Verdicts without an answer."""
    firing_rate: Estimate
    """Share of the asked pairs on which it fires."""
    agreement: Estimate
    """Share of pairs with the same winner, among the pairs on which it fires and people have a winner."""
    removed: dict[Literal["same", "changed", "unknown"], int]
    """Number of pairs by what happens to their combined label without it; unknown: no other principle has an answer, so
    another one would be drawn and asked."""
    alone: int
    """Pairs of which no other principle was asked."""


class Conflict(Record):
    """Two principles that fire for different answers."""

    principles: tuple[str, str]
    """Their ids."""
    rate: Estimate
    """Share of conflicts among the pairs on which both fire, clustered by prompt."""


class PrincipleReport(Record):
    """What the principles do to the labels of one judge."""

    principles: dict[str, PrincipleEffect]
    """By id."""
    conflicts: tuple[Conflict, ...]
    """Most frequent first."""


def principle_report(
    items: Sequence[Comparison],
    verdicts: Sequence[Verdict],
    people: Mapping[Pair, float],
    *,
    margin: float = 0.1,
) -> PrincipleReport:
    """For each principle: how often it fires, agrees with people and conflicts, and what its removal would change.

    Args:
        items: the judged items.
        verdicts: of one judge.
        people: net vote by pair; its sign is the winner.
        margin: least distance of p from one half at which a principle fires.
    """
    prompts = {item.id: item.prompt.id for item in items}
    by_pair: dict[Pair, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_pair[verdict.item, verdict.pair].append(verdict)
    names = sorted({v.principle for v in verdicts})
    rows: dict[str, PrincipleEffect] = {}
    for name in names:
        principle_verdicts = [v for v in verdicts if v.principle == name]
        answered = [v for v in principle_verdicts if v.probability is not None]
        fires = [(float(_fires(v, margin)), prompts[v.item]) for v in answered]
        agreements = [
            (float((v.probability or 0) > 0.5) if people[v.item, v.pair] > 0 else float((v.probability or 0) < 0.5),
             prompts[v.item])
            for v in answered if _fires(v, margin) and people.get((v.item, v.pair))
        ]  # fmt: skip
        label_effects = Counter(_label_without(by_pair[v.item, v.pair], name) for v in answered)
        rows[name] = PrincipleEffect(
            asked=len(answered),
            no_answer=len(principle_verdicts) - len(answered),
            firing_rate=clustered_share(fires, reason="it has no answer anywhere"),
            agreement=clustered_share(agreements, reason="it fires nowhere where people have a winner"),
            removed={k: label_effects[k] for k in ("same", "changed", "unknown")},
            alone=sum(len(by_pair[v.item, v.pair]) == 1 for v in answered),
        )
    conflicts: list[Conflict] = []
    for a, b in itertools.combinations(names, 2):
        conflict_outcomes: list[tuple[float, str]] = []
        for (item, _), group in by_pair.items():
            pair = {v.principle: v for v in group if v.principle in (a, b) and _fires(v, margin)}
            if len(pair) == 2:
                differ = ((pair[a].probability or 0) > 0.5) != ((pair[b].probability or 0) > 0.5)
                conflict_outcomes.append((float(differ), prompts[item]))
        if conflict_outcomes:
            conflicts.append(Conflict(principles=(a, b), rate=clustered_share(conflict_outcomes)))
    conflicts.sort(key=lambda c: -(c.rate.value or 0) * c.rate.n)
    return PrincipleReport(principles=rows, conflicts=tuple(conflicts))


def principle_lines(report: PrincipleReport) -> list[str]:
    """The report in words: a line for each principle, and the most frequent conflicts."""
    lines: list[str] = []
    for name, row in report.principles.items():
        lines.append(
            f"{name}: fires {shown(row.firing_rate)}, people agree {shown(row.agreement)}; "
            f"without it {row.removed['changed']} labels change, {row.removed['unknown']} need new questions"
        )
    most_frequent = [c for c in report.conflicts if c.rate.value][:5]
    return lines + [
        f"conflict of {' and '.join(c.principles)}: {shown(c.rate)} they both fire on" for c in most_frequent
    ]


def _fires(verdict: Verdict, margin: float) -> bool:
    p = verdict.probability
    return p is not None and not verdict.contradicts and abs(p - 0.5) >= margin


def _label_without(verdicts: Sequence[Verdict], name: str) -> str:
    """What happens to a pair's label if a principle is removed."""
    others = [v for v in verdicts if v.principle != name]
    ((before, _, _),) = combine(verdicts).values()
    if not any(v.probability is not None for v in others):
        return "unknown"
    ((after, _, _),) = combine(others).values()
    return "same" if _side(before) == _side(after) else "changed"


def _side(p: float) -> int:
    return (p > 0.5) - (p < 0.5)


def changed_labels(before: Sequence[Verdict], after: Sequence[Verdict]) -> dict[str, int]:
    """Number of pairs by what an edited constitution does to their combined label: same, changed, lost, new."""
    old, new = _labels(before), _labels(after)
    outcomes = Counter(
        "lost" if key not in new else "new" if key not in old else "same" if old[key] == new[key] else "changed"
        for key in old.keys() | new.keys()
    )
    return {k: outcomes[k] for k in ("same", "changed", "lost", "new")}


def _labels(verdicts: Sequence[Verdict]) -> dict[Pair, int]:
    by_item: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_item[verdict.item].append(verdict)
    return {(item, pair): _side(p) for item, group in by_item.items() for pair, (p, _, _) in combine(group).items()}
