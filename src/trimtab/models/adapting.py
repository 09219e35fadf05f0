"""Finds the parts of a model that can take an adapter, and puts adapters on them.

An adapter takes effect when its layer is called. Some blocks read the layer's weight and do the product themselves
(fused kernels of recurrent layers). A few classes derive from ``nn.Linear`` and compute something else, such as one
product per group of inputs. Some weights belong to several layers. An adapter on such a part would train nothing, have
an effect only after merging, or fail. So these parts get no adapter; a decoder layer without other parts is refused.

Mixtures of experts keep the matrices of all experts in one three-dimensional parameter. PEFT adds each expert's B·A to
it during a pass. These parameters get an adapter if the settings request it and a probe shows that the adapter computes
the same as its merge; otherwise the settings are refused.
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from trimtab.errors import ConfigError

_log = logging.getLogger(__name__)


def linear_layers(layers: nn.ModuleList, first: int) -> dict[str, nn.Module]:
    """Linear layers of the decoder layers from number ``first`` on, by their names below ``layers``.

    Layers that already have an adapter are included under their own names.
    """
    layers_by_name: dict[str, nn.Module] = {}
    for name, module in layers.named_modules():
        if int(name.split(".")[0] or -1) < first or ".lora_" in name:
            continue
        if isinstance(module, nn.Linear | Conv1D):
            layers_by_name[name.removesuffix(".base_layer")] = module
    return layers_by_name


def expert_parameters(layers: nn.ModuleList, first: int = 0) -> list[str]:
    """Parameters ``[experts, …, …]`` of the decoder layers from number ``first`` on, by their names below ``layers``.

    Each contains one matrix per expert. A module's parameters are in the order in which PEFT wraps them.
    """
    names = []
    for path, module in layers.named_modules():
        if ".lora_" in path or int(path.split(".")[0] or -1) < first:
            continue
        plain = path.replace(".base_layer", "")
        if "expert" in f"{plain} {type(module).__name__}".lower():
            names += [f"{plain}.{name}" for name, p in module.named_parameters(recurse=False) if p.dim() == 3]
    return names


def suitable_layers(model: Any, layers: nn.ModuleList, first: int, tokens: Tensor) -> list[str]:
    """Names, below ``layers``, of the linear layers that can take an adapter; may be empty.

    Arguments as for :func:`adaptable`.
    """
    linear = linear_layers(layers, first)
    uses = Counter(id(module._parameters.get("weight")) for module in model.modules())
    shared = {name for name, module in linear.items() if uses[id(module.weight)] > 1}
    unsuitable = shared | _unsuitable(model, linear, tokens)
    return [name for name in linear if name not in unsuitable]


def adaptable(
    model: Any, layers: nn.ModuleList, first: int, tokens: Tensor, *, experts: Collection[str] = ()
) -> list[str]:
    """Names, below ``layers``, of the linear layers that can take an adapter.

    Args:
        model: the whole model, no adapter active.
        layers: its decoder layers.
        first: number of the lowest decoder layer with an adapter.
        tokens: ``[1, T]``, a row to run.
        experts: parameters of experts that will get an adapter too.

    Raises:
        ConfigError: a decoder layer has neither such linear layers nor such experts; names what it has.
    """
    names = suitable_layers(model, layers, first, tokens)
    unsuitable = linear_layers(layers, first).keys() - set(names)
    left_out = {_short(name) for name in set(expert_parameters(layers, first)).difference(experts)}
    fixed = sorted({_short(name) for name in unsuitable} | left_out)
    for number in range(first, len(layers)):
        if not any(name.startswith(f"{number}.") for name in (*names, *experts)):
            raise ConfigError(
                f"{type(model).__name__}: layer {number} has no linear layer that takes an adapter (its weights: "
                f"{', '.join(fixed) or ', '.join(sorted(n for n, _ in layers[number].named_parameters()))}); set "
                "adapter.kind: full, or adapter.top_layers to the layers above it"
            )
    if fixed:
        hint = "; adapter.experts: true adapts the experts" if left_out else ""
        _log.warning("%s: no adapter on %s; they stay as they are%s", type(model).__name__, ", ".join(fixed), hint)
    return names


def _short(name: str) -> str:
    """A module's name without the number of its layer."""
    return name.partition(".")[2]


def _unsuitable(model: Any, linear: dict[str, nn.Module], tokens: Tensor) -> set[str]:
    """Linear layers that do not compute x·Wᵀ + b, or whose weight is used without calling the layer."""
    called: set[str] = set()
    different: set[str] = set()

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        called.add(name)
        if type(module) not in (nn.Linear, Conv1D) and not _is_product(module, inputs, output):
            different.add(name)

    with ExitStack() as hooks, torch.no_grad():
        for name, module in linear.items():
            hooks.enter_context(module.register_forward_hook(partial(record, name)))
        model.base_model(input_ids=tokens, use_cache=False)
    return different | _bypassed(model, {name: module for name, module in linear.items() if name not in called}, tokens)


def _is_product(module: Any, inputs: tuple[Tensor, ...], output: Any) -> bool:
    """Whether a layer's output equals that of ``nn.Linear``; quantised layers that PEFT supports count as equal."""
    if module.weight.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        return True
    if len(inputs) != 1 or not isinstance(output, Tensor) or module.weight.dim() != 2:
        return False
    if inputs[0].shape[-1] != module.weight.shape[1]:
        return False
    product = functional.linear(inputs[0].to(module.weight.dtype), module.weight, module.bias).to(output.dtype)
    return product.shape == output.shape and torch.allclose(product, output, rtol=1e-2, atol=1e-3)


