"""People in the annotation app: a run puts answers into the queue and reads judgements from it."""

import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from trimtab.errors import Interrupted
from trimtab.pipeline.config import HumanConfig
from trimtab.pipeline.context import Context
from trimtab.records import Comparison, Judgement
from trimtab.records.annotation import Task, judgements_of
from trimtab.storage.database import Database
from trimtab.storage.labels import LabelStore
from trimtab.storage.snapshot import take_snapshot, without_small_groups
from trimtab.storage.tasks import unusable


class AppPeople:
    """The queue of an annotation project; the app itself is a separate process.

    Args:
        context: context of the stage that needs judgements.
        config: the project, and how long to wait.
    """

    def __init__(self, context: Context, config: HumanConfig) -> None:
        folder = Path(os.path.expanduser(config.project)) if config.project else context.run.first.path / "annotation"
        self._stop, self._say = context.stop_requested, context.ui.say
        self._batch = f"{context.config.name}-{context.fingerprints['label'][:12]}"
        self._deadline = time.monotonic() + 60 * config.wait_minutes
        self._command = f"trimtab annotate {folder}" + (" --database …" if config.database else "")
        self._database = Database(config.database or f"sqlite:///{folder / 'labels.db'}")
        try:
            self._store = LabelStore(self._database)
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> "AppPeople":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def fit(self, items: Sequence[Comparison]) -> list[Comparison]:
        """The items that this project can show to people; the others are counted and reported."""
        config = self._store.config()
        checks = {task.id for task in take_snapshot(self._store).tasks if task.check is not None}
        fitting = [item for item in items if item.id not in checks and unusable(self._task(item, 1), config) is None]
        if len(fitting) < len(items):
            self._say(
                f"  {len(items) - len(fitting)} items cannot be shown to people and are left out "
                f"({len(checks.intersection(i.id for i in items))} are check items of the project)"
            )
        return fitting

    def ask(self, items: Sequence[Comparison], overlap: int) -> None:
        """Queue items for ``overlap`` people each; items already in the queue stay there."""
        added, _ = self._store.add(self._task(item, overlap) for item in items)
        if overlap > 1 and added < len(items):
            self._store.raise_overlap([item.id for item in items], overlap)
        if added:
            self._say(f"  {added} items are waiting for people {self.where}")

    def wait(self, items: Sequence[Comparison], enough: float = 1.0) -> None:
        """Return when the share ``enough`` of the needed judgements is stored.

        Raises:
            Interrupted: after ``wait_minutes``, or after Ctrl-C; the message says where people judge.
        """
        ids = {item.id for item in items}
        while True:
            done, needed = self._store.judgement_counts(ids)
            if done >= enough * needed:
                return
            seconds_left = self._deadline - time.monotonic()
            if self._stop() or seconds_left <= 0:
                exhausted = sum(task.id in ids for task, _ in self._store.exhausted(limit=None))
                hint = ""
                if exhausted:
                    hint = f" ({exhausted} items need another annotator: invite one, or settle them as an adjudicator)"
                raise Interrupted(
                    f"{done} of {needed} judgements are in, {enough:.0%} are needed; let people judge {self.where}"
                    f"{hint}, then run the same command again"
                )
            time.sleep(min(2.0, seconds_left))

    def judgements(self, items: Collection[Comparison]) -> tuple[list[Judgement], set[str]]:
        """People's judgements of these items so far, and the ids of retired items.

        They are ordered by each person's first judgement of an item, so a changed judgement keeps its place.
        """
        snapshot = take_snapshot(self._store)
        ids = {item.id for item in items}
        retired = ids.intersection(snapshot.retired)
        tasks = {task.id: task for task in snapshot.tasks if task.id in ids - retired}
        submissions, _ = without_small_groups(snapshot.submissions, snapshot.config.min_cell)
        first = self._store.first_versions()
        submissions = sorted(submissions, key=lambda s: first.get((s.task, s.annotator), 0))
        return [j for s in submissions if s.task in tasks for j in judgements_of(tasks[s.task], s)], retired

    @property
    def where(self) -> str:
        """Part of a sentence: how people open the queue."""
        address = self._store.address
        return f"at {address} (started with `{self._command}`)" if address else f"with `{self._command}`"

    def _task(self, item: Comparison, overlap: int) -> Task:
        return Task.of(item.prompt, item.completions, id=item.id, batch=self._batch, overlap=overlap)
