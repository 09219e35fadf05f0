"""Losses of policy and critic, per token and unreduced, and diagnostics.

Shapes: B sequences, T tokens (right-padded; column t is about token t itself). Masks: True = counts.
Ratios are computed in float32 or wider, whatever comes in. Reduce with
:func:`~trimtab.algos.reduce_sum`; the mean of an entropy is :func:`~trimtab.algos.masked_mean`.
Departure from the papers: ratios are limited to e²⁰ ≈ 5·10⁸, with no gradient beyond. Unlimited, they
overflow at e⁸⁹, and 0 · ∞ gives NaN for tokens that the clip or an advantage of 0 has already switched off.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from trimtab.algos.checks import boolean, full, not_negative, positive, same_shape
from trimtab.algos.kl import kl_k1
from trimtab.algos.masking import masked, masked_mean, masked_sum
from trimtab.algos.shapes import MaskBT, TensorBT
from trimtab.errors import ConfigError, TrainingError


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
    so that one extreme ratio cannot dominate a batch (c = 3).

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


def sequence_log_ratio(logprobs: TensorBT, old_logprobs: TensorBT, response_mask: MaskBT) -> TensorBT:
    """GSPO's log-ratio of a whole answer, averaged over its tokens; the same at each of them.

    log s = (1/|y|)·Σ_t (log π_t − log π_old,t). Source: Zheng et al. 2025 (arXiv 2507.18071), eq. 7. The clipped loss
    of GSPO (eq. 5) is :func:`clipped_policy_loss` of this log-ratio against 0, averaged over each answer's tokens: an
    answer is clipped as a whole. The gradient of s is s·(1/|y|)·Σ_t ∇log π_t.

    Args:
        logprobs: ``[B, T]``, nats, of the policy that is trained.
        old_logprobs: ``[B, T]``, nats, of the policy that sampled; a constant.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.

    Returns:
        ``[B, T]``, nats per token, 0 where the mask is False.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.

    >>> one = torch.ones(1, 2, dtype=torch.bool)
    >>> sequence_log_ratio(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]]), one).tolist()
    [[-0.25, -0.25]]
    """
    mean = masked_mean(kl_k1(logprobs, old_logprobs, response_mask), response_mask, dim=1)
    return masked(mean[:, None].expand(response_mask.shape), response_mask)


def cispo_loss(
    logprobs: TensorBT,
    old_logprobs: TensorBT,
    advantages: TensorBT,
    response_mask: MaskBT,
    *,
    eps_low: float = 1.0,
    eps_high: float = 4.0,
) -> TensorBT:
    """CISPO: REINFORCE with a clipped importance weight, so that a token far from the old policy still has a gradient.

    L_t = −sg(clip(ρ, 1 − ε_low, 1 + ε_high))·A·log π_t, ρ = exp(log π − log π_old), sg: no gradient. Source: MiniMax
    2025 (arXiv 2506.13585), eq. 4 and 5. The clip of PPO instead removes the gradient of such a token. The paper has no
    lower end (ε_low = 1) and gives no number for ε_high; 4, a weight of 5 at most, is the value of Khatri et al. 2025
    (arXiv 2510.13786). While all ratios are 1, the gradient is that of :func:`clipped_policy_loss`.

    Args:
        logprobs: ``[B, T]``, nats, of the policy that is trained.
        old_logprobs: ``[B, T]``, nats, of the policy that sampled; a constant.
        advantages: ``[B, T]``; a constant.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.
        eps_low: ε_low, in (0, 1]; 1: no lower end.
        eps_high: ε_high, above 0.

    Returns:
        ``[B, T]``, 0 where the mask is False. Only the gradient has a meaning.

    Raises:
        ConfigError: a clip range that makes no sense.
        TrainingError: the shapes differ, or the mask is not bool.

    >>> new, one = torch.tensor([[-0.5, -2.0]]), torch.ones(1, 2, dtype=torch.bool)
    >>> loss = cispo_loss(new, torch.tensor([[-0.5, -9.0]]), torch.ones(1, 2), one)  # ρ = 1 and e⁷
    >>> loss.tolist()
    [[0.5, 10.0]]
    """
    _clip_range(eps_low, eps_high)
    same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, response_mask=response_mask)
    weight = _ratio(logprobs.detach(), old_logprobs, response_mask).clamp(1 - eps_low, 1 + eps_high)
    return -weight * full(masked(advantages.detach(), response_mask)) * full(masked(logprobs, response_mask))


def high_entropy_mask(entropies: TensorBT, response_mask: MaskBT, *, share: float) -> MaskBT:
    """The tokens at which the policy was least certain: the given share of those that count, by entropy.

    True where H_t is at least the ⌈ρ·n⌉-th largest of the n entropies; ties at that value are all True. Source: Wang et
    al. 2025 (arXiv 2506.01939), which trains on the fifth of the tokens with the highest entropy (ρ = 0.2) and
    still divides by the number of all. Call it with the whole batch; micro-batches would have different limits.

    Args:
        entropies: ``[B, T]``, nats, of the distribution each token was drawn from.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.
        share: ρ, in (0, 1].

    Returns:
        ``[B, T]`` bool, False where the mask is False.

    Raises:
        ConfigError: the share is outside (0, 1].
        TrainingError: the shapes differ, or the mask is not bool.

    >>> high_entropy_mask(torch.tensor([[0.1, 2.0, 0.5, 1.0]]), torch.ones(1, 4, dtype=torch.bool), share=0.5).tolist()
    [[False, True, False, True]]
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}; set it above 0 and at most 1, 0.2 in the paper")
    same_shape(entropies=entropies, response_mask=response_mask)
    boolean(response_mask=response_mask)
    counted = full(entropies.detach())[response_mask]
    if not len(counted):
        return response_mask
    limit = counted.sort(descending=True).values[math.ceil(share * len(counted)) - 1]
    return response_mask & (full(entropies.detach()) >= limit)


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
    logprobs: TensorBT,
    sampler_logprobs: TensorBT,
    response_mask: MaskBT,
    *,
    cap: float = 2.0,
    level: Literal["token", "sequence"] = "token",
) -> TensorBT:
    """Weights that correct for a sampler whose probabilities differ slightly from the trainer's (kernels, precision).

    w_t = min(ρ_t, C), ρ_t = exp(log π_trainer − log π_sampler), no gradient; with ``level="sequence"`` every token has
    the weight of its answer, min(Π_t ρ_t, C). Source: truncated importance sampling, Ionides 2008; for samplers of
    language models, Yao et al. 2025 ("Your Efficient RL Framework Secretly Brings You Off-Policy RL Training").
    Multiply the per-token policy loss with it. Weights of tokens correct each token but not how often its prefix is
    drawn; weights of answers correct both, at a variance that grows with the length. Both log-probabilities
    must be at the training temperature and over the full vocabulary, not renormalised after top-p.

    Args:
        logprobs: ``[B, T]``, nats, of the same weights in the trainer.
        sampler_logprobs: ``[B, T]``, nats, as recorded while sampling.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.
        cap: C, above 0; it adds bias and bounds the variance. Infinite: no cap below e²⁰.
        level: ``token`` or ``sequence``.

    Returns:
        ``[B, T]``, 0 where the mask is False.

    Raises:
        ConfigError: the cap is not above 0, or an unknown level.
        TrainingError: the shapes differ, or the mask is not bool.

    >>> one = torch.ones(1, 2, dtype=torch.bool)
    >>> truncated_importance_weights(torch.tensor([[0.0, 9.0]]), torch.zeros(1, 2), one).tolist()
    [[1.0, 2.0]]
    """
    positive(finite=False, cap=cap)
    return masked(_importance(logprobs, sampler_logprobs, response_mask, level).clamp(max=cap), response_mask)


