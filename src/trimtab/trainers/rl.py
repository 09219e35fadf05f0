"""Online alignment: sample, score, make the better answers likelier, under a KL leash. One loop for all methods.

One step, top to bottom:

1. sample answers with the policy; their log-probabilities are the old ones, no pass recomputes them;
2. score them; groups whose answers all score the same are replaced, where the method does so (DAPO);
3. reward per token = −β·(log π_old − log π_ref), plus the score at the last token, or at each step's;
4. advantages: by GAE on a critic (PPO), or against the other answers to the prompt (RLOO, GRPO, …);
5. epochs × minibatches of the method's loss;
6. move β if it is adaptive;
7. end a run that falls apart (:mod:`trimtab.trainers.guard`).

What makes a method is in :mod:`trimtab.trainers.rl_update`; formulas live in :mod:`trimtab.algos`.
Departures from Ouyang et al. 2022: policy, critic, reference and reward model may share one trunk
(adapters), the critic may start from the reward model (as in the paper) or at zero, and it may be a
head on the policy's own states (``shared_critic``). All
policy-gradient methods use the clipped surrogate; with one pass and one minibatch its gradient is
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
    group_has_spread,
    kl_k1,
    masked_mean,
    masked_sum,
    penalised_rewards,
    truncated_importance_weights,
)
from trimtab.errors import CollapseError, ConfigError, NonFiniteError, ScoringError
from trimtab.models import AdapterConfig, Backbone, Batch, DrawnStates, Encoded, Role, collate, scatter
from trimtab.models.allocation import release_freed_memory
from trimtab.records import Prompt, Rollout, write_records
from trimtab.rollout import LocalSampler, Sampler, Scorer, forget_drawn, make_sampler, read_drawn, write_drawn
from trimtab.trainers.checkpoint import Checkpoints, seed_step, step_seed
from trimtab.trainers.defaults import with_lr
from trimtab.trainers.guard import Fall, Guard
from trimtab.trainers.learner import Learner, Metrics
from trimtab.trainers.progress import Session
from trimtab.trainers.rl_config import (
    TOKEN_RETURNS,
    DapoConfig,
    KLConfig,
    OnlineDpoConfig,
    PolicyGradientConfig,
    PpoConfig,
    RejectionConfig,
    RlConfig,
    check_rl,
)
from trimtab.trainers.rl_update import advantages_of, clipped_update, online_dpo_update, rejection_update


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
    def on(
        cls,
        backbone: Backbone,
        config: AdapterConfig,
        *,
        seed: int,
        critic: bool = True,
        shared_critic: bool = False,
    ) -> "RlRoles":
        """Policy and critic as adapters (or full copies) of one backbone, which stays the reference.

        ``shared_critic``: the critic is a head on the policy's own states instead.
        """
        policy = Role.trainable(backbone, "policy", config, seed=step_seed(seed, "policy", 0))
        values = None
        if critic:
            values = critic_of(policy, backbone, config, seed=step_seed(seed, "critic", 0), shared=shared_critic)
        return cls(policy=policy, reference=Role(backbone), critic=values)


def critic_of(policy: Role, backbone: Backbone, config: AdapterConfig, *, seed: int, shared: bool) -> Role:
    """A critic with a zero head: with weights of its own on ``backbone``, or, ``shared``, on the policy's states."""
    if shared:
        return policy.with_head()
    return Role.trainable(backbone, "critic", config, seed=seed, scalar_head=True)


