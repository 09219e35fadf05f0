"""The learning curve of a bag of words on preferences: what more labels have brought so far.

This module imports NumPy and SciPy, so it is imported where it is used and not with the package.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trimtab.errors import DataError
from trimtab.evals.baselines import word_score, word_weights
from trimtab.feedback.learning_curve import RESAMPLINGS, LearningCurve, doubling_sizes
from trimtab.records import Preference

TEST = 0.2
"""Share of the groups that each resampling keeps as its test set."""


def word_curve(preferences: Sequence[Preference], *, cluster: str | None = None, seed: int = 0) -> LearningCurve:
    """Accuracy of a bag of words after more and more preferences, with six sizes in ten resamplings.

    Each resampling splits the groups (prompts, or the values of the metadata key ``cluster``) anew into a training and
    a test set. It shuffles the training set once and trains on larger and larger parts from its start.

    Raises:
        DataError: fewer than two groups, too few preferences, or a key that some preferences do not have.
    """
    strict_preferences = [p for p in preferences if len(set(p.ranks)) > 1]
    groups = [_group(p, cluster) for p in strict_preferences]
    names = sorted(set(groups))
    if len(names) < 2:
        raise DataError(
            f"{len(strict_preferences)} of {len(preferences)} preferences have a winner, in {len(names)} groups; a "
            "learning curve needs two groups or more, so that the test set has others than the training set"
        )
    splits: list[tuple[list[Preference], list[Preference]]] = []
    for number in range(RESAMPLINGS):
        rng = random.Random(f"{seed}|{number}")
        test_groups = set(rng.sample(names, max(1, round(TEST * len(names)))))
        train = [p for p, g in zip(strict_preferences, groups, strict=True) if g not in test_groups]
        rng.shuffle(train)
        splits.append((train, [p for p, g in zip(strict_preferences, groups, strict=True) if g in test_groups]))
    sizes = doubling_sizes(min(len(train) for train, _ in splits))
    values = [[_accuracy(train[:size], test, seed) for train, test in splits] for size in sizes]
    return LearningCurve(sizes=sizes, values=np.array(values), shared=TEST / (1 - TEST))


def _group(preference: Preference, cluster: str | None) -> str:
    if cluster is None:
        return preference.prompt.id
    metadata = preference.prompt.metadata | preference.metadata
    if cluster not in metadata:
        raise DataError(
            f"preference {preference.id} has no metadata {cluster!r}; it has {', '.join(metadata) or 'none'}"
        )
    return str(metadata[cluster])


def _accuracy(train: Sequence[Preference], test: Sequence[Preference], seed: int) -> float:
    """Share of the strict pairs of the test set whose winner has the higher score; equal scores count half."""
    weights = word_weights(train, seed=seed)
    outcomes: list[float] = []
    for p in test:
        scores = [word_score(c.text, weights) for c in p.completions]
        pairs = [(i, j) for i in range(len(scores)) for j in range(len(scores)) if p.ranks[i] < p.ranks[j]]
        outcomes += [0.5 + 0.5 * float(np.sign(scores[i] - scores[j])) for i, j in pairs]
    return float(np.mean(outcomes))


def read_curve(path: Path) -> LearningCurve:
    """Read a learning curve measured with another model: ``{"sizes": [S], "values": [S][J], "shared": ρ}``.

    Raises:
        DataError: the file cannot be read or has another form.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        sizes = tuple(int(n) for n in data["sizes"])
        values = np.array(data["values"], dtype=float)
        return LearningCurve(sizes=sizes, values=values, shared=float(data.get("shared", TEST / (1 - TEST))))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{path}: not a learning curve ({error}); expected {{"sizes": [25, …], "values": [[accuracy of each '
            "resampling], …]}"
        ) from None
