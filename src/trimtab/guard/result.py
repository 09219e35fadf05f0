"""``report.json`` of a guard: results on texts that its training did not see.

Intervals are 95 %. Intervals of requests count subjects (``group``); intervals of answers count answers.
"""

from typing import Any

from trimtab.feedback.calibration import Bin
from trimtab.guard.second import Band
from trimtab.guard.settings import SecondTraining
from trimtab.records import Record


class Share(Record):
    """A share with its interval."""

    value: float | None
    """The share; None: there is no such text."""
    low: float | None
    """Lower end of the interval."""
    high: float | None
    """Upper end of the interval."""
    n: int
    """Number of texts."""


class SubjectShare(Share):
    """A share of texts about some subjects."""

    groups: int
    """Number of subjects."""


class Shares(Record):
    """Shares of blocked restricted and of refused harmless requests."""

    blocked: SubjectShare
    """Share of restricted requests that are blocked."""
    refused: SubjectShare
    """Share of harmless requests that are refused."""


class Family(Shares):
    """Requests that are plain or in one attack's disguise."""

    held_out: bool
    """True: training did not see the attack."""
    first_stage: Shares | None = None
    """The shares with the first stage alone; None, and not in the file: there is no second stage."""
    below_plain: float
    """Blocked share of plain requests minus the blocked share of this family."""


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
    """Score of the request."""
    threshold: float
    """A higher score is blocked."""
    passes: float
    """Share of restricted requests that pass in this disguise."""


class RequestResult(Record):
    """Blocking and refusals on requests."""

    escalated: dict[str, SubjectShare] | None
    """Share of plain requests that the second stage read, by kind; None: there is no second stage."""
    auroc: float
    """AUROC on plain requests."""
    calibration: RequestCalibration
    """Calibration on plain requests."""
    rules: SubjectShare
    """Share of blocked restricted requests whose rule was named correctly."""
    families: dict[str, Family]
    """``plain``, and each attack."""
    succeeds: PassingAttack | None
    """The attack that passes most often; None: no attack passes."""
    unread: int
    """Plain requests of which the guard reads only a part."""


class HoldBackSize(Record):
    """Leakage with a buffer of one size."""

    size: int
    """Tokens held back."""
    leaks: Share
    """Share of planted answers of which a restricted token goes out."""
    tokens: float
    """Mean number of restricted tokens that go out."""


class OnsetTable(Record):
    """Delay, leakage and false alarms on answers with a known onset."""

    planted: int
    """Number of answers with restricted text from a known token on."""
    harmless: int
    """Number of answers without restricted text."""
    delay: int | float | None
    """Median tokens from onset to alarm, among planted answers with an alarm; None: no answer has one."""
    early: Share
    """Share of planted answers with an alarm before the onset."""
    false_alarms: Share
    """Share of harmless answers with an alarm."""
    missed: Share
    """Share of planted answers without an alarm."""
    hold_back: tuple[HoldBackSize, ...]
    """Leakage by size of the buffer."""


class AnswerResult(OnsetTable):
    """The onset table of answers assembled from held-out sentences."""

    sentences: int
    """Number of these sentences."""


class NotMeasured(Record):
    """Answers were not measured."""

    reason: str
    """Why the answers were not measured."""


class Cost(Record):
    """CPU time in milliseconds, and size of the weights in bytes."""

    request: float
    """Median time of :meth:`~trimtab.guard.guard.Guard.check`."""
    step: float | None
    """Time of :meth:`~trimtab.guard.guard.Guard.token_scores` for a step of 8 answers; None: answers are not
    checked."""
    output_bytes: int
    """Size of the output probe."""
    second: float | None
    """Median time of the second stage for one reading (view) of a request, measured on the raw text of all requests. A
    check takes this time for each reading whose score is above the band's lower end. None: there is no second stage."""
    second_bytes: int
    """Size of the second stage."""


class SecondResult(Record):
    """The second stage and its training."""

    band: Band
    """First-stage scores of the texts that the second stage reads."""
    escalate: float
    """Largest share of ordinary requests that the second stage may read."""
    threshold: float
    """An escalated text with a higher score is blocked."""
    training: SecondTraining
    """Figures of the second stage on training texts."""


class GuardResult(Record):
    """The contents of a guard's file of results."""

    version: str
    """Version of the guard."""
    data: tuple[str, ...]
    """Names of the files that contain the texts; empty: the texts are those that training held out."""
    constitution: str
    """Name of the constitution."""
    guard_version: str
    """Hash of its guard rules."""
    budget: float
    """Largest share of harmless training texts that may be blocked."""
    threshold: float
    """Threshold of the first stage."""
    second: SecondResult | None
    """The second stage; None: there is none."""
    requests: RequestResult
    """Results on requests."""
    answers: AnswerResult | NotMeasured
    """Results on answers."""
    cost: Cost
    """Cost of checks."""

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        absent = set[str]() if self.second else {"first_stage"}
        return self.model_dump(mode="json", exclude={"requests": {"families": {"__all__": absent}}})
