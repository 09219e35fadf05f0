"""Checkpoints: weights and optimiser in safetensors, the rest in a small JSON file; written aside, then renamed.

Everything random in a training step is drawn from :func:`step_seed`, a function of (seed, stage,
step). So the step number determines the random state and the position in the data, and a resumed
run has, on the CPU, bit for bit the result of an uninterrupted one.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trimtab.errors import CheckpointError, ModelError, RankError
from trimtab.files import write_folder
from trimtab.models import load_tensors, save_tensors
from trimtab.models.sharded import is_sharded, save_whole
from trimtab.trainers.group import ALONE, Group
from trimtab.trainers.learner import Learner


def step_seed(seed: int, stage: str, step: int) -> int:
    """The seed from which everything random in one step is drawn."""
    digest = hashlib.sha256(f"{seed}|{stage}|{step}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def seed_step(seed: int, stage: str, step: int) -> int:
    """Set torch's global generator for one step (dropout) and return the step's seed."""
    value = step_seed(seed, stage, step)
    torch.manual_seed(value)
    return value


def step_of(checkpoint: Path) -> int:
    """Number of finished steps, read from a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


class Weights(Protocol):
    """Weights that are saved and loaded without an optimiser."""

    def state(self) -> dict[str, Tensor]:
        """A copy, on the CPU."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy weights in."""
        ...


class Checkpoints:
    """The checkpoints of one stage.

    Args:
        folder: where checkpoints are written; created at the first save.
        fingerprint: identifies data and settings; a checkpoint with a different fingerprint is refused.
        every: steps between checkpoints (the last step is the stage's output, which the stage saves).
        keep: number of checkpoints to keep.
        group: the processes that train together. The first one writes and all of them read the same folder. A run may
            resume with a different number of processes.
    """

    def __init__(self, folder: Path, fingerprint: str, *, every: int = 10, keep: int = 2, group: Group = ALONE) -> None:
        self.folder, self.fingerprint, self.every, self.keep, self.group = folder, fingerprint, every, keep, group

    def due(self, step: int) -> bool:
        """True if a checkpoint should be written after ``step`` finished steps."""
        return self.every > 0 and step % self.every == 0

    def save(
        self,
        step: int,
        learners: Mapping[str, Learner],
        extra: Mapping[str, Any] | None = None,
        *,
        good: Collection[int] = (),
        needed: Callable[[Collection[int]], Collection[int]] = lambda steps: (),
        untrained: Mapping[str, Weights] | None = None,
    ) -> Path:
        """Write a checkpoint after ``step`` finished steps; remove the oldest ones beyond ``keep``.

        The newest checkpoint whose step is in ``good`` is never removed, nor are those that ``needed`` returns when
        called with the steps of all checkpoints. ``untrained`` weights change without an optimiser, such as those of a
        reference that follows the policy.

        Raises:
            RankError: the ranks have different weights.
        """
        target = self.folder / f"step-{step:06d}"
        self._check_equal(step, learners)
        if not self.group.first:
            for learner in learners.values():
                save_whole(None, learner.parameters)
                save_whole(None, learner.optimizer_tensors())
            return target

        def fill(folder: Path) -> None:
            for name, learner in learners.items():
                save_whole(folder / f"{name}.safetensors", learner.parameters)
                save_whole(folder / f"{name}.optimizer.safetensors", learner.optimizer_tensors())
            for name, weights in (untrained or {}).items():
                save_tensors(folder / f"{name}.safetensors", weights.state())
            state = {"step": step, "fingerprint": self.fingerprint, "extra": dict(extra or {})}
            (folder / "state.json").write_text(json.dumps(state, indent=2))

        write_folder(target, fill)
        last_good, wanted = self.newest(good), needed([step_of(path) for path in self._all()])
        for old in self._all()[: -self.keep]:
            if old != last_good and step_of(old) not in wanted:
                shutil.rmtree(old, ignore_errors=True)
        return target

    @property
    def steps(self) -> list[int]:
        """Finished steps of each checkpoint, oldest first. All ranks must call it together."""
        return self.group.once("list of checkpoints", lambda: [step_of(path) for path in self._all()])

    def newest(self, steps: Collection[int] | None = None) -> Path | None:
        """The newest checkpoint, or the newest whose step is in ``steps``; None: there is none."""
        checkpoints = [path for path in self._all() if steps is None or step_of(path) in steps]
        return checkpoints[-1] if checkpoints else None

    def restore(
        self,
        learners: Mapping[str, Learner],
        steps: Collection[int] | None = None,
        *,
        untrained: Mapping[str, Weights] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Load the newest checkpoint, or the newest whose step is in ``steps``, into ``learners`` and ``untrained``.

        Returns:
            the number of finished steps (0: there is no checkpoint) and what was saved as ``extra``.

        Raises:
            CheckpointError: a checkpoint is damaged, or was written with another configuration.
        """
        latest = self.group.once("newest checkpoint", lambda: self.newest(steps))
        if latest is None:
            return 0, {}
        try:
            state = json.loads((latest / "state.json").read_text())
            fingerprint, step, extra = str(state["fingerprint"]), int(state["step"]), dict(state["extra"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
            raise CheckpointError(f"{latest}: state.json {problem}; delete {latest} and run again") from None
        if fingerprint != self.fingerprint:
            raise CheckpointError(
                f"{latest} was made under another configuration or other data (fingerprint "
                f"{fingerprint[:12]}, this run has {self.fingerprint[:12]}); restore the old settings to "
                "continue it, or use another run name to start afresh"
            )
        roles = {name: learner.role for name, learner in learners.items()}
        for name, weights in {**roles, **(untrained or {})}.items():
            try:
                weights.load_state(load_tensors(latest / f"{name}.safetensors"))
            except ModelError as error:
                raise CheckpointError(f"{latest}/{name}.safetensors: {error}") from None
        for name, learner in learners.items():
            learner.load_optimizer_state(load_tensors(latest / f"{name}.optimizer.safetensors"))
        return step, extra

    def _check_equal(self, step: int, learners: Mapping[str, Learner]) -> None:
        """Refuse to continue with weights that differ between ranks."""
        if self.group.size == 1:
            return

        def sums() -> list[float]:
            parameters = [p for learner in learners.values() for p in learner.parameters.values() if not is_sharded(p)]
            return [float(p.detach().double().sum()) for p in parameters]

        first, *others = self.group.gather(f"checkpoint after step {step}", sums)
        different = [rank for rank, other in enumerate(others, 1) if other != first]
        if different:
            raise RankError(
                f"after step {step} the weights of rank {different[0]} differ from those of rank 0, so no checkpoint "
                "was written; use machines of one kind, and the same number of threads for every rank, then run the "
                "same command to continue from the last checkpoint"
            )

    def _all(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if re.fullmatch(r"step-\d{6,}", p.name))
