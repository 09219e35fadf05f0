"""Several reward models as one scorer, and a held-out reward model that only judges.

Every model's scores are normalised over the same answers before they are combined, so a spread of 1 is one standard
deviation of those answers' rewards. The combined score is normalised once more, because the lowest of several
scores is below 0 on average.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from trimtab.algos import ensemble_score, ensemble_spread
from trimtab.config import Config
from trimtab.records import Rollout
from trimtab.rollout.rewards import RewardFunction


class EnsembleConfig(Config):
    """Several reward models whose scores are combined."""

    members: int = Field(default=2, ge=1)
    """Number of language models, each an adapter on the trunk with its own seed."""
    halves: bool = False
    """True: every other member learns from one half of the prompts, the others from the other half, so that they share
    fewer errors. False: all learn from all preferences and differ only by seed."""
    words: bool = False
    """True: add a bag-of-words model as a further member. It makes different errors from those of a language model."""
    score: Literal["mean", "worst", "penalised"] = "worst"
    """``mean`` of the members; ``worst``, the lowest of them; ``penalised``, the mean minus ``penalty`` times their
    standard deviation."""
    penalty: float = Field(default=1.0, ge=0.0)
    """λ of ``penalised``, in standard deviations."""

    @model_validator(mode="after")
    def _more_than_one(self) -> Self:
        if self.members + self.words < 2:
            raise ValueError(
                "an ensemble of one member is a single reward model; set members to 2 or more, words: true, or leave "
                "ensemble out"
            )
        if self.halves and self.members < 2:
            raise ValueError("halves needs members of 2 or more, one for each half; leave halves out")
        if self.score != "penalised" and self.penalty != type(self).model_fields["penalty"].default:
            raise ValueError(
                f"penalty is {self.penalty:g} and score {self.score!r}; set score: penalised, or leave it out"
            )
        return self

    def combine(self, scores: Tensor) -> Tensor:
        """``[M, B]`` normalised scores of the members → ``[B]``."""
        return ensemble_score(scores, self.score, penalty=self.penalty)


class RewardModels:
    """The reward models of a run.

    Args:
        members: by name, a function for the normalised scores of each model that the policy is trained on.
        heldout: the same for the held-out reward model; None: there is none.
        config: how members are combined; None: there is one member.
        mean: mean of the combined score over the answers that members are normalised over.
        std: its standard deviation there.
    """

    def __init__(
        self,
        members: Mapping[str, RewardFunction],
        *,
        heldout: RewardFunction | None = None,
        config: EnsembleConfig | None = None,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        self.members, self.heldout, self.config, self.mean, self.std = dict(members), heldout, config, mean, std
        self._scored: tuple[Sequence[Rollout], Tensor] | None = None

    def reward(self, rollouts: Sequence[Rollout]) -> list[float]:
        """The score that the policy is trained on."""
        scores = self._scores(rollouts)
        if self.config is None or not rollouts:
            return scores[0].tolist()
        return ((self.config.combine(scores) - self.mean) / self.std).tolist()

    def watched(self, rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        """Numbers that are logged and not trained on: ``heldout`` and ``spread``, if the run has them.

        ``spread`` is the standard deviation over all models of the run, the held-out one included.
        """
        scores = [self._scores(rollouts)]
        watched: dict[str, list[float]] = {}
        if self.heldout is not None:
            watched["heldout"] = list(self.heldout(rollouts))
            scores.append(torch.tensor([watched["heldout"]]))
        if len(every := torch.cat(scores)) > 1 and rollouts:
            watched["spread"] = ensemble_spread(every).tolist()
        return watched

    def _scores(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Each member's scores, ``[M, B]``; the last call's answers are cached."""
        if self._scored is None or self._scored[0] is not rollouts:
            rows = [list(member(rollouts)) for member in self.members.values()]
            self._scored = rollouts, torch.tensor(rows, dtype=torch.float32)
        return self._scored[1]
