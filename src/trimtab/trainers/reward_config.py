"""Settings of a reward model's training."""

from typing import Literal, Self

from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.models import AdapterConfig
from trimtab.trainers.annotators import Habit
from trimtab.trainers.learner import OptimizerConfig
from trimtab.trainers.length_head import LengthConfig


class RewardConfig(Config):
    """Reward model training."""

    adapter: AdapterConfig = AdapterConfig()
    """What is trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it is trained."""
    epochs: float = Field(default=1.0, gt=0.0, le=1_000_000.0)
    """Passes over the preferences."""
    batch: int = Field(default=16, ge=1)
    """Prompts (rankings) per optimiser step."""
    loss: Literal["bradley_terry", "davidson", "rao_kupper", "plackett_luce"] = "bradley_terry"
    """Likelihood of the labels. ``bradley_terry``: all pairs with a winner. ``davidson``, ``rao_kupper``: also pairs of
    equal rank, as ties. ``plackett_luce``: the whole ranking, as the choice of the best, then of the next best; the
    order of tied answers counts as unknown."""
    tie: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """How often equals are called a tie: ν for ``davidson``, P(tie) = ν/(2 + ν); η = log θ for ``rao_kupper``,
    P(tie) = tanh(η/2)."""
    head_init: Literal["random", "probe"] = "random"
    """``random``: as published; ``probe``: the best head for the untrained features, fitted before training. With a few
    hundred preferences it keeps the first steps from moving the features in a random direction."""
    centring: float = Field(default=0.0, ge=0.0)
    """Weight of (r_w + r_l)², which keeps rewards around zero."""
    objectives: tuple[str, ...] = ()
    """Criteria of the judgements. Each gets its own head, on one shared adapter; a preference trains the head of its
    criterion, and ``rewards`` sets the weights. (): one head, for one criterion."""
    length: LengthConfig | None = None
    """A second head that absorbs the length signal, to keep it out of the reward; None: no second head."""
    annotators: tuple[Habit | Literal["taste"], ...] = ()
    """Learn from each vote instead of the combined votes, and also learn what differs between annotators: how easily
    they see a ``tie``, their ``skill``, how much they favour the ``position`` shown first, and, with 50 votes or more,
    their own ``taste`` in the form of answers. For ``davidson`` and ``rao_kupper``. Each is used only where it lowers
    the log-loss of held-out votes. (): votes are combined."""
    holdout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of prompts kept out of training, to measure accuracy and calibration."""
    micro_batch_tokens: int = Field(default=512, ge=1)
    """Padded tokens of one forward and backward pass, one ranking at least; changes memory and speed only."""
    cache_mb: float = Field(default=1024.0, ge=0.0)
    """Memory for the outputs of frozen layers, in megabytes, so that these layers run once and not once per pass."""

    @property
    def ties(self) -> bool:
        """True: tied answers are learned from."""
        return self.loss in ("davidson", "rao_kupper")

    @model_validator(mode="after")
    def _tie_of_the_loss(self) -> Self:
        if not self.ties and self.tie != type(self).model_fields["tie"].default:
            raise ValueError(
                f"tie is {self.tie:g} and loss {self.loss!r}, which knows no ties; leave tie out, or set loss: "
                "davidson or rao_kupper"
            )
        return self

    @property
    def heads(self) -> int:
        """How many numbers the scalar head gives."""
        return len(self.objectives) or (1 if self.length is None else 2)

    @model_validator(mode="after")
    def _objectives_are_several(self) -> Self:
        if len(self.objectives) == 1:
            raise ValueError(
                f"objectives is {list(self.objectives)}, and one objective needs no head of its own; name two or more, "
                "or set label.aggregate.criterion"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives {list(self.objectives)}: each can be named once")
        if self.objectives and self.length is not None:
            raise ValueError("objectives and length both use several heads; leave one out")
        return self

    @model_validator(mode="after")
    def _annotators_of_the_loss(self) -> Self:
        if not self.annotators:
            return self
        if not self.ties:
            raise ValueError(
                f"annotators are votes with ties, and loss {self.loss!r} knows none; set loss: davidson or rao_kupper"
            )
        if self.tie != type(self).model_fields["tie"].default:
            raise ValueError(f"tie is {self.tie:g}, and with annotators it is learned; leave it out")
        if self.objectives:
            raise ValueError("annotators is for votes by one criterion, and objectives names several; leave one out")
        if len(set(self.annotators)) < len(self.annotators):
            raise ValueError(f"annotators {list(self.annotators)}: each habit can be named once")
        return self

    @model_validator(mode="after")
    def _first_head_without_length(self) -> Self:
        if self.length is not None and self.head_init == "probe":
            raise ValueError(
                "head_init is 'probe', which fits the first head to the labels and so to the length signal in them; "
                "with length use head_init: random"
            )
        return self
