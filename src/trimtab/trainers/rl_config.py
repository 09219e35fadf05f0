"""Settings of the online methods: what they share, and the few that each one has of its own.

What a method does with them is in the table of :mod:`trimtab.trainers.methods`.
"""

from typing import Annotated, Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.errors import ConfigError
from trimtab.models import AdapterConfig
from trimtab.rollout import SamplerConfig
from trimtab.trainers.guard import GuardConfig
from trimtab.trainers.learner import OptimizerConfig


class StepKLConfig(Config):
    """Limit on how far one rollout batch moves the policy."""

    stop: float | None = Field(default=None, gt=0.0)
    """Limit on KL(π_old‖π), the divergence from the policy that drew the answers, in nats per token (k3). It is
    measured on each minibatch before its update; above the limit the remaining updates of this rollout batch are
    skipped, the critic's too. Usual: 0.01 to 0.1. Other libraries call it ``target_kl`` and stop at 1.5 times the
    value. None: every update is made."""


class KLConfig(StepKLConfig):
    """Penalty for diverging from the reference, and the limit on how far one rollout batch moves the policy."""

    coefficient: float = Field(default=0.05, ge=0.0)
    """β: price of a nat of KL; with ``target`` its first value. With ``place: reward`` it is in reward units. In the
    loss it stands beside the advantages and is in their units: reward units for ``rloo`` and ``dr_grpo``; standard
    deviations where advantages are divided by one, of the group (``grpo``, ``dapo``) or of the batch
    (``reinforce_pp``, ``reinforce_pp_baseline``, ``ppo`` with ``whiten_advantages``). There, rewards ten times as large
    leave its effect as it was."""
    target: float | None = Field(default=None, gt=0.0)
    """KL per sequence, in nats, that β is adapted to; None: β stays fixed."""
    horizon: float = Field(default=10_000, gt=0.0)
    """With ``target``: how many sequences a full correction of β takes."""
    place: Literal["reward", "loss"] = "reward"
    """``reward``: −β·k1 is part of each token's reward; ``loss``: β times the estimator is added to the loss. In the
    reward it is refused where advantages are divided by the group's standard deviation (``grpo``, ``dapo``)."""
    estimator: Literal["sequence", "k1", "k2", "k3"] | None = None
    """Estimator in the loss; None: ``sequence``, whose gradient is that of KL(π‖ref) of whole answers, also after
    several updates from the same answers. The others look at one token at a time and leave out how a token changes the
    KL of those that follow, so the policy can choose a token whose continuation diverges far, at no cost: ``k2`` has
    the gradient of each token's KL(π‖ref) in a state taken as given, ``k3`` (GRPO's paper) that of KL(ref‖π), limited
    to 10 nats per token, ``k1`` none at all."""


class MissingEosConfig(Config):
    """Penalty for answers that were cut before they ended their turn."""

    value: float = -1.0
    """The penalty, in reward units."""
    mode: Literal["replace", "subtract"] = "replace"
    """``replace``: the score becomes ``value`` unless it is lower; ``subtract``: |value| is subtracted from the score.
    Step rewards are not part of the score; both modes leave them unchanged."""


class PtxConfig(Config):
    """PPO-ptx: conversations that the policy imitates during alignment."""

    coefficient: float = Field(default=0.1, gt=0.0)
    """γ: weight of their log-likelihood in the policy's objective."""
    batch: int = Field(default=8, ge=1)
    """Conversations per optimiser step."""
    data: str | None = None
    """File or hub id; None: ``data.demonstrations``."""


class OnlineConfig(Config):
    """Settings of all online methods: sample answers, score them, make the better ones likelier."""

    adapter: AdapterConfig = AdapterConfig()
    """What is trained, in the policy and in the critic if there is one."""
    steps: int = Field(default=50, ge=1)
    """Rollout batches."""
    prompts: int = Field(default=32, ge=1)
    """Prompts per rollout batch."""
    group: int = Field(default=1, ge=1)
    """Answers per prompt."""
    sampler: SamplerConfig = SamplerConfig()
    """How answers are drawn; ``top_p`` must be 1, or the ratio would compare two distributions."""
    policy: OptimizerConfig = OptimizerConfig(schedule="constant")
    """The policy's optimiser."""
    epochs: int = Field(default=1, ge=1)
    """Passes over each rollout batch."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps per pass."""
    missing_eos: MissingEosConfig | None = MissingEosConfig()
    """Penalty for answers that were cut; None: none."""
    micro_batch_tokens: int = Field(default=512, ge=1)
    """Padded tokens of one forward and backward pass; changes memory and speed only."""
    guard: GuardConfig | None = GuardConfig()
    """When to end a run whose policy collapses; None: never."""


