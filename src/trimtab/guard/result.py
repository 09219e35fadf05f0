"""``report.json`` of a guard: what it reaches on texts that its training did not see.

Intervals are 95 %. Those of requests count subjects (``group``), those of answers count answers.
"""

from typing import Any

from trimtab.feedback.calibration import Bin
from trimtab.guard.second import Band
from trimtab.guard.settings import SecondTraining
from trimtab.records import Record


class Share(Record):
    """A share with its interval."""

    value: float | None
    """None: there is no such text."""
    low: float | None
    """Lower end of the interval."""
    high: float | None
    """Upper end."""
    n: int
    """Number of texts."""


class SubjectShare(Share):
    """A share of texts about some subjects."""

    groups: int
    """Number of subjects."""


class Shares(Record):
    """Blocked restricted and refused harmless requests."""

    blocked: SubjectShare
    """Of the restricted ones."""
    refused: SubjectShare
    """Of the harmless ones."""


class Family(Shares):
    """Requests that are plain or in one attack's disguise."""

    held_out: bool
    """True: training did not see the attack."""
    first_stage: Shares | None = None
    """The shares by the first stage alone; None, and not in the file: there is no second one."""
    below_plain: float
    """By how much the blocked share is below that of plain requests."""


class RequestCalibration(Record):
    """Calibration of the score of plain requests."""

    ece: float
    """Expected calibration error."""
    bins: tuple[Bin, ...]
    """Reliability plot."""


class PassingAttack(Record):
    """A restricted request in the disguise that passes most often."""

    family: str
    """The attack."""
    text: str
    """The request with the lowest score."""
    score: float
    """Its score."""
    threshold: float
    """A higher score is blocked."""
    passes: float
    """Share of restricted requests that pass in this disguise."""


class RequestResult(Record):
    """Blocking and refusals on requests."""

    escalated: dict[str, SubjectShare] | None
    """Share of plain requests that the second stage read, by kind; None: there is none."""
    auroc: float
    """Of plain requests."""
    calibration: RequestCalibration
    """Of the same."""
    rules: SubjectShare
    """Blocked restricted requests whose rule was named rightly."""
    families: dict[str, Family]
    """``plain``, and each attack."""
    succeeds: PassingAttack | None
    """None: no attack passes."""
    unread: int
    """Plain requests of which the guard reads only a part."""


class HoldBackSize(Record):
    """What leaks with a buffer of one size."""

    size: int
    """Tokens held back."""
    leaks: Share
    """Planted answers of which a restricted token goes out."""
    tokens: float
    """Mean number of such tokens."""


class OnsetTable(Record):
    """Delay, leakage and false alarms on answers with a known onset."""

    planted: int
    """Answers that turn restricted."""
    harmless: int
    """Answers that do not."""
    delay: int | float | None
    """Median tokens from onset to alarm, among planted answers with an alarm; None: there is none."""
    early: Share
    """Planted answers with an alarm before the onset."""
    false_alarms: Share
    """Harmless answers with an alarm."""
    missed: Share
    """Planted answers without one."""
    hold_back: tuple[HoldBackSize, ...]
    """By size of the buffer."""


class AnswerResult(OnsetTable):
    """The same of answers that are put together from held-out sentences."""

    sentences: int
    """How many sentences they are made of."""


class NotMeasured(Record):
    """Nothing is known about answers."""

    reason: str
    """Why."""


class Cost(Record):
    """CPU time in milliseconds, and size of the weights in bytes."""

    request: float
    """Median of :meth:`~trimtab.guard.guard.Guard.check`."""
    step: float | None
    """Of :meth:`~trimtab.guard.guard.Guard.token_scores` for a step of 8 answers; None: answers are not checked."""
    output_bytes: int
    """Size of the output probe."""
    second: float | None
    """Median of the second stage for one reading (view) of a request, measured on the raw text of all of them; a check
    takes it for each reading whose score is above the band's lower end. None: there is no second stage."""
    second_bytes: int
    """Size of the second stage."""


class SecondResult(Record):
    """The second stage and its training."""

    band: Band
    """Which texts it reads."""
    escalate: float
    """Largest share of ordinary requests that it may read."""
    threshold: float
    """Its threshold."""
    training: SecondTraining
    """What its training texts say of it."""


class GuardResult(Record):
    """The whole file."""

    version: str
    """Of the guard."""
    data: tuple[str, ...]
    """Names of the files that the texts are from; empty: what training held out."""
    constitution: str
    """Name of the constitution."""
    guard_version: str
    """Hash of its guard rules."""
    budget: float
    """Largest share of harmless training texts that may be blocked."""
    threshold: float
    """Of the first stage."""
    second: SecondResult | None
    """None: there is none."""
    requests: RequestResult
    """On requests."""
    answers: AnswerResult | NotMeasured
    """On answers."""
    cost: Cost
    """Of a check."""

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        absent = set[str]() if self.second else {"first_stage"}
        return self.model_dump(mode="json", exclude={"requests": {"families": {"__all__": absent}}})
