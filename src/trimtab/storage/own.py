"""A person's own work: how much is done, what was stored last, and whether they read the instructions."""

from dataclasses import dataclass

from sqlalchemy import and_, func, or_, select

from trimtab.storage.database import Database
from trimtab.storage.rows import add_event
from trimtab.storage.schema import batches, events, items, judgements, leases

_INSTRUCTIONS = "instructions"
"""Kind and key of the event; each person confirms the instructions once."""


@dataclass(frozen=True, kw_only=True)
class Own:
    """State of one person's work."""

    judged: int
    """Number of items judged, skipped or flagged; training items are not counted."""
    last: int | None
    """Version of the last judgement, which can be undone; None: there is none."""
    as_of: int
    """Number of the newest event when this was read; a reply with a lower number is older."""


def own_work(database: Database, person: int) -> Own:
    """Number of items that a person has judged, and the version of the last judgement."""
    by_person = judgements.c.person_id == person
    counted = select(func.count()).join(items, items.c.id == judgements.c.item_id)
    with database.read() as c:
        as_of = c.scalar(select(func.max(events.c.seq)))
        judged = c.scalar(counted.where(by_person, func.coalesce(items.c.role, "") != "training"))
        last = c.scalar(select(func.max(judgements.c.seq)).where(by_person, judgements.c.adjudication.is_(False)))
    return Own(judged=judged or 0, last=last, as_of=as_of or 0)


def remaining(database: Database, person: int) -> int:
    """Number of items a person could judge now: items leased to them, and items with free slots."""
    judged = select(judgements.c.seq).where(judgements.c.item_id == items.c.id, judgements.c.person_id == person)
    leased = select(leases.c.item_id).where(
        leases.c.item_id == items.c.id, leases.c.person_id == person, leases.c.live.is_(True)
    )
    query = (
        select(func.count())
        .select_from(items)
        .join(batches, batches.c.id == items.c.batch_id)
        .where(
            items.c.role.is_(None),
            items.c.retired.is_(False),
            or_(and_(items.c.open.is_(True), batches.c.paused.is_(False)), leased.exists()),
            ~judged.exists(),
        )
    )
    with database.read() as c:
        return c.scalar(query) or 0


def version_of(database: Database, person: int, uid: str) -> int | None:
    """Version of a person's judgement of an item; None: they have not judged it."""
    query = (
        select(judgements.c.seq)
        .join(items, items.c.id == judgements.c.item_id)
        .where(items.c.uid == uid, judgements.c.person_id == person, judgements.c.adjudication.is_(False))
    )
    with database.read() as c:
        return c.scalar(query)


def training_left(database: Database, person: int) -> int:
    """Number of training items that a person has not answered yet."""
    seen = select(judgements.c.item_id).where(judgements.c.person_id == person)
    query = select(func.count()).where(items.c.role == "training", items.c.retired.is_(False), items.c.id.not_in(seen))
    with database.read() as c:
        return c.scalar(query) or 0


def has_read_instructions(database: Database, person: int) -> bool:
    """True if this person has confirmed the instructions."""
    query = select(events.c.seq).where(events.c.person_id == person, events.c.key == _INSTRUCTIONS)
    with database.read() as c:
        return c.scalar(query) is not None


def read_instructions(database: Database, person: int, *, guideline: str | None, at: float) -> None:
    """Record that a person confirmed the instructions, with this version of the guidelines."""
    with database.write() as c:
        confirmed = select(events.c.seq).where(events.c.person_id == person, events.c.key == _INSTRUCTIONS)
        if c.scalar(confirmed) is None:
            add_event(c, at, _INSTRUCTIONS, {"guideline": guideline}, person=person, key=_INSTRUCTIONS)