class PolicyGradientConfig(OnlineConfig):
    """Settings of the methods with a clipped ratio."""

    kl: KLConfig = KLConfig()
    """Penalty for diverging from the reference."""
    eps: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Clip range of the policy's ratio."""
    eps_high: float | None = Field(default=None, gt=0.0)
    """Upper clip range (clip-higher); None: ``eps``."""
    dual_clip: float | None = Field(default=None, gt=1.0)
    """c: for a negative advantage A, a token's loss is at most −c·A (3 is usual); None: no dual clip."""
    entropy_bonus: float = Field(default=0.0, ge=0.0)
    """Weight of the entropy, in nats, in the objective; in the units of the advantages, see ``kl.coefficient``."""
    importance_cap: float | None = Field(default=None, gt=0.0)
    """Weight each token by min(π_trainer/π_sampler, this value), after a pass that recomputes log-probabilities. For
    samplers whose kernels differ from the trainer's; the difference is logged as ``mismatch`` in any case. None: no
    weights."""
    score_clip: float | None = Field(default=None, gt=0.0)
    """Scores (weighted sums) are clipped to ± this value, and the share of clipped ones is logged; None: not clipped.
    In a recipe whose only reward is the reward model the default is 5."""
    ptx: PtxConfig | None = None
    """Add the log-likelihood of conversations to the objective (PPO-ptx); None: not added."""


class PpoConfig(PolicyGradientConfig):
    """Proximal policy optimisation with a critic."""

    method: Literal["ppo"] = "ppo"
    """The algorithm."""
    epochs: int = Field(default=2, ge=1)
    """Passes over each rollout batch."""
    critic: OptimizerConfig = OptimizerConfig(schedule="constant")
    """The critic's optimiser."""
    critic_init: Literal["zero", "reward_model"] = "zero"
    """``zero``: a zero head (on a new adapter, unless ``shared_critic``); ``reward_model``: head and adapter of the
    reward model, if it is on the same trunk."""
    shared_critic: bool = False
    """True: the critic is a linear head on the policy's hidden states, so that one forward and one backward pass serve
    both. False: it has an adapter (or a full copy) of its own."""
    value_coefficient: float = Field(default=0.1, ge=0.0)
    """With ``shared_critic``: share of the critic's gradient that reaches the policy's weights; 0: only the head is
    trained by it."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount per token."""
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    """GAE's λ."""
    value_eps: float = Field(default=0.2, gt=0.0)
    """Clip range of the critic's change, in reward units."""
    whiten_advantages: bool = True
    """Scale advantages to mean 0 and variance 1 over the whole batch."""


class RlooConfig(PolicyGradientConfig):
    """REINFORCE leave-one-out: the baseline is the mean of the other answers to the same prompt."""

    method: Literal["rloo"] = "rloo"
    """The algorithm."""
    group: int = Field(default=4, ge=2)
    """Answers per prompt."""


class GrpoConfig(PolicyGradientConfig):
    """Group-relative policy optimisation: advantages by group mean and deviation, each answer averaged over tokens."""

    method: Literal["grpo"] = "grpo"
    """The algorithm."""
    group: int = Field(default=8, ge=2)
    """Answers per prompt."""
    std: Literal["sample", "population"] = "sample"
    """Which standard deviation the advantages are divided by; the paper does not say."""
    kl: KLConfig = KLConfig(coefficient=0.04, place="loss")
    """Penalty for diverging from the reference. The paper adds k3 of each token to the loss, ``estimator: k3``."""


class DrGrpoConfig(PolicyGradientConfig):
    """Dr. GRPO: GRPO without the division by the group's deviation and by the answer's length."""

    method: Literal["dr_grpo"] = "dr_grpo"
    """The algorithm."""
    group: int = Field(default=8, ge=2)
    """Answers per prompt."""
    kl: KLConfig = KLConfig(coefficient=0.0, place="loss")
    """Penalty for diverging from the reference; the paper has none."""


