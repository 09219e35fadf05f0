"""Everything the before/after page shows, as plain values the pipeline fills in.

A part that a run does not have stays empty and its reason goes into ``missing``; the page then
says the reason in a sentence. Three helpers turn what a run leaves behind into parts:
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
    """File they were read from, relative to the run folder."""
    command: str = ""
    """Command that makes the file again."""


class Stage(Record):
    """One stage of the pipeline, as it went."""

    name: str
    """Name in the recipe."""
    status: Literal["ran", "cached"]
    """``cached``: its inputs had not changed, so an earlier result was used."""
    seconds: Number
    """Time it took in this run, in seconds."""
    fingerprint: str
    """Hash of its settings and inputs."""
    counts: dict[str, int] = Field(default_factory=dict)
    """What went in and came out, for example ``{"pairs": 1200, "refused": 3}``."""


class WinRateRow(Record):
    """One model against another on the same held-out prompts."""

    model: str
    """Whose wins are counted."""
    against: str
    """The other model."""
    metric: str
    """Who decided, as words that follow "judged by", for example ``gold (simulated)``."""
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
    """The share of wins at equal length; None where it was not estimated."""

    @property
    def name(self) -> str:
        """Short label, for example ``PPO over SFT``."""
        return f"{self.model} over {self.against}"

    @classmethod
    def of(cls, model: str, against: str, metric: str, result: WinRate) -> "WinRateRow":
        """Name the two models and the judge of a :func:`~trimtab.evals.winrate.win_rate`."""
        numbers = {name: getattr(result, name) for name in ("rate", "low", "high", "n", "wins", "ties", "losses")}
        return cls(model=model, against=against, metric=metric, **numbers)


class Reading(Record):
    """The verdicts of one blind reader."""

    reader: str
    """Name or pseudonym."""
    kind: Literal["human", "ai"]
    """``human``: a person; ``ai``: a language model."""
    model: str
    """Whose wins are counted."""
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
    """By model: answers that the reader called sensible, and answers that they rated."""
    name: str = ""
    """Of the reading: that of its file."""


class Series(Record):
    """One curve over the steps of training."""

    panel: str
    """Which chart it belongs to: a key of ``report.PANELS``, or a title of your own."""
    name: str
    """What it is; shown at its end where a chart has several."""
    x: tuple[Number, ...]
    """Steps."""
    y: tuple[Number, ...]
    """Values; NaN leaves a gap."""
    low: tuple[Number, ...] | None = None
    """Lower ends of intervals around ``y``, if there are any."""
    high: tuple[Number, ...] | None = None
    """Upper ends."""
    unit: str = ""
    """Unit of ``y``; ``share`` is written in percent."""
    x_unit: str = "optimiser step"
    """What ``x`` counts."""
    file: str = ""
    """File it was read from, relative to the run folder."""

    @model_validator(mode="after")
    def _same_lengths(self) -> "Series":
        _same_lengths(self.name, x=self.x, y=self.y, low=self.low, high=self.high)
        return self


class ScoreCurve(Record):
    """One reward along the run, for the chart against √KL."""

    name: str
    """For example ``proxy`` or ``gold (simulated)``."""
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
    """True: ``kl`` is from a reference that moved along (``align.reference_update``), not from the starting policy."""
    scores: tuple[ScoreCurve, ...]
    """The reward that training maximised, and the scores compared with it."""

    @model_validator(mode="after")
    def _same_lengths(self) -> "RewardAgainstKL":
        _same_lengths("reward against KL", step=self.step, kl=self.kl, **{s.name: s.y for s in self.scores})
        return self


class Answer(Record):
    """One model's answer to an example's prompt."""

    model: str
    """Which model."""
    text: str
    """What it said, unchanged; the page neutralises and shortens it."""
    proxy: float | None = None
    """What training maximised: the reward model's score, or the total of the recipe's rewards."""
    gold: float | None = None
    """Score of the held-out judge (simulated annotators), where there is one."""
    kl: float | None = None
    """log p(answer) under this model minus under the starting policy, in nats."""
    finish_reason: Literal["stop", "length"] | None = None
    """``stop``: ended by itself; ``length``: cut at the token limit."""
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
    """Seed of the random ones."""
    ranked_by: str
    """The score whose gain made the best, the worst and the typical one: ``gold`` or ``proxy``; empty: no answer has a
    score, and all were drawn at random."""


class ProbeColumn(Record):
    """Text probes of one model's answers."""

    model: str
    """Which model."""
    values: dict[str, Number]
    """As :func:`~trimtab.evals.probes.probe_table` gives them."""


