"""Faster training and sampling on processors: the same arithmetic in fewer passes over memory.

One call, :func:`install`, before models are loaded. Everything runs without it, slower, and gives the same numbers up
to the order in which floating-point sums are added. What it changes:

- ``allocation``: glibc keeps freed memory, so that large tensors are not mapped and zeroed anew at each use;
- ``lora``: a linear layer and its adapter as one function;
- ``gradients``: when all weights are trained, gradients are added up in one block, and less is kept for them;
- ``packed``: weights laid out for the small batches of sampling;
- ``decoder``: the decoding step of the Llama family without the overhead of library calls.

Each of them checks that it applies: other devices, precisions and architectures take the plain way.
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
    """Use the faster implementations in this process. Adapters that are already there stay as they are."""
    keep_freed_memory()
    use_kernels(FastCpu())


def uninstall() -> None:
    """Use plain implementations from now on; memory settings and existing adapters stay as they are."""
    use_kernels(Kernels())


class FastCpu(Kernels):
    """See the module's docstring."""

    def __init__(self) -> None:
        self._decodes: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def adapter_added(self, model: nn.Module) -> None:
        """Let its linear layers compute with their adapters as one function."""
        use_lora_linear(model)

    @contextmanager
    def sampling(self, backbone: Backbone, *, recorded_layer: int | None = None) -> Iterator[Decoder | None]:
        """Weights are laid out for few rows; the Llama family has its own decoding step."""
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
        """Return freed memory to the system: packed weights and caches are not what an update needs next."""
        release_freed_memory()

    def accumulating_gradients(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gradients are added up in one block of memory."""
        return gradients_in_one_block(model)

    def weight_gradient(self, weight: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
        """Added to the block where the weight has a place in it."""
        return add_product(weight, left, right)
