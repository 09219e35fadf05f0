"""Losses of policy and critic, per token, unreduced."""

import torch
from torch import Tensor

from trimtab.algos.masking import masked, masked_mean, same_shape


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """max(−Aρ, −A·clip(ρ, 1 − ε_low, 1 + ε_high)), ρ = exp(log π − log π_old) in float32.

    Source: Schulman et al. 2017, eq. 7; dual clip: Ye et al. 2020, min(·, −c·A) where A < 0.

    Returns:
        ``[B, T]``, zero where the mask is False.
    """
    same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, response_mask=response_mask)
    ratio = torch.exp(masked(logprobs.float() - old_logprobs.float(), response_mask))
    advantages = masked(advantages, response_mask)
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - eps_low, 1 + eps_high))
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return masked(loss, response_mask)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, response_mask: Tensor, *, eps: float
) -> Tensor:
    """½ max((v − R)², (clip(v, v_old ± ε) − R)²), per token; zero where the mask is False."""
    same_shape(values=values, old_values=old_values, returns=returns, response_mask=response_mask)
    values, old_values = masked(values, response_mask), masked(old_values, response_mask)
    returns = masked(returns, response_mask)
    near = old_values + (values - old_values).clamp(-eps, eps)
    return masked(0.5 * torch.maximum((values - returns).square(), (near - returns).square()), response_mask)


def clip_fraction(
    logprobs: Tensor, old_logprobs: Tensor, response_mask: Tensor, *, eps_low: float, eps_high: float
) -> Tensor:
    """Share of counted tokens whose ratio lies outside [1 − ε_low, 1 + ε_high]; a scalar."""
    ratio = torch.exp(masked(logprobs.float() - old_logprobs.float(), response_mask))
    return masked_mean(((ratio < 1 - eps_low) | (ratio > 1 + eps_high)).float(), response_mask)
