"""The held-out comparison of a run's models: win rates, KL, likelihood, probes and scores of their answers."""

from pydantic import Field

from trimtab.evals.gain import Gain
from trimtab.feedback import Estimate
from trimtab.records import Record


class Interval(Record):
    """A value with its 95 % interval."""

    value: float
    """The value."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""


class WinRow(Record):
    """How often one model's answers are better than another's, by one judge."""

    model: str
    """Key of the model whose wins are counted: ``base``, ``sft``, ``start``, ``policy`` or ``best_of``."""
    against: str
    """Key of the other model."""
    judge: str
    """``gold``, ``proxy``, or for blind readers a phrase that follows "judged by"."""
    rate: float
    """Share of prompts won; a tie counts half."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""
    n: int
    """Prompts compared."""
    wins: int
    """Prompts on which the answer of ``model`` was better."""
    ties: int
    """Prompts on which the answers tied."""
    losses: int
    """Prompts on which the answer of ``against`` was better."""
    worst: tuple[str, ...] = ()
    """Ids of a few prompts that ``model`` lost, the clearest loss first."""
    equal_length: Interval | None = None
    """The win rate at equal length; None if it was not estimated."""

    def estimate(self, name: str = "") -> Estimate:
        """The win rate as an estimate with this name."""
        return Estimate(name=name, value=self.rate, low=self.low, high=self.high, n=self.n)


class Divergence(Interval):
    """KL from the model before alignment, in nats per answer: the mean over the policy's answers, bootstrapped."""

    n: int
    """Number of answers."""
    per_answer: tuple[float, ...]
    """log π − log π_ref of each answer, in the order of the prompts."""

    def estimate(self, name: str = "") -> Estimate:
        """The mean as an estimate with this name."""
        return Estimate(name=name, value=self.value, low=self.low, high=self.high, n=self.n)


class BestOf(Record):
    """Distance of best-of-n answers from the model that they were drawn from."""

    n: int
    """Number of answers that each was chosen from."""
    kl: float
    """Estimated KL, in nats per answer."""
    kl_bound: float
    """log n − (n − 1)/n, in nats."""


class Evaluation(Record):
    """The result of the evaluation stage; models are named by their keys."""

    models: tuple[str, ...]
    """From the earliest to the latest, without ``best_of``."""
    judges: tuple[str, ...] = ()
    """``gold`` and ``proxy``, if the run has them."""
    win_rates: tuple[WinRow, ...] = ()
    """Every compared pair of models, by every judge; the first pair is the headline."""
    kl: Divergence | None = None
    """None: the run aligned no policy."""
    likelihood: dict[str, float] | None = None
    """Mean log-probability of an answer's token under the pretrained model, in nats, by model; None: not measured."""
    probes: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Text probes of each model's answers, as :func:`~trimtab.evals.probe_table` gives them."""
    copied: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Ids of the prompts that the answer copies, by model."""
    p_values: dict[str, float] = Field(default_factory=dict)
    """Two-sided p-values of the changes that alarms compare with a limit, as
    :func:`~trimtab.evals.chance.answer_p_values` gives them; empty with one model, and in files of earlier versions."""
    means: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Mean score of each model's answers by judge."""
    spreads: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Standard deviations of the scores, in the same form as ``means``."""
    costs: dict[str, float] = Field(default_factory=dict)
    """Mean of the cost that has a limit, by model; empty without such a cost."""
    best_of: BestOf | None = None
    """None: no best-of-n answers were drawn."""
    gain: Gain | None = None
    """The parts of the policy's gain in reward; None: not measured."""
