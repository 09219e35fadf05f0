"""Settings of the offline methods: what they share, and the few that each one has of its own.

What a method does with them is in the table of :mod:`trimtab.trainers.methods`.
"""

from typing import Annotated, Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.models import AdapterConfig
from trimtab.trainers.learner import OptimizerConfig


class OfflineConfig(Config):
    """Settings of all offline methods: learn from judged answers, without sampling."""

    adapter: AdapterConfig = AdapterConfig()
    """What is trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it is trained."""
    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the preferences."""
    batch: int = Field(default=16, ge=1)
    """Rankings (KTO: answers) per optimiser step."""
    holdout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of prompts kept out of training, to measure the loss and the implied accuracy on unseen ones."""
    micro_batch_tokens: int = Field(default=512, ge=1)
    """Padded tokens of one forward and backward pass, one ranking at least; changes memory and speed only."""
    cache_mb: float = Field(default=1024.0, ge=0.0)
    """Megabytes for the states of frozen layers, so that these layers run once and not once per pass."""


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


class IpoConfig(OfflineConfig):
    """Identity preference optimisation."""

    method: Literal["ipo"] = "ipo"
    """The algorithm."""
    tau: float = Field(default=0.1, gt=0.0)
    """τ: the log-ratio gap is regressed to 1/(2τ) nats, or with ``normalise`` to 1/(2τ) nats per token."""
    normalise: bool = False
    """True: each answer's log-ratio is divided by its tokens, as in TRL and, by the authors' word, in the paper's
    experiments; False: summed, as in the paper's equation. τ must be chosen for one of them."""


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
    """λ, weight of the odds-ratio term beside the likelihood of the better answer."""


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


PairConfig = DpoConfig | IpoConfig | HingeConfig | OrpoConfig | SimpoConfig | CpoConfig
"""Methods that learn from rankings."""

PreferenceConfig = Annotated[PairConfig | KtoConfig, Field(discriminator="method")]
"""Any offline method."""
