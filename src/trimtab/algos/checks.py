"""What every formula asks of its arguments before it computes. Internal to :mod:`trimtab.algos`."""

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


def positive(**numbers: float) -> None:
    """Refuse a hyper-parameter that is not above zero (NaN included).

    Raises:
        ConfigError: naming it and its value.
    """
    for name, number in numbers.items():
        if not number > 0:
            raise ConfigError(f"{name} is {number}; set it above 0")


def within_unit(name: str, probability: Tensor) -> None:
    """Refuse probabilities outside [0, 1]: with one, the loss has no lower end.

    Raises:
        TrainingError: naming the first bad value and its place.
    """
    bad = ~((probability >= 0) & (probability <= 1))
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        value = float(probability[tuple(place)])
        raise TrainingError(f"{name} is {value} at {place}; a soft label is a probability in [0, 1], mend the data")


def full(x: Tensor) -> Tensor:
    """``x`` in float32, or float64 if it was: exp, log and long sums are never done in 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
