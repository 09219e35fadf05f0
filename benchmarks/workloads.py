"""What is measured: one line per workload. Plain values only, so that this file needs no torch."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["sft", "reward", "dpo", "rloo", "grpo", "ppo", "decode"]
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
    """Dialogues (sft), pairs (reward, dpo) or prompts (rloo, grpo, ppo, decode) per step."""
    group: int = 1
    """Answers per prompt (rloo, grpo)."""
    cached: bool = True
    """Whether the reference's log-probabilities are at hand (dpo); False: they are computed anew in every step."""
    shared_critic: bool = False
    """Whether the critic is a head on the policy's own states (ppo)."""
    epochs: int = 1
    """Passes over one rollout batch (ppo)."""
    new_tokens: int = 48
    """Answers are cut at so many tokens (rloo, grpo, ppo, decode)."""
    context: int = 256
    """The longest prompt and answer together, in tokens."""

    @property
    def name(self) -> str:
        """What tables call it, for example ``ppo 32, lora top 10``."""
        top = "" if self.top_layers is None else f" top {self.top_layers}"
        size = f"{self.batch}" if self.group == 1 else f"{self.batch}×{self.group}"
        more = "" if self.cached else ", reference in the step"
        more += ", shared critic" if self.shared_critic else ""
        return f"{self.kind} {size}, {self.adapter}{top}{more}"


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
    full_length: bool = False
    """Answers never end before ``new_tokens`` tokens, so that all who are compared decode equally many."""


def _all_adapters(**fields: object) -> list[Workload]:
    adapters = [{"adapter": "full"}, {"adapter": "lora"}, {"adapter": "lora", "top_layers": 10}]
    return [Workload(**adapter, **fields) for adapter in adapters]  # type: ignore[arg-type]


WORKLOADS: tuple[Workload, ...] = (
    *_all_adapters(kind="sft", batch=8),
    *_all_adapters(kind="reward", batch=8),
    *_all_adapters(kind="dpo", batch=8),
    *_all_adapters(kind="rloo", batch=8, group=4),
    *_all_adapters(kind="grpo", batch=8, group=4),
    *_all_adapters(kind="ppo", batch=32, epochs=4),
    *_all_adapters(kind="ppo", batch=32, epochs=4, shared_critic=True),
    *(Workload(kind="decode", adapter="full", batch=batch) for batch in (8, 32, 64)),  # adapters are merged before
)
