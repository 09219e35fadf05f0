"""Online alignment: sample, score, make the better answers likelier, penalise divergence. One loop for all methods.

One step, top to bottom:

1. sample answers with the policy; their log-probabilities are the old ones, no pass recomputes them;
2. score them; groups whose answers all score the same are replaced, if the method does so (DAPO). An answer without
   a token is counted (``empty``), and left out from here on;
3. reward per token = −β·(log π_old − log π_ref), plus the score at the last token, or at each step's;
   and advantages: by GAE on a critic (PPO), or against the other answers to the prompt (RLOO, GRPO, …);
4. epochs × minibatches of the method's loss;
5. adapt β if it is adaptive;
6. end a run whose policy collapses (:mod:`trimtab.trainers.guard`).

What makes a method is its row in :mod:`trimtab.trainers.methods`; formulas are in :mod:`trimtab.algos`.
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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.algos import (
    AdaptiveKL,
    explained_variance,
    group_has_spread,
    kl_k1,
    masked_mean,
    masked_sum,
    overlong_penalty,
    penalise_missing_eos,
    penalised_rewards,
    truncated_importance_weights,
)
from trimtab.errors import CollapseError, ConfigError, NonFiniteError, ScoringError
from trimtab.models import AdapterConfig, Backbone, Encoded, FrozenStates, Role, scatter
from trimtab.models.kernels import kernels
from trimtab.records import Prompt, Rollout, write_records
from trimtab.rollout import Sampler, Scorer, ValueHead, load_rollouts, make_sampler, remove_states, save_rollouts
from trimtab.trainers.checkpoint import Checkpoints, seed_step, step_seed
from trimtab.trainers.defaults import with_lr
from trimtab.trainers.guard import Fall, Guard
from trimtab.trainers.learner import Learner, Metrics
from trimtab.trainers.methods import ONLINE, OnlineMethod, methods_with
from trimtab.trainers.progress import Session
from trimtab.trainers.rl_config import (
    DapoConfig,
    KLConfig,
    PolicyGradientConfig,
    PpoConfig,
    RlConfig,
    check_rl,
)
from trimtab.trainers.rl_update import Update, critic_on_policy
from trimtab.trainers.rollout_batch import RolloutBatch, rollout_batch, tokens_of


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
class Scored:
    """Rollouts with their rewards."""

    rollouts: list[Rollout]
    """With ``rewards`` and ``step_rewards`` filled in."""
    totals: list[float]
    """Weighted sum of all components of each answer."""
    placed: list[dict[int, float]]
    """The part of it that is earned at the ends of steps: weighted reward by place in ``rollout.tokens``."""

    def replace_groups(self, groups: Sequence[int], other: "Scored", size: int) -> "Scored":
        """These answers, the given groups of ``size`` replaced by the groups of ``other``, in order."""
        rollouts, totals, placed = list(self.rollouts), list(self.totals), list(self.placed)
        for number, group in enumerate(groups):
            old, new = slice(group * size, (group + 1) * size), slice(number * size, (number + 1) * size)
            rollouts[old], totals[old], placed[old] = other.rollouts[new], other.totals[new], other.placed[new]
        return Scored(rollouts=rollouts, totals=totals, placed=placed)


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
    states: FrozenStates | None = None,
) -> Fall | None:
    """Train the policy, and the critic if there is one, in place.

    Args:
        roles: policy, reference and, for PPO, critic.
        prompts: what to answer; every pass over them is a fresh shuffle.
        score: rollouts → named reward components.
        config: settings.
        seed: order of the prompts, sampling, minibatches, dropout.
        session: logging, checkpoints, stopping; None: silent, saves nothing.
        monitor: extra metrics of each rollout batch.
        samples: folder for each step's rollouts with their rewards; an interrupted step is continued from there.
        weights: weight of each reward component; 1 if not named.
        imitate: conversations of PPO-ptx, each with its id; needed if ``config.ptx`` is set.
        sampler: draws the answers, with the policy's weights; None: the one that ``config.sampler`` names.
        states: store for the states of the policy's frozen layers, emptied at every step; pass the one that a reward
            model on the same trunk uses too. None: a new one.

    Returns:
        None; with ``guard.on_fall: keep`` the fall of a run that collapsed, with the last good weights loaded.

    Raises:
        ConfigError: settings that contradict each other.
        ScoringError: the reward function failed or returned the wrong shape.
        NonFiniteError: a reward, loss or gradient became NaN or infinite.
        CollapseError: the policy collapsed; names the last good checkpoint.
    """
    check_rl(config, len(prompts))
    session = session or Session()
    run = _Run(
        roles=roles,
        config=config,
        method=ONLINE[config.method],
        learners=_learners(roles, config),
        prompts=prompts,
        score=score,
        weights=weights or {},
        sampler=sampler or make_sampler(roles.policy.backbone, config.sampler),
        states=FrozenStates(roles.policy.backbone) if states is None else states,
        samples=samples,
        imitate=imitate,
        seed=seed,
        kl=AdaptiveKL(_kl(config).coefficient, _kl(config).target or 1.0, _kl(config).horizon),
        guard=Guard(config.guard, answers=config.prompts * config.group, penalised=config.missing_eos is not None),
    )
    done = run.restore(session.checkpoints)
    session.planned(done, config.steps)
    for step in range(done, config.steps):
        clock = _Clock()
        current = _Step(number=step, seed=seed_step(seed, "align", step), resumed=step == done)
        run.states.clear()

        rollouts = run.sample(current, _prompts_of_step(prompts, config.prompts, step, seed))
        clock.lap("sample")

        scored = run.score_answers(current, rollouts)
        clock.lap("score")
        scored, resampled = run.replace_flat_groups(current, scored)
        if resampled:
            clock.lap("resample")
        run.save_answers(current, scored)

        batch = run.prepare(scored)
        clock.lap("infer")

        metrics = run.update(current, batch, scored)
        clock.lap("update")
        metrics |= _describe(scored, batch, config, run.kl.value) | resampled
        answered = [r for r in scored.rollouts if r.tokens]
        if monitor is not None and answered:
            metrics |= monitor(answered)

        run.adapt_kl(metrics)

        session.log({"step": step + 1, **metrics, **clock.seconds})
        reason = run.guard.check(metrics)
        if reason is not None:
            return run.fall(reason, step + 1, session.checkpoints)
        session.after_step(step + 1, config.steps, partial(run.save, step=step + 1))
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """One step of a run."""

    number: int
    """Of finished steps before it."""
    seed: int
    """Everything random in it is drawn from this."""
    resumed: bool
    """True: answers that an interrupted process drew with these very weights may be on disk."""

    @property
    def name(self) -> str:
        """Of its files."""
        return f"step-{self.number:06d}"


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What stays the same from step to step, and the parts of a step."""

    roles: RlRoles
    config: RlConfig
    method: OnlineMethod
    learners: dict[str, Learner]
    prompts: Sequence[Prompt]
    score: Scorer
    weights: Mapping[str, float]
    sampler: Sampler
    states: FrozenStates
    samples: Path | None
    imitate: Sequence[tuple[str, Encoded]]
    seed: int
    kl: AdaptiveKL
    guard: Guard

    def __post_init__(self) -> None:
        config = self.config
        if isinstance(config, PolicyGradientConfig) and config.ptx is not None and not self.imitate:
            raise ConfigError(
                "ptx is set but there are no conversations to imitate; give data.demonstrations or ptx.data"
            )

    # 1. and 2. ----------------------------------------------------------------------------

    def sample(self, step: _Step, prompts: Sequence[Prompt], suffix: str = "") -> list[Rollout]:
        """Draw answers, or take those that an interrupted process had finished drawing."""
        version, group = self.learners["policy"].steps, self.config.group
        path = None if self.samples is None else self.samples / f"{step.name}{suffix}.jsonl"
        if path is not None:
            if step.resumed:
                ids = [p.id for p in prompts for _ in range(group)]
                rollouts = load_rollouts(path, ids, self.states, version=version)
                if rollouts is not None:
                    return rollouts
            path.unlink(missing_ok=True)
        rollouts = self.sampler.generate(
            prompts,
            adapter=self.roles.policy.adapter,
            seed=step.seed,
            group=group,
            weight_version=version,
            states=self.states,
            value_head=self._value_head(),
        )
        kernels().after_sampling()
        if path is not None:
            save_rollouts(path, rollouts, self.states)
        return rollouts

    def _value_head(self) -> ValueHead | None:
        """The critic's head if it reads the policy's own states."""
        critic = self.roles.critic if critic_on_policy(self.config) else None
        return None if critic is None else critic.scalar

    def score_answers(self, step: _Step, rollouts: Sequence[Rollout]) -> Scored:
        """Rollouts with their rewards."""
        return score_rollouts(rollouts, self.score, self.weights, step.number)

    def replace_flat_groups(self, step: _Step, scored: Scored) -> tuple[Scored, Metrics]:
        """Replace groups whose answers all score the same by groups of other prompts (DAPO's dynamic sampling)."""
        attempts = self.config.resample if isinstance(self.config, DapoConfig) else 0
        if not attempts:
            return scored, {}
        size, replaced = self.config.group, 0
        used = {r.prompt.id for r in scored.rollouts}
        others = [p for p in self.prompts if p.id not in used]
        random.Random(f"{step.name}|{scored.rollouts[0].id}|resample").shuffle(others)
        for attempt in range(1, attempts + 1):
            scores = answer_scores(self.config, scored).view(-1, size)
            spread = group_has_spread(scores, torch.tensor([bool(r.tokens) for r in scored.rollouts]).view(-1, size))
            flat = (~spread).nonzero().squeeze(1).tolist()[: len(others)]
            if not flat:
                break
            fresh = self.sample(step, others[: len(flat)], f"-again-{attempt}")
            others = others[len(flat) :]
            scored = scored.replace_groups(flat, self.score_answers(step, fresh), size)
            replaced += len(flat)
        return scored, {"resampled": float(replaced)}

    def save_answers(self, step: _Step, scored: Scored) -> None:
        """Write the step's rollouts with their rewards."""
        if self.samples is not None:
            write_records(self.samples / f"{step.name}.jsonl", scored.rollouts)

    # 3. -----------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, scored: Scored) -> RolloutBatch:
        """Everything that is constant in the update: reference, old values, rewards, advantages, returns."""
        config, roles, rollouts = self.config, self.roles, scored.rollouts
        device, temperature = roles.policy.backbone.device, config.sampler.temperature
        tokens = tokens_of(rollouts, device)
        mask = tokens.response_mask
        sampled = scatter([r.logprobs for r in rollouts], mask)
        reference, values, recomputed = (torch.zeros_like(sampled) for _ in range(3))
        critic = roles.critic if self.method.critic else None
        cap = config.importance_cap if isinstance(config, PolicyGradientConfig) else None
        # The sampler knows the values if the critic is a head on the policy's states.
        valued = critic_on_policy(config) and all(len(r.values) == len(r.tokens) for r in rollouts)
        if valued:
            values = scatter([r.values for r in rollouts], mask)
        for index, part in tokens.micro_batches(config.micro_batch_tokens):
            width = part.tokens.shape[1]
            reference[index, :width] = roles.reference.logprobs(part, temperature=temperature, states=self.states)
            if critic is not None and not valued:
                values[index, :width] = critic.values(part, states=self.states)
            if cap is not None:
                recomputed[index, :width] = roles.policy.logprobs(part, temperature=temperature, states=self.states)
        importance = None if cap is None else truncated_importance_weights(recomputed, sampled, mask, cap=cap)
        old = sampled if cap is None else recomputed
        scores = answer_scores(config, scored).to(device)
        beta = self.kl.value if _kl(config).place == "reward" else 0.0
        rewards, answered = self._step_rewards(scored, mask), mask.any(dim=1)
        rewards[answered] += penalised_rewards(
            scores[answered], old[answered], reference[answered], mask[answered], beta=beta
        )
        advantages = returns = None
        if self.method.advantages is not None:
            advantages, returns = self.method.advantages(config, rewards, values, mask)
        return rollout_batch(
            tokens,
            sampled_logprobs=sampled,
            old_logprobs=old,
            reference_logprobs=reference,
            scores=scores,
            rewards=rewards,
            values=values if self.method.critic else None,
            advantages=advantages,
            returns=returns,
            importance=importance,
        )

    def _step_rewards(self, scored: Scored, mask: Tensor) -> Tensor:
        """Rewards of steps at the tokens that end them, ``[B, T]``."""
        if not any(scored.placed):
            return torch.zeros(mask.shape, device=mask.device)
        if not self.method.step_rewards:
            raise ConfigError(
                f"rewards are placed at steps, but {self.config.method!r} gives all tokens of an answer the same "
                f"advantage; use align.method {', '.join(methods_with(step_rewards=True))}, or one number per answer"
            )
        rows = [
            [at.get(i, 0.0) for i in range(len(r.tokens))] for at, r in zip(scored.placed, scored.rollouts, strict=True)
        ]
        return scatter(rows, mask)

    # 4. -----------------------------------------------------------------------------------

    def update(self, step: _Step, batch: RolloutBatch, scored: Scored) -> Metrics:
        """Train on the batch, then delete the states that were saved for resuming the step."""
        ids = [r.id for r in scored.rollouts]
        if self.method.skips_flat_groups:
            size = self.config.group
            has_spread = group_has_spread(batch.scores.view(-1, size), batch.answered.view(-1, size))
            rows = has_spread.repeat_interleave(self.config.group).nonzero().squeeze(1)
            ids = [ids[i] for i in rows.tolist()]
            if 0 < len(rows) < batch.size:
                batch = batch.rows(rows)
        metrics = self.method.update(
            Update(
                learners=self.learners,
                batch=batch,
                ids=ids,
                config=self.config,
                seed=step.seed,
                beta=self.kl.value,
                states=self.states,
                reduction=self.method.reduction,
                imitate=self.imitate,
                imitate_seed=self.seed,
            )
        )
        if self.samples is not None:
            remove_states(self.samples, f"{step.name}*")
        return metrics

    # 5. and 6. ----------------------------------------------------------------------------

    def adapt_kl(self, metrics: Metrics) -> None:
        """Move β towards the target."""
        if _kl(self.config).target is not None:
            self.kl.update(metrics["kl"], self.config.prompts * self.config.group)

    def restore(self, checkpoints: Checkpoints | None) -> int:
        """Continue from the newest checkpoint; the number of finished steps."""
        done, extra = checkpoints.restore(self.learners) if checkpoints is not None else (0, {})
        if extra:
            self.kl.load_state_dict(extra["kl"])
            self.guard.load_state_dict(extra["guard"])
        if done == 0 and self._returns_to_good:
            if checkpoints is None:
                raise ConfigError(
                    "guard.on_fall is 'keep', which needs checkpoints; give the session some, or set it to stop"
                )
            self.save(checkpoints, 0)
        return done

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        """Write a checkpoint after ``step`` finished steps."""
        extra = {"kl": self.kl.state_dict(), "guard": self.guard.state_dict()}
        checkpoints.save(step, self.learners, extra, good=self.guard.good)

    @property
    def _returns_to_good(self) -> bool:
        """True: after a fall the run goes on with the last good weights."""
        return self.config.guard is not None and self.config.guard.on_fall == "keep"

    def fall(self, reason: str, step: int, checkpoints: Checkpoints | None) -> Fall:
        """Load the last good weights, or raise an error that names them."""
        config = self.config
        if self._returns_to_good and checkpoints is not None:
            good, _ = checkpoints.restore(self.learners, self.guard.good)
            return Fall(step=step, good=good, reason=reason)
        last_good = checkpoints.newest(self.guard.good) if checkpoints is not None else None
        advice = [f"lower policy.lr (now {self.learners['policy'].config.lr:g})"]
        if isinstance(config, PolicyGradientConfig):
            advice.append(f"raise kl.coefficient (now {config.kl.coefficient:g})")
        if config.kl.stop is None and config.epochs * config.minibatches > 1:
            advice.append("set kl.stop")
        raise CollapseError(
            f"alignment fell apart, noticed at step {step}: {reason}. "
            + (f"Last good checkpoint: {last_good}. " if last_good else "No checkpoint was written before that. ")
            + f"In the align section {', or '.join(advice)}; with other settings the stage starts anew. "
            "guard.on_fall: keep continues with the last good weights instead, and guard: null switches this check off"
        )


