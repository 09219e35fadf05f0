"""Experiments whose result is known before they are run.

Experiments 2 to 6, 9 and 10 run the trainers of language models; 1 and the gradients of 2 take their advantages and
their reduction of the loss, 7 the loss of process rewards in a loop of its own, and 8 formulas by enumeration.

J(π) = E_π[r] − β·KL(π‖ref) is largest at π* ∝ ref·exp(r/β), and J(π*) − J(π) = β·KL(π‖π*): the
distance to the optimum is exact, and no answer has to be judged.
"""

from collections.abc import Iterator, Sequence

from trimtab.conformance.constraints import constraints
from trimtab.conformance.games import games
from trimtab.conformance.label_experiments import preference_identities, process_and_outcome, reward_efficiency
from trimtab.conformance.off_policy import off_policy
from trimtab.conformance.preference_optima import preference_optima
from trimtab.conformance.rl_experiments import (
    divergence_ends,
    divergence_gradients,
    estimators,
    gibbs_bandit,
    goodhart,
    token_mdp,
)
from trimtab.conformance.rows import Experiment, Row

FAST: tuple[Experiment, ...] = (
    estimators,
    divergence_gradients,
    preference_identities,
    preference_optima,
    goodhart,
    process_and_outcome,
    off_policy,
)
"""Seconds each."""

LONG: tuple[Experiment, ...] = (gibbs_bandit, divergence_ends, token_mdp, reward_efficiency, constraints, games)
"""Minutes each."""


def conformance(seeds: Sequence[int], *, long: bool) -> Iterator[Row]:
    """Every row of the table, as soon as it is known."""
    for experiment in FAST + (LONG if long else ()):
        yield from experiment(seeds)