Monitor = Callable[[Sequence[Rollout]], Metrics]
"""Further numbers of a rollout batch that are logged, never trained on (a gold reward, for example)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What a batch of answers earned."""

    totals: list[float]
    """Weighted sum of all components of each answer."""
    placed: list[dict[int, float]]
    """The part of it that belongs to the ends of steps: weighted reward by place in ``rollout.tokens``."""


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
    imitate: Sequence[tuple[str, Encoded]] = (),
    sampler: Sampler | None = None,
) -> Fall | None:
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
        imitate: conversations of PPO-ptx, each with its id; needed where ``config.ptx`` is set.
        sampler: what draws answers; None: the policy's own backbone.

    Returns:
        None; with ``guard.on_fall: keep`` the fall of a run that fell apart, where the last good weights are in place.

    Raises:
        ConfigError: settings that contradict each other.
        ScoringError: the reward function failed or gave the wrong shape.
        NonFiniteError: a reward, loss or gradient became NaN or infinite.
        CollapseError: the run fell apart; names the last good checkpoint.
    """
    session = session or Session()
    check_rl(config, len(prompts))
    clipped = config if isinstance(config, PolicyGradientConfig) else None
    if clipped is not None and clipped.ptx is not None and not imitate:
        raise ConfigError("ptx is set but there are no conversations to imitate; give data.demonstrations or ptx.data")
    learners = _learners(roles, config)
    kl = clipped.kl if clipped is not None else KLConfig(coefficient=0.0)
    leash = AdaptiveKL(kl.coefficient, kl.target or 1.0, kl.horizon)
    guard = Guard(config.guard, answers=config.prompts * config.group, penalised=config.missing_eos is not None)
    done, extra = session.checkpoints.restore(learners) if session.checkpoints else (0, {})
    if extra:
        leash.load_state_dict(extra["kl"])
        guard.load_state_dict(extra["guard"])

    def save(checkpoints: Checkpoints, step: int) -> None:
        extra = {"kl": leash.state_dict(), "guard": guard.state_dict()}
        checkpoints.save(step, learners, extra, good=guard.good)

    if done == 0 and config.guard is not None and config.guard.on_fall == "keep":
        save(_needed(session.checkpoints), 0)
    sampler = sampler or make_sampler(roles.policy.backbone, config.sampler)
    # Scores, the reference and the update go on from what frozen layers give while our own sampler draws.
    keeps = False
    if isinstance(sampler, LocalSampler) and sampler.backbone is roles.policy.backbone:
        keeps = roles.policy.backbone.frozen_layers > 0
        head = roles.critic if isinstance(config, PpoConfig) and config.shared_critic else None
        sampler.value_head = None if head is None else head.scalar
    session.planned(done, config.steps)
    fall = None
    for step in range(done, config.steps):
        clock = _Clock()
        if keeps:
            roles.policy.backbone.drawn = DrawnStates()
        value = seed_step(seed, "align", step)

        def draw(chosen: Sequence[Prompt], name: str, seed: int = value, kept: bool = step == done) -> list[Rollout]:
            path = None if samples is None else samples / f"{name}.jsonl"
            version = learners["policy"].steps
            # Only the step that was begun with these very weights may go on from what it had drawn.
            if path is not None and not kept:
                path.unlink(missing_ok=True)
            return _sample(sampler, roles.policy, chosen, config.group, seed=seed, version=version, path=path)

        def judge(answers: list[Rollout], step: int = step) -> Scores:
            return score_rollouts(answers, score, weights or {}, step)

        name = f"step-{step:06d}"
        rollouts = draw(_prompts_of_step(prompts, config.prompts, step, seed), name)
        clock.lap("sample")
        scores = judge(rollouts)
        clock.lap("score")
        replaced: Metrics = {}
        if isinstance(config, DapoConfig) and config.resample:
            rollouts, scores, replaced = _resample(rollouts, scores, prompts, config, judge, draw, name)
            clock.lap("resample")
        if samples is not None:
            write_records(samples / f"{name}.jsonl", rollouts)
        batch = _prepare(roles, rollouts, scores, config, leash.value)
        clock.lap("infer")
        ids = [r.id for r in rollouts]
        match config:
            case OnlineDpoConfig():
                metrics = online_dpo_update(learners["policy"], batch, ids, config, seed=value)
            case RejectionConfig():
                metrics = rejection_update(learners["policy"], batch, ids, config, seed=value)
            case _:
                used, names = _with_spread(batch, ids, config)
                metrics = clipped_update(
                    learners,
                    roles.critic,
                    used,
                    names,
                    config,
                    seed=value,
                    beta=leash.value,
                    imitate=imitate,
                    order=seed,
                )
        clock.lap("update")
        if samples is not None:
            forget_drawn(samples, f"{name}*")
        metrics |= _describe(rollouts, scores, batch, config, leash.value) | replaced
        if monitor is not None:
            metrics |= monitor(rollouts)
        if kl.target is not None:
            leash.update(metrics["kl"], len(rollouts))
        session.log({"step": step + 1, **metrics, **clock.seconds})
        reason = guard.judge(metrics)
        if reason is not None:
            fall = _fallen(reason, step + 1, guard, session.checkpoints, learners, config)
            break
        session.after_step(step + 1, config.steps, lambda checkpoints, s=step + 1: save(checkpoints, s))
    if keeps:
        roles.policy.backbone.drawn = None
    return fall


def score_rollouts(rollouts: list[Rollout], score: Scorer, weights: dict[str, float], step: int) -> Scores:
    """Score rollouts in place: ``rollout.rewards`` and, for rewards placed at steps, ``rollout.step_rewards``.

    A component is a list with, for each answer, a number, or ``(place, number)`` pairs that say after which token of
    the answer each number is earned.

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
    placed: list[dict[int, float]] = [{} for _ in rollouts]
    for name, values in components.items():
        try:
            found = [_reward(value) for value in values]
        except (TypeError, ValueError) as error:
            raise ScoringError(
                f"reward {name!r} at step {step}: expected for each answer a number, or (place, number) pairs ({error})"
            ) from error
        if len(found) != len(rollouts):
            raise ScoringError(f"reward {name!r} has {len(found)} values for {len(rollouts)} answers")
        for rollout, at, reward in zip(rollouts, placed, found, strict=True):
            pairs = reward if isinstance(reward, list) else [(-1, reward)]
            for place, number in pairs:
                if not math.isfinite(number):
                    raise NonFiniteError(
                        f"reward {name!r} is {number} for sample {rollout.id} at step {step} (answer of "
                        f"{len(rollout.tokens)} tokens). Nothing was trained on it; mend the reward function and run "
                        "the same command to continue from the last checkpoint"
                    )
                if place >= len(rollout.tokens):
                    raise ScoringError(
                        f"reward {name!r} is placed after token {place} of sample {rollout.id}, whose answer has "
                        f"{len(rollout.tokens)} tokens; places count from 0"
                    )
            rollout.rewards[name] = sum(number for _, number in pairs)
            if isinstance(reward, list):
                rollout.step_rewards[name] = reward
                for place, number in reward:
                    at[place] = at.get(place, 0.0) + weights.get(name, 1.0) * number
    totals = [sum(weights.get(name, 1.0) * r.rewards[name] for name in components) for r in rollouts]
    return Scores(totals=totals, placed=placed)


