"""Masks and normalisation: which elements count, and what sums are divided by.

Shapes: B sequences, T tokens (right-padded; column t is about token t itself). A mask is always
bool and True always means *counts*. Whatever lies under a False, NaN and infinity included, never
reaches a result, forward or backward: values are chosen (``where``), never multiplied by 0.

A loss stays per token or per example until :func:`reduce_sum` divides it by the size of the whole
optimiser step, which the caller states. No function here or elsewhere in :mod:`trimtab.algos`
takes that size from the micro-batch, because then gradient accumulation or more ranks would change
the objective.
"""

import torch
from torch import Tensor

from trimtab.algos.checks import boolean, full, rows, same_shape
from trimtab.algos.shapes import MaskBT, TensorB
from trimtab.errors import TrainingError


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` where the mask is True, 0 elsewhere.

    Args:
        x: any shape.
        mask: same shape, bool, True: counts.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.
    """
    same_shape(x=x, mask=mask)
    boolean(mask=mask)
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def last_true(mask: MaskBT) -> TensorB:
    """Column of the last True in each row, where the score of a whole answer goes.

    Args:
        mask: ``[B, T]`` bool, True: counts.

    Returns:
        ``[B]`` int64.

    Raises:
        TrainingError: the mask is not bool, or a row has no True.

    Source: bookkeeping of this package.

    >>> last_true(torch.tensor([[False, True, False]])).tolist()
    [1]
    """
    boolean(mask=mask)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(1)
    empty = last < 0
    if bool(empty.any()):
        raise TrainingError(
            f"answers {rows(empty)} have no token that counts, so no place for their score; drop them first"
        )
    return last


def masked_sum(x: Tensor, mask: Tensor, *, dim: int | None = None) -> Tensor:
    """Sum of x over what counts, in float32 or wider: Σ_{t: mask_t} x_t.

    Args:
        x: any shape, often ``[B, T]``.
        mask: same shape, bool, True: counts.
        dim: sum over this dimension only, ``1`` turns token log-probabilities into log π(y|x), ``[B]``;
            None: over everything.

    Returns:
        a scalar, or ``x`` without ``dim``.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.

    >>> float(masked_sum(torch.tensor([1.0, float("nan"), 4.0]), torch.tensor([True, False, True])))
    5.0
    """
    counted = full(masked(x, mask))
    return counted.sum() if dim is None else counted.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, *, dim: int | None = None) -> Tensor:
    """Mean of x over what counts; 0 where nothing does. For metrics and per-sequence means.

    Not for reducing a loss: a mean over a micro-batch is divided by that micro-batch's size; see
    :func:`reduce_sum`.

    Args:
        x: any shape, often ``[B, T]``; bool gives a share.
        mask: same shape, bool, True: counts.
        dim: average over this dimension only; None: over everything.

    Returns:
        a scalar, or ``x`` without ``dim``.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.

    >>> float(masked_mean(torch.tensor([1.0, float("nan"), 4.0]), torch.tensor([True, False, True])))
    2.5
    """
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim=dim) / count.clamp(min=1)


def reduce_sum(loss: Tensor, mask: Tensor | None = None, *, norm: float) -> Tensor:
    """A micro-batch's share of the step's loss: Σ loss · mask / norm. The shares add up to the whole loss.

    ``norm`` determines the objective. It is counted over all micro-batches and ranks of the optimiser step:

    - response tokens: token mean (PPO here, DAPO eq. 8);
    - sequences × a constant length: Dr.GRPO (Liu et al. 2025, "Understanding R1-Zero-Like Training");
    - sequences, of a per-sequence loss: sequence mean. GRPO's per-answer mean (Shao et al. 2024, eq. 3)
      is ``reduce_sum(masked_mean(loss, mask, dim=1), norm=sequences)``;
    - the sum of weights, of a loss already multiplied by its weights: weighted mean.

    Args:
        loss: per token ``[B, T]`` or per example ``[B]``, unreduced.
        mask: same shape, bool, True: counts; None: everything does.
        norm: size of the whole optimiser step.

    Returns:
        a scalar.

    Raises:
        TrainingError: the shapes differ, the mask is not bool, or ``norm`` is not a number above 0.

    >>> loss = torch.tensor([1.0, 2.0, 3.0, 6.0])
    >>> float(reduce_sum(loss[:1], norm=4) + reduce_sum(loss[1:], norm=4)), float(loss.mean())
    (3.0, 3.0)
    """
    if not 0 < norm < float("inf"):
        raise TrainingError(
            f"norm is {norm}; expected the number of tokens or sequences that count in the whole optimiser step. "
            "If nothing counts, skip the step"
        )
    return (full(loss).sum() if mask is None else masked_sum(loss, mask)) / norm
