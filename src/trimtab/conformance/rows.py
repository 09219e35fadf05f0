"""Rows of the table of experiments."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    experiment: str
    """Which one."""
    algorithm: str
    """What was run."""
    measure: str
    """What the value is."""
    value: float
    """The worst over the seeds."""
    low: float
    """Smallest value that passes."""
    high: float
    """Largest value that passes."""
    seeds: int
    """How many seeds."""

    @property
    def passed(self) -> bool:
        """True: the value lies within its tolerance."""
        return self.low <= self.value <= self.high

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {k: None if v in (math.inf, -math.inf) else v for k, v in asdict(self).items()} | {"passed": self.passed}


Experiment = Callable[[Sequence[int]], Iterator[Row]]


def worst_row(
    experiment: str,
    algorithm: str,
    measure: str,
    values: Sequence[float],
    *,
    low: float = -math.inf,
    high: float,
    seeds: int = 0,
) -> Row:
    """The value that is worst: furthest beyond a bound, or else nearest to one."""
    worst = min(values, key=lambda v: min(v - low, high - v) if math.isfinite(v) else -math.inf)
    return Row(
        experiment=experiment,
        algorithm=algorithm,
        measure=measure,
        value=worst,
        low=low,
        high=high,
        seeds=seeds or len(values),
    )
