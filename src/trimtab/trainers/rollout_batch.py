"""The tensors of one rollout batch: sampled tokens, their scores, and the advantages computed from them.

Legend: B answers, T tokens (prompt and answer, right-padded; column t is about token t itself). ``[B, T]`` tensors are
0 where ``response_mask`` is False.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.models import Batch, scatter
from trimtab.models.batch import collate_answers
from trimtab.records import Rollout


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutBatch(Batch):
    """Answers to train on; each ``group`` consecutive rows answer one prompt. Constant during an update."""

    sampled_logprobs: Tensor
    """``[B, T]``, nats, log-probability of each token as the sampler reported it."""
    old_logprobs: Tensor
    """``[B, T]``, nats, under the policy before the update: the sampler's, or with ``importance_cap`` the trainer's."""
    reference_logprobs: Tensor
    """``[B, T]``, nats, under the reference."""
    scores: Tensor
    """``[B]``, reward units, the score of each whole answer after clipping and penalties."""
    rewards: Tensor
    """``[B, T]``, reward units, the reward of each token: the score at the last one, step rewards, and the KL penalty
    if it is part of the reward."""
    values: Tensor | None = None
    """``[B, T]``, reward units, the critic's value before each token; None: the method has no critic."""
    advantages: Tensor | None = None
    """``[B, T]``; None: the method uses none."""
    returns: Tensor | None = None
    """``[B, T]``, reward units, the critic's targets; None: the method has no critic."""
    importance: Tensor | None = None
    """``[B, T]``, importance weight of each token's loss, which corrects for the sampler's different kernels; None: not
    corrected."""
    wins: Tensor | None = None
    """``[B]``, P(the answer beats its opponent's); None: the method has no opponent."""
    uncertain: Tensor | None = None
    """``[B, T]`` bool, True: the policy's loss counts this token (``entropy_top``); None: it counts all."""

    @property
    def answered(self) -> Tensor:
        """``[B]`` bool, True: the answer has a token. Others are in no loss and in no group's mean."""
        return self.response_mask.any(dim=1)


def tokens_of(rollouts: Sequence[Rollout], device: torch.device) -> Batch:
    """Prompt and answer of each rollout as a batch; equal prompts are computed once."""
    return collate_answers([(r.prompt_tokens, r.tokens) for r in rollouts], device)


def rollout_batch(tokens: Batch, **columns: Any) -> RolloutBatch:
    """A :class:`RolloutBatch` of these tokens; ``columns`` are its other fields."""
    shared = {f.name: getattr(tokens, f.name) for f in fields(Batch)}
    return RolloutBatch(**shared, **columns)


def opponent_batch(rollouts: Sequence[Rollout], device: torch.device) -> RolloutBatch:
    """Answers that the reference drew: the sampler's log-probabilities are the reference's."""
    tokens = tokens_of(rollouts, device)
    sampled = scatter([r.logprobs for r in rollouts], tokens.response_mask)
    return rollout_batch(
        tokens,
        sampled_logprobs=sampled,
        old_logprobs=sampled,
        reference_logprobs=sampled,
        scores=torch.zeros(len(rollouts), device=device),
        rewards=torch.zeros_like(sampled),
    )


def with_reference(rollouts: Sequence[Rollout], reference: Tensor) -> list[Rollout]:
    """The rollouts with the log-probability of each produced token under the reference.

    Args:
        rollouts: B answers.
        reference: ``[B, T]``, nats, at the columns of :func:`tokens_of`.
    """
    rows = reference.cpu().tolist()
    return [
        replace(r, reference_logprobs=[round(x, 4) for x in row[len(r.prompt_tokens) :][: len(r.tokens)]])
        for r, row in zip(rollouts, rows, strict=True)
    ]
