"""What an annotation project holds: tasks to be judged, and what people submitted about them.

A :class:`Submission` is one filled-in form, exactly as it was given, in the order shown. Training
and statistics want other shapes; the functions at the end make them::

    Task (compare)  + Submission  →  Judgement, one per criterion
    Task (thumbs)   + Submission  →  Rating
    Task (steps)    + Submission  →  StepLabel
    any             + rewrite     →  Demonstration
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any, Literal, cast

from pydantic import Field, model_validator

from trimtab.records.types import (
    Comparison,
    Completion,
    Demonstration,
    Judgement,
    Message,
    Prompt,
    Rating,
    Record,
    Source,
    content_id,
)

TaskKind = Literal["compare", "thumbs", "steps"]
Verdict = Literal["judged", "skip", "unsure", "flag"]
OVERALL = "overall"
ACQUISITION = "acquisition"
"""Key of a task's metadata with the ``arm`` that chose it and its ``propensity``."""


class Check(Record):
    """A task whose right answer is known, to see how an annotator works."""

    role: Literal["training", "qualification", "gold", "attention"]
    """``training``: comes before all others, and the right answer is shown afterwards; ``qualification``: decides who
    may work; ``gold``: measures accuracy; ``attention``: an annotator who misses several is paused."""
    ranks: tuple[int, ...] | None = None
    """For ``compare``: the right ranks in canonical order; only the order of answers that differ is checked."""
    good: bool | None = None
    """For ``thumbs``: the right answer."""
    first_wrong: int | None = None
    """For ``steps``: index of the first wrong step; None: all are right."""
    explanation: str = ""
    """For ``training``: why this is the right answer; Markdown, shown after the annotator has answered."""


class Task(Record):
    """One thing to be judged by one or more people."""

    id: str
    """Made from prompt, answers and steps unless the data brought one."""
    kind: TaskKind = "compare"
    """``compare``: rank two or more answers; ``thumbs``: one answer, good or bad; ``steps``: find the first mistake."""
    prompt: Prompt
    """The prompt."""
    completions: tuple[Completion, ...] = Field(min_length=1)
    """The answers in canonical order; one for ``thumbs`` and ``steps``."""
    steps: tuple[str, ...] = ()
    """For ``steps``: the answer cut into steps, first to last."""
    batch: str = "default"
    """Tasks of one batch share a priority and can be paused together."""
    overlap: int | None = Field(default=None, ge=1, le=1000)
    """How many people judge it; None: the project's setting."""
    check: Check | None = None
    """The right answer, where this task tests the annotator; such a task is shown to everybody."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the data; never shown to annotators."""

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if self.kind == "compare" and len(self.completions) < 2:
            raise ValueError("a comparison needs two or more answers")
        if self.kind != "compare" and len(self.completions) != 1:
            raise ValueError(f"a {self.kind} task needs exactly one answer, got {len(self.completions)}")
        if (self.kind == "steps") != bool(self.steps):
            raise ValueError("steps are given for a steps task and for no other")
        if self.check is not None:
            self._right_answer_fits(self.check)
        return self

    def _right_answer_fits(self, check: Check) -> None:
        if self.kind == "compare":
            if check.ranks is None or len(check.ranks) != len(self.completions):
                raise ValueError("the check of a comparison needs ranks, one for each answer")
        elif self.kind == "thumbs" and check.good is None:
            raise ValueError("the check of a thumbs task needs good: true or false")
        elif self.kind == "steps" and check.first_wrong is not None and not 0 <= check.first_wrong < len(self.steps):
            raise ValueError(f"first_wrong {check.first_wrong}: there are {len(self.steps)} steps, counted from 0")

    @classmethod
    def of(
        cls, prompt: Prompt, completions: Sequence[Completion | str], *, kind: TaskKind = "compare", **fields: Any
    ) -> Task:
        """Build a task whose id is made from its content; that of a comparison is :meth:`Comparison.of`'s."""
        answers = tuple(Completion(text=c) if isinstance(c, str) else c for c in completions)
        steps = tuple(fields.pop("steps", ()))
        texts = [c.text for c in answers]
        made = content_id(prompt.id, texts) if kind == "compare" else content_id(prompt.id, kind, texts, steps)
        return cls(id=fields.pop("id", made), kind=kind, prompt=prompt, completions=answers, steps=steps, **fields)

    @property
    def comparison(self) -> Comparison | None:
        """The same as an item for aggregation and statistics; None for other kinds."""
        if self.kind != "compare":
            return None
        return Comparison(id=self.id, prompt=self.prompt, completions=self.completions, metadata=self.metadata)