class DapoConfig(PolicyGradientConfig):
    """DAPO: clip-higher, mean over all tokens, and groups whose answers all have the same score are replaced."""

    method: Literal["dapo"] = "dapo"
    """The algorithm."""
    group: int = Field(default=8, ge=2)
    """Answers per prompt."""
    missing_eos: MissingEosConfig | None = None
    """Penalty for answers that were cut, before ``overlong_buffer``'s is added; None: none, as in the paper."""
    eps_high: float | None = Field(default=0.28, gt=0.0)
    """Upper end of the clip range."""
    resample: int = Field(default=3, ge=0)
    """Dynamic sampling: how many times groups whose answers all have the same score are replaced by groups of other
    prompts; those that remain are left out of the loss. 0: none is replaced."""
    overlong_buffer: int | None = Field(default=None, ge=1)
    """Soft overlong punishment: over the last this many of ``max_new_tokens`` tokens, the score falls linearly by up to
    one unit, which an answer that was cut always pays; None: none."""
    std: Literal["sample", "population"] = "sample"
    """Which standard deviation the advantages are divided by."""
    kl: KLConfig = KLConfig(coefficient=0.0, place="loss")
    """Penalty for diverging from the reference; the paper has none."""


class ReinforcePpConfig(PolicyGradientConfig):
    """REINFORCE++: KL in each token's reward, returns normalised over the whole batch."""

    method: Literal["reinforce_pp"] = "reinforce_pp"
    """The algorithm."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount per token."""


class ReinforcePpBaselineConfig(PolicyGradientConfig):
    """REINFORCE++ with baseline: the group's mean is subtracted from the scores, then as REINFORCE++.

    As in the paper: group mean, then normalised over the batch, KL in the loss. The paper's estimator is k2 of each
    token, ``kl.estimator: k2``; the default is ``sequence``. Some libraries use this name for RLOO's leave-one-out mean
    or for a division by the group's deviation; those are other methods here.
    """

    method: Literal["reinforce_pp_baseline"] = "reinforce_pp_baseline"
    """The algorithm."""
    group: int = Field(default=4, ge=2)
    """Answers per prompt."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount per token."""
    kl: KLConfig = KLConfig(place="loss")
    """Penalty for diverging from the reference."""


class OnlineDpoConfig(OnlineConfig):
    """Online DPO: the DPO loss on the best and the worst of each prompt's answers."""

    method: Literal["online_dpo"] = "online_dpo"
    """The algorithm."""
    group: int = Field(default=2, ge=2)
    """Answers per prompt."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat: penalty for diverging from the reference."""
    kl: StepKLConfig = StepKLConfig()
    """Limit on how far one rollout batch moves the policy."""


class RejectionConfig(OnlineConfig):
    """Rejection-sampling fine-tuning: imitate the best of each prompt's answers, at temperature 1."""

    method: Literal["rejection"] = "rejection"
    """The algorithm."""
    group: int = Field(default=8, ge=2)
    """Answers per prompt, the n of best-of-n."""
    keep: int = Field(default=1, ge=1)
    """How many of the best are imitated."""
    kl: StepKLConfig = StepKLConfig()
    """Limit on how far one rollout batch moves the policy."""


GroupConfig = RlooConfig | GrpoConfig | DrGrpoConfig | DapoConfig | ReinforcePpConfig | ReinforcePpBaselineConfig
"""Methods with a clipped ratio and without a critic."""

ClippedConfig = PpoConfig | GroupConfig
"""Methods with a clipped ratio."""

RlConfig = ClippedConfig | OnlineDpoConfig | RejectionConfig
"""Any online method; ``method`` says which."""

LARGEST_STOP = 1.0
"""Largest ``kl.stop`` in nats per token; a larger value was probably meant per answer."""

AnyRlConfig = Annotated[RlConfig, Field(discriminator="method")]
"""The same, for a recipe."""


