"""The table of alignment methods: everything that makes one method differ from another is in its row.

**How to add a method.** Two source files:

1. ``rl_config.py`` (``offline_config.py`` if it learns from judged answers): a configuration class with the method's
   name in ``method`` and its own settings, and a place in the union of methods. This makes it part of recipes, of the
   reference pages and of the checks of every setting.
2. This file: a row. For an online method: how advantages come from rewards, how token losses are reduced, and the
   update (:func:`~trimtab.trainers.rl_update.clipped_update` unless the loss is another one). For an offline method:
   the loss of a pair. For both: the label on the page and the objective as ``trimtab plan`` prints it.

A formula that no other method has goes into :mod:`trimtab.algos` as a pure function, with its equation, source and a
test against values from elsewhere. Nothing else needs to know the method: the trainers, the plan, the report and the
checks of step rewards, soft labels and reference log-probabilities read the row. Then add the method to
``docs/how-to/choose-a-method.md``, to ``docs/explanation/methods-and-papers.md`` and to the learning tests
(``tests/learning``), which every method must pass.

Legend: B answers, T tokens, P pairs. Consecutive ``config.group`` rows of ``[B, T]`` answer the same prompt.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from trimtab.algos import (
    cpo_loss,
    dpo_loss,
    gae,
    group_advantage,
    hinge_loss,
    ipo_loss,
    masked_mean,
    orpo_loss,
    reduce_sum,
    reinforce_pp_advantage,
    reinforce_pp_baseline_advantage,
    rloo_advantage,
    simpo_loss,
    whiten,
)
from trimtab.algos.masking import masked
from trimtab.algos.shapes import MaskBT, MaskGK, TensorBT, TensorGK
from trimtab.trainers import offline_config as offline
from trimtab.trainers import rl_config as online
from trimtab.trainers.learner import Metrics, Norms
from trimtab.trainers.pairs import Pairs
from trimtab.trainers.rl_update import Update, clipped_update, online_dpo_update, rejection_update

Advantages = Callable[[Any, TensorBT, TensorBT, MaskBT], tuple[TensorBT, TensorBT | None]]
"""(config, rewards ``[B, T]``, the critic's values ``[B, T]`` or zeros, response mask ``[B, T]``) → advantages ``[B,
T]`` and, for a method with a critic, returns ``[B, T]``."""


@dataclass(frozen=True, kw_only=True)
class OnlineMethod:
    """A method that samples answers, scores them and makes the better ones likelier."""

    config: type[online.OnlineConfig]
    """Its settings."""
    label: str
    """Its name for readers."""
    objective: Callable[[Any], str]
    """(config) → what it maximises or minimises, with the settings filled in."""
    update: Callable[[Update[Any]], Metrics]
    """What a rollout batch does to the policy."""
    advantages: Advantages | None = None
    """How much better each token was than expected; None: the update uses scores only."""
    reduction: Callable[[Any, TensorBT, MaskBT, Norms], Tensor] | None = None
    """(config, token losses ``[B, T]``, response mask ``[B, T]``, sizes of the optimiser step) → the micro-batch's
    share of the step's loss; None: the update reduces its own loss."""
    critic: bool = False
    """True: it trains a critic."""
    step_rewards: bool = False
    """True: a reward counts only for the tokens before it, so rewards can be placed at the steps of an answer."""
    skips_flat_groups: bool = False
    """True: groups whose answers all have the same score are left out of the update."""


@dataclass(frozen=True, kw_only=True)
class OfflineMethod:
    """A method that learns from judged answers without sampling."""

    config: type[offline.OfflineConfig]
    """Its settings."""
    label: str
    """Its name for readers."""
    objective: Callable[[Any], str]
    """(config) → what it minimises, with the settings filled in."""
    loss: Callable[[Any, Pairs], Tensor] | None = None
    """(config, pairs) → ``[P]``; None: it learns from single answers."""
    reference: bool = True
    """True: it compares with the log-probabilities of a reference model."""
    soft_labels: bool = False
    """True: its formula has a term for P(first answer is better)."""
    per_token_gap: Callable[[Any], bool] = lambda config: False
    """(config) → True: it compares log-probabilities averaged over the tokens of an answer."""


# Advantages -------------------------------------------------------------------------------