class Answer(Record):
    """The judgement by one criterion of a comparison, by position on the screen."""

    criterion: str = OVERALL
    """Name of the criterion."""
    ranks: tuple[int, ...] | None = None
    """``ranks[p]``: rank of the answer shown at position p, 0 = best, equal = tie; None where scores are given."""
    strength: float | None = Field(default=None, ge=0.0, le=1.0)
    """For two answers: how clear the difference is, from 0 to 1."""
    scores: tuple[int, ...] | None = None
    """``scores[p]``: points on the criterion's scale; higher is better."""


class Rewrite(Record):
    """An answer as the annotator would have it."""

    of: int = Field(ge=0)
    """Position on the screen of the answer it started from."""
    text: str = Field(min_length=1)
    """The better text."""


class Submission(Record):
    """One filled-in form, as it was given. Never edited: a change is a later submission."""

    id: str
    """Unique id of this event."""
    task: str
    """Id of the :class:`Task`."""
    annotator: str
    """Pseudonym."""
    source: Source = "human"
    """Who gave it. Simulated ones say so here, for ever."""
    shown_order: tuple[int, ...] = (0,)
    """``shown_order[p]`` is the index, in the task's completions, of the answer shown at position p."""
    verdict: Verdict
    """``judged`` carries an answer; the others are reasons for not judging."""
    answers: tuple[Answer, ...] = ()
    """For ``compare``: one for each criterion."""
    good: bool | None = None
    """For ``thumbs``."""
    first_wrong: int | None = None
    """For ``steps``: index of the first wrong step; None: all are right."""
    rewrite: Rewrite | None = None
    """A better answer, where the annotator wrote one."""
    reason: str = ""
    """Why it was flagged, or what an adjudicator found to be the cause of the disagreement."""
    comment: str = ""
    """The annotator's remark."""
    guideline: str | None = None
    """Version of the guidelines beside the task."""
    seconds: float | None = Field(default=None, ge=0.0)
    """Time from showing to submitting; None where it is not known."""
    cohort: str | None = None
    """Groups the annotator named, as ``language=de, region=…``."""
    adjudication: bool = False
    """True: it settles a disagreement."""
    created_at: str | None = None
    """ISO 8601 in UTC."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The parts of ``cohort``, each ``name=value``."""
        return tuple(re.split(r", (?=[a-z]+=)", self.cohort)) if self.cohort else ()


class StepLabel(Record):
    """Where a solution goes wrong: what a process reward model learns from."""

    id: str
    """Stable id."""
    prompt: Prompt
    """The prompt."""
    steps: tuple[str, ...] = Field(min_length=1)
    """The solution, step by step."""
    first_wrong: int | None
    """Index of the first wrong step; None: all are right. Nothing is known about steps after it."""
    shares: tuple[float, ...] | None = None
    """Soft labels of rollouts: for each step the share of tries from there that ended in the right answer. They take
    the place of ``first_wrong``, which is then the first step with a share of 0."""
    source: Source = "imported"
    """Where the label came from."""
    annotator: str | None = None
    """Pseudonym of the annotator, where known."""

    @model_validator(mode="after")
    def _fits_the_steps(self) -> StepLabel:
        count = len(self.steps)
        if self.first_wrong is not None and not 0 <= self.first_wrong < count:
            raise ValueError(f"first_wrong {self.first_wrong}: there are {count} steps, counted from 0")
        if any(not step.strip() for step in self.steps):
            empty = [i for i, step in enumerate(self.steps) if not step.strip()]
            raise ValueError(f"step {empty[0]} of {count} is empty, counted from 0")
        if self.shares is not None and len(self.shares) != count:
            raise ValueError(f"{len(self.shares)} shares for {count} steps")
        if self.shares is not None and not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"a share is {next(x for x in self.shares if not 0 <= x <= 1):g}; expected 0 to 1")
        return self

    def targets(self) -> list[float | None]:
        """For each step 1 (right), 0 (wrong) or a share; None where nothing is known: after the first wrong step."""
        if self.shares is not None:
            return list(self.shares)
        wrong = len(self.steps) if self.first_wrong is None else self.first_wrong
        return [1.0 if i < wrong else 0.0 if i == wrong else None for i in range(len(self.steps))]


