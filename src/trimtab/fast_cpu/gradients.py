"""Gradients of all weights with little memory: accumulated in one block, with few stored activations.

Autograd writes each layer's gradient to a separate tensor, adds that to the gradient of earlier micro-batches, and
stores every intermediate result of a layer. Here a step's gradients are in one block, and each product adds to its
place. A tied output projection adds both of its gradients to the same place. SwiGLU and RMSNorm store their inputs and
recompute the rest, which takes a few passes over small tensors.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_places: dict[int, Tensor] = {}
"""Place in the block where a parameter's gradient is accumulated, by the parameter's id."""


@contextmanager
def gradients_in_one_block(model: nn.Module) -> Iterator[None]:
    """Inside the context, ``backward`` adds the gradients of linear layers, embedding and head in place.

    Each ``weight.grad`` becomes a view of one block once there is a gradient; for an unused weight it stays None. The
    sums are the same, in a different order. On other devices and precisions nothing changes.

    Args:
        model: the model to train; weights without ``requires_grad`` are ignored.
    """
    chosen: dict[int, Tensor] = {}
    changed: list[nn.Module] = []
    for module in model.modules():
        forward = _forward_of(module)
        if forward is not None:
            changed.append(module)
            module.forward = forward
            if isinstance(module, nn.Linear | nn.Embedding):
                chosen[id(module.weight)] = module.weight
    block = torch.empty(sum(weight.numel() for weight in chosen.values()))
    sizes = [weight.numel() for weight in chosen.values()]
    for (key, weight), part in zip(chosen.items(), block.split(sizes), strict=True):
        _places[key] = part.view(weight.shape)
    try:
        yield
    finally:
        for key in chosen:
            del _places[key]
        for module in changed:
            del module.forward


def add_product(weight: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """∂L/∂W += leftᵀ·right in W's place; if W has no place, return the product for autograd to add.

    Args:
        weight: W, ``[out, in]``.
        left: ``[N, out]``, gradient of the layer's output.
        right: ``[N, in]``, its input.
    """
    place = _places.get(id(weight))
    if place is None or left.dtype != place.dtype:
        return (left.T @ right).to(weight.dtype)
    if weight.grad is None:
        weight.grad = torch.mm(left.T, right, out=place)
    else:
        weight.grad.addmm_(left.T, right)
    return None


class _Linear(torch.autograd.Function):
    """With g = ∂L/∂y: ∂x = g·W, ∂W = gᵀ·x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])
        wants_x, _, wants_bias = ctx.needs_input_grad
        before = (grad @ weight).view(x.shape) if wants_x else None
        return before, add_product(weight, grad, x.reshape(-1, x.shape[-1])), grad.sum(0) if wants_bias else None


class _Embedding(torch.autograd.Function):
    """∂W[v] = Σ g over the places of token v; no gradient for the padding token."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        ctx.padding = padding
        return functional.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        tokens, weight = ctx.saved_tensors
        rows, grad = tokens.reshape(-1), grads[0].reshape(-1, weight.shape[1])
        if ctx.padding is not None:
            real = rows != ctx.padding
            rows, grad = rows[real], grad[real]
        if weight.grad is None:
            weight.grad = _places[id(weight)].zero_()
        weight.grad.index_add_(0, rows, grad)
        return None, None, None


class _Gated(torch.autograd.Function):
    """y = h·Dᵀ with h = silu(a)·b, a = x·Gᵀ and b = x·Uᵀ (Shazeer 2020, arXiv 2002.05202, eq. 6: SwiGLU).

    silu(a) and h, which autograd would store, are recomputed: half of what a layer stores for its backward pass.
    With g = ∂L/∂y, k = g·D and σ the logistic function: ∂b = k·silu(a), ∂a = k·b·σ(a)·(1 + a·(1 − σ(a))).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a, b = rows @ gate.T, rows @ up.T
        ctx.save_for_backward(rows, a, b, gate, up, down)
        return (functional.silu(a).mul_(b) @ down.T).view(*x.shape[:-1], down.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, a, b, gate, up, down = ctx.saved_tensors
        grad = grads[0].reshape(-1, down.shape[0])
        inner = grad @ down
        silu = functional.silu(a)
        slope_down = add_product(down, grad, silu * b)
        slope_b = inner * silu
        slope_a = torch.ops.aten.silu_backward(inner.mul_(b), a)
        before = (slope_a @ gate).addmm_(slope_b, up).view(grads[0].shape) if ctx.needs_input_grad[0] else None
        return before, add_product(gate, slope_a, rows), add_product(up, slope_b, rows), slope_down


class _Norm(torch.autograd.Function):
    """y = w·n with n = x·r and r = 1/√(mean x² + ε) (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4: RMSNorm).

    x is stored instead of n. With g = ∂L/∂y: ∂w = Σ g·n, ∂x = r·(g·w − n·mean(g·w·n)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, scale, weight)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, scale, weight = ctx.saved_tensors
        normed = x * scale
        slope = (grads[0] * normed).flatten(0, -2).sum(0)
        inner = grads[0] * weight
        along = (inner * normed).mean(-1, keepdim=True)
        return inner.sub_(normed.mul_(along)).mul_(scale), slope, None


def _forward_of(module: Any) -> Callable[[Tensor], Tensor] | None:
    """A forward function that accumulates a module's gradient in place or stores less; None: there is none."""
    kind = type(module)
    if kind is nn.Linear and _trained(module.weight):
        return lambda x: _Linear.apply(x, module.weight, module.bias)  # type: ignore[no-any-return]
    if kind is nn.Embedding and _trained(module.weight):
        if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            return None
        return lambda tokens: _Embedding.apply(tokens, module.weight, module.padding_idx)  # type: ignore[no-any-return]
    other = _gated(module) or _norm(module)
    return other if other is not None and _same(module, other) else None


def _gated(module: Any) -> Callable[[Tensor], Tensor] | None:
    """SwiGLU as in Llama and many later models."""
    layers = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(layer) is nn.Linear and layer.bias is None and _trained(layer.weight) for layer in layers):
        return None
    weights = [layer.weight for layer in layers if layer is not None]
    return lambda x: _Gated.apply(x, *weights)  # type: ignore[no-any-return]


def _norm(module: Any) -> Callable[[Tensor], Tensor] | None:
    """RMSNorm as in Llama and many later models."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not (isinstance(weight, nn.Parameter) and weight.dim() == 1 and isinstance(eps, float) and _trained(weight)):
        return None
    return lambda x: _Norm.apply(x, weight, eps)  # type: ignore[no-any-return]


def _same(module: Any, forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether ``forward`` equals the module's own, tested on two rows and cached per kind of module."""
    kind = type(module), type(getattr(module, "act_fn", None))
    if kind not in _known:
        width = next(module.parameters()).shape[-1]
        with torch.no_grad():
            probe = torch.linspace(-1.0, 2.0, 2 * width).view(1, 2, width)
            _known[kind] = torch.allclose(forward(probe), module(probe), rtol=1e-4, atol=1e-6)
    return _known[kind]


_known: dict[tuple[type, type], bool] = {}


def _trained(weight: Tensor) -> bool:
    return weight.requires_grad and weight.dtype == torch.float32 and weight.device.type == "cpu"