def check_rl(config: RlConfig, prompts: int) -> None:
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
        raise ConfigError(
            "sampler.temperature is 0: greedy decoding makes all answers to a prompt identical; use 0.7 to 1.0"
        )
    if config.minibatches > config.prompts:
        raise ConfigError(
            f"minibatches is {config.minibatches} but a rollout batch has {config.prompts} prompts, whose answers stay "
            "together; lower it"
        )
    if isinstance(config, RejectionConfig) and config.keep >= config.group:
        raise ConfigError(f"keep is {config.keep} of group {config.group} answers: nothing is rejected; lower keep")
    buffer = config.overlong_buffer if isinstance(config, DapoConfig) else None
    if buffer is not None and buffer > config.sampler.max_new_tokens:
        raise ConfigError(
            f"overlong_buffer is {buffer} tokens but answers have {config.sampler.max_new_tokens} at most; lower it"
        )
    if isinstance(config, GrpoConfig | DapoConfig) and config.kl.place == "reward" and config.kl.coefficient > 0:
        raise ConfigError(
            f"kl.place is 'reward' and {config.method} divides rewards by their standard deviation in the group: where "
            "answers score alike, only the KL penalties differ, and the division makes them as large as any reward, "
            "whatever kl.coefficient is; set kl.place: loss, or use a method without this division (rloo)"
        )
    if config.missing_eos is not None and config.missing_eos.mode == "subtract" and config.missing_eos.value == 0:
        raise ConfigError(
            "missing_eos.mode is 'subtract' and its value 0: nothing is subtracted; set missing_eos.value to "
            "the penalty, or missing_eos: null for none"
        )
    usual = PpoConfig.model_fields["value_coefficient"].default
    if isinstance(config, PpoConfig) and not config.shared_critic and config.value_coefficient != usual:
        raise ConfigError(
            f"value_coefficient is {config.value_coefficient:g} and shared_critic is false: a separate critic "
            "moves no weights of the policy; set shared_critic: true, or leave value_coefficient out"
        )
    if isinstance(config, PpoConfig) and config.shared_critic and config.critic_init != "zero":
        raise ConfigError(
            f"critic_init is {config.critic_init!r} and shared_critic is true: a critic on the policy's hidden states "
            "has no adapter to copy; set critic_init: zero, or shared_critic: false"
        )
    _check_stop(config)
    if isinstance(config, PolicyGradientConfig):
        _check_kl(config.kl, size)
    if prompts == 0:
        raise ConfigError("there are no prompts to align on; check data.prompts")


def _check_stop(config: RlConfig) -> None:
    stop = config.kl.stop
    if stop is None:
        return
    if stop > LARGEST_STOP:
        raise ConfigError(
            f"kl.stop is {stop:g} nats per token: an answer of {config.sampler.max_new_tokens} tokens could move by "
            f"{stop * config.sampler.max_new_tokens:g} nats in one step and nothing would be stopped; use 0.01 to 0.1 "
            "(kl.target is the limit per answer)"
        )
    if config.epochs * config.minibatches == 1:
        raise ConfigError(
            f"kl.stop is {stop:g}, but epochs and minibatches are 1: the only update of a step starts at a KL of 0 and "
            "is never stopped; raise epochs or minibatches, or leave kl.stop out"
        )


def _check_kl(kl: KLConfig, size: int) -> None:
    if kl.place == "reward" and kl.estimator is not None:
        raise ConfigError(
            f"kl.estimator is {kl.estimator!r} and kl.place is 'reward', where the penalty is always −β·k1; set "
            "kl.estimator: null, or kl.place: loss"
        )
    if kl.place == "loss" and kl.estimator == "k1" and kl.target is not None:
        raise ConfigError(
            "kl.estimator is 'k1' in the loss and kl.target is set: k1 has no gradient in expectation, so no β steers "
            "the KL; use kl.estimator: sequence, or kl.place: reward"
        )
    if kl.target is None:
        return
    if 0.2 * size >= kl.horizon:
        raise ConfigError(
            f"kl.horizon is {kl.horizon:g} sequences but a rollout batch has {size}: one step would change β by more "
            f"than all of it; raise kl.horizon above {0.2 * size:g}"
        )
    if kl.coefficient == 0.0:
        raise ConfigError(
            "kl.coefficient is 0 and kl.target is set: β is multiplied, so it would stay 0; start above 0"
        )
