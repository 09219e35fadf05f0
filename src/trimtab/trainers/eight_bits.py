"""AdamW with moments of 8 bits: block-wise dynamic quantisation (Dettmers et al. 2022, arXiv 2110.02861).

Each step computes in the precision of the weights, as :class:`torch.optim.AdamW` does::

    m ← β₁·m + (1 − β₁)·g        v ← β₂·v + (1 − β₂)·g²
    w ← (1 − η·λ)·w − η · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε)

Between steps m and √v are stored as codes. A block of :data:`BLOCK` numbers is divided by its largest magnitude, and
each quotient becomes the index of the nearest value in a table whose values lie closer together the smaller they are.

Departures from the paper:

- √v is stored, not v, so the table's seven decades cover fourteen decades of v. A positive √v never becomes 0, because
  the next step would then divide by ε.
- The table ends at −1 and 1. The table in the authors' code ends at −0.993, with which the most negative mean of a
  block would shrink by 0.7 % in every step.
- Blocks lie within a row (the first dimension) of the weight. Sharded weights are divided by rows, so they have the
  same blocks as whole weights. Embeddings of different tokens share no block.
- Embeddings are stored in 8 bits as well. Vectors, and weights of fewer than :data:`SMALLEST` numbers, are not.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.models.sharded import part, part_like

BLOCK = 256
"""Numbers that share a scale."""

SMALLEST = 4096
"""Weights with fewer numbers keep moments in their own precision."""

CHUNK = 1 << 18
"""Numbers of a weight whose moments are decoded at once, chosen to fit a processor's cache."""

ACCELERATOR_CHUNK = 1 << 24
"""The same on an accelerator, where kernel launches dominate the time."""


def quantised(weight: Tensor) -> bool:
    """True: the moments of this weight, whole or sharded, are stored in 8 bits."""
    return weight.dim() >= 2 and weight.numel() >= SMALLEST


def moment_bytes(*, columns: int) -> float:
    """Bytes per weight for both moments in 8 bits, scales included, in a matrix with ``columns`` columns."""
    return 2 * (1 + 4 / min(BLOCK, columns))


