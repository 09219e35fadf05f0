"""What crosses the boundaries between parts: plain, frozen, keyword-only records.

Records hold text, numbers and tuples; tensors first appear where a trainer collates a batch.

A worked example, from a click to a training pair::

    prompt = Prompt.from_text("What is a trim tab?")
    item = Comparison.of(prompt, ["The small surface on a rudder.", "No idea."])
    click = Judgement(
        id="j1", item=item.id, annotator="w3", source="human",
        shown_order=(1, 0),      # the screen showed answer 1 first, then answer 0
        ranks=(1, 0),            # the second one on the screen was judged better
    )
    # feedback.aggregate([item], [click]) undoes the display order:
    Preference(..., completions=item.completions, ranks=(0, 1), judgements=("j1",))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["system", "user", "assistant", "tool"]
Source = Literal["human", "ai", "simulated", "imported"]


class Record(BaseModel):
    """Base of all records: frozen, keyword-only, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


def content_id(*parts: Any) -> str:
    """A short id made from content: equal content, equal id, on every machine (64 bits of SHA-256)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Message(Record):
    """One turn of a conversation."""

    role: Role
    """Who speaks."""
    content: str
    """The text, plain."""


def message_id(turns: Sequence[Message]) -> str:
    """The id that :meth:`Prompt.of` and :meth:`Demonstration.of` give to these turns."""
    return content_id([turn.model_dump() for turn in turns])


class Prompt(Record):
    """A conversation that waits for the assistant's next turn."""

    id: str
    """Stable id; :func:`content_id` of the messages unless the data brought one."""
    messages: tuple[Message, ...] = Field(min_length=1)
    """The turns so far, oldest first; the last one is not the assistant's."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the data (topic, reference answer, source)."""

    @model_validator(mode="after")
    def _waits_for_assistant(self) -> Prompt:
        if self.messages[-1].role == "assistant":
            raise ValueError("a prompt must not end with an assistant turn")
        return self

    @classmethod
    def of(cls, messages: list[Message] | tuple[Message, ...], **metadata: Any) -> Prompt:
        """Build a prompt whose id is made from its messages."""
        turns = tuple(messages)
        return cls(id=message_id(turns), messages=turns, metadata=metadata)

    @classmethod
    def from_text(cls, text: str, *, system: str | None = None, **metadata: Any) -> Prompt:
        """Build a one-turn prompt from the user's message."""
        head = [Message(role="system", content=system)] if system else []
        return cls.of([*head, Message(role="user", content=text)], **metadata)

    @property
    def text(self) -> str:
        """The last user turn, for display and simple scorers."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), self.messages[-1].content)


class Completion(Record):
    """One answer to a prompt."""

    text: str
    """The assistant's turn, without template tokens."""
    model: str | None = None
    """Which model or person wrote it, where known."""
    finish_reason: Literal["stop", "length"] | None = None
    """``stop``: ended its turn; ``length``: cut at the token limit; ``None``: not sampled here."""


class Demonstration(Record):
    """A conversation to imitate: the assistant's turns are trained, except those in ``untrained``."""

    id: str
    """Stable id; :func:`content_id` of the messages unless the data brought one."""
    messages: tuple[Message, ...] = Field(min_length=1)
    """All turns, oldest first; at least one is the assistant's and none of those is empty."""
    untrained: tuple[int, ...] = ()
    """Places in ``messages`` of assistant turns that are context only and count in no loss."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the data."""

    @model_validator(mode="after")
    def _teaches_something(self) -> Demonstration:
        answers = [m.content for m in self.messages if m.role == "assistant"]
        if not answers:
            raise ValueError("a demonstration needs at least one assistant turn")
        if any(not a.strip() for a in answers):
            raise ValueError("an assistant turn is empty")
        spoken = {place for place, m in enumerate(self.messages) if m.role == "assistant"}
        if not set(self.untrained) <= spoken:
            raise ValueError(f"untrained must be places of assistant turns, got {self.untrained}")
        if spoken == set(self.untrained):
            raise ValueError("no assistant turn is to be trained")
        return self

    @classmethod
    def of(cls, messages: list[Message] | tuple[Message, ...], **metadata: Any) -> Demonstration:
        """Build a demonstration whose id is made from its messages."""
        turns = tuple(messages)
        return cls(id=message_id(turns), messages=turns, metadata=metadata)


