"""The items of a project: adding them, how many people judge each, batches, and the counts stored with each item."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, case, func, insert, select, update

from trimtab.records.annotation import Submission, Task, disagree
from trimtab.storage.project import ProjectConfig
from trimtab.storage.rows import submission_of, task_of
from trimtab.storage.schema import batches, events, items, judgements, people
from trimtab.storage.transaction import Transaction

CHUNK = 400
"""Ids in one statement; SQLite allows about a thousand."""

OPEN_TO_PEOPLE = and_(items.c.role.is_(None), items.c.retired.is_(False), items.c.adjudicated.is_(False))
"""Items that may be queued: no check items, neither retired nor adjudicated."""
NEEDED = case((items.c.adjudicated, items.c.done), else_=items.c.overlap)
"""Judgements an item needs: its overlap, or the number it has if an adjudicator has settled it."""

_VERDICTS = (
    select(judgements.c.seq, judgements.c.verdict, judgements.c.adjudication)
    .where(judgements.c.item_id == bindparam("item"))
    .order_by(judgements.c.seq)
)
_SET_COUNTS = (
    update(items)
    .where(items.c.id == bindparam("item"))
    .values(
        done=bindparam("judged"),
        flags=bindparam("flagged"),
        disputed=bindparam("dispute"),
        adjudicated=bindparam("settled"),
    )
)


def chunks(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """Parts of at most :data:`CHUNK` values."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


def insert_items(tx: Transaction, tasks: Sequence[Task], config: ProjectConfig) -> set[str]:
    """Add tasks with different ids; returns the ids of items that existed before, which do not change."""
    c = tx.c
    batch_ids = {row.name: row.id for row in c.execute(select(batches.c.name, batches.c.id))}
    last_position = dict(
        c.execute(select(items.c.batch_id, func.max(items.c.position)).group_by(items.c.batch_id)).all()
    )
    existing: set[str] = set()
    for part in chunks(tasks):
        existing |= set(c.scalars(select(items.c.uid).where(items.c.uid.in_([t.id for t in part]))))
        rows = []
        for task in (t for t in part if t.id not in existing):
            if task.batch not in batch_ids:
                batch_ids[task.batch] = c.execute(insert(batches).values(name=task.batch)).inserted_primary_key[0]  # pyright: ignore[reportOptionalSubscript]
            batch = batch_ids[task.batch]
            last_position[batch] = last_position.get(batch, 0) + 1
            rows.append(
                {
                    "uid": task.id,
                    "kind": task.kind,
                    "body": task.model_dump_json(exclude_defaults=True),
                    "role": task.check.role if task.check else None,
                    "batch_id": batch,
                    "position": last_position[batch],
                    "overlap": task.overlap or config.overlap,
                    "inherits": task.overlap is None,
                    "open": task.check is None,
                    "created_at": tx.now,
                }
            )
        if rows:
            c.execute(insert(items), rows)
    return existing


def retire_item(tx: Transaction, item: Row[Any], *, person: int, reason: str) -> None:
    """Take an item out of the queue; its judgements stay."""
    tx.c.execute(update(items).where(items.c.id == item.id).values(retired=True, open=False, disputed=False))
    tx.event("retire", {"reason": reason}, person=person, item=item.id)


def raise_overlap(tx: Transaction, uids: Iterable[str], overlap: int, *, person: int | None) -> int:
    """Raise the overlap of these items where it is lower; returns how many items changed."""
    changed = 0
    for part in chunks(sorted(set(uids))):
        lower = and_(OPEN_TO_PEOPLE, items.c.uid.in_(part), items.c.overlap < overlap)
        ids = tx.c.scalars(select(items.c.id).where(lower)).all()
        tx.c.execute(update(items).where(items.c.id.in_(ids)).values(inherits=False))
        set_overlap(tx, items.c.id.in_(ids), overlap)
        changed += len(ids)
    tx.event("overlap", {"overlap": overlap, "items": changed}, person=person)
    return changed


def set_overlap(tx: Transaction, condition: ColumnElement[bool], overlap: int) -> None:
    """Change the overlap of items.

    Taken slots stay taken. An item that has free slots again moves to the end of its batch, after every cursor.
    """
    c = tx.c
    completeness = select(items.c.id, items.c.done >= items.c.overlap).where(condition, items.c.done > 1)
    complete_before = dict(c.execute(completeness).all())
    new_overlap = case((items.c.taken > overlap, items.c.taken), else_=overlap)
    c.execute(update(items).where(condition).values(overlap=new_overlap))
    c.execute(update(items).where(condition, items.c.taken >= items.c.overlap).values(open=False))
    last = select(items.c.batch_id, func.max(items.c.position).label("last")).group_by(items.c.batch_id).subquery()
    row_number = func.row_number().over(partition_by=items.c.batch_id, order_by=items.c.position)
    reopened = (
        select(items.c.id, (last.c.last + row_number).label("position"))
        .join(last, last.c.batch_id == items.c.batch_id)
        .where(condition, OPEN_TO_PEOPLE, items.c.open.is_(False), items.c.taken < items.c.overlap)
        .subquery()
    )
    c.execute(update(items).where(items.c.id == reopened.c.id).values(open=True, position=reopened.c.position))
    complete = dict(c.execute(completeness).all())
    for number in (n for n, was_complete in complete_before.items() if complete[n] != was_complete):
        recount(tx, c.execute(select(items).where(items.c.id == number)).one())


def recount(tx: Transaction, item: Row[Any]) -> None:
    """Recount an item's judgements, flags and disputes; after an adjudication, only newer flags count."""
    verdicts = tx.c.execute(_VERDICTS, {"item": item.id}).all()
    settled = max((j.seq for j in verdicts if j.adjudication), default=0)
    done = sum(j.verdict == "judged" and not j.adjudication for j in verdicts) if item.role is None else 0
    flags = sum(j.verdict == "flag" and j.seq > settled for j in verdicts)
    complete = not settled and not item.retired and done >= item.overlap > 1
    disputed = complete and disagree(task_of(item), submissions_of_item(tx.c, item), majority=tx.config.majority)
    if (done, flags, disputed, settled > 0) != (item.done, item.flags, item.disputed, item.adjudicated):
        counts = {"judged": done, "flagged": flags, "dispute": disputed, "settled": settled > 0}
        tx.c.execute(_SET_COUNTS, {"item": item.id, **counts})


def submissions_of_item(c: Connection, item: Row[Any]) -> list[Submission]:
    """The annotators' current submissions about an item, oldest first; adjudications left out."""
    query = (
        select(events.c.body, people.c.pseudonym)
        .select_from(judgements)
        .join(events, events.c.seq == judgements.c.seq)
        .join(people, people.c.id == judgements.c.person_id)
        .where(judgements.c.item_id == item.id, judgements.c.adjudication.is_(False))
        .order_by(judgements.c.seq)
    )
    return [submission_of(row.body, row.pseudonym, item.uid) for row in c.execute(query)]


def put_batch(tx: Transaction, name: str, *, priority: int, paused: bool, person: int | None = None) -> None:
    """Change a batch, or create it."""
    values = {"priority": priority, "paused": paused}
    if tx.c.execute(update(batches).where(batches.c.name == name).values(**values)).rowcount == 0:
        tx.c.execute(insert(batches).values(name=name, **values))
    tx.event("batch", {"name": name, **values}, person=person)
