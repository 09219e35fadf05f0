"""The label database for programs; each method is one transaction, with one writer at a time.

=======================  =======================================================
``items``                adding items, overlap, batches
``queue``                who judges which item next
``submissions``          storing and changing filled-in forms
``adjudication``         items that need a decision, and the decision
``curation``             finding, correcting, retiring and commenting on single items
``progress``             progress of the project, and the judgements so far
``settings``             settings and guidelines
=======================  =======================================================

A submission is acknowledged after its event is on the disk, with the next task in the same commit.
"""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, select

from trimtab.records.annotation import Submission, Task
from trimtab.records.types import content_id
from trimtab.storage import adjudication, curation, progress, settings, submissions
from trimtab.storage import items as item_rows
from trimtab.storage.database import Database
from trimtab.storage.form import Form
from trimtab.storage.progress import HistoryEntry, Progress
from trimtab.storage.project import ProjectConfig
from trimtab.storage.queue import Assignment, Queue, answer_order
from trimtab.storage.rows import get_setting, put_setting, task_of
from trimtab.storage.schema import items, judgements
from trimtab.storage.schema import settings as setting_rows
from trimtab.storage.submissions import Receipt
from trimtab.storage.tasks import Refused, duplicate, unusable
from trimtab.storage.transaction import Transaction, read_config

__all__ = ["Assignment", "HistoryEntry", "LabelStore", "Progress", "Receipt", "open_store"]


