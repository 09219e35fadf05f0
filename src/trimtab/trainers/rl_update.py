"""What a rollout batch does to the policy: the clipped ratio, the better of two answers, or imitation of the best.

With ``kl.stop`` every method ends its update early. Before each optimiser step KL(π_old‖π) is estimated (k3, nats per
token) on the step's whole minibatch, whatever its micro-batches are; above the limit, this step and all that remain of
the rollout batch are skipped. Source: Spinning Up's PPO and stable-baselines3's PPO, both ``target_kl``. Departures:
they stop above 1.5 times ``target_kl``, here the limit is the value itself; Spinning Up goes on with the critic,
here it stops too, as in stable-baselines3. Online DPO and rejection sampling measure it on the answers they train on,
which were chosen by their scores.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.algos import (
    approx_kl,
    clip_fraction,
    clipped_policy_loss,
    clipped_value_loss,
    dpo_loss,
    gae,
    group_advantage,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_mean,
    masked_sum,
    reduce_sum,
    reinforce_pp_advantage,
    rloo_advantage,
    whiten,
)
from trimtab.algos.masking import masked
from trimtab.models import Batch, Encoded, Role, collate, parts_of_like_size
from trimtab.trainers.learner import Learner, Metrics, Norms
from trimtab.trainers.rl_config import (
    ClippedConfig,
    DapoConfig,
    DrGrpoConfig,
    GrpoConfig,
    OnlineDpoConfig,
    PpoConfig,
    ReinforcePpBaselineConfig,
    ReinforcePpConfig,
    RejectionConfig,
    RlConfig,
    RlooConfig,
)
from trimtab.trainers.sft import step_indices


@dataclass(frozen=True, kw_only=True, slots=True)
class Imitation:
    """A micro-batch of conversations to imitate beside the answers (PPO-ptx)."""

    batch: Batch
    tokens: float
    """Tokens to imitate in the whole optimiser step."""


def advantages_of(config: ClippedConfig, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How much better each token was than expected.

    Args:
        config: the method.
        rewards: ``[B, T]``, reward per token; consecutive ``config.group`` rows answer the same prompt.
        values: ``[B, T]``, what the critic expected; zeros where there is none.
        mask: ``[B, T]`` bool, True: the policy produced this token.

    Returns:
        advantages and returns, both ``[B, T]``.
    """
    totals = rewards.sum(dim=1).view(-1, config.group)  # one number per answer, KL included if it is in the reward

    def spread(per_answer: Tensor) -> tuple[Tensor, Tensor]:
        return masked(per_answer.reshape(-1, 1).expand_as(rewards), mask), rewards

    match config:
        case PpoConfig():
            advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
            return (whiten(advantages, mask) if config.whiten_advantages else advantages), returns
        case RlooConfig():
            return spread(rloo_advantage(totals))
        case GrpoConfig() | DapoConfig():
            return spread(group_advantage(totals, std=config.std))
        case DrGrpoConfig():
            return spread(group_advantage(totals, std="none"))
        case ReinforcePpConfig():
            return reinforce_pp_advantage(rewards, mask, gamma=config.gamma), rewards
        case ReinforcePpBaselineConfig():
            places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
            last = torch.where(mask, places, -1).amax(dim=1)
            centred = rewards.clone()
            row = torch.arange(len(last), device=mask.device)
            centred[row, last] -= totals.mean(dim=1).repeat_interleave(config.group)
            return reinforce_pp_advantage(centred, mask, gamma=config.gamma), rewards


def reduce_policy_loss(config: ClippedConfig, losses: Tensor, mask: Tensor, norms: Norms) -> Tensor:
    """A micro-batch's share of the step's policy loss; ``norms`` are the sizes of the whole optimiser step.

    RLOO: sum over an answer's tokens, mean over answers. GRPO: mean over an answer's tokens, mean over answers.
    Dr.GRPO: the same constant for every answer, ``max_new_tokens``. All others: mean over all tokens.
    """
    match config:
        case RlooConfig():
            return reduce_sum(losses, mask, norm=norms.sequences)
        case GrpoConfig():
            return reduce_sum(masked_mean(losses, mask, dim=1), norm=norms.sequences)
        case DrGrpoConfig():
            return reduce_sum(losses, mask, norm=norms.sequences * config.sampler.max_new_tokens)
        case _:
            return reduce_sum(losses, mask, norm=norms.tokens)


