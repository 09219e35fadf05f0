"""Default learning rates, by what is trained and by the model's width.

The rates are for SmolLM2-135M (width 576); ``python -m benchmarks.rates`` measures them, and decision 79 has the
results. A wider model gets the rate times 576/width, because under Adam the change of a layer's output grows with its
width (Yang et al. 2022, arXiv 2203.03466, table 8). A narrower model gets the rate unchanged.
"""

from typing import Literal

from trimtab.models import Role
from trimtab.trainers.learner import OptimizerConfig

Stage = Literal["sft", "reward", "preference", "policy", "critic"]
"""What learns. ``preference``: offline methods; ``policy`` and ``critic``: online ones."""

Kind = Literal["lora", "full"]
"""Which weights are trained: adapters (or only a head), or all."""

WIDTH = 576
"""Width of the model that the rates are for."""

RATES: dict[Stage, dict[Kind, float]] = {
    "sft": {"lora": 3e-4, "full": 3e-5},
    "reward": {"lora": 3e-4, "full": 3e-5},
    "preference": {"lora": 1e-4, "full": 1e-5},
    "policy": {"lora": 3e-4, "full": 1e-5},
    "critic": {"lora": 4e-4, "full": 2e-5},
}
"""Peak learning rates at :data:`WIDTH`."""


def default_lr(stage: Stage, kind: Kind, width: int) -> float:
    """Peak learning rate of a stage, to two digits.

    Args:
        stage: what learns.
        kind: what is trained of it.
        width: the model's hidden size.

    >>> default_lr("sft", "lora", 576), default_lr("sft", "full", 4096)
    (0.0003, 4.2e-06)
    """
    return float(f"{RATES[stage][kind] * min(1.0, WIDTH / width):.2g}")


def with_lr(optimizer: OptimizerConfig, stage: Stage, role: Role) -> OptimizerConfig:
    """The settings, with the role's default if they have no learning rate."""
    if optimizer.lr is not None:
        return optimizer
    kind: Kind = "full" if role.full else "lora"
    return optimizer.model_copy(update={"lr": default_lr(stage, kind, role.backbone.width)})
