"""A whole project at one moment: what exports are made from, and what an import fills a project with."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, insert, select, update

from trimtab.errors import ConflictError, DataError
from trimtab.records.annotation import Submission, Task, disagree, passes
from trimtab.storage.labels import LabelStore
from trimtab.storage.project import ProjectConfig
from trimtab.storage.rows import add_event, submission_of, task_of
from trimtab.storage.schema import batches, events, guidelines, items, judgements, people
from trimtab.storage.tasks import unusable


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A whole project at one moment."""

    config: ProjectConfig
    """Its settings."""
    tasks: tuple[Task, ...]
    """All tasks, in the order they were added."""
    submissions: tuple[Submission, ...]
    """Everybody's current word, oldest first."""
    guidelines: tuple[dict[str, Any], ...]
    """All versions."""
    batches: tuple[dict[str, Any], ...]
    """Names, priorities, pauses."""
    retired: tuple[str, ...]
    """Items that were taken out."""
    kept: dict[str, int]
    """Events that are not in ``submissions``: forms that came late, judgements that were taken back."""


def take_snapshot(store: LabelStore) -> Snapshot:
    """All of the project in one consistent snapshot."""
    with store.database.read() as c:
        tasks = [
            task_of(row).model_copy(update={"overlap": None if row.inherits else row.overlap})
            for row in c.execute(select(items).order_by(items.c.id))
        ]
        rows = c.execute(
            select(events.c.body, people.c.pseudonym, items.c.uid, items.c.role, items.c.retired)
            .select_from(judgements)
            .join(events, events.c.seq == judgements.c.seq)
            .join(people, people.c.id == judgements.c.person_id)
            .join(items, items.c.id == judgements.c.item_id)
            .order_by(judgements.c.seq)
        ).all()
        other = Counter(c.scalars(select(events.c.kind).where(events.c.kind.in_(("late", "undo")))).all())
        return Snapshot(
            config=store.config(c),
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
            kept={"late": other["late"], "undone": other["undo"]},
        )


_WIDEST = ProjectConfig(max_answers=9, max_characters=1_000_000)
"""What fitted a project once stays in it, so an import asks for less than adding an item does."""


def load_snapshot(store: LabelStore, snapshot: Snapshot) -> dict[str, int]:
    """Fill an empty project with a snapshot, whole or not at all.

    Raises:
        ConflictError: the project has items already.
        DataError: an item cannot be stored.
    """
    twice = len(snapshot.tasks) - len({task.id for task in snapshot.tasks})
    if twice:
        raise DataError(f"the export holds {twice} items twice")
    for task in snapshot.tasks:
        reason = unusable(task, _WIDEST)
        if reason is not None:
            raise DataError(f"item {task.id!r} of the export cannot be read: {reason}")
    counts = Counter(s.task for s in snapshot.submissions if s.verdict == "judged" and not s.adjudication)
    with store.database.write() as c:
        if c.scalar(select(items.c.id).limit(1)):
            raise ConflictError(f"{store.database.name}: has items already; import into a new project")
        store.put_config(c, snapshot.config)
        for version in snapshot.guidelines:
            store.put_guideline(c, str(version["text"]))
        for batch in snapshot.batches:
            store.put_batch(c, batch["name"], priority=batch["priority"], paused=batch["paused"])
        store.insert_items(c, snapshot.tasks, snapshot.config)
        for uid, count in counts.items():
            wider = and_(items.c.uid == uid, items.c.role.is_(None), items.c.overlap < count)
            c.execute(update(items).where(wider).values(overlap=count))
        _load_submissions(store, c, snapshot)
    return {"tasks": len(snapshot.tasks), "submissions": len(snapshot.submissions)}


def _load_submissions(store: LabelStore, c: Connection, snapshot: Snapshot) -> None:
    now = store.clock()
    tasks = {task.id: task for task in snapshot.tasks}
    rows = {row.uid: row for row in c.execute(select(items))}
    known = {row.pseudonym: row.id for row in c.execute(select(people.c.pseudonym, people.c.id))}
    said: dict[str, list[Submission]] = {}
    for submission in snapshot.submissions:
        if submission.annotator not in known:
            made = c.execute(
                insert(people).values(
                    pseudonym=submission.annotator,
                    name=submission.annotator,
                    name_key=f"imported/{submission.annotator}",
                    role="annotator",
                    state="imported",
                    created_at=now,
                )
            )
            known[submission.annotator] = made.inserted_primary_key[0]  # pyright: ignore[reportOptionalSubscript]
        person, item, task = known[submission.annotator], rows[submission.task], tasks[submission.task]
        body = submission.model_dump(mode="json", exclude_defaults=True, exclude={"annotator", "task"})
        seq = add_event(c, now, "import", body, person=person, item=item.id)
        c.execute(
            insert(judgements).values(
                seq=seq,
                item_id=item.id,
                person_id=person,
                verdict=submission.verdict,
                seconds=submission.seconds,
                passed=passes(task, submission),
                adjudication=submission.adjudication,
                at=now,
            )
        )
        said.setdefault(submission.task, []).append(submission)
    for uid, found in said.items():
        item, first = rows[uid], [s for s in found if not s.adjudication]
        done = sum(s.verdict == "judged" for s in first) if item.role is None else 0
        settled = len(first) < len(found)
        values = {
            "done": done,
            "taken": done,
            "open": item.role is None and done < item.overlap and not settled,
            "flags": 0 if settled else sum(s.verdict == "flag" for s in first),
            "adjudicated": settled,
            "disputed": not settled and done >= item.overlap > 1 and disagree(tasks[uid], first),
        }
        c.execute(update(items).where(items.c.id == item.id).values(**values))
    c.execute(update(items).where(items.c.uid.in_(snapshot.retired)).values(retired=True, open=False, disputed=False))


def without_small_groups(submissions: Iterable[Submission], least: int) -> tuple[tuple[Submission, ...], int]:
    """Take away the names of groups of fewer than ``least`` annotators; returns how many submissions that concerned."""
    found = tuple(submissions)
    members: defaultdict[str | None, set[str]] = defaultdict(set)
    for s in found:
        members[s.cohort].add(s.annotator)
    small = {cohort for cohort, who in members.items() if cohort is not None and len(who) < least}
    kept = tuple(s.model_copy(update={"cohort": None}) if s.cohort in small else s for s in found)
    return kept, sum(s.cohort in small for s in found)
