"""Updates of the policy on a rollout batch: the clipped surrogate, online DPO, or imitation of the best answers.

With ``kl.stop`` every method can end its update early. Before each optimiser step, KL(π_old‖π) is estimated (k3, nats
per token) on the whole minibatch. Above the limit, this step and all later steps on the rollout batch are skipped.
Source: ``target_kl`` of Spinning Up's PPO and stable-baselines3's PPO. Departures: they stop above 1.5 times
``target_kl``, here the limit is the value itself; Spinning Up continues with the critic, here the critic stops too, as
in stable-baselines3. Online DPO and rejection sampling measure the KL on the answers they train on, which were chosen
by their scores.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from trimtab.algos import (
    approx_kl,
    clip_fraction,
    clipped_policy_loss,
    clipped_value_loss,
    dpo_loss,
    group_has_spread,
    k3_clamped,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_sequence,
    masked_sum,
    reduce_sum,
    scale_gradient,
)
from trimtab.algos.masking import masked
from trimtab.algos.shapes import TensorBT
from trimtab.models import Batch, Encoded, FrozenStates, collate, parts_of_like_size
from trimtab.trainers.learner import Learner, Metrics, Norms
from trimtab.trainers.rl_config import (
    KLConfig,
    OnlineConfig,
    OnlineDpoConfig,
    PolicyGradientConfig,
    PpoConfig,
    RejectionConfig,
)
from trimtab.trainers.rl_optional import critic_on_policy
from trimtab.trainers.rollout_batch import RolloutBatch
from trimtab.trainers.sft import step_indices

PER_TOKEN_KL = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}

ConfigT = TypeVar("ConfigT", bound=OnlineConfig)

Surrogate = Callable[[Any, TensorBT, RolloutBatch], tuple[TensorBT, Tensor]]
"""(config, log π ``[B, T]``, the answers) → loss of each token ``[B, T]`` and the share of clipped tokens."""


def clip_range_of(config: PolicyGradientConfig) -> dict[str, float]:
    """``eps_low`` and ``eps_high``, as arguments for the formulas."""
    return {"eps_low": config.eps, "eps_high": config.eps_high or config.eps}


def clipped_surrogate(config: PolicyGradientConfig, new: TensorBT, part: RolloutBatch) -> tuple[TensorBT, Tensor]:
    """PPO's :data:`Surrogate`: the clipped ratio of each token."""
    assert part.advantages is not None
    old, mask, clip_range = part.old_logprobs, part.response_mask, clip_range_of(config)
    losses = clipped_policy_loss(new, old, part.advantages, mask, dual_clip=config.dual_clip, **clip_range)
    return losses, clip_fraction(new, old, mask, **clip_range)


