"""Inputs of a starter recipe: the machine, the data, and the answers to the questions of ``trimtab init``."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from trimtab.errors import ConfigError
from trimtab.records import Demonstration, Preference, Prompt, Rating, Record
from trimtab.records.check import FileCheck

Kind = Literal["preferences", "demonstrations", "ratings", "prompts"]
"""What a data file is used for."""

RECORDS: dict[Kind, type[Record]] = {
    "preferences": Preference,
    "ratings": Rating,
    "demonstrations": Demonstration,
    "prompts": Prompt,
}
"""Uses of a data file with the records they need, the most informative first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where the run will take place."""

    kind: Literal["cpu", "gpu"]
    """Whether models run on an accelerator."""
    memory_gb: float | None
    """Its memory in 10⁹ bytes; None: unknown, and the recipe sets no limit."""

    @classmethod
    def here(cls) -> "Machine":
        """This machine; a tenth of its memory is left for other programs."""
        if torch.cuda.is_available():
            total = torch.cuda.get_device_properties(0).total_memory
            return cls(kind="gpu", memory_gb=math.floor(total * 0.9 / 1e8) / 10)
        try:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            return cls(kind="cpu", memory_gb=None)
        return cls(kind="cpu", memory_gb=math.floor(total * 0.9 / 1e8) / 10)

    def __str__(self) -> str:
        """For example ``cpu, 7.2 GB``."""
        return self.kind if self.memory_gb is None else f"{self.kind}, {self.memory_gb:g} GB"


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """A data file and its content."""

    source: str
    """Path or hub id."""
    kind: Kind
    """What the file is used for."""
    report: FileCheck
    """Format, counts, lengths."""
    limited: bool
    """True: only the first rows of a hub data set were read."""
    format: str = "auto"
    """The requested format."""

    @property
    def lines(self) -> list[str]:
        """Sentences about the file, for people."""
        report = self.report
        records = ", ".join(f"{count} {kind}s" for kind, count in report.records.items())
        name = self.source if self.limited else Path(self.source).name
        lines = [f"{name}: format {report.format}, {report.rows} rows, {records}"]
        if self.limited:
            lines.append(f"only the first {report.rows} rows of the hub data set were looked at")
        if report.refused:
            first = report.refused[0]
            lines.append(
                f"refused rows, which are not used: {len(report.refused)} (first: line {first.line}, "
                f"{first.reason}); `trimtab data check {self.source}` lists them"
            )
        if report.duplicates:
            lines.append(f"duplicate records: {report.duplicates}")
        if report.chosen_longer is not None:
            lines.append(f"the better answer is the longer one in {report.chosen_longer:.0%} of {report.pairs} pairs")
        return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Answers to the questions of ``trimtab init``, from which a recipe is written."""

    name: str
    """Name of the run."""
    model: str
    """Name, folder or hub id of the pretrained model."""
    machine: Machine
    """Where the run will take place."""
    data: Data | None = None
    """The data file; None: there is none, and ``behaviour`` is given."""
    behaviour: str | None = None
    """What the model should do, in words."""
    verifier: str | None = None
    """Dotted path of a function that scores answers."""
    chat_template: str | None = None
    """A chat template, for models without one."""

    def __post_init__(self) -> None:
        """Refuse incomplete answers.

        Raises:
            ConfigError: an answer is missing; the message says what to add.
        """
        if self.behaviour is not None and not self.behaviour.strip():
            raise ConfigError("the behaviour is empty; say in a sentence what the model should do")
        if self.data is None and self.behaviour is None:
            raise ConfigError("a recipe needs data or a behaviour in words; give --data FILE or --behaviour TEXT")
        if self.data is None and self.verifier is not None:
            raise ConfigError("a verifier scores answers to prompts, and there are none; give --data FILE")
        if self.data is not None and self.data.kind == "prompts" and not (self.behaviour or self.verifier):
            raise ConfigError(
                f"{self.data.source} gives prompts only, so nothing says which answers are good; give --verifier "
                "package.module.function, which scores them, or --behaviour TEXT, by which an AI judge compares them"
            )

    @property
    def by_judge(self) -> bool:
        """True: an AI judge compares answers by the behaviour."""
        return (
            self.behaviour is not None
            and self.verifier is None
            and (self.data is None or self.data.kind in ("prompts", "demonstrations"))
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Token counts that determine ``model.context`` and the length of answers."""

    context: int
    """Length of a prompt with its answer."""
    answer: int
    """Value for ``max_new_tokens``."""
    measured: int
    """Number of records counted."""
    too_long: int
    """Number of these records that are longer than ``context``."""
    refused: int
    """Number of these records that the chat template refuses."""
    layers: int
    """Number of layers of the model."""