class Comparison(Record):
    """An item to judge: K answers to one prompt, in canonical (not displayed) order."""

    id: str
    """Stable id made from prompt and answers."""
    prompt: Prompt
    """The prompt."""
    completions: tuple[Completion, ...] = Field(min_length=2)
    """The answers; positions in this tuple are what ``shown_order`` refers to."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the data."""

    @classmethod
    def of(cls, prompt: Prompt, completions: list[Completion] | list[str] | tuple[Completion, ...]) -> Comparison:
        """Build an item whose id is made from its content."""
        answers = tuple(Completion(text=c) if isinstance(c, str) else c for c in completions)
        return cls(id=content_id(prompt.id, [c.text for c in answers]), prompt=prompt, completions=answers)


class Judgement(Record):
    """One annotator's verdict on one :class:`Comparison`, exactly as it was given. Never edited."""

    id: str
    """Unique id of this event."""
    item: str
    """Id of the :class:`Comparison` judged."""
    annotator: str
    """Pseudonym of the person, name of the judge model, or of the simulated annotator."""
    source: Source
    """Who gave it. Simulated judgements say so here, for ever."""
    shown_order: tuple[int, ...] = Field(min_length=2)
    """``shown_order[p]`` is the index, in the item's completions, of the answer shown at position p."""
    ranks: tuple[int, ...] | None
    """``ranks[p]`` is the rank (0 = best, equal = tie) of the answer shown at position p; None if skipped."""
    verdict: Literal["ranked", "skip", "flag", "unsure"] = "ranked"
    """``ranked`` carries ranks; the others say why there are none."""
    strength: float | None = None
    """For two answers of which one is better: how clear the difference is, from 0 (barely) to 1 (clearly); None: not
    asked."""
    probability: float | None = Field(default=None, ge=0.0, le=1.0)
    """For two answers, the judge's own P(the answer shown first is better)."""
    criterion: str = "overall"
    """What was judged (helpful, harmless, …)."""
    scores: tuple[float, ...] | None = None
    """``scores[p]``: points given to the answer shown at position p, on the criterion's scale; higher is better."""
    principle: str | None = None
    """Ids of the principles that the judge was asked about, joined by commas; None: no constitution was used."""
    guideline: str | None = None
    """Version of the guidelines or constitution the annotator saw."""
    seconds: float | None = None
    """Time from showing to submitting, in seconds."""
    cohort: str | None = None
    """Freely named group of annotators, optional."""
    propensity: float | None = Field(default=None, gt=0.0, le=1.0)
    """Probability with which the item was chosen to be labelled (`trimtab queue`); None: not known."""
    comment: str = ""
    """The annotator's remark."""
    adjudication: bool = False
    """True: an adjudicator settled a disagreement; for training it stands in place of the others' judgements."""
    created_at: str | None = None
    """ISO 8601 in UTC; None for simulated judgements, so that equal seeds give equal files."""

    @model_validator(mode="after")
    def _consistent(self) -> Judgement:
        count = len(self.shown_order)
        if sorted(self.shown_order) != list(range(count)):
            raise ValueError(f"shown_order must be a permutation of 0..{count - 1}, got {self.shown_order}")
        if (self.ranks is None) == (self.verdict == "ranked"):
            raise ValueError("a ranked verdict needs ranks and any other verdict has none")
        if self.ranks is not None and len(self.ranks) != count:
            raise ValueError(f"{len(self.ranks)} ranks for {count} answers")
        if self.ranks is not None and min(self.ranks) < 0:
            raise ValueError("ranks start at 0 (best)")
        if self.probability is not None and (self.ranks is None or count != 2):
            raise ValueError("a probability is defined for a ranked judgement of two answers only")
        if self.scores is not None and len(self.scores) != count:
            raise ValueError(f"{len(self.scores)} scores for {count} answers")
        return self


