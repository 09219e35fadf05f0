"""Checks of arguments that all formulas share. Internal to :mod:`trimtab.algos`."""

import math

import torch
from torch import Tensor

from trimtab.errors import ConfigError, TrainingError


def same_shape(**tensors: Tensor) -> None:
    """Refuse tensors of different shapes: broadcasting ``[B]`` against ``[B, 1]`` is silent and wrong.

    Raises:
        TrainingError: naming each tensor and its shape.
    """
    if len({t.shape for t in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in tensors.items())
        raise TrainingError(f"shapes differ: {shapes}; make them equal, nothing is broadcast")


def two_dimensional(**tensors: Tensor) -> None:
    """Refuse anything but rows and columns, at least one column.

    Raises:
        TrainingError: naming the tensor and its shape.
    """
    for name, t in tensors.items():
        if t.dim() != 2 or t.shape[1] == 0:
            raise TrainingError(
                f"{name} has shape {list(t.shape)}; expected two dimensions, the second at least 1 long"
            )


def boolean(**tensors: Tensor) -> None:
    """Refuse masks and flags that are not bool: 0.5 and 2 mean nothing, and 0/1 would multiply instead of select.

    Raises:
        TrainingError: naming the tensor and its type.
    """
    for name, t in tensors.items():
        if t.dtype != torch.bool:
            raise TrainingError(f"{name} is {t.dtype}; masks and flags are bool, True = counts: pass {name}.bool()")


def positive(*, finite: bool = True, **numbers: float) -> None:
    """Refuse a hyper-parameter that is not above zero (NaN included), or with ``finite`` one that is infinite.

    Raises:
        ConfigError: naming it and its value.
    """
    for name, number in numbers.items():
        if not number > 0 or (finite and math.isinf(number)):
            raise ConfigError(f"{name} is {number}; set it above 0{' and finite' if finite else ''}")


def not_negative(**numbers: float) -> None:
    """Refuse a hyper-parameter that is below zero, infinite or NaN.

    Raises:
        ConfigError: naming it and its value.
    """
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise ConfigError(f"{name} is {number}; set it to 0 or above, and finite")


def within_unit(name: str, probability: Tensor) -> Tensor:
    """The probabilities in float32 or wider; refuses any outside [0, 1], for which the loss has no lower bound.

    Raises:
        TrainingError: naming the first bad value and its place.
    """
    bad = ~((probability >= 0) & (probability <= 1))
    if bool(bad.any()):
        place = places(bad)[0]
        value = float(probability[place])
        raise TrainingError(
            f"{name} is {value} at {list(place)}; a soft label is a probability in [0, 1], mend the data"
        )
    return full(probability)


def places(mask: Tensor) -> list[tuple[int, ...]]:
    """The indices of every True, in order, for messages."""
    return [tuple(int(index) for index in place) for place in mask.nonzero()]


def rows(mask: Tensor) -> list[int]:
    """The numbers of the rows of ``[B]`` that are True, in order, for messages."""
    return [place[0] for place in places(mask)]


def full(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is: exp, log and long sums are never computed in 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
