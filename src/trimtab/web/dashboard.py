"""The owner's dashboard. Statistics are computed from the newest judgements only, and the page says so."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import Integer, and_, case, cast, func, select

from trimtab.feedback import (
    AnnotatorReport,
    Estimate,
    ModelWins,
    agreement_report,
    annotator_reports,
    left_out,
    model_wins,
    nominal_report,
    speed,
    wilson_interval,
)
from trimtab.records import Comparison, Judgement
from trimtab.records.annotation import Submission, Task, judgements_of, nominal_units
from trimtab.storage.labels import LabelStore, Progress
from trimtab.storage.people import People
from trimtab.storage.schema import items, judgements

NEWEST = 2000
"""Number of judgements that the live statistics use; `trimtab agreement` uses all."""
_Cached = TypeVar("_Cached")
_JUDGED = and_(judgements.c.verdict == "judged", judgements.c.adjudication.is_(False))
_CACHE_FACTOR = 20
"""Statistics are cached for this many times their computing time, so that large projects do not recompute
constantly."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One annotator's row."""

    name: str
    pseudonym: str
    state: str
    judged: int
    report: AnnotatorReport | None
    seconds: Estimate
    fast: Estimate
    checks: Estimate
    """Share of check items answered correctly, without training items."""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """One group of annotators."""

    name: str
    annotators: int
    judged: int
    agreement: Estimate


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """Everything on the page."""

    progress: Progress
    per_day: list[tuple[str, int]]
    """Judgements on each of the last 14 days, the last one today (UTC)."""
    days_left: float | None
    """Days left at the pace of the last seven days; None: nothing was judged."""
    seconds: Estimate
    """Median time per item."""
    agreement: dict[str, dict[str, Estimate]]
    """Agreement by kind of task."""
    note: str
    left_out: dict[str, int]
    """Number of judgements of the sample that no agreement statistic uses, by reason."""
    sampled: int
    """Number of judgements in the sample."""
    wins: ModelWins
    """Win rates of the models whose answers were judged."""
    workers: list[Worker]
    cohorts: list[Cohort]
    too_small: int
    """Number of groups too small to be shown."""
    fast_seconds: float
    min_cell: int


def dashboard(store: LabelStore, people: People, cache: dict[str, Any]) -> Dashboard:
    """Compute everything on the page."""
    config, progress = store.config(), store.progress()
    agreement, note, unused = agreement_of(store, cache)
    sample = _sample(store, cache)
    tasks, submissions = sample.tasks, sample.by_annotators
    criterion = config.criteria[0].name
    items_, judged, _ = _records(tasks, submissions, criterion)
    reports = {
        r.annotator: r for r in annotator_reports(items_, judged, criterion=criterion, fast_seconds=config.fast_seconds)
    }
    counts, checks = _by_person(store)
    times: defaultdict[str, list[float | None]] = defaultdict(list)
    for s in submissions:
        times[s.annotator].append(s.seconds)
    speeds = {row.pseudonym: speed(times[row.pseudonym], config.fast_seconds) for row in people.everybody()}
    workers = [
        Worker(
            name=row.name,
            pseudonym=row.pseudonym,
            state="unqualified" if row.qualified is False else row.state,
            judged=counts.get(row.id, 0),
            report=reports.get(row.pseudonym),
            seconds=speeds[row.pseudonym][0],
            fast=speeds[row.pseudonym][1],
            checks=_share(*checks.get(row.id, (0, 0))),
        )
        for row in people.everybody()
        if counts.get(row.id) or row.role == "annotator"
    ]
    cohorts, small = _cached(cache, "cohorts", lambda: _cohorts(tasks, submissions, config.min_cell, criterion))
    days = _per_day(store)
    pace = sum(n for _, n in days[-7:]) / 7
    return Dashboard(
        progress=progress,
        per_day=days,
        days_left=max(0, progress.needed - progress.done) / pace if pace else None,
        seconds=speed(s.seconds for s in submissions)[0],
        agreement=agreement,
        note=note,
        left_out=unused,
        sampled=sample.total,
        wins=_cached(cache, "wins", lambda: _wins(sample, criterion)),
        workers=workers,
        cohorts=cohorts,
        too_small=small,
        fast_seconds=config.fast_seconds,
        min_cell=config.min_cell,
    )


def agreement_of(
    store: LabelStore, cache: dict[str, Any]
) -> tuple[dict[str, dict[str, Estimate]], str, dict[str, int]]:
    """Agreement over the newest judgements by kind of task, a note on which these are, and counts of those left out."""

    def make() -> tuple[dict[str, dict[str, Estimate]], str, dict[str, int]]:
        sample = _sample(store, cache)
        criterion = store.config().criteria[0].name
        items_, judged, other_criteria = _records(sample.tasks, sample.by_annotators, criterion)
        reports = {"compare": agreement_report(items_, judged, criterion=criterion)}
        for kind in ("thumbs", "steps"):
            if units := nominal_units(kind, sample.tasks, sample.by_annotators):
                reports[kind] = nominal_report(units)
        unused = sample.left_out + other_criteria + Counter(left_out(items_, judged, criterion=criterion))
        for s in sample.by_annotators:
            if sample.tasks[s.task].kind != "compare" and s.verdict != "judged":
                unused[f"not ranked: {s.verdict}"] += 1
        unused["adjudication"] += len(sample.submissions) - len(sample.by_annotators)
        total = store.progress().done
        note = f"{len(sample.by_annotators)} / {total}" if total > len(sample.by_annotators) else ""
        return reports, note, dict((+unused).most_common())

    return _cached(cache, "agreement", make)


