"""Rows as records, and small statements that all storage modules use."""

import json
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from trimtab.records.annotation import Submission, Task
from trimtab.storage.schema import events, items, judgements, people, settings

CURRENT_JUDGEMENTS = (
    select(judgements.c.seq, events.c.body, people.c.pseudonym, items.c.uid)
    .join(events, events.c.seq == judgements.c.seq)
    .join(people, people.c.id == judgements.c.person_id)
    .join(items, items.c.id == judgements.c.item_id)
)
"""Everybody's current judgements: the version, the event's body, who judged, and which item."""
_SETTING = select(settings.c.value).where(settings.c.name == bindparam("name"))
_NEW_EVENT = insert(events)


def get_setting(c: Connection, name: str) -> str | None:
    """A setting's value; None: it was never set."""
    return c.scalar(_SETTING, {"name": name})


def put_setting(c: Connection, name: str, value: str) -> None:
    """Store a setting."""
    if c.execute(update(settings).where(settings.c.name == name).values(value=value)).rowcount == 0:
        c.execute(insert(settings).values(name=name, value=value))


def task_of(row: Any) -> Task:
    """The task in a row of ``items``."""
    return Task.model_validate_json(row.body)


def submission_of(body: str, annotator: str, task: str) -> Submission:
    """The submission in an event's body, by the annotator with this pseudonym, about the task with this id."""
    fields = json.loads(body)
    fields.pop("digest", None)
    return Submission(task=task, annotator=annotator, **fields)


def add_event(
    c: Connection,
    at: float,
    kind: str,
    body: Any,
    *,
    person: int | None,
    item: int | None = None,
    key: str | None = None,
) -> int:
    """Append an event and return its number. Events are never changed or removed."""
    row = {"at": at, "kind": kind, "person_id": person, "item_id": item, "key": key, "body": json.dumps(body)}
    inserted = c.execute(_NEW_EVENT, row)
    return inserted.inserted_primary_key[0]  # pyright: ignore[reportOptionalSubscript]
