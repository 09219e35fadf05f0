"""Answers drawn one step ahead: those of a step come from the weights before the update of the step before it.

While the step trains, they may be drawn elsewhere. They are on disk before the checkpoint of the step is written, and
the checkpoint says which weights drew them, so a run that is continued uses the same ones.
"""

from collections.abc import Callable, Sequence

from trimtab.errors import EngineError
from trimtab.records import Rollout


class Ahead:
    """The next step's answers: being drawn, or there."""

    def __init__(self) -> None:
        self.version: int | None = None
        """Weight version of the answers of the next step; None: they are drawn when it begins."""
        self._number: int | None = None
        self._drawing: Callable[[], list[Rollout]] | None = None
        self._rollouts: list[Rollout] = []

    def begin(self, number: int, version: int, drawing: Callable[[], list[Rollout]]) -> None:
        """Answers of step ``number`` are being drawn with weights of ``version``; ``drawing`` waits for them."""
        self._number, self.version, self._drawing = number, version, drawing

    def wait(self) -> list[Rollout]:
        """The answers that are being drawn; empty if there are none.

        Raises:
            EngineError: they come from other weights than asked for.
        """
        if self._drawing is None or self._number is None or self.version is None:
            return []
        self._rollouts, self._drawing = self._drawing(), None
        check_version(self._rollouts, self.version, f"answers of step {self._number + 1}")
        return self._rollouts

    def take(self, number: int) -> list[Rollout] | None:
        """The answers of step ``number`` if this process drew them."""
        return self._rollouts if self._number == number and self._rollouts else None

    def state_dict(self) -> dict[str, int | None]:
        """For a checkpoint."""
        return {"version": self.version}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Continue from it."""
        self.version = state["version"]


def check_version(rollouts: Sequence[Rollout], version: int, phase: str) -> None:
    """Refuse answers that a sampler drew with other weights than those of ``version``.

    Raises:
        EngineError: naming both versions.
    """
    others = [r for r in rollouts if r.weight_version != version]
    if others:
        raise EngineError(
            f"{len(others)} of {len(rollouts)} {phase} were drawn with weights of version {others[0].weight_version} "
            f"(first: {others[0].id}) and version {version} was asked for; give the sampler the learner's weights "
            "before each batch"
        )
