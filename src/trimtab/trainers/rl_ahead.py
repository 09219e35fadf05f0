"""Answers drawn one step ahead: a step's answers come from the weights before the previous step's update.

They may be drawn elsewhere while the previous step trains. They are on disk before that step's checkpoint is written,
and the checkpoint records which weights drew them, so a resumed run uses the same answers.
"""

from collections.abc import Callable, Sequence

from trimtab.errors import EngineError
from trimtab.records import Rollout


class Ahead:
    """The next step's answers, while they are drawn and afterwards."""

    def __init__(self) -> None:
        self.version: int | None = None
        """Weight version of the next step's answers; None: they are drawn when the step begins."""
        self._number: int | None = None
        self._drawing: Callable[[], list[Rollout]] | None = None
        self._rollouts: list[Rollout] = []

    def begin(self, number: int, version: int, drawing: Callable[[], list[Rollout]]) -> None:
        """Register the answers of step ``number``, drawn with weights of ``version``; ``drawing`` waits for them."""
        self._number, self.version, self._drawing = number, version, drawing

    def wait(self) -> list[Rollout]:
        """Wait for the answers that are being drawn and return them; empty if there are none.

        Raises:
            EngineError: the answers come from other weights than requested.
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
        """State for a checkpoint."""
        return {"version": self.version}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.version = state["version"]


def check_version(rollouts: Sequence[Rollout], version: int, phase: str) -> None:
    """Refuse answers that were not drawn with the weights of ``version``.

    Raises:
        EngineError: the versions differ; names both.
    """
    others = [r for r in rollouts if r.weight_version != version]
    if others:
        raise EngineError(
            f"{len(others)} of {len(rollouts)} {phase} were drawn with weights of version {others[0].weight_version} "
            f"(first: {others[0].id}) and version {version} was asked for; give the sampler the learner's weights "
            "before each batch"
        )
