"""Settings of the online methods: what they share, and the few that each one has of its own.

What a method does with them is in the table of :mod:`trimtab.trainers.methods`.
"""

from typing import Annotated, Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.models import AdapterConfig, ReferenceUpdateConfig
from trimtab.rollout import SamplerConfig
from trimtab.trainers.guard import GuardConfig
from trimtab.trainers.learner import OptimizerConfig
from trimtab.trainers.selection import Select

AUTO_CAP = 2.0
"""What ``importance_cap: auto`` means with a sampler whose kernels are not the trainer's."""


class StepKLConfig(Config):
    """Limits on how far one rollout batch and a whole run move the policy."""

    stop: float | None = Field(default=None, gt=0.0)
    """Limit on KL(π_old‖π), the divergence from the policy that drew the answers, in nats per token (k3). It is
    measured on each minibatch before its update; above the limit the remaining updates of this rollout batch are
    skipped, the critic's too. Usual: 0.01 to 0.1. Other libraries call it ``target_kl`` and stop at 1.5 times the
    value. None: every update is made."""
    budget: float | None = Field(default=None, gt=0.0)
    """Limit on KL(π‖ref), the divergence of the whole run from the reference, in nats per answer. When the mean of the
    last three steps is above it, training ends, and the policy has the weights of a checkpoint within it (``select``
    says which). Cannot be combined with ``reference_update``, which moves the reference. None: no limit."""


class KLConfig(StepKLConfig):
    """Penalty for diverging from the reference, and limits on how far one rollout batch and a whole run move."""

    coefficient: float = Field(default=0.05, ge=0.0)
    """β: price of a nat of KL; with ``target`` its first value. With ``place: reward`` it is in reward units. In the
    loss it is in the units of the advantages: reward units for ``rloo`` and ``dr_grpo``; standard deviations where
    advantages are divided by one, of the group (``grpo``, ``dapo``, ``gspo``, ``cispo``, ``gdpo``) or of the batch
    (``reinforce_pp``, ``reinforce_pp_baseline``, ``ppo`` with ``whiten_advantages``). With standard deviations, rewards
    ten times as large do not change its effect."""
    target: float | None = Field(default=None, gt=0.0)
    """KL per sequence, in nats, that β is adapted to; None: β stays fixed."""
    horizon: float = Field(default=10_000, gt=0.0)
    """With ``target``: how many sequences a full correction of β takes."""
    place: Literal["reward", "loss"] = "reward"
    """``reward``: −β·k1 is part of each token's reward; ``loss``: β times the estimator is added to the loss.
    ``reward`` is refused where advantages are divided by the group's standard deviation (``grpo``, ``dapo``, ``gspo``,
    ``cispo``, ``gdpo``)."""
    estimator: Literal["sequence", "k1", "k2", "k3"] | None = None
    """Estimator in the loss; None: ``sequence``, whose gradient is that of KL(π‖ref) of whole answers, even after
    several updates on the same answers. The others look at one token at a time and ignore how it changes the KL of
    later tokens, so a token whose continuation diverges far costs the policy nothing. ``k2`` has the gradient of each
    token's KL(π‖ref) with the text before it taken as given; ``k3`` (GRPO's paper) that of KL(ref‖π), limited to 10
    nats per token; ``k1`` has none."""


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


class ConstraintConfig(Config):
    """A limit on one of the rewards, which becomes a cost: its price λ rises while the cost is above the limit."""

    reward: str
    """Name of the reward that is the cost (lower is better). Its weight is −λ; its ``weight`` setting must stay at
    1."""
    limit: float
    """d: the largest mean cost per answer, in the reward's units."""
    initial: float = Field(default=1.0, ge=0.0)
    """First λ."""
    lr: float = Field(default=0.05, gt=0.0)
    """η: after each step λ ← max(0, λ + η·(mean cost − d))."""
    largest: float | None = Field(default=None, gt=0.0)
    """Upper limit of λ; None: no limit, so λ grows for ever if no policy can keep the cost below ``limit``."""


