"""Settings of a guard's training."""

from pydantic import Field, model_validator

from trimtab.config import Config


class GuardConfig(Config):
    """How a guard is trained."""

    budget: float = Field(default=0.01, gt=0.0, lt=1.0)
    """Largest share of harmless texts that the guard may block, measured on training texts by members that were not
    trained on them."""
    held_out: float = Field(default=0.25, gt=0.0, lt=1.0)
    """Share of the groups (pairs of twins, sources) kept out of training; the report measures the guard on them."""
    attacks: tuple[str, ...] = ()
    """Attack families that are added to the training texts. All others are held out."""
    layers: tuple[int, ...] = ()
    """Layers of the model that are compared, 1 … number of layers; empty: six layers between a quarter and three
    quarters of the depth."""
    poolings: tuple[str, ...] = ("mean", "max")
    """How a request's hidden states become one vector: ``mean``, ``max``, ``last``. Each has its own probe."""
    planted: int = Field(default=120, ge=8)
    """Answers assembled for the output guard, half of them with a restricted part."""
    escalate: float = Field(default=0.0, ge=0.0, le=0.1)
    """Largest share of ordinary requests that a second stage, an adapter on the model's last layer, may read; it
    decides about texts whose first score is neither clearly low nor clearly high. 0: there is no second stage. Must
    exceed the budget."""
    seed: int = Field(default=0, ge=0)
    """Seed of splits, attacks, planted answers and the second stage."""

    @model_validator(mode="after")
    def _escalation_exceeds_budget(self) -> "GuardConfig":
        """Refuse a band no wider than the budget: all of its texts would be blocked already."""
        if 0 < self.escalate <= self.budget:
            raise ValueError(
                f"--escalate is {self.escalate:g} and --budget is {self.budget:g}, so the second stage could block "
                "nothing new; raise --escalate (at most 0.1), lower --budget, or leave --escalate out"
            )
        return self