def _reward(value: Any) -> float | list[tuple[int, float]]:
    """One answer's reward as a number, or as its step rewards."""
    if hasattr(value, "__float__"):
        return float(value)
    if not isinstance(value, Sequence) or not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in value):
        raise TypeError(f"got {value!r}")
    pairs = [(int(place), float(number)) for place, number in value]
    if any(place < 0 for place, _ in pairs):
        raise ValueError(f"place {min(place for place, _ in pairs)} is below 0")
    return pairs


def answer_scores(config: RlConfig, rollouts: Sequence[Rollout], scores: Scores) -> Tensor:
    """What each answer as a whole is worth, ``[B]``: clipped, overlong and missing-EOS penalties applied.

    Rewards placed at steps are not in it; they go to their tokens as they are.
    """
    outcome = _outcome(scores)
    if isinstance(config, PolicyGradientConfig) and config.score_clip is not None:
        outcome = outcome.clamp(-config.score_clip, config.score_clip)
    if isinstance(config, DapoConfig) and config.overlong_buffer is not None:
        # Yu et al. 2025 (arXiv 2503.14476), eq. 13
        allowed = config.sampler.max_new_tokens - config.overlong_buffer
        over = torch.tensor([float(len(r.tokens) - allowed) for r in rollouts])
        outcome = outcome - (over / config.overlong_buffer).clamp(0.0, 1.0)
    if config.missing_eos is None:
        return outcome
    zeros, one = torch.zeros(len(rollouts), 1), torch.ones(len(rollouts), 1, dtype=torch.bool)
    return penalised_rewards(
        outcome,
        zeros,
        zeros,
        one,
        beta=0.0,
        ended=torch.tensor([r.finish_reason == "stop" for r in rollouts]),
        missing_eos_penalty=config.missing_eos.value,
        missing_eos_mode=config.missing_eos.mode,
    )[:, 0]


