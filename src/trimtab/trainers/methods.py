"""The table of alignment methods: everything specific to a method is in its row.

**How to add a method.** Two source files:

1. ``rl_config.py``, or ``offline_config.py`` if the method learns from judged answers: a configuration class with the
   method's name in ``method`` and its own settings, added to the union of methods. Recipes, the reference pages and the
   checks of settings then include it.
2. This file: a row. For an online method it names the advantages, the reduction of token losses, the surrogate if it is
   not PPO's, and the update (:func:`~trimtab.trainers.rl_update.clipped_update` unless the loss is a different one).
   For an offline method it names the loss of a pair or of a ranking. For both: the label, the known weakness, and the
   objective as ``trimtab plan`` prints it.

A new formula goes into :mod:`trimtab.algos` as a pure function, with its equation, source and a test against values
from elsewhere. Nothing else needs to know the method: the trainers, the plan, the report and the checks of step
rewards, soft labels and reference log-probabilities read the row. Then add the method to
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
    apo_down_loss,
    apo_zero_loss,
    bco_loss,
    cpo_loss,
    dpo_loss,
    exo_loss,
    group_advantage,
    hinge_loss,
    ipo_loss,
    nca_loss,
    orpo_loss,
    plackett_luce_loss,
    rloo_advantage,
    simpo_loss,
    sppo_loss,
)
from trimtab.algos.shapes import MaskBT, MaskNK, TensorBR, TensorBT, TensorNK, TensorR
from trimtab.trainers import offline_config as offline
from trimtab.trainers import rl_config as online
from trimtab.trainers.learner import Metrics, Norms
from trimtab.trainers.method_parts import (
    Advantages,
    answer_mean,
    answer_sum,
    centred_gain,
    centred_whitened_gain,
    cispo_surrogate,
    constant_length,
    gdpo_advantages,
    gspo_surrogate,
    penalised,
    per_answer,
    ppo_advantages,
    reinforce_pp_advantages,
    reinforce_pp_baseline_advantages,
    text,
    token_mean,
    whitened_gain,
)
from trimtab.trainers.pairs import Pairs
from trimtab.trainers.rl_update import (
    Surrogate,
    Update,
    clipped_surrogate,
    clipped_update,
    online_dpo_update,
    rejection_update,
)
from trimtab.trainers.xpo import xpo_update


@dataclass(frozen=True, kw_only=True)
class OnlineMethod:
    """A method that samples answers, scores them and makes the better ones likelier."""

    config: type[online.OnlineConfig]
    """Its settings."""
    label: str
    """Its name for readers."""
    flaw: str
    """What it is known to do wrong."""
    start: bool = False
    """True: one to begin with, for its kind of data."""
    objective: Callable[[Any], str]
    """(config) → what it maximises or minimises, with the settings filled in."""
    update: Callable[[Update[Any]], Metrics]
    """(rollout batch with what the update needs) → metrics; updates the policy."""
    advantages: Advantages | None = None
    """How much better each token was than expected; None: the update uses scores only."""
    component_advantages: Callable[[Any, TensorBR, TensorR, MaskBT], TensorBT] | None = None
    """(config, each named reward ``[B, R]``, their weights ``[R]``, response mask ``[B, T]``) → advantages ``[B, T]``,
    instead of ``advantages``; None: the method uses only the weighted sum."""
    reduction: Callable[[Any, TensorBT, MaskBT, Norms], Tensor] | None = None
    """(config, token losses ``[B, T]``, response mask ``[B, T]``, sizes of the optimiser step) → the micro-batch's
    share of the step's loss; None: the update reduces its own loss."""
    surrogate: Surrogate = clipped_surrogate
    """What :func:`~trimtab.trainers.rl_update.clipped_update` minimises at each token: PPO's clipped ratio, or another
    loss of the ratio."""
    critic: bool = False
    """True: the method trains a critic."""
    step_rewards: bool = False
    """True: a reward counts only for the tokens before it, so rewards can be placed at the steps of an answer."""
    opponent: Callable[[Any], float] | None = None
    """(config) → the reference's share in the mixture that draws the opponent's answers, one for each answer of the
    policy; 1: the reference itself. None: there is no opponent."""
    scores_wins: bool = False
    """True: the score of an answer is P(it beats its opponent's) − ½."""
    skips_flat_groups: bool = False
    """True: groups whose answers all have the same score are left out of the update."""

    @property
    def several_rewards(self) -> bool:
        """True: the method uses each named reward, not only their weighted sum."""
        return self.component_advantages is not None


