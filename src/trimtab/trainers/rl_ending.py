"""How an online run is continued from a checkpoint, when it ends, and the weights that it ends with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from trimtab.errors import CollapseError, ConfigError
from trimtab.trainers.checkpoint import Checkpoints
from trimtab.trainers.guard import Fall, Guard
from trimtab.trainers.learner import Learner, Metrics
from trimtab.trainers.reference import MovingWeights
from trimtab.trainers.rl_config import PolicyGradientConfig, RlConfig
from trimtab.trainers.selection import Chosen, Selection


class Adaptive(Protocol):
    """A few numbers that change from step to step and are part of each checkpoint."""

    def state_dict(self) -> Any:
        """The numbers."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Continue from them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What is saved of a run, and what decides about its end."""

    config: RlConfig
    """Of the run."""
    checkpoints: Checkpoints | None
    """Of the run; None: it saves nothing."""
    learners: Mapping[str, Learner]
    """What is trained."""
    untrained: Mapping[str, MovingWeights]
    """Weights that change without an optimiser."""
    adaptive: Mapping[str, Adaptive]
    """Numbers that change, by name."""
    guard: Guard
    """Ends a run whose policy collapses."""
    selection: Selection
    """Ends a run that is far enough, and chooses among its weights."""

    def restore(self) -> int:
        """Continue from the newest checkpoint; the number of finished steps.

        Raises:
            ConfigError: the run may end with earlier weights, and saves none.
        """
        checkpoints = self.checkpoints
        done, extra = (0, {}) if checkpoints is None else checkpoints.restore(self.learners, untrained=self.untrained)
        for name, part in self._parts.items():
            if name in extra:
                part.load_state_dict(extra[name])
        if done == 0 and (self._returns_to_good or self.selection.active):
            if checkpoints is None:
                setting = f"select is {self.config.select!r}" if self.config.select != "last" else "kl.budget is set"
                if self._returns_to_good:
                    setting = "guard.on_fall is 'keep'"
                raise ConfigError(
                    f"{setting}, which needs checkpoints; give the session some, or set on_fall: stop, select: last "
                    "and kl.budget: null"
                )
            self.save(checkpoints, 0)
        return done

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        """Write a checkpoint after ``step`` finished steps."""
        checkpoints.save(
            step,
            self.learners,
            {name: part.state_dict() for name, part in self._parts.items()},
            good=self.guard.good,
            needed=self.selection.needed,
            untrained=self.untrained,
        )

    def after(self, finished: int, metrics: Metrics) -> Fall | Chosen | None:
        """How the run ends after so many finished steps, with its last weights loaded; None: it does not.

        Args:
            finished: steps.
            metrics: of the last one.

        Raises:
            CollapseError: the policy collapsed, and ``guard.on_fall`` is ``stop``.
        """
        reason = self.guard.check(metrics)
        if reason is not None:
            return self._fall(finished, reason)
        self.selection.add(metrics)
        reason = self.selection.stop()
        return None if reason is None else self.choose(finished, reason)

    def choose(self, finished: int, reason: str | None = None) -> Chosen | None:
        """Load the weights that the run ends with; None: they are those after its last planned step.

        Args:
            finished: steps that were made.
            reason: why it ended early; None: it did not.
        """
        if not self.selection.active or self.checkpoints is None:
            return None
        best = self.selection.choose({*self.checkpoints.steps, finished})
        if best != finished:
            self.checkpoints.restore(self.learners, [best])
        if best == self.config.steps:
            return None
        return Chosen(step=best, ended=finished, reason=self.selection.describe(best, reason))

    def _fall(self, finished: int, reason: str) -> Fall:
        """After a collapse load the last good weights, or raise an error that names them."""
        config, checkpoints = self.config, self.checkpoints
        if self._returns_to_good and checkpoints is not None:
            sound = set(self.guard.good) & set(checkpoints.steps)
            good, _ = checkpoints.restore(self.learners, [self.selection.choose(sound)] if sound else self.guard.good)
            return Fall(step=finished, good=good, reason=reason)
        last_good = checkpoints.newest(self.guard.good) if checkpoints is not None else None
        advice = [f"lower policy.lr (now {self.learners['policy'].config.lr:g})"]
        if isinstance(config, PolicyGradientConfig):
            advice.append(f"raise kl.coefficient (now {config.kl.coefficient:g})")
        if config.kl.stop is None and config.epochs * config.minibatches > 1:
            advice.append("set kl.stop")
        raise CollapseError(
            f"alignment fell apart, noticed at step {finished}: {reason}. "
            + (f"Last good checkpoint: {last_good}. " if last_good else "No checkpoint was written before that. ")
            + f"In the align section {', or '.join(advice)}; with other settings the stage starts anew. "
            "guard.on_fall: keep continues with the last good weights instead, and guard: null switches this check off"
        )

    @property
    def _parts(self) -> dict[str, Adaptive]:
        return {**self.adaptive, "guard": self.guard, "selection": self.selection}

    @property
    def _returns_to_good(self) -> bool:
        """True: after a fall the run continues with the last good weights."""
        return self.config.guard is not None and self.config.guard.on_fall == "keep"
