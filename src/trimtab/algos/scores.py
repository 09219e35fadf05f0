"""Penalties on the score of an answer before it becomes a reward: for a missing end, or for being too long.

Shapes: B answers. Scores in reward units. Masks: True = as named.
"""

import math
from typing import Literal

import torch

from trimtab.algos.checks import boolean, full, same_shape
from trimtab.algos.shapes import MaskB, TensorB
from trimtab.errors import ConfigError


def penalise_missing_eos(
    scores: TensorB, ended: MaskB, *, penalty: float, mode: Literal["replace", "subtract"] = "replace"
) -> TensorB:
    """Scores with a penalty for answers that were cut before they ended their turn.

    ``replace``: s ← min(s, penalty), after the published code of Stiennon et al. 2020, which sets s ← penalty and so
    rewards being cut if an answer scores less; ``subtract``: s ← s − |penalty|. Answers that ended keep their score.
    Being cut never raises a score.

    Source: Stiennon et al. 2020 (arXiv 2009.01325), with the minimum instead of the assignment.

    Args:
        scores: ``[B]``, reward units, of whole answers.
        ended: ``[B]`` bool, True: the answer ended its turn.
        penalty: reward units.
        mode: ``replace`` or ``subtract``.

    Returns:
        ``[B]``; no gradient.

    Raises:
        ConfigError: a penalty that is NaN or infinite, or an unknown mode.
        TrainingError: the shapes differ, or ``ended`` is not bool.

    >>> penalise_missing_eos(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), penalty=-1.0).tolist()
    [2.0, -1.0]
    """
    if not math.isfinite(penalty):
        raise ConfigError(f"missing_eos penalty is {penalty}; set a finite number, or no penalty at all")
    if mode not in ("replace", "subtract"):
        raise ConfigError(f"missing_eos mode is {mode!r}; use 'replace' or 'subtract'")
    same_shape(scores=scores, ended=ended)
    boolean(ended=ended)
    scores = full(scores.detach())
    replaced = torch.where(scores < penalty, scores, penalty)  # NaN becomes the penalty
    return torch.where(ended, scores, replaced if mode == "replace" else scores - abs(penalty))


def overlong_penalty(lengths: TensorB, *, max_tokens: int, buffer: int) -> TensorB:
    """Soft overlong punishment: 0 up to L_max − L_cache tokens, then linearly down to −1 at L_max.

    −min(1, max(0, (|y| − (L_max − L_cache))/L_cache)). Source: DAPO, Yu et al. 2025 (arXiv 2503.14476), eq. 13.

    Args:
        lengths: ``[B]``, tokens of each answer.
        max_tokens: L_max, the most tokens an answer can have.
        buffer: L_cache, number of last tokens over which the penalty grows; from 1 to L_max.

    Returns:
        ``[B]`` float32, in [−1, 0], to be added to the scores.

    Raises:
        ConfigError: the buffer is not from 1 to ``max_tokens``.

    >>> overlong_penalty(torch.tensor([3, 4, 5, 8]), max_tokens=8, buffer=4).tolist()
    [-0.0, -0.0, -0.25, -1.0]
    """
    if not 1 <= buffer <= max_tokens:
        raise ConfigError(f"the overlong buffer is {buffer} tokens; set it from 1 to {max_tokens}, the longest answer")
    over = lengths.to(torch.float32) - (max_tokens - buffer)
    return -(over / buffer).clamp(0.0, 1.0)
