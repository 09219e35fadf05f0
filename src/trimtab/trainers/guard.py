"""Detects a collapse of online alignment and names the last good weights.

Three limits, compared with the run's first step, whose answers come from the reference:

- ``ended``: answers no longer end their turn. This is the most common collapse: at too high a learning rate the policy
  forgets its end-of-turn token and every answer is cut.
- ``reward``: the reward is clearly lower than at the start. Not checked under a constraint, where the policy is meant
  to give up reward until the cost is below its limit.
- ``kl``: the policy is far from the reference and has gained nothing: neither a higher reward nor, under a constraint,
  a lower cost.

There is no limit on entropy, on the number of identical answers, or on KL per answer alone: all three can become
extreme in healthy runs that converge to one best answer. One bad step can be chance, so a limit must be exceeded on
consecutive steps.

The answers of step s (from 1) come from the weights after s − 1 steps. So a checkpoint is known to be good only one
step later, and it is kept until a newer one is known to be good.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.trainers.learner import Metrics

FEWEST = 16
"""Fewest answers of a step for which it is checked; means over fewer are too noisy."""

SHOWN = 8
"""Steps whose values a message shows."""


class GuardConfig(Config):
    """Limits beyond which online alignment counts as collapsed, and what happens then.

    Steps of fewer than 16 answers are not judged.
    """

    ended: float | None = Field(default=0.5, gt=0.0, lt=1.0)
    """Smallest share of answers that end their turn, relative to the first step's share. Judged only if more than half
    of the first step's answers ended and ``missing_eos`` penalises the others. None: not judged."""
    reward: float | None = Field(default=1.5, gt=0.0)
    """How far the mean reward may lie below the first step's, in standard deviations of that step's rewards. None: not
    judged. It is not judged under a ``constraint`` either, which trades reward for a lower cost."""
    kl: float | None = Field(default=3.0, gt=0.0)
    """Largest KL to the reference, in nats per token, while the mean reward is not above the first step's and the cost
    of a ``constraint`` not below it. None: not judged."""
    steps: int = Field(default=2, ge=1)
    """Consecutive steps beyond the same limit that count as collapsed."""
    on_fall: Literal["stop", "keep"] = "stop"
    """``stop``: the run stops with an error that names the last good checkpoint. ``keep``: alignment ends with the last
    good weights, and the run continues with them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fall:
    """A collapse."""

    step: int
    """The step on which it was noticed, from 1."""
    good: int
    """Finished steps of the last good weights: a checkpoint's step, or 0 for the start of the run."""
    reason: str
    """The limits that were exceeded, with the values of the last steps."""


class Guard:
    """Checks each step of a run.

    Args:
        config: the limits; None: every step is healthy.
        answers: number of answers per step.
        penalised: True: answers that do not end their turn are penalised.
        cost: name of the reward that a constraint limits; None: no constraint.
    """

    def __init__(self, config: GuardConfig | None, *, answers: int, penalised: bool, cost: str | None = None) -> None:
        self._config = config if answers >= FEWEST else None
        self._penalised, self._cost = penalised, cost
        self._steps: list[dict[str, float]] = []

    def check(self, metrics: Metrics) -> str | None:
        """Add a step's metrics and return why the run has collapsed; None: it has not."""
        if self._config is None:
            return None
        values = {name: metrics[name] for name in ("ended", "reward", "reward_std")}
        if self._cost is not None:
            values["cost"] = metrics.get(f"reward/{self._cost}", math.inf)  # inf: no answer has a token
        self._steps.append(values | {"kl": metrics["kl"] / max(metrics["length"], 1.0)})
        latest = [self._passed(step) for step in self._steps[-self._config.steps :]]
        if len(latest) < self._config.steps:
            return None
        reasons = [text for name, text in latest[-1].items() if all(name in passed for passed in latest)]
        return "; ".join(reasons) or None

    @property
    def good(self) -> Collection[int]:
        """Numbers of finished steps whose weights drew a healthy next step."""
        return [number for number, step in enumerate(self._steps) if not self._passed(step)]

    def _passed(self, step: Mapping[str, float]) -> dict[str, str]:
        """Descriptions of the limits that a step exceeded, by name."""
        config, first = self._config, self._steps[0]
        assert config is not None
        limits: dict[str, tuple[float, str]] = {}
        if config.ended is not None and self._penalised and first["ended"] > 0.5:
            least = config.ended * first["ended"]
            limits["ended"] = (step["ended"] - least, f"fewer than {least:.0%} of answers end their turn")
        if config.reward is not None and self._cost is None and first["reward_std"] > 0:
            least = first["reward"] - config.reward * first["reward_std"]
            limits["reward"] = (
                step["reward"] - least,
                f"the mean reward is below {least:.3g}, {config.reward:g} standard deviations under the first step's",
            )
        cheaper = self._cost is not None and step["cost"] < first["cost"]
        if config.kl is not None and step["reward"] <= first["reward"] and not cheaper:
            gains = "the mean reward has not risen" + ("" if self._cost is None else ", nor has the cost fallen")
            limits["kl"] = (
                config.kl - step["kl"],
                f"the KL to the reference is above {config.kl:g} nats per token and {gains}",
            )
        return {
            name: f"{text} ({name} by step, the last {len(self._steps[-SHOWN:])}: {self._values(name)})"
            for name, (room, text) in limits.items()
            if room < 0
        }

    def _values(self, name: str) -> str:
        return ", ".join(f"{step[name]:.3g}" for step in self._steps[-SHOWN:])

    def state_dict(self) -> Sequence[Mapping[str, float]]:
        """State for a checkpoint."""
        return [dict(step) for step in self._steps]

    def load_state_dict(self, state: Any) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._steps = [dict(step) for step in state]