def _per_answer(advantage: Callable[[Any, TensorGK, MaskGK], TensorGK]) -> Advantages:
    """One advantage for all tokens of an answer, from the group's total rewards and which answers have a token."""

    def advantages(config: Any, rewards: TensorBT, values: TensorBT, mask: MaskBT) -> tuple[TensorBT, None]:
        totals, answered = rewards.sum(dim=1).view(-1, config.group), mask.any(dim=1).view(-1, config.group)
        return masked(advantage(config, totals, answered).reshape(-1, 1).expand_as(rewards), mask), None

    return advantages


def _ppo(config: online.PpoConfig, rewards: TensorBT, values: TensorBT, mask: MaskBT) -> tuple[TensorBT, TensorBT]:
    advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
    return (whiten(advantages, mask) if config.whiten_advantages else advantages), returns


def _reinforce_pp(
    config: online.ReinforcePpConfig, rewards: TensorBT, values: TensorBT, mask: MaskBT
) -> tuple[TensorBT, None]:
    return reinforce_pp_advantage(rewards, mask, gamma=config.gamma), None


def _reinforce_pp_baseline(
    config: online.ReinforcePpBaselineConfig, rewards: TensorBT, values: TensorBT, mask: MaskBT
) -> tuple[TensorBT, None]:
    return reinforce_pp_baseline_advantage(rewards, mask, group=config.group, gamma=config.gamma), None


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


def _penalised(gain: Callable[[Any], str]) -> Callable[[Any], str]:
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


def _whitened_gain(config: Any) -> str:
    """A penalty in the reward is divided by σ as well, so only one in the loss stands beside a divided reward."""
    whitened = not isinstance(config, online.PpoConfig) or config.whiten_advantages
    return "E[reward]/σ of the batch" if whitened and config.kl.place == "loss" else "E[reward]"


def _text(template: str) -> Callable[[Any], str]:
    return lambda config: template.format(**config.model_dump())


# The table --------------------------------------------------------------------------------

_clipped = partial(OnlineMethod, update=clipped_update)
_standardised = _per_answer(lambda config, totals, answered: group_advantage(totals, answered, std=config.std))

