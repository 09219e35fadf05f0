"""The records of ``trimtab lineage``: where something in a run comes from, and what was made from it."""

from typing import Literal

from pydantic import Field

from trimtab.records import Record
from trimtab.records.types import Source


class TracedJudgement(Record):
    """A judgement; a vote on the chat page has no item and no criterion."""

    round: int
    """The round in which it was given."""
    id: str
    """Its id."""
    item: str = ""
    """Id of its item."""
    annotator: str | None
    """Pseudonym; None: unknown."""
    source: Source | None = None
    """Source of the judgement."""
    criterion: str = ""
    """Criterion of the judgement."""
    verdict: str = ""
    """``ranked``, or the reason why there is no ranking."""
    created_at: str | None = None
    """Time, ISO 8601."""


class TracedPair(Record):
    """A preference that training learns from."""

    id: str
    """Its id."""
    round: int
    """The round from whose labels it was made."""
    ranks: tuple[int, ...]
    """Rank of each answer; 0 is best."""
    probability: float | None
    """Soft label P(first is better); None: the ranks are certain."""
    weight: float
    """Its weight in the loss."""
    judgements: tuple[str, ...]
    """Ids of the judgements from which it was made."""


class TracedModel(Record):
    """A reward model or policy. In the trace of a figure or checkpoint, only its round and weights are given."""

    round: int
    """The round that trained it."""
    model: str = ""
    """Name of a reward model; ``align``: the policy."""
    part: str = ""
    """``part`` of :class:`~trimtab.pipeline.learned.Learned`, or ``through`` the model that leads to this one."""
    steps: tuple[int, ...] = ()
    """Optimiser steps that the pair is in; for a policy that maximises the reward, the first and the last step."""
    of: int = 0
    """Number of all steps of the training."""
    weights: str | None
    """SHA-256 of the weights; None: not finished."""

    @property
    def learned(self) -> bool:
        """True: the pair changed the weights."""
        return self.part not in ("held_out", "nothing_to_learn")


class TracedFigure(Record):
    """A measured figure."""

    figure: str
    """One of :data:`trimtab.pipeline.lineage.FIGURES`."""
    round: int
    """The round in which it was measured."""
    of: str
    """What was measured, or its unit."""
    value: float | None
    """Its value; None: undefined."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    """Upper end of the interval."""
    n: int
    """Number of pairs, prompts or answers."""
    file: str
    """The file that contains it."""


class Trace(Record):
    """Where something in a run comes from, and what was made from it; parts that do not apply are unset."""

    kind: Literal["judgement", "pair", "checkpoint", "figure"]
    """What was traced."""
    judgements: tuple[TracedJudgement, ...] = ()
    """The judgements behind it."""
    pair: TracedPair | None = None
    """The pair that the judgement is in."""
    pairs: dict[int, int] = Field(default_factory=dict)
    """For a figure or checkpoint: number of pairs behind it, by round."""
    reward_models: tuple[TracedModel, ...] = ()
    """The reward models that the pair is in, or that are behind the figure."""
    policies: tuple[TracedModel, ...] = ()
    """The policies that the pair is in, or that are behind the figure."""
    figures: tuple[TracedFigure, ...] = ()
    """The figures of these models."""
    notes: tuple[str, ...] = ()
    """What is missing, and why."""
