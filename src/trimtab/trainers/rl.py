"""PPO on a language model: sample, score, spread the reward over tokens under a KL leash, update.

One step, top to bottom:

1. sample answers with the policy; their log-probabilities are the old ones, no pass recomputes them;
2. score them; reward per token = −β·(log π_old − log π_ref), plus the score at the last token;
3. advantages by GAE on the critic's values, whitened over the whole batch;
4. epochs × minibatches of the clipped policy loss and the clipped value loss;
5. move β if it is adaptive.

Formulas live in :mod:`trimtab.algos`; nothing here computes one. Departures from Ouyang et al.
2022: policy, critic, reference and reward model may share one trunk (adapters), and the critic
may start from the reward model (as in the paper) or at zero.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from trimtab.algos import (
    AdaptiveKL,
    clip_fraction,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    kl_k1,
    masked_mean,
    masked_sum,
    penalised_rewards,
    whiten,
)
from trimtab.config import Config
from trimtab.errors import ConfigError, DataError, NonFiniteError, ScoringError
from trimtab.models import AdapterConfig, Backbone, Batch, Role, collate, scatter
from trimtab.records import Prompt, Rollout, read_records, write_records
from trimtab.rollout import LocalSampler, SamplerConfig, Scorer
from trimtab.trainers.checkpoint import seed_step, step_seed
from trimtab.trainers.learner import Learner, Metrics, Norms, OptimizerConfig
from trimtab.trainers.progress import Session


class KLConfig(Config):
    """The leash: how dear it is to move away from the reference."""

    coefficient: float = Field(default=0.05, ge=0.0)
    """β, reward units per nat; the first value if adaptive."""
    target: float | None = Field(default=None, gt=0.0)
    """Adaptive: the KL per sequence, in nats, to steer to; None: β stays fixed."""
    horizon: float = Field(default=10_000, gt=0.0)
    """Adaptive: how many sequences a full correction takes."""


class MissingEosConfig(Config):
    """What an answer gets that was cut before it ended its turn."""

    value: float = -1.0
    """The penalty, in reward units."""
    mode: Literal["replace", "subtract"] = "replace"
    """``replace``: the score becomes ``value``; ``subtract``: |value| is taken off the score."""


class PpoConfig(Config):
    """Proximal policy optimisation."""

    method: Literal["ppo"] = "ppo"
    """The algorithm."""
    adapter: AdapterConfig = AdapterConfig()
    """What is trained, in policy and critic."""
    steps: int = Field(default=50, ge=1)
    """Rollout batches."""
    prompts: int = Field(default=32, ge=1)
    """Prompts per rollout batch."""
    group: int = Field(default=1, ge=1)
    """Answers per prompt."""
    sampler: SamplerConfig = SamplerConfig()
    """How answers are drawn; ``top_p`` must be 1, or the ratio would compare two distributions."""
    policy: OptimizerConfig = OptimizerConfig(lr=1e-4, schedule="constant")
    """The policy's optimiser."""
    critic: OptimizerConfig = OptimizerConfig(lr=2e-4, schedule="constant")
    """The critic's optimiser."""
    critic_init: Literal["zero", "reward_model"] = "zero"
    """``zero``: a zero head on a fresh adapter; ``reward_model``: its adapter too, if the trunk is shared."""
    epochs: int = Field(default=2, ge=1)
    """Passes over each rollout batch."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps per pass."""
    kl: KLConfig = KLConfig()
    """The leash."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount per token."""
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    """GAE's λ."""
    eps: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Clip range of the policy's ratio."""
    value_eps: float = Field(default=0.2, gt=0.0)
    """Clip range of the critic's change, in reward units."""
    whiten_advantages: bool = True
    """Advantages to mean 0 and variance 1 over the whole batch."""
    score_clip: float | None = Field(default=5.0, gt=0.0)
    """Scores are limited to ± this; None: not."""
    missing_eos: MissingEosConfig | None = MissingEosConfig()
    """Penalty of answers that were cut; None: none."""
    micro_batch_tokens: int = Field(default=2048, ge=1)
    """Padded tokens held in memory at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PpoRoles:
    """The models a PPO run needs."""

    policy: Role
    """Trained."""
    reference: Role
    """Frozen; what KL is measured against."""
    critic: Role
    """Trained; scalar head."""

    @classmethod
    def on(cls, backbone: Backbone, config: AdapterConfig, *, seed: int) -> "PpoRoles":
        """Policy and critic as adapters (or full copies) of one backbone, which stays the reference."""
        return cls(
            policy=Role.trainable(backbone, "policy", config, seed=step_seed(seed, "policy", 0)),
            reference=Role(backbone),
            critic=Role.trainable(backbone, "critic", config, seed=step_seed(seed, "critic", 0), scalar_head=True),
        )


Monitor = Callable[[Sequence[Rollout]], Metrics]
"""Further numbers of a rollout batch that are logged, never trained on (a gold reward, for example)."""


def train_ppo(
    roles: PpoRoles,
    prompts: Sequence[Prompt],
    score: Scorer,
    config: PpoConfig,
    *,
    seed: int,
    session: Session | None = None,
    monitor: Monitor | None = None,
    samples: Path | None = None,
    weights: dict[str, float] | None = None,
) -> None:
    """Train policy and critic in place.

    Args:
        roles: policy, reference and critic.
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
    check_ppo(config, len(prompts))
    updates = config.steps * config.epochs * config.minibatches
    learners = {
        "policy": Learner(roles.policy, config.policy, updates),
        "critic": Learner(roles.critic, config.critic, updates),
    }
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
        metrics = _update(learners, roles, batch, [r.id for r in rollouts], config, value)
        clock.lap("update")
        metrics |= _describe(rollouts, totals, batch, leash.value)
        if monitor is not None:
            metrics |= monitor(rollouts)
        if config.kl.target is not None:
            leash.update(metrics["kl"], len(rollouts))
        session.log({"step": step + 1, **metrics, **clock.seconds})
        session.after_step(
            step + 1, config.steps, lambda c, s=step + 1: c.save(s, learners, {"kl": leash.state_dict()})
        )


