"""Online alignment: sample, score, say how good each token was, update under a KL leash. One loop for all methods.

One step, top to bottom:

1. sample answers with the policy; their log-probabilities are the old ones, no pass recomputes them;
2. score them; reward per token = −β·(log π_old − log π_ref), plus the score at the last token;
3. advantages: by GAE on a critic (PPO), or against the other answers to the prompt (RLOO, GRPO, …);
4. epochs × minibatches of the clipped policy loss, and of the clipped value loss where there is a critic;
5. move β if it is adaptive.

What makes a method is in two functions, :func:`advantages_of` and :func:`reduce_policy_loss`; formulas
live in :mod:`trimtab.algos`. Departures from Ouyang et al. 2022: policy, critic, reference and reward
model may share one trunk (adapters), and the critic may start from the reward model (as in the paper)
or at zero. All methods use the clipped surrogate; with one pass and one minibatch its gradient is
REINFORCE's, because every ratio is 1.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.algos import (
    AdaptiveKL,
    approx_kl,
    clip_fraction,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    group_advantage,
    group_has_spread,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_mean,
    masked_sum,
    penalised_rewards,
    reduce_sum,
    reinforce_pp_advantage,
    rloo_advantage,
    truncated_importance_weights,
    whiten,
)
from trimtab.algos.masking import masked
from trimtab.errors import ConfigError, DataError, NonFiniteError, ScoringError
from trimtab.models import AdapterConfig, Backbone, Batch, Role, collate, scatter
from trimtab.records import Prompt, Rollout, read_records, write_records
from trimtab.rollout import LocalSampler, Scorer
from trimtab.trainers.checkpoint import seed_step, step_seed
from trimtab.trainers.learner import Learner, Metrics, Norms
from trimtab.trainers.progress import Session
from trimtab.trainers.rl_config import (
    DapoConfig,
    DrGrpoConfig,
    GrpoConfig,
    PpoConfig,
    ReinforcePpBaselineConfig,
    ReinforcePpConfig,
    RlConfig,
    RlooConfig,
    check_rl,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RlRoles:
    """The models an online run needs."""

    policy: Role
    """Trained."""
    reference: Role
    """Frozen; what KL is measured against."""
    critic: Role | None = None
    """Trained; scalar head. PPO has one, the other methods have none."""

    @classmethod
    def on(cls, backbone: Backbone, config: AdapterConfig, *, seed: int, critic: bool = True) -> "RlRoles":
        """Policy and critic as adapters (or full copies) of one backbone, which stays the reference."""
        return cls(
            policy=Role.trainable(backbone, "policy", config, seed=step_seed(seed, "policy", 0)),
            reference=Role(backbone),
            critic=Role.trainable(backbone, "critic", config, seed=step_seed(seed, "critic", 0), scalar_head=True)
            if critic
            else None,
        )


Monitor = Callable[[Sequence[Rollout]], Metrics]
"""Further numbers of a rollout batch that are logged, never trained on (a gold reward, for example)."""


def train_rl(
    roles: RlRoles,
    prompts: Sequence[Prompt],
    score: Scorer,
    config: RlConfig,
    *,
    seed: int,
    session: Session | None = None,
    monitor: Monitor | None = None,
    samples: Path | None = None,
    weights: dict[str, float] | None = None,
) -> None:
    """Train the policy, and the critic where there is one, in place.

    Args:
        roles: policy, reference and, for PPO, critic.
        prompts: what to answer; every pass over them is a fresh shuffle.
        score: rollouts → named reward components.
        config: settings.
        seed: prompts' order, sampling, minibatches, dropout.
        session: logging, checkpoints, stopping; None: silent, keeps nothing.
        monitor: extra metrics of each rollout batch.
        samples: folder for each step's rollouts with their rewards; an interrupted step is continued from there.
        weights: weight of each reward component; 1 where not named.

    Raises:
        ConfigError: settings that contradict each other.
        ScoringError: the reward function failed or gave the wrong shape.
        NonFiniteError: a reward, loss or gradient became NaN or infinite.
    """
    session = session or Session()
    check_rl(config, len(prompts))
    updates = config.steps * config.epochs * config.minibatches
    learners = {"policy": Learner(roles.policy, config.policy, updates)}
    if isinstance(config, PpoConfig):
        if roles.critic is None:
            raise ConfigError("method 'ppo' needs a critic; build the roles with RlRoles.on(..., critic=True)")
        learners["critic"] = Learner(roles.critic, config.critic, updates)
    leash = AdaptiveKL(config.kl.coefficient, config.kl.target or 1.0, config.kl.horizon)
    done, extra = session.checkpoints.restore(learners) if session.checkpoints else (0, {})
    if extra:
        leash.load_state_dict(extra["kl"])
    sampler = LocalSampler(roles.policy.backbone, config.sampler)
    session.planned(done, config.steps)
    for step in range(done, config.steps):
        clock = _Clock()
        value = seed_step(seed, "align", step)
        chosen = _prompts_of_step(prompts, config.prompts, step, seed)
        version = learners["policy"].steps
        rollouts = _sample(sampler, roles.policy, chosen, config, value, version, samples, step)
        clock.lap("sample")
        totals = score_rollouts(rollouts, score, weights or {}, step)
        if samples is not None:
            write_records(samples / f"step-{step:06d}.jsonl", rollouts)
        clock.lap("score")
        batch = _prepare(roles, rollouts, totals, config, leash.value)
        clock.lap("infer")
        metrics = _update(learners, roles, batch, [r.id for r in rollouts], config, value, leash.value)
        clock.lap("update")
        metrics |= _describe(rollouts, totals, batch, config, leash.value)
        if monitor is not None:
            metrics |= monitor(rollouts)
        if config.kl.target is not None:
            leash.update(metrics["kl"], len(rollouts))
        session.log({"step": step + 1, **metrics, **clock.seconds})
        session.after_step(
            step + 1, config.steps, lambda c, s=step + 1: c.save(s, learners, {"kl": leash.state_dict()})
        )


def score_rollouts(rollouts: list[Rollout], score: Scorer, weights: dict[str, float], step: int) -> list[float]:
    """Score rollouts in place (``rollout.rewards``) and return each one's weighted sum.

    Raises:
        ScoringError: the function raised, or returned the wrong length or type.
        NonFiniteError: a component is NaN or infinite; names the sample.
    """
    try:
        components = score(rollouts)
    except (ScoringError, NonFiniteError):
        raise
    except Exception as error:
        raise ScoringError(f"the reward function raised {type(error).__name__} at step {step}: {error}") from error
    if not isinstance(components, Mapping) or not components:
        raise ScoringError(
            f"the reward function returned {type(components).__name__}; expected a dict of name → list of floats"
        )
    for name, values in components.items():
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise ScoringError(f"reward {name!r} at step {step}: expected a list of floats ({error})") from error
        if len(numbers) != len(rollouts):
            raise ScoringError(f"reward {name!r} has {len(numbers)} values for {len(rollouts)} answers")
        for rollout, number in zip(rollouts, numbers, strict=True):
            if not math.isfinite(number):
                raise NonFiniteError(
                    f"reward {name!r} is {number} for sample {rollout.id} at step {step} (answer of "
                    f"{len(rollout.tokens)} tokens). Nothing was trained on it; mend the reward function and run the "
                    "same command to continue from the last checkpoint"
                )
            rollout.rewards[name] = number
    return [sum(weights.get(name, 1.0) * r.rewards[name] for name in components) for r in rollouts]


def rollout_batch(rollouts: Sequence[Rollout], device: torch.device) -> Batch:
    """Prompt and answer of each rollout, with column ``old_logprobs``."""
    batch = collate(
        [r.prompt_tokens + r.tokens for r in rollouts],
        [[False] * len(r.prompt_tokens) + [True] * len(r.tokens) for r in rollouts],
        device,
    )
    batch.columns["old_logprobs"] = scatter([r.logprobs for r in rollouts], batch.response_mask)
    return batch


# The parts of a step ----------------------------------------------------------------------


def _prompts_of_step(prompts: Sequence[Prompt], count: int, step: int, seed: int) -> list[Prompt]:
    """The step's prompts: consecutive pieces of one endless sequence of shuffled passes."""
    chosen: list[Prompt] = []
    position = step * count
    while len(chosen) < count:
        epoch, place = divmod(position, len(prompts))
        order = list(range(len(prompts)))
        random.Random(f"{seed}|prompts|{epoch}").shuffle(order)
        part = order[place : place + count - len(chosen)]
        chosen += [prompts[i] for i in part]
        position += len(part)
    return chosen