def clipped_update(
    learners: dict[str, Learner],
    critic: Role | None,
    batch: Batch,
    ids: Sequence[str],
    config: ClippedConfig,
    *,
    seed: int,
    beta: float,
    imitate: Sequence[tuple[str, Encoded]] = (),
    order: int = 0,
) -> Metrics:
    """Epochs × minibatches of the clipped surrogate, and of the critic where there is one.

    Args:
        learners: ``policy`` and, for PPO, ``critic``.
        critic: the critic's role.
        batch: with columns ``old_logprobs``, ``reference``, ``advantages``, ``sampled`` and, for PPO, ``values`` and
            ``returns``.
        ids: name of each row, for messages; none: there is nothing to learn from.
        config: the method.
        seed: order of the rows.
        beta: KL coefficient of this step.
        imitate: conversations of PPO-ptx, each with its id.
        order: seed of their order, the same for the whole run.

    Returns:
        metrics averaged over the optimiser steps; their number is ``updates``.
    """
    if not ids:
        return _summary([], None, config)
    policy = learners["policy"].role
    shared = isinstance(config, PpoConfig) and config.shared_critic
    eps_low, eps_high = config.eps, config.eps_high or config.eps
    leash = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}[config.kl.estimator or "k2"]

    def policy_loss(part: Batch | Imitation, norms: Norms) -> tuple[Tensor, Metrics]:
        if isinstance(part, Imitation):
            assert config.ptx is not None
            nll = -policy.logprobs(part.batch).sum() / part.tokens
            weighed = config.ptx.coefficient * nll
            apart = {"policy_loss": float(weighed.detach())} if shared else {}  # there the loss is not all the policy's
            return weighed, {"ptx_nll": float(nll.detach())} | apart
        hidden = policy.hidden(part) if shared else None
        new, entropies = policy.logprobs_and_entropies(
            part, temperature=config.sampler.temperature, entropy_gradient=config.entropy_bonus > 0, hidden=hidden
        )
        old, mask = part.columns["old_logprobs"], part.response_mask
        advantages = part.columns["advantages"]
        losses = clipped_policy_loss(
            new, old, advantages, mask, eps_low=eps_low, eps_high=eps_high, dual_clip=config.dual_clip
        )
        if "importance" in part.columns:
            losses = losses * part.columns["importance"]
        if config.kl.place == "loss" and beta > 0:
            losses = losses + beta * leash(new, part.columns["reference"], mask)
        if config.entropy_bonus > 0:
            losses = losses - config.entropy_bonus * entropies
        with torch.no_grad():
            share = float(mask.sum()) / norms.tokens
            fraction = clip_fraction(new, old, mask, eps_low=eps_low, eps_high=eps_high)
            metrics = _token_metrics(new, entropies, part, norms) | {"clip_fraction": float(fraction) * share}
        loss = reduce_policy_loss(config, losses, mask, norms)
        if hidden is None:
            return loss, metrics
        assert isinstance(config, PpoConfig)
        fixed = hidden.detach()  # the head learns from the whole loss, the policy's weights from a share of it
        value, _ = critic_loss(part, norms, fixed + config.value_coefficient * (hidden - fixed))
        return loss + value, metrics | {"policy_loss": float(loss.detach()), "value_loss": float(value.detach())}

    def critic_loss(part: Batch | Imitation, norms: Norms, hidden: Tensor | None = None) -> tuple[Tensor, Metrics]:
        assert isinstance(config, PpoConfig) and isinstance(part, Batch) and critic is not None
        losses = clipped_value_loss(
            critic.values(part, hidden=hidden),
            part.columns["values"],
            part.columns["returns"],
            part.response_mask,
            eps=config.value_eps,
        )
        return reduce_sum(losses, part.response_mask, norm=norms.tokens), {}

    taken: list[Metrics] = []
    too_far = _too_far(config)
    for groups in _minibatches(batch.size // config.group, config, seed):
        # Whole groups, so that their prompt is computed once.
        index = (groups[:, None] * config.group + torch.arange(config.group)).flatten()
        minibatch = batch.rows(index.to(batch.tokens.device))
        norms = Norms(tokens=float(minibatch.response_mask.sum()), sequences=minibatch.size)
        parts: list[tuple[list[str], Batch | Imitation]] = [
            ([ids[int(index[i])] for i in inner.tolist()], part)
            for inner, part in minibatch.micro_batches(config.micro_batch_tokens)
        ]
        extra = _imitations(imitate, learners["policy"].steps, config, order, batch.tokens.device)
        also = [learners["critic"]] if shared else []
        metrics = learners["policy"].step(parts + extra, policy_loss, norms, also=also, skip=too_far)
        if too_far(metrics):
            return _summary(taken, metrics, config)
        metrics = _named(metrics)
        if "critic" in learners and not shared:
            value = learners["critic"].step(parts, critic_loss, norms)
            metrics |= {"value_loss": value["loss"], "value_grad_norm": value["grad_norm"]}
        taken.append(metrics)
    return _summary(taken, None, config)


def online_dpo_update(
    learner: Learner, batch: Batch, ids: Sequence[str], config: OnlineDpoConfig, *, seed: int
) -> Metrics:
    """DPO on the best against the worst answer of each group; groups that all score the same teach nothing.

    Args:
        learner: of the policy.
        batch: with columns ``scores`` (``[B]``), ``reference`` and ``sampled``; consecutive ``group`` rows answer the
            same prompt.
        ids: name of each row, for messages.
        config: the method.
        seed: order of the groups.

    Returns:
        metrics averaged over the optimiser steps; their number is ``updates``, 0 if every group was flat.
    """
    scores = batch.columns["scores"].view(-1, config.group)
    first = torch.arange(len(scores), device=scores.device) * config.group
    best, worst = first + scores.argmax(dim=1), first + scores.argmin(dim=1)
    usable = (scores.amax(dim=1) > scores.amin(dim=1)).nonzero().squeeze(1).cpu()

    def loss(part: Batch, norms: Norms) -> tuple[Tensor, Metrics]:
        new, entropies = learner.role.logprobs_and_entropies(part, temperature=config.sampler.temperature)
        sums = masked_sum(new, part.response_mask, dim=1)
        reference = masked_sum(part.columns["reference"], part.response_mask, dim=1)
        chosen, rejected = sums[0::2], sums[1::2]
        ref_chosen, ref_rejected = reference[0::2], reference[1::2]
        losses = dpo_loss(chosen, rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected, beta=config.beta)
        with torch.no_grad():
            gap = chosen - rejected - (ref_chosen - ref_rejected)
            metrics = _token_metrics(new, entropies, part, norms) | {
                "accuracy": float((gap > 0).sum()) / (norms.sequences / 2),
                "gap": float(gap.sum()) / (norms.sequences / 2),
            }
        return losses.sum() / (norms.sequences / 2), metrics

    taken: list[Metrics] = []
    too_far = _too_far(config)
    for index in _minibatches(len(usable), config, seed):
        groups = usable[index].to(best.device)
        rows = torch.stack([best[groups], worst[groups]], dim=1).flatten()
        norms = Norms(tokens=float(batch.response_mask[rows].sum()), sequences=len(rows))
        parts = []
        for pair in _paired(batch.lengths[rows].view(-1, 2).amax(dim=1), config.micro_batch_tokens):
            chosen = rows.view(-1, 2)[pair].flatten()
            parts.append(([ids[i] for i in chosen.tolist()], batch.rows(chosen)))
        metrics = learner.step(parts, loss, norms, skip=too_far)
        if too_far(metrics):
            return _summary(taken, metrics, config)
        taken.append(_named(metrics))
    return _summary(taken, None, config)


def rejection_update(
    learner: Learner, batch: Batch, ids: Sequence[str], config: RejectionConfig, *, seed: int
) -> Metrics:
    """Likelihood of each group's ``keep`` best answers; groups that all score the same are left out.

    Arguments and result as for :func:`online_dpo_update`; ties go to the answer drawn first.
    """
    scores = batch.columns["scores"].view(-1, config.group)
    spread = scores.amax(dim=1) > scores.amin(dim=1)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, : config.keep]
    rows = (order + torch.arange(len(scores), device=scores.device)[:, None] * config.group)[spread].flatten().cpu()

    def loss(part: Batch, norms: Norms) -> tuple[Tensor, Metrics]:
        new, entropies = learner.role.logprobs_and_entropies(part, temperature=config.sampler.temperature)
        with torch.no_grad():
            metrics = _token_metrics(new, entropies, part, norms)
        return -new.sum() / norms.tokens, metrics

    taken: list[Metrics] = []
    too_far = _too_far(config)
    for index in _minibatches(len(rows), config, seed):
        chosen = rows[index]
        best = batch.rows(chosen.to(batch.tokens.device))
        norms = Norms(tokens=float(best.response_mask.sum()), sequences=best.size)
        parts = [
            ([ids[int(chosen[i])] for i in inner.tolist()], part)
            for inner, part in best.micro_batches(config.micro_batch_tokens)
        ]
        metrics = learner.step(parts, loss, norms, skip=too_far)
        if too_far(metrics):
            return _summary(taken, metrics, config)
        taken.append(_named(metrics))
    return _summary(taken, None, config)


