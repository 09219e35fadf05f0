"""Which weights an online run ends with, and when it may end before its last step.

Candidates are the weights at the start of the run, those of its checkpoints, and the last ones. A candidate's score is
averaged over several steps: the one whose answers its weights drew, two steps before it and two after it, fewer at the
start and at the end of the run. One step's answers are too few, and each step has different prompts.

The answers of step s (from 1) come from the weights after s − 1 steps.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.errors import ConfigError
from trimtab.trainers.learner import Metrics

HELDOUT = "heldout"
"""Name of the held-out reward model's reward."""

SELECTED_BY = {"heldout": f"reward/{HELDOUT}", "proxy": "reward"}
"""The metric that each choice maximises."""

SIDE = 2
"""Steps before and after a candidate's own step that its score is averaged over."""

Select = Literal["last", "heldout", "proxy"]
"""How the weights that a run ends with are chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Weights that an online run ended with, if they are not those after its last planned step."""

    step: int
    """Finished steps of these weights."""
    ended: int
    """Number of steps that the run made."""
    reason: str
    """Why these weights, in words."""


class Selection:
    """Follows the scores of a run and chooses among its weights.

    Args:
        by: ``last``: the newest weights; ``heldout`` and ``proxy``: those with the highest score.
        patience: steps without a better candidate after which training ends; None: it does not.
        budget: largest KL to the reference, nats per answer; None: no limit.
        still: number of first steps in which only the critic trains; patience is counted after them.
    """

    def __init__(self, by: Select, *, patience: int | None = None, budget: float | None = None, still: int = 0) -> None:
        self.by: Select = by
        self._patience, self._budget, self._still = patience, budget, still
        self._scores: list[float] = []
        self._kls: list[float] = []

    @property
    def active(self) -> bool:
        """True: other weights than the last ones may be chosen."""
        return self.by != "last" or self._budget is not None

    def add(self, metrics: Metrics) -> None:
        """Add a step's metrics.

        Raises:
            ConfigError: the metrics lack the score that candidates are compared by.
        """
        if not self.active:
            return
        if self.by != "last":
            name = SELECTED_BY[self.by]
            if name not in metrics:
                raise ConfigError(
                    f"select is {self.by!r}, but no reward named {HELDOUT!r} was logged; in a recipe set reward.split: "
                    f"true, in Python return {HELDOUT!r} from the reward function and give it the weight 0"
                )
            self._scores.append(metrics[name])
        self._kls.append(metrics["kl"])

    def stop(self) -> str | None:
        """Why training should end now; None: it should not."""
        done = len(self._kls)
        latest = self._kls[-SIDE - 1 :]
        if self._budget is not None and latest and (kl := sum(latest) / len(latest)) > self._budget:
            return f"the KL to the reference is {kl:.3g} nats per answer, above the budget of {self._budget:g}"
        if self._patience is not None and done > SIDE:
            best = max(range(done - SIDE), key=lambda step: (self.score(step), -step))
            waited = done - SIDE - 1 - max(best, self._still)
            if waited >= self._patience:
                return f"the {self.by} score has not risen for {waited} steps"
        return None

    def score(self, candidate: int) -> float:
        """Mean score around the weights after ``candidate`` steps."""
        return _around(self._scores, candidate)

    def kl(self, candidate: int) -> float:
        """Mean KL around the weights after ``candidate`` steps, nats per answer; 0 where the run began."""
        return _around(self._kls, candidate) if candidate else 0.0

    def choose(self, candidates: Collection[int]) -> int:
        """The step of the best candidate, the earliest of equals. If all are over the budget, the first candidate."""
        within = [c for c in candidates if self._budget is None or self.kl(c) <= self._budget] or [min(candidates)]
        return max(within) if self.by == "last" else max(within, key=lambda c: (self.score(c), -c))

    def needed(self, checkpoints: Collection[int]) -> set[int]:
        """The checkpoints that may still be chosen: the best one, and those whose window of steps is not complete."""
        if not self.active or not checkpoints:
            return set()
        unjudged = {c for c in checkpoints if c + SIDE >= len(self._kls)}
        judged = set(checkpoints) - unjudged
        return unjudged | ({self.choose(judged)} if judged else set())

    def describe(self, step: int, reason: str | None) -> str:
        """Why the weights after ``step`` steps were chosen, in words."""
        why = "the newest" if self.by == "last" else f"their {self.by} score {self.score(step):.3g} is the highest"
        if self._budget is not None:
            why += f" within the KL budget of {self._budget:g} nats per answer"
        return why if reason is None else f"{reason}; {why}"

    def state_dict(self) -> Mapping[str, Any]:
        """State for a checkpoint."""
        return {"scores": list(self._scores), "kls": list(self._kls)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._scores, self._kls = list(state["scores"]), list(state["kls"])


def _around(values: list[float], candidate: int) -> float:
    """Mean over the steps around the one that the candidate's weights drew (place ``candidate``, from 0).

    Near the start the window is shortened on both sides; otherwise the start would get credit for later steps.
    """
    side = min(SIDE, candidate)
    near = values[max(0, min(candidate - side, len(values) - SIDE)) : candidate + side + 1]
    return sum(near) / len(near) if near else float("-inf")
