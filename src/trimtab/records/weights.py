"""The weights of a recipe's named rewards, for whoever shows or compares the total reward of answers."""

from collections.abc import Mapping
from typing import Any


def reward_weights(recipe: Mapping[str, Any]) -> dict[str, float]:
    """The weight of each named reward in a total outside the trainer; a reward that is not named weighs 1.

    A cost with a limit (``align.constraint``) weighs 0, as in the metric ``reward``: its price λ changes from step to
    step, so the cost is shown beside the total and not in it.

    Args:
        recipe: a recipe as plain values, as in ``config.yaml``.

    >>> reward_weights({"rewards": {"help": {"weight": 2.0}, "harm": {}}, "align": {"constraint": {"reward": "harm"}}})
    {'help': 2.0, 'harm': 0.0}
    """
    sources = recipe.get("rewards") or {}
    weights = {name: float(s.get("weight", 1.0)) for name, s in sources.items() if isinstance(s, Mapping)}
    cost = constrained_reward(recipe)
    return weights if cost is None else {**weights, cost: 0.0}


def constrained_reward(recipe: Mapping[str, Any]) -> str | None:
    """The name of the reward that is a cost with a limit (``align.constraint.reward``); None without one."""
    align = recipe.get("align")
    limit = align.get("constraint") if isinstance(align, Mapping) else None
    return limit.get("reward") if isinstance(limit, Mapping) else None
