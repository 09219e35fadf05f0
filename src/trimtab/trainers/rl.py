"""Online alignment: sample, score, make the better answers likelier, penalise divergence. One loop for all methods.

One step, top to bottom:

1. sample answers with the policy; their log-probabilities are the old ones, no pass recomputes them;
2. score them; groups whose answers all score the same are replaced, if the method does so (DAPO). An answer without
   a token is counted (``empty``), and left out from here on;
   A method with an opponent has an answer drawn for each of these, which is scored with it;
3. reward per token = −β·(log π_old − log π_ref), plus the score at the last token, or at each step's;
   and advantages: by GAE on a critic (PPO), or against the other answers to the prompt (RLOO, GRPO, …);
4. epochs × minibatches of the method's loss;
5. adapt β if it is adaptive, and the price of a cost that has a limit;
6. end a run whose policy collapses (:mod:`trimtab.trainers.guard`), and one that is far enough
   (:mod:`trimtab.trainers.selection`).

What makes a method is its row in :mod:`trimtab.trainers.methods`; formulas are in :mod:`trimtab.algos`.
Departures from Ouyang et al. 2022: policy, critic, reference and reward model may share one trunk
(adapters), the critic may start from the reward model (as in the paper) or at zero, and it may be a
head on the policy's own states (``shared_critic``). All
policy-gradient methods use the clipped surrogate; with one pass and one minibatch its gradient is
REINFORCE's, because every ratio is 1.
"""

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
    DualAscent,
    RunningScale,
    bootstrapped_rewards,
    group_has_spread,
    penalised_rewards,
)
from trimtab.errors import CollapseError, ConfigError
from trimtab.models import AdapterConfig, Backbone, Encoded, FrozenStates, Role, scatter
from trimtab.models.kernels import kernels
from trimtab.records import Prompt, Rollout, write_records
from trimtab.rollout import (
    MixtureOpponent,
    Opponent,
    Sampler,
    Scorer,
    ValueHead,
    load_rollouts,
    make_sampler,
    remove_states,
    save_rollouts,
)
from trimtab.trainers.checkpoint import Checkpoints, seed_step, step_seed
from trimtab.trainers.defaults import with_lr
from trimtab.trainers.group import Group
from trimtab.trainers.guard import Fall, Guard
from trimtab.trainers.learner import Learner, Metrics
from trimtab.trainers.methods import ONLINE, OnlineMethod, methods_with
from trimtab.trainers.progress import Session
from trimtab.trainers.reference import MovingWeights, moving_reference
from trimtab.trainers.rl_checks import check_rl
from trimtab.trainers.rl_config import (
    ConstraintConfig,
    DapoConfig,
    KLConfig,
    PolicyGradientConfig,
    PpoConfig,
    RlConfig,
)
from trimtab.trainers.rl_metrics import describe
from trimtab.trainers.rl_passes import run_passes
from trimtab.trainers.rl_update import Update, critic_on_policy, critic_update
from trimtab.trainers.rollout_batch import RolloutBatch, opponent_batch, rollout_batch, tokens_of, with_reference
from trimtab.trainers.scoring import (
    Scored,
    answer_scores,
    components,
    ended_of,
    score_pairs,
    score_rollouts,
    wins_of,
)
from trimtab.trainers.selection import Chosen, Selection
from trimtab.trainers.shares import drawn_by_share, scored_by_share


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


