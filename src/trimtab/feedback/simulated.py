"""Simulated annotators with noise, biases and opinions, made from a gold utility and a seed.

An annotator perceives each answer as

    utility + Σ cohort weight · part + length bias · log₂(characters) + noise · Gumbel(0, 1)

and ranks by this value. With Gumbel noise, the probability that a beats b is σ((u_a − u_b) / noise), the
Bradley–Terry model, and a ranking of K answers follows Plackett–Luce. In a share of the judgements, the
annotator ignores the answers and chooses by position. This share is set so that over random orders the
first-shown of two answers wins with probability ``position_bias``, whatever the answers are (ties apart).

Everything about a judgement is drawn from (seed, item id, annotator), and everything about an
annotator from (seed, annotator), so the order and the batches of items do not matter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.errors import ConfigError, ScoringError, TrimtabError
from trimtab.feedback.callables import Utility, load_callable
from trimtab.records import Comparison, Judgement, content_id


class CohortConfig(Config):
    """A group of simulated annotators with its own opinion."""

    name: str
    """Name of the cohort, stored in each judgement's ``cohort``."""
    share: float = Field(default=1.0, gt=0.0)
    """Share of the annotators in this cohort, relative to the other cohorts' shares."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each part by name, for example ``tone: -0.5``; Σ weight × part is added to the utility."""


class SimulationConfig(Config):
    """Number and biases of the simulated annotators. The values are averages; individuals vary by ``spread``."""

    annotators: int = Field(default=5, ge=1)
    """Number of annotators, named simulated-00, simulated-01, …"""
    overlap: int = Field(default=1, ge=1)
    """Annotators per item."""
    seed: int = 0
    """Equal seeds give equal judgements."""
    noise: float = Field(default=0.4, ge=0.0)
    """Scale of the Gumbel noise on each answer, in utility units; 0: annotators see the utility exactly."""
    position_bias: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability that the first-shown of two answers wins, over random orders; 0.5: no bias, 0: the last always
    wins."""
    length_bias: float = 0.0
    """Utility added for each doubling of an answer's length in characters; negative: short answers win."""
    tie_threshold: float = Field(default=0.0, ge=0.0)
    """Answers whose perceived utility is at most this far below the best of their group tie with it."""
    skip_rate: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability that an item is skipped."""
    spread: float = Field(default=0.3, ge=0.0)
    """Standard deviation of the log of each annotator's factors on noise, biases and time; 0: no variation."""
    base_seconds: float = Field(default=4.0, ge=0.0)
    """Average decision time, in seconds."""
    reading_speed: float = Field(default=20.0, gt=0.0)
    """Characters read per second; 20 are about 200 words a minute."""
    cohorts: tuple[CohortConfig, ...] = ()
    """Groups of annotators; none: all have the same utility."""
    parts: str = "trimtab.feedback.gold.friendly_parts"
    """Dotted path of a function (prompt, completion) → parts by name; the cohorts' ``weights`` refer to these names."""

    @model_validator(mode="after")
    def _enough_annotators(self) -> "SimulationConfig":
        if self.overlap > self.annotators:
            raise ValueError(f"overlap is {self.overlap} but there are only {self.annotators} annotators")
        return self


@dataclass(frozen=True, kw_only=True)
class _Annotator:
    name: str
    noise: float
    position_bias: float
    length_bias: float
    pace: float
    cohort: CohortConfig | None


def simulate(items: Sequence[Comparison], utility: Utility, config: SimulationConfig) -> list[Judgement]:
    """Have simulated annotators judge items: ``overlap`` judgements per item, in item order.

    Answers are shown in random order, and equal ranks are ties. ``strength`` is 1 − exp(−gap), where
    gap is the perceived difference between the best and the second-best answer. ``seconds`` grow with
    the length of the answers.

    Args:
        items: the items to judge.
        utility: the utility without noise and biases.
        config: number and biases of the annotators.

    Raises:
        ScoringError: if the utility raises or returns something that is not a finite number.
        ConfigError: if a cohort weighs a part that does not exist.
    """
    annotators = [_annotator(index, config) for index in range(config.annotators)]
    judgements: list[Judgement] = []
    for item in items:
        utilities = _utilities(item, utility)
        parts = _parts(item, config)
        annotator_indices = sorted(_random(config.seed, "item", item.id).sample(range(len(annotators)), config.overlap))
        judgements += [_judge(item, utilities, parts, annotators[index], config) for index in annotator_indices]
    return judgements


def _random(*seed: object) -> Random:
    return Random(content_id(*seed))