def _outcome(scores: Scores) -> Tensor:
    """Reward of each answer as a whole, ``[B]``: its total without what is placed at steps."""
    whole = [total - sum(at.values()) for total, at in zip(scores.totals, scores.placed, strict=True)]
    return torch.tensor(whole, dtype=torch.float32)


def rollout_batch(rollouts: Sequence[Rollout], device: torch.device) -> Batch:
    """Prompt and answer of each rollout, with column ``old_logprobs``."""
    batch = collate(
        [r.prompt_tokens + r.tokens for r in rollouts],
        [[False] * len(r.prompt_tokens) + [True] * len(r.tokens) for r in rollouts],
        device,
        prompt_lengths=[len(r.prompt_tokens) for r in rollouts],
    )
    batch.columns["old_logprobs"] = scatter([r.logprobs for r in rollouts], batch.response_mask)
    return batch


# What a run begins and may end with -------------------------------------------------------


def _learners(roles: RlRoles, config: RlConfig) -> dict[str, Learner]:
    """A learner of the policy and, for PPO, one of the critic."""
    updates = config.steps * config.epochs * config.minibatches
    learners = {"policy": Learner(roles.policy, with_lr(config.policy, "policy", roles.policy), updates)}
    if isinstance(config, PpoConfig):
        if roles.critic is None:
            raise ConfigError("method 'ppo' needs a critic; build the roles with RlRoles.on(..., critic=True)")
        learners["critic"] = Learner(roles.critic, with_lr(config.critic, "critic", roles.critic), updates)
        same = roles.critic.backbone is roles.policy.backbone and roles.critic.adapter == roles.policy.adapter
        shared = roles.critic.head_only and same
        if config.shared_critic != shared:
            raise ConfigError(
                f"shared_critic is {config.shared_critic}, but the critic is {'' if shared else 'not '}a "
                "head on this policy; build the roles with RlRoles.on(..., shared_critic=config.shared_critic)"
            )
    return learners


def _needed(checkpoints: Checkpoints | None) -> Checkpoints:
    if checkpoints is None:
        raise ConfigError("guard.on_fall is 'keep', which needs checkpoints; give the session some, or set it to stop")
    return checkpoints


def _fallen(
    reason: str,
    step: int,
    guard: Guard,
    checkpoints: Checkpoints | None,
    learners: dict[str, Learner],
    config: RlConfig,
) -> Fall:
    """Load the last good weights, or raise an error that names them."""
    assert config.guard is not None
    if config.guard.on_fall == "keep":
        good, _ = _needed(checkpoints).restore(learners, guard.good)
        return Fall(step=step, good=good, reason=reason)
    last_good = checkpoints.newest(guard.good) if checkpoints is not None else None
    advice = [f"lower policy.lr (now {learners['policy'].config.lr:g})"]
    if isinstance(config, PolicyGradientConfig):
        advice.append(f"raise kl.coefficient (now {config.kl.coefficient:g})")
    if config.kl.stop is None and config.epochs * config.minibatches > 1:
        advice.append("set kl.stop")
    raise CollapseError(
        f"alignment fell apart, noticed at step {step}: {reason}. "
        + (f"Last good checkpoint: {last_good}. " if last_good else "No checkpoint was written before that. ")
        + f"In the align section {', or '.join(advice)}; with other settings the stage starts anew. guard.on_fall: "
        "keep goes on with the last good weights instead, and guard: null judges nothing"
    )


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
    sampler: Sampler,
    policy: Role,
    prompts: Sequence[Prompt],
    group: int,
    *,
    seed: int,
    version: int,
    path: Path | None,
) -> list[Rollout]:
    """Draw answers, or take those that a killed process had finished drawing."""
    if path is not None:
        wanted = [p.id for p in prompts for _ in range(group)]
        kept = read_drawn(path, wanted, policy.backbone, version=version)
        if kept is not None:
            return kept
    rollouts = sampler.generate(prompts, adapter=policy.adapter, seed=seed, group=group, weight_version=version)
    release_freed_memory()  # weights laid out for sampling, and caches, would lie beside what the update needs
    if path is not None:
        write_drawn(path, rollouts, policy.backbone)
    return rollouts


