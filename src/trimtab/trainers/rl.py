"""Online alignment: sample answers, score them, make the better ones likelier. One loop for all methods.

One step, top to bottom:

1. Sample answers with the policy and keep their log-probabilities as the old ones. If the method has an opponent, the
   opponent draws as many. With ``one_step_off`` the answers were drawn before the last update, and the next step's are
   drawn while this step trains.
2. Score the answers. If the method does so (DAPO), replace groups whose answers all score the same. An answer without
   a token is counted in ``empty`` and left out from here on.
3. Compute the reward per token: −β·(log π_old − log π_ref), plus the score at the answer's last token or at the last
   token of each of its steps. Compute the advantages: by GAE on a critic (PPO), or against the other answers to the
   prompt (RLOO, GRPO, …).
4. Update: epochs × minibatches of the method's loss.
5. Adapt β if it is adaptive, the price of a cost that has a limit, and a reference that follows the policy.
6. End the run if the policy has collapsed or a stopping rule applies (:mod:`trimtab.trainers.rl_ending`).

Each method is a row in :mod:`trimtab.trainers.methods`; its formulas are in :mod:`trimtab.algos`.

Departures from Ouyang et al. 2022: policy, critic, reference and reward model may share one trunk (adapters). The
critic may start from the reward model (as in the paper) or at zero, and it may be a head on the policy's own states
(``shared_critic``). All policy-gradient methods use the clipped surrogate; with one pass and one minibatch its gradient
is REINFORCE's, because every ratio is 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from trimtab.algos import (
    AdaptiveKL,
    DualAscent,
    RunningScale,
    bootstrapped_rewards,
    group_has_spread,
    penalised_rewards,
)
from trimtab.algos.shapes import MaskBT, TensorB, TensorBT
from trimtab.errors import ConfigError
from trimtab.models import Encoded, FrozenStates, scatter
from trimtab.records import Prompt, Rollout, write_records
from trimtab.rollout import MixtureOpponent, Opponent, Sampler, Scorer, make_sampler, remove_states
from trimtab.trainers.checkpoint import seed_step
from trimtab.trainers.defaults import with_lr
from trimtab.trainers.group import Group
from trimtab.trainers.guard import Fall, Guard
from trimtab.trainers.learner import Learner, Metrics
from trimtab.trainers.methods import ONLINE, OnlineMethod, methods_with
from trimtab.trainers.progress import Session
from trimtab.trainers.reference import MovingWeights, moving_reference
from trimtab.trainers.rl_ahead import Ahead
from trimtab.trainers.rl_checks import check_rl
from trimtab.trainers.rl_config import PpoConfig, RlConfig
from trimtab.trainers.rl_drawing import Drawing
from trimtab.trainers.rl_ending import Ending
from trimtab.trainers.rl_metrics import describe
from trimtab.trainers.rl_optional import (
    constraint_of,
    critic_warmup,
    discount,
    draws_ahead,
    kl_of,
    leaves_out_cut,
    ptx_of,
    resample_attempts,
    scales_scores,
)
from trimtab.trainers.rl_passes import Passes, run_passes
from trimtab.trainers.rl_roles import RlRoles
from trimtab.trainers.rl_step import Clock, Step
from trimtab.trainers.rl_update import Update, critic_update
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
from trimtab.trainers.shares import scored_by_share

Monitor = Callable[[int, Sequence[Rollout]], Metrics]
"""(number of the step, from 1, its answers) → more metrics to log, never trained on, such as a gold reward. The answers
include those without a token, which have no rewards."""


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
        roles: policy, reference and, for PPO, critic. With ``config.reference_update`` the reference follows the
            policy and starts from this one.
        prompts: what to answer; every pass over them is a fresh shuffle.
        score: rollouts → named reward components. With several processes (``session.group``) each one scores all
            answers to its share of the step's prompts, so a reward must not compare answers to different prompts.
        config: settings.
        seed: order of the prompts, sampling, minibatches, dropout.
        session: logging, checkpoints, stopping; None: logs and saves nothing.
        monitor: extra metrics of each rollout batch.
        samples: folder for each step's rollouts with their rewards; an interrupted step continues from these files.
        weights: weight of each reward component; 1 if not named.
        imitate: conversations to imitate (PPO-ptx), each with its id; needed if ``config.ptx`` is set.
        sampler: draws the answers, with the policy's weights; None: the one that ``config.sampler`` names.
        opponent: draws the answers that the policy's are compared with, for a method that has an opponent; None: the
            mixture of policy and reference that the method names.
        states: store for the states of the policy's frozen layers, emptied at every step; a reward model on the same
            trunk can share it. None: a new one.

    Returns:
        None if the policy ends with the weights after the last step. A ``Chosen`` if ``select``, ``patience`` or
        ``kl.budget`` picked earlier weights; a ``Fall`` if the run collapsed and ``guard.on_fall`` is ``keep``. In both
        cases the policy has those weights.

    Raises:
        ConfigError: settings that contradict each other.
        ScoringError: the reward function failed or returned the wrong shape.
        NonFiniteError: a reward, loss or gradient became NaN or infinite.
        CollapseError: the policy collapsed; names the last good checkpoint.
    """
    check_rl(config, len(prompts))
    session = session or Session()
    roles, untrained = _with_moving_reference(roles, config)
    learners = _learners(roles, config, session.group)
    drawing = Drawing(
        config=config,
        prompts=prompts,
        learner=learners["policy"],
        critic=roles.critic,
        sampler=sampler or make_sampler(roles.policy.backbone, config.sampler),
        opponent=_opponent(roles, config) if opponent is None else opponent,
        states=FrozenStates(roles.policy.backbone) if states is None else states,
        samples=samples if session.group.first else None,
        seed=seed,
        group=session.group,
        ahead=Ahead() if draws_ahead(config) else None,
    )
    run = _Run(
        roles=roles,
        config=config,
        learners=learners,
        drawing=drawing,
        scorer=score,
        weights=weights or {},
        monitor=monitor if session.group.first else None,
        untrained=untrained,
        imitate=imitate,
        kl=_adaptive_kl(config),
        price=_price(config),
        scale=RunningScale(),
    )
    ending = _ending(run, session)
    done = ending.restore()
    session.planned(done, config.steps)
    for number in range(done, config.steps):
        step = run.begin(number, resumed=number == done)
        rollouts, opponents = run.sample(step)  # 1
        scored = run.score(step, rollouts, opponents)  # 2
        batch = run.prepare(step, scored)  # 3
        metrics = run.update(step, batch, scored)  # 4
        run.adapt(step, metrics)  # 5
        run.finish_next(step)
        session.log({"step": number + 1, **metrics, **step.clock.seconds})
        end = ending.after(number + 1, metrics)  # 6
        if end is not None:
            return end
        session.after_step(number + 1, config.steps, ending.save)
    return ending.choose(config.steps)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What is the same for all steps, and the parts of a step as methods."""

    roles: RlRoles
    config: RlConfig
    learners: dict[str, Learner]
    drawing: Drawing
    scorer: Scorer
    weights: Mapping[str, float]
    monitor: Monitor | None
    untrained: Mapping[str, MovingWeights]
    imitate: Sequence[tuple[str, Encoded]]
    kl: AdaptiveKL
    price: DualAscent | None
    scale: RunningScale

    def __post_init__(self) -> None:
        if ptx_of(self.config) is not None and not self.imitate:
            raise ConfigError(
                "ptx is set but there are no conversations to imitate; give data.demonstrations or ptx.data"
            )

    @property
    def method(self) -> OnlineMethod:
        """The method's row in the table."""
        return ONLINE[self.config.method]

    def begin(self, number: int, *, resumed: bool) -> Step:
        """Start a step: seed everything random in it and clear the stored states of frozen layers."""
        step = Step(number=number, seed=seed_step(self.drawing.seed, "align", number), resumed=resumed, clock=Clock())
        self.drawing.states.clear()
        return step

    # 1. -----------------------------------------------------------------------------------

    def sample(self, step: Step) -> tuple[list[Rollout], list[Rollout]]:
        """The policy's answers to the step's prompts, and the opponent's: as many, or none without an opponent."""
        prompts = self.drawing.step_prompts(step)
        with self.roles.policy.gathered():
            rollouts = self.drawing.answers(step, prompts)
            self.drawing.begin_next(step)
        step.clock.lap("sample")
        if self.method.opponent is None:
            return rollouts, []
        with self.roles.policy.gathered(), self.roles.reference.gathered():
            opponents = self.drawing.opponents(step, prompts)
        step.clock.lap("sample_opponents")
        return rollouts, opponents

    # 2. -----------------------------------------------------------------------------------

    def score(self, step: Step, rollouts: Sequence[Rollout], opponents: Sequence[Rollout]) -> Scored:
        """Score the answers, and the opponents' if there are any; replace flat groups if the method does so."""
        with self.roles.reference.gathered():  # reward models may be adapters on its trunk
            if opponents:
                scored = score_pairs(rollouts, opponents, partial(self._score, step, answers=2 * self.config.group))
            else:
                scored = self._score(step, rollouts, answers=self.config.group)
        self._check_cost(scored)
        step.clock.lap("score")
        if attempts := resample_attempts(self.config):
            score = partial(self._score, step, answers=self.config.group)
            with self.roles.policy.gathered(), self.roles.reference.gathered():
                scored = self.drawing.replace_flat_groups(step, scored, score, attempts=attempts)
            step.clock.lap("resample")
        if scales_scores(self.config):
            totals = [total for total, r in zip(scored.totals, scored.rollouts, strict=True) if r.tokens]
            scored = replace(scored, scale=self.scale.update(totals))
        return scored

    def _score(self, step: Step, rollouts: Sequence[Rollout], *, answers: int) -> Scored:
        """Score rollouts that come in runs of ``answers`` to the same prompt."""
        return scored_by_share(
            self.drawing.group,
            f"rewards of step {step.number + 1}",
            rollouts,
            lambda own: score_rollouts(own, self.scorer, self._weights(), step.number),
            answers=answers,
        )

    def _weights(self) -> Mapping[str, float]:
        """Weight of each reward; a cost with a limit has minus its price as weight."""
        limit = constraint_of(self.config)
        return (
            self.weights if limit is None or self.price is None else {**self.weights, limit.reward: -self.price.value}
        )

    def _check_cost(self, scored: Scored) -> None:
        limit = constraint_of(self.config)
        names = sorted({name for r in scored.rollouts for name in r.rewards})
        if limit is not None and names and limit.reward not in names:
            raise ConfigError(
                f"constraint.reward is {limit.reward!r}, but the rewards are {', '.join(names)}; name one of them"
            )

    # 3. -----------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, step: Step, scored: Scored) -> RolloutBatch:
        """Compute everything that is constant in the update: reference, old values, rewards, advantages, returns.

        The answers are saved with their rewards and their log-probabilities under the reference.
        """
        config, roles, rollouts = self.config, self.roles, scored.rollouts
        device = roles.policy.backbone.device
        tokens = tokens_of(rollouts, device)
        mask, critic = tokens.response_mask, roles.critic if self.method.critic else None
        states, group = self.drawing.states, self.drawing.group
        passes = run_passes(roles.policy, roles.reference, critic, tokens, rollouts, config, states, group=group)
        wins = wins_of(config, scored)
        scores = answer_scores(config, scored).to(device)
        if self.method.scores_wins and wins is not None:
            scores = wins.to(device) - 0.5
        rewards = self._token_rewards(scored, scores, passes, mask)
        advantages, returns = self._advantages(scored, rewards, passes, mask)
        batch = rollout_batch(
            tokens,
            sampled_logprobs=passes.sampled,
            old_logprobs=passes.old,
            reference_logprobs=passes.reference,
            scores=scores,
            rewards=rewards,
            values=passes.values if self.method.critic else None,
            advantages=advantages,
            returns=returns,
            importance=passes.importance,
            uncertain=passes.uncertain,
            wins=None if wins is None else wins.to(device),
        )
        self._save_answers(step, scored, passes.reference)
        step.clock.lap("infer")
        return batch

    def _token_rewards(self, scored: Scored, scores: TensorB, passes: Passes, mask: MaskBT) -> TensorBT:
        """−β·(log π_old − log π_ref) per token, plus the score at the last token and step rewards at their tokens."""
        beta = self.kl.value if kl_of(self.config).place == "reward" else 0.0
        rewards, answered = self._step_rewards(scored, mask), mask.any(dim=1)
        rewards[answered] += penalised_rewards(
            scores[answered], passes.old[answered], passes.reference[answered], mask[answered], beta=beta
        )
        return rewards

    def _advantages(
        self, scored: Scored, rewards: TensorBT, passes: Passes, mask: MaskBT
    ) -> tuple[TensorBT | None, TensorBT | None]:
        """Advantages, and the critic's targets if there is a critic; None for a method without them."""
        config, method = self.config, self.method
        advantages = returns = None
        if method.advantages is not None:
            earned = rewards
            if passes.last_values is not None:
                cut = ~ended_of(scored.rollouts).to(mask.device)
                earned = bootstrapped_rewards(rewards, passes.last_values, cut, mask, gamma=discount(config))
            advantages, returns = method.advantages(config, earned, passes.values, mask)
        if method.component_advantages is not None and bool(mask.any()):
            each, weights = (x.to(mask.device) for x in components(scored, self._weights()))
            advantages = method.component_advantages(config, each, weights, mask)
        return advantages, returns

    def _save_answers(self, step: Step, scored: Scored, reference: TensorBT) -> None:
        """Write the step's answers with their rewards and reference log-probabilities, and the opponents' answers."""
        folder = self.drawing.samples
        if folder is None:
            return
        write_records(folder / f"{step.name}.jsonl", with_reference(scored.rollouts, reference))
        if scored.opponents is not None:
            write_records(folder / f"{step.name}-opponent.jsonl", scored.opponents.rollouts)

    def _opponents_of(self, scored: Scored) -> RolloutBatch | None:
        """The opponents' answers as a batch if the update trains on them; then the reference itself drew them."""
        if scored.opponents is None or self.method.scores_wins:
            return None
        return opponent_batch(scored.opponents.rollouts, self.roles.policy.backbone.device)

    def _step_rewards(self, scored: Scored, mask: MaskBT) -> TensorBT:
        """Step rewards, each at the last token of its step."""
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

    def update(self, step: Step, batch: RolloutBatch, scored: Scored) -> Metrics:
        """Train on the batch and return all metrics of the step. Deletes the states that were saved for resuming it."""
        rows, ids = self._trained_rows(batch, scored)
        weight_version = self.learners["policy"].steps
        update = critic_update if self._warming(step) else self.method.update
        metrics = update(
            Update(
                learners=self.learners,
                batch=rows,
                ids=ids,
                config=self.config,
                seed=step.seed,
                beta=self.kl.value,
                states=self.drawing.states,
                reduction=self.method.reduction,
                surrogate=self.method.surrogate,
                opponents=self._opponents_of(scored),
                imitate=self.imitate,
                imitate_seed=self.drawing.seed,
            )
        )
        if self.drawing.samples is not None:
            remove_states(self.drawing.samples, f"{step.name}*")
        step.clock.lap("update")
        metrics |= describe(scored, batch, self.config, self.kl.value, self.price)
        if self.drawing.ahead is not None:
            metrics["policy_lag"] = float(weight_version - scored.rollouts[0].weight_version)
        if self.monitor is not None:
            metrics |= self.monitor(step.number + 1, scored.rollouts)
        return metrics

    def _trained_rows(self, batch: RolloutBatch, scored: Scored) -> tuple[RolloutBatch, list[str]]:
        """The answers that the update trains on, and their ids; cut answers and flat groups are left out if so set.

        If every group is flat, the batch stays whole, because an update needs rows, and there are no ids.
        """
        rows, ids = batch, [r.id for r in scored.rollouts]
        if leaves_out_cut(self.config):
            ended = ended_of(scored.rollouts).to(batch.tokens.device)
            rows = replace(batch, response_mask=batch.response_mask & ended[:, None])
        if self.method.skips_flat_groups:
            size = self.config.group
            has_spread = group_has_spread(batch.scores.view(-1, size), batch.answered.view(-1, size))
            places = has_spread.repeat_interleave(size).nonzero().squeeze(1)
            ids = [ids[i] for i in places.tolist()]
            if 0 < len(places) < batch.size:
                rows = rows.rows(places)
        return rows, ids

    def _warming(self, step: Step) -> bool:
        """True: the step trains only the critic."""
        return step.number < critic_warmup(self.config)

    # 5. ----------------------------------------------------------------------------------

    def adapt(self, step: Step, metrics: Metrics) -> None:
        """Adapt β to the KL target and the price to the cost limit, and move the reference towards the policy.

        Nothing is adapted while the critic warms up: the policy does not train, so its KL and cost cannot respond.
        """
        if self._warming(step):
            return
        limit = constraint_of(self.config)
        if limit is not None and self.price is not None and f"reward/{limit.reward}" in metrics:
            self.price.update(metrics[f"reward/{limit.reward}"])
        if kl_of(self.config).target is not None:
            self.kl.update(metrics["kl"], self.config.prompts * self.config.group)
        moves = self.config.reference_update
        if moves is not None and moves.due(step.number + 1):
            for reference in self.untrained.values():
                reference.update(moves.alpha)

    def finish_next(self, step: Step) -> None:
        """Wait for the next step's answers if they are drawn while this step trains."""
        self.drawing.finish_next(step)
        if self.drawing.ahead is not None:
            step.clock.lap("wait")


