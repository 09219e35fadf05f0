"""A whole project at one moment: the source of every export and of a round, and the content of an import."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, func, insert, select, update

from trimtab.errors import ConflictError, DataError
from trimtab.records import Comparison, Judgement
from trimtab.records.annotation import Submission, Task, disagree, judgements_of, passes
from trimtab.storage.curation import LOGGED, read_log
from trimtab.storage.items import insert_items, put_batch
from trimtab.storage.labels import LabelStore
from trimtab.storage.project import ProjectConfig
from trimtab.storage.rows import CURRENT_JUDGEMENTS, add_event, submission_of, task_of
from trimtab.storage.schema import batches, events, guidelines, items, judgements, people
from trimtab.storage.settings import put_config, put_guideline
from trimtab.storage.submissions import put_judgement
from trimtab.storage.tasks import unusable
from trimtab.storage.transaction import Transaction, read_config


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A whole project at one moment."""

    config: ProjectConfig
    """Its settings."""
    tasks: tuple[Task, ...]
    """All tasks, in the order they were added."""
    submissions: tuple[Submission, ...]
    """Everybody's current judgements, oldest first."""
    guidelines: tuple[dict[str, Any], ...]
    """All versions of the guidelines."""
    batches: tuple[dict[str, Any], ...]
    """Name and priority of each batch, and whether it is paused."""
    retired: tuple[str, ...]
    """Ids of the retired items."""
    log: tuple[dict[str, Any], ...] = ()
    """Owners' comments and corrections, as in :func:`~trimtab.storage.curation.read_log`."""
    excluded: dict[str, int]
    """Number of judgements that are not in ``submissions``: ``late``, ``undone``, or ``changed`` since."""


def take_snapshot(store: LabelStore) -> Snapshot:
    """The whole project in one consistent snapshot."""
    with store.database.read() as c:
        tasks = [
            task_of(row).model_copy(update={"overlap": None if row.inherits else row.overlap})
            for row in c.execute(select(items).order_by(items.c.id))
        ]
        rows = c.execute(CURRENT_JUDGEMENTS.order_by(judgements.c.seq)).all()
        counts = dict(c.execute(select(events.c.kind, func.count()).group_by(events.c.kind)).all())
        late, undone = counts.get("late", 0), counts.get("undo", 0)
        stored = sum(counts.get(kind, 0) for kind in ("judgement", "adjudication", "import"))
        return Snapshot(
            config=read_config(c),
            tasks=tuple(tasks),
            submissions=tuple(submission_of(r.body, r.pseudonym, r.uid) for r in rows),
            guidelines=tuple(
                {"version": g.version, "name": g.name, "text": g.body}
                for g in c.execute(select(guidelines).order_by(guidelines.c.version))
            ),
            batches=tuple(
                {"name": b.name, "priority": b.priority, "paused": b.paused}
                for b in c.execute(select(batches).order_by(batches.c.id))
            ),
            retired=tuple(c.scalars(select(items.c.uid).where(items.c.retired.is_(True)).order_by(items.c.id))),
            log=read_log(c),
            excluded={"late": late, "undone": undone, "changed": stored - undone - len(rows)},
        )


def comparisons_and_judgements(snapshot: Snapshot) -> tuple[list[Comparison], list[Judgement]]:
    """Comparisons and judgements for statistics and aggregation, without check items and answers that a guard blocked.

    Check items are training, qualification, gold and attention items.
    """
    retired = set(snapshot.retired)
    tasks = {t.id: t for t in snapshot.tasks if t.check is None and t.id not in retired and not was_blocked(t)}
    items = [c for t in tasks.values() if (c := t.comparison) is not None]
    judgements = [j for s in snapshot.submissions if s.task in tasks for j in judgements_of(tasks[s.task], s)]
    return items, judgements


def was_blocked(task: Task) -> bool:
    """Whether an answer is a guard's refusal on the chat page, which is not the policy's answer."""
    blocked = task.metadata.get("blocked")
    return task.id.startswith("chat-") and isinstance(blocked, list) and any(blocked)


_IMPORT_LIMITS = ProjectConfig(max_answers=9, max_characters=1_000_000)
"""Limits of an import: wider than any project's, so that items accepted under earlier settings can be imported."""


