"""Log-probabilities and values of sampled answers before the update. They are constant during the update.

Legend: B answers, T tokens. ``[B, T]`` tensors are 0 where the response mask is False.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.algos import high_entropy_mask, masked_importance_weights, truncated_importance_weights
from trimtab.algos.shapes import MaskBT, TensorB, TensorBT
from trimtab.models import Batch, FrozenStates, Role, scatter
from trimtab.records import Rollout
from trimtab.trainers.group import ALONE, Group
from trimtab.trainers.rl_config import OnlineConfig, PolicyGradientConfig
from trimtab.trainers.rl_optional import bootstraps_cut, critic_on_policy, entropy_share, leaves_out_cut
from trimtab.trainers.scoring import ended_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """Log-probabilities, values and weights of one rollout batch."""

    sampled: TensorBT
    """``[B, T]``, nats, as the sampler reported them."""
    old: TensorBT
    """``[B, T]``, nats, under the policy before the update: the sampler's, or with ``importance_cap`` the trainer's."""
    reference: TensorBT
    """``[B, T]``, nats, under the reference."""
    values: TensorBT
    """``[B, T]``, reward units; zeros without a critic."""
    last_values: TensorB | None
    """``[B]``, reward units, the critic's value after the last token; None: cut answers are not bootstrapped."""
    importance: TensorBT | None
    """``[B, T]``, importance weight of each token; None: not weighted."""
    uncertain: MaskBT | None
    """``[B, T]`` bool, True: among the tokens that ``entropy_top`` selects; None: all count."""


@torch.no_grad()
def run_passes(
    policy: Role,
    reference: Role,
    critic: Role | None,
    tokens: Batch,
    rollouts: Sequence[Rollout],
    config: OnlineConfig,
    states: FrozenStates,
    *,
    group: Group = ALONE,
) -> Passes:
    """Run the reference, the critic and, where a setting needs it, the policy on the answers.

    Args:
        policy: the policy with the weights that drew the answers.
        reference: the model that KL is measured against.
        critic: the critic; None: the method has none.
        tokens: the tokens of the answers, with their prompts.
        rollouts: the answers.
        config: settings.
        states: stored states of frozen layers.
        group: the ranks that divide the micro-batches.
    """
    mask, temperature = tokens.response_mask, config.sampler.temperature
    sampled = scatter([r.logprobs for r in rollouts], mask)
    known, values, recomputed, entropies = (torch.zeros_like(sampled) for _ in range(4))
    gradient = config if isinstance(config, PolicyGradientConfig) else None
    weighted = gradient is not None and gradient.weight_cap is not None
    top = entropy_share(config)
    last_values = None
    if bootstraps_cut(config):
        last_values = torch.zeros(len(rollouts), device=mask.device)
    # If the critic is a head on the policy's states, the sampler has computed the values already.
    valued = critic_on_policy(config) and all(len(r.values) == len(r.tokens) for r in rollouts)
    if valued:
        values = scatter([r.values for r in rollouts], mask)
    parts = group.share(list(tokens.micro_batches(config.micro_batch_tokens)))
    with reference.gathered():
        for index, part in parts:
            known[index, : part.tokens.shape[1]] = reference.logprobs(part, temperature=temperature, states=states)
    if critic is not None and not (valued and last_values is None):
        with critic.gathered():
            for index, part in parts:
                if not valued:
                    values[index, : part.tokens.shape[1]] = critic.values(part, states=states)
                if last_values is not None:
                    last_values[index] = critic.scores(part, states=states)
    if top is not None or weighted:
        with policy.gathered():
            for index, part in parts:
                width = part.tokens.shape[1]
                if top is None:
                    recomputed[index, :width] = policy.logprobs(part, temperature=temperature, states=states)
                else:
                    recomputed[index, :width], entropies[index, :width] = policy.logprobs_and_entropies(
                        part, temperature=temperature, states=states
                    )
    # Each row was filled in by one rank and is zero on the others.
    computed = [
        known,
        recomputed,
        entropies,
        *([] if valued else [values]),
        *([] if last_values is None else [last_values]),
    ]
    group.sum_("passes before the update", computed)
    counted = mask
    if leaves_out_cut(config):  # cut answers are left out of the loss
        counted = mask & ended_of(rollouts).to(mask.device)[:, None]
    return Passes(
        sampled=sampled,
        old=recomputed if weighted else sampled,
        reference=known,
        values=values,
        last_values=last_values,
        importance=_weights(gradient, recomputed, sampled, mask) if gradient is not None and weighted else None,
        uncertain=None if top is None else high_entropy_mask(entropies, counted, share=top),
    )


def _weights(config: PolicyGradientConfig, recomputed: Tensor, sampled: Tensor, mask: Tensor) -> Tensor:
    """Importance weights: truncated or masked, as the settings say."""
    assert config.weight_cap is not None
    limits = {"cap": config.weight_cap, "level": config.importance_level}
    if config.importance_beyond == "truncate":
        return truncated_importance_weights(recomputed, sampled, mask, **limits)
    return masked_importance_weights(recomputed, sampled, mask, floor=config.importance_floor, **limits)