def _minibatches(count: int, config: RlConfig, seed: int) -> Iterator[Tensor]:
    """Rows of each optimiser step: every pass is a fresh shuffle of all ``count``, cut into minibatches."""
    for epoch in range(config.epochs):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
        yield from (part for part in order.tensor_split(config.minibatches) if len(part))


def _too_far(config: RlConfig) -> Callable[[Metrics], bool]:
    """True where a minibatch's KL to the policy that drew the answers is above ``kl.stop``."""
    limit = math.inf if config.kl.stop is None else config.kl.stop
    return lambda metrics: metrics["approx_kl"] > limit


def _paired(lengths: Tensor, token_budget: int) -> list[Tensor]:
    """Pairs of similar length, two rows each, up to the token budget (one pair at least)."""
    return [torch.tensor(part) for part in parts_of_like_size((2 * lengths).tolist(), token_budget)]


def _imitations(
    examples: Sequence[tuple[str, Encoded]], update: int, config: ClippedConfig, seed: int, device: torch.device
) -> list[tuple[list[str], Batch | Imitation]]:
    if not examples or config.ptx is None:
        return []
    chosen = [examples[i] for i in step_indices(len(examples), config.ptx.batch, update, seed)]
    batch = collate([e.tokens for _, e in chosen], [e.response_mask for _, e in chosen], device)
    tokens = float(batch.response_mask.sum())
    return [
        ([chosen[i][0] for i in index.tolist()], Imitation(batch=part, tokens=tokens))
        for index, part in batch.micro_batches(config.micro_batch_tokens)
    ]


