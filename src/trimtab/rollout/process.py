"""A process reward model as a scorer: from rollouts to P(right) at the end of every step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.algos import process_score
from trimtab.models import PASS_TOKENS, Batch, FrozenStates, Role
from trimtab.models.batch import collate_answers
from trimtab.records import Rollout
from trimtab.rollout.rewards import ProcessReward, RewardFunction, step_ends


def step_logits(role: Role, batch: Batch, *, states: FrozenStates | None = None) -> Tensor:
    """The head at every token, ``[B, T]`` float32: logit of P(the step that ends here is right)."""
    assert role.scalar is not None
    hidden = role.hidden(batch, states=states)
    return role.scalar(hidden.to(role.scalar.weight.dtype)).squeeze(-1).float()


class ProcessScorer:
    """Scores the steps of rollouts with a process reward model that shares the policy's tokenizer.

    Args:
        role: the model.
        separator: what separates the steps of an answer.
        micro_batch_tokens: padded tokens per forward pass.
        states: states of frozen layers, shared with the sampler and the trainer; None: all layers are run.
    """

    def __init__(
        self,
        role: Role,
        separator: str,
        *,
        micro_batch_tokens: int = PASS_TOKENS,
        states: FrozenStates | None = None,
    ) -> None:
        self.role, self.separator = role, separator
        self.micro_batch_tokens, self.states = micro_batch_tokens, states

    @torch.no_grad()
    def steps(self, rollouts: Sequence[Rollout]) -> list[list[tuple[int, float]]]:
        """For each answer, the place of each step's last token and the step's logit."""
        if not rollouts:
            return []
        decode = self.role.backbone.chat.decode
        ends = [step_ends(r, self.separator, decode) for r in rollouts]
        batch = collate_answers([(r.prompt_tokens, r.tokens) for r in rollouts], self.role.backbone.device)
        values: list[list[tuple[int, float]]] = [[] for _ in rollouts]
        for index, part in batch.micro_batches(self.micro_batch_tokens):
            logits = step_logits(self.role, part, states=self.states).cpu()
            for row, number in enumerate(index.tolist()):
                start = len(rollouts[number].prompt_tokens)
                values[number] = [(end, float(logits[row, start + end])) for end in ends[number]]
        return values

    def reward(self, source: ProcessReward) -> RewardFunction:
        """The reward as the recipe configures it: (place, P(right) − 1) pairs, or one number per answer."""

        def by_step(rollouts: Sequence[Rollout]) -> list[list[tuple[int, float]]]:
            scored = self.steps(rollouts)
            return [[(end, float(torch.tensor(z).sigmoid()) - 1.0) for end, z in row] for row in scored]

        def whole(rollouts: Sequence[Rollout]) -> list[float]:
            return solution_scores([[z for _, z in row] for row in self.steps(rollouts)], source.score)

        return by_step if source.score == "steps" else whole


def solution_scores(logits: Sequence[Sequence[float]], how: Any) -> list[float]:
    """:func:`trimtab.algos.process_score` of solutions with different numbers of steps."""
    width = max((len(row) for row in logits), default=0)
    if not width:
        return []
    padded = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in logits])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in logits])
    return process_score(padded, mask, how=how).tolist()