def masked_importance_weights(
    logprobs: TensorBT,
    sampler_logprobs: TensorBT,
    response_mask: MaskBT,
    *,
    cap: float = 5.0,
    floor: float = 0.0,
    level: Literal["token", "sequence"] = "token",
) -> TensorBT:
    """Importance weights that leave out tokens on which sampler and trainer disagree, instead of truncating.

    w_t = [F ≤ ρ_t ≤ C]·ρ_t, ρ_t = exp(log π_trainer − log π_sampler), no gradient; with ``level="sequence"`` every
    token has the weight of its answer, with Π_t ρ_t instead of ρ_t. Source: IcePop, Ling team 2025 (arXiv 2510.18855),
    with F = 0.5 and C = 5.

    Args:
        logprobs: ``[B, T]``, nats, of the same weights in the trainer.
        sampler_logprobs: ``[B, T]``, nats, as recorded while sampling.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.
        cap: C, above the floor.
        floor: F, 0 or above; 0: no lower end.
        level: ``token`` or ``sequence``.

    Returns:
        ``[B, T]``, 0 where the mask is False and where a weight is outside [F, C].

    Raises:
        ConfigError: a floor below 0, a cap not above it, or an unknown level.
        TrainingError: the shapes differ, or the mask is not bool.

    >>> one = torch.ones(1, 2, dtype=torch.bool)
    >>> masked_importance_weights(torch.tensor([[0.0, 9.0]]), torch.zeros(1, 2), one).tolist()
    [[1.0, 0.0]]
    """
    positive(finite=False, cap=cap)
    not_negative(floor=floor)
    if not cap > floor:
        raise ConfigError(f"cap is {cap} and floor {floor}: no weight lies between them; set the cap above the floor")
    weights = _importance(logprobs, sampler_logprobs, response_mask, level)
    return masked(torch.where((weights >= floor) & (weights <= cap), weights, 0.0), response_mask)


