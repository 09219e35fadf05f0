"""How often one model's answer beats another's on the same prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.errors import ScoringError
from trimtab.feedback.intervals import tied_wilson_interval


@dataclass(frozen=True, kw_only=True, slots=True)
class WinRate:
    """Share of prompts on which model A won, with its 95 % interval; a tie counts half."""

    rate: float
    """(wins + ties / 2) / n."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    wins: int
    """Prompts on which A scored higher."""
    ties: int
    """Prompts on which both scored the same."""
    losses: int
    """Prompts on which B scored higher."""
    n: int
    """Prompts compared."""


def win_rate(scores_a: Sequence[float], scores_b: Sequence[float], *, tie: float = 1e-9) -> WinRate:
    """Win rate of A over B: ``scores_a[i]`` and ``scores_b[i]`` are for answers to the same prompt i.

    The interval is :func:`~trimtab.feedback.intervals.tied_wilson_interval`. Unlike the bootstrap, it does not shrink
    to a point if A always wins.

    Args:
        scores_a: one finite score per prompt.
        scores_b: scores for the same prompts in the same order.
        tie: scores that differ by no more than this are equal.

    Raises:
        ScoringError: no prompts, different numbers of them, or a score that is not finite.
    """
    if len(scores_a) != len(scores_b) or not scores_a:
        raise ScoringError(
            f"a win rate needs one score per prompt from both models, got {len(scores_a)} and {len(scores_b)}; "
            "score both models on the same prompts"
        )
    not_finite = [i for i, pair in enumerate(zip(scores_a, scores_b, strict=True)) if not all(map(math.isfinite, pair))]
    if not_finite:
        i = not_finite[0]
        raise ScoringError(
            f"prompt {i}: scores {scores_a[i]} and {scores_b[i]}, expected finite numbers "
            f"({len(not_finite)} such prompts); leave these prompts out for both models or mend the scorer"
        )
    differences = [a - b for a, b in zip(scores_a, scores_b, strict=True)]
    wins = sum(d > tie for d in differences)
    losses = sum(d < -tie for d in differences)
    n = len(differences)
    ties = n - wins - losses
    low, high = tied_wilson_interval(wins, ties, losses)
    return WinRate(rate=(wins + ties / 2) / n, low=low, high=high, wins=wins, ties=ties, losses=losses, n=n)
