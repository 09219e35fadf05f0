"""How annotators differ: habits learned together with a reward model and used only in its training.

A vote on the answers i and j by annotator a has the log-odds d = γ_a (r_i − r_j + t) + s b_a and the tie parameter τ_a
(:func:`trimtab.algos.vote_loss`):

- r: the rewards; γ_a: the annotator's skill; b_a: the position bias;
- t: a taste, fitted before and constant here, mostly 0 (:mod:`trimtab.feedback.taste`);
- s: 1 if i was shown first, −1 if second, 0 if unknown.

Priors: γ_a ~ N(1, σ_γ²), b_a ~ N(μ_b, σ_b²), τ_a ~ N(μ_τ, σ_τ²), so annotators with few votes stay near the population.
Skills average 1, so the rewards are in log-odds of the average annotator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from trimtab.algos import vote_loss
from trimtab.errors import ModelError
from trimtab.trainers.learner import Learner, OptimizerConfig
from trimtab.trainers.rankings import Ranking

Habit = Literal["tie", "skill", "position"]

RATE = 0.02
"""Learning rate of the habits, in log-odds; it falls to 0 over the planned steps."""

COMMON_DEVIATIONS = {"tie": 10.0, "position": 0.5}
"""Prior deviations of μ_τ and μ_b."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Population:
    """Habits of all annotators, before or after training."""

    habits: tuple[Habit, ...] = ()
    """The habits that differ between annotators."""
    common_tie: float = 0.0
    """μ_τ."""
    common_position: float = 0.0
    """μ_b."""
    deviations: Mapping[str, float] = field(default_factory=dict[str, float])
    """Prior standard deviation σ of each habit."""
    values: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    """Values of each habit (τ_a, γ_a or b_a), by the annotator's number."""


class Annotators:
    """Habits as trainable weights, stored as distances from the prior's mean.

    Args:
        start: initial values, and the priors, which are constant.
        device: device of the rewards.
    """

    def __init__(self, start: Population, device: torch.device | None = None) -> None:
        self.habits, self.deviations = start.habits, dict(start.deviations)
        means = {"tie": start.common_tie, "skill": 1.0, "position": start.common_position}
        self._weights = {
            "common": nn.Parameter(torch.tensor([start.common_tie, start.common_position], device=device))
        } | {
            habit: nn.Parameter(torch.tensor(list(start.values[habit]), device=device) - means[habit])
            for habit in start.habits
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by name: ``common`` is (μ_τ, μ_b)."""
        return self._weights

    def state(self) -> dict[str, Tensor]:
        """A copy, on the CPU."""
        return {name: p.detach().cpu().clone() for name, p in self._weights.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy weights in.

        Raises:
            ModelError: they are weights of other annotators or habits.
        """
        shapes = {name: tuple(p.shape) for name, p in self._weights.items()}
        if {name: tuple(t.shape) for name, t in state.items()} != shapes:
            raise ModelError("the saved annotators are not those of these preferences; train the reward model again")
        with torch.no_grad():
            for name, parameter in self._weights.items():
                parameter.copy_(state[name])

    def learner(self, total_steps: int, group: Any) -> Learner:
        """The optimiser of the habits; of a role, a learner needs only weights and state, which this object has."""
        return Learner(cast(Any, self), OptimizerConfig(lr=RATE, warmup=0.0), total_steps, group=group)

    def population(self) -> Population:
        """The current values."""
        common = self._weights["common"].tolist()
        return Population(
            habits=self.habits,
            common_tie=common[0],
            common_position=common[1],
            deviations=self.deviations,
            values={habit: self._of(habit)[:-1].tolist() for habit in self.habits},
        )

    def loss(self, scores: Tensor, votes: "VoteTable", likelihood: Literal["davidson", "rao_kupper"]) -> Tensor:
        """Weighted sum of the votes' negative log-likelihoods, a scalar."""
        apart = scores[votes.first] - scores[votes.second] + votes.taste
        gap = self._at("skill", votes) * apart + votes.shown * self._at("position", votes)
        losses = vote_loss(gap, self._at("tie", votes), votes.outcome, likelihood=likelihood)
        return (votes.weight * losses).sum()

    def penalty(self) -> Tensor:
        """Negative log-prior up to a constant, in nats of all votes together, a scalar."""
        common = self._weights["common"]
        total = (common[0] / COMMON_DEVIATIONS["tie"]).square() + (common[1] / COMMON_DEVIATIONS["position"]).square()
        for habit in self.habits:
            total = total + (self._from_mean(habit) / self.deviations[habit]).square().sum()
        return total / 2

    def _from_mean(self, habit: Habit) -> Tensor:
        own = self._weights[habit]
        return own - own.mean() if habit == "skill" else own

    def _of(self, habit: Habit) -> Tensor:
        """The habit's value for each annotator, and last the population's."""
        common = self._weights["common"]
        mean = {"tie": common[:1], "position": common[1:], "skill": torch.ones_like(common[:1])}[habit]
        return torch.cat([mean + self._from_mean(habit), mean]) if habit in self.habits else mean

    def _at(self, habit: Habit, votes: "VoteTable") -> Tensor:
        """The habit's value for each vote."""
        values = self._of(habit)
        return values[votes.annotator.clamp(max=len(values) - 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class VoteTable:
    """Votes of several rankings; answers are numbered across the rankings."""

    first: Tensor
    """``[P]`` int64, number of the first answer."""
    second: Tensor
    """``[P]`` int64, number of the second answer."""
    outcome: Tensor
    """``[P]`` int64, as :attr:`trimtab.trainers.rankings.PairVote.outcome`."""
    annotator: Tensor
    """``[P]`` int64; a number beyond all annotators is the population."""
    shown: Tensor
    """``[P]``, as :attr:`trimtab.trainers.rankings.PairVote.shown`."""
    weight: Tensor
    """``[P]``, how many votes each counts for."""
    taste: Tensor
    """``[P]``, added to the difference of the scores."""

    @classmethod
    def of(cls, rankings: Sequence[Ranking], device: torch.device) -> "VoteTable":
        """The votes of these rankings."""
        rows: list[tuple[int, int, int, int]] = []
        numbers: list[tuple[float, float, float]] = []
        start = 0
        for ranking in rankings:
            for v in ranking.cast():
                who = POPULATION if v.annotator < 0 else v.annotator
                rows.append((start + v.first, start + v.second, v.outcome, who))
                numbers.append((v.shown, v.weight, v.taste))
            start += len(ranking.sequences)
        whole = torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 4)
        real = torch.tensor(numbers, dtype=torch.float32, device=device).reshape(-1, 3)
        return cls(
            first=whole[:, 0], second=whole[:, 1], outcome=whole[:, 2], annotator=whole[:, 3],
            shown=real[:, 0], weight=real[:, 1], taste=real[:, 2],
        )  # fmt: skip


POPULATION = 1 << 40
"""Number of the average annotator in a :class:`VoteTable`."""


def vote_weight(rankings: Sequence[Ranking]) -> float:
    """Number of votes in these rankings, by weight."""
    return sum(v.weight for r in rankings for v in r.cast())
