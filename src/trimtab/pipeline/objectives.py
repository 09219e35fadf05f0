"""A reward model of several objectives: preferences by criterion, and one evaluation for each objective."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trimtab.errors import DataError
from trimtab.evals import RewardModelEval, evaluate_reward_model
from trimtab.records import Preference


def of_criteria(preferences: Sequence[Preference], objectives: Sequence[str], source: str) -> list[Preference]:
    """The preferences that a reward model with these objectives learns from.

    Raises:
        DataError: an objective has no preference, or there are several criteria but no objectives.
    """
    counts = Counter(p.criterion for p in preferences)
    if not objectives:
        if len(counts) > 1:
            raise DataError(
                f"{source}: preferences about several criteria ({_counted(counts)}), which one head cannot learn; name "
                "them in reward.objectives, or keep the rows of one"
            )
        return list(preferences)
    missing = [name for name in objectives if name not in counts]
    if missing and preferences:
        raise DataError(
            f"{source}: no preference is about the objective {missing[0]!r}; there are {_counted(counts)}. Correct the "
            "name in reward.objectives, or leave it out"
        )
    return [p for p in preferences if p.criterion in objectives]


def unnamed(criteria: Mapping[str, int], objectives: Sequence[str]) -> str | None:
    """A sentence about criteria that no objective names; None: there is none."""
    others = {name: count for name, count in criteria.items() if name not in objectives}
    return f"not named in reward.objectives and not learned from: {_counted(others)}" if others else None


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def by_criterion(preferences: Sequence[Preference]) -> dict[str, list[int]]:
    """Indices of the preferences about each criterion."""
    indices: dict[str, list[int]] = {}
    for i, p in enumerate(preferences):
        indices.setdefault(p.criterion, []).append(i)
    return indices


def baselines(chosen: Sequence[Preference], train: Sequence[Preference]) -> dict[str, list[list[float]]]:
    """Scores of the baselines, learned for each criterion from the training preferences about it."""
    from trimtab.evals.baselines import baseline_scores  # imports NumPy and SciPy

    scores: dict[str, list[list[float]]] = {}
    for criterion, indices in by_criterion(chosen).items():
        by_name = baseline_scores([chosen[i] for i in indices], train=[p for p in train if p.criterion == criterion])
        for name, rows in by_name.items():
            all_rows = scores.setdefault(name, [[] for _ in chosen])
            for i, row in zip(indices, rows, strict=True):
                all_rows[i] = row
    return scores


def evaluations(
    chosen: Sequence[Preference], scores: Sequence[Sequence[float]], baseline: Mapping[str, Sequence[Sequence[float]]]
) -> Iterator[tuple[str, RewardModelEval]]:
    """The evaluation of each objective separately."""
    for criterion, indices in by_criterion(chosen).items():
        by_name: dict[str, Any] = {name: [rows[i] for i in indices] for name, rows in baseline.items()}
        yield (
            criterion,
            evaluate_reward_model([chosen[i] for i in indices], [scores[i] for i in indices], baselines=by_name),
        )
