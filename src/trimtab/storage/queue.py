"""The queue: who judges which item next.

A batch's queue is its open items in the order of ``position``. Each person has a cursor in each batch: all open items
up to it have already been assigned to them. An item whose slot becomes free moves to the end, past every cursor. The
next task is therefore one index lookup, however many items there are.

An item's slot is taken in the transaction that assigns it, so an item never has more than ``overlap`` people. A lease
holds the slot while an annotator looks at the item; when the lease expires, the slot becomes free.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, bindparam, case, func, select, update

from trimtab.records.annotation import Task
from trimtab.storage.items import OPEN_TO_PEOPLE
from trimtab.storage.project import ProjectConfig
from trimtab.storage.rows import task_of
from trimtab.storage.schema import batches, cursors, items, judgements, leases, people
from trimtab.storage.settings import newest_guideline
from trimtab.storage.transaction import Transaction

_RENEW = (
    update(leases)
    .where(leases.c.item_id == bindparam("item"), leases.c.person_id == bindparam("person"))
    .values(expires_at=bindparam("until"))
)
_COUNT_SERVED = update(people).where(people.c.id == bindparam("person")).values(served=people.c.served + 1)
_LEASED = (
    select(items, leases.c.draft)
    .join(leases, leases.c.item_id == items.c.id)
    .where(leases.c.person_id == bindparam("person"), leases.c.live.is_(True), items.c.retired.is_(False))
    .order_by(leases.c.draft.is_(None), leases.c.created_at.desc())
    .limit(1)
)
_BATCHES = select(batches.c.id).where(batches.c.paused.is_(False)).order_by(batches.c.priority.desc(), batches.c.id)
_CURSORS = select(cursors.c.batch_id, cursors.c.position).where(cursors.c.person_id == bindparam("person"))
_QUEUED = (
    select(items)
    .where(
        items.c.batch_id == bindparam("batch"),
        items.c.open.is_(True),
        items.c.position > bindparam("cursor"),
        ~select(judgements.c.seq)
        .where(judgements.c.item_id == items.c.id, judgements.c.person_id == bindparam("person"))
        .exists(),
    )
    .order_by(items.c.position)
    .limit(1)
)
_TAKE = (
    update(items)
    .where(items.c.id == bindparam("item"))
    .values(taken=items.c.taken + 1, open=and_(items.c.taken + 1 < items.c.overlap, OPEN_TO_PEOPLE))
)

CLOCK_SLACK = 120.0
"""If a lease ends more than this many seconds after a new lease would end, the clock was set back."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A task shown to one person."""

    task: Task
    """The task to judge."""
    shown_order: tuple[int, ...]
    """``shown_order[p]`` is the index of the answer at position p."""
    version: int | None = None
    """Version of the judgement that is being changed; None: a new judgement."""
    draft: dict[str, Any] | None = None
    """The form's earlier content, if a judgement was taken back or is being changed."""
    guideline: str | None = None
    """Newest version of the guidelines."""
    config: ProjectConfig
    """The project's settings at the time of the assignment."""


class Queue:
    """Assigns items, and remembers when it last looked for expired leases."""

    def __init__(self) -> None:
        self._swept = 0.0

    def next(self, tx: Transaction, person: int) -> Assignment | str:
        """The task of a person, or why there is none: ``paused``, ``unqualified``, ``closed`` or ``empty``."""
        person_row, config = tx.person(person), tx.config
        if person_row.state != "active":
            return "paused"
        if config.paused:
            return "closed"
        leased = tx.c.execute(_LEASED, {"person": person}).first()
        if leased is not None:
            tx.c.execute(_RENEW, {"item": leased.id, "person": person, "until": tx.now + config.lease_minutes * 60})
            return assignment(tx, leased, person_row, draft=json.loads(leased.draft) if leased.draft else None)
        self._expire(tx)
        if person_row.role == "annotator" and (item := _check_item(tx, person, 0, ("training",))) is not None:
            lease(tx, item.id, person)
            return assignment(tx, item, person_row)
        if person_row.role == "annotator" and person_row.qualified is None:
            item = _check_item(tx, person, 0, ("qualification",))
            if item is not None:
                lease(tx, item.id, person)
                return assignment(tx, item, person_row)
            if _qualify(tx, person, config) is False:
                return "unqualified"
        elif person_row.role == "annotator" and person_row.qualified is False:
            return "unqualified"
        item = None
        if config.gold_every and person_row.served % config.gold_every == config.gold_every - 1:
            item = _check_item(tx, person, person_row.served, ("gold", "attention"))
        if item is None:
            item = _take_next(tx, person)
        if item is None:
            return "empty"
        lease(tx, item.id, person)
        tx.c.execute(_COUNT_SERVED, {"person": person})
        return assignment(tx, item, person_row)

    def _expire(self, tx: Transaction) -> None:
        """Free the slots of expired leases, at most once a second; restart leases if the clock was set back."""
        if 0 <= tx.now - self._swept < 1:
            return
        self._swept = tx.now
        end = tx.now + tx.config.lease_minutes * 60
        clock_set_back = and_(leases.c.live.is_(True), leases.c.expires_at > end + CLOCK_SLACK)
        tx.c.execute(update(leases).where(clock_set_back).values(created_at=tx.now, expires_at=end))
        expired = tx.c.execute(
            select(leases.c.item_id, leases.c.person_id, items.c.role, items.c.batch_id)
            .join(items, items.c.id == leases.c.item_id)
            .where(leases.c.live.is_(True), leases.c.expires_at <= tx.now)
            .limit(200)
        ).all()
        for row in expired:
            expired_lease = and_(leases.c.item_id == row.item_id, leases.c.person_id == row.person_id)
            tx.c.execute(update(leases).where(expired_lease).values(live=False))
            if row.role is None:
                free_slot(tx, row.item_id, row.batch_id)


