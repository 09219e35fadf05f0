"""Filled-in forms: storing a form, taking it back, and opening it again.

A repeated request (same key) changes nothing and gets the same reply. A changed judgement must name the version it
replaces. If a form arrives after its lease expired and another annotator has its slot, it is stored as an event of kind
``late`` and not counted. No form is ever discarded.
"""

import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, select, update

from trimtab.errors import ConflictError, DataError
from trimtab.records.annotation import Submission, passes
from trimtab.records.types import content_id
from trimtab.storage.form import Form, check_form
from trimtab.storage.items import recount
from trimtab.storage.project import ProjectConfig
from trimtab.storage.queue import Assignment, answer_order, assignment, free_slot, lease, take_slot
from trimtab.storage.rows import task_of
from trimtab.storage.schema import events, items, judgements, leases, people
from trimtab.storage.settings import is_guideline, newest_guideline
from trimtab.storage.transaction import Transaction

_EVENT_BY_KEY = select(events.c.seq, events.c.kind, events.c.body).where(
    events.c.person_id == bindparam("person"), events.c.key == bindparam("key")
)
_JUDGEMENT = select(judgements).where(
    judgements.c.item_id == bindparam("item"), judgements.c.person_id == bindparam("person")
)
_LEASE = select(leases).where(leases.c.item_id == bindparam("item"), leases.c.person_id == bindparam("person"))
_DROP_LEASE = delete(leases).where(leases.c.item_id == bindparam("item"), leases.c.person_id == bindparam("person"))


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Receipt for a form."""

    submission: str
    """Id of the submission."""
    version: int
    """Version of the judgement, which a later change must name."""
    state: str
    """``stored``, or ``late``: stored but not counted, because another annotator has the slot."""
    new: bool = field(default=True, compare=False)
    """False: this form was sent before, and nothing changed."""


def submit(tx: Transaction, person: int, form: Form) -> Receipt:
    """Store an annotator's form; see :meth:`~trimtab.storage.labels.LabelStore.submit`."""
    digest, earlier = repeated(tx, person, form)
    if earlier is not None:
        return earlier
    person_row = require_active(tx, person)
    item, config = tx.item(form.item), tx.config
    task = task_of(item)
    check_form(form, task, config)
    previous = judgement_of(tx, item, person)
    lease_row = lease_of(tx, item, person)
    if previous is not None and previous.adjudication:
        raise ConflictError("you settled this item as an adjudicator; change it from the adjudication page")
    if previous is None and lease_row is None:
        raise DataError("this item was not given to you")
    if previous is not None and previous.seq != form.version:
        raise ConflictError(
            f"you judged this item before (version {previous.seq}); open it from your history to change it"
        )
    if previous is None and form.version is not None:
        raise ConflictError("the judgement you are changing was taken back since; reload the page")

    has_slot = previous.verdict == "judged" if previous else bool(lease_row and lease_row.live)
    is_late = False
    if item.role is None:
        if form.verdict == "judged" and not has_slot:
            is_late = item.taken >= item.overlap
            if not is_late:
                take_slot(tx, item.id)
        elif has_slot and form.verdict != "judged":
            free_slot(tx, item.id, item.batch_id)
    submission = submission_from(tx, form, item, person_row, lease_row)
    seq = add_submission(
        tx, "late" if is_late else "judgement", submission, digest, person=person, item=item, key=form.key
    )
    if is_late:
        drop_lease(tx, item, person)
        return Receipt(submission=submission.id, version=seq, state="late")
    passed = passes(task, submission)
    put_judgement(tx, seq, submission, item=item, person=person, replaces=previous, passed=passed)
    if lease_row is not None:
        drop_lease(tx, item, person)
    recount(tx, item)
    if item.role == "attention" and not passed and form.verdict != "flag":
        _watch_attention(tx, person, config)
    return Receipt(submission=submission.id, version=seq, state="stored")


def undo(tx: Transaction, person: int, version: int) -> Assignment:
    """Take back a person's last judgement; see :meth:`~trimtab.storage.labels.LabelStore.undo`."""
    person_row = require_active(tx, person)
    last = tx.c.execute(
        select(judgements)
        .where(judgements.c.person_id == person, judgements.c.adjudication.is_(False))
        .order_by(judgements.c.seq.desc())
        .limit(1)
    ).first()
    if last is None or last.seq != version:
        raise ConflictError("this is not your last judgement any more; open it from your history instead")
    item = tx.c.execute(select(items).where(items.c.id == last.item_id)).one()
    body = json.loads(tx.c.execute(select(events.c.body).where(events.c.seq == last.seq)).scalar_one())
    tx.event("undo", {"undoes": last.seq}, person=person, item=item.id)
    tx.c.execute(delete(judgements).where(judgements.c.seq == last.seq))
    has_slot = item.role is not None or last.verdict == "judged"
    if not has_slot and item.taken < item.overlap and not item.retired:
        take_slot(tx, item.id)
        has_slot = True
    recount(tx, item)
    lease(tx, item.id, person, live=has_slot, draft=json.dumps(body))
    return assignment(tx, item, person_row, draft=body)


