"""Losses of policy and critic, per token and unreduced, and what to watch beside them.

Shapes: B sequences, T tokens (right-padded; column t is about token t itself). Masks: True = counts.
Ratios are computed in float32 or wider, whatever comes in. Reduce with
:func:`~trimtab.algos.reduce_sum`; the mean of an entropy is :func:`~trimtab.algos.masked_mean`.
Departure from the papers: ratios end at e²⁰ ≈ 5·10⁸, without gradient beyond. Left alone they overflow
at e⁸⁹, and 0 · ∞ makes NaN of tokens that the clip or an advantage of 0 had already switched off.
"""

import torch
from torch import Tensor

from trimtab.algos.checks import boolean, full, positive, same_shape
from trimtab.algos.kl import kl_k1
from trimtab.algos.masking import masked, masked_mean
from trimtab.algos.shapes import MaskBT, TensorBT
from trimtab.errors import ConfigError


def clipped_policy_loss(
    logprobs: TensorBT,
    old_logprobs: TensorBT,
    advantages: TensorBT,
    response_mask: MaskBT,
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    dual_clip: float | None = None,
) -> TensorBT:
    """PPO's pessimistic surrogate: no reward for moving the ratio beyond the clip range.

    L_t = max(−A·ρ, −A·clip(ρ, 1 − ε_low, 1 + ε_high)), ρ = exp(log π − log π_old). Source: Schulman et
    al. 2017 (arXiv 1707.06347), eq. 7; two ends: DAPO, Yu et al. 2025 (arXiv 2503.14476), eq. 10
    (ε_high = 0.28); dual clip: Ye et al. 2020 (arXiv 1912.09729), L_t ← min(L_t, −c·A) where A < 0,
    so that one wild ratio cannot dominate a batch (c = 3).

    Args:
        logprobs: ``[B, T]``, nats, of the policy that is trained.
        old_logprobs: ``[B, T]``, nats, of the policy that sampled; a constant.
        advantages: ``[B, T]``; a constant.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.
        eps_low: ε_low, in (0, 1].
        eps_high: ε_high, above 0.
        dual_clip: c, above 1; None: no dual clip.

    Returns:
        ``[B, T]``, 0 where the mask is False.

    Raises:
        ConfigError: a clip range that makes no sense.
        TrainingError: the shapes differ, or the mask is not bool.

    >>> new, one = torch.tensor([[0.5, -0.5]]), torch.ones(1, 2, dtype=torch.bool)
    >>> loss = clipped_policy_loss(new, torch.zeros(1, 2), torch.ones(1, 2), one)  # ρ = 1.6487, 0.6065
    >>> [round(x, 4) for x in loss[0].tolist()]
    [-1.2, -0.6065]
    """
    _clip_range(eps_low, eps_high)
    if dual_clip is not None and not dual_clip > 1:
        raise ConfigError(f"dual_clip is {dual_clip}; set it above 1 (3 is usual), or to None for no dual clip")
    same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, response_mask=response_mask)
    ratio = _ratio(logprobs, old_logprobs, response_mask)
    advantages = full(masked(advantages.detach(), response_mask))
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - eps_low, 1 + eps_high))
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return masked(loss, response_mask)


def clipped_value_loss(
    values: TensorBT, old_values: TensorBT, returns: TensorBT, response_mask: MaskBT, *, eps: float
) -> TensorBT:
    """The critic's squared error, with no reward for moving further than ε from its old value.

    L_t = ½·max((v − R)², (clip(v, v_old − ε, v_old + ε) − R)²). Source: the published code of PPO
    (OpenAI baselines); described in Engstrom et al. 2020 (arXiv 2005.12729), section 3.

    Args:
        values: ``[B, T]``, reward units, of the critic that is trained.
        old_values: ``[B, T]``, at sampling time; a constant.
        returns: ``[B, T]``, second result of :func:`~trimtab.algos.gae`; a constant.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.
        eps: ε, reward units, above 0; infinite: no clipping.

    Returns:
        ``[B, T]``, 0 where the mask is False.

    Raises:
        ConfigError: ε is not above 0.
        TrainingError: the shapes differ, or the mask is not bool.

    >>> one = torch.ones(1, 1, dtype=torch.bool)
    >>> v = torch.tensor([[0.5]])
    >>> float(clipped_value_loss(v + 0.5, v - 0.5, v + 0.5, one, eps=0.25))  # v = 1, v_old = 0, R = 1
    0.28125
    """
    positive(finite=False, eps=eps)
    same_shape(values=values, old_values=old_values, returns=returns, response_mask=response_mask)
    constants = old_values.detach(), returns.detach()
    values, old_values, returns = (full(masked(x, response_mask)) for x in (values, *constants))
    near = old_values + (values - old_values).clamp(-eps, eps)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def truncated_importance_weights(
    logprobs: TensorBT, sampler_logprobs: TensorBT, response_mask: MaskBT, *, cap: float = 2.0
) -> TensorBT:
    """Weights that correct for a sampler whose probabilities are not quite the trainer's (other kernels or precision).

    w_t = min(exp(log π_trainer − log π_sampler), C), no gradient. Source: truncated importance sampling,
    Ionides 2008; for samplers of language models, Yao et al. 2025 ("Your Efficient RL Framework Secretly
    Brings You Off-Policy RL Training"). Multiply the per-token policy loss with it. Both sides must
    be at the temperature that is trained and over the full vocabulary, not renormalised after top-p.

    Args:
        logprobs: ``[B, T]``, nats, of the same weights in the trainer.
        sampler_logprobs: ``[B, T]``, nats, as recorded while sampling.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.
        cap: C, above 0; the bias that is accepted for bounded variance. Infinite: none below e²⁰.

    Returns:
        ``[B, T]``, 0 where the mask is False.

    Raises:
        ConfigError: the cap is not above 0.
        TrainingError: the shapes differ, or the mask is not bool.

    >>> one = torch.ones(1, 2, dtype=torch.bool)
    >>> truncated_importance_weights(torch.tensor([[0.0, 9.0]]), torch.zeros(1, 2), one).tolist()
    [[1.0, 2.0]]
    """
    positive(finite=False, cap=cap)
    return masked(_ratio(logprobs.detach(), sampler_logprobs.detach(), response_mask).clamp(max=cap), response_mask)