def _qualify(tx: Transaction, person: int, config: ProjectConfig) -> bool | None:
    """Decide, after the last qualification item, whether a person may work; None: there were no such items."""
    right = func.sum(case((judgements.c.passed, 1), else_=0)).label("right")
    answered = tx.c.execute(
        select(func.count(judgements.c.seq).label("total"), right)
        .join(items, items.c.id == judgements.c.item_id)
        .where(judgements.c.person_id == person, items.c.role == "qualification")
    ).one()
    if not answered.total:
        return None
    qualified = answered.right / answered.total >= config.qualification_share
    tx.c.execute(update(people).where(people.c.id == person).values(qualified=qualified))
    tx.event("qualified", {"right": answered.right, "of": answered.total, "qualified": qualified}, person=person)
    return qualified


def _check_item(tx: Transaction, person: int, turn: int, roles: Sequence[str]) -> Row[Any] | None:
    """A random check item that the person has not judged; the same one for the same turn."""
    judged = select(judgements.c.item_id).where(judgements.c.person_id == person)
    unseen = tx.c.scalars(
        select(items.c.id)
        .where(items.c.role.in_(roles), items.c.retired.is_(False), items.c.id.not_in(judged))
        .order_by(items.c.id)
    ).all()
    if not unseen:
        return None
    chosen = random.Random(f"{tx.salt}/{person}/{turn}").choice(unseen)
    return tx.c.execute(select(items).where(items.c.id == chosen)).one()


def _take_next(tx: Transaction, person: int) -> Row[Any] | None:
    """Take a slot of the next open item after the person's cursors; None: there is none."""
    reached = {row.batch_id: row.position for row in tx.c.execute(_CURSORS, {"person": person})}
    for batch in tx.c.scalars(_BATCHES).all():
        parameters = {"batch": batch, "cursor": reached.get(batch, 0), "person": person}
        item = tx.c.execute(_QUEUED, parameters).first()
        if item is None:
            continue
        take_slot(tx, item.id)
        tx.upsert(cursors, {"person_id": person, "batch_id": batch}, {"position": item.position})
        return item
    return None


def take_slot(tx: Transaction, item: int) -> None:
    """Take one of an item's slots."""
    tx.c.execute(_TAKE, {"item": item})


def free_slot(tx: Transaction, item: int, batch: int) -> None:
    """Free one of an item's slots and move the item to the end of its batch."""
    last = tx.c.execute(select(func.max(items.c.position)).where(items.c.batch_id == batch)).scalar_one()
    changes = {"taken": items.c.taken - 1, "open": OPEN_TO_PEOPLE, "position": last + 1}
    tx.c.execute(update(items).where(items.c.id == item).values(**changes))


def lease(tx: Transaction, item: int, person: int, *, live: bool = True, draft: str | None = None) -> None:
    """Lease an item to a person; a lease that is not live holds no slot."""
    expires = tx.now + tx.config.lease_minutes * 60
    values = {"created_at": tx.now, "expires_at": expires, "live": live, "draft": draft}
    tx.upsert(leases, {"item_id": item, "person_id": person}, values)


def assignment(
    tx: Transaction,
    item: Row[Any],
    person_row: Row[Any],
    *,
    version: int | None = None,
    draft: dict[str, Any] | None = None,
) -> Assignment:
    """An item as one person sees it."""
    task = task_of(item)
    return Assignment(
        task=task,
        shown_order=answer_order(tx.salt, task, person_row.pseudonym),
        version=version,
        draft=draft,
        guideline=newest_guideline(tx.c),
        config=tx.config,
    )


def answer_order(salt: str, task: Task, pseudonym: str) -> tuple[int, ...]:
    """The order in which a person sees a task's answers: random, and the same every time."""
    order = list(range(len(task.completions)))
    random.Random(f"{salt}/{task.id}/{pseudonym}").shuffle(order)
    return tuple(order)
