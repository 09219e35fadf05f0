"""Settings of the offline methods: what they share, and the few that each one has of its own.

What a method does with them is in the table of :mod:`trimtab.trainers.methods`.
"""

from typing import Annotated, Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.models import AdapterConfig, ReferenceUpdateConfig
from trimtab.trainers.learner import OptimizerConfig


class OfflineConfig(Config):
    """Settings of all offline methods: learn from judged answers, without sampling."""

    adapter: AdapterConfig = AdapterConfig()
    """What is trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it is trained."""
    epochs: float = Field(default=1.0, gt=0.0, le=1_000_000.0)
    """Passes over the preferences."""
    batch: int = Field(default=16, ge=1)
    """Rankings (KTO: answers) per optimiser step."""
    holdout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of prompts kept out of training, to measure the loss and the implied accuracy on unseen ones."""
    micro_batch_tokens: int = Field(default=512, ge=1)
    """Padded tokens of one forward and backward pass, one ranking at least; changes memory and speed only."""
    reference_update: ReferenceUpdateConfig | None = None
    """Move the reference towards the policy during training (TR-DPO); None: the reference stays the start model.
    Updates cost a pass of the reference over every step's answers, instead of one pass over all answers before
    training."""
    cache_mb: float = Field(default=1024.0, ge=0.0)
    """Memory for the outputs of frozen layers, in megabytes, so that these layers run once and not once per pass."""


class DpoConfig(OfflineConfig):
    """Direct preference optimisation; with ``label_smoothing`` also cDPO and robust DPO."""

    method: Literal["dpo"] = "dpo"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat: penalty for diverging from the reference."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """ε, the share of labels believed to be wrong."""
    smoothing: Literal["conservative", "robust"] = "conservative"
    """``conservative``: cDPO; ``robust``: unbiased for the loss under the true labels."""
    normalise: bool = False
    """True: each answer's log-ratio is divided by its tokens, so that length earns nothing (length-normalised DPO). β
    is then per nat per token: choose it about as many times larger as answers have tokens (5 in Tülu 3)."""
    nll: float = Field(default=0.0, ge=0.0)
    """α: weight of the better answer's negative log-likelihood per token, added to the DPO loss (RPO; 1 in the paper).
    It keeps the better answers likely. 0: none."""


class IpoConfig(OfflineConfig):
    """Identity preference optimisation."""

    method: Literal["ipo"] = "ipo"
    """The algorithm."""
    tau: float = Field(default=0.1, gt=0.0)
    """τ: the log-ratio gap is regressed to 1/(2τ) nats, or with ``normalise`` to 1/(2τ) nats per token."""
    normalise: bool = False
    """True: each answer's log-ratio is divided by its tokens, as in TRL and, according to the authors, in the paper's
    experiments; False: summed, as in the paper's equation. Choose τ accordingly."""


class HingeConfig(OfflineConfig):
    """Hinge loss on the implied reward."""

    method: Literal["hinge"] = "hinge"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat."""


class KtoConfig(OfflineConfig):
    """Kahneman–Tversky optimisation on single answers, liked or not."""

    method: Literal["kto"] = "kto"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat."""
    weight_desirable: float = Field(default=1.0, gt=0.0)
    """λ_D, weight of liked answers."""
    weight_undesirable: float = Field(default=1.0, gt=0.0)
    """λ_U, weight of disliked ones; the paper advises λ_D·n_D / (λ_U·n_U) between 1 and 4/3."""
    batch: int = Field(default=16, ge=2)
    """Answers per optimiser step; at least two, because z pairs each answer with another prompt.
    In a step whose answers all have the same prompt, z is 0."""


class OrpoConfig(OfflineConfig):
    """Odds-ratio preference optimisation; no reference."""

    method: Literal["orpo"] = "orpo"
    """The algorithm."""
    lam: float = Field(default=0.1, gt=0.0)
    """λ, weight of the odds-ratio term, which is added to the likelihood of the better answer."""


class SimpoConfig(OfflineConfig):
    """Simple preference optimisation; no reference."""

    method: Literal["simpo"] = "simpo"
    """The algorithm."""
    beta: float = Field(default=2.0, gt=0.0)
    """β, on log-probabilities averaged over tokens."""
    gamma: float = Field(default=1.0, ge=0.0)
    """γ, the margin of the better answer."""


class CpoConfig(OfflineConfig):
    """Contrastive preference optimisation; no reference."""

    method: Literal["cpo"] = "cpo"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, per nat."""
    alpha: float = Field(default=1.0, ge=0.0)
    """Weight of the likelihood of the better answer."""
    nll: Literal["mean", "sum"] = "mean"
    """Negative log-likelihood of the better answers: mean over all their tokens in the optimiser step, as in the
    authors' code, or summed over each answer, as in the paper."""


class PlackettLuceConfig(OfflineConfig):
    """List-wise DPO: the likelihood of a whole ranking under the rewards β·log(π/ref) that the policy implies."""

    method: Literal["plackett_luce"] = "plackett_luce"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat: penalty for diverging from the reference."""


class ApoZeroConfig(OfflineConfig):
    """Anchored preference optimisation, zero: the better answers go up, the others down."""

    method: Literal["apo_zero"] = "apo_zero"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat."""


class ApoDownConfig(OfflineConfig):
    """Anchored preference optimisation, down: both answers go down, the worse one further."""

    method: Literal["apo_down"] = "apo_down"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat."""


class BcoConfig(OfflineConfig):
    """Binary classifier optimisation on pairs."""

    method: Literal["bco"] = "bco"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat."""


class SppoConfig(OfflineConfig):
    """Self-play preference optimisation: each log-ratio is regressed to how often its answer wins."""

    method: Literal["sppo"] = "sppo"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β: log-ratios of certain labels are regressed to ±1/(2β) nats. The paper's η is 1/β."""


class ExoConfig(OfflineConfig):
    """Efficient exact optimisation: the reverse KL to the labels, where DPO minimises the forward one."""

    method: Literal["exo"] = "exo"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat."""
    eps: float = Field(default=1e-3, gt=0.0, lt=0.5)
    """ε, the share of labels believed to be wrong; pairs end at a gap of log((1 − ε)/ε)/β nats."""


class NcaConfig(OfflineConfig):
    """Noise-contrastive alignment: raises the likelihood of the better answers, not only above that of the others."""

    method: Literal["nca"] = "nca"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat."""


PairConfig = (
    DpoConfig
    | IpoConfig
    | HingeConfig
    | OrpoConfig
    | SimpoConfig
    | CpoConfig
    | PlackettLuceConfig
    | ApoZeroConfig
    | ApoDownConfig
    | BcoConfig
    | SppoConfig
    | ExoConfig
    | NcaConfig
)
"""Methods that learn from rankings."""

PreferenceConfig = Annotated[PairConfig | KtoConfig, Field(discriminator="method")]
"""Any offline method."""
