"""Answers on disk as they were drawn, with what the frozen layers gave for them, so that a killed process goes on.

Hidden states computed again would differ in their last bits, and the continued run with them. So answers whose states
should be there and are not (they are removed when the answers have been used) are drawn again: from the same seed and
weights they come out the same.
"""

from pathlib import Path

import torch

from trimtab.errors import CheckpointError, DataError
from trimtab.models import Backbone, load_tensors, save_tensors
from trimtab.records import Rollout, read_records, write_records


def write_drawn(path: Path, rollouts: list[Rollout], backbone: Backbone) -> None:
    """Write rollouts to ``path`` and, where the backbone has frozen layers, their states beside it."""
    if backbone.frozen_layers:
        states = {}
        for number, rollout in enumerate(rollouts):
            known = backbone.drawn.get(rollout.prompt_tokens + rollout.tokens)
            if known is not None:
                states[str(number)] = torch.cat(known)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(_beside(path), states)
    write_records(path, rollouts)


def read_drawn(path: Path, backbone: Backbone) -> list[Rollout] | None:
    """The rollouts that :func:`write_drawn` wrote, their states known to the backbone again; None: draw them."""
    if not path.exists() or (backbone.frozen_layers and not _beside(path).exists()):
        return None
    try:
        rollouts = read_records(path, Rollout)
        states = load_tensors(_beside(path)) if backbone.frozen_layers else {}
    except (DataError, CheckpointError):
        return None
    for number, rollout in enumerate(rollouts):
        known = states.get(str(number))
        if known is not None:
            count = len(rollout.prompt_tokens)
            backbone.drawn.keep(rollout.prompt_tokens + rollout.tokens, known[:count], known[count:])
    return rollouts


def forget_drawn(folder: Path, pattern: str = "*") -> None:
    """Remove the states, which are large, of answers that have been used; the answers stay."""
    for path in folder.glob(f"{pattern}.states.safetensors"):
        path.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.states.safetensors")
