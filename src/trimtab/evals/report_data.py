"""Everything that the before/after page shows, as plain values that the pipeline fills in.

A part that a run does not have stays empty, and its reason goes into ``missing``; the page then
states the reason in a sentence. Three helpers turn the logs and answers of a run into parts:
:func:`series_from_metrics`, :func:`reward_against_kl` and :func:`choose_examples`.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from trimtab.errors import DataError
from trimtab.evals.balance import Measure
from trimtab.evals.gain import Gain
from trimtab.evals.members import MemberErrors
from trimtab.evals.reward_model import RewardModelEval
from trimtab.evals.suite_results import SuiteResults
from trimtab.evals.turns import GaoFit, Turn
from trimtab.evals.winrate import WinRate
from trimtab.feedback.intervals import Estimate, Number
from trimtab.feedback.populations import Population
from trimtab.records import Record

Section = Literal[
    "win_rates",
    "readings",
    "capability",
    "balance",
    "reward_against_kl",
    "curves",
    "reward_model",
    "agreement",
    "probes",
    "alarms",
    "examples",
]
"""The sections of the page; keys of ``ReportData.sources``."""


class Source(Record):
    """Where a figure's numbers came from."""

    file: str
    """File that they were read from, relative to the run folder."""
    command: str = ""
    """Command that makes the file again."""


class Stage(Record):
    """One stage of the pipeline in this run."""

    name: str
    """Name in the recipe."""
    status: Literal["ran", "cached"]
    """``cached``: its inputs had not changed, so an earlier result was used."""
    seconds: Number
    """Time that it took in this run, in seconds."""
    fingerprint: str
    """Hash of its settings and inputs."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Counts of inputs and outputs, for example ``{"pairs": 1200, "refused": 3}``."""


class WinRateRow(Record):
    """One model against another on the same held-out prompts."""

    model: str
    """The model whose wins are counted."""
    against: str
    """The other model."""
    metric: str
    """Who decided, as a phrase that follows "judged by", for example ``gold (simulated)``."""
    rate: Number
    """Share of prompts won, a tie counting half."""
    low: Number
    """Lower end of the 95 % interval."""
    high: Number
    """Upper end of the 95 % interval."""
    n: int
    """Prompts compared."""
    wins: int
    """Prompts on which ``model`` was better."""
    ties: int
    """Prompts without a difference."""
    losses: int
    """Prompts on which ``against`` was better."""
    equal_length: Estimate | None = None
    """The win rate at equal length; None if it was not estimated."""

    @property
    def name(self) -> str:
        """Short label, for example ``PPO over SFT``."""
        return f"{self.model} over {self.against}"

    @classmethod
    def of(cls, model: str, against: str, metric: str, result: WinRate) -> "WinRateRow":
        """Make a row from the names of the models and the judge, and a :func:`~trimtab.evals.winrate.win_rate`."""
        numbers = {name: getattr(result, name) for name in ("rate", "low", "high", "n", "wins", "ties", "losses")}
        return cls(model=model, against=against, metric=metric, **numbers)


class Reading(Record):
    """The verdicts of one blind reader."""

    reader: str
    """Name or pseudonym."""
    kind: Literal["human", "ai"]
    """``human``: a person; ``ai``: a language model."""
    model: str
    """The model whose wins are counted."""
    against: str
    """The other model."""
    rate: Number
    """Share of prompts on which ``model`` was preferred, a tie counting half."""
    low: Number
    """Lower end of the 95 % interval."""
    high: Number
    """Upper end of the 95 % interval."""
    n: int
    """Prompts judged."""
    wins: int
    """Prompts on which ``model`` was preferred."""
    ties: int
    """Prompts without a preference."""
    losses: int
    """Prompts on which ``against`` was preferred."""
    unread: int = 0
    """Prompts that this reader left unanswered."""
    sensible: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """By model: the number of answers that the reader called sensible, and the number that they rated."""
    name: str = ""
    """Name of the reading, from its file."""


