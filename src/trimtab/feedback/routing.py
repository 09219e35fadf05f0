"""Hybrid labelling: which labels an AI may give alone, and which people give.

A judge's confidence c = max(p, 1−p) decides. c ≥ ``high``: the AI's label. c < ``low``: a person's.
Between: both, and where they differ a second person settles it. A random share of everything is audited
by a person whatever the route, and that share, drawn with known probabilities, is what thresholds and error
rates are estimated from. Audits come first: until all of them are in, nobody is asked about anything else.

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
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from random import Random
from statistics import NormalDist
from typing import Any, Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.constitution import speaks_to_judge
from trimtab.errors import DataError
from trimtab.feedback.calibration import Calibrator, cross_fitted, fit, reliability
from trimtab.feedback.intervals import Estimate
from trimtab.feedback.votes import canonical_ranks
from trimtab.records import Comparison, Judgement, Record, content_id

Route = Literal["ai", "both", "person"]


class RouteConfig(Config):
    """How labels are divided between the AI and people."""

    error: float = Field(default=0.1, gt=0.0, lt=0.5)
    """The AI's labels that are used alone may disagree with people in at most this share, upper end of the interval."""
    audit: float = Field(default=0.1, gt=0.0, le=1.0)
    """Share of all items that is audited by a person, drawn at random whatever the route."""
    stratified: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Part of the audits that is spread evenly over bands of confidence; the rest is uniform."""
    least: int = Field(default=30, ge=5)
    """Audited items needed before any threshold is set, and at or above a threshold; until then all goes to people."""
    calibration: Literal["temperature", "isotonic", "none"] = "temperature"
    """How the AI's probabilities are calibrated on audited items; the report's calibration error is cross-fitted."""
    pilot: int = Field(default=200, ge=10)
    """Audits, in the order of the items, from which thresholds are first set; the later ones are watched for drift."""
    window: int = Field(default=50, ge=10)
    """Audits of AI-labelled items that are looked at together for drift."""
    alarm: float = Field(default=0.01, gt=0.0, lt=0.5)
    """Chance of a false alarm in a window at the stated error, before thresholds are reopened."""
    seconds_per_label: float = Field(default=30.0, gt=0.0)
    """A person's time for one label, for the hours saved, where the judgements do not say."""
    cost_per_hour: float = Field(default=0.0, ge=0.0)
    """Of a person; 0: not known, and no amount is printed."""
    seed: int = 0
    """Of the draw of audits."""


class Audit(Record):
    """One audited item."""

    item: str
    """Id."""
    prompt: str
    """Id of its prompt."""
    probability: float
    """The judge's P(first answer better)."""
    label: float
    """What the person says: 1 first, 0 second, ½ tie."""
    inclusion: float = 1.0
    """Probability π with which it was drawn."""
    uniform: bool = True
    """Drawn whatever the confidence, not only because its band is thin; drift is watched on these."""

    @property
    def wrong(self) -> float:
        """1 if the AI names the other winner, ½ where the person sees a tie or the AI is at one half."""
        if self.label == 0.5 or self.probability == 0.5:
            return 0.5
        return float((self.probability > 0.5) != (self.label > 0.5))


class Thresholds(Record):
    """Where the routes part, in the judge's own confidence max(p, 1−p)."""

    high: float | None = None
    """From here the AI labels alone; None: nowhere."""
    low: float | None = None
    """Below here a person labels alone; None: everywhere."""
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
    """From the judge's probability to one to be taken at its word."""

    def route(self, probability: float | None) -> Route:
        """Where an item goes; without an answer of the judge, to a person."""
        found = self.thresholds
        if probability is None or found.low is None:
            return "person"
        c = _confidence(probability)
        if found.high is not None and c >= found.high:
            return "ai"
        return "both" if c >= found.low else "person"


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
            if _lot(name, config) < chance:
                drawn[name] = chance
    return drawn


def _lot(name: str, config: RouteConfig) -> float:
    """An item's own number in 0 … 1; below a (1 − s) it is audited whatever its confidence."""
    return Random(content_id("audit", config.seed, name)).random()