# Scores -----------------------------------------------------------------------------------


def score_rollouts(rollouts: Sequence[Rollout], score: Scorer, weights: Mapping[str, float], step: int) -> Scored:
    """Score rollouts. Answers without a token are not shown to ``score``; they have no rewards and a total of 0.

    A component is a list with, for each answer, a number, or ``(place, number)`` pairs that say after which token of
    the answer each number is earned.

    Returns:
        the rollouts with ``rewards`` and, for rewards placed at steps, ``step_rewards``.

    Raises:
        ScoringError: the function raised, or returned the wrong length or type.
        NonFiniteError: a component is NaN or infinite; names the sample.
    """
    answered = [(row, rollout) for row, rollout in enumerate(rollouts) if rollout.tokens]
    if not answered:
        return Scored(rollouts=list(rollouts), totals=[0.0] * len(rollouts), placed=[{} for _ in rollouts])
    try:
        components = score([rollout for _, rollout in answered])
    except (ScoringError, NonFiniteError):
        raise
    except Exception as error:
        raise ScoringError(f"the reward function raised {type(error).__name__} at step {step}: {error}") from error
    if not isinstance(components, Mapping) or not components:
        raise ScoringError(
            f"the reward function returned {type(components).__name__}; expected a dict of name → list of floats"
        )
    rewards: list[dict[str, float]] = [{} for _ in rollouts]
    step_rewards: list[dict[str, list[tuple[int, float]]]] = [{} for _ in rollouts]
    placed: list[dict[int, float]] = [{} for _ in rollouts]
    for name, values in components.items():
        try:
            component = [_reward(value) for value in values]
        except (TypeError, ValueError) as error:
            raise ScoringError(
                f"reward {name!r} at step {step}: expected for each answer a number, or (place, number) pairs ({error})"
            ) from error
        if len(component) != len(answered):
            raise ScoringError(f"reward {name!r} has {len(component)} values for {len(answered)} answers")
        for (row, rollout), reward in zip(answered, component, strict=True):
            pairs = reward if isinstance(reward, list) else [(-1, reward)]
            _check_reward(name, pairs, rollout, step)
            rewards[row][name] = sum(number for _, number in pairs)
            if isinstance(reward, list):
                step_rewards[row][name] = reward
                for place, number in reward:
                    placed[row][place] = placed[row].get(place, 0.0) + weights.get(name, 1.0) * number
    return Scored(
        rollouts=[
            replace(r, rewards=r.rewards | whole, step_rewards=r.step_rewards | steps)
            for r, whole, steps in zip(rollouts, rewards, step_rewards, strict=True)
        ],
        totals=[sum(weights.get(name, 1.0) * reward for name, reward in whole.items()) for whole in rewards],
        placed=placed,
    )


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