class Series(Record):
    """One curve over the steps of training."""

    panel: str
    """The chart that it belongs to: a key of ``report.PANELS``, or your own title."""
    name: str
    """Label of the curve; shown at its end if a chart has several curves."""
    x: tuple[Number, ...]
    """Steps."""
    y: tuple[Number, ...]
    """Values; NaN leaves a gap."""
    low: tuple[Number, ...] | None = None
    """Lower ends of intervals around ``y``, if there are any."""
    high: tuple[Number, ...] | None = None
    """Upper ends."""
    unit: str = ""
    """Unit of ``y``; ``share`` is written as a percentage."""
    x_unit: str = "optimiser step"
    """What ``x`` counts."""
    file: str = ""
    """File that it was read from, relative to the run folder."""

    @model_validator(mode="after")
    def _same_lengths(self) -> "Series":
        _same_lengths(self.name, x=self.x, y=self.y, low=self.low, high=self.high)
        return self


class ScoreCurve(Record):
    """One reward along the run, for the chart against √KL."""

    name: str
    """Name of the reward, for example ``proxy`` or ``gold (simulated)``."""
    y: tuple[Number, ...]
    """Mean reward at each point, in its own units."""
    spread: Number
    """Standard deviation of this reward over the starting policy's answers: the unit of the chart."""


class RewardAgainstKL(Record):
    """Rewards against the distance from the starting policy, point by point along the run."""

    step: tuple[Number, ...]
    """Optimiser step of each point."""
    kl: tuple[Number, ...]
    """KL(policy ‖ starting policy) per answer, in nats; an estimate below 0 is drawn at 0."""
    moving: bool = False
    """True: ``kl`` is from a moving reference (``align.reference_update``), not from the starting policy."""
    scores: tuple[ScoreCurve, ...]
    """The reward that training maximised, and the scores compared with it."""

    @model_validator(mode="after")
    def _same_lengths(self) -> "RewardAgainstKL":
        _same_lengths("reward against KL", step=self.step, kl=self.kl, **{s.name: s.y for s in self.scores})
        return self


class Answer(Record):
    """One model's answer to an example's prompt."""

    model: str
    """Name of the model."""
    text: str
    """Text of the answer, unchanged; the page makes it harmless and shortens it."""
    proxy: float | None = None
    """The score that training maximised: the reward model's, or the total of the recipe's rewards."""
    gold: float | None = None
    """Score of the held-out judge (simulated annotators), if there is one."""
    kl: float | None = None
    """log p(answer) under this model minus under the starting policy, in nats."""
    finish_reason: Literal["stop", "length"] | None = None
    """``stop``: the answer ended its turn; ``length``: it was cut at the token limit."""
    tokens: int | None = None
    """Length in tokens."""


class Example(Record):
    """One held-out prompt with every model's answer."""

    id: str
    """Id of the prompt; alarms refer to it."""
    prompt: str
    """The prompt."""
    answers: tuple[Answer, ...]
    """One per model, from the earliest to the latest."""
    pick: Literal["typical", "random", "best", "worst"] = "random"
    """Why it is shown: the median gain, drawn by seed, or among the largest or smallest gains."""


class Examples(Record):
    """The examples shown, and how they were chosen."""

    shown: tuple[Example, ...]
    """In page order."""
    total: int
    """Number of examples to choose from."""
    seed: int
    """Seed of the random draw."""
    ranked_by: str
    """The score whose gain ranks the examples: ``gold`` or ``proxy``; empty: no answer has a score, and all examples
    were drawn at random."""


class ProbeColumn(Record):
    """Text probes of one model's answers."""

    model: str
    """Name of the model."""
    values: dict[str, Number]
    """Values by name, from :func:`~trimtab.evals.probes.probe_table`."""


class Alarm(Record):
    """A monitor that fired."""

    name: str
    """Name of the monitor."""
    message: str
    """What it observed, with the value and the limit."""
    samples: tuple[str, ...] = ()
    """Ids of the prompts to look at."""