def _bypassed(model: Any, uncalled: dict[str, Any], tokens: Tensor) -> set[str]:
    """The uncalled linear layers whose weight affects the result."""
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
    layers: nn.ModuleList,
    names: Sequence[str],
    name: str,
    *,
    experts: Sequence[str] = (),
    rank: int,
    alpha: int,
    dropout: float,
) -> None:
    """Put a LoRA adapter on linear layers and on parameters of experts.

    PEFT gets only the decoder layers, and full names. Given a whole model, it would translate names such as
    ``gate_proj`` to parameters of all experts in every layer. Each adapter gets a new list of the layers, which PEFT
    treats as a model without adapters. Otherwise PEFT would refuse an adapter on experts of other layers than an
    earlier adapter's, because the names of their weights could differ. Here they cannot differ: either all parameters
    of a module get an adapter or none does.

    Args:
        layers: the decoder layers.
        names: which linear layers, by their names below ``layers``.
        name: name of the adapter.
        experts: which parameters of experts, by their names below ``layers``.
        rank: r; of each expert.
        alpha: scale of the update, times r.
        dropout: probability.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(re.escape(target) for target in names) or "(?!)",
        target_parameters=list(experts) or None,
        bias="none",
    )
    inject_adapter_in_model(config, nn.ModuleList(layers), name)
    for path, parameter in layers.named_parameters():
        # PEFT takes the layer's precision, in which small steps of an optimiser are lost.
        if f".{name}." in path and ".lora_" in path and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def remove_adapter(layers: nn.ModuleList, name: str) -> None:
    """Remove an adapter."""
    for module in layers.modules():
        if isinstance(module, BaseTunerLayer):
            module.delete_adapter(name)


def adapted_weight(module: Any) -> nn.Parameter:
    """The frozen parameter that an adapted layer adds its B·A to."""
    return module.get_param() if isinstance(module, ParamWrapper) else module.get_base_layer().weight


# Experts ----------------------------------------------------------------------------------


def check_experts(model: Any, layers: nn.ModuleList, name: str, tokens: Tensor) -> None:
    """Compare a new adapter on experts with its merge, module by module; B is zero before and after.

    Args:
        model: the whole model, no adapter active.
        layers: its decoder layers.
        name: name of the adapter.
        tokens: ``[1, T]``, a row to run.

    Raises:
        ConfigError: with its adapter, a module fails, has no gradient, or differs from its merged weights; or it is
            never called, or shares its weights with another module.
    """
    wrappers = {
        path: module
        for path, module in layers.named_modules()
        if isinstance(module, ParamWrapper) and name in module.lora_A and not path.endswith(".base_layer")
    }
    faults = {path: f"({_short(path)}) is never called" for path in wrappers}
    uses = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    shared = [path for path, module in wrappers.items() if any(uses[id(p.get_param())] > 1 for p in _nested(module))]
    failure = f"({_short(shared[0])}) would change another layer with the same weights" if shared else ""

    def record(path: str, module: Any, inputs: tuple[Any, ...], settings: dict[str, Any], output: Any) -> None:
        fault = _fault(module, name, inputs, settings, output)
        faults[path] = f"({_short(path)}) {fault}" if fault else ""

    try:
        with ExitStack() as hooks, torch.no_grad():
            for path, module in wrappers.items():
                hooks.enter_context(module.register_forward_hook(partial(record, path), with_kwargs=True))
            model.base_model(input_ids=tokens, use_cache=False)
    except torch.OutOfMemoryError:
        remove_adapter(layers, name)
        raise
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        failure = failure or f"fails ({str(error).partition(chr(10))[0] or type(error).__name__})"
    failure = failure or next(filter(None, faults.values()), "")
    if failure:
        remove_adapter(layers, name)
        raise ConfigError(
            f"{type(model).__name__}: an adapter on its experts {failure}; set adapter.experts: false, or "
            "adapter.kind: full to train all weights"
        )


def _fault(module: Any, name: str, inputs: tuple[Any, ...], settings: dict[str, Any], plain: Any) -> str:
    """Describe what is wrong with an adapter on one module of experts; empty: nothing.

    B is filled with random numbers so that B·A is as large as the weights.
    """
    parts = list(_nested(module))
    generator = torch.Generator().manual_seed(0)
    for part in parts:
        b = part.lora_B[name].weight
        b.copy_(torch.randn(b.shape, generator=generator))
        b.mul_(_norm(part.get_param()) / _norm(part.get_delta_weight(name)))
    originals = [(part.get_param(), part.get_param().data) for part in parts]
    try:
        for part in parts:
            part.enable_adapters(True)
            part.set_adapter(name)
        with torch.enable_grad():
            adapted = module.forward(*inputs, **settings)
        for part in parts:
            part.enable_adapters(False)
        for (weight, original), part in zip(originals, parts, strict=True):
            weight.data = original + part.get_delta_weight(name)
        merged = module.forward(*inputs, **settings)
    finally:
        for weight, original in originals:
            weight.data = original
        for part in parts:
            part.enable_adapters(False)
            part.lora_B[name].weight.zero_()
    if not adapted.requires_grad:
        return "gets no gradient"
    size = 0.05 * float(merged.abs().max())
    if not float((merged - plain).abs().max()) > size:
        return "has no effect"
    if not float((merged - adapted).abs().max()) < size:
        return "computes something else than the weights that it is merged into"
    return ""


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float32)


def _nested(wrapper: Any) -> Iterator[Any]:
    """PEFT's wrappers of the parameters of one module, the outermost first."""
    while isinstance(wrapper, ParamWrapper):
        yield wrapper
        wrapper = wrapper.base_layer