def load_snapshot(store: LabelStore, snapshot: Snapshot) -> dict[str, int]:
    """Fill an empty project with a snapshot, all or nothing.

    Raises:
        ConflictError: the project already has items.
        DataError: an item cannot be stored.
    """
    repeated = len(snapshot.tasks) - len({task.id for task in snapshot.tasks})
    if repeated:
        raise DataError(f"the export contains {repeated} repeated items; export the project again")
    for task in snapshot.tasks:
        reason = unusable(task, _IMPORT_LIMITS)
        if reason is not None:
            raise DataError(f"item {task.id!r} of the export cannot be read: {reason}")
    task_ids = {task.id for task in snapshot.tasks}
    unknown_entries = sum(e["item"] not in task_ids or e["kind"] not in LOGGED for e in snapshot.log)
    if unknown_entries:
        raise DataError(
            f"{unknown_entries} entries of the export's log are about no item in it; export the project again"
        )
    counts = Counter(s.task for s in snapshot.submissions if s.verdict == "judged" and not s.adjudication)
    with store.writing() as tx:
        if tx.c.scalar(select(items.c.id).limit(1)):
            raise ConflictError(f"{store.database.name}: has items already; import into a new project")
        put_config(tx, snapshot.config)
        for version in snapshot.guidelines:
            put_guideline(tx, str(version["text"]))
        for batch in snapshot.batches:
            put_batch(tx, batch["name"], priority=batch["priority"], paused=batch["paused"])
        insert_items(tx, snapshot.tasks, snapshot.config)
        for uid, count in counts.items():
            overlap_too_low = and_(items.c.uid == uid, items.c.role.is_(None), items.c.overlap < count)
            tx.c.execute(update(items).where(overlap_too_low).values(overlap=count))
        person_ids = _load_submissions(tx, snapshot)
        rows = dict(tx.c.execute(select(items.c.uid, items.c.id)).all())
        for entry in snapshot.log:
            person = None if entry["person"] is None else _person(tx, person_ids, entry["person"])
            add_event(tx.c, entry["at"], entry["kind"], entry["body"], person=person, item=rows[entry["item"]])
    return {"tasks": len(snapshot.tasks), "submissions": len(snapshot.submissions)}


def _person(tx: Transaction, person_ids: dict[str, int], pseudonym: str) -> int:
    """The number of the person with this pseudonym; an unknown one is added as imported."""
    if pseudonym not in person_ids:
        values = {"pseudonym": pseudonym, "name": pseudonym, "name_key": f"imported/{pseudonym}", "role": "annotator"}
        added = tx.c.execute(insert(people).values(**values, state="imported", created_at=tx.now))
        person_ids[pseudonym] = added.inserted_primary_key[0]  # pyright: ignore[reportOptionalSubscript]
    return person_ids[pseudonym]


def _load_submissions(tx: Transaction, snapshot: Snapshot) -> dict[str, int]:
    """Store the submissions; returns the numbers of people by pseudonym."""
    c = tx.c
    tasks = {task.id: task for task in snapshot.tasks}
    rows = {row.uid: row for row in c.execute(select(items))}
    person_ids = {row.pseudonym: row.id for row in c.execute(select(people.c.pseudonym, people.c.id))}
    by_task: dict[str, list[Submission]] = {}
    for submission in snapshot.submissions:
        person = _person(tx, person_ids, submission.annotator)
        item, task = rows[submission.task], tasks[submission.task]
        body = submission.model_dump(mode="json", exclude_defaults=True, exclude={"annotator", "task"})
        seq = tx.event("import", body, person=person, item=item.id)
        put_judgement(tx, seq, submission, item=item, person=person, replaces=None, passed=passes(task, submission))
        by_task.setdefault(submission.task, []).append(submission)
    for uid, submissions in by_task.items():
        item, by_annotators = rows[uid], [s for s in submissions if not s.adjudication]
        done = sum(s.verdict == "judged" for s in by_annotators) if item.role is None else 0
        settled = len(by_annotators) < len(submissions)
        values = {
            "done": done,
            "taken": done,
            "open": item.role is None and done < item.overlap and not settled,
            "flags": 0 if settled else sum(s.verdict == "flag" for s in by_annotators),
            "adjudicated": settled,
            "disputed": not settled
            and done >= item.overlap > 1
            and disagree(tasks[uid], by_annotators, majority=snapshot.config.majority),
        }
        c.execute(update(items).where(items.c.id == item.id).values(**values))
    c.execute(update(items).where(items.c.uid.in_(snapshot.retired)).values(retired=True, open=False, disputed=False))
    return person_ids


def without_small_groups(submissions: Iterable[Submission], least: int) -> tuple[tuple[Submission, ...], int]:
    """Remove the names of groups with fewer than ``least`` annotators; returns how many submissions that changed."""
    submissions = tuple(submissions)
    members: defaultdict[str | None, set[str]] = defaultdict(set)
    for s in submissions:
        members[s.cohort].add(s.annotator)
    small = {cohort for cohort, annotators in members.items() if cohort is not None and len(annotators) < least}
    anonymous = tuple(s.model_copy(update={"cohort": None}) if s.cohort in small else s for s in submissions)
    return anonymous, sum(s.cohort in small for s in submissions)