_ROWS: tuple[OnlineMethod | OfflineMethod, ...] = (
    _clipped(
        config=online.PpoConfig,
        label="PPO",
        objective=_penalised(_whitened_gain),
        advantages=_ppo,
        reduction=token_mean,
        critic=True,
        step_rewards=True,
    ),
    _clipped(
        config=online.RlooConfig,
        label="RLOO",
        objective=_penalised(lambda config: "E[reward]"),
        advantages=_per_answer(lambda config, totals, answered: rloo_advantage(totals, answered)),
        reduction=answer_sum,
    ),
    _clipped(
        config=online.GrpoConfig,
        label="GRPO",
        objective=_penalised(lambda config: "E[(reward − group mean)/group σ, mean over each answer's tokens]"),
        advantages=_standardised,
        reduction=answer_mean,
    ),
    _clipped(
        config=online.DrGrpoConfig,
        label="Dr. GRPO",
        objective=_penalised(lambda config: f"{1 - 1 / config.group:.3g}·E[reward]"),
        advantages=_per_answer(lambda config, totals, answered: group_advantage(totals, answered, std="none")),
        reduction=constant_length,
    ),
    _clipped(
        config=online.DapoConfig,
        label="DAPO",
        objective=_penalised(lambda config: "E[(reward − group mean)/group σ, mean over all tokens]"),
        advantages=_standardised,
        reduction=token_mean,
        skips_flat_groups=True,
    ),
    _clipped(
        config=online.ReinforcePpConfig,
        label="REINFORCE++",
        objective=_penalised(_whitened_gain),
        advantages=_reinforce_pp,
        reduction=token_mean,
        step_rewards=True,
    ),
    _clipped(
        config=online.ReinforcePpBaselineConfig,
        label="REINFORCE++ with baseline",
        objective=_penalised(lambda config: "E[(reward − group mean)/σ of the batch]"),
        advantages=_reinforce_pp_baseline,
        reduction=token_mean,
        step_rewards=True,
    ),
    OnlineMethod(
        config=online.OnlineDpoConfig,
        label="Online DPO",
        objective=_text("min −log σ({beta:g}·h) on the best and the worst of {group} sampled answers"),
        update=online_dpo_update,
    ),
    OnlineMethod(
        config=online.RejectionConfig,
        label="Rejection sampling",
        objective=_text("max log π(the best {keep} of {group} sampled answers), at temperature 1"),
        update=rejection_update,
    ),
    OfflineMethod(
        config=offline.DpoConfig,
        label="DPO",
        objective=_text("min −log σ(β·h), h = gap of log(π/ref), β = {beta:g}, ε = {label_smoothing:g} ({smoothing})"),
        loss=lambda config, pairs: dpo_loss(
            *pairs.logprobs,
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            smoothing=config.smoothing,
            probability=None if pairs.certain else pairs.probability,
        ),
        soft_labels=True,
    ),
    OfflineMethod(
        config=offline.IpoConfig,
        label="IPO",
        objective=lambda config: (
            f"min (h − 1/(2τ))², h = gap of log(π/ref){' per token' if config.normalise else ''}, τ = {config.tau:g}"
        ),
        loss=lambda config, pairs: ipo_loss(
            *pairs.logprobs,
            tau=config.tau,
            **(pairs.lengths if config.normalise else {}),
            probability=pairs.probability,
        ),
        soft_labels=True,
        per_token_gap=lambda config: config.normalise,
    ),
    OfflineMethod(
        config=offline.HingeConfig,
        label="Hinge",
        objective=_text("min max(0, 1 − β·h), h = gap of log(π/ref), β = {beta:g}"),
        loss=lambda config, pairs: hinge_loss(*pairs.logprobs, beta=config.beta),
    ),
    OfflineMethod(
        config=offline.OrpoConfig,
        label="ORPO",
        objective=_text("min NLL of the better − λ·log σ(log-odds gap), λ = {lam:g}"),
        loss=lambda config, pairs: orpo_loss(pairs.chosen, pairs.rejected, **pairs.lengths, lam=config.lam),
        reference=False,
        per_token_gap=lambda config: True,
    ),
    OfflineMethod(
        config=offline.SimpoConfig,
        label="SimPO",
        objective=_text("min −log σ(β·gap of log π per token − γ), β = {beta:g}, γ = {gamma:g}"),
        loss=lambda config, pairs: simpo_loss(
            pairs.chosen, pairs.rejected, **pairs.lengths, beta=config.beta, gamma=config.gamma
        ),
        reference=False,
        per_token_gap=lambda config: True,
    ),
    OfflineMethod(
        config=offline.CpoConfig,
        label="CPO",
        objective=_text("min −log σ(β·gap of log π) + α·NLL of the better ({nll}), β = {beta:g}, α = {alpha:g}"),
        loss=lambda config, pairs: cpo_loss(
            pairs.chosen,
            pairs.rejected,
            beta=config.beta,
            alpha=config.alpha,
            mean_length=pairs.mean_chosen_length if config.nll == "mean" else None,
        ),
        reference=False,
    ),
    OfflineMethod(
        config=offline.KtoConfig,
        label="KTO",
        objective=_text(
            "min λ_D(1 − σ(β(r − z))) if liked, λ_U(1 − σ(β(z − r))) if not; β = {beta:g}, "
            "λ_D = {weight_desirable:g}, λ_U = {weight_undesirable:g}"
        ),
    ),
)


def _by_name(kind: type) -> Mapping[str, Any]:
    return {row.config.model_fields["method"].default: row for row in _ROWS if isinstance(row, kind)}


ONLINE: Mapping[str, OnlineMethod] = _by_name(OnlineMethod)
"""Online methods by name."""

OFFLINE: Mapping[str, OfflineMethod] = _by_name(OfflineMethod)
"""Offline methods by name."""

METHODS: Mapping[str, OnlineMethod | OfflineMethod] = {**ONLINE, **OFFLINE}
"""All methods by name, in the order of the table."""


def methods_with(**properties: bool) -> list[str]:
    """Names of the methods whose rows have these values, for messages: ``methods_with(step_rewards=True)``."""
    return [
        name
        for name, row in METHODS.items()
        if all(getattr(row, key, None) == value for key, value in properties.items())
    ]
