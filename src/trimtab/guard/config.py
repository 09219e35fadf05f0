"""Settings of a guard's training."""

from pydantic import Field

from trimtab.config import Config


class GuardConfig(Config):
    """How a guard is trained."""

    budget: float = Field(default=0.01, gt=0.0, lt=1.0)
    """Largest share of harmless texts that the guard may block, counted on training texts by members that did not see
    them."""
    held_out: float = Field(default=0.25, gt=0.0, lt=1.0)
    """Share of the groups (pairs of twins, sources) that training does not see; the report is about them."""
    attacks: tuple[str, ...] = ()
    """Attack families that are added to the training texts. The others are held out whole."""
    layers: tuple[int, ...] = ()
    """Layers of the model that are compared, 1 … number of layers; empty: six between a quarter and three quarters."""
    poolings: tuple[str, ...] = ("mean", "max")
    """How a request's states become one vector, a probe each: ``mean``, ``max``, ``last``."""
    planted: int = Field(default=120, ge=8)
    """Answers that are put together for the output guard, half of them with a restricted part."""
    seed: int = Field(default=0, ge=0)
    """Of splits, attacks and planted answers."""
