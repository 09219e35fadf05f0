"""The queue: who judges what next, and what becomes of a filled-in form.

Every promise is kept inside one transaction with one writer at a time:

- The slot is claimed with the assignment, so an item never has more than ``overlap`` people.
- A submission is acknowledged after its event is on the disk, with the next task in the same commit.
- A repeated request (same key) changes nothing and gets the same answer; a changed one must name the
  version it replaces.
- A form that comes after its lease ran out and the slot went to somebody else is kept as an event of
  kind ``late`` and not counted. Nothing sent is thrown away.

The queue of a batch is the ``position`` of its open items. Each person has a cursor in each batch:
all open items up to it are theirs already. A slot that comes free moves its item to the end, past
every cursor, so the next task is found with one step in an index, however many items there are.
"""

import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, case, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from trimtab.config import parse_config
from trimtab.errors import ConflictError, DataError
from trimtab.records.annotation import Submission, Task, disagree, passes
from trimtab.records.types import content_id
from trimtab.storage.database import Database
from trimtab.storage.form import Form, check_form
from trimtab.storage.project import ProjectConfig
from trimtab.storage.rows import add_event, get_setting, put_setting, submission_of, task_of
from trimtab.storage.schema import (
    batches,
    cursors,
    events,
    guidelines,
    items,
    judgements,
    leases,
    people,
    settings,
)
from trimtab.storage.tasks import Refused, duplicate, unusable

# Statements of the hot path, built once: building them costs more than running them.
_EVENT_BY_KEY = select(events.c.seq, events.c.kind, events.c.body).where(
    events.c.person_id == bindparam("person"), events.c.key == bindparam("key")
)
_ITEM = select(items).where(items.c.uid == bindparam("uid"))
_MINE = select(judgements).where(
    judgements.c.item_id == bindparam("item"), judgements.c.person_id == bindparam("person")
)
_LEASE = select(leases).where(leases.c.item_id == bindparam("item"), leases.c.person_id == bindparam("person"))
_DROP_LEASE = delete(leases).where(leases.c.item_id == bindparam("item"), leases.c.person_id == bindparam("person"))
_RENEW = (
    update(leases)
    .where(leases.c.item_id == bindparam("item"), leases.c.person_id == bindparam("person"))
    .values(expires_at=bindparam("until"))
)
_PERSON = select(people).where(people.c.id == bindparam("person"))
_SERVED = update(people).where(people.c.id == bindparam("person")).values(served=people.c.served + 1)
_HELD = (
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
        items.c.position > bindparam("reached"),
        ~select(judgements.c.seq)
        .where(judgements.c.item_id == items.c.id, judgements.c.person_id == bindparam("person"))
        .exists(),
    )
    .order_by(items.c.position)
    .limit(1)
)
_WANTED = and_(items.c.role.is_(None), items.c.retired.is_(False), items.c.adjudicated.is_(False))
_TAKE = (
    update(items)
    .where(items.c.id == bindparam("item"))
    .values(taken=items.c.taken + 1, open=and_(items.c.taken + 1 < items.c.overlap, _WANTED))
)
_NEEDED = case((items.c.adjudicated, items.c.done), else_=items.c.overlap)
_GUIDELINE = select(guidelines.c.name).order_by(guidelines.c.version.desc()).limit(1)
_SAID = (
    select(judgements.c.seq, judgements.c.verdict, judgements.c.adjudication)
    .where(judgements.c.item_id == bindparam("item"))
    .order_by(judgements.c.seq)
)
_COUNT = (
    update(items)
    .where(items.c.id == bindparam("item"))
    .values(
        done=bindparam("judged"),
        flags=bindparam("flagged"),
        disputed=bindparam("dispute"),
        adjudicated=bindparam("settled"),
    )
)
_EXHAUSTED = and_(
    items.c.open.is_(True),
    select(judgements.c.seq).where(judgements.c.item_id == items.c.id).exists(),
    ~select(people.c.id)
    .where(
        people.c.role == "annotator",
        people.c.state == "active",
        people.c.qualified.is_not(False),
        ~select(judgements.c.seq)
        .where(judgements.c.item_id == items.c.id, judgements.c.person_id == people.c.id)
        .exists(),
    )
    .exists(),
)
"""Free slots, and nobody left to take them: every annotator has judged the item, skipped it or flagged it."""

_CLOCK_SLACK = 120.0
"""Seconds a lease may seem to come from the future before the clock is taken to have been set back."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A task in front of somebody."""

    task: Task
    """What to judge."""
    shown_order: tuple[int, ...]
    """``shown_order[p]`` is the answer at position p."""
    version: int | None = None
    """Of the judgement that is being changed; None: it is new."""
    draft: dict[str, Any] | None = None
    """The form as it was, when a judgement was taken back or is being changed."""
    guideline: str | None = None
    """Newest version of the guidelines."""
    config: ProjectConfig
    """The project's settings at that moment."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of a form."""

    submission: str
    """Its id."""
    version: int
    """To be named by whoever changes it."""
    state: str
    """``stored``, or ``late``: kept, not counted, the slot had gone to somebody else."""
    new: bool = field(default=True, compare=False)
    """False: this form was sent before, and nothing changed."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the project stands."""

    items: int
    """Items to judge, checks and retired ones left out."""
    complete: int
    """Of these, as many people as asked for have judged them, or an adjudicator has settled them."""
    needed: int
    """Judgements wanted in all."""
    done: int
    """Judgements there are."""
    disputed: int
    """Items waiting for an adjudicator."""
    flagged: int
    """Items somebody flagged and nobody has retired."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """A line of somebody's history."""

    version: int
    """Of the judgement."""
    task: Task
    """What was judged."""
    submission: Submission
    """What was said."""


