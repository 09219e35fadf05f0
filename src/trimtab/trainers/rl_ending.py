"""How an online run resumes from a checkpoint, when it ends, and which weights it ends with."""

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
    """State of a few numbers that changes from step to step and is saved in each checkpoint."""

    def state_dict(self) -> Any:
        """State for a checkpoint."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Restore what :meth:`state_dict` returned."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What a run saves, and what decides when it ends."""

    config: RlConfig
    """Settings of the run."""
    checkpoints: Checkpoints | None
    """Checkpoints of the run; None: it saves nothing."""
    learners: Mapping[str, Learner]
    """The learners of the run, by name."""
    untrained: Mapping[str, MovingWeights]
    """Weights that change without an optimiser."""
    adaptive: Mapping[str, Adaptive]
    """Other adaptive state, such as β, by name."""
    guard: Guard
    """Ends a run whose policy collapses."""
    selection: Selection
    """Ends a run by ``patience`` or ``kl.budget``, and chooses among its weights."""

    def restore(self) -> int:
        """Load the newest checkpoint and return the number of finished steps.

        Raises:
            ConfigError: the settings allow the run to end with earlier weights, but it saves none.
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
        """Check whether the run ends after this step; if it does, load the weights it ends with.

        Args:
            finished: number of finished steps.
            metrics: metrics of the last step.

        Returns:
            how the run ended; None: it continues, or it ends with the weights after its last planned step.

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
        """Load the weights that the run ends with.

        Args:
            finished: number of finished steps.
            reason: why the run ended early; None: it did not.

        Returns:
            the chosen weights; None: they are those after the last planned step.
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
        """After a collapse, load the last good weights or raise an error that names them."""
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
        """True: after a collapse the last good weights are loaded instead of raising an error."""
        return self.config.guard is not None and self.config.guard.on_fall == "keep"
