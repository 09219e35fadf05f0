"""Hybrid labelling: which labels the AI may give alone, and which items people judge.

A judge's confidence c = max(p, 1−p) decides. c ≥ ``high``: the AI's label. c < ``low``: a person's.
Between: both, and where they differ a second person settles it. A random share of everything is audited
by a person whatever the route, and that share, drawn with known probabilities, is what thresholds and error
rates are estimated from. Audits come first: until all are in, people are asked about nothing else.

Thresholds. Candidates are tried from the most confident down and the first that fails ends the search, so no
correction for their number is needed (fixed-sequence testing; Angelopoulos et al., "Learn then Test", 2021):
``high`` is the last at which the upper end of the interval of the AI's error among items at or above it is at
most the stated error; ``low`` the last at which the AI still beats a coin, that is, the upper end is below
one half. Calibrators are monotone and treat both places alike, so calibrated confidence would rank items the
same; thresholds are in the judge's own, and no label touches the ranking. What calibration changes is the soft
label: the AI's probabilities that end up in labels are calibrated ones. Intervals are one-sided 95 % Wilson
on the effective number of items, which takes inclusion weights and shared prompts into account.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.constitution import speaks_to_judge
from trimtab.errors import DataError
from trimtab.feedback.calibration import Calibrator, cross_fitted, fit, reliability
from trimtab.feedback.intervals import Estimate, weighted_share, wilson_interval
from trimtab.feedback.votes import canonical_ranks
from trimtab.records import Comparison, Judgement, Record, content_id

Route = Literal["ai", "both", "person"]

AskPeople = Callable[[Sequence[Comparison], int], Mapping[str, Judgement]]
"""Asks somebody about items, the n-th person per item (0, 1, …); returns the judgements there are, by item id."""


class RouteConfig(Config):
    """How labels are divided between the AI and people."""

    error: float = Field(default=0.1, gt=0.0, lt=0.5)
    """Largest share of labels by the AI alone that may disagree with people, as the upper end of a 95 % interval."""
    audit: float = Field(default=0.1, gt=0.0, le=1.0)
    """Share of all items that a person audits. They are drawn at random, whatever the AI says of them."""
    stratified: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of the audits that is spread evenly over bands of the AI's confidence. The rest is drawn uniformly."""
    least: int = Field(default=30, ge=5)
    """Audited items needed to set thresholds, and above each threshold. With fewer, people label everything."""
    calibration: Literal["temperature", "isotonic", "none"] = "temperature"
    """How the AI's probabilities are calibrated on the audited items. ``none`` uses them as they are."""
    pilot: int = Field(default=200, ge=10)
    """Audits that set the first thresholds, in the order of the items. Later audits are tested for drift."""
    window: int = Field(default=50, ge=10)
    """Audits of items labelled by the AI that make one test for drift."""
    alarm: float = Field(default=0.01, gt=0.0, lt=0.5)
    """Probability of a false alarm in one test for drift, where the AI's error is at its limit."""
    seconds_per_label: float = Field(default=30.0, gt=0.0)
    """Seconds a person needs for one label. The report uses it where judgements have no times."""
    cost_per_hour: float = Field(default=0.0, ge=0.0)
    """Cost of an hour of a person's work. 0 means unknown, and no cost is printed."""
    seed: int = 0
    """Seed for drawing the audits."""


class Audit(Record):
    """One audited item."""

    item: str
    """Id."""
    prompt: str
    """Id of its prompt."""
    probability: float
    """The judge's P(first answer better)."""
    label: float
    """The person's label: 1 first better, 0 second better, ½ tie."""
    inclusion: float = 1.0
    """Probability π with which it was drawn."""
    uniform: bool = True
    """True: drawn independent of its confidence, so it counts in the test for drift."""

    @property
    def wrong(self) -> float:
        """1 if the AI names the other winner, ½ where the person sees a tie or the AI is at one half."""
        if self.label == 0.5 or self.probability == 0.5:
            return 0.5
        return float((self.probability > 0.5) != (self.label > 0.5))