def judgements_of(task: Task, submission: Submission) -> list[Judgement]:
    """One judgement for each criterion of a comparison; none for other kinds of task.

    The overall judgement has the submission's id, the others that and the criterion's name. Scores
    become ranks: more points, better rank, equal points a tie.
    """
    if task.kind != "compare":
        return []
    common: dict[str, Any] = {
        "item": task.id,
        "annotator": submission.annotator,
        "source": submission.source,
        "shown_order": submission.shown_order,
        "guideline": submission.guideline,
        "seconds": submission.seconds,
        "cohort": submission.cohort,
        "propensity": propensity_of(task),
        "comment": submission.comment,
        "adjudication": submission.adjudication,
        "created_at": submission.created_at,
    }
    if submission.verdict != "judged":
        return [Judgement(id=submission.id, ranks=None, verdict=submission.verdict, **common)]
    judgements: list[Judgement] = []
    for answer in submission.answers:
        ranks = answer.ranks
        if ranks is None:
            assert answer.scores is not None
            levels = sorted(set(answer.scores), reverse=True)
            ranks = tuple(levels.index(score) for score in answer.scores)
        judgements.append(
            Judgement(
                id=submission.id if answer.criterion == OVERALL else f"{submission.id}/{answer.criterion}",
                ranks=ranks,
                strength=answer.strength,
                scores=answer.scores,
                criterion=answer.criterion,
                **common,
            )
        )
    return judgements


def propensity_of(task: Task) -> float | None:
    """Probability with which `trimtab queue` chose the task; None: it did not."""
    drawn = task.metadata.get(ACQUISITION)
    propensity = cast(dict[str, Any], drawn).get("propensity") if isinstance(drawn, dict) else None
    return float(propensity) if isinstance(propensity, int | float) and 0 < propensity <= 1 else None


def nominal_units(
    kind: TaskKind, tasks: Mapping[str, Task], submissions: Iterable[Submission]
) -> list[tuple[str, dict[str, bool | int | None]]]:
    """For each thumbs or steps task its prompt's id, and each annotator's thumb or first wrong step."""
    values: dict[str, dict[str, bool | int | None]] = {}
    for s in submissions:
        if s.task in tasks and tasks[s.task].kind == kind and s.verdict == "judged" and not s.adjudication:
            values.setdefault(s.task, {})[s.annotator] = s.good if kind == "thumbs" else s.first_wrong
    return [(tasks[uid].prompt.id, by_annotator) for uid, by_annotator in values.items()]


def rating_of(task: Task, submission: Submission) -> Rating | None:
    """The thumb of a task of this kind; None if it was not judged."""
    if task.kind != "thumbs" or submission.good is None:
        return None
    return Rating(
        id=submission.id,
        prompt=task.prompt,
        completion=task.completions[0],
        good=submission.good,
        source=submission.source,
        annotator=submission.annotator,
        reason="" if submission.good else submission.reason,
    )


def step_label_of(task: Task, submission: Submission) -> StepLabel | None:
    """The first wrong step, for a task of this kind; None if it was not judged."""
    if task.kind != "steps" or submission.verdict != "judged":
        return None
    return StepLabel(
        id=submission.id,
        prompt=task.prompt,
        steps=task.steps,
        first_wrong=submission.first_wrong,
        source=submission.source,
        annotator=submission.annotator,
    )


