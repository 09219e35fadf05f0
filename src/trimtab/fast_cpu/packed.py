"""Weights laid out for small batches while sampling.

A matrix product of 8 to 64 rows spends much of its time converting the weight matrix to the layout
in which the processor multiplies. Weights do not change while answers are drawn, so this is done
once per call instead of once per token.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.fast_cpu.allocation import mapped_apart

ROWS = 32
"""Number of rows that the layout is made for; others work too."""


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Inside the context, every linear layer of ``model`` multiplies with a prepacked copy of its weight.

    The arithmetic stays in float32; only the order of sums may differ. It needs memory for one copy of the
    weights. On other devices and precisions nothing changes.
    """
    changed: list[nn.Linear] = []
    try:
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear) and _can_pack(module.weight):
                    _pack(module)
                    changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _can_pack(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def _pack(module: Any) -> None:
    module.forward = packed_linear(module)


def packed_linear(*layers: nn.Linear) -> Callable[[Tensor], Tensor]:
    """One product for several linear layers with the same input; their outputs are concatenated."""
    with torch.no_grad():
        weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        if biases and len(biases) < len(layers):
            raise AttributeError("only some of the layers have a bias")
        bias = None if not biases else torch.cat(biases) if len(biases) > 1 else biases[0]
        with mapped_apart():
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
