"""A reward model as a scorer: rollouts in, named reward components out."""

from collections.abc import Callable, Mapping, Sequence

import torch

from trimtab.models import PASS_TOKENS, FrozenStates, Role, collate
from trimtab.records import Rollout

Scorer = Callable[[Sequence[Rollout]], Mapping[str, Sequence[float]]]
"""Rewards of rollouts: one list of floats per named component, in the order of the rollouts."""


class RewardModelScorer:
    """Scores rollouts with a reward model.

    Args:
        role: the reward model.
        mean: subtracted from raw scores (its mean over the answers it was trained on).
        std: the difference is divided by it.
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
    def raw(self, rollouts: Sequence[Rollout]) -> torch.Tensor:
        """Unnormalised scores, ``[B]``."""
        parts = [self._tokens(r) for r in rollouts]
        sequences = [prompt + answer for prompt, answer in parts]
        batch = collate(
            sequences,
            [[False] * len(s) for s in sequences],
            self.role.backbone.device,
            prompt_lengths=[len(prompt) for prompt, _ in parts],
        )
        out = torch.empty(batch.size)
        for index, part in batch.micro_batches(self.micro_batch_tokens):
            out[index.cpu()] = self.role.scores(part, states=self.states).cpu()
        return out

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        """Normalised scores under the name ``reward_model``."""
        return {"reward_model": self.normalised(rollouts)}

    def normalised(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Normalised scores."""
        return ((self.raw(rollouts) - self.mean) / self.std).tolist() if rollouts else []

    def _tokens(self, rollout: Rollout) -> tuple[list[int], list[int]]:
        """Prompt and answer."""
        if self.same_tokens:
            return rollout.prompt_tokens, rollout.tokens
        chat, turns = self.role.backbone.chat, rollout.prompt.messages
        prompt = chat.prompt(turns)
        return prompt, chat.answer(turns, rollout.text, rollout.finish_reason).tokens[len(prompt) :]
