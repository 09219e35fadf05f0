"""Penalties to name in a recipe beside a reward that can be gamed: reward functions, to be weighed below 0.

``rewards: {length: {kind: function, path: trimtab.evals.penalties.length, mean: 40, std: 10, floor: 0, weight: -0.5}}``
takes half a unit of reward for every ten tokens beyond forty. ``mean`` is where a penalty begins, ``std`` its unit,
``floor: 0`` leaves what is below alone, ``cap`` limits it.
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
    """Share of each answer's 4-grams that it has said before, from 0 to 1; 0 below five words."""
    return [repeated_share(r.text) for r in rollouts]


def certainty(rollouts: Sequence[Rollout]) -> list[float]:
    """1 for an answer that claims certainty in words, otherwise 0. For prompts whose answers cannot be checked."""
    return [overconfidence(r.prompt.text, r.text) for r in rollouts]


def confident_error(rollouts: Sequence[Rollout]) -> list[float]:
    """1 for an answer that claims certainty in words and is wrong by the reference, otherwise 0.

    Being sure of a right answer costs nothing, and neither does a wrong answer with doubts. Right and wrong are as in
    :func:`trimtab.feedback.verifiers.arithmetic`.

    Raises:
        ScoringError: a prompt has no ``reference`` or ``answer`` with a number.
    """
    right = arithmetic(rollouts)
    return [sure * (1.0 - correct) for sure, correct in zip(certainty(rollouts), right, strict=True)]