class CapabilityRow(Record):
    """One measure of the check for all models of a run."""

    name: str
    """What is measured."""
    unit: str
    """``share``, ``nats`` or ``perplexity``."""
    values: tuple[float | None, ...] = ()
    """One per model, from the earliest to the latest; None: not measured."""
    change: Estimate
    """Change from the first model to the last, with a 95 % interval: a difference for shares, otherwise relative."""
    limit: str
    """The largest loss without an alarm, in words."""
    fired: tuple[str, ...] = ()
    """Models at which the alarm fired."""
    reason: str = ""
    """Why there is no value, or a remark on it."""


class CapabilityReport(Record):
    """What the page shows of the check."""

    models: tuple[str, ...]
    """Names of the models, from the earliest to the latest."""
    rows: tuple[CapabilityRow, ...]
    """One per measure."""


class RoundRow(Record):
    """What one round of a run achieved on the held-out prompts."""

    round: int
    """Number, from 1."""
    labels: int | None
    """Number of new judgements; None: the round made or collected none."""
    label_source: str = ""
    """Who gave the new judgements."""
    preferences: int | None
    """Number of new preferences made from them."""
    judge: str = ""
    """What judged the held-out answers: ``gold`` or ``proxy``; empty: they were not judged."""
    over_pretrained: Estimate | None
    """Win rate of the round's policy over the pretrained model."""
    over_before: Estimate | None
    """Win rate over the model that the round started from."""
    kl: Estimate | None
    """KL per answer from the model that the round started from, in nats."""
    means: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Mean score by judge, of the model that the round started from and of its policy. Each round has its own reward
    model, so compare ``proxy`` only within a round."""


class ReportData(Record):
    """The whole page."""

    title: str
    """What was done, in a few words."""
    about: str = ""
    """What the model should learn, as one sentence; empty: the recipe does not say."""
    run: str
    """Name of the run."""
    recipe: str
    """Name or path of the recipe, as given."""
    created_at: str
    """When the report was written, ISO 8601 in UTC."""
    machine: str
    """Processor, cores and memory, in words."""
    versions: dict[str, str]
    """Versions of trimtab and its dependencies."""
    seeds: dict[str, int]
    """Seeds, by purpose."""
    simulated: bool
    """True: preferences or the gold reward come from simulated people, and a banner at the top of the page says so."""
    notice: str
    """Text of that banner, or for real preferences a line about their source (may be empty)."""
    seconds: Number
    """Wall time of the run, in seconds."""
    peak_memory_gb: float | None = None
    """Largest resident memory, in 10⁹ bytes."""
    first: str = "Pretrained"
    """Name of the first model in win rates, answers and probes: the pretrained model, if the run has it."""
    before: str = "SFT"
    """Name of the model that alignment started from; equal to ``first`` in a run without SFT."""
    after: str = "PPO"
    """Name of the last model."""
    spoken: dict[str, str] = Field(default_factory=dict)
    """Names of models in a sentence, if they differ from the plain names, for example ``the pretrained model``."""
    captions: dict[str, str] = Field(default_factory=dict)
    """What was done to each model, in a few plain words."""
    stages: tuple[Stage, ...] = ()
    """Stages in order."""
    rounds: tuple[RoundRow, ...] = ()
    """Each round so far; empty in the first round."""
    win_rates: tuple[WinRateRow, ...] = ()
    """Win rates; the first row with ``after`` against ``first`` makes the headline."""
    readings: tuple[Reading, ...] = ()
    """The verdicts of each blind reader; rows of ``win_rates`` combine them."""
    population: Population | None = None
    """Blind readings by cohort; None: no reader named a cohort."""
    kl: Estimate | None = None
    """Mean KL(after ‖ before) per answer on held-out prompts, in nats."""
    series: tuple[Series, ...] = ()
    """Training curves."""
    against_kl: RewardAgainstKL | None = None
    """Proxy, held-out and gold reward against √KL."""
    turns: tuple[Turn, ...] = ()
    """Where each of these scores turned; empty if a run has none of them."""
    fits: tuple[GaoFit, ...] = ()
    """The form of Gao et al. for online alignment, fitted to each score; empty with fewer than six points."""
    model_errors: MemberErrors | None = None
    """How far the run's reward models err together; None: there is only one."""
    reward_model: RewardModelEval | None = None
    """Held-out accuracy and calibration."""
    objectives: dict[str, RewardModelEval | None] = Field(default_factory=dict)
    """The same for each objective of the reward model; None: it has no held-out pair; empty: there is one objective."""
    annotators: tuple[str, ...] = ()
    """Habits of annotators that the reward model learned with, and their gain on held-out votes, line by line."""
    ceiling: Estimate | None = None
    """How often one annotator agrees with the others: the ceiling for a reward model's accuracy."""
    agreement: tuple[Estimate, ...] = ()
    """Agreement statistics; an undefined one has no value and a reason."""
    balance: tuple[Measure, ...] = ()
    """Harmlessness, helpfulness and preachiness, before and after; empty: the run did not measure them."""
    labels: tuple[str, ...] = ()
    """Reports of AI judges and the router on the labels, line by line."""
    probes: tuple[ProbeColumn, ...] = ()
    """One per model, from the earliest to the latest."""
    gain: Gain | None = None
    """The parts of the last model's gain in reward; None: no reward was maximised."""
    capability: CapabilityReport | None = None
    """Results of the capability check; None: the run did not make it."""
    suites: SuiteResults | None = None
    """Suites on this run's checkpoints (`trimtab eval RUN:MODEL RUN --suite …`); None: there are none."""
    alarms: tuple[Alarm, ...] | None = None
    """Alarms that fired; empty: monitors ran and none fired; None: none ran."""
    examples: Examples | None = None
    """Answers to read."""
    sources: dict[Section, Source] = Field(default_factory=dict)
    """For each section: the file that its numbers came from, and the command that makes the file."""
    missing: dict[str, str] = Field(default_factory=dict)
    """What this run does not have (a section's name, or another key such as ``base``), and why, as a sentence."""