@cache
def table(*, signed: bool, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Values of the codes, ascending, ``[255]``, for a mean (``signed``) or a root.

    Each of seven decades below 1 has twice as many values as the decade below it, at the middles of equal intervals.
    All values are divided by the largest one.
    """
    decades = []
    for decade in range(7):
        count = 2 ** (decade + (0 if signed else 1))
        middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        decades.append(10.0 ** (decade - 6) * (0.1 + 0.9 * middles))
    positive = torch.cat(decades)
    positive = positive / positive[-1]
    zero = torch.zeros(1, dtype=torch.float64)
    values = torch.cat([-positive.flip(0), zero, positive] if signed else [zero, positive])
    return values.to(device, dtype)


def encode(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix.

    Args:
        values: ``[R, C]``; without ``signed`` none is negative, and a positive one never becomes 0.
        signed: which :func:`table`.

    Returns:
        indices in the table, uint8 ``[R, C]``, and the largest magnitude of each block, ``[R, ⌈C / block⌉]``.
    """
    rows, columns = values.shape
    blocks = _blocks(values)
    scales = blocks.abs().amax(dim=2)
    quotients = blocks / scales.clamp_min(torch.finfo(values.dtype).tiny)[:, :, None]
    return _nearest(quotients.float(), signed=signed).view(rows, -1)[:, :columns], scales


def _nearest(quotients: Tensor, *, signed: bool) -> Tensor:
    """Index of the nearest value in the table, uint8, flat; searching the edges would take ten times as long."""
    edges, lowest = _edges(signed=signed, device=quotients.device)
    flat = quotients.view(-1)
    codes = lowest.index_select(0, (flat.view(torch.int32) >> 16) + (1 << 15))
    return codes + (flat > edges.index_select(0, codes.int()))


@cache
def _edges(*, signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Edges between codes, and the lowest code for each group of float32 values with the same first 16 bits.

    Each group has one code, or two adjacent ones. Groups are ordered by their 16 bits as a signed integer, from −2¹⁵.
    """
    values = table(signed=signed)
    edges = (values[1:] + values[:-1]) / 2
    if not signed:
        edges[0] = 0.0
    first = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16
    ends = torch.stack([first, first | 0xFFFF]).view(torch.float32)
    lowest = torch.bucketize(ends, edges).amin(dim=0).to(torch.uint8)
    edges = torch.cat([edges, torch.tensor([torch.inf])])
    return edges.to(device), lowest.to(device)


def decode(codes: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """The matrix that :func:`encode` turned into codes and scales, up to their rounding.

    Args:
        codes: uint8 ``[R, C]``.
        scales: ``[R, ⌈C / block⌉]``.
        signed: which :func:`table`.
    """
    entries = table(signed=signed, dtype=scales.dtype, device=scales.device)
    values = entries.index_select(0, codes.reshape(-1).int()).view(codes.shape)
    return (_blocks(values) * scales[:, :, None]).reshape(len(codes), -1)[:, : codes.shape[1]]


def _blocks(values: Tensor) -> Tensor:
    """``[R, C]`` → ``[R, ⌈C / block⌉, block]``, padded with zeros; a narrow matrix has one block in each row."""
    rows, columns = values.shape
    block = min(BLOCK, columns)
    return nn.functional.pad(values, (0, -columns % block)).view(rows, -1, block)


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with moments of 8 bits, where :func:`quantised` says so.

    The state of a weight is ``step``, ``exp_avg`` and ``exp_avg_sq``; in 8 bits ``exp_avg_sq`` holds codes of √v, and
    ``exp_avg_scale`` and ``exp_avg_sq_scale`` are the scales. All of them are sharded as the weight is.

    Args:
        params: weights, or groups of them.
        lr: learning rate η.
        betas: decay of m and of v.
        eps: ε.
        weight_decay: decoupled weight decay λ.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Change all weights that have a gradient; ``closure`` is not called."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state.update(_fresh(weight))
                state["step"] += 1
                local = {name: part(tensor) for name, tensor in state.items() if name != "step"}
                change = _change_in_8_bits if quantised(weight) else _change
                change(part(weight), part(weight.grad), local, group, float(state["step"]))


def _fresh(weight: Tensor) -> dict[str, Tensor]:
    """Moments of zero, sharded as the weight is."""
    state = {"step": torch.tensor(0.0)}
    for moment in ("exp_avg", "exp_avg_sq"):
        if quantised(weight):
            columns = weight.numel() // len(weight)
            scales = torch.zeros(len(weight), -(-columns // min(BLOCK, columns)), dtype=weight.dtype)
            state[moment] = part_like(torch.zeros(weight.shape, dtype=torch.uint8), weight)
            state[f"{moment}_scale"] = part_like(scales, weight)
        else:
            state[moment] = torch.zeros_like(weight)
    return state


def _change(weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], step: float) -> None:
    """One step of AdamW, in place."""
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    beta1, beta2 = group["betas"]
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    root = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
    weight.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**step))


def _change_in_8_bits(
    weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], step: float
) -> None:
    """One step of AdamW with moments that are stored as codes, some rows at a time."""
    if not weight.numel():  # more ranks than rows
        return
    rows = len(weight)
    weight, gradient = weight.view(rows, -1), gradient.reshape(rows, -1)
    means, roots = state["exp_avg"].view(rows, -1), state["exp_avg_sq"].view(rows, -1)
    mean_scales, root_scales = state["exp_avg_scale"], state["exp_avg_sq_scale"]
    chunk = max(1, (CHUNK if weight.device.type == "cpu" else ACCELERATOR_CHUNK) // weight.shape[1])
    for start in range(0, rows, chunk):
        at = slice(start, start + chunk)
        mean = decode(means[at], mean_scales[at], signed=True)
        square = decode(roots[at], root_scales[at], signed=False).square_()
        _change(weight[at], gradient[at], {"exp_avg": mean, "exp_avg_sq": square}, group, step)
        means[at], mean_scales[at] = encode(mean, signed=True)
        roots[at], root_scales[at] = encode(square.sqrt_(), signed=False)
