"""Rollouts on disk with their states of frozen layers, so that a killed process can resume exactly.

A rollout without its states is drawn again, with the same result for the same seed and weights. The states are large,
so :func:`remove_states` deletes them once the rollouts have been used.
"""

from collections.abc import Sequence
from pathlib import Path

from trimtab.errors import CheckpointError, DataError
from trimtab.models import FrozenStates
from trimtab.records import Rollout, read_records, write_records

_SUFFIX = ".states.safetensors"


def save_rollouts(path: Path, rollouts: Sequence[Rollout], states: FrozenStates | None = None) -> None:
    """Write rollouts to ``path`` and the states of frozen layers, if there are any, beside it."""
    if states is not None and states.active:
        states.save(_states_file(path), _sequences(rollouts))
    write_records(path, rollouts)


def load_rollouts(
    path: Path, prompt_ids: Sequence[str], states: FrozenStates | None = None, *, version: int | None = None
) -> list[Rollout] | None:
    """The rollouts that :func:`save_rollouts` wrote; their states are added to ``states``.

    Args:
        path: the file.
        prompt_ids: id of each answer's prompt, in order.
        states: receives the states of frozen layers; None: they are not needed.
        version: the weight version the answers must be from; None: any.

    Returns:
        None if the answers must be drawn: the file or its states are missing or damaged, or hold other prompts or
        another version.
    """
    if not path.exists():
        return None
    try:
        rollouts = read_records(path, Rollout)
    except DataError:
        return None
    if [r.prompt.id for r in rollouts] != list(prompt_ids):
        return None
    if version is not None and any(r.weight_version != version for r in rollouts):
        return None
    if states is not None and states.active:
        try:
            states.load(_states_file(path), _sequences(rollouts))
        except CheckpointError:
            return None
    return rollouts


def remove_states(folder: Path, pattern: str = "*") -> None:
    """Delete the states beside the rollouts of matching files; the rollouts stay."""
    for path in folder.glob(f"{pattern}{_SUFFIX}"):
        path.unlink()


def _states_file(path: Path) -> Path:
    return path.with_name(path.stem + _SUFFIX)


def _sequences(rollouts: Sequence[Rollout]) -> list[list[int]]:
    return [r.prompt_tokens + r.tokens for r in rollouts]