# Other parts ------------------------------------------------------------------------------


def _with_moving_reference(roles: RlRoles, config: RlConfig) -> tuple[RlRoles, dict[str, MovingWeights]]:
    """The roles, and the weights that change without an optimiser: those of a reference that follows the policy."""
    moving = moving_reference(roles.reference, roles.policy, config.reference_update)
    return (roles, {}) if moving is None else (replace(roles, reference=moving), {"reference": moving})


def _ending(run: _Run, session: Session) -> Ending:
    """Checkpoints, collapse check and choice of weights for this run."""
    config, limit = run.config, constraint_of(run.config)
    adaptive = {"kl": run.kl, "scale": run.scale, "price": run.price, "ahead": run.drawing.ahead}
    return Ending(
        config=config,
        checkpoints=session.checkpoints,
        learners=run.learners,
        untrained=run.untrained,
        adaptive={name: part for name, part in adaptive.items() if part is not None},
        guard=Guard(
            config.guard,
            answers=config.prompts * config.group,
            penalised=config.missing_eos is not None,
            cost=None if limit is None else limit.reward,
        ),
        selection=Selection(
            config.select, patience=config.patience, budget=config.kl.budget, still=critic_warmup(config)
        ),
    )


def _opponent(roles: RlRoles, config: RlConfig) -> Opponent | None:
    """The mixture that the method names; None for a method without an opponent."""
    share = ONLINE[config.method].opponent
    if share is None:
        return None
    return MixtureOpponent(roles.policy, roles.reference, config.sampler, share=share(config))


def _adaptive_kl(config: RlConfig) -> AdaptiveKL:
    """The KL coefficient β; constant without a target."""
    kl = kl_of(config)
    return AdaptiveKL(kl.coefficient, kl.target or 1.0, kl.horizon)


def _price(config: RlConfig) -> DualAscent | None:
    """The price of a cost with a limit; None without a limit."""
    limit = constraint_of(config)
    if limit is None:
        return None
    return DualAscent(limit.initial, limit=limit.limit, lr=limit.lr, largest=limit.largest)


def _learners(roles: RlRoles, config: RlConfig, group: Group) -> dict[str, Learner]:
    """A learner for the policy and, if the method has a critic, one for the critic."""
    if group.shards:
        roles.reference.shard()
    updates = config.steps * config.epochs * config.minibatches
    warming = critic_warmup(config) * config.epochs * config.minibatches
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
