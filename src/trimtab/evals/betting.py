"""Tests whether a bounded mean has risen, and intervals for it, valid at every step; by betting.

A gambler who starts with 1 and bets that the mean is above m has, after observations x_1 … x_t in [0, 1],

    E_t = Π_i (1 + λ (x_i − m)),    0 ≤ λ ≤ 1/m.

While the mean given the past is at most m, E is a supermartingale that is never negative, so by Ville's inequality
P(E_t ≥ 1/α at any t) ≤ α: the bound covers all looks together. I. Waudby-Smith and A. Ramdas, "Estimating means of
bounded random variables by betting", JRSS B 86 (2024), https://arxiv.org/abs/2010.09686, sections 4 and 5.

Three operations keep that property:

- An average over the size of the bet (:data:`BETS`), so that nothing has to be estimated. An average of such processes
  is such a process.
- An average over the step at which the mean starts to rise, uniformly over the planned steps. A single process would
  lose its wealth while nothing happens, and notice a late rise late. Sums over all starts (e-detectors,
  J. Shin, A. Ramdas and A. Rinaldo, https://arxiv.org/abs/2203.03532) control the mean time to a false alarm; the
  average used here controls the probability of any false alarm in the run.
- A product over the prompts of a step. They are drawn without replacement, and for numbers that are not negative the
  expected product of such a draw is at most that of a draw with replacement (Maclaurin's inequality). So the product
  of one step's bets is fair for prompts in random order.

Two cases are not covered: prompts in an order of difficulty, and looks within an epoch. Within an epoch, the mean of
the remaining prompts depends on those already drawn, and Maclaurin's inequality holds for the product at a fixed step,
not for its maximum. With few prompts in an epoch, the error may exceed α.
"""

import math
from collections.abc import Sequence

from trimtab.errors import DataError

BETS = (0.06, 0.12, 0.25, 0.5, 0.9)
"""Bets λ, each as a share of the largest one."""


def upper_bound(values: Sequence[float], alpha: float) -> float:
    """Upper confidence bound of a mean: the smallest m that a bet against "the mean is at least m" refutes.

    P(mean > bound) ≤ α, for values in [0, 1] of any distribution. The values may be dependent if each has the same mean
    given the earlier ones. The bet is Π (1 − λ_i (x_i − m)) with λ_i = √(2 log(1/α) / (n σ̂²_{i−1})), at most
    0.9/(1 − m), where σ̂² is the variance of the earlier values (Waudby-Smith and Ramdas, equation 26). The bet rises
    with m.

    Args:
        values: in [0, 1], at least one.
        alpha: probability of an error.

    Raises:
        DataError: no values, or one outside [0, 1].

    >>> round(upper_bound([0.0] * 80, 0.05), 3)  # exact for shares: 1 − 0.05^(1/80) = 0.037
    0.041
    """
    _check(values)
    log_threshold = math.log(1 / alpha)
    bets, total, squared_deviations = [], 0.5, 0.25
    for number, x in enumerate(values, 1):
        bets.append(math.sqrt(2 * log_threshold / (len(values) * squared_deviations / number)))
        total += x
        squared_deviations += (x - total / (number + 1)) ** 2

    def refuted(m: float) -> bool:
        largest_bet = 0.9 / (1 - m)
        return (
            math.fsum(math.log1p(min(b, largest_bet) * (m - x)) for b, x in zip(bets, values, strict=True))
            >= log_threshold
        )

    low, high = math.fsum(values) / len(values), 1.0
    if low == 1:
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high


def anytime_interval(values: Sequence[float], alpha: float = 0.05) -> tuple[float, float]:
    """Interval of a mean that is valid after every value: P(it ever excludes the mean) ≤ α.

    The lower end is the largest m that the bet "the mean is above m" has refuted at any time so far, E_t(m) ≥ 2/α with

    E_t(m) = mean over :data:`BETS` b of Π_{i ≤ t} (1 + (b/m)(x_i − m));

    the upper end is the same for 1 − x. Values may depend on earlier ones: the interval is for the mean of each value
    given those before it, if this mean is the same for all. If it is not, a lower end above m still says, with the same
    error, that not all of these means are at most m.

    Args:
        values: in [0, 1], in the order in which they came; without any, the interval is (0, 1).
        alpha: probability of an error, two-sided.

    Raises:
        DataError: a value outside [0, 1].

    >>> low, high = anytime_interval([1.0] * 20)
    >>> round(low, 2), high
    (0.75, 1.0)
    >>> anytime_interval([0.0, 1.0] * 10)[0] < 0.5
    True
    """
    if not values:
        return 0.0, 1.0
    _check(values)
    return _lower_end(values, alpha / 2), 1 - _lower_end([1 - x for x in values], alpha / 2)


def _lower_end(values: Sequence[float], alpha: float) -> float:
    log_threshold, low, high = math.log(1 / alpha), 0.0, 1.0

    def refuted(m: float) -> bool:
        logs = [0.0] * len(BETS)
        for x in values:
            for number, bet in enumerate(BETS):
                logs[number] += math.log1p(bet / m * (x - m))
            if _mean(logs) >= log_threshold:
                return True
        return False

    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


class RiseTest:
    """Tests at every step whether a mean has risen above a bound.

    Args:
        bound: m; a bound of 1 or more is never exceeded.
        steps: number of planned steps; a rise that starts after them is not tested.
    """

    def __init__(self, bound: float, steps: int) -> None:
        self.bound, self._planned_steps, self._steps_done = bound, steps, 0
        self._started_log_wealth = [-math.inf] * len(BETS)
        self.log_e = 0.0
        """log E after the last step. Once it reaches log(1/α), the mean has risen, with an error of at most α."""

    def update(self, values: Sequence[float]) -> float:
        """Add a step; returns log E after it.

        Args:
            values: values of the step's prompts, in [0, 1]; without any, E stays as it is.

        Raises:
            DataError: a value outside [0, 1].
        """
        self._steps_done += 1
        if self.bound >= 1:
            return self.log_e
        if values:
            _check(values)
        log_start_weight = -math.log(self._planned_steps) if self._steps_done <= self._planned_steps else -math.inf
        log_waiting_weight = (
            math.log(max(0, self._planned_steps - self._steps_done) / self._planned_steps)
            if self._steps_done < self._planned_steps
            else -math.inf
        )
        for number, bet in enumerate(BETS):
            log_growth = _log_product(values, self.bound, bet / self.bound)
            self._started_log_wealth[number] = _log_add(self._started_log_wealth[number], log_start_weight) + log_growth
        self.log_e = _mean([_log_add(log_wealth, log_waiting_weight) for log_wealth in self._started_log_wealth])
        return self.log_e


def _log_product(values: Sequence[float], m: float, stake: float) -> float:
    """Log Π (1 + stake · (x − m)); computed in pieces, each with a product of at least 0.1 to the 64th."""
    base = 1 - stake * m
    pieces = (values[i : i + 64] for i in range(0, len(values), 64))
    return math.fsum(math.log(math.prod([base + stake * x for x in piece])) for piece in pieces)


def _log_add(a: float, b: float) -> float:
    """log(exp a + exp b)."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def _mean(logs: Sequence[float]) -> float:
    """Log of the mean of exp."""
    high = max(logs)
    return high if high == -math.inf else high + math.log(math.fsum(math.exp(x - high) for x in logs) / len(logs))


def _check(values: Sequence[float]) -> None:
    out_of_range = [value for value in values if not 0 <= value <= 1]
    if out_of_range or not values:
        raise DataError(f"a bounded mean needs values in [0, 1], got {out_of_range[:3] or 'none'} among {len(values)}")