def _resample(
    rollouts: list[Rollout],
    scores: Scores,
    prompts: Sequence[Prompt],
    config: DapoConfig,
    score: Callable[[list[Rollout]], Scores],
    draw: Callable[[Sequence[Prompt], str], list[Rollout]],
    name: str,
) -> tuple[list[Rollout], Scores, Metrics]:
    """Replace groups without spread by other prompts' groups (DAPO's dynamic sampling)."""
    size = config.group
    replaced = 0
    seen = {r.prompt.id for r in rollouts}
    others = [p for p in prompts if p.id not in seen]
    random.Random(f"{name}|{rollouts[0].id}|resample").shuffle(others)
    totals, placed = list(scores.totals), list(scores.placed)
    for again in range(config.resample):
        worth = answer_scores(config, rollouts, Scores(totals=totals, placed=placed)).view(-1, size)
        flat = (~group_has_spread(worth)).nonzero().squeeze(1).tolist()[: len(others)]
        if not flat:
            break
        fresh = draw(others[: len(flat)], f"{name}-again-{again + 1}")
        others = others[len(flat) :]
        found = score(fresh)
        for number, group in enumerate(flat):
            ours, theirs = slice(group * size, (group + 1) * size), slice(number * size, (number + 1) * size)
            rollouts[ours], totals[ours], placed[ours] = fresh[theirs], found.totals[theirs], found.placed[theirs]
        replaced += len(flat)
    return rollouts, Scores(totals=totals, placed=placed), {"resampled": float(replaced)}


@torch.no_grad()
def _prepare(roles: RlRoles, rollouts: Sequence[Rollout], scores: Scores, config: RlConfig, beta: float) -> Batch:
    """Everything that stays fixed during the update: reference, old values, rewards, advantages, returns."""
    device = roles.policy.backbone.device
    batch = rollout_batch(rollouts, device)
    mask, temperature = batch.response_mask, config.sampler.temperature
    reference = torch.zeros_like(batch.columns["old_logprobs"])
    values, trainers = torch.zeros_like(reference), torch.zeros_like(reference)
    critic = roles.critic if isinstance(config, PpoConfig) else None
    cap = config.importance_cap if isinstance(config, PolicyGradientConfig) else None
    shares = isinstance(config, PpoConfig) and config.shared_critic
    valued = shares and all(len(r.values) == len(r.tokens) for r in rollouts)
    if valued:  # the sampler had them: the critic is a head on the policy's states
        values = scatter([r.values for r in rollouts], mask)
    shared = roles.policy.backbone is roles.reference.backbone
    lowers: list[tuple[Tensor, Tensor]] = []
    for index, part in batch.micro_batches(config.micro_batch_tokens):
        lower = roles.reference.backbone.lower(part) if shared else None
        if lower is not None:
            part.columns["lower"] = lower
            lowers.append((index, lower))
        width = part.tokens.shape[1]
        reference[index, :width] = roles.reference.logprobs(part, temperature=temperature)
        if critic is not None and not valued:
            values[index, :width] = critic.values(part)
        if cap is not None:
            trainers[index, :width] = roles.policy.logprobs(part, temperature=temperature)
    if lowers:
        lower = torch.zeros(*batch.tokens.shape, lowers[0][1].shape[-1], dtype=lowers[0][1].dtype, device=device)
        for index, part_lower in lowers:
            lower[index, : part_lower.shape[1]] = part_lower
        batch.columns["lower"] = lower
    sampled = batch.columns["old_logprobs"]
    if cap is not None:
        batch.columns["importance"] = truncated_importance_weights(trainers, sampled, mask, cap=cap)
        batch.columns["old_logprobs"] = trainers
    worth = answer_scores(config, rollouts, scores).to(device)
    in_reward = isinstance(config, PolicyGradientConfig) and config.kl.place == "reward"
    rewards = penalised_rewards(
        worth, batch.columns["old_logprobs"], reference, mask, beta=beta if in_reward else 0.0
    ) + _placed(scores, rollouts, config, mask)
    batch.columns |= {"sampled": sampled, "reference": reference, "rewards": rewards, "scores": worth}
    if not isinstance(config, OnlineDpoConfig | RejectionConfig):
        advantages, returns = advantages_of(config, rewards, values, mask)
        batch.columns |= {"values": values, "advantages": advantages, "returns": returns}
    return batch