Monitor = Callable[[int, Sequence[Rollout]], Metrics]
"""Number of the step, from 1, and its answers → further numbers that are logged, never trained on (a gold reward).
Answers without a token are among them, though they have no rewards."""


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
    opponent: Opponent | None = None,
    states: FrozenStates | None = None,
) -> Fall | Chosen | None:
    """Train the policy, and the critic if there is one, in place.

    Args:
        roles: policy, reference and, for PPO, critic. With ``config.reference_update`` the reference is where the
            one that follows the policy starts.
        prompts: what to answer; every pass over them is a fresh shuffle.
        score: rollouts → named reward components. With several processes (``session.group``) each scores all answers to
            its share of the step's prompts, so a reward must not compare answers to different prompts.
        config: settings.
        seed: order of the prompts, sampling, minibatches, dropout.
        session: logging, checkpoints, stopping; None: silent, saves nothing.
        monitor: extra metrics of each rollout batch.
        samples: folder for each step's rollouts with their rewards; an interrupted step is continued from there.
        weights: weight of each reward component; 1 if not named.
        imitate: conversations of PPO-ptx, each with its id; needed if ``config.ptx`` is set.
        sampler: draws the answers, with the policy's weights; None: the one that ``config.sampler`` names.
        opponent: draws the answers that the policy's are compared with, for a method that compares them; None: the
            mixture of policy and reference that the method names.
        states: store for the states of the policy's frozen layers, emptied at every step; pass the one that a reward
            model on the same trunk uses too. None: a new one.

    Returns:
        None where the policy has the weights after the last step. With ``select``, ``patience`` or ``kl.budget`` the
        choice of earlier ones, with ``guard.on_fall: keep`` the fall of a run that collapsed; these weights are loaded.

    Raises:
        ConfigError: settings that contradict each other.
        ScoringError: the reward function failed or returned the wrong shape.
        NonFiniteError: a reward, loss or gradient became NaN or infinite.
        CollapseError: the policy collapsed; names the last good checkpoint.
    """
    check_rl(config, len(prompts))
    session = session or Session()
    method = ONLINE[config.method]
    moving = moving_reference(roles.reference, roles.policy, config.reference_update)
    roles = roles if moving is None else replace(roles, reference=moving)
    run = _Run(
        roles=roles,
        config=config,
        method=method,
        learners=_learners(roles, config, session.group),
        prompts=prompts,
        scorer=score,
        weights=weights or {},
        monitor=monitor if session.group.first else None,
        sampler=sampler or make_sampler(roles.policy.backbone, config.sampler),
        opponent=_opponent(method, roles, config) if opponent is None else opponent,
        untrained={} if moving is None else {"reference": moving},
        states=FrozenStates(roles.policy.backbone) if states is None else states,
        samples=samples if session.group.first else None,
        imitate=imitate,
        seed=seed,
        group=session.group,
        kl=AdaptiveKL(_kl(config).coefficient, _kl(config).target or 1.0, _kl(config).horizon),
        price=_price(config),
        scale=RunningScale(),
        guard=Guard(
            config.guard,
            answers=config.prompts * config.group,
            penalised=config.missing_eos is not None,
            cost=None if (limit := _constraint(config)) is None else limit.reward,
        ),
        selection=Selection(
            config.select,
            patience=config.patience,
            budget=config.kl.budget,
            still=config.critic_warmup if isinstance(config, PpoConfig) else 0,
        ),
    )
    done = run.restore(session.checkpoints)
    session.planned(done, config.steps)
    for number in range(done, config.steps):
        step = run.begin(number, resumed=number == done)
        rollouts, opponents = run.sample(step)  # 1
        scored = run.score(step, rollouts, opponents)  # 2
        batch = run.prepare(step, scored)  # 3
        metrics = run.update(step, batch, scored)  # 4
        run.adapt(step, metrics)  # 5
        session.log({"step": number + 1, **metrics, **step.clock.seconds})
        fall = run.check_collapse(step, metrics, session.checkpoints)  # 6
        if fall is not None:
            return fall
        run.selection.add(metrics)
        if (reason := run.selection.stop()) is not None:
            return run.select(session.checkpoints, number + 1, reason)
        session.after_step(number + 1, config.steps, partial(run.save, step=number + 1))
    return run.select(session.checkpoints, config.steps, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """One step of a run."""

    number: int
    """Of finished steps before it."""
    seed: int
    """Everything random in it is drawn from this."""
    resumed: bool
    """True: answers that an interrupted process drew with these very weights may be on disk."""
    clock: "_Clock"
    """Seconds of its phases."""

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
    scorer: Scorer
    weights: Mapping[str, float]
    monitor: Monitor | None
    sampler: Sampler
    opponent: Opponent | None
    untrained: Mapping[str, MovingWeights]
    states: FrozenStates
    samples: Path | None
    imitate: Sequence[tuple[str, Encoded]]
    seed: int
    group: Group
    kl: AdaptiveKL
    price: DualAscent | None
    scale: RunningScale
    guard: Guard
    selection: Selection

    def __post_init__(self) -> None:
        config = self.config
        if isinstance(config, PolicyGradientConfig) and config.ptx is not None and not self.imitate:
            raise ConfigError(
                "ptx is set but there are no conversations to imitate; give data.demonstrations or ptx.data"
            )

    def begin(self, number: int, *, resumed: bool) -> _Step:
        """Start a step: seed everything random in it, and forget the states of the last one."""
        step = _Step(number=number, seed=seed_step(self.seed, "align", number), resumed=resumed, clock=_Clock())
        self.states.clear()
        return step

    # 1. -----------------------------------------------------------------------------------

    def sample(self, step: _Step) -> tuple[list[Rollout], list[Rollout]]:
        """Answers to the step's prompts, and the opponent's, as many or none."""
        prompts = _prompts_of_step(self.prompts, self.config.prompts, step.number, self.seed)
        rollouts = self._draw(step, prompts)
        step.clock.lap("sample")
        if self.method.opponent is None:
            return rollouts, []
        opponents = self._draw_opponents(step, prompts)
        step.clock.lap("sample_opponents")
        return rollouts, opponents

    def _draw_opponents(self, step: _Step, prompts: Sequence[Prompt]) -> list[Rollout]:
        """As :meth:`_draw`, of the opponent, with random streams of its own."""
        assert self.opponent is not None
        version, group = self.learners["policy"].steps, self.config.group
        path = None if self.samples is None or self.group.size > 1 else self.samples / f"{step.name}-opponent.jsonl"
        if path is not None and step.resumed:
            ids = [p.id for p in prompts for _ in range(group)]
            rollouts = load_rollouts(path, ids, version=version)
            if rollouts is not None:
                return rollouts
        seed = step_seed(self.seed, "opponent", step.number)
        draw = partial(self.opponent.draw, seed=seed, group=group, weight_version=version)
        rollouts = drawn_by_share(self.group, f"opponents of step {step.number + 1}", prompts, draw, answers=group)
        kernels().after_sampling()
        if path is not None:
            save_rollouts(path, rollouts)
        return rollouts

    def _draw(self, step: _Step, prompts: Sequence[Prompt], suffix: str = "") -> list[Rollout]:
        """Draw answers, or take those that an interrupted process had finished drawing.

        Several processes draw them again: the states of frozen layers are on the rank that drew them, and again they
        are the same.
        """
        version, group = self.learners["policy"].steps, self.config.group
        path = None if self.samples is None or self.group.size > 1 else self.samples / f"{step.name}{suffix}.jsonl"
        if path is not None:
            if step.resumed:
                ids = [p.id for p in prompts for _ in range(group)]
                rollouts = load_rollouts(path, ids, self.states, version=version)
                if rollouts is not None:
                    return rollouts
            path.unlink(missing_ok=True)
        draw = partial(
            self.sampler.generate,
            adapter=self.roles.policy.adapter,
            seed=step.seed,
            group=group,
            weight_version=version,
            states=self.states,
            value_head=self._value_head(),
        )
        rollouts = drawn_by_share(self.group, f"answers of step {step.number + 1}", prompts, draw, answers=group)
        kernels().after_sampling()
        if path is not None:
            save_rollouts(path, rollouts, self.states)
        return rollouts

    def _value_head(self) -> ValueHead | None:
        """The critic's head if it reads the policy's own states."""
        critic = self.roles.critic if critic_on_policy(self.config) else None
        if critic is None or critic.scalar is None:
            return None
        scalar = critic.scalar
        return lambda hidden: scalar(hidden.to(scalar.weight.dtype))

    # 2. -----------------------------------------------------------------------------------

    def score(self, step: _Step, rollouts: Sequence[Rollout], opponents: Sequence[Rollout]) -> Scored:
        """Score the answers, with their opponents' if there are any; replace flat groups where the method does so."""
        if opponents:
            scored = score_pairs(rollouts, opponents, partial(self._score, step, answers=2 * self.config.group))
        else:
            scored = self._score(step, rollouts, answers=self.config.group)
        self._check_cost(scored)
        step.clock.lap("score")
        if isinstance(self.config, DapoConfig) and self.config.resample:
            scored = self._replace_flat_groups(step, scored, attempts=self.config.resample)
            step.clock.lap("resample")
        if isinstance(self.config, PolicyGradientConfig) and self.config.running_scale:
            totals = [total for total, r in zip(scored.totals, scored.rollouts, strict=True) if r.tokens]
            scored = replace(scored, scale=self.scale.update(totals))
        return scored

    def _score(self, step: _Step, rollouts: Sequence[Rollout], *, answers: int) -> Scored:
        """Score answers, ``answers`` to each prompt one after the other."""
        return scored_by_share(
            self.group,
            f"rewards of step {step.number + 1}",
            rollouts,
            lambda own: score_rollouts(own, self.scorer, self._weights(), step.number),
            answers=answers,
        )

    def _weights(self) -> Mapping[str, float]:
        """Weight of each reward; of a cost with a limit, its price."""
        limit = _constraint(self.config)
        return (
            self.weights if limit is None or self.price is None else {**self.weights, limit.reward: -self.price.value}
        )

    def _check_cost(self, scored: Scored) -> None:
        limit = _constraint(self.config)
        names = sorted({name for r in scored.rollouts for name in r.rewards})
        if limit is not None and names and limit.reward not in names:
            raise ConfigError(
                f"constraint.reward is {limit.reward!r}, but the rewards are {', '.join(names)}; name one of them"
            )

    def _replace_flat_groups(self, step: _Step, scored: Scored, *, attempts: int) -> Scored:
        """Replace groups whose answers all score the same by groups of other prompts (DAPO's dynamic sampling)."""
        size, scored = self.config.group, replace(scored, resampled=0)
        used = {r.prompt.id for r in scored.rollouts}
        others = [p for p in self.prompts if p.id not in used]
        random.Random(f"{step.name}|{scored.rollouts[0].id}|resample").shuffle(others)
        for attempt in range(1, attempts + 1):
            scores = answer_scores(self.config, scored).view(-1, size)
            spread = group_has_spread(scores, torch.tensor([bool(r.tokens) for r in scored.rollouts]).view(-1, size))
            flat = (~spread).nonzero().squeeze(1).tolist()[: len(others)]
            if not flat:
                break
            fresh = self._draw(step, others[: len(flat)], f"-again-{attempt}")
            others = others[len(flat) :]
            scored = scored.replace_groups(flat, self._score(step, fresh, answers=size), size)
        return scored

    # 3. -----------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, step: _Step, scored: Scored) -> RolloutBatch:
        """Everything that is constant in the update: reference, old values, rewards, advantages, returns.

        The answers are saved with their rewards and their log-probabilities under the reference.
        """
        config, roles, rollouts = self.config, self.roles, scored.rollouts
        device = roles.policy.backbone.device
        tokens = tokens_of(rollouts, device)
        mask, critic = tokens.response_mask, roles.critic if self.method.critic else None
        passes = run_passes(
            roles.policy, roles.reference, critic, tokens, rollouts, config, self.states, group=self.group
        )
        old, reference = passes.old, passes.reference
        wins = wins_of(config, scored)
        scores = answer_scores(config, scored).to(device)
        if self.method.scores_wins and wins is not None:
            scores = wins.to(device) - 0.5
        beta = self.kl.value if _kl(config).place == "reward" else 0.0
        rewards, answered = self._step_rewards(scored, mask), mask.any(dim=1)
        rewards[answered] += penalised_rewards(
            scores[answered], old[answered], reference[answered], mask[answered], beta=beta
        )
        advantages = returns = None
        if self.method.advantages is not None:
            earned = rewards
            if isinstance(config, PpoConfig) and passes.last_values is not None:
                cut = ~ended_of(rollouts).to(device)
                earned = bootstrapped_rewards(rewards, passes.last_values, cut, mask, gamma=config.gamma)
            advantages, returns = self.method.advantages(config, earned, passes.values, mask)
        if self.method.component_advantages is not None and bool(answered.any()):
            each, weights = (x.to(device) for x in components(scored, self._weights()))
            advantages = self.method.component_advantages(config, each, weights, mask)
        batch = rollout_batch(
            tokens,
            sampled_logprobs=passes.sampled,
            old_logprobs=old,
            reference_logprobs=reference,
            scores=scores,
            rewards=rewards,
            values=passes.values if self.method.critic else None,
            advantages=advantages,
            returns=returns,
            importance=passes.importance,
            uncertain=passes.uncertain,
            wins=None if wins is None else wins.to(device),
        )
        if self.samples is not None:
            write_records(self.samples / f"{step.name}.jsonl", with_reference(rollouts, reference))
            if scored.opponents is not None:
                write_records(self.samples / f"{step.name}-opponent.jsonl", scored.opponents.rollouts)
        step.clock.lap("infer")
        return batch

    def _opponents_of(self, scored: Scored) -> RolloutBatch | None:
        """The opponents' answers as a batch, if the update trains on them: they are the reference's own."""
        if scored.opponents is None or self.method.scores_wins:
            return None
        return opponent_batch(scored.opponents.rollouts, self.roles.policy.backbone.device)

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
            [at.get(i, 0.0) / scored.scale for i in range(len(r.tokens))]
            for at, r in zip(scored.placed, scored.rollouts, strict=True)
        ]
        return scatter(rows, mask)

    # 4. -----------------------------------------------------------------------------------

    def update(self, step: _Step, batch: RolloutBatch, scored: Scored) -> Metrics:
        """Train on the batch; all numbers of the step. The states that were saved for resuming it are deleted."""
        rows, ids = batch, [r.id for r in scored.rollouts]
        if isinstance(self.config, PolicyGradientConfig) and self.config.overlong_filter:
            rows = replace(
                batch, response_mask=batch.response_mask & ended_of(scored.rollouts).to(batch.tokens.device)[:, None]
            )
        if self.method.skips_flat_groups:
            size = self.config.group
            has_spread = group_has_spread(batch.scores.view(-1, size), batch.answered.view(-1, size))
            places = has_spread.repeat_interleave(size).nonzero().squeeze(1)
            ids = [ids[i] for i in places.tolist()]
            if 0 < len(places) < batch.size:
                rows = rows.rows(places)
        metrics = (critic_update if self._warming(step) else self.method.update)(
            Update(
                learners=self.learners,
                batch=rows,
                ids=ids,
                config=self.config,
                seed=step.seed,
                beta=self.kl.value,
                states=self.states,
                reduction=self.method.reduction,
                surrogate=self.method.surrogate,
                opponents=self._opponents_of(scored),
                imitate=self.imitate,
                imitate_seed=self.seed,
            )
        )
        if self.samples is not None:
            remove_states(self.samples, f"{step.name}*")
        step.clock.lap("update")
        metrics |= describe(scored, batch, self.config, self.kl.value, self.price)
        if self.monitor is not None:
            metrics |= self.monitor(step.number + 1, scored.rollouts)
        return metrics

    def _warming(self, step: _Step) -> bool:
        """True: the step trains the critic alone."""
        return isinstance(self.config, PpoConfig) and step.number < self.config.critic_warmup

    # 5. and 6. ----------------------------------------------------------------------------

    def adapt(self, step: _Step, metrics: Metrics) -> None:
        """Move β towards its target, the price of a cost towards where its limit holds, the reference to the policy.

        Not while the critic warms up: the policy stands still, and neither its KL nor its cost can answer.
        """
        if self._warming(step):
            return
        limit = _constraint(self.config)
        if limit is not None and self.price is not None and f"reward/{limit.reward}" in metrics:
            self.price.update(metrics[f"reward/{limit.reward}"])
        if _kl(self.config).target is not None:
            self.kl.update(metrics["kl"], self.config.prompts * self.config.group)
        moves = self.config.reference_update
        if moves is not None and moves.due(step.number + 1):
            for reference in self.untrained.values():
                reference.update(moves.alpha)

    def restore(self, checkpoints: Checkpoints | None) -> int:
        """Continue from the newest checkpoint; the number of finished steps."""
        done, extra = (
            checkpoints.restore(self.learners, untrained=self.untrained) if checkpoints is not None else (0, {})
        )
        if extra:
            self.kl.load_state_dict(extra["kl"])
            self.guard.load_state_dict(extra["guard"])
            self.scale.load_state_dict(extra.get("scale", self.scale.state_dict()))
            self.selection.load_state_dict(extra.get("selection", self.selection.state_dict()))
            if self.price is not None:
                self.price.load_state_dict(extra["price"])
        if done == 0 and (self._returns_to_good or self.selection.active):
            if checkpoints is None:
                setting = f"select is {self.config.select!r}" if self.config.select != "last" else "kl.budget is set"
                if self._returns_to_good:
                    setting = "guard.on_fall is 'keep'"
                raise ConfigError(
                    f"{setting}, which needs checkpoints; give the session some, or set on_fall: stop, select: last "
                    "and kl.budget: null"
                )
            self.save(checkpoints, 0)
        return done

    def select(self, checkpoints: Checkpoints | None, done: int, reason: str | None) -> Chosen | None:
        """Load the weights that the run ends with; None: they are those after its last step.

        Args:
            checkpoints: of the run.
            done: steps that were made.
            reason: why it ended early; None: it did not.
        """
        if not self.selection.active or checkpoints is None:
            return None
        best = self.selection.choose({*checkpoints.steps, done})
        if best != done:
            checkpoints.restore(self.learners, [best])
        if best == self.config.steps:
            return None
        return Chosen(step=best, ended=done, reason=self.selection.describe(best, reason))

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        """Write a checkpoint after ``step`` finished steps."""
        extra: dict[str, Any] = {
            "kl": self.kl.state_dict(),
            "guard": self.guard.state_dict(),
            "scale": self.scale.state_dict(),
            "selection": self.selection.state_dict(),
        }
        if self.price is not None:
            extra["price"] = self.price.state_dict()
        checkpoints.save(
            step, self.learners, extra, good=self.guard.good, needed=self.selection.needed, untrained=self.untrained
        )

    @property
    def _returns_to_good(self) -> bool:
        """True: after a fall the run goes on with the last good weights."""
        return self.config.guard is not None and self.config.guard.on_fall == "keep"

    def check_collapse(self, step: _Step, metrics: Metrics, checkpoints: Checkpoints | None) -> Fall | None:
        """None while the policy is sound. After a collapse load the last good weights, or raise an error naming them.

        Raises:
            CollapseError: the policy collapsed, and ``guard.on_fall`` is ``stop``.
        """
        reason = self.guard.check(metrics)
        if reason is None:
            return None
        config, finished = self.config, step.number + 1
        if self._returns_to_good and checkpoints is not None:
            sound = set(self.guard.good) & set(checkpoints.steps)
            good, _ = checkpoints.restore(self.learners, [self.selection.choose(sound)] if sound else self.guard.good)
            return Fall(step=finished, good=good, reason=reason)
        last_good = checkpoints.newest(self.guard.good) if checkpoints is not None else None
        advice = [f"lower policy.lr (now {self.learners['policy'].config.lr:g})"]
        if isinstance(config, PolicyGradientConfig):
            advice.append(f"raise kl.coefficient (now {config.kl.coefficient:g})")
        if config.kl.stop is None and config.epochs * config.minibatches > 1:
            advice.append("set kl.stop")
        raise CollapseError(
            f"alignment fell apart, noticed at step {finished}: {reason}. "
            + (f"Last good checkpoint: {last_good}. " if last_good else "No checkpoint was written before that. ")
            + f"In the align section {', or '.join(advice)}; with other settings the stage starts anew. "
            "guard.on_fall: keep continues with the last good weights instead, and guard: null switches this check off"
        )


