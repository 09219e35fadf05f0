"""Parts for the rows of the table of methods: advantages, surrogates, reductions, objectives as text.

Legend: B answers, T tokens. Consecutive ``config.group`` rows of ``[B, T]`` answer the same prompt.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trimtab.algos import (
    cispo_loss,
    clip_fraction,
    clipped_policy_loss,
    gae,
    gdpo_advantage,
    masked_mean,
    reduce_sum,
    reinforce_pp_advantage,
    reinforce_pp_baseline_advantage,
    sequence_log_ratio,
    whiten,
)
from trimtab.algos.masking import masked
from trimtab.algos.shapes import MaskBT, MaskGK, TensorBR, TensorBT, TensorGK, TensorR
from trimtab.trainers import rl_config as online
from trimtab.trainers.learner import Norms
from trimtab.trainers.rl_update import clip_range_of
from trimtab.trainers.rollout_batch import RolloutBatch

Advantages = Callable[[Any, TensorBT, TensorBT, MaskBT], tuple[TensorBT, TensorBT | None]]
"""(config, rewards ``[B, T]``, the critic's values ``[B, T]`` or zeros, response mask ``[B, T]``) → advantages ``[B,
T]`` and, for a method with a critic, returns ``[B, T]``."""

# Advantages -------------------------------------------------------------------------------


def per_answer(advantage: Callable[[Any, TensorGK, MaskGK], TensorGK]) -> Advantages:
    """One advantage for all tokens of an answer, from the group's total rewards and the mask of non-empty answers."""

    def advantages(config: Any, rewards: TensorBT, values: TensorBT, mask: MaskBT) -> tuple[TensorBT, None]:
        totals, answered = rewards.sum(dim=1).view(-1, config.group), mask.any(dim=1).view(-1, config.group)
        return masked(advantage(config, totals, answered).reshape(-1, 1).expand_as(rewards), mask), None

    return advantages


def ppo_advantages(
    config: online.PpoConfig, rewards: TensorBT, values: TensorBT, mask: MaskBT
) -> tuple[TensorBT, TensorBT]:
    """GAE on the critic's values, whitened or not; the returns use the critic's own λ if it is set."""
    advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
    if config.critic_lam is not None:
        _, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.critic_lam)
    return (whiten(advantages, mask) if config.whiten_advantages else advantages), returns


def gdpo_advantages(config: Any, rewards: TensorBR, weights: TensorR, mask: MaskBT) -> TensorBT:
    """Each reward normalised in its group, their sum over the batch; the same at all tokens of an answer."""
    grouped = rewards.view(-1, config.group, rewards.shape[1])
    advantage = gdpo_advantage(grouped, weights, mask.any(dim=1).view(-1, config.group), std=config.std)
    return masked(advantage.reshape(-1, 1).expand(mask.shape), mask)


def reinforce_pp_advantages(
    config: online.ReinforcePpConfig, rewards: TensorBT, values: TensorBT, mask: MaskBT
) -> tuple[TensorBT, None]:
    """The reward still to come, whitened."""
    return reinforce_pp_advantage(rewards, mask, gamma=config.gamma), None


def reinforce_pp_baseline_advantages(
    config: online.ReinforcePpBaselineConfig, rewards: TensorBT, values: TensorBT, mask: MaskBT
) -> tuple[TensorBT, None]:
    """The reward still to come after subtracting the group's mean, whitened."""
    return reinforce_pp_baseline_advantage(rewards, mask, group=config.group, gamma=config.gamma), None


# Surrogates -------------------------------------------------------------------------------


def gspo_surrogate(config: Any, new: TensorBT, part: RolloutBatch) -> tuple[TensorBT, Tensor]:
    """The clipped surrogate of the answer's ratio at each token, and the share of tokens in clipped answers."""
    assert part.advantages is not None
    log_ratio, mask = sequence_log_ratio(new, part.old_logprobs, part.response_mask), part.response_mask
    start, clip_range = torch.zeros_like(log_ratio), clip_range_of(config)
    losses = clipped_policy_loss(log_ratio, start, part.advantages, mask, dual_clip=config.dual_clip, **clip_range)
    return losses, clip_fraction(log_ratio, start, mask, **clip_range)


def cispo_surrogate(config: Any, new: TensorBT, part: RolloutBatch) -> tuple[TensorBT, Tensor]:
    """CISPO's loss of each token, and the share of tokens whose weight is clipped."""
    assert part.advantages is not None
    old, mask, clip_range = part.old_logprobs, part.response_mask, clip_range_of(config)
    return cispo_loss(new, old, part.advantages, mask, **clip_range), clip_fraction(new, old, mask, **clip_range)


# Reductions -------------------------------------------------------------------------------


def token_mean(config: Any, losses: TensorBT, mask: MaskBT, norms: Norms) -> Tensor:
    """Mean over all tokens."""
    return reduce_sum(losses, mask, norm=norms.tokens)


def answer_sum(config: Any, losses: TensorBT, mask: MaskBT, norms: Norms) -> Tensor:
    """Sum over the tokens of an answer, mean over answers."""
    return reduce_sum(losses, mask, norm=norms.sequences)


def answer_mean(config: Any, losses: TensorBT, mask: MaskBT, norms: Norms) -> Tensor:
    """Mean over the tokens of an answer, mean over answers."""
    return reduce_sum(masked_mean(losses, mask, dim=1), norm=norms.sequences)


def constant_length(config: Any, losses: TensorBT, mask: MaskBT, norms: Norms) -> Tensor:
    """Sum over the tokens of an answer divided by ``max_new_tokens``, mean over answers."""
    return reduce_sum(losses, mask, norm=norms.sequences * config.sampler.max_new_tokens)


# Objectives as text -----------------------------------------------------------------------


def penalised(gain: Callable[[Any], str]) -> Callable[[Any], str]:
    """The objective of a method with a clipped ratio: ``gain`` is the part without the penalty."""

    def objective(config: online.PolicyGradientConfig) -> str:
        kl, term = config.kl, "KL(π‖reference)"
        if kl.place == "loss":
            per_token = kl.estimator not in (None, "sequence")
            term = f"{kl.estimator} of each token, in the loss" if per_token else f"{term}, in the loss"
        penalty = f"{kl.coefficient:g}·{term}"
        if kl.target is not None:
            penalty += f" (adaptive, towards {kl.target:g} nats per answer)"
        if config.ptx is not None:
            penalty += f" + {config.ptx.coefficient:g}·log π(conversations)"
        return f"max {gain(config)} − {penalty}"

    return objective


def whitened_gain(config: Any) -> str:
    """E[reward], divided by σ only if the penalty is in the loss: a penalty in the reward is divided as well."""
    whitened = not isinstance(config, online.PpoConfig) or config.whiten_advantages
    return "E[reward]/σ of the batch" if whitened and config.kl.place == "loss" else "E[reward]"


def centred_gain(config: Any) -> str:
    """The group's mean includes the answer itself, so 1/k of the reward and of a penalty in the reward is lost."""
    return "E[reward]" if config.kl.place == "reward" else f"{1 - 1 / config.group:.3g}·E[reward]"


def centred_whitened_gain(config: Any) -> str:
    """As :func:`centred_gain`, divided by σ; a penalty in the reward is divided too, one in the loss is not."""
    return "E[reward]" if config.kl.place == "reward" else "E[(reward − group mean)/σ of the batch]"


def text(template: str) -> Callable[[Any], str]:
    """An objective with the settings' values in it."""
    return lambda config: template.format(**config.model_dump())
