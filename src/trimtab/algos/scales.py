"""Numbers that adapt during a run: the scale of its rewards, and the price of exceeding a limit.

Both are updated once per rollout batch and saved with a checkpoint.
"""

import math
from collections.abc import Mapping, Sequence

from trimtab.errors import ConfigError


class RunningScale:
    """Standard deviation of all rewards so far, to divide rewards by.

    With n values of mean m and sum of squared deviations M, and a batch of k with mean μ and M_b:
    m ← m + (μ − m)·k/(n + k), M ← M + M_b + (μ − m)²·n·k/(n + k), σ = √(M/n) (population). Source: Chan et al. 1979; as
    a scale of rewards: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2, once, and Engstrom et al. 2020 (arXiv
    2005.12729), section 3, running. The mean is not subtracted: the zero of a reward has a meaning.

    >>> scale = RunningScale()
    >>> [round(scale.update(batch), 4) for batch in ([1.0, 3.0], [5.0, 7.0])]
    [1.0, 2.2361]
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    @property
    def value(self) -> float:
        """σ, in reward units; 1 as long as all rewards are equal, which leaves them unchanged."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > 1e-8 else 1.0

    def update(self, rewards: Sequence[float]) -> float:
        """Take in a batch and return the new σ.

        Args:
            rewards: rewards of answers, reward units; if empty, nothing changes.
        """
        if rewards:
            k, n = len(rewards), self.count
            mean = sum(rewards) / k
            gap = mean - self.mean
            self.squares += sum((r - mean) ** 2 for r in rewards) + gap**2 * n * k / (n + k)
            self.mean += gap * k / (n + k)
            self.count = n + k
        return self.value

    def state_dict(self) -> dict[str, float]:
        """State for a checkpoint."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.count, self.mean, self.squares = int(state["count"]), state["mean"], state["squares"]


class DualAscent:
    """The price λ of a cost, raised while the mean cost is above its limit and lowered while it is below.

    λ ← min(max(0, λ + η·(C − d)), largest), C the mean cost of a batch: projected ascent on the dual of
    max E[r] − β·KL subject to E[c] ≤ d. At convergence π ∝ ref·exp((r − λ*c)/β), and the limit holds with
    equality or λ* = 0. Source: Dai et al. 2023 (Safe RLHF, arXiv 2310.12773); there log λ is updated, and
    r − λc is divided by 1 + λ, which also changes the weight of the KL.

    Args:
        initial: first λ, reward units per unit of cost; 0 or above.
        limit: d, units of the cost per answer.
        lr: η, above 0.
        largest: upper bound of λ; None: unbounded.

    Raises:
        ConfigError: a value outside its range.

    >>> price = DualAscent(1.0, limit=0.5, lr=0.1)
    >>> [round(price.update(cost), 3) for cost in (1.5, 0.0)]
    [1.1, 1.05]
    """

    def __init__(self, initial: float, *, limit: float, lr: float, largest: float | None = None) -> None:
        end = math.inf if largest is None else largest
        if not (0 <= initial <= end and 0 < lr < math.inf and math.isfinite(limit) and math.isfinite(initial)):
            raise ConfigError(
                f"the multiplier is {initial} at first, {end} at most, its limit {limit} and its rate {lr}; set the "
                "first value from 0 to the largest, the rate above 0, all finite"
            )
        self.value, self.limit, self.lr, self.largest = initial, limit, lr, end

    def update(self, cost: float) -> float:
        """Take in the mean cost of a batch and return the new λ.

        Args:
            cost: C, mean over the batch's answers.
        """
        self.value = min(max(0.0, self.value + self.lr * (cost - self.limit)), self.largest)
        return self.value

    def state_dict(self) -> dict[str, float]:
        """State for a checkpoint."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.value = float(state["value"])
