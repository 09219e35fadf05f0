"""Settings of an annotation project."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trimtab.config import Config


class CriterionConfig(Config):
    """One question about the answers of a comparison."""

    name: str = Field(default="overall", pattern=r"^[a-z][a-z0-9_]{0,31}$")
    """Name in judgements and exports."""
    label: str = Field(default="", max_length=200)
    """Text shown to annotators; empty: the name, translated for ``overall``."""
    kind: Literal["preference", "scale"] = "preference"
    """``preference``: which answer is better; ``scale``: points for each answer."""
    points: int = Field(default=5, ge=2, le=9)
    """For ``scale``: highest score; the lowest is 1."""


class ProjectConfig(Config):
    """Settings of an annotation project; every change is recorded as an event."""

    title: str = Field(default="Preferences", min_length=1, max_length=120)
    """Heading of every page."""
    overlap: int = Field(default=2, ge=1, le=100)
    """How many people judge each item, unless the item sets its own number."""
    majority: float = Field(default=1.0, gt=0.5, le=1.0)
    """An item needs no adjudicator if at least this share of people are on one side; 1: any contradiction needs one."""
    criteria: tuple[CriterionConfig, ...] = Field(default=(CriterionConfig(),), min_length=1, max_length=12)
    """Questions about each comparison."""
    ties: bool = True
    """True: two answers may be ranked equal."""
    strength: int = Field(default=3, ge=1, le=4)
    """Levels of "better" for two answers; 1: only which one is better."""
    rewrite: bool = False
    """True: annotators may rewrite the better answer; the text becomes a demonstration."""
    max_answers: int = Field(default=8, ge=2, le=9)
    """Most answers in an item; items with more are refused."""
    max_characters: int = Field(default=200_000, ge=100, le=1_000_000)
    """Longest text in an item, in characters; items with longer texts are refused."""
    lease_minutes: float = Field(default=60.0, gt=0.0, le=60 * 24 * 7)
    """How long an item stays reserved for the person who opened it."""
    gold_every: int = Field(default=10, ge=0)
    """One in this many items is a check item that the annotator has not seen, as long as there are any; 0: never."""
    attention_misses: int = Field(default=3, ge=0)
    """Missed attention items after which an annotator is paused; 0: never."""
    qualification_share: float = Field(default=0.8, ge=0.0, le=1.0)
    """Share of the qualification items that must be answered correctly."""
    fast_seconds: float = Field(default=3.0, ge=0.0)
    """Judgements faster than this are counted as suspiciously fast."""
    min_cell: int = Field(default=5, ge=2)
    """Smallest group of annotators that is shown or exported as a group."""
    flag_reasons: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=("harmful", "personal data", "broken", "wrong language", "other"), min_length=1
    )
    """Reasons offered for flagging an item."""
    paused: bool = False
    """True: no new items are handed out."""

    @model_validator(mode="after")
    def _distinct(self) -> "ProjectConfig":
        names = [c.name for c in self.criteria]
        if len(set(names)) < len(names):
            raise ValueError(f"two criteria have the same name: {', '.join(names)}")
        return self
