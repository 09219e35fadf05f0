"""Sums and means over the tokens that count. True in a mask always means: counts."""

import torch
from torch import Tensor

from trimtab.errors import TrainingError


def same_shape(**tensors: Tensor) -> None:
    """Refuse tensors of different shapes.

    Raises:
        TrainingError: naming each tensor and its shape.
    """
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise TrainingError(f"shapes differ: {', '.join(f'{n} {s}' for n, s in shapes.items())}; expected them equal")


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` where the mask is True, 0 elsewhere; NaN under a False never gets out, forward or backward."""
    same_shape(x=x, mask=mask)
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Σ x over True positions; a scalar.

    >>> float(masked_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([True, False, True])))
    5.0
    """
    return masked(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over True positions; 0 if there is none. For metrics: a loss is divided by the step's norm.

    >>> float(masked_mean(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([True, False, True])))
    2.5
    """
    return masked_sum(x, mask) / mask.sum().clamp(min=1)
