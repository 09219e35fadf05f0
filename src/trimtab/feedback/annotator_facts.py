"""How annotators differ, as the reward stage learns it from single votes: ``annotators`` of ``reward.json``.

All log-losses are means over votes, in nats over the three outcomes.
"""

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from trimtab.feedback.intervals import Estimate
from trimtab.records import Record

Habit = Literal["tie", "skill", "position"]


class HabitTrial(Record):
    """How well one set of habits predicts votes."""

    habits: tuple[Habit, ...]
    """What differs between annotators."""
    log_loss: float
    """Mean negative log-likelihood of votes that were not used in the fit."""
    kept: bool
    """True: better than without the habit that was added last; the first, without habits, is where it starts."""


class AnnotatorHabits(Record):
    """One annotator at the end of training. A habit that is the same for all is None and not in the file."""

    annotator: str
    """Pseudonym."""
    votes: int
    """Number of votes by weight: all pairs of a ranking of K answers count K − 1."""
    tie: float | None = None
    """τ."""
    position: float | None = None
    """b."""
    skill: float | None = None
    """γ."""

    @model_serializer(mode="wrap")
    def _without_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class TasteTrial(Record):
    """A prior of tastes that was tried."""

    deviation: float
    """Its standard deviation σ."""
    log_loss: float
    """Log-loss of votes that were not used in the fit."""


class TasteFacts(Record):
    """The decision on a taste."""

    annotators: int
    """Number of annotators with enough votes."""
    without: float
    """Log-loss of votes that were not used in the fit, without a taste."""
    trials: tuple[TasteTrial, ...]
    """The priors that were tried; empty: too few annotators have enough votes."""
    used: bool
    """True: training used a taste."""
    direction: tuple[float, ...] | None
    """Weight of each surface feature; None: not used."""


class HeldoutVotes(Record):
    """Log-loss of votes about held-out prompts by the trained rewards."""

    votes: int
    """Votes by weight."""
    alike: float
    """With all annotators alike."""
    annotators: float
    """With their habits and tastes; an annotator who is not in the training data has the population's."""
    gain: Estimate
    """Their difference, bootstrapped over prompts."""


class AnnotatorFacts(Record):
    """What a reward model learned about the differences between annotators."""

    habits: tuple[Habit, ...]
    """What differs between them in training."""
    trials: tuple[HabitTrial, ...]
    """What was tried."""
    common: dict[Literal["tie", "position"], float]
    """The population's μ_τ and μ_b."""
    annotators: tuple[AnnotatorHabits, ...]
    """Each of them."""
    heldout: HeldoutVotes | None
    """Log-loss of held-out votes; None: no vote was held out."""
    taste: TasteFacts | None = None
    """None: the recipe does not request a taste, or an early version wrote the file."""
