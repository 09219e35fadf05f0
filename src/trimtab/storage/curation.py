"""Owners' actions on single items: search, read the judgements, correct, retire, restore and comment.

A judgement is about the text that was judged, so texts are never edited. A corrected text becomes a new item. The old
item is retired with its judgements, and the two items name each other. Metadata and names of models, which annotators
never see, are changed in place; the old values stay in the item's log.

An item's log consists of its events of the kinds in :data:`LOGGED`.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select, true, update

from trimtab.errors import ConflictError, DataError
from trimtab.records.annotation import Submission, Task
from trimtab.records.types import Prompt
from trimtab.storage.items import OPEN_TO_PEOPLE, insert_items, recount, retire_item
from trimtab.storage.rows import submission_of, task_of
from trimtab.storage.schema import batches, events, items, judgements, people
from trimtab.storage.tasks import unusable
from trimtab.storage.transaction import Transaction

State = Literal["open", "done", "disputed", "flagged", "retired", "check"]
STATES: tuple[State, ...] = get_args(State)
"""State of an item. ``check``: an item with a known answer, which is never done."""
LOGGED = ("note", "retire", "restore", "amend", "corrected", "correction")
"""Kinds of events in an item's log: a comment, retired, restored, metadata changed (with the values ``before``),
replaced ``by`` another item, and a correction ``of`` another item."""
_SUBMITTED = ("judgement", "adjudication", "import", "late")
_COMPLETE = or_(items.c.done >= items.c.overlap, items.c.adjudicated)
_IN_STATE: dict[State, ColumnElement[bool]] = {
    "open": and_(items.c.role.is_(None), items.c.retired.is_(False), ~_COMPLETE),
    "done": and_(items.c.role.is_(None), items.c.retired.is_(False), _COMPLETE),
    "disputed": and_(items.c.disputed.is_(True), items.c.retired.is_(False)),
    "flagged": and_(items.c.flags > 0, items.c.retired.is_(False)),
    "retired": items.c.retired.is_(True),
    "check": and_(items.c.role.is_not(None), items.c.retired.is_(False)),
}
_CHUNK = 500
"""Rows read at once while searching."""
_MIN_ID_PREFIX = 4
"""Characters that a word needs to match the start of an id; shorter words would match ids by chance."""
MOST_CHARACTERS = 10_000
"""Most characters of a comment or a reason."""


@dataclass(frozen=True, kw_only=True)
class ItemSummary:
    """An item in a list."""

    number: int
    """Place in the order in which items were added."""
    task: Task
    """The item."""
    states: tuple[State, ...]
    """States of the item; it can be done, disputed and flagged at once."""
    done: int
    """Number of judgements."""
    overlap: int
    """Number of judgements needed."""
    comments: int
    """Number of owners' comments."""


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One line of an item's log."""

    kind: str
    """One of :data:`LOGGED`."""
    at: float
    """Seconds since 1970."""
    name: str | None
    """Name of the person; None: a program."""
    pseudonym: str | None
    """The same person's pseudonym."""
    body: dict[str, Any]
    """Fields of the event: ``text``, ``reason``, ``before``, ``by`` or ``of``."""


@dataclass(frozen=True, kw_only=True)
class ItemSubmission:
    """One submission about an item."""

    submission: Submission
    """The judgement, adjudication or skip."""
    name: str
    """Name of the person who submitted it."""
    state: Literal["counts", "changed", "undone", "late"]
    """``counts``: the person's current judgement; ``changed`` or ``undone``: changed or taken back by the person since;
    ``late``: arrived after the slot had been given to another annotator."""


@dataclass(frozen=True, kw_only=True)
class ItemDetails:
    """Everything about one item."""

    summary: ItemSummary
    """The item and its state."""
    submissions: list[ItemSubmission]
    """Its submissions, oldest first."""
    log: list[LogEntry]
    """Actions of owners, oldest first."""


# Finding ----------------------------------------------------------------------------------


def find_items(
    c: Connection, *, text: str = "", batch: str = "", state: State | None = None, after: int = 0, limit: int = 25
) -> tuple[list[ItemSummary], int | None]:
    """A page of items in the order they were added.

    Args:
        c: the database.
        text: words; each must occur in the prompt, an answer or a step, or be the start of the id. Case is ignored.
        batch: name of a batch; empty: all.
        state: state of the items; None: any.
        after: number of the last item of the page before.
        limit: length of the page.

    Returns:
        the items, and the number of the last one as ``after`` for the next page; None: there is no next page.
    """
    words = text.lower().split()
    conditions = [_IN_STATE[state] if state else true(), *(_may_have(word) for word in words)]
    if batch:
        conditions.append(items.c.batch_id.in_(select(batches.c.id).where(batches.c.name == batch)))
    rows: list[Row[Any]] = []
    while len(rows) <= limit:
        query = select(items).where(items.c.id > after, *conditions).order_by(items.c.id).limit(_CHUNK)
        chunk = c.execute(query).all()
        rows += [row for row in chunk if not words or _matches(row, words)]
        if len(chunk) < _CHUNK:
            break
        after = chunk[-1].id
    page = rows[:limit]
    return _summaries(c, page), page[-1].id if len(rows) > limit else None