def effective_sample_share(
    logprobs: TensorBT,
    sampler_logprobs: TensorBT,
    response_mask: MaskBT,
    *,
    level: Literal["token", "sequence"] = "token",
) -> Tensor:
    """Effective sample size of importance weights without a cap, as a share of the samples.

    (Σ ρ)² / (n·Σ ρ²), ρ = exp(log π_trainer − log π_sampler) of each of the n tokens; with ``level="sequence"`` of each
    of the n answers that have a token, ρ = Π_t ρ_t. Source: Kong 1992 ("A Note on Importance Sampling using
    Standardized Weights"). 1 where both agree; 1/n where one sample has all the weight.

    Args:
        logprobs: ``[B, T]``, nats, of the same weights in the trainer.
        sampler_logprobs: ``[B, T]``, nats, as recorded while sampling.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.
        level: ``token`` or ``sequence``.

    Returns:
        a scalar in (0, 1].

    Raises:
        ConfigError: an unknown level.
        TrainingError: the shapes differ, the mask is not bool, or no token counts.

    >>> one = torch.ones(2, 1, dtype=torch.bool)
    >>> float(effective_sample_share(torch.tensor([[0.0], [-99.0]]), torch.zeros(2, 1), one))
    0.5
    """
    _importance_level(level)
    logs = kl_k1(logprobs.detach(), sampler_logprobs.detach(), response_mask)
    if level == "token":
        logs = logs[response_mask]
    else:
        logs = masked_sum(logs, response_mask, dim=1)[response_mask.any(dim=1)]
    if not len(logs):
        raise TrainingError("no token counts, so there are no importance weights; draw at least one token")
    return torch.exp(2 * logs.logsumexp(0) - (2 * logs).logsumexp(0)) / len(logs)


def clip_fraction(
    logprobs: TensorBT, old_logprobs: TensorBT, response_mask: MaskBT, *, eps_low: float, eps_high: float
) -> Tensor:
    """Share of tokens whose ratio has left the clip range.

    mean of [ρ < 1 − ε_low or ρ > 1 + ε_high]. Source: Schulman et al. 2017 (arXiv 1707.06347), the bends of
    eq. 7. It ignores the sign of the advantage, so not all of these tokens have lost their gradient.

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
    """Share of the returns' variance that the critic predicts: 1 − Var(R − V)/Var(R), population variances.

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
    """``x`` unchanged; its gradient is multiplied by a factor in the backward pass.

    x.detach() + c·(x − x.detach()). A head on shared states then trains on its whole loss, and the layers below on
    a share of it.

    Source: bookkeeping of this package.

    Args:
        x: any shape.
        factor: c; 0: the layers below get no gradient.

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


def _importance(
    logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, level: Literal["token", "sequence"]
) -> Tensor:
    """π_trainer/π_sampler of each token, or of its answer; at most e²⁰, no gradient."""
    _importance_level(level)
    if level == "token":
        return _ratio(logprobs.detach(), sampler_logprobs.detach(), mask)
    total = masked_sum(kl_k1(logprobs.detach(), sampler_logprobs.detach(), mask), mask, dim=1)
    return torch.exp(total.clamp(max=20.0))[:, None].expand(mask.shape)


def _importance_level(level: str) -> None:
    if level not in ("token", "sequence"):
        raise ConfigError(f"the level of importance weights is {level!r}; use 'token' or 'sequence'")


def _clip_range(eps_low: float, eps_high: float) -> None:
    positive(finite=False, eps_low=eps_low, eps_high=eps_high)
    if eps_low > 1:
        raise ConfigError(f"eps_low is {eps_low}; ratios are never below 0, so set it to at most 1")
