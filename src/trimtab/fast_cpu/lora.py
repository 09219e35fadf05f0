"""A linear layer with its adapter in the fewest passes: y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ.

Composed of library calls, the adapter's part is written, scaled and added in three more passes over a tensor as wide as
the layer, both forward and backward. Here each product adds directly to the existing result.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """A frozen linear layer plus a trained product of rank r (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    Args:
        x: ``[..., in]``.
        weight: ``[out, in]``; no gradient flows into it.
        bias: ``[out]`` or None; no gradient flows into it either.
        a: ``[r, in]``.
        b: ``[out, r]``.
        scale: s = α / r.

    Returns:
        ``[..., out]``.
    """
    return _LoraLinear.apply(x, weight, bias, a, b, scale)  # type: ignore[no-any-return]


class _LoraLinear(torch.autograd.Function):
    """With g = ∂L/∂y and u = s·g·B: ∂x = g·W + u·A, ∂A = uᵀ·x, ∂B = s·gᵀ·(x·Aᵀ)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.T
        out = x.new_empty(*x.shape[:-1], weight.shape[0])  # not a view: some models change the output in place
        flat = out.view(-1, weight.shape[0])
        if bias is None:
            torch.mm(rows, weight.T, out=flat)
        else:
            torch.addmm(bias, rows, weight.T, out=flat)
        flat.addmm_(low, b.T, alpha=scale)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, a, b, low = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])
        inner = (grad @ b).mul_(ctx.scale)
        before = None
        if ctx.needs_input_grad[0]:
            before = (grad @ weight).addmm_(inner, a).view(x.shape)
        slope_a = inner.T @ x.reshape(-1, x.shape[-1])
        slope_b = (grad.T @ low).mul_(ctx.scale)
        return before, None, None, slope_a, slope_b, None


class OneFunctionLinear(Linear):
    """PEFT's linear layer, computed with :func:`lora_linear` where both are the same function."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As in PEFT."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        plain = len(active) == 1 and not (self.disable_adapters or self.merged or args or kwargs)
        if not plain or not self._same(active[0], x):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        base, a, b = self._parts(active[0])
        return lora_linear(x, base.weight, base.bias, a.weight, b.weight, self.scaling[active[0]])

    def _parts(self, name: str) -> tuple[Any, Any, Any]:
        return self.get_base_layer(), self.lora_A[name], self.lora_B[name]

    def _same(self, name: str, x: Tensor) -> bool:
        (base, a, b), dropout = self._parts(name), self.lora_dropout[name]
        dropping = not isinstance(dropout, nn.Identity) and dropout.training
        known = name not in self.lora_variant and a.bias is None and b.bias is None
        exact = x.dtype == base.weight.dtype == a.weight.dtype and not torch.is_autocast_enabled(x.device.type)
        return known and exact and not dropping and not base.weight.requires_grad


def use_lora_linear(model: nn.Module) -> None:
    """Compute the adapted linear layers of a model with :func:`lora_linear`."""
    for module in model.modules():
        if type(module) is Linear and type(module.get_base_layer()) is nn.Linear:
            module.__class__ = OneFunctionLinear
