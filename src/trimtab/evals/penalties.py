"""Penalties for a recipe whose reward can be gamed: reward functions that are given a negative weight.

``rewards: {length: {kind: function, path: trimtab.evals.penalties.length, mean: 40, std: 10, floor: 0, weight: -0.5}}``
subtracts half a unit of reward for every ten tokens beyond forty. The penalty begins at ``mean`` and is measured in
units of ``std``; ``floor: 0`` leaves values below ``mean`` alone, and ``cap`` limits the penalty.
"""

from collections.abc import Sequence

from trimtab.evals.answer_probes import overconfidence
from trimtab.evals.probes import repetition as repeated_share
from trimtab.feedback.verifiers import arithmetic
from trimtab.records import Rollout


def length(rollouts: Sequence[Rollout]) -> list[float]:
    """Tokens of each answer."""
    return [float(len(r.tokens)) for r in rollouts]


def repetition(rollouts: Sequence[Rollout]) -> list[float]:
    """Share of each answer's 4-grams that repeat an earlier one, from 0 to 1; 0 below five words."""
    return [repeated_share(r.text) for r in rollouts]


def certainty(rollouts: Sequence[Rollout]) -> list[float]:
    """1 for an answer that claims certainty in words, otherwise 0. For prompts whose answers cannot be checked."""
    return [overconfidence(r.prompt.text, r.text) for r in rollouts]


def confident_error(rollouts: Sequence[Rollout]) -> list[float]:
    """1 for an answer that claims certainty in words and is wrong by the reference, otherwise 0.

    A right answer with certainty costs nothing, and neither does a wrong answer without it. Right and wrong are as in
    :func:`trimtab.feedback.verifiers.arithmetic`.

    Raises:
        ScoringError: a prompt has no ``reference`` or ``answer`` with a number.
    """
    correctness = arithmetic(rollouts)
    return [certain * (1.0 - correct) for certain, correct in zip(certainty(rollouts), correctness, strict=True)]
