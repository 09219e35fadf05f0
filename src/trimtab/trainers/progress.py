"""What a trainer takes besides its data: where to log and checkpoint, and when to stop."""

from collections.abc import Callable
from dataclasses import dataclass, field

from trimtab.errors import Interrupted
from trimtab.trainers.checkpoint import Checkpoints
from trimtab.trainers.group import ALONE, Group
from trimtab.trainers.learner import Log


@dataclass(kw_only=True)
class Session:
    """The surroundings of one training stage; the defaults log nothing and save nothing."""

    log: Log = field(default=lambda metrics: None)
    """Receives the metrics of each step."""
    checkpoints: Checkpoints | None = None
    """Where to save and continue from; None: nowhere."""
    stop_requested: Callable[[], bool] = field(default=lambda: False)
    """Called after each step; True saves a checkpoint and raises :class:`Interrupted`."""
    planned: Callable[[int, int], None] = field(default=lambda done, total: None)
    """Called once with the number of finished steps (resume) and of all steps."""
    group: Group = ALONE
    """The processes that train together; checkpoints need the same one. Each of them has a session, and logs what it is
    given: let only the first one log."""

    def after_step(self, step: int, total: int, save: Callable[[Checkpoints, int], object]) -> None:
        """Checkpoint if due, stop if asked to; ``step`` is the number of finished steps, and ``save`` receives it."""
        stopping = step < total and any(self.group.gather(f"end of step {step}", self.stop_requested))
        if self.checkpoints is not None and (stopping or (step < total and self.checkpoints.due(step))):
            save(self.checkpoints, step)
        if stopping:
            raise Interrupted(f"stopped after step {step} of {total}; the state is saved, the same command continues")