class OnlineConfig(Config):
    """Settings of all online methods: sample answers, score them, make the better ones likelier."""

    adapter: AdapterConfig = AdapterConfig()
    """What is trained in the policy, and in the critic if there is one."""
    steps: int = Field(default=50, ge=1)
    """Rollout batches."""
    prompts: int = Field(default=32, ge=1)
    """Prompts per rollout batch."""
    group: int = Field(default=1, ge=1)
    """Answers per prompt."""
    sampler: SamplerConfig = SamplerConfig()
    """How answers are drawn. ``top_p`` must be 1; otherwise the ratio would compare two different distributions."""
    policy: OptimizerConfig = OptimizerConfig(schedule="constant")
    """The policy's optimiser."""
    epochs: int = Field(default=1, ge=1)
    """Passes over each rollout batch."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps per pass."""
    missing_eos: MissingEosConfig | None = MissingEosConfig()
    """Penalty for answers that were cut; None: none."""
    reference_update: ReferenceUpdateConfig | None = None
    """Move the reference towards the policy during training (TR-DPO); None: the reference stays the start model."""
    micro_batch_tokens: int = Field(default=512, ge=1)
    """Padded tokens of one forward and backward pass; changes memory and speed only."""
    guard: GuardConfig | None = GuardConfig()
    """When to end a run whose policy collapses; None: never."""
    select: Select = "last"
    """Which weights the run ends with. ``last``: those after the last step. ``heldout``: those of the checkpoint (or
    the start, or the end) whose answers score highest under a reward model that the policy is not trained on; needs
    ``reward.split: true``. ``proxy``: the same under the reward that it is trained on. ``proxy`` is for comparison,
    because a reward cannot see its own flaws."""
    patience: int | None = Field(default=None, ge=1)
    """With ``select`` ``heldout`` or ``proxy``: end training after this many steps without a higher score (means over
    five steps), counted from the end of ``critic_warmup``; None: train for all steps."""


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
    one_step_off: bool = False
    """True: the answers of a step are drawn with the weights from before the previous step's update. With samplers on a
    Ray cluster (``scale.kind: ray``), sampling then runs while this process trains. The log-probabilities are those of
    the older weights, so the ratio corrects for the lag within ``eps``; with ``importance_cap`` the correction is a
    separate weight. Results do not depend on ``scale``. False: every step's answers come from the newest weights."""
    importance_cap: Annotated[float, Field(gt=0.0)] | Literal["auto"] | None = "auto"
    """Weight each token by min(π_trainer/π_sampler, this value), after a pass that recomputes log-probabilities. For
    samplers whose kernels differ from the trainer's. The difference is always logged as ``mismatch``; with weights,
    their effective sample size is logged as ``importance_ess``. ``auto``: 2 with ``sampler.engine: vllm``, otherwise no
    weights. None: no weights."""
    importance_level: Literal["token", "sequence"] = "token"
    """With ``importance_cap``: ``token``, each token has its own weight; ``sequence``, all tokens of an answer share
    the product of its tokens' ratios, which is exact without a cap but varies more for longer answers."""
    importance_beyond: Literal["truncate", "mask"] = "truncate"
    """With ``importance_cap``: ``truncate``, larger weights are lowered to the cap; ``mask``, tokens with larger
    weights are left out of the policy's loss (IcePop), and their share is logged as ``importance_masked``."""
    importance_floor: float = Field(default=0.0, ge=0.0)
    """With ``importance_beyond: mask``: tokens with smaller weights are left out too; IcePop uses 0.5."""
    overlong_filter: bool = False
    """True: answers that were cut are left out of the policy's and the critic's loss, and counted as ``filtered``;
    their scores still count in their group's mean. For tasks in which the cut says nothing about an answer's
    quality."""
    entropy_top: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Train only on this share of the rollout batch's tokens: those that the policy drew with the least certainty; 0.2
    in the paper. The KL in the loss and the entropy bonus still cover all tokens. Costs one more pass over the answers.
    None: all tokens."""
    score_clip: float | None = Field(default=None, gt=0.0)
    """Scores (weighted sums) are clipped to ± this value, and the share of clipped ones is logged; None: not clipped.
    In a recipe whose only reward is the reward model, the default is 5."""
    running_scale: bool = False
    """True: scores are divided by the standard deviation of all scores since the run began, before ``score_clip`` and
    the penalties; the state is saved with a checkpoint. For rewards whose size is unknown or changes."""
    constraint: ConstraintConfig | None = None
    """Keep one of the rewards, a cost, below a limit; None: no limit. With ``ppo`` this is constrained PPO (Safe
    RLHF)."""
    ptx: PtxConfig | None = None
    """Add the log-likelihood of conversations to the objective (PPO-ptx); None: not added."""

    @property
    def weight_cap(self) -> float | None:
        """The value that ``importance_cap`` means with this sampler; None: no weights."""
        if self.importance_cap == "auto":
            return AUTO_CAP if self.sampler.engine == "vllm" else None
        return self.importance_cap


class OpponentConfig(Config):
    """Settings of the methods that compare each answer with one of an opponent."""

    preference: Literal["bradley_terry", "given"] = "bradley_terry"
    """P(an answer beats its opponent's). ``bradley_terry``: σ(``log_odds`` · difference of the rewards). ``given``: the
    reward of an answer is that probability itself. The rewards receive each answer of the policy followed by its
    opponent's; the value that they return for the opponent's is ignored. For judges of pairs, whose preferences need
    not follow from any reward."""
    log_odds: float | None = Field(default=None, gt=0.0)
    """κ: log-odds of winning for one unit of the weighted rewards. None: 1. In a recipe whose only weighted reward is a
    single reward model, None means the unit of its training, so that P is the probability that it was trained to
    predict."""


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
    critic_lam: float | None = Field(default=None, ge=0.0, le=1.0)
    """λ of the returns that the critic is trained on; 1 in VAPO, where rewards are far from the first tokens. None:
    ``lam``."""
    critic_warmup: int = Field(default=0, ge=0)
    """Steps at the start in which only the critic is trained, on answers of the unchanged policy."""
    bootstrap_cut: bool = False
    """True: an answer that was cut also earns the value that the critic predicts after its last token, as if it
    continued. False: it counts as ended. For tasks to which the length limit does not belong; needs ``missing_eos:
    null``."""
    value_eps: float = Field(default=0.2, gt=0.0)
    """Clip range of the critic's change, in reward units."""
    whiten_advantages: bool = True
    """True: scale advantages to mean 0 and variance 1 over the whole batch."""


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
    """Soft overlong punishment: over this many tokens before ``max_new_tokens``, the score falls linearly by up to one
    unit; an answer that was cut always loses the whole unit. None: none."""
    std: Literal["sample", "population"] = "sample"
    """Which standard deviation the advantages are divided by."""
    kl: KLConfig = KLConfig(coefficient=0.0, place="loss")
    """Penalty for diverging from the reference; the paper has none."""


class GspoConfig(PolicyGradientConfig):
    """GSPO: GRPO with the ratio of the whole answer, averaged over its tokens; an answer is clipped as a whole."""

    method: Literal["gspo"] = "gspo"
    """The algorithm."""
    group: int = Field(default=8, ge=2)
    """Answers per prompt."""
    eps: float = Field(default=3e-4, gt=0.0, lt=1.0)
    """Lower clip range of the answer's ratio, which moves far less than a token's."""
    eps_high: float | None = Field(default=4e-4, gt=0.0)
    """Upper clip range; None: ``eps``."""
    std: Literal["sample", "population"] = "sample"
    """Which standard deviation the advantages are divided by; the paper does not say."""
    kl: KLConfig = KLConfig(coefficient=0.0, place="loss")
    """Penalty for diverging from the reference; the authors used none."""


class CispoConfig(PolicyGradientConfig):
    """CISPO: the importance weight of a token is clipped, not its gradient; mean over all tokens."""

    method: Literal["cispo"] = "cispo"
    """The algorithm."""
    group: int = Field(default=8, ge=2)
    """Answers per prompt."""
    eps: float = Field(default=1.0, gt=0.0, le=1.0)
    """Lower clip range of the weight; 1: no lower end, as in the paper."""
    eps_high: float | None = Field(default=4.0, gt=0.0)
    """Upper clip range: a weight is at most 1 + this; None: ``eps``."""
    std: Literal["sample", "population"] = "sample"
    """Which standard deviation the advantages are divided by; the paper does not say."""
    kl: KLConfig = KLConfig(coefficient=0.0, place="loss")
    """Penalty for diverging from the reference; the paper has none."""


class GdpoConfig(PolicyGradientConfig):
    """GDPO: several named rewards, each normalised in its group before they are added, then over the batch."""

    method: Literal["gdpo"] = "gdpo"
    """The algorithm."""
    group: int = Field(default=8, ge=2)
    """Answers per prompt."""
    missing_eos: MissingEosConfig | None = None
    """Must be None: a penalty for cut answers would be a reward of its own."""
    std: Literal["sample", "population"] = "sample"
    """Which standard deviation each reward is divided by; the paper does not say."""
    kl: KLConfig = KLConfig(coefficient=0.04, place="loss")
    """Penalty for diverging from the reference."""


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
    """Limits on how far one rollout batch and the whole run move the policy."""


class NashMdConfig(PolicyGradientConfig, OpponentConfig):
    """Nash-MD: win more often against a mixture of policy and reference, with a KL penalty.

    For preferences that no reward explains, such as cyclic ones.
    """

    method: Literal["nash_md"] = "nash_md"
    """The algorithm."""
    mixture: float = Field(default=0.5, ge=0.0, le=1.0)
    """m: the opponent draws each token from π^(1−m)·ref^m; the paper's β. 0: the policy itself, with the Nash
    equilibrium as the optimum; 1: the reference. In between, each token costs a pass of both models."""


class XpoConfig(OnlineConfig, OpponentConfig):
    """XPO: the DPO loss on an answer of the policy and one of the reference, which also becomes less likely."""

    method: Literal["xpo"] = "xpo"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat: penalty for diverging from the reference."""
    alpha: float = Field(default=1e-5, ge=0.0)
    """α: weight of the exploration, log π of the reference's answer; 0: none."""
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
    """Limits on how far one rollout batch and the whole run move the policy."""


ClippedConfig = (
    PpoConfig
    | RlooConfig
    | GrpoConfig
    | DrGrpoConfig
    | DapoConfig
    | GspoConfig
    | CispoConfig
    | GdpoConfig
    | ReinforcePpConfig
    | ReinforcePpBaselineConfig
    | NashMdConfig
)
"""Methods with a clipped ratio."""

RlConfig = ClippedConfig | OnlineDpoConfig | RejectionConfig | XpoConfig
"""Any online method, chosen by ``method``."""
