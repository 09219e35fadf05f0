"""Alarms while a policy trains: what its answers do now and did not do at the start, with one error budget for the run.

The answers of the first steps give, for each probe, an upper bound of its mean at the start. From then on, every step
is tested: has the probe's mean risen above that bound by more than the probe's floor? The tests are those of
:mod:`trimtab.evals.betting`, which are valid at every step. With K probes and budget α, each bound and each test has an
error of α/2K. So in a run whose probes never rise by more than their floors, the probability of *any* alarm of any
probe at any step is at most α.

The budget does not promise that a rise is bad (some tasks want lists), or that a hack without a probe is seen.
``python -m benchmarks.alarms`` measures the rates of false and true alarms.

There are two levels: ``warning`` (risen by more than the floor) and ``alarm`` (risen by more than three floors). The
alarm has its own test, and is never raised without the warning, so that it costs no budget.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from trimtab.config import Config
from trimtab.evals.answer_probes import ANSWER_PROBES, ProbeFacts
from trimtab.evals.betting import RiseTest, upper_bound
from trimtab.records import Record, Rollout

LEVELS = {"warning": 1.0, "alarm": 3.0}
"""Each level with the rise that it tests, in floors."""

SAMPLES = 10
"""Largest number of answers that an alarm names."""

CUT, LENGTH = "cut", "length"
"""Probes that need more than the text."""


class AlarmConfig(Config):
    """Alarms during online alignment."""

    budget: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Largest probability of any false alarm in the whole run, over all probes and steps."""
    baseline: int = Field(default=5, ge=1)
    """Number of first steps; later answers are compared with theirs."""
    cooldown: int = Field(default=25, ge=1)
    """Steps before an alarm that persists is raised again."""
    queue: str | None = None
    """Folder of an annotation project that receives the answers behind each alarm, each paired with another answer to
    the same prompt, for people to compare; ``trimtab round RUN --votes FOLDER`` learns from their judgements. None: no
    queue."""


class RunAlarm(Record):
    """An alarm, as a line of ``alarms.jsonl``."""

    step: int
    """Step at which it was raised, from 1."""
    probe: str
    """Name of the probe."""
    level: str
    """``warning`` or ``alarm``."""
    title: str
    """The probe's name on a page."""
    message: str
    """What was observed, with the limit."""
    advice: str
    """What to do."""
    samples: tuple[str, ...]
    """Ids of up to ten answers of the step with the highest values of the probe."""


RUN_PROBES: dict[str, ProbeFacts] = {
    **ANSWER_PROBES,
    CUT: ProbeFacts(
        title="Answers without an end",
        counted="of answers are cut at the limit",
        floor=0.1,
        advice="Set align.missing_eos, lower policy.lr, or raise sampler.max_new_tokens.",
    ),
    LENGTH: ProbeFacts(
        title="Length",
        counted="of the longest allowed answer is used",
        floor=0.15,
        advice="The reward pays for length: lower its weight, or compare answers of like length when labelling.",
    ),
}
"""All probes of a run."""

Values = Mapping[str, Mapping[str, float]]
"""Probe → id of the answer → value."""


def probe_answers(rollouts: Sequence[Rollout], limit: int) -> dict[str, dict[str, float]]:
    """The value of every probe for every answer.

    Args:
        rollouts: the answers of a step.
        limit: largest number of tokens in an answer.
    """
    values: dict[str, dict[str, float]] = {name: {} for name in RUN_PROBES}
    for rollout in rollouts:
        prompt = rollout.prompt.text
        for name, probe in ANSWER_PROBES.items():
            values[name][rollout.id] = probe.value(prompt, rollout.text)
        values[CUT][rollout.id] = float(rollout.finish_reason != "stop")
        values[LENGTH][rollout.id] = min(1.0, len(rollout.tokens) / limit)
    return values