def _check_reward(name: str, pairs: Sequence[tuple[int, float]], rollout: Rollout, step: int) -> None:
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


def answer_scores(config: RlConfig, scored: Scored) -> Tensor:
    """Score of each answer as a whole, ``[B]``: clipped, then with the missing-EOS and the overlong penalty.

    The overlong penalty comes last and counts an answer that was cut as one of ``max_new_tokens``, so that it never has
    more than an answer with the same score that ended just before the limit. Step rewards are not in it; they go to
    their tokens as they are.
    """
    scores = _whole_rewards(scored)
    if isinstance(config, PolicyGradientConfig) and config.score_clip is not None:
        scores = scores.clamp(-config.score_clip, config.score_clip)
    ended = torch.tensor([r.finish_reason == "stop" for r in scored.rollouts])
    if config.missing_eos is not None:
        scores = penalise_missing_eos(scores, ended, penalty=config.missing_eos.value, mode=config.missing_eos.mode)
    if isinstance(config, DapoConfig) and config.overlong_buffer is not None:
        limit, lengths = config.sampler.max_new_tokens, torch.tensor([len(r.tokens) for r in scored.rollouts])
        scores = scores + overlong_penalty(
            torch.where(ended, lengths, limit), max_tokens=limit, buffer=config.overlong_buffer
        )
    return scores