class Alarm(Record):
    """A monitor that fired."""

    name: str
    """Which one."""
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
    """One per model, from the earliest to the latest; None where it was not measured."""
    change: Estimate
    """From the first model to the last, with a 95 % interval: of shares the difference, otherwise relative."""
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
    """New judgements, where the round made or collected them."""
    label_source: str = ""
    """Who judged."""
    preferences: int | None
    """New preferences made from them."""
    judge: str = ""
    """``gold`` or ``proxy``: what judged the answers; empty: nothing did."""
    over_pretrained: Estimate | None
    """Win rate of the round's policy over the pretrained model."""
    over_before: Estimate | None
    """Win rate over the model that the round started from."""
    kl: Estimate | None
    """KL per answer from the model that the round started from, in nats."""
    means: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Mean score by judge, of the model that the round started from and of its policy. Each round has a reward model
    of its own, so ``proxy`` can be compared within a round only."""


class ReportData(Record):
    """The whole page."""

    title: str
    """What was done, in a few words."""
    about: str = ""
    """What the model was to learn, as one sentence; empty: the recipe does not say."""
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
    """True: preferences or the gold reward come from simulated people, and the page says so on top."""
    notice: str
    """Text of that banner, or for real preferences a line about where they came from (may be empty)."""
    seconds: Number
    """Wall time of the run, in seconds."""
    peak_memory_gb: float | None = None
    """Largest resident memory, in 10⁹ bytes."""
    first: str = "Pretrained"
    """Name of the first model, as used in win rates, answers and probes: the pretrained one where there is one."""
    before: str = "SFT"
    """Name of the model that alignment started from; equal to ``first`` in a run without SFT."""
    after: str = "PPO"
    """Name of the last model."""
    spoken: dict[str, str] = Field(default_factory=dict)
    """What a sentence calls a model, where that is not its name, for example ``the pretrained model``."""
    captions: dict[str, str] = Field(default_factory=dict)
    """What was done to each model, in a few plain words."""
    stages: tuple[Stage, ...] = ()
    """Stages in order."""
    rounds: tuple[RoundRow, ...] = ()
    """Each round so far; empty in the first round."""
    win_rates: tuple[WinRateRow, ...] = ()
    """The first one with ``after`` against ``first`` makes the headline."""
    readings: tuple[Reading, ...] = ()
    """The verdicts of each blind reader; taken together they are rows of ``win_rates``."""
    population: Population | None = None
    """Blind readings by cohort; None: no reader named a cohort."""
    kl: Estimate | None = None
    """Mean KL(after ‖ before) per answer on held-out prompts, in nats."""
    series: tuple[Series, ...] = ()
    """Training curves."""
    against_kl: RewardAgainstKL | None = None
    """Proxy, held-out and gold reward against √KL."""
    turns: tuple[Turn, ...] = ()
    """Where each of these scores turned; empty where a run has none of them."""
    fits: tuple[GaoFit, ...] = ()
    """The form of Gao et al. for online alignment, fitted to each score; empty with fewer than six points."""
    model_errors: MemberErrors | None = None
    """How far the run's reward models err together; None where there is one."""
    reward_model: RewardModelEval | None = None
    """Held-out accuracy and calibration."""
    objectives: dict[str, RewardModelEval | None] = Field(default_factory=dict)
    """The same for each objective of the reward model; None: it has no held-out pair; empty: there is one objective."""
    annotators: tuple[str, ...] = ()
    """Habits of annotators that the reward model learned with, and what they gain on held-out votes, line by line."""
    ceiling: Estimate | None = None
    """How often one annotator agrees with another: the most an accuracy can mean."""
    agreement: tuple[Estimate, ...] = ()
    """Agreement statistics; an undefined one has no value and a reason."""
    balance: tuple[Measure, ...] = ()
    """Harmlessness, helpfulness and preachiness, before and after; empty where the run did not measure them."""
    labels: tuple[str, ...] = ()
    """What AI judges and the router said about the labels, line by line."""
    probes: tuple[ProbeColumn, ...] = ()
    """One per model, from the earliest to the latest."""
    gain: Gain | None = None
    """What the last model's gain in reward is made of; None where no reward was maximised."""
    capability: CapabilityReport | None = None
    """What alignment cost; None where the run did not check it."""
    suites: SuiteResults | None = None
    """Suites on this run's checkpoints (`trimtab eval RUN:MODEL RUN --suite …`); None: there are none."""
    alarms: tuple[Alarm, ...] | None = None
    """Alarms that fired; empty: monitors ran and none fired; None: none ran."""
    examples: Examples | None = None
    """Answers to read."""
    sources: dict[Section, Source] = Field(default_factory=dict)
    """For each section: the file its numbers came from and the command that makes it."""
    missing: dict[str, str] = Field(default_factory=dict)
    """What this run does not have (a section's name, or anything such as ``base``), and why, as a sentence."""


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
    """One curve out of logged rows; None if no row has the key.

    Rows without the key or without ``x`` are passed over (different events log different things).
    A value of None, as JSON writes NaN, stays as a gap.

    Args:
        rows: as read from ``metrics.jsonl``.
        key: the value to follow.
        panel: the chart it belongs to.
        name: label; the key if empty.
        unit: unit of the values.
        x: key of the position.
        x_unit: what ``x`` counts.
        ends: keys of the lower and upper interval end, where they are logged.
        file: where the rows came from.
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
    """Rewards against KL out of logged rows; None if no row has the KL and every reward.

    Args:
        rows: as read from ``metrics.jsonl``.
        kl: key of the KL per answer, in nats.
        scores: label to key of each reward; those that no row has are left out.
        spreads: label to the standard deviation of that reward over the starting policy's answers.
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
    """Choose what the page shows: the typical one, some drawn by seed, the best and the worst.

    The gain of an example is the score of ``after`` minus that of ``before``: gold where every such
    answer has one, else proxy. The random ones are drawn first, from all but the typical one, so
    that they are a fair sample and not what the others left; best and worst follow among the rest.
    Where no answer has a score, all are drawn at random.

    Args:
        examples: all held-out prompts with their answers.
        before: name of the model that the gain is measured from.
        after: name of the last model.
        seed: of the draw.
        draw: how many are drawn at random.
        best: how many with the largest gain.
        worst: how many with the smallest gain.

    Raises:
        DataError: no examples, an example without both answers, or one without a score where others have one.
    """
    if not examples:
        raise DataError("no examples to choose from; evaluate the models on held-out prompts first")
    pairs = [({a.model: a for a in example.answers}) for example in examples]
    for example, answers in zip(examples, pairs, strict=True):
        if before not in answers or after not in answers:
            raise DataError(
                f"example {example.id}: answers by {list(answers)}, expected {before} and {after} among them"
            )
    if all(answer.gold is None and answer.proxy is None for answers in pairs for answer in answers.values()):
        drawn = random.Random(seed).sample(range(len(examples)), min(draw + best + worst + 1, len(examples)))
        return Examples(shown=tuple(examples[i] for i in drawn), total=len(examples), seed=seed, ranked_by="")
    ranked_by: Literal["gold", "proxy"] = (
        "gold" if all(a[m].gold is not None for a in pairs for m in (before, after)) else "proxy"
    )
    gains: list[float] = []
    for example, answers in zip(examples, pairs, strict=True):
        first, last = getattr(answers[before], ranked_by), getattr(answers[after], ranked_by)
        if first is None or last is None:
            raise DataError(f"example {example.id}: no gold and no proxy score for both answers; score them first")
        gains.append(last - first if math.isfinite(last - first) else -math.inf)
    order = sorted(range(len(examples)), key=lambda i: gains[i])
    middle = order[len(order) // 2]
    others = [i for i in range(len(examples)) if i != middle]
    drawn = random.Random(seed).sample(others, min(draw, len(others)))
    rest = [i for i in order if i != middle and i not in drawn]
    top = rest[::-1][:best]
    bottom = [i for i in rest if i not in top][:worst]
    picked = [(middle, "typical"), *((i, "random") for i in drawn)]
    picked += [(i, "best") for i in top] + [(i, "worst") for i in bottom]
    shown = tuple(examples[i].model_copy(update={"pick": pick}) for i, pick in picked)
    return Examples(shown=shown, total=len(examples), seed=seed, ranked_by=ranked_by)


def _same_lengths(what: str, **columns: Sequence[float] | None) -> None:
    lengths = {name: len(values) for name, values in columns.items() if values is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{what}: columns differ in length: {lengths}")
