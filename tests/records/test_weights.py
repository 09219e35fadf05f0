"""Weights of named rewards outside the trainer."""

import json
from types import SimpleNamespace

from trimtab.records.weights import constrained_reward, reward_weights
from trimtab.storage.watched import WatchedRun, total_reward

RECIPE = {
    "rewards": {"helpful": {"weight": 2.0}, "harm": {"weight": 1.0}},
    "align": {"method": "rloo", "constraint": {"reward": "harm", "limit": 0.1}},
}


def test_a_cost_with_a_limit_weighs_nothing():
    assert reward_weights(RECIPE) == {"helpful": 2.0, "harm": 0.0} and constrained_reward(RECIPE) == "harm"
    free = RECIPE | {"align": {"method": "rloo", "constraint": None}}
    assert reward_weights(free) == {"helpful": 2.0, "harm": 1.0} and constrained_reward(free) is None
    assert reward_weights({}) == {} and reward_weights({"align": None, "rewards": None}) == {}


def test_the_watch_page_adds_up_as_the_metric_reward_does(tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps(RECIPE))
    weights = WatchedRun(tmp_path).reward_weights()
    harmless, harmful = (SimpleNamespace(rewards={"helpful": 1.0, "harm": cost}) for cost in (0.0, 3.0))
    assert total_reward(harmless, weights) == total_reward(harmful, weights) == 2.0  # type: ignore[arg-type]