def by_prompt(values: Values, rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    """The mean of each probe over the answers to each prompt, which are not independent; in the prompts' order."""
    groups: dict[str, list[str]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.prompt.id, []).append(rollout.id)
    return {
        name: [math.fsum(probe_values[i] for i in ids) / len(ids) for ids in groups.values()]
        for name, probe_values in values.items()
    }


@dataclass(kw_only=True)
class _Watch:
    """The tests of one probe."""

    start: float
    """Mean at the start."""
    tests: dict[str, RiseTest]
    """The test of each level."""
    raised: dict[str, int]
    """Step at which each level was last raised."""


class RunAlarms:
    """Watches the probes of a run.

    Args:
        config: the settings.
        steps: number of planned steps of the run.
        probes: the probes to watch, by name.
    """

    def __init__(self, config: AlarmConfig, steps: int, probes: Mapping[str, ProbeFacts] = RUN_PROBES) -> None:
        self._config, self._probes = config, dict(probes)
        self._test_steps = max(1, steps - config.baseline)
        self._alpha = config.budget / (2 * len(self._probes))
        self._steps_seen = 0
        self._baseline_values: dict[str, list[float]] = {name: [] for name in self._probes}
        self._watches: dict[str, _Watch] = {}

    def log_evidence(self, probe: str) -> float:
        """Log E of a probe's warning; 0 before the first look."""
        watch = self._watches.get(probe)
        return 0.0 if watch is None else watch.tests["warning"].log_e

    def add(self, means: Mapping[str, Sequence[float]]) -> list[tuple[str, str]]:
        """Add a step.

        Args:
            means: the result of :func:`by_prompt`.

        Returns:
            (probe, level) of each alarm that the step raises, at most one per probe.
        """
        self._steps_seen += 1
        if self._steps_seen <= self._config.baseline:
            for name, baseline in self._baseline_values.items():
                baseline.extend(means.get(name, ()))  # a run that began before a probe existed continues without it
            if self._steps_seen == self._config.baseline:
                self._watches = {
                    name: self._watch(name) for name, baseline in self._baseline_values.items() if baseline
                }
            return []
        raised = []
        for name, watch in self._watches.items():
            level = self._level(watch, means[name])
            if level is not None:
                raised.append((name, level))
        return raised

    def _watch(self, name: str) -> _Watch:
        baseline = self._baseline_values[name]
        bound, floor = upper_bound(baseline, self._alpha), self._probes[name].floor
        tests = {level: RiseTest(bound + floors * floor, self._test_steps) for level, floors in LEVELS.items()}
        return _Watch(start=math.fsum(baseline) / len(baseline), tests=tests, raised={})

    def _level(self, watch: _Watch, values: Sequence[float]) -> str | None:
        """The highest level whose test has fired and that is due again."""
        log_threshold, highest = -math.log(self._alpha), None
        for level, test in watch.tests.items():
            fires = test.update(values) >= log_threshold and (level == "warning" or highest is not None)
            if fires:
                highest = level
        if highest is None or not values or math.fsum(values) / len(values) <= watch.tests[highest].bound:
            return None
        last_raised = watch.raised.get(highest)
        if last_raised is not None and self._steps_seen - last_raised < self._config.cooldown:
            return None
        watch.raised |= dict.fromkeys(list(LEVELS)[: list(LEVELS).index(highest) + 1], self._steps_seen)
        return highest

    def describe(self, step: int, probe: str, level: str, values: Values) -> RunAlarm:
        """The alarm of a step, with the answers behind it."""
        watch, facts, probe_values = self._watches[probe], self._probes[probe], values[probe]
        mean, limit = math.fsum(probe_values.values()) / len(probe_values), watch.tests[level].bound
        highest_values = sorted(
            (-value, position, name) for position, (name, value) in enumerate(probe_values.items()) if value > 0
        )
        return RunAlarm(
            step=step,
            probe=probe,
            level=level,
            title=facts.title,
            message=f"{mean:.0%} {facts.counted}, {watch.start:.0%} in the first {self._config.baseline} steps (limit "
            f"{limit:.0%}; all alarms of a run together are false with a probability of at most "
            f"{self._config.budget:.0%})",
            advice=facts.advice,
            samples=tuple(name for _, _, name in highest_values[:SAMPLES]),
        )


def rows_of(means: Mapping[str, Sequence[float]], step: int) -> dict[str, Any]:
    """A step's line of ``probes.jsonl``, from which a continued run rebuilds its tests."""
    return {"step": step, "means": {name: [round(x, 6) for x in values] for name, values in means.items()}}
