"""Log-probabilities of chosen tokens from hidden states, without batch × time × vocabulary ever in memory.

Forward and backward are written out. Composed of library calls, the same computation takes about
twenty passes over a table as wide as the vocabulary; this code takes the fewest that the formula allows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.models.kernels import kernels

TABLE = 1024 * 49152
"""Largest size (tokens × vocabulary) of the table in memory, 200 MB: 1,024 tokens for the default model, 192 for a
vocabulary of 256k."""

ROWS = 32
"""Rows of a chunk processed at once, so that intermediate results stay in the processor's cache."""


def token_logprobs(
    states: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """Return log p(y) = z_y − log Σ_v exp z_v with z = (W·h + b) / T.

    Args:
        states: ``[N, H]``, hidden states h that predict the targets.
        targets: ``[N]`` int64, the tokens y.
        weight: ``[V, H]``, the projection W to the vocabulary.
        bias: ``[V]`` or None.
        temperature: T.

    Returns:
        ``[N]`` float32, in nats; with gradients with respect to ``states``, ``weight`` and ``bias``.
    """
    return _apply(states, targets, weight, bias, temperature, "none")[0]


def token_logprobs_and_entropies(
    states: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """As :func:`token_logprobs`, and the entropy H = −Σ_v p_v·log p_v of the distribution each token was drawn from.

    Args:
        states: as for :func:`token_logprobs`, like the next four.
        targets: tokens.
        weight: projection.
        bias: of the projection.
        temperature: T.
        gradient: True: entropies carry a gradient too.

    Returns:
        two of ``[N]`` float32, in nats.
    """
    return _apply(states, targets, weight, bias, temperature, "gradient" if gradient else "value")


def _apply(
    states: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, entropy: str
) -> tuple[Tensor, Tensor]:
    chunk = max(1, TABLE // weight.shape[0])
    keep = len(states) <= chunk  # one chunk's table is kept for the backward pass; several are recomputed
    parts = [
        _Head.apply(states[at : at + chunk], weight, bias, targets[at : at + chunk], temperature, entropy, keep)
        for at in range(0, len(states), chunk)
    ]
    if not parts:
        return states.new_zeros(0, dtype=torch.float32), states.new_zeros(0, dtype=torch.float32)
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


class _Head(torch.autograd.Function):
    """∂log p_y/∂z = 1[v = y] − p and ∂H/∂z = −p·(log p + H)."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        entropy: str,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        table = _log_softmax(states, weight, bias, temperature)
        chosen = table.gather(-1, targets[:, None]).squeeze(-1)
        entropies = torch.zeros_like(chosen)
        if entropy != "none":
            for at in range(0, len(table), ROWS):
                rows = table[at : at + ROWS]
                entropies[at : at + ROWS] = -(rows.exp() * rows).sum(-1)
        ctx.save_for_backward(states, weight, bias, targets, entropies)
        ctx.table = table if keep else None  # the backward pass overwrites it
        ctx.temperature, ctx.entropy = temperature, entropy
        kind = states.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        if entropy != "gradient":
            ctx.mark_non_differentiable(entropies)
        return chosen, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        states, weight, bias, targets, entropies = ctx.saved_tensors
        table, ctx.table = ctx.table, None
        if table is None:
            with torch.autocast(states.device.type, dtype=ctx.dtype, enabled=ctx.dtype != states.dtype):
                table = _log_softmax(states, weight, bias, ctx.temperature)
        if ctx.entropy == "gradient":
            factor = -grads[0][:, None] - grads[1][:, None] * (table + entropies[:, None])
            slope = table.exp_().mul_(factor)
        else:
            slope = table.exp_().mul_(-grads[0][:, None])
        slope[torch.arange(len(targets), device=targets.device), targets] += grads[0]
        if ctx.temperature != 1.0:
            slope.div_(ctx.temperature)
        narrow = slope.to(ctx.dtype)
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        return (
            (narrow @ weight.to(ctx.dtype)).to(states.dtype) if wants_states else None,
            kernels().weight_gradient(weight, narrow, states.to(ctx.dtype)) if wants_weight else None,
            slope.sum(0).to(weight.dtype) if wants_bias else None,
            *[None] * 4,
        )


def _log_softmax(states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """``[N, V]`` float32."""
    logits = functional.linear(states, weight, bias).float()
    if temperature != 1.0:
        logits.div_(temperature)
    return torch.log_softmax(logits, dim=-1, out=logits)
