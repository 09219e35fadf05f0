"""A running scale against NumPy over everything so far; the price of a cost against its closed form."""

import math

import numpy as np
import pytest
import torch

from trimtab.algos import DualAscent, RunningScale, gdpo_advantage, group_advantage
from trimtab.errors import ConfigError, NonFiniteError, TrainingError


def test_running_scale_is_the_deviation_of_all_so_far():
    rng, scale, seen = np.random.default_rng(0), RunningScale(), []
    assert scale.value == 1.0
    for size in (1, 5, 0, 17):
        batch = (rng.normal(size=size) * 3 + 1000).tolist()
        seen += batch
        value = scale.update(batch)
        assert value == pytest.approx(np.std(seen) if len(seen) > 1 else 1.0, rel=1e-9)
    other = RunningScale()
    other.load_state_dict(scale.state_dict())
    assert other.update([7.0]) == scale.update([7.0])


def test_equal_rewards_are_left_as_they_are():
    assert RunningScale().update([5.0, 5.0]) == 1.0


def test_the_price_settles_where_the_cost_meets_its_limit():
    """Two answers, ref even, r = (1, 0), c = (1, 0), β = ½: E[c] = σ((1 − λ)/β) = d at λ* = 1 − β·log(d/(1 − d))."""
    beta, limit, price = 0.5, 0.2, DualAscent(0.0, limit=0.2, lr=0.2)
    for _ in range(2000):
        price.update(1 / (1 + math.exp(-(1 - price.value) / beta)))
    assert price.value == pytest.approx(1 - beta * math.log(limit / (1 - limit)), abs=1e-6)


def test_a_limit_that_holds_costs_nothing_and_a_price_has_its_end():
    price = DualAscent(0.3, limit=1.0, lr=0.5, largest=0.4)
    assert [price.update(c) for c in (0.0, 0.0, 9.0)] == [0.0, 0.0, 0.4]
    again = DualAscent(0.0, limit=1.0, lr=0.5)
    again.load_state_dict(price.state_dict())
    assert again.value == 0.4


@pytest.mark.parametrize("wrong", [{"initial": -1.0}, {"lr": 0.0}, {"limit": math.nan}, {"largest": 0.5}])
def test_prices_that_make_no_sense(wrong: dict):
    settings = {"initial": 1.0, "limit": 0.0, "lr": 0.1} | wrong
    with pytest.raises(ConfigError, match="the multiplier is"):
        DualAscent(settings.pop("initial"), **settings)


# GDPO ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", ["sample", "population"])
def test_gdpo_against_numpy(std):
    rng = np.random.default_rng(1)
    rewards, weights = rng.normal(size=(4, 5, 3)) * [1, 10, 100], np.array([1.0, 0.5, -2.0])
    spread = rewards.std(1, ddof=int(std == "sample"), keepdims=True)
    parts = (rewards - rewards.mean(1, keepdims=True)) / (spread + 1e-6)
    total = (parts * weights).sum(2)
    expected = (total - total.mean()) / np.sqrt(total.var() + 1e-8)
    ours = gdpo_advantage(torch.tensor(rewards), torch.tensor(weights), std=std)
    assert np.allclose(ours.numpy(), expected, atol=1e-9)


def test_gdpo_keeps_apart_what_the_sum_makes_equal():
    """The paper's example: (0, 1) beside (0, 2) has one advantage by the sum, in GDPO two rewards earn more than
    one."""
    one, two = ([[[0.0, 0.0], [1.0, 0.0]]], [[[0.0, 0.0], [1.0, 1.0]]])
    summed = [group_advantage(torch.tensor(x).sum(2))[0, 1].item() for x in (one, two)]
    assert summed[0] == pytest.approx(summed[1], abs=1e-5)
    both = gdpo_advantage(torch.tensor(one + two), torch.ones(2))
    assert both[1, 1] > 1.9 * both[0, 1]


def test_gdpo_does_not_see_masked_answers_and_names_bad_ones():
    rewards = torch.tensor([[[1.0, 2.0], [0.0, 5.0], [math.nan, 0.0]]])
    mask = torch.tensor([[True, True, False]])
    alone = gdpo_advantage(rewards[:, :2], torch.ones(2))
    assert torch.allclose(gdpo_advantage(rewards, torch.ones(2), mask)[:, :2], alone)
    with pytest.raises(NonFiniteError, match="answer 2 in group 0"):
        gdpo_advantage(rewards, torch.ones(2))
    with pytest.raises(TrainingError, match=r"weights \[3\]; expected"):
        gdpo_advantage(rewards, torch.ones(3))
