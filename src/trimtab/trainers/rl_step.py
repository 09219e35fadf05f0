"""One step of online alignment: its number, its seed, its clock."""

import time
from dataclasses import dataclass


class Clock:
    """Seconds spent in each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a phase and record its seconds under ``name``."""
        now = time.perf_counter()
        self.seconds[f"seconds/{name}"] = now - self._last
        self._last = now


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of a run."""

    number: int
    """Number of finished steps before it."""
    seed: int
    """Everything random in it is drawn from this."""
    resumed: bool
    """True: answers that an interrupted process drew with the same weights may be on disk."""
    clock: Clock
    """Measures the seconds of its phases."""

    @property
    def name(self) -> str:
        """Name of the step's files."""
        return step_name(self.number)


def step_name(number: int) -> str:
    """Name of the files of the step that follows ``number`` finished steps."""
    return f"step-{number:06d}"