def clip_fraction(
    logprobs: TensorBT, old_logprobs: TensorBT, response_mask: MaskBT, *, eps_low: float, eps_high: float
) -> Tensor:
    """Share of tokens whose ratio has left the clip range.

    mean of [ρ < 1 − ε_low or ρ > 1 + ε_high]. Source: Schulman et al. 2017 (arXiv 1707.06347), the bends of
    eq. 7. Whatever the sign of the advantage, so not all of these tokens have lost their gradient.

    Args:
        logprobs: ``[B, T]``, nats, of the policy that is trained.
        old_logprobs: ``[B, T]``, nats, of the policy that sampled.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.
        eps_low: ε_low, in (0, 1].
        eps_high: ε_high, above 0.

    Returns:
        a scalar in [0, 1], a mean over the tokens that count.

    Raises:
        ConfigError: a clip range that makes no sense.
        TrainingError: the shapes differ, or the mask is not bool.
    """
    _clip_range(eps_low, eps_high)
    ratio = _ratio(logprobs.detach(), old_logprobs.detach(), response_mask)
    return masked_mean((ratio < 1 - eps_low) | (ratio > 1 + eps_high), response_mask)


def approx_kl(logprobs: TensorBT, old_logprobs: TensorBT, response_mask: MaskBT) -> Tensor:
    """How far the update has moved the policy: KL(π_old‖π) per token, estimated by k3 without a limit, never negative.

    mean of e^{−δ} − 1 + δ with δ = log π_old − log π, tokens drawn from π_old. Source: Schulman 2020
    ("Approximating KL Divergence").

    Args:
        logprobs: ``[B, T]``, nats, of the policy that is trained.
        old_logprobs: ``[B, T]``, nats, of the policy that sampled.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.

    Returns:
        a scalar, nats per token, a mean over the tokens that count.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.
    """
    delta = kl_k1(old_logprobs.detach(), logprobs, response_mask).detach()
    return masked_mean(torch.expm1(-delta) + delta, response_mask)


def explained_variance(values: TensorBT, returns: TensorBT, response_mask: MaskBT) -> Tensor:
    """How much of the variation of the returns the critic predicts: 1 − Var(R − V)/Var(R), population variances.

    1: all of it; 0: none, or the returns do not vary; below 0: worse than predicting their mean.

    Source: 1 − Var(target − prediction)/Var(target), as Stable-Baselines3 logs it.

    Args:
        values: ``[B, T]``, reward units, the critic's predictions.
        returns: ``[B, T]``, reward units.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.

    Returns:
        a float64 scalar, at most 1.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.

    >>> one = torch.ones(1, 2, dtype=torch.bool)
    >>> float(explained_variance(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 2.0]]), one))
    0.75
    """
    same_shape(values=values, returns=returns, response_mask=response_mask)
    boolean(response_mask=response_mask)
    values, returns = values[response_mask], returns[response_mask]
    variance, residual = (x.var(unbiased=False).double() for x in (returns, returns - values))
    return torch.where(variance > 0, 1.0 - residual / variance, torch.zeros_like(variance))


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself, whose gradient is multiplied by a factor on the way back.

    x.detach() + c·(x − x.detach()). A head on shared states then trains on its whole loss and moves what is below by a
    share of it.

    Source: bookkeeping of this package.

    Args:
        x: any shape.
        factor: c; 0: nothing below is trained.

    >>> x = torch.ones(1, requires_grad=True)
    >>> (3 * scale_gradient(x, 0.5)).backward()
    >>> x.grad.tolist()
    [1.5]
    """
    fixed = x.detach()
    return fixed + factor * (x - fixed)


def _ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """π/π_old per token, at most e²⁰; 1 where the mask is False. π_old is a constant."""
    return torch.exp(kl_k1(logprobs, old_logprobs, mask).clamp(max=20.0))


def _clip_range(eps_low: float, eps_high: float) -> None:
    positive(finite=False, eps_low=eps_low, eps_high=eps_high)
    if eps_low > 1:
        raise ConfigError(f"eps_low is {eps_low}; ratios are never below 0, so set it to at most 1")