def demonstration_of(task: Task, submission: Submission) -> Demonstration | None:
    """The rewritten answer as a conversation to imitate, where there is one."""
    if submission.rewrite is None:
        return None
    turns = (*task.prompt.messages, Message(role="assistant", content=submission.rewrite.text))
    about = {"task": task.id, "submission": submission.id, "annotator": submission.annotator}
    return Demonstration.of(turns, **about)


def passes(task: Task, submission: Submission) -> bool | None:
    """Did the annotator give the known right answer? None where there is none, or nothing was judged."""
    check = task.check
    if check is None or submission.verdict != "judged":
        return None
    if task.kind == "thumbs":
        return submission.good == check.good
    if task.kind == "steps":
        return submission.first_wrong == check.first_wrong
    return _in_order(check.ranks or (), overall_ranks(task, submission))


def overall_ranks(task: Task, submission: Submission) -> tuple[int, ...]:
    """Ranks in canonical order by the first criterion, display order undone; empty where nothing was ranked."""
    judgement = next((j for j in judgements_of(task, submission) if j.ranks is not None), None)
    if judgement is None or judgement.ranks is None:
        return ()
    by_answer: Mapping[int, int] = dict(zip(judgement.shown_order, judgement.ranks, strict=True))
    return tuple(by_answer[i] for i in range(len(by_answer)))


def disagree(task: Task, submissions: Sequence[Submission], *, majority: float = 1.0) -> bool:
    """True if the judgements contradict each other: another order of two answers, thumb or step.

    Args:
        task: what was judged.
        submissions: by any number of people; skips and flags do not count.
        majority: the share of people on one side from which the other side is overruled; 1: never. Those who call two
            answers equal are on neither side.
    """
    judged = [s for s in submissions if s.verdict == "judged"]
    if task.kind != "compare":
        labels = Counter(s.good if task.kind == "thumbs" else s.first_wrong for s in judged)
        return len(labels) > 1 and max(labels.values()) < majority * len(judged)
    rankings = [ranks for s in judged if (ranks := overall_ranks(task, s))]
    for i, j in combinations(range(len(task.completions)), 2):
        first, second = sum(r[i] < r[j] for r in rankings), sum(r[i] > r[j] for r in rankings)
        if first and second and max(first, second) < majority * (first + second):
            return True
    return False


def distance(task: Task, submissions: Sequence[Submission]) -> float:
    """How far apart the judgements are, from 0 (all the same) to 1: the mean over all pairs of people.

    Two thumbs or first wrong steps are 0 or 1 apart. The preference between two answers is 1, 0 (a tie) or −1, in a
    comparison of two answers times the strength where it was asked. Two rankings are half the difference of their
    preferences apart, on average over the pairs of answers.
    """
    judged = [s for s in submissions if s.verdict == "judged" and (task.kind != "compare" or s.answers)]
    if len(judged) < 2:
        return 0.0
    if task.kind == "compare":
        points = [_preferences(task, s) for s in judged]
        apart = [fmean(abs(x - y) / 2 for x, y in zip(a, b, strict=True)) for a, b in combinations(points, 2)]
    else:
        labels = [s.good if task.kind == "thumbs" else s.first_wrong for s in judged]
        apart = [float(a != b) for a, b in combinations(labels, 2)]
    return fmean(apart)


def _preferences(task: Task, submission: Submission) -> list[float]:
    """For each pair of answers from −1 (the second is clearly better) to 1, by the first criterion."""
    ranks = overall_ranks(task, submission)
    strength = submission.answers[0].strength if len(ranks) == 2 else None
    scale = 1.0 if strength is None else strength
    return [scale * ((ranks[i] < ranks[j]) - (ranks[i] > ranks[j])) for i, j in combinations(range(len(ranks)), 2)]


def _in_order(right: Sequence[int], given: Sequence[int]) -> bool:
    if len(right) != len(given):
        return False
    count = range(len(right))
    return all(given[i] < given[j] for i in count for j in count if right[i] < right[j])