# Other parts ------------------------------------------------------------------------------


def _opponent(method: OnlineMethod, roles: RlRoles, config: RlConfig) -> Opponent | None:
    """The mixture that the method names; None for a method without an opponent."""
    if method.opponent is None:
        return None
    return MixtureOpponent(roles.policy, roles.reference, config.sampler, share=method.opponent(config))


def _kl(config: RlConfig) -> KLConfig:
    """The penalty for diverging from the reference; a coefficient of 0 for methods without one."""
    return config.kl if isinstance(config.kl, KLConfig) else KLConfig(coefficient=0.0, place="loss")


def _constraint(config: RlConfig) -> ConstraintConfig | None:
    """The limit on a cost; None without one."""
    return config.constraint if isinstance(config, PolicyGradientConfig) else None


def _price(config: RlConfig) -> DualAscent | None:
    """Of a cost with a limit; None without one."""
    limit = _constraint(config)
    if limit is None:
        return None
    return DualAscent(limit.initial, limit=limit.limit, lr=limit.lr, largest=limit.largest)


def _learners(roles: RlRoles, config: RlConfig, group: Group) -> dict[str, Learner]:
    """A learner of the policy and, for a method with a critic, one of the critic."""
    updates = config.steps * config.epochs * config.minibatches
    warming = config.critic_warmup * config.epochs * config.minibatches if isinstance(config, PpoConfig) else 0
    learners = {
        "policy": Learner(roles.policy, with_lr(config.policy, "policy", roles.policy), updates - warming, group=group)
    }
    if isinstance(config, PpoConfig):
        if roles.critic is None:
            raise ConfigError("method 'ppo' needs a critic; build the roles with RlRoles.on(..., critic=True)")
        learners["critic"] = Learner(roles.critic, with_lr(config.critic, "critic", roles.critic), updates, group=group)
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
