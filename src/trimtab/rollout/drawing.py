"""From logits to tokens: each token inverts the cumulative distribution at one uniform random number."""

import hashlib
import random

import torch
from torch import Tensor

BLOCK = 256
"""Tokens per block of the vocabulary when a cumulative distribution is inverted."""


def answer_stream(seed: int, prompt_id: str, index: int) -> random.Random:
    """The random stream of one answer, from the seed, its prompt and its place in the group."""
    digest = hashlib.sha256(f"{seed}|{prompt_id}|{index}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def invert(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes ``uniform``: ``[B, V]``, ``[B]`` → ``[B]``.

    The search first selects a block of the vocabulary and then a token in it, so no cumulative sum runs over
    the whole vocabulary.
    """
    rows, size = logits.shape
    shares = torch.exp(logits - logits.max(dim=-1, keepdim=True).values)
    padded = torch.nn.functional.pad(shares, (0, -size % BLOCK)).view(rows, -1, BLOCK)
    blocks = padded.sum(dim=-1).double().cumsum(dim=-1)
    # Scaling by the total, not dividing by it, absorbs rounding: a uniform number < 1 always falls inside.
    goal = uniform * blocks[:, -1]
    block = torch.searchsorted(blocks, goal[:, None], right=True).clamp(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = padded.gather(1, block[..., None].expand(-1, 1, BLOCK)).squeeze(1).double().cumsum(dim=-1)
    place = torch.searchsorted(inside, goal[:, None] - before, right=True)
    # Rounding between the two sums can step past the block's last token that has any probability.
    last = (padded.gather(1, block[..., None].expand(-1, 1, BLOCK)).squeeze(1) > 0).long()
    last = BLOCK - 1 - last.flip(-1).argmax(dim=-1, keepdim=True)
    return (block * BLOCK + torch.minimum(place, last)).squeeze(1).clamp(max=size - 1)


def nucleus(logits: Tensor, top_p: float | Tensor) -> Tensor:
    """Logits of the smallest set of most likely tokens with mass ≥ ``top_p``; −∞ for the others.

    The most likely token is always in the set, even if ``top_p`` rounds to 0.

    Args:
        logits: ``[B, V]``.
        top_p: one for all rows, or ``[B, 1]``.
    """
    ordered, index = logits.sort(dim=-1, descending=True)
    mass = torch.softmax(ordered, dim=-1)
    chosen = mass.cumsum(dim=-1) - mass < top_p
    chosen[:, 0] = True
    inside = torch.where(chosen, ordered, torch.full_like(ordered, -torch.inf))
    return torch.empty_like(logits).scatter(-1, index, inside)