def _sample(
    sampler: LocalSampler,
    policy: Role,
    prompts: Sequence[Prompt],
    config: RlConfig,
    seed: int,
    version: int,
    samples: Path | None,
    step: int,
) -> list[Rollout]:
    """Draw the step's answers, or take those that a killed process had finished drawing."""
    path = None if samples is None else samples / f"step-{step:06d}.jsonl"
    if path is not None and path.exists():
        try:
            kept = read_records(path, Rollout)
        except DataError:
            kept = []
        wanted = [p.id for p in prompts for _ in range(config.group)]
        if [r.prompt.id for r in kept] == wanted and all(r.weight_version == version for r in kept):
            return kept
    rollouts = sampler.generate(prompts, adapter=policy.adapter, seed=seed, group=config.group, weight_version=version)
    if path is not None:
        write_records(path, rollouts)
    return rollouts


@torch.no_grad()
def _prepare(
    roles: RlRoles, rollouts: Sequence[Rollout], scores: Sequence[float], config: RlConfig, beta: float
) -> Batch:
    """Everything that stays fixed during the update: reference, old values, rewards, advantages, returns."""
    device = roles.policy.backbone.device
    batch = rollout_batch(rollouts, device)
    mask, temperature = batch.response_mask, config.sampler.temperature
    reference = torch.zeros_like(batch.columns["old_logprobs"])
    values, trainers = torch.zeros_like(reference), torch.zeros_like(reference)
    critic = roles.critic if isinstance(config, PpoConfig) else None
    shared = roles.policy.backbone is roles.reference.backbone
    lowers: list[tuple[Tensor, Tensor]] = []
    for index, part in batch.micro_batches(config.micro_batch_tokens):
        lower = roles.reference.backbone.lower(part.tokens) if shared else None
        if lower is not None:
            part.columns["lower"] = lower
            lowers.append((index, lower))
        width = part.tokens.shape[1]
        reference[index, :width] = roles.reference.logprobs(part, temperature=temperature)[0]
        if critic is not None:
            values[index, :width] = critic.values(part)
        if config.importance_cap is not None:
            trainers[index, :width] = roles.policy.logprobs(part, temperature=temperature)[0]
    if lowers:
        lower = torch.zeros(*batch.tokens.shape, lowers[0][1].shape[-1], dtype=lowers[0][1].dtype, device=device)
        for index, part_lower in lowers:
            lower[index, : part_lower.shape[1]] = part_lower
        batch.columns["lower"] = lower
    sampled = batch.columns["old_logprobs"]
    if config.importance_cap is not None:
        batch.columns["importance"] = truncated_importance_weights(trainers, sampled, mask, cap=config.importance_cap)
        batch.columns["old_logprobs"] = trainers
    limit = config.score_clip or math.inf
    clipped = torch.tensor(scores, dtype=torch.float32, device=device).clamp(-limit, limit)
    penalty = config.missing_eos
    rewards = penalised_rewards(
        clipped,
        batch.columns["old_logprobs"],
        reference,
        mask,
        beta=beta if config.kl.place == "reward" else 0.0,
        ended=torch.tensor([r.finish_reason == "stop" for r in rollouts], device=device),
        missing_eos_penalty=None if penalty is None else penalty.value,
        missing_eos_mode="replace" if penalty is None else penalty.mode,
    )
    advantages, returns = advantages_of(config, rewards, values, mask)
    batch.columns |= {
        "sampled": sampled,
        "reference": reference,
        "values": values,
        "advantages": advantages,
        "returns": returns,
        "rewards": rewards,
    }
    return batch


