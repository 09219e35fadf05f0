"""What a trainer needs besides data: where to log and save checkpoints, and when to stop."""

from collections.abc import Callable
from dataclasses import dataclass, field

from trimtab.errors import Interrupted
from trimtab.trainers.checkpoint import Checkpoints
from trimtab.trainers.group import ALONE, Group
from trimtab.trainers.learner import Log


@dataclass(kw_only=True)
class Session:
    """Logging, checkpoints and stopping of one training stage; the defaults log and save nothing."""

    log: Log = field(default=lambda metrics: None)
    """Receives the metrics of each step."""
    checkpoints: Checkpoints | None = None
    """Where checkpoints are saved and resumed from; None: nowhere."""
    stop_requested: Callable[[], bool] = field(default=lambda: False)
    """Called after each step; True saves a checkpoint and raises :class:`Interrupted`."""
    planned: Callable[[int, int], None] = field(default=lambda done, total: None)
    """Called once with the number of steps finished before a resume and the total number of steps."""
    group: Group = ALONE
    """The processes that train together; ``checkpoints`` must have the same group. Each process has its own session; to
    log only once, give only the first process a ``log``."""

    def after_step(self, step: int, total: int, save: Callable[[Checkpoints, int], object]) -> None:
        """Save a checkpoint if due; stop if requested. ``step`` is the number of finished steps, passed to ``save``."""
        stopping = step < total and any(self.group.gather(f"end of step {step}", self.stop_requested))
        if self.checkpoints is not None and (stopping or (step < total and self.checkpoints.due(step))):
            save(self.checkpoints, step)
        if stopping:
            raise Interrupted(f"stopped after step {step} of {total}; the state is saved, the same command continues")
