"""Hybrid labelling: which labels the AI may give alone, and which items people judge.

The judge's confidence c = max(p, 1−p) decides the route. With c ≥ ``high`` the AI labels the item alone; with
c < ``low`` a person does. In between both label it, and a second person settles a disagreement. A person audits
a random share of all items, whatever their route. Audits are drawn with known probabilities; thresholds and
error rates are estimated from them. Audits come first: until all are in, people are asked about nothing else.
Thresholds are set in :mod:`trimtab.feedback.thresholds`.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from pydantic import Field

from trimtab.constitution import speaks_to_judge
from trimtab.errors import DataError
from trimtab.feedback.calibration import Calibrator
from trimtab.feedback.routing_report import RoutingReport, routing_report
from trimtab.feedback.thresholds import (
    Audit,
    Route,
    RouteConfig,
    Router,
    Thresholds,
    draw_audit,
    random_of,
    routers_in_turn,
)
from trimtab.feedback.votes import first_better
from trimtab.records import Comparison, Judgement

AskPeople = Callable[[Sequence[Comparison], int], Mapping[str, Judgement]]
"""Asks the n-th person of each item (0, 1, …) for a judgement; returns the judgements received, by item id."""


class Queued(Comparison):
    """An item that waits for people, in the form the annotation app accepts."""

    overlap: int = Field(ge=1)
    """Total number of people who judge it; 2 if a second person settles a disagreement."""


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """The result of hybrid labelling."""

    judgements: tuple[Judgement, ...]
    """The judgements that count, by AI and people, in item order."""
    queue: tuple[Queued, ...]
    """Items that people must judge now; only audits, while audits are missing."""
    routes: dict[str, Route]
    """Route of each item."""
    router: Router
    """Thresholds in force at the end."""
    audits: tuple[Audit, ...]
    """Every audited item."""
    reopened: tuple[int, ...]
    """Each time thresholds were set anew: the number of audits before it."""
    report: RoutingReport
    """Cost, coverage, error by stratum and principle, hours saved."""


def label_hybrid(
    items: Sequence[Comparison],
    ai: Sequence[Judgement],
    people: AskPeople,
    config: RouteConfig,
    *,
    given: Sequence[Judgement] = (),
    left_out: Set[str] = frozenset(),
    ai_cost: float = 0.0,
) -> Hybrid:
    """Route items, ask people where they are needed, settle disagreements, audit, and report.

    The ``pilot`` audits set the first thresholds; later audits, in the order of the items, are watched for drift.
    Without an alarm, all audits set the final thresholds. After an alarm, the old thresholds hold up to the start of
    the alarm's window, and new ones are set from there on.

    An item with an answer that seems to address the judge goes to a person. A skipped item stays queued and is counted.
    An adjudication settles an item, whatever its route. An audited item whose route is ``both`` is settled like any
    other: the audit is the first person's label, and all its judgements decide.

    Args:
        items: pairs of answers.
        ai: the judge's judgements of them; an item without one goes to a person.
        people: asks people; items without a judgement wait in the queue.
        config: shares of audits, the stated error, and the test for drift.
        given: people's judgements so far, requested or not: adjudications are taken from here, and labels that were
            not needed are counted.
        left_out: ids of items that nobody can judge. They take part only in the draw of audits, so that the draws of
            the other items stay the same.
        ai_cost: what the judge cost, for the report.

    Raises:
        DataError: an item has more than two answers.
    """
    _check_pairs(items)
    by_ai = {j.item: j for j in ai if j.criterion == "overall"}
    p: dict[str, float | None] = {i.id: first_better(by_ai.get(i.id)) for i in items}
    chances = {name: chance for name, chance in draw_audit(p, config).items() if name not in left_out}
    items = [i for i in items if i.id not in left_out]
    given = [j for j in given if j.ranks is not None and j.criterion == "overall" and j.item in p]
    labels = _Labels(people, {j.item: j for j in given if j.adjudication and j.item not in left_out})

    labels.ask([i for i in items if i.id in chances], 0)
    missing_audits = sum(labels.of(name) is None for name in chances)
    audits = [a for i in items if i.id in chances if (a := _audit(i, p[i.id], labels.of(i.id), chances[i.id], config))]
    segments = (
        [(0, _router_while_waiting(missing_audits, len(chances)))]
        if missing_audits
        else routers_in_turn(audits, config)
    )
    routers = _routers(items, audits, segments)
    addressing_judge = {i.id for i in items if any(speaks_to_judge(c.text) for c in i.completions)}
    routes: dict[str, Route] = {
        i.id: "person" if i.id in addressing_judge else routers[i.id].route(p[i.id]) for i in items
    }
    _ask_by_route(items, routes, p, labels, audits_missing=bool(missing_audits))

    judgements: list[Judgement] = []
    queue: list[Queued] = []
    for item in items:
        ai_judgement, is_audit = _calibrated(by_ai.get(item.id), routers[item.id].calibrate), item.id in chances
        counted, people_needed = _settle(routes[item.id], ai_judgement, p[item.id], labels, item.id, is_audit=is_audit)
        judgements += counted
        if people_needed and (is_audit or not missing_audits):
            queue.append(Queued(id=item.id, prompt=item.prompt, completions=item.completions, overlap=people_needed))
    router = routers[items[-1].id] if items else segments[0][1]
    reopened = tuple(start for start, _ in segments[1:])
    report = routing_report(
        items,
        by_ai,
        routes,
        labels.given,
        audits,
        router,
        config,
        waiting={i.id for i in items} - {j.item for j in judgements},
        drawn=len(chances),
        not_needed=max(0, len(given) - len(labels.given)),
        speak_to_judge=len(addressing_judge),
        skipped=len({name for name, _ in labels.skipped}),
        ai_cost=ai_cost,
        reopened=reopened,
    )
    return Hybrid(
        judgements=tuple(judgements),
        queue=tuple(queue),
        routes=routes,
        router=router,
        audits=tuple(audits),
        reopened=reopened,
        report=report,
    )


class _Labels:
    """People's labels, each requested once; an adjudication is the first label of its item."""

    def __init__(self, people: AskPeople, adjudications: Mapping[str, Judgement]) -> None:
        self._people = people
        self.given = {(item, 0): judgement for item, judgement in adjudications.items()}
        """By item id and number of the person."""
        self.skipped: set[tuple[str, int]] = set()
        """Items and numbers of people who skipped them."""

    def of(self, item: str, number: int = 0) -> Judgement | None:
        """The label of the first (0) or second (1) person."""
        return self.given.get((item, number))

    def ask(self, items: Sequence[Comparison], number: int) -> None:
        """Ask the person with this number about each item, unless that was done before."""
        unasked = [i for i in items if (i.id, number) not in self.given and (i.id, number) not in self.skipped]
        if not unasked:
            return
        for item, judgement in self._people(unasked, number).items():
            if judgement.ranks is None:
                self.skipped.add((item, number))
            else:
                self.given[item, number] = judgement


