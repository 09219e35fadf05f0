"""Sharded models, in which each rank has a part of the weights: FSDP2, PyTorch's ``fully_shard``.

Each rank stores 1/N of every weight. A layer's weights are gathered for its forward and its backward pass. Embedding,
final norm and head stay gathered from a forward pass to the end of the backward pass, because log-probabilities are
computed from the head's weight outside of the model.

If all weights are trained, gradients and the optimiser's moments are sharded too: a layer's gradients are summed and
divided in each backward pass. If they are frozen, nothing is summed; adapters on them are whole on every rank.

Every pass exchanges weights, so all ranks must make the same passes in the same order, except for passes inside
:meth:`Shards.gathered`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from trimtab.errors import StorageError
from trimtab.models.tensors import save_tensors

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
"""safetensors' names of tensor types."""


class Shards:
    """Shards the weights of a model over all ranks, permanently.

    Args:
        model: a causal language model, equal on all ranks.
        layers: its decoder layers; each is gathered separately.
        replicated: weights of the model that stay whole on every rank: those of adapters on frozen weights.
    """

    def __init__(self, model: Any, layers: Sequence[Any], *, replicated: Iterable[nn.Parameter] = ()) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        ignored = set(replicated)
        mesh = init_device_mesh(model.device.type, (torch.distributed.get_world_size(),))
        for module in (*layers, model):
            # One group of parameters for each layer and one for the rest; a tied head is in the same one as the
            # embedding, so it stays tied.
            fully_shard(module, mesh=mesh, ignored_params=ignored)
            module.set_gradient_divide_factor(1.0)  # a loss is divided by the sizes of the whole step already
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sums
        self._model, self._layers = model, list(layers)
        self.whole = False
        """True: inside :meth:`gathered`."""
        self.first = mesh.get_rank() == 0
        """True: this rank writes files."""
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        """This rank's parts of all weights, by name; the optimiser updates those that are trained."""
        # The first call decides which module gathers the weights outside the layers, so it must be on the whole model.
        model.final_states = MethodType(_final_states, model)
        register_fsdp_forward_method(model, "final_states")
        tokens = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        with torch.no_grad():
            self.final_states(model.base_model, input_ids=tokens, use_cache=False)
        self.divide()

    def final_states(self, trunk: nn.Module, **inputs: Any) -> Tensor:
        """Final hidden states, ``[B, T, H]``; afterwards the head's weight is whole until the backward pass ends.

        Args:
            trunk: the model without its head, or some of its layers (see :attr:`Backbone.frozen_half`).
            inputs: as ``trunk`` takes them.
        """
        return self._model.final_states(trunk, **inputs)

    def divide(self) -> None:
        """Free gathered weights, so that the next pass gathers the current ones."""
        for module in (*self._layers, self._model):
            module.reshard()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside the context, this rank has the whole model in plain tensors and can make passes without the others.

        All ranks enter and leave together. A weight that is changed inside must be restored before the end.
        """
        if self.whole:
            yield
            return
        self.whole = True
        self._keep_gathered(True)
        for module in (*self._layers, self._model):
            module.unshard()
        try:
            yield
        finally:
            self._keep_gathered(False)
            self.divide()
            self.whole = False

    def _keep_gathered(self, on: bool) -> None:
        for layer in self._layers:
            layer.set_reshard_after_forward(not on, recurse=False)
        for module in (*self._layers, self._model):
            module.set_reshard_after_backward(not on, recurse=False)


def _final_states(_model: Any, trunk: nn.Module, **inputs: Any) -> Tensor:
    return trunk(**inputs).last_hidden_state.clone()  # FSDP registers a hook on it, which a view can lose


# Tensors ----------------------------------------------------------------------------------


def is_sharded(tensor: Tensor) -> bool:
    """True: each rank has a part of the tensor."""
    return hasattr(tensor, "full_tensor")  # a DTensor, whose module takes a while to import


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU, gathered from all ranks if the tensor is sharded."""
    full: Any = tensor.detach()
    full = full.full_tensor() if is_sharded(full) else full
    return full.cpu().clone().contiguous()


def part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, in the same memory; the whole tensor if it is not sharded."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def part_like(values: Tensor, like: Tensor) -> Tensor:
    """The values on the device of ``like``, and sharded if ``like`` is.

    Every rank must have all of ``values``; the result may share memory with them.
    """
    values = values.to(like.device)
    if not is_sharded(like):
        return values
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(values, sharded.device_mesh, sharded.placements, src_data_rank=None)


def save_whole(path: Path | None, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; sharded ones are gathered one at a time to save memory.

    Args:
        path: None: this rank takes part in gathering and writes nothing.
        tensors: the same names on every rank.

    Raises:
        StorageError: they cannot be written; the other ranks do not hang.
    """
    if not any(is_sharded(tensor) for tensor in tensors.values()):
        if path is not None:
            save_tensors(path, {name: whole(tensor) for name, tensor in tensors.items()})
        return
    failed: OSError | None = None
    file: Any = None
    try:
        if path is not None:
            file = open(path, "wb")
            file.write(_header(tensors))
    except OSError as error:
        failed = error
    for tensor in tensors.values():
        values = whole(tensor)
        try:
            if file is not None and failed is None:
                file.write(values.reshape(-1).view(torch.uint8).numpy().tobytes())
        except OSError as error:
            failed = error
    try:
        if file is not None:
            file.close()
    except OSError as error:
        failed = failed or error
    if failed is not None:
        raise StorageError(f"{path}: cannot be written ({failed}); free some space and run the same command")


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """Header of a safetensors file: its length, and the location of each tensor."""
    entries, start = {}, 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
