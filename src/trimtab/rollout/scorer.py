"""A reward model as a scorer: from rollouts to named reward components."""

from collections.abc import Callable, Mapping, Sequence

import torch

from trimtab.models import PASS_TOKENS, FrozenStates, Role
from trimtab.models.batch import collate_answers
from trimtab.records import Rollout

Scorer = Callable[[Sequence[Rollout]], Mapping[str, Sequence[float]]]
"""Rewards of rollouts: one list of floats per named component, in the order of the rollouts."""


class ObjectiveScorer:
    """Normalised scores of a reward model of several objectives, one pass for all of them.

    Args:
        scorer: scorer of the reward model.
        scales: mean and standard deviation of each objective over its training answers, in the order of the heads.
    """

    def __init__(self, scorer: "RewardModelScorer", scales: Mapping[str, tuple[float, float]]) -> None:
        self.scorer, self.scales = scorer, dict(scales)
        self._scored: tuple[Sequence[Rollout], torch.Tensor] | None = None

    def reward(self, objective: str) -> Callable[[Sequence[Rollout]], list[float]]:
        """The scores by one objective, as a reward function."""
        head = list(self.scales).index(objective)
        mean, std = self.scales[objective]

        def scores(rollouts: Sequence[Rollout]) -> list[float]:
            if not rollouts:
                return []
            if self._scored is None or self._scored[0] is not rollouts:
                self._scored = rollouts, self.scorer.head_scores(rollouts)
            return ((self._scored[1][:, head] - mean) / std).tolist()

        return scores


class RewardModelScorer:
    """Scores rollouts with a reward model.

    Args:
        role: the reward model.
        mean: subtracted from raw scores (its mean over the answers it was trained on).
        std: standard deviation that the difference is divided by.
        same_tokens: True: it shares the policy's tokenizer and sees exactly the tokens the policy produced.
            False: the answer's text is rendered with the reward model's own chat template.
        micro_batch_tokens: padded tokens per forward pass.
        states: states of frozen layers, shared with the sampler and the trainer; None: all layers are run.
    """

    def __init__(
        self,
        role: Role,
        *,
        mean: float = 0.0,
        std: float = 1.0,
        same_tokens: bool = True,
        micro_batch_tokens: int = PASS_TOKENS,
        states: FrozenStates | None = None,
    ) -> None:
        self.role, self.mean, self.std = role, mean, std
        self.same_tokens, self.micro_batch_tokens, self.states = same_tokens, micro_batch_tokens, states

    @torch.no_grad()
    def head_scores(self, rollouts: Sequence[Rollout]) -> torch.Tensor:
        """Unnormalised scores of all heads, ``[B, heads]``."""
        assert self.role.scalar is not None
        batch = collate_answers([self._tokens(r) for r in rollouts], self.role.backbone.device)
        out = torch.empty(batch.size, len(self.role.scalar.weight))
        for index, part in batch.micro_batches(self.micro_batch_tokens):
            out[index.cpu()] = self.role.head_scores(part, states=self.states).cpu()
        return out

    def raw(self, rollouts: Sequence[Rollout]) -> torch.Tensor:
        """Unnormalised scores of the first head, ``[B]``."""
        return self.head_scores(rollouts)[:, 0]

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        """Normalised scores under the name ``reward_model``."""
        return {"reward_model": self.normalised(rollouts)}

    def normalised(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Normalised scores of the first head."""
        return ((self.raw(rollouts) - self.mean) / self.std).tolist() if rollouts else []

    def _tokens(self, rollout: Rollout) -> tuple[list[int], list[int]]:
        """Prompt and answer."""
        if self.same_tokens:
            return rollout.prompt_tokens, rollout.tokens
        chat, turns = self.role.backbone.chat, rollout.prompt.messages
        prompt = chat.prompt(turns)
        return prompt, chat.answer(turns, rollout.text, rollout.finish_reason).tokens[len(prompt) :]
