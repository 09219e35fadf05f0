"""How far several reward models err together: the correlation of their errors, and their effective number.

Members help each other only where their errors differ. On each held-out pair, member m has the error e_m: 1 if it ranks
the pair against its label, ½ if it scores both answers alike, 0 otherwise. With ρ̄ the mean correlation of e over all
pairs of members, M members are worth M / (1 + (M − 1)·ρ̄) independent members. This is the factor by which the variance
of a mean of M equally correlated numbers is smaller than that of one number (Kish's design effect).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

from trimtab.errors import DataError
from trimtab.feedback.intervals import RESAMPLES, Estimate, resampled
from trimtab.records import Preference, Record


class MemberErrors(Record):
    """The errors of several reward models on the same pairs."""

    names: tuple[str, ...]
    """The models."""
    error_rates: tuple[float, ...]
    """Share of pairs that each model ranks against their label; a tie counts half."""
    correlation: Estimate
    """ρ̄, mean correlation of errors over all pairs of models; the interval resamples prompts."""
    effective: Estimate
    """Number of independent models that they are worth, from 1 to the number of models; a negative ρ̄ counts as 0."""


def member_errors(
    preferences: Sequence[Preference], scores: Mapping[str, Sequence[Sequence[float]]], *, seed: int = 0
) -> MemberErrors:
    """Compare models on all strict pairs of some preferences.

    Args:
        preferences: held-out preferences.
        scores: by model, ``scores[name][i][k]``: score of answer k of preference i.
        seed: of the bootstrap.

    Raises:
        DataError: fewer than two models, or no strict pair.
    """
    if len(scores) < 2:
        raise DataError(f"errors are compared between two models or more, got {len(scores)}; train an ensemble")
    errors: dict[str, list[float]] = {name: [] for name in scores}
    prompts: list[str] = []
    for i, preference in enumerate(preferences):
        ranks = preference.ranks
        for a in range(len(ranks)):
            for b in range(len(ranks)):
                if ranks[a] < ranks[b]:
                    prompts.append(preference.prompt.id)
                    for name, rows in scores.items():
                        gap = rows[i][a] - rows[i][b]
                        errors[name].append(0.5 if gap == 0 else float(gap < 0))
    if not prompts:
        raise DataError(f"none of {len(preferences)} held-out preferences has a better and a worse answer to compare")
    rows = list(errors.values())
    mean = mean_correlation(rows)
    pair_indices: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        pair_indices.setdefault(prompt, []).append(index)

    def correlation(groups: Sequence[Sequence[int]]) -> float | None:
        return mean_correlation([[row[index] for group in groups for index in group] for row in rows])

    samples = resampled(list(pair_indices.values()), correlation, seed=seed)
    reason = "a model makes no error, or only errors, so they have no correlation" if mean is None else ""
    low, high = None, None
    if mean is not None and len(samples) >= RESAMPLES // 2:
        low, high = samples[int(0.025 * len(samples))], samples[int(0.975 * len(samples))]
    common_fields = {"n": len(prompts), "reason": reason}
    value, value_low, value_high = (None if r is None else effective_number(len(rows), r) for r in (mean, high, low))
    return MemberErrors(
        names=tuple(errors),
        error_rates=tuple(sum(row) / len(row) for row in rows),
        correlation=Estimate(name="correlation of errors", value=mean, low=low, high=high, **common_fields),
        effective=Estimate(
            name="effective number of models", value=value, low=value_low, high=value_high, **common_fields
        ),
    )


def effective_number(members: int, correlation: float) -> float:
    """M / (1 + (M − 1)·ρ̄); a negative ρ̄ counts as 0.

    >>> effective_number(4, 0.0), effective_number(4, 1.0), effective_number(3, 0.25)
    (4.0, 1.0, 2.0)
    """
    return members / (1 + (members - 1) * max(correlation, 0.0))


def mean_correlation(rows: Sequence[Sequence[float]]) -> float | None:
    """Mean Pearson correlation over all pairs of rows; None if any row is constant.

    >>> mean_correlation([[0, 1, 1, 0], [0, 1, 0, 1]])
    0.0
    """
    centred, norms = [], []
    for row in rows:
        mean = sum(row) / len(row)
        centred.append([x - mean for x in row])
        norms.append(math.sqrt(sum(x * x for x in centred[-1])))
    if min(norms) < 1e-12:
        return None
    values = [
        sum(x * y for x, y in zip(centred[i], centred[j], strict=True)) / (norms[i] * norms[j])
        for i, j in combinations(range(len(rows)), 2)
    ]
    return sum(values) / len(values)
