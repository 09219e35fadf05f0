"""The small results of stages in JSON, and how each is read.

Every reader raises :class:`~trimtab.errors.DataError` for a file that is missing, damaged or by another version, with
the file, the field and what to do.
"""

from pathlib import Path

from trimtab.errors import DataError
from trimtab.evals import Capability, Measure
from trimtab.feedback import Estimate
from trimtab.records import Record
from trimtab.storage import REPLACE, read_record


class SftResult(Record):
    """``sft.json``: loss on held-out demonstrations, in nats per token."""

    heldout_nll_before: float | None
    """Before training; None: no demonstration was held out."""
    heldout_nll_after: float | None
    """After training."""


class CapabilityResult(Record):
    """``capability.json``: the check of a training stage."""

    before: Capability
    """The model before training."""
    after: Capability | None
    """The trained model; None: training is not finished."""


class BalanceResult(Record):
    """``balance.json``: harmlessness, helpfulness and preachiness before and after."""

    before: str
    """Key of the model before."""
    after: str
    """Key of the model after."""
    measures: tuple[Measure, ...]
    """Each measure of both models."""


def read_sft(folder: Path) -> SftResult:
    """Read the result of SFT from its stage's folder."""
    return read_record(folder / "sft.json", SftResult)


def read_balance(folder: Path) -> BalanceResult:
    """Read the result of the balance stage from its folder."""
    return read_record(folder / "balance.json", BalanceResult)


def read_capability(folder: Path) -> CapabilityResult:
    """Read the capability check of a training stage from its folder."""
    return read_record(folder / "capability.json", CapabilityResult)


def read_capability_after(folder: Path) -> Capability:
    """Read what a finished training stage measured of its model."""
    after = read_capability(folder).after
    if after is None:
        raise DataError(
            f"{folder / 'capability.json'}: after is null, expected the check of the trained model; {REPLACE}"
        )
    return after


def read_agreement(folder: Path) -> dict[str, Estimate]:
    """Read the annotators' agreement from the folder of the preferences stage."""
    return read_record(folder / "agreement.json", dict[str, Estimate])