def reopen(tx: Transaction, person: int, version: int) -> Assignment:
    """Show one of a person's judgements again; see :meth:`~trimtab.storage.labels.LabelStore.reopen`."""
    row = tx.c.execute(
        select(judgements.c.item_id, events.c.body)
        .join(events, events.c.seq == judgements.c.seq)
        .where(judgements.c.seq == version, judgements.c.person_id == person)
    ).first()
    if row is None:
        raise DataError("there is no such judgement of yours; it may have been changed since")
    item = tx.c.execute(select(items).where(items.c.id == row.item_id)).one()
    return assignment(tx, item, tx.person(person), version=version, draft=json.loads(row.body))


# Steps that adjudication shares -----------------------------------------------------------


def repeated(tx: Transaction, person: int, form: Form) -> tuple[str, Receipt | None]:
    """The form's digest, and the receipt of the same form if it was sent before.

    Raises:
        ConflictError: the key was used for another form.
    """
    digest = content_id(form.model_dump(mode="json", exclude={"seconds"}))
    event = tx.c.execute(_EVENT_BY_KEY, {"person": person, "key": form.key}).first()
    if event is None:
        return digest, None
    body = json.loads(event.body)
    if body.get("digest") != digest:
        raise ConflictError(f"the key {form.key!r} was used for another form; use a new one")
    state = "late" if event.kind == "late" else "stored"
    return digest, Receipt(submission=body["id"], version=event.seq, state=state, new=False)


def judgement_of(tx: Transaction, item: Row[Any], person: int) -> Row[Any] | None:
    """A person's current judgement of an item."""
    return tx.c.execute(_JUDGEMENT, {"item": item.id, "person": person}).first()


def lease_of(tx: Transaction, item: Row[Any], person: int) -> Row[Any] | None:
    """A person's lease on an item."""
    return tx.c.execute(_LEASE, {"item": item.id, "person": person}).first()


def drop_lease(tx: Transaction, item: Row[Any], person: int) -> None:
    """Remove a person's lease on an item; its slot stays as it is."""
    tx.c.execute(_DROP_LEASE, {"item": item.id, "person": person})


def submission_from(
    tx: Transaction,
    form: Form,
    item: Row[Any],
    person_row: Row[Any],
    lease_row: Row[Any] | None,
    *,
    adjudication: bool = False,
) -> Submission:
    """The record of a form.

    Raises:
        DataError: the form names a version of the guidelines that does not exist.
    """
    if form.guideline and not is_guideline(tx.c, form.guideline):
        raise DataError(f"guideline {form.guideline!r}: there is no such version; reload the page")
    elapsed = tx.now - lease_row.created_at if lease_row is not None else None
    seconds = form.seconds
    if elapsed is not None and elapsed >= 0 and (seconds is None or seconds > elapsed + 5):
        seconds = elapsed  # nobody can have looked at the item before it was assigned
    cohort = ", ".join(f"{k}={v}" for k, v in sorted(json.loads(person_row.cohort).items()) if v)
    task = task_of(item)
    return Submission(
        id=secrets.token_hex(12),
        task=task.id,
        annotator=person_row.pseudonym,
        shown_order=answer_order(tx.salt, task, person_row.pseudonym),
        verdict=form.verdict,
        answers=form.answers,
        good=form.good,
        first_wrong=form.first_wrong,
        rewrite=form.rewrite,
        reason=form.reason,
        comment=form.comment,
        guideline=form.guideline or newest_guideline(tx.c),
        seconds=None if seconds is None else round(seconds, 2),
        cohort=cohort or None,
        adjudication=adjudication,
        created_at=datetime.fromtimestamp(tx.now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def add_submission(
    tx: Transaction, kind: str, submission: Submission, digest: str, *, person: int, item: Row[Any], key: str
) -> int:
    """Append the event of a submission and return its number."""
    body = submission.model_dump(mode="json", exclude_defaults=True, exclude={"annotator", "task"})
    return tx.event(kind, body | {"digest": digest}, person=person, item=item.id, key=key)


def put_judgement(
    tx: Transaction,
    seq: int,
    submission: Submission,
    *,
    item: Row[Any],
    person: int,
    replaces: Row[Any] | None,
    passed: bool | None = None,
) -> None:
    """Make an event a person's current judgement of an item, instead of ``replaces``."""
    if replaces is not None:
        tx.c.execute(delete(judgements).where(judgements.c.seq == replaces.seq))
    tx.c.execute(
        insert(judgements).values(
            seq=seq,
            item_id=item.id,
            person_id=person,
            verdict=submission.verdict,
            seconds=submission.seconds,
            passed=passed,
            adjudication=submission.adjudication,
            at=tx.now,
        )
    )


def require_active(tx: Transaction, person: int) -> Row[Any]:
    """The row of a person who may judge.

    Raises:
        ConflictError: the person is paused, removed or not qualified.
    """
    person_row = tx.person(person)
    if person_row.state != "active":
        raise ConflictError("your work is paused; ask an owner of the project to resume it")
    if person_row.role == "annotator" and person_row.qualified is False:
        raise ConflictError("you are not qualified for this project; ask an owner if you think this is wrong")
    return person_row


def _watch_attention(tx: Transaction, person: int, config: ProjectConfig) -> None:
    """Pause an annotator who has missed too many attention items."""
    missed = tx.c.scalar(
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
        tx.c.execute(update(people).where(people.c.id == person, people.c.role == "annotator").values(state="paused"))
        tx.event("paused", {"attention_misses": missed}, person=person)
