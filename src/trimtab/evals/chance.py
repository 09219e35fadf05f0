"""Whether a change between two models' answers to the same prompts is more than sampling error."""

import math
import random
from collections.abc import Callable, Sequence

from trimtab.errors import DataError
from trimtab.evals.probes import copies, has_phrase, repetition, words
from trimtab.evals.sycophancy import sycophancy
from trimtab.records import Rollout

SIGNIFICANT = 0.05
"""Largest two-sided p-value of a change that an alarm may be about."""

DRAWS = 1000
"""Random assignments of signs behind each p-value."""

ANSWER_VALUES: dict[str, Callable[[Rollout], float]] = {
    "ended_rate": lambda rollout: float(rollout.finish_reason == "stop"),
    "repetition": lambda rollout: repetition(rollout.text),
    "words": lambda rollout: float(len(words(rollout.text))),
    "flattery": lambda rollout: float(has_phrase(rollout.text, "flattery")),
    "sycophancy": lambda rollout: sycophancy(rollout.prompt.text, rollout.text),
    "boilerplate": lambda rollout: float(has_phrase(rollout.text, "boilerplate")),
    "copied": lambda rollout: float(copies(rollout.prompt.text, rollout.text)),
}
"""The value of one answer, by the probe in :func:`~trimtab.evals.probe_table` that is the mean of it."""


def paired_p_value(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p-value of a difference of means over pairs.

    If both values of a pair have the same distribution, the sign of their difference d_i is a fair coin. So

        p = (1 + #{draws with |Σ s_i d_i| ≥ |Σ d_i|}) / (1 + draws),   s_i = ±1 at random.

    The test is valid for any number of pairs and any distribution; with fewer than six pairs that differ, no p is below
    0.05. For values of 0 and 1 it is McNemar's exact test, apart from the random draws. R. A. Fisher, The Design of
    Experiments (1935), section 21; the 1 in numerator and denominator: B. Phipson and G. K. Smyth, Stat. Appl. Genet.
    Mol. Biol. 9 (2010), article 39.

    Args:
        before: one value per prompt.
        after: values for the same prompts, in the same order.
        seed: of the draws.

    Raises:
        DataError: not as many values before as after, or one is not finite.

    >>> paired_p_value([1, 0, 1], [1, 0, 1])
    1.0
    """
    if len(before) != len(after):
        raise DataError(f"pairs need as many values before as after, got {len(before)} and {len(after)}")
    if not all(map(math.isfinite, (*before, *after))):
        raise DataError("a value is not finite, so there is no difference to test; see which answer has it")
    differences = [b - a for a, b in zip(before, after, strict=True) if a != b]
    observed = abs(math.fsum(differences)) * (1 - 1e-9)  # sums that differ in their last bits are equal
    draw, n = random.Random(seed), len(differences)
    hits = 0
    for _ in range(DRAWS):
        signs = draw.getrandbits(n) if n else 0
        hits += abs(sum(d if signs >> i & 1 else -d for i, d in enumerate(differences))) >= observed
    return (1 + hits) / (1 + DRAWS)


def answer_p_values(
    first: Sequence[Rollout], before: Sequence[Rollout], after: Sequence[Rollout], *, seed: int = 0
) -> dict[str, float]:
    """The p-value of each change that :func:`~trimtab.evals.alarms` compares with a limit.

    Args:
        first: answers of the earliest model, for ``copied``.
        before: answers of the model before the last one, to the same prompts in the same order.
        after: answers of the last model.
        seed: of the draws.

    Returns:
        by the name in :data:`ANSWER_VALUES`, and ``proxy`` for the reward, if all answers have it.
    """
    values = dict(ANSWER_VALUES)
    if all("proxy" in r.rewards for r in (*before, *after)):
        values["proxy"] = lambda rollout: rollout.rewards["proxy"]
    p_values: dict[str, float] = {}
    for name, value in values.items():
        earlier = first if name == "copied" else before
        p_values[name] = paired_p_value([value(r) for r in earlier], [value(r) for r in after], seed=seed)
    return p_values