def _with_spread(batch: Batch, ids: list[str], config: RlConfig) -> tuple[Batch, list[str]]:
    """For DAPO the groups whose answers differ in score; the others count for nothing. Other methods use all rows."""
    if not isinstance(config, DapoConfig):
        return batch, ids
    spread = group_has_spread(batch.columns["scores"].view(-1, config.group)).repeat_interleave(config.group)
    rows = spread.nonzero().squeeze(1)
    if len(rows) == batch.size:
        return batch, ids
    return (batch.rows(rows) if len(rows) else batch), [ids[i] for i in rows.tolist()]


def _placed(scores: Scores, rollouts: Sequence[Rollout], config: RlConfig, mask: Tensor) -> Tensor:
    """Rewards of steps at the tokens that end them, ``[B, T]``."""
    if not any(scores.placed):
        return torch.zeros(mask.shape, device=mask.device)
    if config.method not in TOKEN_RETURNS:
        raise ConfigError(
            f"rewards are placed at steps, but {config.method!r} gives all tokens of an answer the same advantage; use "
            f"align.method {', '.join(TOKEN_RETURNS)}, or one number per answer"
        )
    rows = [[at.get(i, 0.0) for i in range(len(r.tokens))] for at, r in zip(scores.placed, rollouts, strict=True)]
    return scatter(rows, mask)


def _describe(rollouts: Sequence[Rollout], scores: Scores, batch: Batch, config: RlConfig, beta: float) -> Metrics:
    """Means over the batch, as a person wants to read them. KL is per answer, in nats."""
    mask, n, totals = batch.response_mask, len(rollouts), scores.totals
    kl = masked_sum(kl_k1(batch.columns["old_logprobs"], batch.columns["reference"]), mask)
    more: Metrics = {}
    if isinstance(config, PpoConfig):
        returns, values = batch.columns["returns"][mask], batch.columns["values"][mask]
        spread = float(returns.var(unbiased=False))
        residual = float((returns - values).var(unbiased=False))
        more["value"] = float(masked_mean(batch.columns["values"], mask))
        more["explained_variance"] = 1.0 - residual / spread if spread > 0 else 0.0
    if config.group > 1:
        earned = list(
            zip(batch.columns["scores"].tolist(), map(sorted, (at.items() for at in scores.placed)), strict=True)
        )
        groups = [earned[i : i + config.group] for i in range(0, n, config.group)]
        more["flat_groups"] = sum(all(e == g[0] for e in g) for g in groups) / len(groups)
    if isinstance(config, PolicyGradientConfig) and config.score_clip is not None:
        more["score_clipped"] = float((_outcome(scores).abs() > config.score_clip).float().mean())
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