@dataclass(frozen=True, kw_only=True)
class Update(Generic[ConfigT]):
    """One rollout batch and everything its update needs."""

    learners: dict[str, Learner]
    """``policy`` and, for a method with a critic, ``critic``."""
    batch: RolloutBatch
    """The answers."""
    ids: Sequence[str]
    """Name of each row, for messages."""
    config: ConfigT
    """Settings of the method."""
    seed: int
    """Order of the rows."""
    beta: float
    """KL coefficient of this step, reward units per nat."""
    states: FrozenStates
    """States of frozen layers."""
    reduction: Callable[[ConfigT, Tensor, Tensor, Norms], Tensor] | None = None
    """The method's reduction, see :class:`trimtab.trainers.methods.OnlineMethod`."""
    surrogate: Surrogate = clipped_surrogate
    """The method's surrogate."""
    opponents: RolloutBatch | None = None
    """The opponents' answers, row for row; None: the method does not train on them."""
    imitate: Sequence[tuple[str, Encoded]] = ()
    """Conversations of PPO-ptx, each with its id."""
    imitate_seed: int = 0
    """Order of the conversations, the same for the whole run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imitation:
    """A micro-batch of conversations to imitate in addition to training on the answers (PPO-ptx)."""

    batch: Batch
    tokens: float
    """Tokens to imitate in the whole optimiser step."""


def clipped_update(update: Update[PolicyGradientConfig]) -> Metrics:
    """Epochs × minibatches of the clipped surrogate, and of the critic if there is one.

    Returns:
        metrics averaged over the optimiser steps; their number is ``updates``, 0 for an empty batch.
    """
    config, learners = update.config, update.learners
    on_policy = critic_on_policy(config)
    metrics_of_steps: list[Metrics] = []
    for parts, norms in _answer_minibatches(update):
        policy_parts: list[tuple[list[str], RolloutBatch | Imitation]] = [*parts]
        metrics = learners["policy"].step(
            policy_parts + _imitations(update),
            lambda part, norms: _policy_loss(update, part, norms),
            norms,
            also=[learners["critic"]] if on_policy else [],
            skip=lambda metrics: too_far(config.kl.stop, metrics),
        )
        if too_far(config.kl.stop, metrics):
            return summary(metrics_of_steps, metrics, config.kl.stop)
        metrics = named(metrics)
        if "critic" in learners and not on_policy:
            metrics |= _critic_step(update, parts, norms)
        metrics_of_steps.append(metrics)
    return summary(metrics_of_steps, None, config.kl.stop)


def critic_update(update: Update[Any]) -> Metrics:
    """Epochs × minibatches of the critic alone; the policy does not change (``critic_warmup``).

    Returns:
        metrics averaged over the optimiser steps; ``updates`` counts the policy's, so it is 0.
    """
    steps = [_critic_step(update, parts, norms) for parts, norms in _answer_minibatches(update)]
    means = {key: sum(m[key] for m in steps) / len(steps) for key in (steps[0] if steps else ())}
    return means | {"updates": 0.0}


def _answer_minibatches(update: Update[Any]) -> Iterator[tuple[list[tuple[list[str], RolloutBatch]], Norms]]:
    """For each optimiser step: its micro-batches, each with the ids of its rows, and the step's :class:`Norms`.

    A minibatch contains whole groups, so that each prompt is computed once. Answers without a token are left out.
    """
    config, batch = update.config, update.batch
    if not update.ids:
        return
    answered = batch.answered.cpu()
    for groups in minibatches(batch.size // config.group, config, update.seed):
        index = (groups[:, None] * config.group + torch.arange(config.group)).flatten()
        index = index[answered[index]]
        if not len(index):
            continue
        minibatch = batch.rows(index.to(batch.tokens.device))
        yield (
            [
                ([update.ids[int(index[i])] for i in rows.tolist()], part)
                for rows, part in minibatch.micro_batches(config.micro_batch_tokens)
            ],
            Norms(tokens=float(minibatch.response_mask.sum()), sequences=minibatch.size),
        )


def _critic_step(update: Update[Any], parts: Sequence[tuple[list[str], RolloutBatch]], norms: Norms) -> Metrics:
    """One optimiser step of a critic with weights of its own."""
    value = update.learners["critic"].step(parts, lambda part, norms: (_value_loss(update, part, norms), {}), norms)
    return {"value_loss": value["loss"], "value_grad_norm": value["grad_norm"]}


def _policy_loss(
    update: Update[PolicyGradientConfig], part: RolloutBatch | Imitation, norms: Norms
) -> tuple[Tensor, Metrics]:
    """A micro-batch's share of the policy's loss, plus the critic's loss if it is a head on the policy's states."""
    config, policy = update.config, update.learners["policy"].role
    if isinstance(part, Imitation):
        return _imitation_loss(update, part)
    assert update.reduction is not None
    hidden = policy.hidden(part, states=update.states) if critic_on_policy(config) else None
    new, entropies = policy.logprobs_and_entropies(
        part,
        temperature=config.sampler.temperature,
        entropy_gradient=config.entropy_bonus > 0,
        hidden=hidden,
        states=update.states,
    )
    mask = part.response_mask
    losses, fraction = update.surrogate(config, new, part)
    if part.importance is not None:
        losses = losses * part.importance
    if part.uncertain is not None:
        losses = masked(losses, part.uncertain)
    if config.kl.place == "loss" and update.beta > 0:
        losses = losses + update.beta * _divergence(config.kl, new, part)
    if config.entropy_bonus > 0:
        losses = losses - config.entropy_bonus * entropies
    with torch.no_grad():
        share = float(mask.sum()) / norms.tokens
        metrics = token_metrics(new, entropies, part, norms) | {"clip_fraction": float(fraction) * share}
        if config.kl.place == "loss" and config.kl.estimator == "k3":
            metrics["k3_clamped"] = float(k3_clamped(new, part.reference_logprobs, mask)) * share
    loss = update.reduction(config, losses, mask, norms)
    if hidden is None:
        return loss, metrics
    assert isinstance(config, PpoConfig)
    value = _value_loss(update, part, norms, hidden=scale_gradient(hidden, config.value_coefficient))
    return loss + value, metrics | {"policy_loss": float(loss.detach()), "value_loss": float(value.detach())}


def _divergence(kl: KLConfig, new: TensorBT, part: RolloutBatch) -> TensorBT:
    """The divergence that β multiplies in the loss, ``[B, T]``, nats."""
    if kl.estimator is None or kl.estimator == "sequence":
        return kl_sequence(new, part.reference_logprobs, part.response_mask, old_logprobs=part.old_logprobs)
    return PER_TOKEN_KL[kl.estimator](new, part.reference_logprobs, part.response_mask)


def _imitation_loss(update: Update[PolicyGradientConfig], part: Imitation) -> tuple[Tensor, Metrics]:
    """PPO-ptx: the weighted negative log-likelihood of conversations."""
    config, policy = update.config, update.learners["policy"].role
    assert config.ptx is not None
    nll = -policy.logprobs(part.batch).sum() / part.tokens
    loss = config.ptx.coefficient * nll
    # With a critic on the policy's states, ``loss`` includes the critic's, so the policy's is logged separately.
    apart = {"policy_loss": float(loss.detach())} if critic_on_policy(config) else {}
    return loss, {"ptx_nll": float(nll.detach())} | apart


def _value_loss(
    update: Update[PolicyGradientConfig],
    part: RolloutBatch | Imitation,
    norms: Norms,
    *,
    hidden: Tensor | None = None,
) -> Tensor:
    """A micro-batch's share of the critic's loss."""
    config = update.config
    assert isinstance(config, PpoConfig) and isinstance(part, RolloutBatch)
    assert part.values is not None and part.returns is not None
    values = update.learners["critic"].role.values(part, hidden=hidden, states=update.states)
    losses = clipped_value_loss(values, part.values, part.returns, part.response_mask, eps=config.value_eps)
    return reduce_sum(losses, part.response_mask, norm=norms.tokens)


def online_dpo_update(update: Update[OnlineDpoConfig]) -> Metrics:
    """DPO on the best and the worst answer of each group; groups whose answers all score the same are left out.

    Returns:
        metrics averaged over the optimiser steps; their number is ``updates``, 0 if every group was flat.
    """
    config, batch, learner = update.config, update.batch, update.learners["policy"]
    scores, answered = batch.scores.view(-1, config.group), batch.answered.view(-1, config.group)
    first = torch.arange(len(scores), device=scores.device) * config.group
    best = first + scores.masked_fill(~answered, -math.inf).argmax(dim=1)
    worst = first + scores.masked_fill(~answered, math.inf).argmin(dim=1)
    usable = group_has_spread(scores, answered).nonzero().squeeze(1).cpu()

    def loss(part: RolloutBatch, norms: Norms) -> tuple[Tensor, Metrics]:
        new, entropies = learner.role.logprobs_and_entropies(
            part, temperature=config.sampler.temperature, states=update.states
        )
        sums = masked_sum(new, part.response_mask, dim=1)
        reference = masked_sum(part.reference_logprobs, part.response_mask, dim=1)
        chosen, rejected = sums[0::2], sums[1::2]
        ref_chosen, ref_rejected = reference[0::2], reference[1::2]
        losses = dpo_loss(chosen, rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected, beta=config.beta)
        with torch.no_grad():
            gap = chosen - rejected - (ref_chosen - ref_rejected)
            metrics = token_metrics(new, entropies, part, norms) | {
                "accuracy": float((gap > 0).sum()) / (norms.sequences / 2),
                "gap": float(gap.sum()) / (norms.sequences / 2),
            }
        return losses.sum() / (norms.sequences / 2), metrics

    metrics_of_steps: list[Metrics] = []
    for index in minibatches(len(usable), config, update.seed):
        groups = usable[index].to(best.device)
        rows = torch.stack([best[groups], worst[groups]], dim=1).flatten()
        norms = Norms(tokens=float(batch.response_mask[rows].sum()), sequences=len(rows))
        pairs = rows.view(-1, 2)
        sizes = (2 * batch.lengths[rows].view(-1, 2).amax(dim=1)).tolist()
        parts = []
        for places in parts_of_like_size(sizes, config.micro_batch_tokens):
            chosen = pairs[torch.tensor(places)].flatten()
            parts.append(([update.ids[i] for i in chosen.tolist()], batch.rows(chosen)))
        metrics = learner.step(parts, loss, norms, skip=lambda metrics: too_far(config.kl.stop, metrics))
        if too_far(config.kl.stop, metrics):
            return summary(metrics_of_steps, metrics, config.kl.stop)
        metrics_of_steps.append(named(metrics))
    return summary(metrics_of_steps, None, config.kl.stop)


def rejection_update(update: Update[RejectionConfig]) -> Metrics:
    """Maximise the likelihood of each group's ``keep`` best answers; groups that all score the same are left out.

    The likelihood is at temperature 1, as in fine-tuning (Llama 2, RAFT), whatever the sampler's temperature is. The
    token metrics are at the sampler's temperature. Of two equal scores, the answer drawn first counts as better.

    Returns:
        as for :func:`online_dpo_update`.
    """
    config, batch, learner = update.config, update.batch, update.learners["policy"]
    temperature, role = config.sampler.temperature, learner.role
    scores, answered = batch.scores.view(-1, config.group), batch.answered.view(-1, config.group)
    usable = group_has_spread(scores, answered)
    order = scores.masked_fill(~answered, -math.inf).argsort(dim=1, descending=True, stable=True)[:, : config.keep]
    rows = (order + torch.arange(len(scores), device=scores.device)[:, None] * config.group)[usable].flatten()
    rows = rows[batch.answered[rows]].cpu()

    def loss(part: RolloutBatch, norms: Norms) -> tuple[Tensor, Metrics]:
        hidden = role.hidden(part, states=update.states) if temperature != 1.0 else None
        new, entropies = role.logprobs_and_entropies(part, hidden=hidden, states=update.states)
        with torch.no_grad():
            drawn = new
            if hidden is not None:
                drawn, entropies = role.logprobs_and_entropies(part, temperature=temperature, hidden=hidden)
            metrics = token_metrics(drawn, entropies, part, norms)
        return -new.sum() / norms.tokens, metrics

    metrics_of_steps: list[Metrics] = []
    for index in minibatches(len(rows), config, update.seed):
        chosen = rows[index]
        best = batch.rows(chosen.to(batch.tokens.device))
        norms = Norms(tokens=float(best.response_mask.sum()), sequences=best.size)
        parts = [
            ([update.ids[int(chosen[i])] for i in places.tolist()], part)
            for places, part in best.micro_batches(config.micro_batch_tokens)
        ]
        metrics = learner.step(parts, loss, norms, skip=lambda metrics: too_far(config.kl.stop, metrics))
        if too_far(config.kl.stop, metrics):
            return summary(metrics_of_steps, metrics, config.kl.stop)
        metrics_of_steps.append(named(metrics))
    return summary(metrics_of_steps, None, config.kl.stop)


def minibatches(count: int, config: OnlineConfig, seed: int) -> Iterator[Tensor]:
    """Rows of each optimiser step: each epoch shuffles all ``count`` rows anew and cuts them into minibatches."""
    for epoch in range(config.epochs):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
        yield from (part for part in order.tensor_split(config.minibatches) if len(part))


def too_far(stop: float | None, metrics: Metrics) -> bool:
    """True: a minibatch's KL from the policy that drew the answers is above ``kl.stop``."""
    return metrics["approx_kl"] > (math.inf if stop is None else stop)


