"""``guard.json``: a guard without its weights and vocabulary, and how it was trained."""

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
    """See ``slope``."""
    pooling: int | None = None
    """Index of a probe's pooling; None, and not in the file: the member reads text."""


class GuardedModel(Record):
    """The model whose activations the guard reads."""

    name: str
    """Its name, folder or hub id."""
    identity: Any
    """Identity of its files, from :func:`trimtab.models.model_identity`."""
    width: int
    """Width of its states."""
    layers: int
    """Number of its decoder layers."""


class SecondSettings(Record):
    """The second stage for requests."""

    band: Band
    """First-stage scores of the texts that the second stage reads."""
    calibration: Calibration
    """Calibration of its log-odds."""
    threshold: float
    """An escalated text with a higher score is blocked."""


class OutputSettings(Record):
    """The detector of answers."""

    layer: int
    """The layer that is read."""
    smoothing: Smoothing
    """Turns token scores into a score of the answer so far."""
    threshold: float
    """An answer with a higher smoothed score is stopped."""


class SecondTraining(Record):
    """Figures of the second stage on training texts, as in :class:`~trimtab.guard.second.FittedSecond`."""

    auroc: dict[str, float]
    """AUROC of each score."""
    blocked: dict[str, float]
    """Share of restricted training texts that are blocked, by stage."""


class OutputTraining(Record):
    """Figures of the output probe on training answers, as in :class:`~trimtab.guard.output.FittedOutput`."""

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
    """Number of examples used, held out and left out, by reason."""
    layers: tuple[int, ...]
    """Layers that were compared."""
    layer_scores: dict[str, tuple[float, ...]]
    """By pooling: AUROC of a probe at each of these layers."""
    second: SecondTraining | None = None
    """Figures of the second stage; None, and not in the file: there is none."""
    output: OutputTraining | None = None
    """Figures of the output probe; None, and not in the file: answers are not checked."""


class GuardSettings(Record):
    """The contents of ``guard.json``."""

    format: int
    """Number of the file format; format 1 had no second stage."""
    members: tuple[MemberSettings, ...]
    """Members of the detector."""
    slope: float
    """Calibration of the members' mean: log-odds = slope · mean + offset."""
    offset: float
    """See ``slope``."""
    threshold: float
    """A request with a higher score is blocked."""
    layer: int | None
    """The layer that the request probes read; None: there are no probes."""
    model: GuardedModel | None
    """The model that the guard reads; None: it reads none."""
    rules: dict[str, str]
    """Text of each rule by id."""
    second: SecondSettings | None = None
    """The second stage; None: there is none."""
    output: OutputSettings | None
    """The detector of answers; None: answers are not checked."""
    facts: TrainingFacts
    """How the guard was trained."""
    version: str = ""
    """Hash of the other fields and files, 12 hexadecimal digits; empty until the file is written."""