@dataclass(frozen=True, kw_only=True)
class OfflineMethod:
    """A method that learns from judged answers without sampling."""

    config: type[offline.OfflineConfig]
    """Its settings."""
    label: str
    """Its name for readers."""
    flaw: str
    """What it is known to do wrong."""
    start: bool = False
    """True: one to begin with, for its kind of data."""
    objective: Callable[[Any], str]
    """(config) → what it minimises, with the settings filled in."""
    loss: Callable[[Any, Pairs], Tensor] | None = None
    """(config, pairs) → ``[P]``; None: it learns from single answers, or from whole rankings."""
    ranking_loss: Callable[[Any, TensorNK, MaskNK, TensorNK], Tensor] | None = None
    """(config, log π/ref ``[N, K]``, mask ``[N, K]`` of places with an answer, ranks ``[N, K]``) → ``[N]``; None: it
    learns from pairs, or from single answers."""
    mean_ratio: Callable[[Any], bool] = lambda config: False
    """(config) → True: its loss needs :attr:`~trimtab.trainers.pairs.Pairs.mean_ratio`, which takes an additional pass
    in each step."""
    reference: bool = True
    """True: it compares with the log-probabilities of a reference model."""
    soft_labels: bool = False
    """True: its formula has a term for P(first answer is better)."""
    per_token_gap: Callable[[Any], bool] = lambda config: False
    """(config) → True: it compares log-probabilities averaged over the tokens of an answer."""

    @property
    def listwise(self) -> bool:
        """True: it learns from whole rankings."""
        return self.ranking_loss is not None


# The table --------------------------------------------------------------------------------


def _dpo(config: offline.DpoConfig, pairs: Pairs) -> Tensor:
    """DPO, on sums or per token, with or without the likelihood of the better answer."""
    losses = dpo_loss(
        *pairs.logprobs,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        smoothing=config.smoothing,
        probability=None if pairs.certain else pairs.probability,
        **(pairs.lengths if config.normalise else {}),
    )
    return losses + config.nll * pairs.nll if config.nll else losses


def _dpo_objective(config: offline.DpoConfig) -> str:
    likelihood = f" + {config.nll:g}·NLL of the better per token" if config.nll else ""
    return (
        f"min −log σ(β·h){likelihood}, h = gap of log(π/ref){' per token' if config.normalise else ''}, "
        f"β = {config.beta:g}, ε = {config.label_smoothing:g} ({config.smoothing})"
    )


_clipped = partial(OnlineMethod, update=clipped_update)
_standardised = per_answer(lambda config, totals, answered: group_advantage(totals, answered, std=config.std))

