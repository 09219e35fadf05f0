"""What a unit of the reward is worth to a method that compares answers, by the scale of the reward model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trimtab.files import write_json
from trimtab.pipeline.learning import _log_odds
from trimtab.rollout import EnsembleConfig, FunctionReward, ModelReward, NamedRewards, RewardModels


@pytest.mark.parametrize(
    ("others", "ensemble", "expected"),
    [
        ({}, None, 3.0),
        ({"heldout": 0.0}, None, 3.0),
        ({"rule": 0.1}, None, 1.0),
        ({}, EnsembleConfig(), 1.0),
    ],
    ids=["alone", "beside a judge that weighs nothing", "beside another", "ensemble"],
)
def test_log_odds_of_a_unit(others: dict[str, float], ensemble: EnsembleConfig | None, expected: float, tmp_path: Path):
    """The model divides its raw score by 1.5, the recipe by 2 more, and weighs it −1: one unit is 3 raw units."""
    write_json(tmp_path / "reward.json", {"mean": 0.0, "std": 1.5, "evaluation": None})
    sources: dict[str, Any] = {"m": ModelReward(std=2.0, weight=-1.0)}
    sources |= {name: FunctionReward(path="a.b", weight=weight) for name, weight in others.items()}
    rewards = NamedRewards(sources, {name: lambda rollouts: [] for name in sources})
    context = cast(Any, SimpleNamespace(folder=lambda stage: tmp_path))
    assert _log_odds(context, rewards, RewardModels({"reward": lambda rollouts: []}, config=ensemble)) == expected
    assert _log_odds(context, rewards, None) == 1.0