class LabelStore:
    """An annotation project's items and judgements.

    Args:
        database: the label database.
        clock: returns seconds since 1970; tests pass a fake clock.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self.database = database
        self.clock = clock
        self._queue = Queue()
        with database.read() as c:
            salt = get_setting(c, "salt")
        if salt is None:
            with database.write() as c:
                salt = get_setting(c, "salt")
                if salt is None:
                    salt = secrets.token_hex(16)
                    c.execute(insert(setting_rows).values(name="salt", value=salt))
        self._salt = salt

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """A writing transaction, all or nothing."""
        with self.database.write() as c:
            yield self._transaction(c)

    @contextmanager
    def _reading(self) -> Iterator[Transaction]:
        with self.database.read() as c:
            yield self._transaction(c)

    def _transaction(self, c: Connection) -> Transaction:
        return Transaction(c=c, now=self.clock(), salt=self._salt)

    # Settings -----------------------------------------------------------------------------

    def config(self) -> ProjectConfig:
        """The project's settings."""
        with self.database.read() as c:
            return read_config(c)

    def set_config(self, config: ProjectConfig, *, person: int | None = None) -> None:
        """Change the settings. A new overlap applies to every item that was added without one."""
        with self.writing() as tx:
            settings.put_config(tx, config, person=person)

    @property
    def project_id(self) -> str:
        """Eight characters that identify the project."""
        return content_id(self._salt)[:8]

    @property
    def address(self) -> str | None:
        """Address at which the app was last served; None: never."""
        with self.database.read() as c:
            return get_setting(c, "address")

    def set_address(self, link: str) -> None:
        """Store the address at which the app is served, so that a run can show it."""
        with self.database.write() as c:
            put_setting(c, "address", link)

    def guideline(self, version: int | None = None) -> tuple[int, str, str] | None:
        """(number, name, text) of a version of the guidelines; None: the newest."""
        with self.database.read() as c:
            return settings.read_guideline(c, version)

    def guideline_names(self) -> list[tuple[int, str]]:
        """(number, name) of every version of the guidelines, newest first."""
        with self.database.read() as c:
            return settings.guideline_names(c)

    def set_guideline(self, body: str, *, person: int | None = None) -> str:
        """Add a version of the guidelines and return its name, ``v2-1a2b3c4d``. An unchanged text adds nothing."""
        with self.writing() as tx:
            return settings.put_guideline(tx, body, person=person)

    # Items --------------------------------------------------------------------------------

    def add(self, tasks: Iterable[Task | str], *, person: int | None = None) -> tuple[int, list[Refused]]:
        """Add tasks; returns the number added, and each refused task with the reason.

        Args:
            tasks: tasks, or reasons instead of tasks that cannot be read, as from :func:`parse_tasks`.
            person: the person who adds them.
        """
        config = self.config()
        refused: list[Refused] = []
        accepted: dict[str, tuple[int, Task]] = {}
        for index, task in enumerate(tasks):  # checked before the transaction, so that nobody waits for it
            reason = task if isinstance(task, str) else unusable(task, config)
            if isinstance(task, str) or reason is not None:
                refused.append(Refused(index=index, reason=str(reason)))
            elif task.id in accepted:
                refused.append(duplicate(index, task.id))
            else:
                accepted[task.id] = (index, task)
        with self.writing() as tx:
            existing = item_rows.insert_items(tx, [task for _, task in accepted.values()], config)
            refused.extend(duplicate(accepted[uid][0], uid) for uid in existing)
            refused.sort(key=lambda r: r.index)
            added = len(accepted) - len(existing)
            reasons = dict(Counter(r.reason.split(":")[0] for r in refused))
            tx.event("items", {"added": added, "refused": reasons}, person=person)
        return added, refused

    def raise_overlap(self, uids: Iterable[str], overlap: int, *, person: int | None = None) -> int:
        """Have at least ``overlap`` people judge each of these items; returns how many items changed.

        Retired items, settled items and check items do not change.
        """
        with self.writing() as tx:
            return item_rows.raise_overlap(tx, uids, overlap, person=person)

    def task(self, uid: str) -> Task:
        """One task.

        Raises:
            DataError: there is no such item.
        """
        with self._reading() as tx:
            return task_of(tx.item(uid))

    def tasks(self, *, after: int = 0, limit: int = 1000) -> list[tuple[int, Task]]:
        """(number, task) in the order they were added; ``after`` is the last number of the page before."""
        query = select(items.c.id, items.c.body).where(items.c.id > after).order_by(items.c.id).limit(limit)
        with self.database.read() as c:
            return [(row.id, task_of(row)) for row in c.execute(query)]

    def batches(self) -> list[dict[str, Any]]:
        """The columns of each batch, with ``size``, ``done`` and ``needed``; highest priority first."""
        with self.database.read() as c:
            return progress.batch_rows(c)

    def set_batch(self, name: str, *, priority: int, paused: bool, person: int | None = None) -> None:
        """Change a batch, or create it. Batches of higher priority are judged first."""
        with self.writing() as tx:
            item_rows.put_batch(tx, name, priority=priority, paused=paused, person=person)

    # Single items -------------------------------------------------------------------------

    def find(
        self, *, text: str = "", batch: str = "", state: curation.State | None = None, after: int = 0, limit: int = 25
    ) -> tuple[list[curation.ItemSummary], int | None]:
        """A page of items, and where the next one begins; see :func:`~trimtab.storage.curation.find_items`."""
        with self.database.read() as c:
            return curation.find_items(c, text=text, batch=batch, state=state, after=after, limit=limit)

    def item_counts(self, batch: str = "") -> dict[curation.State, int]:
        """Number of items in each state; an item can be in several."""
        with self.database.read() as c:
            return curation.count_items(c, batch)

    def item(self, uid: str) -> curation.ItemDetails:
        """Everything about one item: its state, its judgements by annotator, and the changes by owners.

        Raises:
            DataError: there is no such item.
        """
        with self._reading() as tx:
            return curation.read_item(tx, uid)

    def retire(self, uid: str, *, person: int, reason: str = "") -> None:
        """Take an item out of the queue; its judgements stay."""
        with self.writing() as tx:
            curation.retire(tx, uid, person=person, reason=reason)

    def restore(self, uid: str, *, person: int, reason: str = "") -> None:
        """Put a retired item back; its judgements count again.

        Raises:
            ConflictError: a correction replaces the item, and is in use.
        """
        with self.writing() as tx:
            curation.restore(tx, uid, person=person, reason=reason)

    def comment(self, uid: str, text: str, *, person: int) -> None:
        """Add an owner's comment to an item.

        Raises:
            DataError: the comment is empty or too long.
        """
        with self.writing() as tx:
            curation.add_comment(tx, uid, text, person=person)

    def correct(self, task: Task, corrected: Task, *, person: int, reason: str = "") -> str:
        """Correct an item; returns the id of the corrected item.

        If a text differs, the correction is a new item, and the old one is retired with its judgements. Metadata and
        names of models are changed in place. See :func:`~trimtab.storage.curation.correct`, also for the errors raised.
        """
        with self.writing() as tx:
            return curation.correct(tx, task, corrected, person=person, reason=reason)

    # Judging ------------------------------------------------------------------------------

    def order(self, task: Task, pseudonym: str) -> tuple[int, ...]:
        """The order in which a person sees a task's answers: random, and the same every time."""
        return answer_order(self._salt, task, pseudonym)

    def next(self, person: int) -> Assignment | str:
        """The task of a person, or why there is none: ``paused``, ``unqualified``, ``closed`` or ``empty``."""
        with self.writing() as tx:
            return self._queue.next(tx, person)

    def submit(self, person: int, form: Form) -> tuple[Receipt, Assignment | str]:
        """Store a form; returns its receipt and the next task.

        Raises:
            DataError: the form does not fit the task, or the item was not assigned to this person.
            ConflictError: the item was judged before and the version is not the newest, the key was used for another
                form, or this person is paused or not qualified.
        """
        with self.writing() as tx:
            return submissions.submit(tx, person, form), self._queue.next(tx, person)

    def undo(self, person: int, version: int) -> Assignment:
        """Take back a person's last judgement; it becomes a draft. The event stays.

        Raises:
            ConflictError: it is no longer the last judgement, or this person may not work now.
        """
        with self.writing() as tx:
            return submissions.undo(tx, person, version)

    def reopen(self, person: int, version: int) -> Assignment:
        """Show one of a person's judgements again, to change it.

        Raises:
            DataError: this person has no such judgement.
        """
        with self._reading() as tx:
            return submissions.reopen(tx, person, version)

    # Adjudication -------------------------------------------------------------------------

    def disputed(self, *, limit: int = 50) -> list[tuple[Task, list[Submission]]]:
        """Items on which annotators disagree, furthest apart first, with their submissions."""
        with self.database.read() as c:
            return adjudication.disputes(c, limit)

    def flagged(self, *, limit: int = 50) -> list[tuple[Task, list[Submission]]]:
        """Flagged items that are not retired, with their submissions."""
        with self.database.read() as c:
            return adjudication.items_with_submissions(c, adjudication.FLAGGED, limit)

    def exhausted(self, *, limit: int | None = 50) -> list[tuple[Task, list[Submission]]]:
        """Unflagged items that lack judgements although every active annotator has judged, skipped or flagged them."""
        with self.database.read() as c:
            return adjudication.items_with_submissions(c, adjudication.EXHAUSTED, limit)

    def dispute(self, uid: str, person: int) -> tuple[Assignment, list[Submission]]:
        """One item for an adjudicator, with their own decision if there is one, and the annotators' submissions.

        Raises:
            ConflictError: the item was settled since, or this person judged it.
        """
        with self._reading() as tx:
            return adjudication.open_dispute(tx, uid, person)

    def adjudicate(self, person: int, form: Form) -> Receipt:
        """Settle an item. For training, the decision replaces the annotators' judgements.

        Raises:
            DataError: the form does not fit.
            ConflictError: another person has settled the item since, or this person judged it.
        """
        with self.writing() as tx:
            return adjudication.adjudicate(tx, person, form)

    # Reading ------------------------------------------------------------------------------

    def progress(self, batch: str | None = None) -> Progress:
        """Progress of the project, or of one batch."""
        with self.database.read() as c:
            return progress.read_progress(c, batch)

    def judgement_counts(self, uids: Iterable[str]) -> tuple[int, int]:
        """(done, needed) over these items without retired ones; a settled item needs no more judgements."""
        with self.database.read() as c:
            return progress.judgement_counts(c, uids)

    def submissions(
        self, *, after: int = 0, limit: int | None = None, newest: bool = False, batch: str | None = None
    ) -> list[tuple[int, Submission]]:
        """(version, submission) of every current judgement; with ``newest``, the newest first."""
        with self.database.read() as c:
            return progress.read_submissions(c, after=after, limit=limit, newest=newest, batch=batch)

    def first_versions(self) -> dict[tuple[str, str], int]:
        """Version of each person's first judgement of an item, by item id and pseudonym."""
        with self.database.read() as c:
            return progress.first_versions(c)

    def history(self, person: int, *, before: int | None = None, limit: int = 25) -> list[HistoryEntry]:
        """A person's judgements, newest first."""
        with self.database.read() as c:
            return progress.read_history(c, person, before=before, limit=limit)

    def count(self, person: int) -> int:
        """Number of items that a person has judged."""
        with self.database.read() as c:
            return c.scalar(select(func.count()).where(judgements.c.person_id == person)) or 0


@contextmanager
def open_store(folder: Path, url: str | None = None) -> Iterator[LabelStore]:
    """The store of the project in a folder, or in the database at a URL; closed at the end."""
    with closing(Database(url or f"sqlite:///{folder / 'labels.db'}")) as database:
        yield LabelStore(database)