def _wins(sample: "_Sample", criterion: str) -> ModelWins:
    """Win rates over the sample; used and left-out judgements together are the whole sample."""
    items_, judged, other_criteria = _records(sample.tasks, sample.submissions, criterion)
    wins = model_wins(items_, judged, criterion=criterion)
    kinds = Counter(sample.tasks[s.task].kind for s in sample.submissions if sample.tasks[s.task].kind != "compare")
    unused = sample.left_out + other_criteria + Counter({f"other kind of task: {kind}": n for kind, n in kinds.items()})
    return replace(wins, left_out=dict((unused + Counter(wins.left_out)).most_common()))


def _cached(cache: dict[str, Any], name: str, make: Callable[[], _Cached]) -> _Cached:
    expires, value = cache.get(name, (0.0, None))
    started = time.monotonic()
    if started >= expires:
        value = make()
        now = time.monotonic()
        cache[name] = (now + _CACHE_FACTOR * (now - started), value)
    return value


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """The newest judgements, from which statistics are computed."""

    tasks: dict[str, Task]
    """Their tasks, without check items and retired items."""
    submissions: list[Submission]
    """The judgements, including adjudications."""
    left_out: Counter[str]
    """Counts of the other judgements of the sample by reason: check items and retired items."""

    @property
    def by_annotators(self) -> list[Submission]:
        """The judgements without adjudications."""
        return [s for s in self.submissions if not s.adjudication]

    @property
    def total(self) -> int:
        """Number of all judgements of the sample."""
        return len(self.submissions) + self.left_out.total()


def _sample(store: LabelStore, cache: dict[str, Any]) -> _Sample:
    return _cached(cache, "sample", lambda: _newest(store))


def _newest(store: LabelStore) -> _Sample:
    submissions = [s for _, s in store.submissions(limit=NEWEST, newest=True)]
    uids = sorted({s.task for s in submissions})
    tasks: dict[str, Task] = {}
    reasons: dict[str, str] = {}
    with store.database.read() as c:
        for start in range(0, len(uids), 400):
            query = select(items.c.uid, items.c.body, items.c.role, items.c.retired)
            for row in c.execute(query.where(items.c.uid.in_(uids[start : start + 400]))):
                if row.role is None and not row.retired:
                    tasks[row.uid] = Task.model_validate_json(row.body)
                else:
                    reasons[row.uid] = "item retired" if row.role is None else "check item"
    return _Sample(
        tasks=tasks,
        submissions=[s for s in submissions if s.task in tasks],
        left_out=Counter(reasons[s.task] for s in submissions if s.task in reasons),
    )


def _records(
    tasks: dict[str, Task], submissions: list[Submission], criterion: str
) -> tuple[list[Comparison], list[Judgement], Counter[str]]:
    """Comparisons, at most one judgement of each submission, and the submissions without one by reason."""
    comparisons = [c for t in tasks.values() if (c := t.comparison) is not None]
    judged: list[Judgement] = []
    other_criteria: Counter[str] = Counter()
    for s in submissions:
        all_judgements = judgements_of(tasks[s.task], s)
        chosen = [j for j in all_judgements if j.criterion == criterion or j.ranks is None]
        judged += chosen
        other_criteria[f"criterion is not {criterion!r}"] += bool(all_judgements) and not chosen
    return comparisons, judged, other_criteria


def _by_person(store: LabelStore) -> tuple[dict[int, int], dict[int, tuple[int, int]]]:
    with store.database.read() as c:
        query = select(judgements.c.person_id, func.count()).where(_JUDGED).group_by(judgements.c.person_id)
        counts = {person: n for person, n in c.execute(query)}
        checks = (
            select(judgements.c.person_id, func.sum(case((judgements.c.passed, 1), else_=0)), func.count())
            .join(items, items.c.id == judgements.c.item_id)
            .where(judgements.c.passed.is_not(None), items.c.role != "training")
            .group_by(judgements.c.person_id)
        )
        return counts, {person: (right, n) for person, right, n in c.execute(checks)}


def _per_day(store: LabelStore) -> list[tuple[str, int]]:
    day = 86400
    today = int(store.clock() // day)
    first = today - 13
    with store.database.read() as c:
        second = cast(judgements.c.at, Integer)  # SQLite truncates, PostgreSQL rounds: half a second at midnight
        number = (second - second % day) / day
        in_range = and_(_JUDGED, items.c.role.is_(None), judgements.c.at >= first * day)
        query = select(number, func.count()).join(items, items.c.id == judgements.c.item_id)
        query = query.where(in_range).group_by(number)
        counts = Counter({int(n): count for n, count in c.execute(query)})
    return [(time.strftime("%m-%d", time.gmtime(n * day)), counts[n]) for n in range(first, today + 1)]


def _cohorts(
    tasks: dict[str, Task], submissions: list[Submission], least: int, criterion: str
) -> tuple[list[Cohort], int]:
    """Groups large enough to be shown, with the agreement inside each; and the number of groups that are too small."""
    groups: defaultdict[str, list[Submission]] = defaultdict(list)
    for s in submissions:
        for part in s.groups:
            groups[part].append(s)
    cohorts = []
    for name, group in sorted(groups.items()):
        annotators = len({s.annotator for s in group})
        if annotators >= least:
            comparisons, judged, _ = _records(tasks, group, criterion)
            report = agreement_report(comparisons, judged, criterion=criterion)
            cohorts.append(
                Cohort(name=name, annotators=annotators, judged=len(group), agreement=report["raw_agreement"])
            )
    return cohorts, len(groups) - len(cohorts)


def _share(right: int, total: int) -> Estimate:
    if not total:
        return Estimate(reason="no check item was answered")
    low, high = wilson_interval(right, total)
    return Estimate(value=right / total, low=low, high=high, n=total)
