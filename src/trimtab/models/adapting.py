"""The linear layers of a model that take an adapter, and those that cannot.

An adapter computes where a layer is called. Some blocks take the layer's weight and multiply by themselves (fused
kernels of recurrent layers), and most mixtures of experts keep the weights of all experts in one three-dimensional
parameter, where there is no layer to adapt. A few classes derive from ``nn.Linear`` and compute something else, such as
one product per group of inputs. Some weights belong to several layers at once. An adapter there would train nothing, be
ignored while training and added when it is merged, or fail. So these parts stay as they are, and a layer that has
nothing else is refused.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from trimtab.errors import ConfigError

_log = logging.getLogger(__name__)


def linear_layers(layers: nn.ModuleList, first: int) -> dict[str, nn.Module]:
    """Linear layers of the decoder layers from number ``first`` on, by their names below ``layers``.

    Those with an adapter on them already are included, under the name of the layer itself.
    """
    layers_by_name: dict[str, nn.Module] = {}
    for name, module in layers.named_modules():
        if int(name.split(".")[0] or -1) < first or ".lora_" in name:
            continue
        if isinstance(module, nn.Linear | Conv1D):
            layers_by_name[name.removesuffix(".base_layer")] = module
    return layers_by_name


def adaptable(model: Any, layers: nn.ModuleList, first: int, tokens: Tensor) -> list[str]:
    """Names, below ``layers``, of the linear layers that an adapter can be put on.

    Args:
        model: the whole model, no adapter active.
        layers: its decoder layers.
        first: number of the lowest decoder layer with an adapter.
        tokens: ``[1, T]``, a row to run.

    Raises:
        ConfigError: a decoder layer has no such linear layer; the message names what it has instead.
    """
    linear = linear_layers(layers, first)
    uses = Counter(id(module._parameters.get("weight")) for module in model.modules())
    shared = {name for name, module in linear.items() if uses[id(module.weight)] > 1}
    unsuitable = shared | _unsuitable(model, linear, tokens)
    names = [name for name in linear if name not in unsuitable]
    fixed = sorted({_short(name) for name in unsuitable} | _expert_parameters(layers, first))
    for number in range(first, len(layers)):
        if not any(name.startswith(f"{number}.") for name in names):
            raise ConfigError(
                f"{type(model).__name__}: layer {number} has no linear layer that takes an adapter (its weights: "
                f"{', '.join(fixed) or ', '.join(sorted(n for n, _ in layers[number].named_parameters()))}); set "
                "adapter.kind: full, or adapter.top_layers to the layers above it"
            )
    if fixed:
        _log.warning("%s: no adapter on %s; they stay as they are", type(model).__name__, ", ".join(fixed))
    return names


def _short(name: str) -> str:
    """A module's name without the number of its layer."""
    return name.partition(".")[2]


def _expert_parameters(layers: nn.ModuleList, first: int) -> set[str]:
    """Parameters that hold the matrices of several experts, without the numbers of their layers."""
    return {
        _short(name)
        for name, parameter in layers.named_parameters()
        if int(name.split(".")[0]) >= first and parameter.dim() == 3 and "expert" in name
    }


def _unsuitable(model: Any, linear: dict[str, nn.Module], tokens: Tensor) -> set[str]:
    """Linear layers that compute something else than x·Wᵀ + b, or whose weight is used without calling them."""
    called: set[str] = set()
    different: set[str] = set()

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            called.add(name)
            if type(module) not in (nn.Linear, Conv1D) and not _is_product(module, inputs, output):
                different.add(name)

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in linear.items()]
    try:
        with torch.no_grad():
            model.base_model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return different | _bypassed(model, {name: module for name, module in linear.items() if name not in called}, tokens)


def _is_product(module: Any, inputs: tuple[Tensor, ...], output: Any) -> bool:
    """Whether a layer's output is that of ``nn.Linear``; quantised weights, which PEFT knows, count as such."""
    if module.weight.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        return True
    if len(inputs) != 1 or not isinstance(output, Tensor) or module.weight.dim() != 2:
        return False
    if inputs[0].shape[-1] != module.weight.shape[1]:
        return False
    product = functional.linear(inputs[0].to(module.weight.dtype), module.weight, module.bias).to(output.dtype)
    return product.shape == output.shape and torch.allclose(product, output, rtol=1e-2, atol=1e-3)


def _bypassed(model: Any, uncalled: dict[str, Any], tokens: Tensor) -> set[str]:
    """Those of the uncalled linear layers whose weight the result depends on."""
    if not uncalled:
        return set()
    frozen = [module.weight for module in uncalled.values() if not module.weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            weights = [module.weight for module in uncalled.values()]
            if not states.requires_grad:
                return set()
            slopes = torch.autograd.grad(states.float().sum(), weights, allow_unused=True)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    return {name for name, slope in zip(uncalled, slopes, strict=True) if slope is not None}


def put_adapter(
    layers: nn.ModuleList, names: Sequence[str], name: str, *, rank: int, alpha: int, dropout: float
) -> None:
    """Put a LoRA adapter on linear layers.

    PEFT sees the decoder layers only, and names in full. Given a whole model it translates names such as ``gate_proj``
    to parameters of all experts in every layer.

    Args:
        layers: the decoder layers.
        names: which linear layers, by their names below ``layers``.
        name: of the adapter.
        rank: r.
        alpha: scale of the update, times r.
        dropout: probability.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(re.escape(target) for target in names),
        bias="none",
    )
    inject_adapter_in_model(config, layers, name)
    for path, parameter in layers.named_parameters():
        # PEFT takes the layer's precision, in which small steps of an optimiser are lost.
        if f".{name}." in path and ".lora_" in path and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def remove_adapter(layers: nn.ModuleList, name: str) -> None:
    """Remove an adapter."""
    for module in layers.modules():
        if isinstance(module, BaseTunerLayer):
            module.delete_adapter(name)
    configs: Any = getattr(layers, "peft_config", {})
    configs.pop(name, None)