def check_ppo(config: PpoConfig, prompts: int) -> None:
    """Refuse settings that cannot work together.

    Raises:
        ConfigError: with the two settings and what to change.
    """
    size = config.prompts * config.group
    if config.sampler.top_p < 1.0:
        raise ConfigError(
            f"sampler.top_p is {config.sampler.top_p}: the ratio would compare a cut distribution with a whole one; "
            "use top_p: 1.0 while training"
        )
    if config.sampler.temperature == 0.0:
        raise ConfigError("sampler.temperature is 0: without chance there is nothing to compare; use 0.7 to 1.0")
    if config.minibatches > size:
        raise ConfigError(f"minibatches is {config.minibatches} but a rollout batch has {size} answers; lower it")
    if prompts == 0:
        raise ConfigError("there are no prompts to align on; check data.prompts")


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
    config: PpoConfig,
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
    roles: PpoRoles, rollouts: Sequence[Rollout], scores: Sequence[float], config: PpoConfig, beta: float
) -> Batch:
    """Everything that stays fixed during the update: reference, old values, rewards, advantages, returns."""
    device = roles.policy.backbone.device
    batch = rollout_batch(rollouts, device)
    mask = batch.response_mask
    reference = torch.zeros_like(batch.columns["old_logprobs"])
    values = torch.zeros_like(reference)
    shared = roles.critic.backbone is roles.policy.backbone
    lowers: list[tuple[Tensor, Tensor]] = []
    for index, part in batch.micro_batches(config.micro_batch_tokens):
        lower = roles.reference.backbone.lower(part.tokens) if shared else None
        if lower is not None:
            part.columns["lower"] = lower
            lowers.append((index, lower))
        width = part.tokens.shape[1]
        reference[index, :width] = roles.reference.logprobs(part, temperature=config.sampler.temperature)[0]
        values[index, :width] = roles.critic.values(part)
    if lowers:
        lower = torch.zeros(*batch.tokens.shape, lowers[0][1].shape[-1], dtype=lowers[0][1].dtype, device=device)
        for index, part_lower in lowers:
            lower[index, : part_lower.shape[1]] = part_lower
        batch.columns["lower"] = lower
    limit = config.score_clip or math.inf
    clipped = torch.tensor(scores, dtype=torch.float32, device=device).clamp(-limit, limit)
    penalty = config.missing_eos
    rewards = penalised_rewards(
        clipped,
        batch.columns["old_logprobs"],
        reference,
        mask,
        beta=beta,
        ended=torch.tensor([r.finish_reason == "stop" for r in rollouts], device=device),
        missing_eos_penalty=None if penalty is None else penalty.value,
        missing_eos_mode="replace" if penalty is None else penalty.mode,
    )
    advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    batch.columns |= {
        "reference": reference,
        "values": values,
        "advantages": advantages,
        "returns": returns,
    }
    return batch


