"""Predicts the time and memory of a recipe on a named machine, from counted operations and bytes.

Everything except drawing answers is limited by operations: seconds = operations / (:data:`MFU` · peak). A decoding step
draws one token of several answers. It reads all weights and the answers' caches, and waits for the launch of each
layer's kernels::

    seconds of a step = max(bytes / (BANDWIDTH_SHARE · bandwidth), operations / (MFU · peak), layers · launch)

The launches of other passes are not counted, so for models below a billion parameters the prediction is a lower bound.
Only the CPU's row is measured. The rows of accelerators are from data sheets, and nobody has measured what trimtab
reaches on one. To add a machine, add a row to :data:`MACHINES`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from trimtab.errors import ConfigError
from trimtab.models import ModelConfig
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.costs import TOKENS, Cost
from trimtab.pipeline.memory import PROCESS, Storage, cached_numbers, stages_gb

MFU = 0.3
"""Assumed share of the peak that whole steps reach on an accelerator; eager training of an 8B model on H100s: 0.33
(torchtitan)."""

MFU_CPU = 0.5
"""Share of the measured matrix-product rate that whole steps reach on two CPU cores."""

BANDWIDTH_SHARE = 0.5
"""Assumed share of the bandwidth that decoding reaches."""

LAUNCH = 0.8e-3
"""Assumed seconds that Python and transformers take to launch a layer's kernels without a captured graph."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A kind of machine."""

    what: str
    """Description of the machine."""
    memory_gb: float
    """Memory of each device, in 10⁹ bytes."""
    bandwidth: float
    """Memory bandwidth of each device, in bytes per second."""
    float32: float
    """Floating point operations per second of each device, in float32 products."""
    bfloat16: float
    """Floating point operations per second of each device, in bfloat16 products."""
    devices: int = 1
    """Number of devices. Each is a rank and holds the whole model, or with ``scale.shard`` its part of it."""
    accelerator: bool = True
    """True: a GPU; False: a CPU."""

    @property
    def launch(self) -> float:
        """Seconds to launch a layer's kernels."""
        return LAUNCH if self.accelerator else 0.0

    @property
    def share(self) -> float:
        """Share of the peak that whole steps are assumed to reach."""
        return MFU if self.accelerator else MFU_CPU

    def rate(self, model: ModelConfig) -> float:
        """Operations per second that whole steps reach on one device."""
        uses_bfloat16 = self.accelerator and model.precision != "float32"
        return self.share * (self.bfloat16 if uses_bfloat16 else self.float32)


_H200 = Machine(what="one H200", memory_gb=141, bandwidth=4.8e12, float32=67e12, bfloat16=989e12)

MACHINES: Mapping[str, Machine] = {
    "cpu": Machine(
        what="2 cores of an AMD EPYC, as measured for the benchmarks",
        memory_gb=25,
        bandwidth=27e9,
        float32=140e9,
        bfloat16=140e9,
        accelerator=False,
    ),
    "24gb": Machine(
        what="a 24 GB card, figures of an RTX 4090", memory_gb=24, bandwidth=1.01e12, float32=83e12, bfloat16=165e12
    ),
    "80gb": Machine(
        what="an 80 GB card, figures of an A100", memory_gb=80, bandwidth=2.04e12, float32=19.5e12, bfloat16=312e12
    ),
    "h200": _H200,
    "h200x8": replace(_H200, what="eight H200, one rank each", devices=8),
}
"""The machines by their name for ``--machine``. Peaks are of dense products."""


def machine_named(name: str) -> Machine:
    """A row of the table.

    Raises:
        ConfigError: there is no such row.
    """
    if name not in MACHINES:
        raise ConfigError(
            f"--machine {name!r} is not known; use {', '.join(MACHINES)}, or add a row to trimtab/pipeline/machines.py"
        )
    return MACHINES[name]


