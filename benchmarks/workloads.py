"""What is measured: one line per workload. Plain values only, so that this file needs no torch."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["sft", "reward", "ppo", "decode"]
Adapter = Literal["full", "lora"]

SEED = 0
"""Texts, adapters and sampling start from it, so every run measures the same work."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One optimiser step, PPO step or round of decoding, done again and again on the same data."""

    kind: Kind
    """What is done."""
    adapter: Adapter
    """``full``: all weights are trained; ``lora``: adapters of the default rank."""
    top_layers: int | None = None
    """LoRA on this many upper layers only; None: on all."""
    batch: int
    """Dialogues (sft), pairs (reward) or prompts (ppo, decode) per step."""
    epochs: int = 1
    """Passes over one rollout batch (ppo)."""
    new_tokens: int = 48
    """Answers are cut at so many tokens (ppo, decode)."""
    context: int = 256
    """The longest prompt and answer together, in tokens."""

    @property
    def name(self) -> str:
        """What tables call it, for example ``ppo 32, lora top 10``."""
        top = "" if self.top_layers is None else f" top {self.top_layers}"
        return f"{self.kind} {self.batch}, {self.adapter}{top}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the workloads are run."""

    model: str
    """What ``model.name`` of a recipe takes."""
    repeats: int
    """Timed steps; one more comes before them and is dropped."""
    threads: int
    """CPU threads of torch."""
    data: str | None = None
    """Preference file to take texts from; None: made-up sentences."""


def _all_adapters(**fields: object) -> list[Workload]:
    adapters = [{"adapter": "full"}, {"adapter": "lora"}, {"adapter": "lora", "top_layers": 10}]
    return [Workload(**adapter, **fields) for adapter in adapters]  # type: ignore[arg-type]


WORKLOADS: tuple[Workload, ...] = (
    *_all_adapters(kind="sft", batch=8),
    *_all_adapters(kind="reward", batch=8),
    *_all_adapters(kind="ppo", batch=32, epochs=4),
    *_all_adapters(kind="decode", batch=8),
    *_all_adapters(kind="decode", batch=32),
    *_all_adapters(kind="decode", batch=64),
)