def count_items(c: Connection, batch: str = "") -> dict[State, int]:
    """Number of items in each state; an item can be in several."""
    in_batch = items.c.batch_id.in_(select(batches.c.id).where(batches.c.name == batch)) if batch else true()
    return {s: c.scalar(select(func.count()).select_from(items).where(in_batch, _IN_STATE[s])) or 0 for s in STATES}


def _may_have(word: str) -> ColumnElement[bool]:
    """A condition that the database can check: the item contains the word's longest run of ASCII letters and digits."""
    runs = re.findall("[a-z0-9]+", word)
    if not runs:
        return true()
    run = max(runs, key=len)
    return or_(items.c.body.icontains(run, autoescape=True), items.c.uid.icontains(run, autoescape=True))


def _matches(row: Row[Any], words: Sequence[str]) -> bool:
    task = task_of(row)
    texts = [*(m.content for m in task.prompt.messages), *(a.text for a in task.completions), *task.steps]
    all_text, uid = "\x00".join(texts).lower(), task.id.lower()
    return all(
        word in all_text or word == uid or (len(word) >= _MIN_ID_PREFIX and uid.startswith(word)) for word in words
    )


def _summaries(c: Connection, rows: Sequence[Row[Any]]) -> list[ItemSummary]:
    query = (
        select(events.c.item_id, func.count())
        .where(events.c.item_id.in_([row.id for row in rows]), events.c.kind == "note")
        .group_by(events.c.item_id)
    )
    comments = {item: count for item, count in c.execute(query)}
    return [
        ItemSummary(
            number=row.id,
            task=task_of(row),
            states=_states(row),
            done=row.done,
            overlap=row.overlap,
            comments=comments.get(row.id, 0),
        )
        for row in rows
    ]


def _states(row: Row[Any]) -> tuple[State, ...]:
    if row.retired:
        return ("retired",)
    if row.role is not None:
        return ("check", *(("flagged",) if row.flags else ()))
    complete = row.done >= row.overlap or row.adjudicated
    flags: tuple[State, ...] = (*(("disputed",) if row.disputed else ()), *(("flagged",) if row.flags else ()))
    return ("done" if complete else "open", *flags)


def read_item(tx: Transaction, uid: str) -> ItemDetails:
    """Everything about one item; see :meth:`~trimtab.storage.labels.LabelStore.item`."""
    item = tx.item(uid)
    return ItemDetails(
        summary=_summaries(tx.c, [item])[0], submissions=_submissions(tx.c, item), log=_log(tx.c, item.id)
    )


def _submissions(c: Connection, item: Row[Any]) -> list[ItemSubmission]:
    current = set(c.scalars(select(judgements.c.seq).where(judgements.c.item_id == item.id)))
    query = (
        select(events.c.seq, events.c.kind, events.c.body, people.c.name, people.c.pseudonym)
        .join(people, people.c.id == events.c.person_id)
        .where(events.c.item_id == item.id, events.c.kind.in_((*_SUBMITTED, "undo")))
        .order_by(events.c.seq)
    )
    rows = c.execute(query).all()
    undone_versions = {json.loads(row.body)["undoes"] for row in rows if row.kind == "undo"}

    def state(row: Any) -> Literal["counts", "changed", "undone", "late"]:
        if row.seq in current:
            return "counts"
        return "late" if row.kind == "late" else "undone" if row.seq in undone_versions else "changed"

    return [
        ItemSubmission(submission=submission_of(row.body, row.pseudonym, item.uid), name=row.name, state=state(row))
        for row in rows
        if row.kind != "undo"
    ]


def _log(c: Connection, item: int) -> list[LogEntry]:
    query = (
        select(events, people.c.name, people.c.pseudonym)
        .join(people, people.c.id == events.c.person_id, isouter=True)
        .where(events.c.item_id == item, events.c.kind.in_(LOGGED))
        .order_by(events.c.seq)
    )
    return [
        LogEntry(kind=row.kind, at=row.at, name=row.name, pseudonym=row.pseudonym, body=json.loads(row.body))
        for row in c.execute(query)
    ]


def read_log(c: Connection) -> tuple[dict[str, Any], ...]:
    """The logs of all items, for an export: ``item``, ``kind``, ``at``, ``person`` (pseudonym) and ``body``."""
    query = (
        select(events.c.kind, events.c.at, events.c.body, items.c.uid, people.c.pseudonym)
        .join(items, items.c.id == events.c.item_id)
        .join(people, people.c.id == events.c.person_id, isouter=True)
        .where(events.c.kind.in_(LOGGED))
        .order_by(events.c.seq)
    )
    return tuple(
        {"item": row.uid, "kind": row.kind, "at": row.at, "person": row.pseudonym, "body": json.loads(row.body)}
        for row in c.execute(query)
    )