def advantages_of(config: RlConfig, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
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


def reduce_policy_loss(config: RlConfig, losses: Tensor, mask: Tensor, norms: Norms) -> Tensor:
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


def _update(
    learners: dict[str, Learner],
    roles: RlRoles,
    batch: Batch,
    ids: Sequence[str],
    config: RlConfig,
    seed: int,
    beta: float,
) -> Metrics:
    """Epochs × minibatches of policy and critic; returns metrics averaged over the optimiser steps."""
    eps_low, eps_high = config.eps, config.eps_high or config.eps
    leash = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}[config.kl.estimator]

    def policy_loss(part: Batch, norms: Norms) -> tuple[Tensor, Metrics]:
        new, entropies = roles.policy.logprobs(
            part, temperature=config.sampler.temperature, entropy_gradient=config.entropy_bonus > 0
        )
        old, mask = part.columns["old_logprobs"], part.response_mask
        losses = clipped_policy_loss(new, old, part.columns["advantages"], mask, eps_low=eps_low, eps_high=eps_high)
        if "importance" in part.columns:
            losses = losses * part.columns["importance"]
        if config.kl.place == "loss" and beta > 0:
            losses = losses + beta * leash(new, part.columns["reference"], mask)
        if config.entropy_bonus > 0:
            losses = losses - config.entropy_bonus * entropies
        with torch.no_grad():
            count = float(mask.sum())
            share = count / norms.tokens
            fraction = clip_fraction(new, old, mask, eps_low=eps_low, eps_high=eps_high)
            metrics = {
                "entropy": float(masked_sum(entropies, mask)) / norms.tokens,
                "clip_fraction": float(fraction) * share,
                "approx_kl": float(approx_kl(new, old, mask)) * share,
                "mismatch": float(masked_sum((new - part.columns["sampled"]).abs(), mask)) / norms.tokens,
            }
        return reduce_policy_loss(config, losses, mask, norms), metrics

    def critic_loss(part: Batch, norms: Norms) -> tuple[Tensor, Metrics]:
        assert isinstance(config, PpoConfig) and roles.critic is not None
        values = roles.critic.values(part)
        losses = clipped_value_loss(
            values, part.columns["values"], part.columns["returns"], part.response_mask, eps=config.value_eps
        )
        return reduce_sum(losses, part.response_mask, norm=norms.tokens), {}

    gathered: list[Metrics] = []
    for epoch in range(config.epochs):
        order = torch.randperm(batch.size, generator=torch.Generator().manual_seed(seed + epoch))
        for index in order.tensor_split(config.minibatches):
            minibatch = batch.rows(index.to(batch.tokens.device))
            norms = Norms(tokens=float(minibatch.response_mask.sum()), sequences=minibatch.size)
            parts = [
                ([ids[int(index[i])] for i in inner.tolist()], part)
                for inner, part in minibatch.micro_batches(config.micro_batch_tokens)
            ]
            policy = learners["policy"].step(parts, policy_loss, norms)
            row = {"policy_loss": policy.pop("loss"), "policy_grad_norm": policy.pop("grad_norm")}
            if "critic" in learners:
                critic = learners["critic"].step(parts, critic_loss, norms)
                row |= {"value_loss": critic["loss"], "value_grad_norm": critic["grad_norm"]}
            gathered.append(row | policy)
    averaged = {key: sum(m[key] for m in gathered) / len(gathered) for key in gathered[0]}
    # Before the first update the trainer's log-probabilities should be the sampler's: this is by how much not.
    return averaged | {"mismatch": gathered[0]["mismatch"]}


