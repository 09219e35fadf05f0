"""Faster training and sampling on CPUs: the same arithmetic in fewer passes over memory.

Call :func:`install` once, before models are loaded. Without it everything runs more slowly, with the same results up
to the order in which floating-point sums are added. It changes:

- ``allocation``: glibc keeps freed memory, so that large tensors are not mapped and zeroed anew at each use;
- ``lora``: a linear layer and its adapter as one function;
- ``gradients``: when all weights are trained, gradients are added up in one block, and less is kept for them;
- ``packed``: weights laid out for the small batches of sampling;
- ``decoder``: the decoding step of the Llama family without the overhead of library calls.

Each part checks that it applies; other devices, precisions and architectures use the plain implementation.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trimtab.fast_cpu.allocation import keep_freed_memory, release_freed_memory
from trimtab.fast_cpu.decoder import LlamaDecoder, can_decode
from trimtab.fast_cpu.gradients import add_product, gradients_in_one_block
from trimtab.fast_cpu.lora import use_lora_linear
from trimtab.fast_cpu.packed import packed
from trimtab.models import Backbone
from trimtab.models.kernels import Decoder, Kernels, use_kernels

__all__ = ["FastCpu", "install", "uninstall"]


def install() -> None:
    """Use the faster implementations in this process. Existing adapters do not change."""
    keep_freed_memory()
    use_kernels(FastCpu())


def uninstall() -> None:
    """Use plain implementations from now on. Memory settings and existing adapters do not change."""
    use_kernels(Kernels())


class FastCpu(Kernels):
    """The faster implementations; see the module's docstring."""

    def __init__(self) -> None:
        self._decodes: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def adapter_added(self, model: nn.Module) -> None:
        """Compute each linear layer and its adapter as one function."""
        use_lora_linear(model)

    @contextmanager
    def sampling(self, backbone: Backbone, *, recorded_layer: int | None = None) -> Iterator[Decoder | None]:
        """Lay weights out for few rows; yield a decoding step for the Llama family."""
        if backbone.dtype != torch.float32:
            yield None
            return
        if backbone.model not in self._decodes:
            self._decodes[backbone.model] = can_decode(backbone)
        if self._decodes[backbone.model]:
            with packed(backbone.head):
                layer = backbone.frozen_layers if recorded_layer is None else recorded_layer
                yield LlamaDecoder(backbone.model.base_model, recorded_layer=layer)
        else:
            with packed(backbone.model):
                yield None

    def after_sampling(self) -> None:
        """Return the memory of packed weights and caches to the system; an update needs other blocks."""
        release_freed_memory()

    def accumulating_gradients(self, model: nn.Module) -> AbstractContextManager[None]:
        """Accumulate gradients in one block of memory."""
        return gradients_in_one_block(model)

    def weight_gradient(self, weight: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
        """Add the gradient in the block if the weight has a place in it."""
        return add_product(weight, left, right)
