"""``guard.json``: what a guard is besides its weights and vocabulary, and how it was trained."""

from typing import Any

from trimtab.guard.second import Band, Calibration
from trimtab.guard.stream import Smoothing
from trimtab.records import Record


class MemberSettings(Record):
    """One member of the detector of requests."""

    name: str
    """``lexical``, or ``probe`` with its pooling."""
    slope: float
    """Calibration: log-odds = slope · z + offset."""
    offset: float
    """As above."""
    pooling: int | None = None
    """Index of a probe's pooling; None, and not in the file: the member reads text."""


class GuardedModel(Record):
    """The model whose activations are read."""

    name: str
    """Its name, folder or hub id."""
    identity: Any
    """Its files, from :func:`trimtab.models.model_identity`."""
    width: int
    """Width of its states."""
    layers: int
    """Number of its decoder layers."""


class SecondSettings(Record):
    """The second stage for requests."""

    band: Band
    """Which texts it reads."""
    calibration: Calibration
    """Of its log-odds."""
    threshold: float
    """An escalated text with a higher score is blocked."""


class OutputSettings(Record):
    """The detector of answers."""

    layer: int
    """The layer that is read."""
    smoothing: Smoothing
    """From token scores to the score of the answer so far."""
    threshold: float
    """An answer with a higher smoothed score is stopped."""


class SecondTraining(Record):
    """What the training texts say of the second stage, as in :class:`~trimtab.guard.second.FittedSecond`."""

    auroc: dict[str, float]
    """By score."""
    blocked: dict[str, float]
    """Share of restricted training texts that is blocked, by stage."""


class OutputTraining(Record):
    """What the training answers say of the output probe, as in :class:`~trimtab.guard.output.FittedOutput`."""

    layer_scores: tuple[float, ...]
    """AUROC of each layer."""
    delays: dict[str, float]
    """Mean tokens from onset to alarm, by smoothing."""


class TrainingFacts(Record):
    """How the guard was trained."""

    constitution: str
    """Name of the constitution."""
    guard_version: str
    """Hash of its guard rules."""
    config: dict[str, Any]
    """The :class:`~trimtab.guard.config.GuardConfig` as JSON."""
    counts: dict[str, int]
    """How many examples were used, held out and left out, and why."""
    layers: tuple[int, ...]
    """Layers that were compared."""
    layer_scores: dict[str, tuple[float, ...]]
    """By pooling: AUROC of a probe at each of them."""
    second: SecondTraining | None = None
    """None, and not in the file: there is no second stage."""
    output: OutputTraining | None = None
    """None, and not in the file: answers are not checked."""


class GuardSettings(Record):
    """The whole file."""

    format: int
    """Format 1 had no second stage."""
    members: tuple[MemberSettings, ...]
    """Of the detector."""
    slope: float
    """Calibration of the members' mean."""
    offset: float
    """As above."""
    threshold: float
    """A request with a higher score is blocked."""
    layer: int | None
    """The layer that the request probes read; None: there are none."""
    model: GuardedModel | None
    """None: nothing reads one."""
    rules: dict[str, str]
    """Text of each rule by id."""
    second: SecondSettings | None = None
    """None: there is none."""
    output: OutputSettings | None
    """None: answers are not checked."""
    facts: TrainingFacts
    """How it was trained."""
    version: str = ""
    """Hash of the rest and of the other files, 12 hexadecimal digits; empty while it is not written."""
