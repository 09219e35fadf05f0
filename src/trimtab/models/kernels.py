"""The places where a faster implementation of the same arithmetic can be used.

Without one, :class:`Kernels` is used: plain PyTorch, PEFT and transformers. :func:`trimtab.fast_cpu.install` replaces
it with one for CPUs; nothing else in trimtab depends on which one is in use.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from trimtab.models.backbone import Backbone

Decoder = Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor | None]]
"""One decoding step: tokens ``[B]``, their positions ``[B]`` and the key-value cache → final hidden states ``[B, H]``
and those of the recorded layer, ``[B, H]`` (None if no layer is)."""


class Kernels:
    """Plain implementations; subclasses override some of them with faster ones that give the same numbers."""

    def adapter_added(self, model: nn.Module) -> None:
        """Called after an adapter was put on ``model``."""

    def sampling(
        self, backbone: "Backbone", *, recorded_layer: int | None = None
    ) -> AbstractContextManager[Decoder | None]:
        """Context in which answers are drawn and weights do not change; yields a decoding step or None.

        Args:
            backbone: the model.
            recorded_layer: the decoding step returns the states after this many layers; 0: none; None: after the frozen
                layers.
        """
        return nullcontext()

    def after_sampling(self) -> None:
        """Called when a batch of answers has been drawn and before it is trained on."""

    def accumulating_gradients(self, model: nn.Module) -> AbstractContextManager[None]:
        """Context of the backward passes of one optimiser step that trains all weights of ``model``."""
        return nullcontext()

    def weight_gradient(self, weight: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
        """∂L/∂W = leftᵀ·right for autograd to accumulate; None: it was accumulated already.

        Args:
            weight: W, ``[out, in]``.
            left: ``[N, out]``, gradient of the layer's output.
            right: ``[N, in]``, its input.
        """
        return (left.T @ right).to(weight.dtype)


_installed = Kernels()


def kernels() -> Kernels:
    """The implementation in use."""
    return _installed


def use_kernels(implementation: Kernels) -> None:
    """Use another implementation from now on, in the whole process."""
    global _installed
    _installed = implementation