def decoding_seconds(
    machine: Machine, model: ModelConfig, shape: Mapping[str, int], *, drawn: float, together: int
) -> float:
    """Seconds to draw ``drawn`` tokens on one device, ``together`` answers at a time.

    Each answer's cache is counted with :data:`~trimtab.pipeline.costs.TOKENS`, its length at the end.
    """
    width = Storage.of(model).frozen
    read = width * (shape["parameters"] + together * cached_numbers(dict(shape), TOKENS))
    operations = 2.0 * shape["active"] * together
    step = max(
        read / (BANDWIDTH_SHARE * machine.bandwidth), operations / machine.rate(model), machine.launch * shape["layers"]
    )
    return drawn / together * step


def stage_seconds(
    machine: Machine, model: ModelConfig, shape: Mapping[str, int], cost: Cost, *, divided: bool
) -> tuple[float, float]:
    """Seconds of a stage: for drawing answers, and for everything else.

    Args:
        machine: the machine.
        model: the model that is run.
        shape: shape of the model.
        cost: cost of the stage.
        divided: True: the devices share the stage's answers and its other work evenly; False: one does all.
    """
    devices = machine.devices if divided else 1
    together = max(1, min(cost.slots, -(-cost.answers // devices)))
    drawing = decoding_seconds(machine, model, shape, drawn=cost.drawn / devices, together=together)
    rest = max(0.0, cost.flops - 2.0 * shape["active"] * cost.drawn)
    return drawing, rest / machine.rate(model) / devices


class Fit(NamedTuple):
    """A recipe's memory on one device of a machine."""

    gb: dict[str, float]
    """Memory by stage, in 10⁹ bytes."""
    most: float
    """Memory of the largest stage, at least that of a process without a model."""
    lines: list[str]
    """What does not fit, and what to do."""


def fitting(config: RunConfig, machine: Machine) -> Fit:
    """Whether each stage fits a device of the machine."""
    ranks = machine.devices if machine.devices > 1 else None
    needed = stages_gb(config, accelerator=machine.accelerator, ranks=ranks)
    lines = [
        f"{name} needs about {gb:.0f} GB and a device has {machine.memory_gb:g}; {_advice(config, name, machine)}"
        for name, gb in needed.items()
        if gb > machine.memory_gb
    ]
    return Fit(gb=needed, most=max([PROCESS, *needed.values()]), lines=lines)


def prediction(name: str, machine: Machine, *, minutes: float, drawing: float, gb: float) -> str:
    """The line of a plan about a named machine."""
    fits = "fits" if gb <= machine.memory_gb else "does not fit"
    devices = "" if machine.devices == 1 else f" on each of {machine.devices} devices, which share the work evenly"
    peaks = "data sheets" if machine.accelerator else "measured on one such machine"
    launch = f", {machine.launch * 1e3:g} ms to launch a layer" if machine.launch else ""
    return (
        f"Prediction for {name} ({machine.what}), which nobody has measured: {minutes:.1f} min, of which drawing "
        f"answers {drawing:.1f}; {gb:.1f} GB of {machine.memory_gb:g}{devices}: it {fits}. Peaks are {peaks}; "
        f"{machine.share:.0%} of operations, {BANDWIDTH_SHARE:.0%} of bandwidth{launch} are assumed."
    )


def _advice(config: RunConfig, stage: str, machine: Machine) -> str:
    """Advice that makes a stage smaller, the cheapest first."""
    section, parts = getattr(config, stage), []
    if config.model.frozen_precision == "float32" and config.model.precision != "float32":
        parts.append("model.frozen_precision: bfloat16")
    if not config.model.gradient_checkpointing and stage in ("sft", "reward", "process", "align"):
        parts.append("model.gradient_checkpointing: true")
    if getattr(getattr(section, "adapter", None), "kind", None) == "full":
        if (
            machine.devices > 1 and not config.scale.shard
        ):  # with adapters it seldom helps: a rank loads the whole model
            distributed = config.scale.kind == "torchrun"
            parts.append("scale.shard: true" if distributed else "scale.kind: torchrun with scale.shard: true")
        parts.append(f"{stage}.adapter.kind: lora")
    if hasattr(section, "sampler"):
        parts.append(f"{stage}.sampler.slots below {section.sampler.slots}")
    return f"try {', '.join(parts)}" if parts else "use a larger machine or a smaller model"