def series_from_metrics(
    rows: Iterable[Mapping[str, Any]],
    key: str,
    *,
    panel: str,
    name: str = "",
    unit: str = "",
    x: str = "step",
    x_unit: str = "optimiser step",
    ends: tuple[str, str] | None = None,
    file: str = "metrics.jsonl",
) -> Series | None:
    """One curve from logged rows; None if no row has the key.

    Rows without the key or without ``x`` are skipped (different events log different values).
    A value of None, as JSON writes NaN, stays as a gap.

    Args:
        rows: as read from ``metrics.jsonl``.
        key: key of the value.
        panel: the chart that the curve belongs to.
        name: label; the key if empty.
        unit: unit of the values.
        x: key of the position.
        x_unit: what ``x`` counts.
        ends: keys of the lower and upper interval end, if they are logged.
        file: the file that the rows came from.
    """
    logged = [row for row in rows if key in row and row.get(x) is not None]
    if not logged:
        return None
    low, high = (
        tuple(row.get(end, math.nan) for row in logged) if any(end in row for row in logged) else None
        for end in ends or ("", "")
    )
    return Series(
        panel=panel,
        name=name or key,
        x=tuple(row[x] for row in logged),
        y=tuple(row[key] for row in logged),
        low=low,
        high=high,
        unit=unit,
        x_unit=x_unit,
        file=file,
    )