class Thresholds(Record):
    """Limits between the routes, in the judge's own confidence max(p, 1−p)."""

    high: float | None = None
    """The AI alone labels at or above this; None: nowhere."""
    low: float | None = None
    """A person alone labels below this; None: everywhere."""
    error: Estimate = Estimate()
    """The AI's error at or above ``high`` on the audited data, two-sided 95 %."""
    audited: int = 0
    """Items they were set from."""
    reason: str = ""
    """Why a threshold is missing."""


@dataclass(frozen=True, kw_only=True)
class Router:
    """Thresholds with the calibrator they hold for."""

    thresholds: Thresholds
    """Set from audited data."""
    calibrate: Calibrator
    """Maps the judge's probability to a calibrated one."""

    def route(self, probability: float | None) -> Route:
        """The route of an item; without a probability from the judge, ``person``."""
        high, low = self.thresholds.high, self.thresholds.low
        if probability is None or low is None:
            return "person"
        c = _confidence(probability)
        if high is not None and c >= high:
            return "ai"
        return "both" if c >= low else "person"


def draw_audit(probabilities: Mapping[str, float | None], config: RouteConfig) -> dict[str, float]:
    """Items to audit with their inclusion probabilities π: independent draws, so every item has a known chance.

    π_i = a [(1 − s) + s · n / (B · n_b)], at most 1, with the share a, the stratified part s, and n_b of n items in
    item i's band of confidence, one of B that are not empty. Every item has π ≥ a (1 − s) > 0.
    """
    bands: dict[int, list[str]] = {}
    for name, p in probabilities.items():
        bands.setdefault(-1 if p is None else min(4, int((max(p, 1 - p) - 0.5) * 10)), []).append(name)
    drawn = {}
    for members in bands.values():
        even = len(probabilities) / (len(bands) * len(members))
        chance = min(1.0, config.audit * ((1 - config.stratified) + config.stratified * even))
        for name in members:
            if _random_of(name, config) < chance:
                drawn[name] = chance
    return drawn


def _random_of(name: str, config: RouteConfig) -> float:
    """The item's random number in 0 … 1, always the same; below a (1 − s) it is audited whatever its confidence."""
    return Random(content_id("audit", config.seed, name)).random()


def weighted_error(audits: Sequence[Audit]) -> tuple[float, float]:
    """The AI's error, weighted by 1/π, and the effective number of items behind it; prompts are the clusters.

    See :func:`~trimtab.feedback.intervals.weighted_share`.
    """
    return weighted_share([a.wrong for a in audits], [a.prompt for a in audits], [1 / a.inclusion for a in audits])


def error_estimate(audits: Sequence[Audit]) -> Estimate:
    """The AI's error over the population the audits were drawn from, with a two-sided 95 % interval."""
    if not audits:
        return Estimate(reason="nothing was audited here")
    error, n = weighted_error(audits)
    low, high = wilson_interval(error * n, n)
    return Estimate(value=error, low=low, high=high, n=len(audits))


def _upper_end(error: float, n: float) -> float:
    """Upper end of the one-sided 95 % interval: that of the two-sided 90 % one."""
    return wilson_interval(error * n, n, confidence=0.9)[1]


def set_thresholds(audits: Sequence[Audit], config: RouteConfig) -> Router:
    """Choose ``high`` and ``low`` from audited items.

    Items with equal confidence stay together.
    """
    usable = [a for a in audits if a.label is not None]
    p, y = [a.probability for a in usable], [a.label for a in usable]
    weights = [1 / a.inclusion for a in usable]
    calibrate = fit(config.calibration, p, y, weights)
    if len(usable) < config.least:
        reason = f"{len(usable)} audited items, {config.least} are needed; until then everything goes to people"
        return Router(thresholds=Thresholds(audited=len(usable), reason=reason), calibrate=calibrate)
    ranked = sorted(zip(map(_confidence, p), usable, strict=True), key=lambda x: -x[0])
    high = _search(ranked, config.error, config.least)
    low = _search(ranked, 0.5, config.least)
    above = [a for c, a in ranked if high is not None and c >= high]
    reason = ""
    if high is None:
        reason = f"no confidence keeps the error at or below {config.error:.0%}; the AI labels nothing alone"
    if low is None:
        reason += "; the AI is not better than a coin at any confidence, so people label everything"
    thresholds = Thresholds(
        high=high, low=low, error=error_estimate(above), audited=len(usable), reason=reason.lstrip("; ")
    )
    return Router(thresholds=thresholds, calibrate=calibrate)