def weighted_error(audits: Sequence[Audit]) -> tuple[float, float]:
    """The AI's error e with inclusion weights w = 1/π (Hájek), and the effective number of items behind it.

    n = e (1 − e) / Var with the linearised variance between the G prompts,
    Var = G/(G−1) · Σ_c (Σ_{i∈c} w_i (x_i − e))² / W², at most Kish's W² / Σw² (E. L. Korn and B. I. Graubard, Survey
    Methodology 24 (1998), 193–201). Where all outcomes are the same, nothing is known of the variance within a
    prompt, and n is Kish's over prompts; with a single prompt it is 1.
    """
    weights = [1 / a.inclusion for a in audits]
    total = math.fsum(weights)
    error = math.fsum(w * a.wrong for w, a in zip(weights, audits, strict=True)) / total
    sizes: defaultdict[str, float] = defaultdict(float)
    residuals: defaultdict[str, float] = defaultdict(float)
    for w, a in zip(weights, audits, strict=True):
        sizes[a.prompt] += w
        residuals[a.prompt] += w * (a.wrong - error)
    groups = len(sizes)
    if groups == 1:
        return error, 1.0
    if error in (0.0, 1.0):
        return error, total**2 / math.fsum(s * s for s in sizes.values())
    kish = total**2 / math.fsum(w * w for w in weights)
    variance = groups / (groups - 1) * math.fsum(r * r for r in residuals.values()) / total**2
    return error, min(kish, error * (1 - error) / variance) if variance else kish


def error_estimate(audits: Sequence[Audit]) -> Estimate:
    """The AI's error over the population the audits were drawn from, with a two-sided 95 % interval."""
    if not audits:
        return Estimate(reason="nothing was audited here")
    error, n = weighted_error(audits)
    return Estimate(value=error, low=_bound(error, n, -0.975), high=_bound(error, n, 0.975), n=len(audits))


def _bound(share: float, n: float, side: float) -> float:
    """End of the Wilson interval at one side: 0.95 upper one-sided, −0.975 lower end of two-sided 95 %."""
    z = math.copysign(NormalDist().inv_cdf(abs(side)), side)
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return min(1.0, max(0.0, (centre + spread) / (1 + z * z / n)))


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
    found = Thresholds(high=high, low=low, error=error_estimate(above), audited=len(usable), reason=reason.lstrip("; "))
    return Router(thresholds=found, calibrate=calibrate)


def _confidence(p: float) -> float:
    return round(max(p, 1 - p), 9)  # 1 − .3 and .7 are one


