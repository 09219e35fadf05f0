"""Tensors in files, as safetensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trimtab.errors import CheckpointError, StorageError


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors; a full disk is a :class:`StorageError`."""
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        raise StorageError(f"{path}: cannot be written ({error}); free some space and run the same command") from None


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read safetensors; a damaged or missing file is a :class:`CheckpointError`."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or missing ({error}); delete {path.parent} and run again") from None