def _imitations(update: Update[PolicyGradientConfig]) -> list[tuple[list[str], RolloutBatch | Imitation]]:
    """Micro-batches of the conversations that this optimiser step imitates."""
    config = update.config
    if not update.imitate or config.ptx is None:
        return []
    step = update.learners["policy"].steps
    places = step_indices(len(update.imitate), config.ptx.batch, step, update.imitate_seed)
    chosen = [update.imitate[i] for i in places]
    batch = collate([e.tokens for _, e in chosen], [e.response_mask for _, e in chosen], update.batch.tokens.device)
    tokens = float(batch.response_mask.sum())
    return [
        ([chosen[i][0] for i in index.tolist()], Imitation(batch=part, tokens=tokens))
        for index, part in batch.micro_batches(config.micro_batch_tokens)
    ]


def token_metrics(new: Tensor, entropies: Tensor, part: RolloutBatch, norms: Norms) -> Metrics:
    """The part's share of per-token means: KL from the old policy, entropy, difference from the sampler's logprobs."""
    mask = part.response_mask
    moved = float(approx_kl(new, part.old_logprobs, mask))
    return {
        "approx_kl": moved * float(mask.sum()) / norms.tokens,
        "entropy": float(masked_sum(entropies, mask)) / norms.tokens,
        "mismatch": float(masked_sum((new - part.sampled_logprobs).abs(), mask)) / norms.tokens,
    }


def named(metrics: Metrics) -> Metrics:
    """Metrics under the policy's name; ``policy_loss`` is the whole loss unless the step reports it separately."""
    loss = metrics.pop("loss")
    return {"policy_loss": loss, "policy_grad_norm": metrics.pop("grad_norm")} | metrics


def summary(steps: list[Metrics], refused: Metrics | None, stop: float | None) -> Metrics:
    """Means over the optimiser steps.

    Args:
        steps: metrics of each step.
        refused: metrics of the minibatch whose KL ended the update, used for ``approx_kl``; None: no minibatch did.
        stop: ``kl.stop``.
    """
    means = {key: sum(m[key] for m in steps) / len(steps) for key in (steps[0] if steps else ())}
    measured = steps if refused is None else [*steps, refused]
    if measured:
        means["approx_kl"] = sum(m["approx_kl"] for m in measured) / len(measured)
        # Before the first update the trainer's log-probabilities should equal the sampler's.
        means["mismatch"] = measured[0]["mismatch"]
    if stop is not None:
        means["kl_stopped"] = float(refused is not None)
    return means | {"updates": float(len(steps))}