def _ask_by_route(
    items: Sequence[Comparison],
    routes: Mapping[str, Route],
    p: Mapping[str, float | None],
    labels: _Labels,
    *,
    audits_missing: bool,
) -> None:
    """Ask a person if the route says so, and a second person if the first one differs from the AI."""
    if not audits_missing:
        labels.ask([i for i in items if routes[i.id] != "ai"], 0)
    judged_by_both = [i for i in items if routes[i.id] == "both" and (j := labels.of(i.id)) and not j.adjudication]
    labels.ask([i for i in judged_by_both if not _agree(p[i.id], labels.of(i.id))], 1)


def _routers(
    items: Sequence[Comparison], audits: Sequence[Audit], segments: Sequence[tuple[int, Router]]
) -> dict[str, Router]:
    """The router in force at each item; a segment starts with the audit it names."""
    starts = {audits[start].item: router for start, router in segments[1:]}
    router = segments[0][1]
    routers: dict[str, Router] = {}
    for item in items:
        router = routers[item.id] = starts.get(item.id, router)
    return routers


def _settle(
    route: Route, ai_judgement: Judgement | None, p: float | None, labels: _Labels, item: str, *, is_audit: bool
) -> tuple[list[Judgement], int]:
    """The judgements of an item that count and 0, or none and the total number of people who must judge it."""
    first, second = labels.of(item, 0), labels.of(item, 1)
    if first is None:
        if route == "ai" and ai_judgement is not None and not is_audit:
            return [ai_judgement], 0
        return [], 1
    if route != "both" or first.adjudication or ai_judgement is None:
        return [first], 0  # a person's label is used as soon as there is one, and an adjudicator's settles the item
    if _agree(p, first):
        return [ai_judgement, first], 0
    return ([first, second, ai_judgement], 0) if second is not None else ([], 2)


def _agree(p: float | None, person: Judgement | None) -> bool:
    """True if the judge and a person prefer the same answer, or neither prefers one."""
    return _sign(p) == _sign(first_better(person))


def _sign(p: float | None) -> int:
    return 0 if p is None or p == 0.5 else 1 if p > 0.5 else -1


def _router_while_waiting(missing: int, drawn: int) -> Router:
    reason = f"{missing} of {drawn} audits wait for a person; thresholds are set when all are in"
    return Router(thresholds=Thresholds(reason=reason), calibrate=lambda p: p)


def _check_pairs(items: Sequence[Comparison]) -> None:
    for item in items:
        if len(item.completions) != 2:
            raise DataError(f"item {item.id} has {len(item.completions)} answers; hybrid labelling takes pairs")


def _calibrated(judgement: Judgement | None, calibrate: Calibrator) -> Judgement | None:
    """The AI's judgement with the calibrated probability; the verdict's record keeps the judge's own."""
    if judgement is None or judgement.probability is None:
        return judgement
    p = calibrate(judgement.probability)
    return judgement.model_copy(update={"probability": p, "strength": round(abs(2 * p - 1), 6)})


def _audit(
    item: Comparison, p: float | None, person: Judgement | None, chance: float, config: RouteConfig
) -> Audit | None:
    label = first_better(person)
    if p is None or label is None:
        return None
    uniform = random_of(item.id, config) < config.audit * (1 - config.stratified)
    return Audit(item=item.id, prompt=item.prompt.id, probability=p, label=label, inclusion=chance, uniform=uniform)