class LabelStore:
    """An annotation project's items and judgements.

    Args:
        database: where they are.
        clock: seconds since 1970; a fake one in tests.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self.database = database
        self.clock = clock
        self._parsed: tuple[str, ProjectConfig] = ("", ProjectConfig())
        self._swept = 0.0
        self._pseudonyms: dict[int, str] = {}
        self._upserts: dict[str, Any] = {}
        with database.read() as c:
            salt = get_setting(c, "salt")
        if salt is None:
            with database.write() as c:
                salt = get_setting(c, "salt")
                if salt is None:
                    salt = secrets.token_hex(16)
                    c.execute(insert(settings).values(name="salt", value=salt))
        self._salt = salt

    # Settings -----------------------------------------------------------------------------

    def config(self, c: Connection | None = None) -> ProjectConfig:
        """The project's settings."""
        if c is None:
            with self.database.read() as c:
                return self.config(c)
        raw = get_setting(c, "config") or "{}"
        if raw != self._parsed[0]:
            self._parsed = (raw, parse_config(ProjectConfig, json.loads(raw), where="project settings"))
        return self._parsed[1]

    @property
    def project_id(self) -> str:
        """Eight characters that tell this project from others."""
        return content_id(self._salt)[:8]

    def set_config(self, config: ProjectConfig, *, person: int | None = None) -> None:
        """Change the settings. A new overlap holds for every item that was added without one."""
        with self.database.write() as c:
            self.put_config(c, config, person=person)

    def put_config(self, c: Connection, config: ProjectConfig, *, person: int | None = None) -> None:
        """As :meth:`set_config`, in a transaction that is open."""
        old = self.config(c)
        put_setting(c, "config", config.model_dump_json())
        add_event(c, self.clock(), "settings", config.model_dump(mode="json"), person=person)
        if config.overlap != old.overlap:
            self._set_overlap(c, and_(items.c.inherits.is_(True), items.c.role.is_(None)), config.overlap)

    def raise_overlap(self, uids: Iterable[str], overlap: int, *, person: int | None = None) -> int:
        """Ask so many people about these items, where fewer were asked so far; returns how many items that changed.

        Retired and settled items, and check items, stay as they are.
        """
        wanted, changed = sorted(set(uids)), 0
        with self.database.write() as c:
            for start in range(0, len(wanted), 400):
                mine = and_(_WANTED, items.c.uid.in_(wanted[start : start + 400]), items.c.overlap < overlap)
                found = c.scalars(select(items.c.id).where(mine)).all()
                c.execute(update(items).where(items.c.id.in_(found)).values(inherits=False))
                self._set_overlap(c, items.c.id.in_(found), overlap)
                changed += len(found)
            add_event(c, self.clock(), "overlap", {"overlap": overlap, "items": changed}, person=person)
        return changed

    def _set_overlap(self, c: Connection, which: ColumnElement[bool], new: int) -> None:
        """Slots that are taken stay; what has room again goes to the end of its batch, behind every cursor."""
        judged = select(items.c.id, items.c.done >= items.c.overlap).where(which, items.c.done > 1)
        before = dict(c.execute(judged).all())
        room = case((items.c.taken > new, items.c.taken), else_=new)
        c.execute(update(items).where(which).values(overlap=room))
        c.execute(update(items).where(which, items.c.taken >= items.c.overlap).values(open=False))
        last = select(items.c.batch_id, func.max(items.c.position).label("last")).group_by(items.c.batch_id).subquery()
        again = (
            select(
                items.c.id,
                (last.c.last + func.row_number().over(partition_by=items.c.batch_id, order_by=items.c.position)).label(
                    "position"
                ),
            )
            .join(last, last.c.batch_id == items.c.batch_id)
            .where(which, _WANTED, items.c.open.is_(False), items.c.taken < items.c.overlap)
            .subquery()
        )
        c.execute(update(items).where(items.c.id == again.c.id).values(open=True, position=again.c.position))
        ready = dict(c.execute(judged).all())
        for number in (n for n, was in before.items() if ready[n] != was):  # one word more or less settles them
            self._recount(c, c.execute(select(items).where(items.c.id == number)).one())

    @property
    def address(self) -> str | None:
        """Where the app was last served; None: never."""
        with self.database.read() as c:
            return get_setting(c, "address")

    def set_address(self, link: str) -> None:
        """Write down where the app is served, for whoever sends people there."""
        with self.database.write() as c:
            put_setting(c, "address", link)

    def guideline(self, version: int | None = None) -> tuple[int, str, str] | None:
        """(number, name, text) of a version of the guidelines; None asks for the newest."""
        query = select(guidelines.c.version, guidelines.c.name, guidelines.c.body)
        if version is not None:
            query = query.where(guidelines.c.version == version)
        with self.database.read() as c:
            row = c.execute(query.order_by(guidelines.c.version.desc()).limit(1)).first()
        return (row.version, row.name, row.body) if row else None

    def guideline_names(self) -> list[tuple[int, str]]:
        """(number, name) of every version of the guidelines, newest first."""
        with self.database.read() as c:
            query = select(guidelines.c.version, guidelines.c.name).order_by(guidelines.c.version.desc())
            return [(row.version, row.name) for row in c.execute(query)]

    def set_guideline(self, body: str, *, person: int | None = None) -> str:
        """Add a version of the guidelines; returns its name, ``v2-1a2b3c4d``. An unchanged text adds nothing."""
        with self.database.write() as c:
            return self.put_guideline(c, body, person=person)

    def put_guideline(self, c: Connection, body: str, *, person: int | None = None) -> str:
        """As :meth:`set_guideline`, in a transaction that is open."""
        last = c.execute(select(guidelines).order_by(guidelines.c.version.desc()).limit(1)).first()
        if last is not None and last.body == body:
            return last.name
        number = (last.version if last else 0) + 1
        name = f"v{number}-{content_id(body)[:8]}"
        c.execute(insert(guidelines).values(version=number, name=name, body=body, created_at=self.clock()))
        add_event(c, self.clock(), "guideline", {"name": name}, person=person)
        return name

    # Items --------------------------------------------------------------------------------

    def add(self, tasks: Iterable[Task | str], *, person: int | None = None) -> tuple[int, list[Refused]]:
        """Add tasks; returns how many were added, and every one that was not, with the reason.

        Args:
            tasks: from :func:`parse_tasks`, which gives the reason in place of a task that cannot be read.
            person: who adds them.
        """
        config = self.config()
        refused: list[Refused] = []
        fit: dict[str, tuple[int, Task]] = {}
        for index, task in enumerate(tasks):  # read before the transaction, so that nobody waits for it
            reason = task if isinstance(task, str) else unusable(task, config)
            if isinstance(task, str) or reason is not None:
                refused.append(Refused(index=index, reason=str(reason)))
            elif task.id in fit:
                refused.append(duplicate(index, task.id))
            else:
                fit[task.id] = (index, task)
        with self.database.write() as c:
            known = self.insert_items(c, [task for _, task in fit.values()], config)
            refused.extend(duplicate(fit[uid][0], uid) for uid in known)
            refused.sort(key=lambda r: r.index)
            added = len(fit) - len(known)
            reasons = dict(Counter(r.reason.split(":")[0] for r in refused))
            add_event(c, self.clock(), "items", {"added": added, "refused": reasons}, person=person)
        return added, refused

    def insert_items(self, c: Connection, tasks: Sequence[Task], config: ProjectConfig) -> set[str]:
        """Add tasks with different ids in a transaction that is open; returns the ids of those that were there."""
        known = {row.name: row.id for row in c.execute(select(batches.c.name, batches.c.id))}
        last = dict(c.execute(select(items.c.batch_id, func.max(items.c.position)).group_by(items.c.batch_id)).all())
        there: set[str] = set()
        for start in range(0, len(tasks), 400):
            part = tasks[start : start + 400]
            there |= set(c.scalars(select(items.c.uid).where(items.c.uid.in_([t.id for t in part]))))
            rows = []
            for task in (t for t in part if t.id not in there):
                if task.batch not in known:
                    known[task.batch] = c.execute(insert(batches).values(name=task.batch)).inserted_primary_key[0]  # pyright: ignore[reportOptionalSubscript]
                batch = known[task.batch]
                last[batch] = last.get(batch, 0) + 1
                rows.append(
                    {
                        "uid": task.id,
                        "kind": task.kind,
                        "body": task.model_dump_json(exclude_defaults=True),
                        "role": task.check.role if task.check else None,
                        "batch_id": batch,
                        "position": last[batch],
                        "overlap": task.overlap or config.overlap,
                        "inherits": task.overlap is None,
                        "open": task.check is None,
                        "created_at": self.clock(),
                    }
                )
            if rows:
                c.execute(insert(items), rows)
        return there

    def task(self, uid: str) -> Task:
        """One task.

        Raises:
            DataError: there is no such item.
        """
        with self.database.read() as c:
            return task_of(self._item(c, uid))

    def tasks(self, *, after: int = 0, limit: int = 1000) -> list[tuple[int, Task]]:
        """Tasks in the order they were added, with the number to go on from."""
        query = select(items.c.id, items.c.body).where(items.c.id > after).order_by(items.c.id).limit(limit)
        with self.database.read() as c:
            return [(row.id, task_of(row)) for row in c.execute(query)]

    def batches(self) -> list[dict[str, Any]]:
        """All batches with their counts."""
        counts = (
            select(
                items.c.batch_id,
                func.count().label("size"),
                func.sum(items.c.done).label("done"),
                func.sum(case((items.c.retired, 0), else_=_NEEDED)).label("needed"),
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
        with self.database.read() as c:
            return [dict(row._mapping) for row in c.execute(query)]

    def set_batch(self, name: str, *, priority: int, paused: bool, person: int | None = None) -> None:
        """Change a batch, or make one. Higher priorities are handed out first."""
        with self.database.write() as c:
            self.put_batch(c, name, priority=priority, paused=paused, person=person)

    def put_batch(self, c: Connection, name: str, *, priority: int, paused: bool, person: int | None = None) -> None:
        """As :meth:`set_batch`, in a transaction that is open."""
        values = {"priority": priority, "paused": paused}
        if c.execute(update(batches).where(batches.c.name == name).values(**values)).rowcount == 0:
            c.execute(insert(batches).values(name=name, **values))
        add_event(c, self.clock(), "batch", {"name": name, **values}, person=person)

    def retire(self, uid: str, *, person: int, reason: str = "") -> None:
        """Take an item out: nobody gets it any more; its judgements stay."""
        with self.database.write() as c:
            item = self._item(c, uid)
            c.execute(update(items).where(items.c.id == item.id).values(retired=True, open=False, disputed=False))
            add_event(c, self.clock(), "retire", {"reason": reason}, person=person, item=item.id)

    # Working ------------------------------------------------------------------------------

    def next(self, person: int) -> Assignment | str:
        """The task in front of somebody, or why there is none: ``paused``, ``unqualified``, ``closed`` or ``empty``."""
        with self.database.write() as c:
            return self._next(c, person)

    def submit(self, person: int, form: Form) -> tuple[Receipt, Assignment | str]:
        """Store a form; returns what became of it, and what is next.

        Raises:
            DataError: it does not fit the task, or the item is unknown to this person.
            ConflictError: judged before and the version is not the newest, the key was used for another form, or this
                person is paused or not qualified.
        """
        with self.database.write() as c:
            receipt = self._submit(c, person, form)
            return receipt, self._next(c, person)

    def undo(self, person: int, version: int) -> Assignment:
        """Take back one's last judgement; it comes back as a draft. The event stays.

        Raises:
            ConflictError: it is not the last one any more, or this person may not work now.
        """
        with self.database.write() as c:
            self._may_work(c, person)
            last = c.execute(
                select(judgements)
                .where(judgements.c.person_id == person, judgements.c.adjudication.is_(False))
                .order_by(judgements.c.seq.desc())
                .limit(1)
            ).first()
            if last is None or last.seq != version:
                raise ConflictError("this is not your last judgement any more; open it from your history instead")
            item = c.execute(select(items).where(items.c.id == last.item_id)).one()
            body = json.loads(c.execute(select(events.c.body).where(events.c.seq == last.seq)).scalar_one())
            add_event(c, self.clock(), "undo", {"undoes": last.seq}, person=person, item=item.id)
            c.execute(delete(judgements).where(judgements.c.seq == last.seq))
            held = item.role is not None or last.verdict == "judged"
            if not held and item.taken < item.overlap and not item.retired:
                self._take(c, item)
                held = True
            self._recount(c, item)
            self._lease(c, item.id, person, live=held, draft=json.dumps(body))
            return self._assignment(c, item, person, draft=body)

    def reopen(self, person: int, version: int) -> Assignment:
        """Show one of one's judgements again, to change it.

        Raises:
            DataError: no such judgement of this person.
        """
        with self.database.read() as c:
            found = c.execute(
                select(judgements.c.item_id, events.c.body)
                .join(events, events.c.seq == judgements.c.seq)
                .where(judgements.c.seq == version, judgements.c.person_id == person)
            ).first()
            if found is None:
                raise DataError("there is no such judgement of yours; it may have been changed since")
            item = c.execute(select(items).where(items.c.id == found.item_id)).one()
            return self._assignment(c, item, person, version=version, draft=json.loads(found.body))

    def history(self, person: int, *, before: int | None = None, limit: int = 25) -> list[Past]:
        """Somebody's judgements, newest first."""
        query = (
            select(judgements.c.seq, events.c.body, items.c.body.label("task"), items.c.uid, people.c.pseudonym)
            .join(events, events.c.seq == judgements.c.seq)
            .join(items, items.c.id == judgements.c.item_id)
            .join(people, people.c.id == judgements.c.person_id)
            .where(judgements.c.person_id == person)
            .order_by(judgements.c.seq.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(judgements.c.seq < before)
        with self.database.read() as c:
            return [
                Past(
                    version=row.seq,
                    task=Task.model_validate_json(row.task),
                    submission=submission_of(row.body, row.pseudonym, row.uid),
                )
                for row in c.execute(query)
            ]

    def count(self, person: int) -> int:
        """How many items somebody has judged."""
        with self.database.read() as c:
            return c.scalar(select(func.count()).where(judgements.c.person_id == person)) or 0

    def _submit(self, c: Connection, person: int, form: Form) -> Receipt:
        digest = content_id(form.model_dump(mode="json", exclude={"seconds"}))
        before = c.execute(_EVENT_BY_KEY, {"person": person, "key": form.key}).first()
        if before is not None:
            body = json.loads(before.body)
            if body.get("digest") != digest:
                raise ConflictError(f"the key {form.key!r} was used for another form; use a new one")
            state = "late" if before.kind == "late" else "stored"
            return Receipt(submission=body["id"], version=before.seq, state=state, new=False)
        self._may_work(c, person)
        item = self._item(c, form.item)
        config = self.config(c)
        task = task_of(item)
        check_form(form, task, config)
        now = self.clock()
        mine = c.execute(_MINE, {"item": item.id, "person": person}).first()
        lease = c.execute(_LEASE, {"item": item.id, "person": person}).first()
        if mine is not None and mine.adjudication:
            raise ConflictError("you settled this item as an adjudicator; change it from the adjudication page")
        if mine is None and lease is None:
            raise DataError("this item was not given to you")
        if mine is not None and mine.seq != form.version:
            raise ConflictError(
                f"you judged this item before (version {mine.seq}); open it from your history to change it"
            )
        if mine is None and form.version is not None:
            raise ConflictError("the judgement you are changing was taken back since; reload the page")

        holds = mine.verdict == "judged" if mine else bool(lease and lease.live)
        counts = form.verdict == "judged"
        kind = "judgement"
        if item.role is None:
            if counts and not holds:
                if item.taken >= item.overlap:
                    kind = "late"
                else:
                    self._take(c, item)
            elif holds and not counts:
                self._free(c, item.id, item.batch_id)
        submission = self._record(c, form, item, person, now, lease, adjudication=False)
        body = submission.model_dump(mode="json", exclude_defaults=True, exclude={"annotator", "task"})
        seq = add_event(c, now, kind, body | {"digest": digest}, person=person, item=item.id, key=form.key)
        if kind == "late":
            c.execute(_DROP_LEASE, {"item": item.id, "person": person})
            return Receipt(submission=submission.id, version=seq, state="late")
        if mine is not None:
            c.execute(delete(judgements).where(judgements.c.seq == mine.seq))
        passed = passes(task, submission)
        c.execute(
            insert(judgements).values(
                seq=seq,
                item_id=item.id,
                person_id=person,
                verdict=form.verdict,
                seconds=submission.seconds,
                passed=passed,
                adjudication=False,
                at=now,
            )
        )
        if lease is not None:
            c.execute(_DROP_LEASE, {"item": item.id, "person": person})
        self._recount(c, item)
        if item.role == "attention" and not passed and form.verdict != "flag":
            self._watch_attention(c, person, config)
        return Receipt(submission=submission.id, version=seq, state="stored")

    def _may_work(self, c: Connection, person: int) -> None:
        who = c.execute(_PERSON, {"person": person}).one()
        if who.state != "active":
            raise ConflictError("your work is paused; ask an owner of the project to go on")
        if who.role == "annotator" and who.qualified is False:
            raise ConflictError("you are not qualified for this project; ask an owner if you think this is wrong")

    def _recount(self, c: Connection, item: Row[Any]) -> None:
        """Count anew what people said about an item; flags are those since the adjudicator's word."""
        said = c.execute(_SAID, {"item": item.id}).all()
        settled = max((j.seq for j in said if j.adjudication), default=0)
        done = sum(j.verdict == "judged" and not j.adjudication for j in said) if item.role is None else 0
        flags = sum(j.verdict == "flag" and j.seq > settled for j in said)
        ready = not settled and not item.retired and done >= item.overlap > 1
        disputed = ready and disagree(task_of(item), self._of_item(c, item))
        if (done, flags, disputed, settled > 0) != (item.done, item.flags, item.disputed, item.adjudicated):
            values = {"judged": done, "flagged": flags, "dispute": disputed, "settled": settled > 0}
            c.execute(_COUNT, {"item": item.id, **values})

    def _of_item(self, c: Connection, item: Row[Any], *, adjudications: bool = False) -> list[Submission]:
        query = (
            select(events.c.body, people.c.pseudonym)
            .select_from(judgements)
            .join(events, events.c.seq == judgements.c.seq)
            .join(people, people.c.id == judgements.c.person_id)
            .where(judgements.c.item_id == item.id)
            .order_by(judgements.c.seq)
        )
        if not adjudications:
            query = query.where(judgements.c.adjudication.is_(False))
        return [submission_of(row.body, row.pseudonym, item.uid) for row in c.execute(query)]

    def _record(
        self, c: Connection, form: Form, item: Row[Any], person: int, now: float, lease: Any, *, adjudication: bool
    ) -> Submission:
        who = c.execute(_PERSON, {"person": person}).one()
        guideline = form.guideline or c.scalar(_GUIDELINE)
        if form.guideline and not c.scalar(select(guidelines.c.version).where(guidelines.c.name == form.guideline)):
            raise DataError(f"guideline {form.guideline!r}: there is no such version; reload the page")
        elapsed = now - lease.created_at if lease is not None else None
        seconds = form.seconds
        if elapsed is not None and elapsed >= 0 and (seconds is None or seconds > elapsed + 5):
            seconds = elapsed  # nobody can have looked longer than since it was handed out
        cohort = ", ".join(f"{k}={v}" for k, v in sorted(json.loads(who.cohort).items()) if v)
        task = task_of(item)
        return Submission(
            id=secrets.token_hex(12),
            task=task.id,
            annotator=who.pseudonym,
            shown_order=self.order(task, who.pseudonym),
            verdict=form.verdict,
            answers=form.answers,
            good=form.good,
            first_wrong=form.first_wrong,
            rewrite=form.rewrite,
            reason=form.reason,
            comment=form.comment,
            guideline=guideline,
            seconds=None if seconds is None else round(seconds, 2),
            cohort=cohort or None,
            adjudication=adjudication,
            created_at=datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    def _watch_attention(self, c: Connection, person: int, config: ProjectConfig) -> None:
        missed = c.scalar(
            select(func.count())
            .select_from(judgements)
            .join(items, items.c.id == judgements.c.item_id)
            .where(
                judgements.c.person_id == person,
                items.c.role == "attention",
                judgements.c.passed.is_not(True),
                judgements.c.verdict != "flag",
            )
        )
        if config.attention_misses and (missed or 0) >= config.attention_misses:
            c.execute(update(people).where(people.c.id == person, people.c.role == "annotator").values(state="paused"))
            add_event(c, self.clock(), "paused", {"attention_misses": missed}, person=person)

    # The queue ----------------------------------------------------------------------------

    def order(self, task: Task, pseudonym: str) -> tuple[int, ...]:
        """The order in which somebody sees the answers: random, and always the same for them and this task."""
        order = list(range(len(task.completions)))
        random.Random(f"{self._salt}/{task.id}/{pseudonym}").shuffle(order)
        return tuple(order)

    def _next(self, c: Connection, person: int) -> Assignment | str:
        who = c.execute(_PERSON, {"person": person}).one()
        config = self.config(c)
        now = self.clock()
        if who.state != "active":
            return "paused"
        if config.paused:
            return "closed"
        held = c.execute(_HELD, {"person": person}).first()
        if held is not None:
            c.execute(_RENEW, {"item": held.id, "person": person, "until": now + config.lease_minutes * 60})
            return self._assignment(c, held, person, draft=json.loads(held.draft) if held.draft else None)
        self._expire(c, now)
        if who.role == "annotator" and (item := self._check_item(c, person, 0, ("training",))) is not None:
            self._lease(c, item.id, person)
            return self._assignment(c, item, person)
        if who.role == "annotator" and who.qualified is None:
            item, finished = self._qualification(c, person, config)
            if item is not None:
                self._lease(c, item.id, person)
                return self._assignment(c, item, person)
            if finished is False:
                return "unqualified"
        elif who.role == "annotator" and who.qualified is False:
            return "unqualified"
        item = None
        if config.gold_every and who.served % config.gold_every == config.gold_every - 1:
            item = self._check_item(c, person, who.served, ("gold", "attention"))
        if item is None:
            item = self._queued(c, person)
        if item is None:
            return "empty"
        self._lease(c, item.id, person)
        c.execute(_SERVED, {"person": person})
        return self._assignment(c, item, person)

    def _qualification(self, c: Connection, person: int, config: ProjectConfig) -> tuple[Row[Any] | None, bool | None]:
        item = self._check_item(c, person, 0, ("qualification",))
        if item is not None:
            return item, None
        asked = c.execute(
            select(func.count(judgements.c.seq), func.sum(case((judgements.c.passed, 1), else_=0)))
            .join(items, items.c.id == judgements.c.item_id)
            .where(judgements.c.person_id == person, items.c.role == "qualification")
        ).one()
        if not asked[0]:
            return None, None
        qualified = asked[1] / asked[0] >= config.qualification_share
        c.execute(update(people).where(people.c.id == person).values(qualified=qualified))
        found = {"right": asked[1], "of": asked[0], "qualified": qualified}
        add_event(c, self.clock(), "qualified", found, person=person)
        return None, qualified

    def _check_item(self, c: Connection, person: int, turn: int, roles: Sequence[str]) -> Row[Any] | None:
        seen = select(judgements.c.item_id).where(judgements.c.person_id == person)
        unseen = c.scalars(
            select(items.c.id)
            .where(items.c.role.in_(roles), items.c.retired.is_(False), items.c.id.not_in(seen))
            .order_by(items.c.id)
        ).all()
        if not unseen:
            return None
        chosen = random.Random(f"{self._salt}/{person}/{turn}").choice(unseen)
        return c.execute(select(items).where(items.c.id == chosen)).one()

    def _queued(self, c: Connection, person: int) -> Row[Any] | None:
        reached = {row.batch_id: row.position for row in c.execute(_CURSORS, {"person": person})}
        for batch in c.scalars(_BATCHES).all():
            item = c.execute(_QUEUED, {"batch": batch, "reached": reached.get(batch, 0), "person": person}).first()
            if item is None:
                continue
            self._take(c, item)
            self._upsert(c, cursors, {"person_id": person, "batch_id": batch}, {"position": item.position})
            return item
        return None

    def _expire(self, c: Connection, now: float) -> None:
        """Give back the slots of leases that ran out; where the clock was set back, they start anew."""
        if 0 <= now - self._swept < 1:
            return
        self._swept = now
        ahead = and_(
            leases.c.live.is_(True), leases.c.expires_at > now + self.config(c).lease_minutes * 60 + _CLOCK_SLACK
        )
        again = {"created_at": now, "expires_at": now + self.config(c).lease_minutes * 60}
        c.execute(update(leases).where(ahead).values(**again))
        found = c.execute(
            select(leases.c.item_id, leases.c.person_id, items.c.role, items.c.batch_id)
            .join(items, items.c.id == leases.c.item_id)
            .where(leases.c.live.is_(True), leases.c.expires_at <= now)
            .limit(200)
        ).all()
        for row in found:
            c.execute(
                update(leases)
                .where(leases.c.item_id == row.item_id, leases.c.person_id == row.person_id)
                .values(live=False)
            )
            if row.role is None:
                self._free(c, row.item_id, row.batch_id)

    def _take(self, c: Connection, item: Row[Any]) -> None:
        c.execute(_TAKE, {"item": item.id})

    def _free(self, c: Connection, item: int, batch: int) -> None:
        last = select(func.max(items.c.position)).where(items.c.batch_id == batch).scalar_subquery()
        position = c.execute(select(last)).scalar_one()
        c.execute(
            update(items).where(items.c.id == item).values(taken=items.c.taken - 1, open=_WANTED, position=position + 1)
        )

    def _lease(self, c: Connection, item: int, person: int, *, live: bool = True, draft: str | None = None) -> None:
        now = self.clock()
        values = {
            "created_at": now,
            "expires_at": now + self.config(c).lease_minutes * 60,
            "live": live,
            "draft": draft,
        }
        self._upsert(c, leases, {"item_id": item, "person_id": person}, values)

    def _assignment(
        self, c: Connection, item: Row[Any], person: int, *, version: int | None = None, draft: Any = None
    ) -> Assignment:
        task = task_of(item)
        pseudonym = self._pseudonym(c, person)
        shown = self.order(task, pseudonym)
        return Assignment(
            task=task,
            shown_order=shown,
            version=version,
            draft=draft,
            guideline=c.scalar(_GUIDELINE),
            config=self.config(c),
        )

    def _pseudonym(self, c: Connection, person: int) -> str:
        """They never change, so each is looked up once."""
        if person not in self._pseudonyms:
            self._pseudonyms[person] = c.execute(_PERSON, {"person": person}).one().pseudonym
        return self._pseudonyms[person]

    # Adjudication -------------------------------------------------------------------------

    def disputed(self, *, limit: int = 50) -> list[tuple[Task, list[Submission]]]:
        """Items on which people contradict each other, oldest first, with what they said."""
        return self._queue_of(items.c.disputed.is_(True), limit)

    def flagged(self, *, limit: int = 50) -> list[tuple[Task, list[Submission]]]:
        """Items that somebody flagged and nobody has retired."""
        return self._queue_of(items.c.flags > 0, limit)

    def exhausted(self, *, limit: int | None = 50) -> list[tuple[Task, list[Submission]]]:
        """Items that too few people judged and no annotator is left for; flagged ones aside."""
        return self._queue_of(and_(_EXHAUSTED, items.c.flags == 0), limit)

    def _in_queue(self, c: Connection, item: Row[Any]) -> bool:
        return bool(
            item.disputed or item.flags or c.scalar(select(items.c.id).where(items.c.id == item.id, _EXHAUSTED))
        )

    def _queue_of(self, which: Any, limit: int | None) -> list[tuple[Task, list[Submission]]]:
        with self.database.read() as c:
            query = select(items).where(which, items.c.retired.is_(False)).order_by(items.c.id).limit(limit)
            return [(task_of(item), self._of_item(c, item)) for item in c.execute(query).all()]

    def dispute(self, uid: str, person: int) -> tuple[Assignment, list[Submission]]:
        """One item for an adjudicator: as others see it, and what they said.

        Raises:
            ConflictError: settled since, or this person judged it.
        """
        with self.database.read() as c:
            item = self._item(c, uid)
            said = self._of_item(c, item)
            mine = c.execute(
                select(judgements).where(judgements.c.item_id == item.id, judgements.c.person_id == person)
            ).first()
            if mine is not None and not mine.adjudication:
                raise ConflictError("you judged this item yourself; another adjudicator has to settle it")
            if mine is None and not self._in_queue(c, item):
                raise ConflictError("this item is not in dispute (any more)")
            return self._assignment(c, item, person, version=mine.seq if mine else None), said

    def adjudicate(self, person: int, form: Form) -> Receipt:
        """Settle an item. For training, the adjudicator's word stands in place of the others'.

        Raises:
            DataError: the form does not fit.
            ConflictError: settled by somebody else since, or this person judged it.
        """
        with self.database.write() as c:
            digest = content_id(form.model_dump(mode="json", exclude={"seconds"}))
            before = c.execute(
                select(events.c.seq, events.c.body).where(events.c.person_id == person, events.c.key == form.key)
            ).first()
            if before is not None:
                body = json.loads(before.body)
                if body.get("digest") != digest:
                    raise ConflictError(f"the key {form.key!r} was used for another form; use a new one")
                return Receipt(submission=body["id"], version=before.seq, state="stored", new=False)
            item = self._item(c, form.item)
            if form.verdict != "judged":
                raise DataError("an adjudicator decides; or retires the item")
            check_form(form, task_of(item), self.config(c))
            mine = c.execute(
                select(judgements).where(judgements.c.item_id == item.id, judgements.c.person_id == person)
            ).first()
            if mine is not None and not mine.adjudication:
                raise ConflictError("you judged this item yourself; another adjudicator has to settle it")
            if (mine.seq if mine else None) != form.version or (mine is None and item.adjudicated):
                raise ConflictError("this item was settled since you opened it; reload the page")
            if mine is None and not self._in_queue(c, item):
                raise ConflictError("this item is not in dispute (any more)")
            now = self.clock()
            submission = self._record(c, form, item, person, now, None, adjudication=True)
            body = submission.model_dump(mode="json", exclude_defaults=True, exclude={"annotator", "task"})
            filled = body | {"digest": digest}
            seq = add_event(c, now, "adjudication", filled, person=person, item=item.id, key=form.key)
            if mine is not None:
                c.execute(delete(judgements).where(judgements.c.seq == mine.seq))
            c.execute(
                insert(judgements).values(
                    seq=seq,
                    item_id=item.id,
                    person_id=person,
                    verdict="judged",
                    seconds=submission.seconds,
                    adjudication=True,
                    at=now,
                )
            )
            lease = c.execute(_LEASE, {"item": item.id, "person": person}).first()
            if lease is not None:
                c.execute(_DROP_LEASE, {"item": item.id, "person": person})
                if lease.live and item.role is None:
                    self._free(c, item.id, item.batch_id)
            self._recount(c, item)
            c.execute(update(items).where(items.c.id == item.id).values(open=False))
            return Receipt(submission=submission.id, version=seq, state="stored")

    # Reading ------------------------------------------------------------------------------

    def progress(self, batch: str | None = None) -> Progress:
        """Where the project, or one batch of it, stands."""
        counted = items.c.role.is_(None) & items.c.retired.is_(False)
        query = select(
            func.count(),
            func.coalesce(func.sum(case((or_(items.c.done >= items.c.overlap, items.c.adjudicated), 1), else_=0)), 0),
            func.coalesce(func.sum(_NEEDED), 0),
            func.coalesce(func.sum(items.c.done), 0),
            func.coalesce(func.sum(case((items.c.disputed, 1), else_=0)), 0),
            func.coalesce(func.sum(case((items.c.flags > 0, 1), else_=0)), 0),
        ).where(counted)
        if batch is not None:
            query = query.join(batches, batches.c.id == items.c.batch_id).where(batches.c.name == batch)
        with self.database.read() as c:
            names = ("items", "complete", "needed", "done", "disputed", "flagged")
            return Progress(**dict(zip(names, (int(v) for v in c.execute(query).one()), strict=True)))

    def standing(self, uids: Iterable[str]) -> tuple[int, int]:
        """(done, needed) over these items; retired ones need nothing, and settled ones no more than they have."""
        wanted = sorted(uids)
        done = needed = 0
        with self.database.read() as c:
            for start in range(0, len(wanted), 400):
                row = c.execute(
                    select(func.coalesce(func.sum(items.c.done), 0), func.coalesce(func.sum(_NEEDED), 0)).where(
                        items.c.uid.in_(wanted[start : start + 400]), items.c.retired.is_(False)
                    )
                ).one()
                done, needed = done + int(row[0]), needed + int(row[1])
        return done, needed

    def submissions(
        self, *, after: int = 0, limit: int | None = None, newest: bool = False, batch: str | None = None
    ) -> list[tuple[int, Submission]]:
        """Everybody's current word, by version; ``newest`` gives the last ones first."""
        query = (
            select(judgements.c.seq, events.c.body, people.c.pseudonym, items.c.uid)
            .join(events, events.c.seq == judgements.c.seq)
            .join(people, people.c.id == judgements.c.person_id)
            .join(items, items.c.id == judgements.c.item_id)
            .where(judgements.c.seq > after)
            .order_by(judgements.c.seq.desc() if newest else judgements.c.seq)
        )
        if batch is not None:
            query = query.join(batches, batches.c.id == items.c.batch_id).where(batches.c.name == batch)
        if limit is not None:
            query = query.limit(limit)
        with self.database.read() as c:
            return [(row.seq, submission_of(row.body, row.pseudonym, row.uid)) for row in c.execute(query)]

    def first_words(self) -> dict[tuple[str, str], int]:
        """Version of the first judgement that somebody gave of an item, changed since or not, by item and pseudonym."""
        query = (
            select(items.c.uid, people.c.pseudonym, func.min(events.c.seq))
            .join(items, items.c.id == events.c.item_id)
            .join(people, people.c.id == events.c.person_id)
            .where(events.c.kind.in_(("judgement", "import")), events.c.body.contains('"verdict": "judged"'))
            .group_by(items.c.uid, people.c.pseudonym)
        )
        with self.database.read() as c:
            return {(uid, name): int(seq) for uid, name, seq in c.execute(query)}

    # Shared -------------------------------------------------------------------------------

    def _item(self, c: Connection, uid: str) -> Row[Any]:
        row = c.execute(_ITEM, {"uid": uid}).first() if "\x00" not in uid else None
        if row is None:
            raise DataError("there is no such item")
        return row

    def _upsert(self, c: Connection, table: Any, keys: dict[str, Any], values: dict[str, Any]) -> None:
        statement = self._upserts.get(table.name)
        if statement is None:
            made = (sqlite.insert if self.database.sqlite else postgresql.insert)(table)
            new = {name: made.excluded[name] for name in values}
            statement = made.on_conflict_do_update(index_elements=list(keys), set_=new)
            self._upserts[table.name] = statement
        c.execute(statement, keys | values)
