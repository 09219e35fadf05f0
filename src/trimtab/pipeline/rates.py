"""Fills in the learning rates that a recipe leaves out, and warns of unusual ones."""

from collections.abc import Iterator

from trimtab.config import Config
from trimtab.models import AdapterConfig
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.memory import model_shape
from trimtab.trainers import OfflineConfig, OnlineConfig, OptimizerConfig, PpoConfig, RlConfig
from trimtab.trainers.defaults import Kind, Stage, default_lr
from trimtab.trainers.guard import FEWEST

HIGH_FACTOR = 5.0
"""Rates above this multiple of the default cause a warning."""

LOW_FACTOR = 100.0
"""Rates below the default divided by this cause a warning."""

EPOCHS = 5
"""More passes than this over one data set or rollout batch cause a warning."""

LARGE_STOP = 0.2
"""``kl.stop`` above this, in nats per token, rarely stops an update."""


def fill_rates(config: RunConfig) -> RunConfig:
    """The recipe with a learning rate in every optimiser; see :mod:`trimtab.trainers.defaults`."""
    sections: dict[str, Config] = {}
    for name, key, stage, optimizer in _optimizers(config):
        if optimizer.lr is None:
            filled = optimizer.model_copy(update={"lr": _default_rate(config, name, stage)})
            section: Config = sections[name] if name in sections else getattr(config, name)
            sections[name] = section.model_copy(update={key: filled})
    return config.model_copy(update=sections)


def rate_lines(config: RunConfig) -> list[str]:
    """A line for each optimiser of a recipe with all rates filled in."""
    return [
        f"{name}.{key}: AdamW{' with 8-bit moments' if o.state == '8bit' else ''}, learning rate {o.lr:g}, "
        f"{o.schedule} after {o.warmup:.0%} warm-up"
        for name, key, _, o in _optimizers(config)
    ]


def rate_warnings(config: RunConfig) -> list[str]:
    """Warnings about rates, epochs and limits far outside the usual range, for a recipe with all rates filled in."""
    lines = []
    for name, key, stage, optimizer in _optimizers(config):
        assert optimizer.lr is not None
        default, rate = _default_rate(config, name, stage), optimizer.lr
        if rate > HIGH_FACTOR * default * (1 + 1e-9):  # 5 × 3e-4 is below 1.5e-3 in binary
            lines.append(
                f"{name}.{key}.lr is {rate:g}, {rate / default:.0f} times the default of {default:g}; training may "
                f"fall apart. Up to {HIGH_FACTOR * default:g} is usual; leave it out for the default"
            )
        if rate < default / LOW_FACTOR:
            lines.append(
                f"{name}.{key}.lr is {rate:g}, and the default is {default:g}; little will be learnt. From "
                f"{default / LOW_FACTOR:g} on is usual; leave it out for the default"
            )
        if rate > default and optimizer.warmup == 0:
            lines.append(
                f"{name}.{key}.warmup is 0 and its lr {rate:g} is above the default of {default:g}; Adam's first steps "
                "are its least certain. Set warmup to 0.1, or lower lr"
            )
    for name in ("sft", "reward", "process", "align"):
        section = getattr(config, name)
        if section is not None and section.epochs > EPOCHS:
            lines.append(f"{name}.epochs is {section.epochs:g}; more than {EPOCHS} learn the data by heart. Use 1 to 3")
    if isinstance(config.align, OnlineConfig):
        lines += _online_warnings(config.align)
    return lines


def _online_warnings(align: RlConfig) -> list[str]:
    lines = []
    if align.kl.stop is not None and align.kl.stop > LARGE_STOP:
        lines.append(
            f"align.kl.stop is {align.kl.stop:g} nats per token and will hardly stop anything; use 0.01 to 0.1"
        )
    answers = align.prompts * align.group
    if align.guard is not None and answers < FEWEST:
        lines.append(
            f"align.guard judges no step: a step has {answers} answers and {FEWEST} are needed; raise align.prompts or "
            "align.group"
        )
    return lines


def _optimizers(config: RunConfig) -> Iterator[tuple[str, str, Stage, OptimizerConfig]]:
    """Section, key, kind of training, and settings of every optimiser."""
    if config.sft is not None:
        yield "sft", "optimizer", "sft", config.sft.optimizer
    if config.reward is not None:
        yield "reward", "optimizer", "reward", config.reward.optimizer
    if config.process is not None:
        yield "process", "optimizer", "reward", config.process.optimizer
    if isinstance(config.align, OfflineConfig):
        yield "align", "optimizer", "preference", config.align.optimizer
    if isinstance(config.align, OnlineConfig):
        yield "align", "policy", "policy", config.align.policy
    if isinstance(config.align, PpoConfig):
        yield "align", "critic", "critic", config.align.critic


def _default_rate(config: RunConfig, name: str, stage: Stage) -> float:
    """The default rate of a section's optimiser."""
    section = getattr(config, name)
    adapter: AdapterConfig = section.adapter
    head = stage == "critic" and isinstance(section, PpoConfig) and section.shared_critic
    kind: Kind = "full" if adapter.kind == "full" and not head else "lora"
    model = getattr(section, "model", None) or config.model
    return default_lr(stage, kind, model_shape(model)["width"])