class Preference(Record):
    """What a reward model or DPO trains on: a ranking (with ties) of K answers to one prompt."""

    id: str
    """Stable id."""
    prompt: Prompt
    """The prompt."""
    completions: tuple[Completion, ...] = Field(min_length=2)
    """The answers, in canonical order."""
    ranks: tuple[int, ...]
    """``ranks[i]`` is the rank of ``completions[i]``: 0 = best, equal = tie."""
    criterion: str = "overall"
    """What was judged (helpful, harmless, …)."""
    probability: float | None = Field(default=None, ge=0.0, le=1.0)
    """For two answers only: soft label P(completions[0] is better); None means the ranks are certain."""
    margin: float | None = Field(default=None, ge=0.0)
    """How much better the winner of two answers is, in reward units, at least 0; None: no margin."""
    weight: float = Field(default=1.0, gt=0.0)
    """Weight of this example in the loss."""
    judgements: tuple[str, ...] = ()
    """Ids of the judgements it was made from: the way back to the clicks."""
    source: Source = "imported"
    """Where the labels came from."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the data."""

    @model_validator(mode="after")
    def _consistent(self) -> Preference:
        if len(self.ranks) != len(self.completions):
            raise ValueError(f"{len(self.ranks)} ranks for {len(self.completions)} answers")
        if self.probability is not None and len(self.completions) != 2:
            raise ValueError("a soft label is defined for two answers only")
        return self

    @classmethod
    def pair(cls, prompt: Prompt, chosen: str, rejected: str, **fields: Any) -> Preference:
        """Build a pair in which ``chosen`` is better than ``rejected``."""
        answers = (Completion(text=chosen), Completion(text=rejected))
        return cls(
            id=content_id(prompt.id, chosen, rejected), prompt=prompt, completions=answers, ranks=(0, 1), **fields
        )


def strict_pairs(record: Preference) -> list[tuple[Completion, Completion]]:
    """Every (better, worse) pair of a ranking; ties give none."""
    ranked = list(zip(record.ranks, record.completions, strict=True))
    return [(better, worse) for rank, better in ranked for other, worse in ranked if rank < other]


class Rating(Record):
    """An unpaired verdict on one answer: thumbs up or down."""

    id: str
    """Stable id."""
    prompt: Prompt
    """The prompt."""
    completion: Completion
    """The answer."""
    good: bool
    """True: thumbs up."""
    source: Source = "imported"
    """Where the label came from."""
    annotator: str | None = None
    """Pseudonym of the annotator, where known."""
    reason: str = ""
    """The reason for a thumb down, where the page asks for one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled answer with everything a policy-gradient step needs. Lists, not tensors."""

    id: str
    """Unique within a run: prompt id, weight version and index in the group."""
    prompt: Prompt
    """The prompt."""
    prompt_tokens: list[int]
    """The rendered prompt, up to and including the assistant header."""
    tokens: list[int]
    """What the policy produced, end-of-turn token included when it ended its turn."""
    logprobs: list[float]
    """log p of each produced token under the sampling distribution, in nats."""
    text: str
    """The answer without template tokens."""
    finish_reason: Literal["stop", "length"]
    """``stop``: it ended its turn; ``length``: it was cut."""
    weight_version: int
    """Which weights sampled it: the number of optimiser steps they had seen."""
    values: list[float] = field(default_factory=list[float])
    """Value of the state before each produced token, if the critic is a head on the policy's own states."""
    reference_logprobs: list[float] = field(default_factory=list[float])
    """log p of each produced token under the reference, in nats, rounded to four decimals; only to look at."""
    rewards: dict[str, float] = field(default_factory=dict[str, float])
    """Named reward components, once scored."""
    step_rewards: dict[str, list[tuple[int, float]]] = field(default_factory=dict[str, list[tuple[int, float]]])
    """Of components that are earned step by step: (place in ``tokens`` of a step's last token, reward); ``rewards`` has
    their sum."""

    @property
    def completion(self) -> Completion:
        """The answer as a record that people and judges can be shown."""
        return Completion(text=self.text, finish_reason=self.finish_reason)