def _update(
    learners: dict[str, Learner], roles: PpoRoles, batch: Batch, ids: Sequence[str], config: PpoConfig, seed: int
) -> Metrics:
    """Epochs × minibatches of policy and critic; returns metrics averaged over the optimiser steps."""

    def policy_loss(part: Batch, norms: Norms) -> tuple[Tensor, Metrics]:
        new, entropies = roles.policy.logprobs(part, temperature=config.sampler.temperature)
        old, mask = part.columns["old_logprobs"], part.response_mask
        losses = clipped_policy_loss(
            new, old, part.columns["advantages"], mask, eps_low=config.eps, eps_high=config.eps
        )
        with torch.no_grad():
            count = float(mask.sum())
            share = count / norms.tokens
            fraction = clip_fraction(new, old, mask, eps_low=config.eps, eps_high=config.eps)
            metrics = {
                "entropy": float(masked_sum(entropies, mask)) / norms.tokens,
                "clip_fraction": float(fraction) * share,
                "approx_kl": float(masked_sum(kl_k1(old, new), mask)) / norms.tokens,
                "mismatch": float(masked_sum((new - old).abs(), mask)) / norms.tokens,
            }
        return losses.sum() / norms.tokens, metrics

    def critic_loss(part: Batch, norms: Norms) -> tuple[Tensor, Metrics]:
        values = roles.critic.values(part)
        losses = clipped_value_loss(
            values, part.columns["values"], part.columns["returns"], part.response_mask, eps=config.value_eps
        )
        return losses.sum() / norms.tokens, {}

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
            critic = learners["critic"].step(parts, critic_loss, norms)
            gathered.append(
                {
                    "policy_loss": policy.pop("loss"),
                    "policy_grad_norm": policy.pop("grad_norm"),
                    "value_loss": critic["loss"],
                    "value_grad_norm": critic["grad_norm"],
                    **policy,
                }
            )
    averaged = {key: sum(m[key] for m in gathered) / len(gathered) for key in gathered[0]}
    # Before the first update the trainer's log-probabilities should be the sampler's: this is by how much not.
    return averaged | {"mismatch": gathered[0]["mismatch"]}


def _describe(rollouts: Sequence[Rollout], totals: Sequence[float], batch: Batch, beta: float) -> Metrics:
    """Means over the batch, as a person wants to read them. KL is per answer, in nats."""
    mask, n = batch.response_mask, len(rollouts)
    kl = masked_sum(kl_k1(batch.columns["old_logprobs"], batch.columns["reference"]), mask)
    returns, values = batch.columns["returns"][mask], batch.columns["values"][mask]
    spread = float(returns.var(unbiased=False))
    names = sorted({name for r in rollouts for name in r.rewards})
    mean = sum(totals) / n
    return {
        "reward": mean,
        "reward_std": math.sqrt(sum((t - mean) ** 2 for t in totals) / n),
        **{f"reward/{name}": sum(r.rewards[name] for r in rollouts) / n for name in names},
        "kl": float(kl) / n,
        "beta": beta,
        "value": float(masked_mean(batch.columns["values"], mask)),
        "explained_variance": 1.0 - float((returns - values).var(unbiased=False)) / spread if spread > 0 else 0.0,
        "length": float(mask.sum()) / n,
        "ended": sum(r.finish_reason == "stop" for r in rollouts) / n,
        "distinct": len({r.text for r in rollouts}) / n,
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
