"""Adjudication: items that need a decision, and the decision, which replaces the annotators' judgements in training."""

import json
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, select, update

from trimtab.errors import ConflictError, DataError
from trimtab.records.annotation import Submission, Task, distance
from trimtab.storage.form import Form, check_form
from trimtab.storage.items import recount, submissions_of_item
from trimtab.storage.queue import Assignment, assignment, free_slot
from trimtab.storage.rows import task_of
from trimtab.storage.schema import events, items, judgements, people
from trimtab.storage.submissions import (
    Receipt,
    add_submission,
    drop_lease,
    judgement_of,
    lease_of,
    put_judgement,
    repeated,
    submission_from,
)
from trimtab.storage.transaction import Transaction

DISPUTED = items.c.disputed.is_(True)
"""As many people as needed have judged the item, and they disagree."""
FLAGGED = items.c.flags > 0
"""The item is flagged, and has not been retired or settled since."""
_NO_ANNOTATOR_LEFT = and_(
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
"""The item has free slots, and every annotator has judged, skipped or flagged it."""
EXHAUSTED = and_(_NO_ANNOTATOR_LEFT, items.c.flags == 0)
"""``_NO_ANNOTATOR_LEFT`` without flagged items."""


def items_with_submissions(
    c: Connection, condition: ColumnElement[bool], limit: int | None
) -> list[tuple[Task, list[Submission]]]:
    """Items with the annotators' submissions, oldest item first."""
    query = select(items).where(condition, items.c.retired.is_(False)).order_by(items.c.id).limit(limit)
    return [(task_of(item), submissions_of_item(c, item)) for item in c.execute(query).all()]


def disputes(c: Connection, limit: int | None) -> list[tuple[Task, list[Submission]]]:
    """Items in dispute with the annotators' submissions, largest disagreement first."""
    waiting = items_with_submissions(c, DISPUTED, None)
    return sorted(waiting, key=lambda item: -distance(*item))[:limit]


def open_dispute(tx: Transaction, uid: str, person: int) -> tuple[Assignment, list[Submission]]:
    """One item for an adjudicator; see :meth:`~trimtab.storage.labels.LabelStore.dispute`."""
    item = tx.item(uid)
    decided = _decision_of(tx, item, person)
    if decided is None and not _needs_decision(tx.c, item):
        raise ConflictError("this item is not in dispute (any more)")
    version = draft = None
    if decided is not None:
        version = decided.seq
        draft = json.loads(tx.c.execute(select(events.c.body).where(events.c.seq == version)).scalar_one())
    return assignment(tx, item, tx.person(person), version=version, draft=draft), submissions_of_item(tx.c, item)


def adjudicate(tx: Transaction, person: int, form: Form) -> Receipt:
    """Settle an item; see :meth:`~trimtab.storage.labels.LabelStore.adjudicate`."""
    digest, earlier = repeated(tx, person, form)
    if earlier is not None:
        return earlier
    item = tx.item(form.item)
    if form.verdict != "judged":
        raise DataError("an adjudicator decides; or retires the item")
    check_form(form, task_of(item), tx.config)
    previous = _decision_of(tx, item, person)
    if (previous.seq if previous else None) != form.version or (previous is None and item.adjudicated):
        raise ConflictError("this item was settled since you opened it")
    if previous is None and not _needs_decision(tx.c, item):
        raise ConflictError("this item is not in dispute (any more)")
    submission = submission_from(tx, form, item, tx.person(person), None, adjudication=True)
    seq = add_submission(tx, "adjudication", submission, digest, person=person, item=item, key=form.key)
    put_judgement(tx, seq, submission, item=item, person=person, replaces=previous)
    lease = lease_of(tx, item, person)
    if lease is not None:
        drop_lease(tx, item, person)
        if lease.live and item.role is None:
            free_slot(tx, item.id, item.batch_id)
    recount(tx, item)
    tx.c.execute(update(items).where(items.c.id == item.id).values(open=False))
    return Receipt(submission=submission.id, version=seq, state="stored")


def _decision_of(tx: Transaction, item: Row[Any], person: int) -> Row[Any] | None:
    """The adjudicator's own earlier decision on an item.

    Raises:
        ConflictError: this person judged the item as an annotator.
    """
    judgement = judgement_of(tx, item, person)
    if judgement is not None and not judgement.adjudication:
        raise ConflictError("you judged this item yourself; another adjudicator has to settle it")
    return judgement


def _needs_decision(c: Connection, item: Row[Any]) -> bool:
    in_queue = item.disputed or item.flags
    return bool(in_queue or c.scalar(select(items.c.id).where(items.c.id == item.id, _NO_ANNOTATOR_LEFT)))
