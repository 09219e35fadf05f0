"""Answers on disk as they were drawn, with what the frozen layers gave for them, so that a killed process goes on.

Hidden states computed again would differ in their last bits, and the continued run with them. So where states are kept
(:attr:`trimtab.models.Backbone.drawn`) they are written beside the answers, and answers without theirs (removed
when the answers have been used) are drawn again: from the same seed and weights they come out the same.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from trimtab.errors import CheckpointError, DataError
from trimtab.files import write_atomic
from trimtab.models import Backbone, load_tensors
from trimtab.records import Rollout, read_records, write_records


def write_drawn(path: Path, rollouts: Sequence[Rollout], backbone: Backbone) -> None:
    """Write rollouts to ``path`` and, where they are kept, their states beside it."""
    if backbone.tap and backbone.drawn is not None:
        known = {_name(r): backbone.drawn.get(r.prompt_tokens + r.tokens) for r in rollouts}
        write_atomic(_beside(path), save({name: torch.cat(s).cpu() for name, s in known.items() if s is not None}))
    write_records(path, rollouts)


def read_drawn(
    path: Path, wanted: Sequence[str], backbone: Backbone, *, version: int | None = None
) -> list[Rollout] | None:
    """The rollouts that :func:`write_drawn` wrote, their states known to the backbone again; None: draw them.

    Args:
        path: the file.
        wanted: id of each answer's prompt.
        backbone: what drew them.
        version: the weights they must be from; None: any.
    """
    if not path.exists() or (backbone.tap and not _beside(path).exists()):
        return None
    try:
        rollouts = read_records(path, Rollout)
        states = load_tensors(_beside(path)) if backbone.tap else {}
    except (DataError, CheckpointError):
        return None
    if [r.prompt.id for r in rollouts] != list(wanted):
        return None
    if version is not None and any(r.weight_version != version for r in rollouts):
        return None
    for rollout in rollouts:
        known = states.get(_name(rollout))
        if known is not None and backbone.drawn is not None:
            count, known = len(rollout.prompt_tokens), known.to(backbone.device)
            backbone.drawn.keep(rollout.prompt_tokens + rollout.tokens, known[:count], known[count:])
    return rollouts


def forget_drawn(folder: Path, pattern: str = "*") -> None:
    """Remove the states, which are large, of answers that have been used; the answers stay."""
    for path in folder.glob(f"{pattern}.states.safetensors"):
        path.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.states.safetensors")


def _name(rollout: Rollout) -> str:
    """What an answer's states are called: by its tokens, so that they can be no other answer's."""
    return hashlib.sha256(str(rollout.prompt_tokens + rollout.tokens).encode()).hexdigest()