def _describe(
    rollouts: Sequence[Rollout], totals: Sequence[float], batch: Batch, config: RlConfig, beta: float
) -> Metrics:
    """Means over the batch, as a person wants to read them. KL is per answer, in nats."""
    mask, n = batch.response_mask, len(rollouts)
    kl = masked_sum(kl_k1(batch.columns["old_logprobs"], batch.columns["reference"]), mask)
    more: Metrics = {}
    if isinstance(config, PpoConfig):
        returns, values = batch.columns["returns"][mask], batch.columns["values"][mask]
        spread = float(returns.var(unbiased=False))
        residual = float((returns - values).var(unbiased=False))
        more["value"] = float(masked_mean(batch.columns["values"], mask))
        more["explained_variance"] = 1.0 - residual / spread if spread > 0 else 0.0
    if config.group > 1:
        sums = batch.columns["rewards"].sum(dim=1).view(-1, config.group)
        more["flat_groups"] = float((~group_has_spread(sums)).float().mean())
    names = sorted({name for r in rollouts for name in r.rewards})
    mean = sum(totals) / n
    return {
        "reward": mean,
        "reward_std": math.sqrt(sum((t - mean) ** 2 for t in totals) / n),
        **{f"reward/{name}": sum(r.rewards[name] for r in rollouts) / n for name in names},
        "kl": float(kl) / n,
        "beta": beta,
        "length": float(mask.sum()) / n,
        "ended": sum(r.finish_reason == "stop" for r in rollouts) / n,
        "distinct": len({r.text for r in rollouts}) / n,
        **more,
    }


class _Clock:
    """Seconds spent in each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, Any] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds/{name}"] = now - self._last
        self._last = now
