"""The weights of a recipe's named rewards, for code that shows or compares the total reward of answers."""

from collections.abc import Mapping
from typing import Any, cast

WATCHED = ("heldout", "spread")
"""Numbers about each answer that are logged beside its rewards and never trained on: the score of a held-out reward
model, and how far reward models disagree."""


def reward_weights(recipe: Mapping[str, Any]) -> dict[str, float]:
    """The weight of each named reward in a total outside the trainer; a reward that is not named weighs 1.

    A cost with a limit (``align.constraint``) weighs 0, as in the metric ``reward``: its price λ changes from step to
    step, so the cost is shown beside the total and not in it. So do :data:`WATCHED` numbers, where the recipe has
    several reward models.

    Args:
        recipe: a recipe as plain values, as in ``config.yaml``.

    >>> reward_weights({"rewards": {"help": {"weight": 2.0}, "harm": {}}, "align": {"constraint": {"reward": "harm"}}})
    {'help': 2.0, 'harm': 0.0}
    """
    sources = _section(recipe, "rewards")
    weights = {name: float(_section(sources, name).get("weight", 1.0)) for name in sources}
    cost = constrained_reward(recipe)
    reward = _section(recipe, "reward")
    several = bool(reward.get("split")) or reward.get("ensemble") is not None
    return weights | ({} if cost is None else {cost: 0.0}) | (dict.fromkeys(WATCHED, 0.0) if several else {})


def constrained_reward(recipe: Mapping[str, Any]) -> str | None:
    """The name of the reward that is a cost with a limit (``align.constraint.reward``); None without one."""
    return _section(_section(recipe, "align"), "constraint").get("reward")


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of plain values; empty where it is missing, null or no mapping."""
    section: object = values.get(name)
    return cast(Mapping[str, Any], section) if isinstance(section, Mapping) else {}