_ROWS: tuple[OnlineMethod | OfflineMethod, ...] = (
    _clipped(
        config=online.PpoConfig,
        label="PPO",
        flaw="the critic is a second model to train; while it is wrong, advantages are mostly noise",
        start=True,
        objective=penalised(whitened_gain),
        advantages=ppo_advantages,
        reduction=token_mean,
        critic=True,
        step_rewards=True,
    ),
    _clipped(
        config=online.RlooConfig,
        label="RLOO",
        flaw="one advantage for all tokens of an answer, so long answers learn slowly",
        start=True,
        objective=penalised(lambda config: "E[reward]"),
        advantages=per_answer(lambda config, totals, answered: rloo_advantage(totals, answered)),
        reduction=answer_sum,
    ),
    _clipped(
        config=online.GrpoConfig,
        label="GRPO",
        flaw="the deviation turns the gradient: prompts with little spread weigh as much as others; short "
        "answers weigh more per token",
        objective=penalised(lambda config: "E[(reward − group mean)/group σ, mean over each answer's tokens]"),
        advantages=_standardised,
        reduction=answer_mean,
    ),
    _clipped(
        config=online.DrGrpoConfig,
        label="Dr. GRPO",
        flaw="the step is (k − 1)/k of the gradient, and its size depends on max_new_tokens",
        objective=penalised(centred_gain),
        advantages=per_answer(lambda config, totals, answered: group_advantage(totals, answered, std="none")),
        reduction=constant_length,
    ),
    _clipped(
        config=online.DapoConfig,
        label="DAPO",
        flaw="as GRPO; flat groups cost up to several times the sampling",
        objective=penalised(lambda config: "E[(reward − group mean)/group σ, mean over all tokens]"),
        advantages=_standardised,
        reduction=token_mean,
        skips_flat_groups=True,
    ),
    _clipped(
        config=online.GspoConfig,
        label="GSPO",
        flaw="as GRPO; one token cannot be credited or clipped by itself",
        objective=penalised(lambda config: "E[(reward − group mean)/group σ], ratio of whole answers"),
        advantages=_standardised,
        surrogate=gspo_surrogate,
        reduction=answer_mean,
    ),
    _clipped(
        config=online.CispoConfig,
        label="CISPO",
        flaw="as GRPO; without a lower clip, nothing stops an update that moves far: set kl.stop",
        objective=penalised(lambda config: "E[(reward − group mean)/group σ, mean over all tokens], weights clipped"),
        advantages=_standardised,
        surrogate=cispo_surrogate,
        reduction=token_mean,
    ),
    _clipped(
        config=online.GdpoConfig,
        label="GDPO",
        flaw="as GRPO for each reward; weights are between deviations, not between units",
        objective=penalised(lambda config: "E[Σ weight·(reward − group mean)/group σ of each reward]/σ of the batch"),
        component_advantages=gdpo_advantages,
        reduction=answer_mean,
    ),
    _clipped(
        config=online.ReinforcePpConfig,
        label="REINFORCE++",
        flaw="the baseline is the mean of all prompts, so easy prompts look good and hard ones bad",
        objective=penalised(whitened_gain),
        advantages=reinforce_pp_advantages,
        reduction=token_mean,
        step_rewards=True,
    ),
    _clipped(
        config=online.ReinforcePpBaselineConfig,
        label="REINFORCE++ with baseline",
        flaw="prompts with little spread hardly count",
        objective=penalised(centred_whitened_gain),
        advantages=reinforce_pp_baseline_advantages,
        reduction=token_mean,
        step_rewards=True,
    ),
    OnlineMethod(
        config=online.OnlineDpoConfig,
        label="Online DPO",
        flaw="learns from the best and the worst answer only; how much better is lost",
        objective=text("min −log σ({beta:g}·h) on the best and the worst of {group} sampled answers"),
        update=online_dpo_update,
    ),
    _clipped(
        config=online.NashMdConfig,
        label="Nash-MD",
        flaw="samples twice as much; with a mixture above 0 its end is near the Nash equilibrium, not at it",
        objective=penalised(
            lambda config: f"E[P(π's answer beats one of π^{1 - config.mixture:g}·ref^{config.mixture:g}) − ½]"
        ),
        advantages=per_answer(lambda config, totals, answered: totals),
        reduction=answer_sum,
        opponent=lambda config: config.mixture,
        scores_wins=True,
    ),
    OnlineMethod(
        config=online.XpoConfig,
        label="XPO",
        flaw="half of what is sampled is the reference's; a large α lowers good answers too",
        objective=text(
            "min −p·log σ({beta:g}·h) − (1 − p)·log σ(−{beta:g}·h) + {alpha:g}·log π(reference's answer), h = gap of "
            "log(π/ref) to the reference's answer, p = P(beating it)"
        ),
        update=xpo_update,
        opponent=lambda config: 1.0,
    ),
    OnlineMethod(
        config=online.RejectionConfig,
        label="Rejection sampling",
        flaw="slow, and no KL penalty: only what is sampled often enough can be learned",
        objective=text("max log π(the best {keep} of {group} sampled answers), at temperature 1"),
        update=rejection_update,
    ),
    OfflineMethod(
        config=offline.DpoConfig,
        label="DPO",
        flaw="pushes certain labels without end, and can make the better answer less likely too",
        start=True,
        objective=_dpo_objective,
        loss=_dpo,
        soft_labels=True,
        per_token_gap=lambda config: config.normalise,
    ),
    OfflineMethod(
        config=offline.IpoConfig,
        label="IPO",
        flaw="τ must fit the length of answers unless normalise is set",
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
        flaw="pairs beyond the margin teach nothing",
        objective=text("min max(0, 1 − β·h), h = gap of log(π/ref), β = {beta:g}"),
        loss=lambda config, pairs: hinge_loss(*pairs.logprobs, beta=config.beta),
    ),
    OfflineMethod(
        config=offline.OrpoConfig,
        label="ORPO",
        flaw="no reference: nothing holds the policy near its start",
        objective=text("min NLL of the better − λ·log σ(log-odds gap), λ = {lam:g}"),
        loss=lambda config, pairs: orpo_loss(pairs.chosen, pairs.rejected, **pairs.lengths, lam=config.lam),
        reference=False,
        per_token_gap=lambda config: True,
    ),
    OfflineMethod(
        config=offline.SimpoConfig,
        label="SimPO",
        flaw="no reference; β and γ must be tuned, and the model may drift far",
        objective=text("min −log σ(β·gap of log π per token − γ), β = {beta:g}, γ = {gamma:g}"),
        loss=lambda config, pairs: simpo_loss(
            pairs.chosen, pairs.rejected, **pairs.lengths, beta=config.beta, gamma=config.gamma
        ),
        reference=False,
        per_token_gap=lambda config: True,
    ),
    OfflineMethod(
        config=offline.CpoConfig,
        label="CPO",
        flaw="no reference; the likelihood term is all that holds it",
        objective=text("min −log σ(β·gap of log π) + α·NLL of the better ({nll}), β = {beta:g}, α = {alpha:g}"),
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
        config=offline.PlackettLuceConfig,
        label="Plackett–Luce",
        flaw="takes the order of the bad answers to be as certain as that of the good ones",
        objective=text("min −log P(ranking) under rewards β·log(π/ref), β = {beta:g}"),
        ranking_loss=lambda config, ratios, mask, ranks: plackett_luce_loss(config.beta * ratios, mask, ranks=ranks),
    ),
    OfflineMethod(
        config=offline.ApoZeroConfig,
        label="APO-zero",
        flaw="drives probabilities to 0 and 1; wrong if the model is already better than the chosen answers",
        objective=text("min 1 − σ(r_w) + σ(r_l), r = {beta:g}·log(π/ref)"),
        loss=lambda config, pairs: apo_zero_loss(*pairs.logprobs, beta=config.beta),
    ),
    OfflineMethod(
        config=offline.ApoDownConfig,
        label="APO-down",
        flaw="lowers every answer of the data, so probability goes to answers that were not judged",
        objective=text("min σ(r_w) + 1 − σ(r_w − r_l), r = {beta:g}·log(π/ref)"),
        loss=lambda config, pairs: apo_down_loss(*pairs.logprobs, beta=config.beta),
    ),
    OfflineMethod(
        config=offline.BcoConfig,
        label="BCO",
        flaw="two passes of the policy a step; δ is noisy in small steps",
        objective=text("min −log σ(r_w − δ) − log σ(δ − r_l), r = {beta:g}·log(π/ref), δ = mean of r over the step"),
        loss=lambda config, pairs: bco_loss(*pairs.logprobs, pairs.mean_ratio, beta=config.beta),
        mean_ratio=lambda config: True,
    ),
    OfflineMethod(
        config=offline.SppoConfig,
        label="SPPO",
        flaw="ignores the normaliser of its target, so its end is not a known policy",
        objective=text("min (log π_w/ref − (p − ½)/β)² + (log π_l/ref + (p − ½)/β)², p = P(w beats l), β = {beta:g}"),
        loss=lambda config, pairs: sppo_loss(
            *pairs.logprobs, beta=config.beta, probability=None if pairs.certain else pairs.probability
        ),
        soft_labels=True,
    ),
    OfflineMethod(
        config=offline.ExoConfig,
        label="EXO",
        flaw="gradient vanishes where the policy is sure of the wrong answer",
        objective=text("min KL((q, 1 − q)‖(1 − ε, ε)), q = σ(β·h), h = gap of log(π/ref), β = {beta:g}, ε = {eps:g}"),
        loss=lambda config, pairs: exo_loss(*pairs.logprobs, beta=config.beta, eps=config.eps),
    ),
    OfflineMethod(
        config=offline.NcaConfig,
        label="NCA",
        flaw="bounded: at β = 1 no answer ends above twice its reference probability",
        objective=text("min −log σ(r_w) − ½·log σ(−r_w) − ½·log σ(−r_l), r = {beta:g}·log(π/ref)"),
        loss=lambda config, pairs: nca_loss(*pairs.logprobs, beta=config.beta),
    ),
    OfflineMethod(
        config=offline.KtoConfig,
        label="KTO",
        flaw="needs both kinds in a batch; weaker than pairs where pairs exist",
        start=True,
        objective=text(
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
    """Names of the methods whose rows have these values, as in ``methods_with(step_rewards=True)``; for messages."""
    return [
        name
        for name, row in METHODS.items()
        if all(getattr(row, key, None) == value for key, value in properties.items())
    ]
