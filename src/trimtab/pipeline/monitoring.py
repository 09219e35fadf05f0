"""What online alignment logs in addition to its own numbers: the gold utility, text probes, and alarms.

None of this is used for training. Each step's probes are stored in ``probes.jsonl``, from which a resumed run rebuilds
its tests. Alarms are stored in ``alarms.jsonl``.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from trimtab.errors import TrimtabError
from trimtab.evals import RunAlarm, RunAlarms, by_prompt, probe_answers, rows_of
from trimtab.pipeline.context import Context
from trimtab.records import Rollout
from trimtab.storage import MetricsLog, read_metrics
from trimtab.storage.watched import ALARMS
from trimtab.trainers import Metrics, RlConfig

PROBES = "probes.jsonl"
"""File of the means of each probe by prompt, one line per step."""


class RunMonitor:
    """A :data:`~trimtab.trainers.rl.Monitor` of one alignment; use as a context manager.

    Args:
        context: context of the stage; its ``alarms`` section may be None.
        config: configuration of the alignment.
    """

    def __init__(self, context: Context, config: RlConfig) -> None:
        self._context, self._folder, self._gold = context, context.folder("align"), context.gold()
        self._limit = config.sampler.max_new_tokens
        settings = context.config.alarms
        self._alarms = None if settings is None else RunAlarms(settings, config.steps)
        self._logs: tuple[MetricsLog, MetricsLog] | None = None
        self._raised = 0
        self._project: Path | None = None
        if settings is not None and settings.queue is not None:
            from trimtab.pipeline.alarm_queue import queue_samples  # needs the extra web, so it fails before training

            self._project, self._queue_samples = Path(os.path.expanduser(settings.queue)), queue_samples

    def __enter__(self) -> "RunMonitor":
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for log in self._logs or ():
                stack.callback(log.close)

    def __call__(self, step: int, rollouts: Sequence[Rollout]) -> Metrics:
        """The numbers of a step, from 1; prints alarms on the console."""
        metrics: Metrics = {}
        if self._gold is not None:
            metrics["gold"] = sum(float(self._gold(r.prompt, r.completion)) for r in rollouts) / len(rollouts)
        if self._alarms is None:
            return metrics
        probes, alarms = self._logs or self._begin(self._alarms, step)
        values = probe_answers(rollouts, self._limit)
        row = rows_of(by_prompt(values, rollouts), step)
        probes(row)
        for probe, level in self._alarms.add(row["means"]):
            alarm = self._alarms.describe(step, probe, level, values)
            alarms(alarm.model_dump(mode="json"))
            self._raised += 1
            self._context.ui.say(f"  ALARM ({level}) at step {step}: {alarm.title}: {alarm.message}. {alarm.advice}")
            self._queue(alarm, values[probe], rollouts)
        means = {f"probe/{name}": sum(numbers.values()) / len(numbers) for name, numbers in values.items()}
        return metrics | means | {"alarms": float(self._raised)}

    def _queue(self, alarm: RunAlarm, values: Mapping[str, float], rollouts: Sequence[Rollout]) -> None:
        """Put the answers of an alarm into the annotation project; if that fails, training continues."""
        if self._project is None:
            return
        try:
            text = self._queue_samples(self._project, alarm, values, rollouts, self._folder / "samples")
        except (TrimtabError, OSError) as error:
            text = f"the answers behind the alarm are not in {self._project}: {error}; trimtab watch shows them"
        self._context.ui.say(f"    {text}")

    def _begin(self, alarms: RunAlarms, step: int) -> tuple[MetricsLog, MetricsLog]:
        """Open the logs without lines of this and later steps, and rebuild the tests from the earlier steps."""
        self._logs = logs = (MetricsLog(self._folder, step - 1, PROBES), MetricsLog(self._folder, step - 1, ALARMS))
        for row in read_metrics(self._folder / PROBES):
            alarms.add(row["means"])
        self._raised = len(read_metrics(self._folder / ALARMS))
        return logs


def read_alarms(context: Context) -> list[RunAlarm]:
    """The alarms that were raised while the policy trained, oldest first."""
    rows = read_metrics(context.folder("align") / ALARMS)
    return [RunAlarm.model_validate({key: row[key] for key in RunAlarm.model_fields}) for row in rows]