def _search(ranked: Sequence[tuple[float, Audit]], limit: float, least: int) -> float | None:
    """The lowest confidence for which it and every one tried before it keep the error's upper end within the limit.

    Tried are the points at which a tenth more of the audited items comes in: few enough to be powerful, fixed before
    any label is seen.
    """
    found = None
    step = max(1, len(ranked) // 10)
    # So many that two errors among them still pass; fewer would end the search at the first error.
    count = max(least, min(math.ceil(6 / limit), len(ranked) // 2))
    while count <= len(ranked):
        edge = ranked[count - 1][0]
        inside = [a for c, a in ranked if c >= edge]
        error, n = weighted_error(inside)
        if _bound(error, n, 0.95) > limit:
            break
        found = edge
        count = max(count, len(inside)) + step
        if len(inside) < len(ranked) < count:
            count = len(ranked)
    return found


def drifted(audits: Sequence[Audit], config: RouteConfig) -> int | None:
    """Has the AI's error on items it labelled alone risen above the stated one?

    The last ``window`` audits are tested as each comes in: an alarm where that many errors or more would happen with
    a chance below ``alarm`` if the error were the stated one (exact binomial, half
    errors rounded down). Windows overlap, so over long runs
    false alarms add up; an alarm costs fresh thresholds, not labels.

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
    """Where thresholds hold from (a place among the audits), and which."""
    start, found = 0, []
    while True:
        pilot = set_thresholds(audits[start : start + config.pilot], config)
        later = range(start + config.pilot, len(audits))
        alone = [k for k in later if audits[k].uniform and pilot.route(audits[k].probability) == "ai"]
        alarm = drifted([audits[k] for k in alone], config)
        if alarm is None:
            return [*found, (start, set_thresholds(audits[start:], config))]
        begin = alone[alarm - config.window]
        found.append((start, set_thresholds(audits[start:begin], config)))
        start = begin


class Queued(Comparison):
    """An item that waits for people, as the annotation app takes it."""

    overlap: int = Field(ge=1)
    """How many people judge it in all; 2 where a second person settles a disagreement."""


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """What came of hybrid labelling."""

    judgements: tuple[Judgement, ...]
    """Those that count, of AI and people, in item order."""
    queue: tuple[Queued, ...]
    """Items to put before people now; while audits are missing, the audits only."""
    routes: dict[str, Route]
    """Route of each item."""
    router: Router
    """Thresholds in force at the end."""
    audits: tuple[Audit, ...]
    """Every audited item."""
    reopened: tuple[int, ...]
    """After how many audits thresholds were set anew."""
    report: dict[str, Any]
    """Cost, coverage, error by stratum and principle, hours saved."""


def label_hybrid(
    items: Sequence[Comparison],
    ai: Sequence[Judgement],
    people: Callable[[Sequence[Comparison], int], Mapping[str, Judgement]],
    config: RouteConfig,
    *,
    given: Sequence[Judgement] = (),
    left_out: Set[str] = frozenset(),
    ai_cost: float = 0.0,
) -> Hybrid:
    """Route items, ask people where they are needed, settle disagreements, audit, and report.

    Thresholds are first set from the ``pilot`` audits; the audits after them are watched for drift in the order of the
    items. Without an alarm all audits set the final thresholds; an alarm ends their validity where its window began,
    and from there on they are set anew. An item with an answer that seems to speak to its judge goes to a person. Who
    skips has not answered: the item goes on waiting, and is counted. An adjudicator's word settles an item, whatever
    its route. An audited item whose route is ``both`` is settled like one that is not audited: the audit's label is
    the first person's, and what becomes of the item is decided by all who judged it.

    Args:
        items: pairs of answers.
        ai: the judge's judgements of them; an item without one goes to a person.
        people: asks somebody about items, the n-th person per item (0, 1, …), and returns the judgements that are
            there by item id; items without one wait in the queue.
        config: shares, stated error, drift.
        given: what people have said already, asked for or not: adjudications are taken from here, and labels that were
            not needed are counted.
        left_out: ids of items that nobody can judge. They take part in the draw of audits, so that nothing else about
            it changes, and in nothing else.
        ai_cost: what the judge cost, for the report.

    Raises:
        DataError: an item has more than two answers.
    """
    for item in items:
        if len(item.completions) != 2:
            raise DataError(f"item {item.id} has {len(item.completions)} answers; hybrid labelling takes pairs")
    said = {j.item: j for j in ai if j.criterion == "overall"}
    p: dict[str, float | None] = {i.id: first_better(said.get(i.id)) for i in items}
    chances = {name: chance for name, chance in draw_audit(p, config).items() if name not in left_out}
    items = [i for i in items if i.id not in left_out]
    words = [j for j in given if j.ranks is not None and j.criterion == "overall" and j.item in p]
    settled = {j.item: j for j in words if j.adjudication and j.item not in left_out}
    asked = {(item, 0): judgement for item, judgement in settled.items()}
    skipped: set[tuple[str, int]] = set()

    def ask(wanted: Sequence[Comparison], number: int) -> None:
        new = [i for i in wanted if (i.id, number) not in asked and (i.id, number) not in skipped]
        for item, judgement in (people(new, number) if new else {}).items():
            if judgement.ranks is None:
                skipped.add((item, number))
            else:
                asked[item, number] = judgement

    ask([i for i in items if i.id in chances], 0)
    missing = sum((name, 0) not in asked for name in chances)
    audited = [i for i in items if i.id in chances and (i.id, 0) in asked]
    found = [_audit(i, p[i.id], asked[i.id, 0], chances[i.id], config) for i in audited]
    audits = [a for a in found if a is not None]
    segments = [(0, _waiting(missing, len(chances)))] if missing else _segments(audits, config)
    starts = {audits[start].item: router for start, router in segments[1:]}
    aimed = {i.id for i in items if any(speaks_to_judge(c.text) for c in i.completions)}
    router, routers, routes = segments[0][1], {}, {}
    for item in items:
        router = routers[item.id] = starts.get(item.id, router)
        routes[item.id] = "person" if item.id in aimed else router.route(p[item.id])
    if not missing:
        ask([i for i in items if routes[i.id] != "ai"], 0)
    first = {i: j for (i, number), j in asked.items() if number == 0}
    both = [i for i in items if routes[i.id] == "both" and i.id in first and not first[i.id].adjudication]
    ask([i for i in both if _sides(p[i.id]) != _sides(first_better(asked[i.id, 0]))], 1)
    kept: list[Judgement] = []
    queue: list[Queued] = []
    for item in items:
        one, two = asked.get((item.id, 0)), asked.get((item.id, 1))
        machine = _calibrated(said.get(item.id), routers[item.id].calibrate)
        route = routes[item.id]
        if one is None:
            if route == "ai" and machine is not None and item.id not in chances:
                kept.append(machine)
            elif item.id in chances or not missing:
                queue.append(_queued(item, 1))
        elif route != "both" or one.adjudication or machine is None:
            kept.append(one)  # a person's label, once there, is used, and an adjudicator's settles the item
        elif _sides(p[item.id]) == _sides(first_better(one)):
            kept += [machine, one]
        elif two is not None:
            kept += [one, two, machine]
        else:
            queue.append(_queued(item, 2))
    unlabelled = {i.id for i in items} - {j.item for j in kept}
    more = max(0, len(words) - len(asked))
    report = _report(items, said, routes, asked, audits, router, config, unlabelled, len(chances), more)
    report |= {
        "speak_to_judge": len(aimed),
        "skipped": len({name for name, _ in skipped}),
        "cost_of_ai": ai_cost,
        "reopened": [start for start, _ in segments[1:]],
    }
    return Hybrid(
        judgements=tuple(kept),
        queue=tuple(queue),
        routes=routes,
        router=router,
        audits=tuple(audits),
        reopened=tuple(start for start, _ in segments[1:]),
        report=report,
    )


def first_better(judgement: Judgement | None) -> float | None:
    """P(the item's first answer is better) by a judgement of two answers; None where it has no ranks."""
    if judgement is None or judgement.ranks is None:
        return None
    if judgement.probability is not None:
        return judgement.probability if judgement.shown_order[0] == 0 else 1 - judgement.probability
    first, second = canonical_ranks(judgement)
    return 0.5 if first == second else float(first < second)


def _sides(p: float | None) -> int:
    return 0 if p is None or p == 0.5 else 1 if p > 0.5 else -1


def _waiting(missing: int, drawn: int) -> Router:
    reason = f"{missing} of {drawn} audits wait for a person; thresholds are set when all are in"
    return Router(thresholds=Thresholds(reason=reason), calibrate=lambda p: p)


def _queued(item: Comparison, people: int) -> Queued:
    return Queued(id=item.id, prompt=item.prompt, completions=item.completions, overlap=people)


def _calibrated(judgement: Judgement | None, calibrate: Calibrator) -> Judgement | None:
    """The AI's judgement with the probability that can be taken at its word; the judge's own stays in its records."""
    if judgement is None or judgement.probability is None:
        return judgement
    p = calibrate(judgement.probability)
    return judgement.model_copy(update={"probability": p, "strength": round(abs(2 * p - 1), 6)})


def _audit(item: Comparison, p: float | None, person: Judgement, chance: float, config: RouteConfig) -> Audit | None:
    label = first_better(person)
    if p is None or label is None:
        return None
    uniform = _lot(item.id, config) < config.audit * (1 - config.stratified)
    return Audit(item=item.id, prompt=item.prompt.id, probability=p, label=label, inclusion=chance, uniform=uniform)


def _report(
    items: Sequence[Comparison],
    said: Mapping[str, Judgement],
    routes: Mapping[str, Route],
    asked: Mapping[tuple[str, int], Judgement],
    audits: Sequence[Audit],
    router: Router,
    config: RouteConfig,
    waiting: Set[str],
    drawn: int,
    more: int,
) -> dict[str, Any]:
    counts = {route: sum(r == route for r in routes.values()) for route in ("ai", "both", "person")}
    told, weights = {"as said": [a.probability for a in audits]}, [1 / a.inclusion for a in audits]
    if len({a.prompt for a in audits}) > 1 and config.calibration != "none":
        told[f"{config.calibration}, cross-fitted"] = cross_fitted(
            config.calibration,
            told["as said"],
            [a.label for a in audits],
            [a.prompt for a in audits],
            weights=weights,
            seed=config.seed,
        )
    times = [j.seconds for j in asked.values() if j.seconds is not None]
    seconds = sum(times) / len(times) if times else config.seconds_per_label
    labels = len(asked)
    saved = len(items) - labels - sum((name, 0) not in asked for name in waiting)
    strata: dict[str, list[Audit]] = {name: [] for name in counts}
    principles: dict[str, list[Audit]] = {}
    for audit in audits:
        strata[routes[audit.item]].append(audit)
        machine = said.get(audit.item)
        for name in (machine.principle or "").split(",") if machine is not None else []:
            if name:
                principles.setdefault(name, []).append(audit)
    return {
        "items": len(items),
        "routes": counts,
        "coverage": counts["ai"] / len(items) if items else 0.0,
        "thresholds": router.thresholds,
        "audited": len(audits),
        "drawn_for_audit": drawn,
        "labels_of_people": labels,
        "labels_not_needed": more,
        "waiting": len(waiting),
        "labels_saved": saved,
        "seconds_per_label": seconds,
        "hours_saved": saved * seconds / 3600,
        "cost_of_people": (labels + more) * seconds / 3600 * config.cost_per_hour,
        "cost_saved": saved * seconds / 3600 * config.cost_per_hour,
        "calibration_error": {
            name: reliability(values, [a.label for a in audits], weights)[1] for name, values in told.items()
        },
        "error_of_ai": error_estimate(audits),
        "error_by_route": {name: error_estimate(found) for name, found in strata.items()},
        "error_by_principle": {name: error_estimate(found) for name, found in sorted(principles.items())},
    }


def routing_lines(report: Mapping[str, Any]) -> list[str]:
    """The report in words, one line each."""
    found: Thresholds = report["thresholds"]
    routes = report["routes"]
    said = [
        f"{report['items']} items: AI alone {routes['ai']} ({report['coverage']:.0%}), both {routes['both']}, "
        f"people {routes['person']}; {report['audited']} audited, {report['waiting']} wait for a person",
        f"{report['labels_of_people']} labels of people, {abs(report['labels_saved'])} "
        f"{'fewer' if report['labels_saved'] >= 0 else 'MORE'} than one per item: "
        f"{abs(report['hours_saved']):.1f} h at {report['seconds_per_label']:.0f} s",
    ]
    if report.get("speak_to_judge"):
        said.append(f"{report['speak_to_judge']} have an answer that seems to speak to the judge and go to people")
    if report.get("skipped"):
        said.append(f"{report['skipped']} items were passed on by all who were asked so far; these go on waiting")
    if report["labels_not_needed"]:
        said.append(f"{report['labels_not_needed']} more labels of people are there that were not needed")
    if report.get("cost_of_ai"):
        said.append(f"the AI cost {report['cost_of_ai']:.2f}")
    if report["cost_of_people"]:
        said.append(f"people cost {report['cost_of_people']:.2f}; labels saved are worth {report['cost_saved']:.2f}")
    if found.high is not None and found.error.value is not None:
        low, high = found.error.low or 0.0, found.error.high or 0.0
        said.append(
            f"AI alone from confidence {found.high:.2f}: error {found.error.value:.1%} [{low:.1%}, {high:.1%}] "
            f"on {found.error.n} audited items"
        )
    if found.reason:
        said.append(found.reason)
    errors = ", ".join(f"{name} {value:.3f}" for name, value in report["calibration_error"].items())
    said.append(f"calibration error of the judge on audited items (weighted): {errors}")
    for name, error in report["error_by_route"].items():
        if error.value is not None:
            said.append(
                f"  AI's error where the route is {name}: {error.value:.1%} [{error.low:.1%}, {error.high:.1%}]"
            )
    known = {name: e for name, e in report["error_by_principle"].items() if e.value is not None}
    if known:
        each = (f"{name} {e.value:.0%} [{e.low:.0%}, {e.high:.0%}]" for name, e in known.items())
        said.append(f"  by principle: {', '.join(each)}")
    if report.get("reopened"):
        said.append(f"the audit drifted; thresholds were set anew after {report['reopened']} audits")
    return said


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