def reward_against_kl(
    rows: Iterable[Mapping[str, Any]],
    *,
    kl: str,
    scores: Mapping[str, str],
    spreads: Mapping[str, float],
    x: str = "step",
) -> RewardAgainstKL | None:
    """Rewards against KL from logged rows; None if no row has the KL and every reward.

    Args:
        rows: as read from ``metrics.jsonl``.
        kl: key of the KL per answer, in nats.
        scores: key of each reward, by label; rewards that no row has are left out.
        spreads: standard deviation of each reward over the starting policy's answers, by label.
        x: key of the optimiser step.
    """
    rows = list(rows)
    present = {label: key for label, key in scores.items() if any(key in row for row in rows)}
    complete = [row for row in rows if x in row and kl in row and all(key in row for key in present.values())]
    if not complete or not present:
        return None
    return RewardAgainstKL(
        step=tuple(row[x] for row in complete),
        kl=tuple(row[kl] for row in complete),
        scores=tuple(
            ScoreCurve(name=label, y=tuple(row[key] for row in complete), spread=spreads[label])
            for label, key in present.items()
        ),
    )


def choose_examples(
    examples: Sequence[Example],
    *,
    before: str,
    after: str,
    seed: int,
    draw: int = 14,
    best: int = 4,
    worst: int = 4,
) -> Examples:
    """Choose the examples that the page shows: the typical one, some drawn by seed, the best and the worst.

    The gain of an example is the score of ``after`` minus that of ``before``: gold if every such
    answer has a gold score, else proxy. Random examples are drawn first, from all but the typical
    one, so that they are a fair sample and not what the others left; the best and the worst are
    chosen among the rest. If no answer has a score, all examples are drawn at random.

    Args:
        examples: all held-out prompts with their answers.
        before: name of the model that the gain is measured from.
        after: name of the last model.
        seed: of the draw.
        draw: number of examples drawn at random.
        best: number of examples with the largest gain.
        worst: number of examples with the smallest gain.

    Raises:
        DataError: no examples, an example without both answers, or one without a score where others have one.
    """
    if not examples:
        raise DataError("no examples to choose from; evaluate the models on held-out prompts first")
    answers_by_model = [({a.model: a for a in example.answers}) for example in examples]
    for example, answers in zip(examples, answers_by_model, strict=True):
        if before not in answers or after not in answers:
            raise DataError(
                f"example {example.id}: answers by {list(answers)}, expected {before} and {after} among them"
            )
    if all(answer.gold is None and answer.proxy is None for answers in answers_by_model for answer in answers.values()):
        random_indices = random.Random(seed).sample(range(len(examples)), min(draw + best + worst + 1, len(examples)))
        return Examples(shown=tuple(examples[i] for i in random_indices), total=len(examples), seed=seed, ranked_by="")
    ranked_by: Literal["gold", "proxy"] = (
        "gold" if all(a[m].gold is not None for a in answers_by_model for m in (before, after)) else "proxy"
    )
    gains: list[float] = []
    for example, answers in zip(examples, answers_by_model, strict=True):
        score_before, score_after = getattr(answers[before], ranked_by), getattr(answers[after], ranked_by)
        if score_before is None or score_after is None:
            raise DataError(f"example {example.id}: no gold and no proxy score for both answers; score them first")
        gains.append(score_after - score_before if math.isfinite(score_after - score_before) else -math.inf)
    order = sorted(range(len(examples)), key=lambda i: gains[i])
    median_index = order[len(order) // 2]
    others = [i for i in range(len(examples)) if i != median_index]
    random_indices = random.Random(seed).sample(others, min(draw, len(others)))
    remaining = [i for i in order if i != median_index and i not in random_indices]
    best_indices = remaining[::-1][:best]
    worst_indices = [i for i in remaining if i not in best_indices][:worst]
    picks = [(median_index, "typical"), *((i, "random") for i in random_indices)]
    picks += [(i, "best") for i in best_indices] + [(i, "worst") for i in worst_indices]
    shown = tuple(examples[i].model_copy(update={"pick": pick}) for i, pick in picks)
    return Examples(shown=shown, total=len(examples), seed=seed, ranked_by=ranked_by)


def _same_lengths(what: str, **columns: Sequence[float] | None) -> None:
    lengths = {name: len(values) for name, values in columns.items() if values is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{what}: columns differ in length: {lengths}")