def _annotator(index: int, config: SimulationConfig) -> _Annotator:
    rng = _random(config.seed, "annotator", index)
    # log-normal with mean 1, so that the average annotator is the configured one
    factors = [math.exp(config.spread * rng.gauss() - config.spread**2 / 2) for _ in range(4)]
    return _Annotator(
        name=f"simulated-{index:02d}",
        noise=config.noise * factors[0],
        position_bias=min(1.0, max(0.0, 0.5 + (config.position_bias - 0.5) * factors[1])),
        length_bias=config.length_bias * factors[2],
        pace=factors[3],
        cohort=_cohort(index, config),
    )


def _cohort(index: int, config: SimulationConfig) -> CohortConfig | None:
    """Fill cohorts in order, so that their shares are met as exactly as the number of annotators allows."""
    position = (index + 0.5) / config.annotators * sum(c.share for c in config.cohorts)
    for cohort in config.cohorts:
        position -= cohort.share
        if position < 0:
            return cohort
    return config.cohorts[-1] if config.cohorts else None


def _utilities(item: Comparison, utility: Utility) -> list[float]:
    values: list[float] = []
    for completion in item.completions:
        try:
            value = float(utility(item.prompt, completion))
        except TrimtabError:
            raise
        except Exception as error:
            raise ScoringError(f"the utility failed on item {item.id!r}: {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise ScoringError(f"the utility gave {value} for an answer of item {item.id!r}; a finite number is needed")
        values.append(value)
    return values


def _parts(item: Comparison, config: SimulationConfig) -> list[Mapping[str, float]]:
    weighted_parts = {name for cohort in config.cohorts for name in cohort.weights}
    if not weighted_parts:
        return [{} for _ in item.completions]
    function = load_callable(config.parts)
    parts = [function(item.prompt, completion) for completion in item.completions]
    for name in sorted(weighted_parts - set(parts[0])):
        raise ConfigError(f"a cohort weighs {name!r}, but {config.parts} gives only: {', '.join(sorted(parts[0]))}")
    return parts


def _judge(
    item: Comparison,
    utilities: Sequence[float],
    parts: Sequence[Mapping[str, float]],
    annotator: _Annotator,
    config: SimulationConfig,
) -> Judgement:
    rng = _random(config.seed, "judgement", item.id, annotator.name)
    shown = list(range(len(utilities)))
    rng.shuffle(shown)
    skips = rng.random() < config.skip_rate
    by_position = rng.random() < abs(2 * annotator.position_bias - 1)
    jitter = math.exp(0.25 * rng.gauss())
    random_strength = rng.random()
    gumbel = [-math.log(max(rng.expovariate(1.0), 1e-300)) for _ in shown]
    lengths = [len(c.text) for c in item.completions]

    if by_position:
        ranks = tuple(range(len(shown)) if annotator.position_bias > 0.5 else reversed(range(len(shown))))
        strength = random_strength
    else:
        part_weights = annotator.cohort.weights if annotator.cohort else {}
        perceived = [
            utilities[i]
            + sum(weight * parts[i][name] for name, weight in part_weights.items())
            + annotator.length_bias * math.log2(1 + lengths[i])
            + annotator.noise * gumbel[i]
            for i in shown
        ]
        ranks = rank_with_ties(perceived, config.tie_threshold)
        best, second = sorted(perceived, reverse=True)[:2]
        strength = 1 - math.exp(second - best)
    seconds = annotator.pace * jitter * (config.base_seconds + sum(lengths) / config.reading_speed)
    verdict = "skip" if skips else "ranked"
    return Judgement(
        id=content_id("simulated", config.seed, item.id, annotator.name, shown, None if skips else ranks),
        item=item.id,
        annotator=annotator.name,
        source="simulated",
        shown_order=tuple(shown),
        ranks=None if skips else ranks,
        verdict=verdict,
        strength=None if skips else round(strength, 3),
        seconds=round(seconds, 1),
        cohort=annotator.cohort.name if annotator.cohort else None,
    )


def rank_with_ties(utilities: Sequence[float], threshold: float) -> tuple[int, ...]:
    """Rank from the best down; an answer at most ``threshold`` below the best of a group joins it.

    >>> rank_with_ties([1.0, 3.0, 2.75, 2.25], threshold=0.5)
    (2, 0, 0, 1)
    """
    ranks = [0] * len(utilities)
    order = sorted(range(len(utilities)), key=lambda i: -utilities[i])
    leader, rank = utilities[order[0]], 0
    for i in order:
        if leader - utilities[i] > threshold:
            leader, rank = utilities[i], rank + 1
        ranks[i] = rank
    return tuple(ranks)