def comments_by_item(log: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The comments of a project's log by item, each with ``at``, ``by`` and ``text``."""
    comments: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in log:
        if entry["kind"] == "note":
            comments[entry["item"]].append({"at": entry["at"], "by": entry["person"], "text": entry["body"]["text"]})
    return dict(comments)


# Changing ---------------------------------------------------------------------------------


def add_comment(tx: Transaction, uid: str, text: str, *, person: int) -> None:
    """Add an owner's comment to an item; see :meth:`~trimtab.storage.labels.LabelStore.comment`."""
    text = _checked_text(text, "comment")
    if not text:
        raise DataError("the comment is empty; write one")
    tx.event("note", {"text": text}, person=person, item=tx.item(uid).id)


def retire(tx: Transaction, uid: str, *, person: int, reason: str) -> None:
    """Take an item out of the queue; its judgements stay. A retired item is unchanged."""
    item = tx.item(uid)
    if not item.retired:
        retire_item(tx, item, person=person, reason=_checked_text(reason, "reason"))


def restore(tx: Transaction, uid: str, *, person: int, reason: str) -> None:
    """Put a retired item back and queue its free slots; see :meth:`~trimtab.storage.labels.LabelStore.restore`."""
    item = tx.item(uid)
    if not item.retired:
        return
    replacement = next((e.body["by"] for e in reversed(_log(tx.c, item.id)) if e.kind == "corrected"), None)
    if replacement is not None and not tx.item(replacement).retired:
        raise ConflictError(f"item {replacement} replaces this one; retire that first")
    last = tx.c.scalar(select(func.max(items.c.position)).where(items.c.batch_id == item.batch_id)) or 0
    tx.c.execute(update(items).where(items.c.id == item.id).values(retired=False))
    has_free_slot = and_(items.c.taken < items.c.overlap, OPEN_TO_PEOPLE)
    tx.c.execute(update(items).where(items.c.id == item.id).values(open=has_free_slot, position=last + 1))
    recount(tx, tx.item(uid))
    tx.event("restore", {"reason": _checked_text(reason, "reason")}, person=person, item=item.id)


def correct(tx: Transaction, task: Task, corrected: Task, *, person: int, reason: str) -> str:
    """Correct an item; returns the id of the corrected item.

    If only metadata or names of models differ, the item is changed in place. Otherwise the correction is a new item at
    the end of the batch, and the old one is retired with its judgements.

    Args:
        tx: the transaction.
        task: the item as the owner saw it.
        corrected: the corrected item, under the same id.
        person: the person who corrects it.
        reason: why.

    Raises:
        ConflictError: the item was changed or retired since, or another item has this text already.
        DataError: the correction cannot be shown to people.
    """
    item, reason = tx.item(task.id), _checked_text(reason, "reason")
    if task_of(item) != task:
        raise ConflictError("this item was changed since you opened it; reload the page")
    if item.retired:
        raise ConflictError("this item is retired; restore it first")
    if corrected == task:
        raise DataError("nothing differs from the item; change something, or leave the page")
    in_place = _shown(corrected) == _shown(task)
    if not in_place:
        overlap = None if item.inherits else item.overlap
        corrected = _with_new_id(corrected.model_copy(update={"overlap": overlap}))
    problem = unusable(corrected, tx.config)
    if problem is not None:
        raise DataError(problem)
    if in_place:
        body = corrected.model_dump_json(exclude_defaults=True)
        tx.c.execute(update(items).where(items.c.id == item.id).values(body=body))
        models = [answer.model for answer in task.completions]
        previous = {"metadata": task.metadata, "prompt_metadata": task.prompt.metadata, "models": models}
        tx.event("amend", {"reason": reason, "before": previous}, person=person, item=item.id)
        return task.id
    if insert_items(tx, [corrected], tx.config):
        raise ConflictError(f"item {corrected.id} has exactly this text; retire this one instead")
    retire_item(tx, item, person=person, reason=reason)
    tx.event("corrected", {"by": corrected.id}, person=person, item=item.id)
    tx.event("correction", {"of": task.id, "reason": reason}, person=person, item=tx.item(corrected.id).id)
    return corrected.id


def _shown(task: Task) -> tuple[Any, ...]:
    """The parts of an item that people see, and the check of their answers."""
    return task.prompt.messages, [answer.text for answer in task.completions], task.steps, task.check


def _with_new_id(task: Task) -> Task:
    """The same item with ids made from its texts."""
    prompt = Prompt.of(task.prompt.messages).model_copy(update={"metadata": task.prompt.metadata})
    fields = {name: getattr(task, name) for name in ("steps", "batch", "overlap", "check", "metadata")}
    return Task.of(prompt, task.completions, kind=task.kind, **fields)


def _checked_text(text: str, what: str) -> str:
    text = text.replace("\r\n", "\n").strip()
    if len(text) > MOST_CHARACTERS:
        raise DataError(f"{what}: {len(text)} characters; {MOST_CHARACTERS} fit")
    return text