def _whole_rewards(scored: Scored) -> Tensor:
    """Reward of each answer as a whole, ``[B]``: its total without its step rewards."""
    whole = [total - sum(at.values()) for total, at in zip(scored.totals, scored.placed, strict=True)]
    return torch.tensor(whole, dtype=torch.float32)


# Other parts ------------------------------------------------------------------------------


def _kl(config: RlConfig) -> KLConfig:
    """The penalty for diverging from the reference; a coefficient of 0 for methods without one."""
    return config.kl if isinstance(config.kl, KLConfig) else KLConfig(coefficient=0.0, place="loss")


def _learners(roles: RlRoles, config: RlConfig) -> dict[str, Learner]:
    """A learner of the policy and, for a method with a critic, one of the critic."""
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


def _describe(scored: Scored, batch: RolloutBatch, config: RlConfig, beta: float) -> Metrics:
    """Means over the batch.

    KL is per answer, in nats. ``empty`` counts the answers without a token; they have no reward.
    """
    rollouts, mask = scored.rollouts, batch.response_mask
    n, answered = len(rollouts), [r for r in rollouts if r.tokens]
    totals = [total for total, r in zip(scored.totals, rollouts, strict=True) if r.tokens]
    kl = masked_sum(kl_k1(batch.old_logprobs, batch.reference_logprobs), mask)
    more: Metrics = {}
    if batch.values is not None and batch.returns is not None and bool(mask.any()):
        more["value"] = float(masked_mean(batch.values, mask))
        more["explained_variance"] = float(explained_variance(batch.values, batch.returns, mask))
    if config.group > 1:
        placed = [sorted(at.items()) for at in scored.placed]
        earned = list(zip(batch.scores.tolist(), placed, strict=True))
        groups = [
            [e for e, r in zip(earned[i : i + config.group], rollouts[i : i + config.group], strict=True) if r.tokens]
            for i in range(0, n, config.group)
        ]
        more["flat_groups"] = sum(all(e == g[0] for e in g) for g in groups) / len(groups)
    if isinstance(config, PolicyGradientConfig) and config.score_clip is not None:
        more["score_clipped"] = float((_whole_rewards(scored).abs() > config.score_clip).float().mean())
    names = sorted({name for r in answered for name in r.rewards})
    mean = sum(totals) / max(len(totals), 1)
    return {
        "reward": mean,
        "reward_std": math.sqrt(sum((t - mean) ** 2 for t in totals) / max(len(totals), 1)),
        **{f"reward/{name}": sum(r.rewards[name] for r in answered) / len(answered) for name in names},
        "kl": float(kl) / n,
        "beta": beta,
        "length": float(mask.sum()) / n,
        "ended": sum(r.finish_reason == "stop" for r in rollouts) / n,
        "distinct": len({r.text for r in rollouts}) / n,
        "empty": float(n - len(answered)),
        **more,
    }


class _Clock:
    """Seconds spent in each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a phase."""
        now = time.perf_counter()
        self.seconds[f"seconds/{name}"] = now - self._last
        self._last = now