def _token_metrics(new: Tensor, entropies: Tensor, part: Batch, norms: Norms) -> Metrics:
    """The part's share of means per token: entropy, KL to the old policy, distance to what the sampler reported."""
    mask = part.response_mask
    moved = float(approx_kl(new, part.columns["old_logprobs"], mask))
    return {
        "approx_kl": moved * float(mask.sum()) / norms.tokens,
        "entropy": float(masked_sum(entropies, mask)) / norms.tokens,
        "mismatch": float(masked_sum((new - part.columns["sampled"]).abs(), mask)) / norms.tokens,
    }


def _named(metrics: Metrics) -> Metrics:
    """``loss`` is the policy's, unless the step says how much of it is."""
    loss = metrics.pop("loss")
    return {"policy_loss": loss, "policy_grad_norm": metrics.pop("grad_norm")} | metrics


def _summary(taken: list[Metrics], refused: Metrics | None, config: RlConfig) -> Metrics:
    """Means over the optimiser steps that were taken.

    Args:
        taken: metrics of each.
        refused: metrics of the minibatch whose KL ended the update; it counts for ``approx_kl`` only.
        config: the method.
    """
    means = {key: sum(m[key] for m in taken) / len(taken) for key in (taken[0] if taken else ())}
    measured = taken if refused is None else [*taken, refused]
    if measured:
        means["approx_kl"] = sum(m["approx_kl"] for m in measured) / len(measured)
        # Before the first update the trainer's log-probabilities should be the sampler's: this is by how much not.
        means["mismatch"] = measured[0]["mismatch"]
    if config.kl.stop is not None:
        means["kl_stopped"] = float(refused is not None)
    return means | {"updates": float(len(taken))}