def _confidence(p: float) -> float:
    return round(max(p, 1 - p), 9)  # 1 − .3 and .7 are one


def _search(ranked: Sequence[tuple[float, Audit]], limit: float, least: int) -> float | None:
    """The lowest confidence for which it and every one tried before it keep the error's upper end within the limit.

    Tried are the points at which a tenth more of the audited items comes in: few enough to be powerful, fixed before
    any label is seen.
    """
    lowest = None
    step = max(1, len(ranked) // 10)
    # So many that two errors among them still pass; fewer would end the search at the first error.
    count = max(least, min(math.ceil(6 / limit), len(ranked) // 2))
    while count <= len(ranked):
        edge = ranked[count - 1][0]
        inside = [a for c, a in ranked if c >= edge]
        error, n = weighted_error(inside)
        if _upper_end(error, n) > limit:
            break
        lowest = edge
        count = max(count, len(inside)) + step
        if len(inside) < len(ranked) < count:
            count = len(ranked)
    return lowest


def drifted(audits: Sequence[Audit], config: RouteConfig) -> int | None:
    """Has the AI's error on items it labelled alone risen above the stated one?

    The last ``window`` audits are tested as each comes in: an alarm where that many errors or more would happen with
    a chance below ``alarm`` if the error were the stated one (exact binomial, half errors rounded down). Windows
    overlap, so over long runs false alarms add up; an alarm costs fresh thresholds, not labels.

    Args:
        audits: of AI-labelled items, oldest first; drawn uniformly, as the test gives all the same weight.
        config: window, stated error and chance of a false alarm.

    Returns:
        after how many audits the first alarm came; None: none.
    """
    for end in range(config.window, len(audits) + 1):
        part = audits[end - config.window : end]
        wrong = math.floor(math.fsum(a.wrong for a in part))
        n, e = len(part), config.error
        tail = math.fsum(math.comb(n, k) * e**k * (1 - e) ** (n - k) for k in range(wrong, n + 1))
        if tail < config.alarm:
            return end
    return None


def _segments(audits: Sequence[Audit], config: RouteConfig) -> list[tuple[int, Router]]:
    """The routers in turn, each with the index of the audit from which it holds."""
    start, segments = 0, []
    while True:
        pilot = set_thresholds(audits[start : start + config.pilot], config)
        later = range(start + config.pilot, len(audits))
        alone = [k for k in later if audits[k].uniform and pilot.route(audits[k].probability) == "ai"]
        alarm = drifted([audits[k] for k in alone], config)
        if alarm is None:
            return [*segments, (start, set_thresholds(audits[start:], config))]
        begin = alone[alarm - config.window]
        segments.append((start, set_thresholds(audits[start:begin], config)))
        start = begin


class Queued(Comparison):
    """An item that waits for people, in the form the annotation app accepts."""

    overlap: int = Field(ge=1)
    """People who judge it in all; 2 if a second person settles a disagreement."""


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
    """Numbers of audits after which thresholds were set anew."""
    report: dict[str, Any]
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
    Without an alarm, all audits set the final thresholds. An alarm ends the thresholds where its window began, and new
    ones are set from there on. An item with an answer that seems to address the judge goes to a person. A skipped item
    stays queued and is counted. An adjudication settles an item, whatever its route. An audited item whose route is
    ``both`` is settled like any other: the audit is the first person's label, and all its judgements decide.

    Args:
        items: pairs of answers.
        ai: the judge's judgements of them; an item without one goes to a person.
        people: asks people; items without a judgement wait in the queue.
        config: shares, stated error, drift.
        given: people's judgements so far, requested or not: adjudications are taken from here, and labels that were
            not needed are counted.
        left_out: ids of items that nobody can judge. They take part in the draw of audits, so that the other items'
            draws stay the same, and in nothing else.
        ai_cost: what the judge cost, for the report.

    Raises:
        DataError: an item has more than two answers.
    """
    for item in items:
        if len(item.completions) != 2:
            raise DataError(f"item {item.id} has {len(item.completions)} answers; hybrid labelling takes pairs")
    by_ai = {j.item: j for j in ai if j.criterion == "overall"}
    p: dict[str, float | None] = {i.id: first_better(by_ai.get(i.id)) for i in items}
    chances = {name: chance for name, chance in draw_audit(p, config).items() if name not in left_out}
    items = [i for i in items if i.id not in left_out]
    given = [j for j in given if j.ranks is not None and j.criterion == "overall" and j.item in p]
    labels = _Labels(people, {j.item: j for j in given if j.adjudication and j.item not in left_out})

    labels.ask([i for i in items if i.id in chances], 0)
    missing = sum(labels.of(name) is None for name in chances)
    audits = [a for i in items if i.id in chances if (a := _audit(i, p[i.id], labels.of(i.id), chances[i.id], config))]
    segments = [(0, _waiting(missing, len(chances)))] if missing else _segments(audits, config)
    for_judge = {i.id for i in items if any(speaks_to_judge(c.text) for c in i.completions)}
    routers = _routers(items, audits, segments)
    routes: dict[str, Route] = {i.id: "person" if i.id in for_judge else routers[i.id].route(p[i.id]) for i in items}
    if not missing:
        labels.ask([i for i in items if routes[i.id] != "ai"], 0)
    both = [i for i in items if routes[i.id] == "both" and (j := labels.of(i.id)) and not j.adjudication]
    labels.ask([i for i in both if not _agree(p[i.id], labels.of(i.id))], 1)

    judgements: list[Judgement] = []
    queue: list[Queued] = []
    for item in items:
        by_machine = _calibrated(by_ai.get(item.id), routers[item.id].calibrate)
        is_audit = item.id in chances
        counted, people_needed = _settle(routes[item.id], by_machine, p[item.id], labels, item.id, is_audit=is_audit)
        judgements += counted
        if people_needed and (is_audit or not missing):
            queue.append(_queued(item, people_needed))
    router = routers[items[-1].id] if items else segments[0][1]
    report = _report(
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
    )
    report |= {
        "speak_to_judge": len(for_judge),
        "skipped": len({name for name, _ in labels.skipped}),
        "cost_of_ai": ai_cost,
        "reopened": [start for start, _ in segments[1:]],
    }
    return Hybrid(
        judgements=tuple(judgements),
        queue=tuple(queue),
        routes=routes,
        router=router,
        audits=tuple(audits),
        reopened=tuple(start for start, _ in segments[1:]),
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
        new = [i for i in items if (i.id, number) not in self.given and (i.id, number) not in self.skipped]
        for item, judgement in (self._people(new, number) if new else {}).items():
            if judgement.ranks is None:
                self.skipped.add((item, number))
            else:
                self.given[item, number] = judgement


def _routers(
    items: Sequence[Comparison], audits: Sequence[Audit], segments: Sequence[tuple[int, Router]]
) -> dict[str, Router]:
    """The router in force at each item; a segment starts with the audit it names."""
    starts = {audits[start].item: router for start, router in segments[1:]}
    router, routers = segments[0][1], {}
    for item in items:
        router = routers[item.id] = starts.get(item.id, router)
    return routers


def _settle(
    route: Route, by_machine: Judgement | None, p: float | None, labels: _Labels, item: str, *, is_audit: bool
) -> tuple[list[Judgement], int]:
    """The judgements of an item that count; or none, and how many people must judge it in all."""
    first, second = labels.of(item, 0), labels.of(item, 1)
    if first is None:
        if route == "ai" and by_machine is not None and not is_audit:
            return [by_machine], 0
        return [], 1
    if route != "both" or first.adjudication or by_machine is None:
        return [first], 0  # a person's label is used once it is there, and an adjudicator's settles the item
    if _agree(p, first):
        return [by_machine, first], 0
    return ([first, second, by_machine], 0) if second is not None else ([], 2)


def first_better(judgement: Judgement | None) -> float | None:
    """P(the item's first answer is better) by a judgement of two answers; None where it has no ranks."""
    if judgement is None or judgement.ranks is None:
        return None
    if judgement.probability is not None:
        return judgement.probability if judgement.shown_order[0] == 0 else 1 - judgement.probability
    first, second = canonical_ranks(judgement)
    return 0.5 if first == second else float(first < second)


def _agree(p: float | None, person: Judgement | None) -> bool:
    """True if the judge and a person prefer the same answer, or neither prefers one."""
    return _sign(p) == _sign(first_better(person))


def _sign(p: float | None) -> int:
    return 0 if p is None or p == 0.5 else 1 if p > 0.5 else -1


def _waiting(missing: int, drawn: int) -> Router:
    reason = f"{missing} of {drawn} audits wait for a person; thresholds are set when all are in"
    return Router(thresholds=Thresholds(reason=reason), calibrate=lambda p: p)


def _queued(item: Comparison, people: int) -> Queued:
    return Queued(id=item.id, prompt=item.prompt, completions=item.completions, overlap=people)


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
    uniform = _random_of(item.id, config) < config.audit * (1 - config.stratified)
    return Audit(item=item.id, prompt=item.prompt.id, probability=p, label=label, inclusion=chance, uniform=uniform)


def _report(
    items: Sequence[Comparison],
    by_ai: Mapping[str, Judgement],
    routes: Mapping[str, Route],
    labels: Mapping[tuple[str, int], Judgement],
    audits: Sequence[Audit],
    router: Router,
    config: RouteConfig,
    *,
    waiting: Set[str],
    drawn: int,
    not_needed: int,
) -> dict[str, Any]:
    counts = {route: sum(r == route for r in routes.values()) for route in ("ai", "both", "person")}
    probabilities, weights = {"as said": [a.probability for a in audits]}, [1 / a.inclusion for a in audits]
    if len({a.prompt for a in audits}) > 1 and config.calibration != "none":
        probabilities[f"{config.calibration}, cross-fitted"] = cross_fitted(
            config.calibration,
            probabilities["as said"],
            [a.label for a in audits],
            [a.prompt for a in audits],
            weights=weights,
            seed=config.seed,
        )
    times = [j.seconds for j in labels.values() if j.seconds is not None]
    seconds = sum(times) / len(times) if times else config.seconds_per_label
    saved = len(items) - len(labels) - sum((name, 0) not in labels for name in waiting)
    strata: dict[str, list[Audit]] = {name: [] for name in counts}
    principles: dict[str, list[Audit]] = {}
    for audit in audits:
        strata[routes[audit.item]].append(audit)
        by_machine = by_ai.get(audit.item)
        for name in (by_machine.principle or "").split(",") if by_machine is not None else []:
            if name:
                principles.setdefault(name, []).append(audit)
    return {
        "items": len(items),
        "routes": counts,
        "coverage": counts["ai"] / len(items) if items else 0.0,
        "thresholds": router.thresholds,
        "audited": len(audits),
        "drawn_for_audit": drawn,
        "labels_of_people": len(labels),
        "labels_not_needed": not_needed,
        "waiting": len(waiting),
        "labels_saved": saved,
        "seconds_per_label": seconds,
        "hours_saved": saved * seconds / 3600,
        "cost_of_people": (len(labels) + not_needed) * seconds / 3600 * config.cost_per_hour,
        "cost_saved": saved * seconds / 3600 * config.cost_per_hour,
        "calibration_error": {
            name: reliability(values, [a.label for a in audits], weights)[1] for name, values in probabilities.items()
        },
        "error_of_ai": error_estimate(audits),
        "error_by_route": {name: error_estimate(group) for name, group in strata.items()},
        "error_by_principle": {name: error_estimate(group) for name, group in sorted(principles.items())},
    }


def routing_lines(report: Mapping[str, Any]) -> list[str]:
    """The report in words, one line each."""
    thresholds: Thresholds = report["thresholds"]
    routes = report["routes"]
    lines = [
        f"{report['items']} items: AI alone {routes['ai']} ({report['coverage']:.0%}), both {routes['both']}, "
        f"people {routes['person']}; {report['audited']} audited, {report['waiting']} wait for a person",
        f"{report['labels_of_people']} labels by people, {abs(report['labels_saved'])} "
        f"{'fewer' if report['labels_saved'] >= 0 else 'MORE'} than one per item: "
        f"{abs(report['hours_saved']):.1f} h at {report['seconds_per_label']:.0f} s",
    ]
    if report.get("speak_to_judge"):
        lines.append(f"{report['speak_to_judge']} have an answer that seems to address the judge; they go to people")
    if report.get("skipped"):
        lines.append(f"{report['skipped']} items were skipped by everyone asked so far; still queued")
    if report["labels_not_needed"]:
        lines.append(f"{report['labels_not_needed']} labels by people were not needed")
    if report.get("cost_of_ai"):
        lines.append(f"the AI cost {report['cost_of_ai']:.2f}")
    if report["cost_of_people"]:
        lines.append(
            f"people cost {report['cost_of_people']:.2f}; the labels saved would have cost {report['cost_saved']:.2f}"
        )
    if thresholds.high is not None and thresholds.error.value is not None:
        low, high = thresholds.error.low or 0.0, thresholds.error.high or 0.0
        lines.append(
            f"AI alone from confidence {thresholds.high:.2f}: error {thresholds.error.value:.1%} "
            f"[{low:.1%}, {high:.1%}] on {thresholds.error.n} audited items"
        )
    if thresholds.reason:
        lines.append(thresholds.reason)
    errors = ", ".join(f"{name} {value:.3f}" for name, value in report["calibration_error"].items())
    lines.append(f"calibration error of the judge on audited items (weighted): {errors}")
    for name, error in report["error_by_route"].items():
        if error.value is not None:
            lines.append(
                f"  AI's error where the route is {name}: {error.value:.1%} [{error.low:.1%}, {error.high:.1%}]"
            )
    known = {name: e for name, e in report["error_by_principle"].items() if e.value is not None}
    if known:
        each = (f"{name} {e.value:.0%} [{e.low:.0%}, {e.high:.0%}]" for name, e in known.items())
        lines.append(f"  by principle: {', '.join(each)}")
    if report.get("reopened"):
        lines.append(f"the audit drifted; thresholds were set anew after {report['reopened']} audits")
    return lines


def savings_curve(
    ai_error: Mapping[str, float], human_error: Mapping[str, float], confidence: Mapping[str, float], *, seed: int = 0
) -> list[tuple[float, float]]:
    """Error of hybrid labels as the AI labels more and more items, the most confident first.

    Args:
        ai_error: chance that the AI's label is wrong, by item; against the same references as people's.
        human_error: chance that one person's label is wrong, by item.
        confidence: by item; larger goes to the AI first.
        seed: of the random order of items with equal confidence.

    Returns:
        (share of items the AI labels, mean error of all labels) for 0 to all items.
    """
    names = sorted(ai_error)
    Random(seed).shuffle(names)
    names.sort(key=lambda n: -confidence[n])
    total = math.fsum(human_error[n] for n in names)
    curve = [(0.0, total / len(names))]
    for count, n in enumerate(names, 1):
        total += ai_error[n] - human_error[n]
        curve.append((count / len(names), total / len(names)))
    return curve


def saved_at(curve: Sequence[tuple[float, float]], error: float) -> float:
    """The largest share of labels the AI can give with the mean error at or below a stated one."""
    return max((share for share, e in curve if e <= error + 1e-12), default=0.0)


def saved_at_random(curve: Sequence[tuple[float, float]], error: float) -> float:
    """The same where the AI labels items drawn at random: the mean error then moves along a straight line."""
    start, end = curve[0][1], curve[-1][1]
    if end <= error:
        return 1.0
    return max(0.0, (error - start) / (end - start)) if start < end else 0.0
