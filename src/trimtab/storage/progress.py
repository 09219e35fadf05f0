"""Progress of a project, and its judgements so far."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, func, or_, select

from trimtab.records.annotation import Submission, Task
from trimtab.storage.items import NEEDED, chunks
from trimtab.storage.rows import CURRENT_JUDGEMENTS, submission_of
from trimtab.storage.schema import batches, events, items, judgements, people


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a project or a batch."""

    items: int
    """Items to judge; check items and retired items are not counted."""
    complete: int
    """Items that have all judgements they need, or that an adjudicator settled."""
    needed: int
    """Total number of judgements needed."""
    done: int
    """Number of judgements given."""
    disputed: int
    """Items waiting for an adjudicator."""
    flagged: int
    """Flagged items that are not retired."""


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """One of a person's judgements."""

    version: int
    """Version of the judgement."""
    task: Task
    """The task."""
    submission: Submission
    """The answer."""


def read_progress(c: Connection, batch: str | None) -> Progress:
    """Progress of the project, or of one batch."""

    def total(values: Any) -> Any:
        return func.coalesce(func.sum(values), 0)

    query = select(
        func.count().label("items"),
        total(case((or_(items.c.done >= items.c.overlap, items.c.adjudicated), 1), else_=0)).label("complete"),
        total(NEEDED).label("needed"),
        total(items.c.done).label("done"),
        total(case((items.c.disputed, 1), else_=0)).label("disputed"),
        total(case((items.c.flags > 0, 1), else_=0)).label("flagged"),
    ).where(items.c.role.is_(None), items.c.retired.is_(False))
    if batch is not None:
        query = query.join(batches, batches.c.id == items.c.batch_id).where(batches.c.name == batch)
    row = c.execute(query).one()
    return Progress(**{name: int(value) for name, value in row._mapping.items()})


def judgement_counts(c: Connection, uids: Iterable[str]) -> tuple[int, int]:
    """(done, needed) over these items without retired ones; a settled item needs no more judgements."""
    done = needed = 0
    for part in chunks(sorted(uids)):
        counts = select(func.coalesce(func.sum(items.c.done), 0), func.coalesce(func.sum(NEEDED), 0))
        row = c.execute(counts.where(items.c.uid.in_(part), items.c.retired.is_(False))).one()
        done, needed = done + int(row[0]), needed + int(row[1])
    return done, needed


def batch_rows(c: Connection) -> list[dict[str, Any]]:
    """The columns of each batch, with ``size``, ``done`` and ``needed``; highest priority first."""
    counts = (
        select(
            items.c.batch_id,
            func.count().label("size"),
            func.sum(case((items.c.retired, 0), else_=items.c.done)).label("done"),
            func.sum(case((items.c.retired, 0), else_=NEEDED)).label("needed"),
        )
        .where(items.c.role.is_(None))
        .group_by(items.c.batch_id)
        .subquery()
    )
    query = (
        select(batches, counts.c.size, counts.c.done, counts.c.needed)
        .join(counts, counts.c.batch_id == batches.c.id, isouter=True)
        .order_by(batches.c.priority.desc(), batches.c.name)
    )
    return [dict(row._mapping) for row in c.execute(query)]


def read_submissions(
    c: Connection, *, after: int, limit: int | None, newest: bool, batch: str | None
) -> list[tuple[int, Submission]]:
    """(version, submission) of every current judgement."""
    order = judgements.c.seq.desc() if newest else judgements.c.seq
    query = CURRENT_JUDGEMENTS.where(judgements.c.seq > after).order_by(order)
    if batch is not None:
        query = query.join(batches, batches.c.id == items.c.batch_id).where(batches.c.name == batch)
    if limit is not None:
        query = query.limit(limit)
    return [(row.seq, submission_of(row.body, row.pseudonym, row.uid)) for row in c.execute(query)]


def read_history(c: Connection, person: int, *, before: int | None, limit: int) -> list[HistoryEntry]:
    """A person's judgements, newest first."""
    query = (
        CURRENT_JUDGEMENTS.add_columns(items.c.body.label("task"))
        .where(judgements.c.person_id == person)
        .order_by(judgements.c.seq.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(judgements.c.seq < before)
    return [
        HistoryEntry(
            version=row.seq,
            task=Task.model_validate_json(row.task),
            submission=submission_of(row.body, row.pseudonym, row.uid),
        )
        for row in c.execute(query)
    ]


def first_versions(c: Connection) -> dict[tuple[str, str], int]:
    """Version of each person's first judgement of an item, by item id and pseudonym."""
    query = (
        select(items.c.uid, people.c.pseudonym, func.min(events.c.seq))
        .join(items, items.c.id == events.c.item_id)
        .join(people, people.c.id == events.c.person_id)
        .where(events.c.kind.in_(("judgement", "import")), events.c.body.contains('"verdict": "judged"'))
        .group_by(items.c.uid, people.c.pseudonym)
    )
    return {(uid, name): int(seq) for uid, name, seq in c.execute(query)}
