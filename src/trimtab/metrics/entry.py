"""The entry of one number."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What one number means."""

    title: str
    """Its name on a page."""
    meaning: str
    """One or two sentences."""
    unit: str
    """Unit of the value; ``share`` is between 0 and 1 and written in percent."""
    good: str
    """The range to expect."""
    act: str
    """What to do when it is outside that range."""
    where: str = ""
    """Where it occurs: stages or methods; empty: everywhere in its group."""
    live: str = ""
    """Format on the live line of a run; empty: not shown there."""
