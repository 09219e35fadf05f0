"""Advantages: golden values, plain loops beside them, and the traps of masked spans and poisoned groups."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.algos import (
    bootstrapped_rewards,
    gae,
    group_advantage,
    group_has_spread,
    reinforce_pp_advantage,
    rloo_advantage,
    whiten,
)
from trimtab.errors import ConfigError, NonFiniteError, TrainingError

NAN = math.nan


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


# GAE -------------------------------------------------------------------------------------------


def test_gae_golden():
    """δ = (.2, .1, .5); A₃ = .5, A₂ = .1 + .5·.5, A₁ = .2 + .5·.35."""
    advantages, returns = gae(row(0, 0, 1), row(0.2, 0.4, 0.5), row(1, 1, 1).bool(), gamma=1.0, lam=0.5)
    assert advantages[0].tolist() == pytest.approx([0.375, 0.35, 0.5])
    assert returns[0].tolist() == pytest.approx([0.575, 0.75, 1.0])


@pytest.mark.parametrize("garbage", [0.0, NAN, math.inf])
def test_gae_is_carried_over_a_masked_span(garbage: float):
    """Trap 2: δ_first = 0 + .5 − .5, A_first = .95·(1 − .5) = +.475, however long the span is."""
    mask = torch.tensor([[True] + [False] * 20 + [True]])
    rewards = torch.full((1, 22), garbage)
    values = torch.full((1, 22), garbage)
    rewards[0, 0], rewards[0, -1] = 0.0, 1.0
    values[0, 0] = values[0, -1] = 0.5
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    assert advantages[0, 0].item() == pytest.approx(0.475)
    assert advantages[0, -1].item() == pytest.approx(0.5)
    assert not advantages[0, 1:-1].any() and not returns[0, 1:-1].any()


def test_what_stepping_through_the_span_would_give():
    """The wrong number of trap 2, so that nobody mistakes it for a rounding matter."""
    values = torch.zeros(1, 22)
    values[0, 0] = values[0, -1] = 0.5
    rewards = torch.zeros(1, 22)
    rewards[0, -1] = 1.0
    stepped, _ = gae(rewards, values, torch.ones(1, 22, dtype=torch.bool), gamma=1.0, lam=0.95)
    assert stepped[0, 0].item() == pytest.approx(-0.1505, abs=5e-5)


def test_bootstrapped_rewards_are_gae_with_a_value_after_the_end():
    """Two ways to the same numbers: a value after the end, or the reward that it is worth."""
    g = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, 4, 6, generator=g, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    after, cut = torch.randn(4, generator=g, dtype=torch.float64), torch.tensor([True, True, False, True])
    for gamma, lam in ((1.0, 0.95), (0.9, 0.5)):
        direct = gae(rewards, values, mask, gamma=gamma, lam=lam, bootstrap=torch.where(cut, after, 0.0))
        earned = bootstrapped_rewards(rewards, after, cut, mask, gamma=gamma)
        for a, b in zip(direct, gae(earned, values, mask, gamma=gamma, lam=lam), strict=True):
            assert torch.allclose(a, b, atol=1e-12)
    with pytest.raises(ConfigError, match="gamma is 2"):
        bootstrapped_rewards(rewards, after, cut, mask, gamma=2.0)


def plain_gae(
    rewards: list[float], values: list[float], mask: list[bool], gamma: float, lam: float, end: float
) -> list[float]:
    """GAE as the sum of its definition, eq. 16: A_t = Σ_l (γλ)^l δ_{t+l} over counting tokens."""
    places = [i for i, counts in enumerate(mask) if counts]
    after = [*(values[i] for i in places), end][1:]
    deltas = [rewards[i] + gamma * v - values[i] for i, v in zip(places, after, strict=True)]
    out = [0.0] * len(mask)
    for n, i in enumerate(places):
        out[i] = sum((gamma * lam) ** (m - n) * deltas[m] for m in range(n, len(places)))
    return out


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_gae_against_a_plain_loop(seed: int, gamma: float, lam: float, cut: bool):
    g = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(3, 6, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(3, 6, generator=g) < 0.6
    end = torch.randn(3, generator=g, dtype=torch.float64) if cut else None
    dirty = torch.where(mask, rewards, NAN), torch.where(mask, values, NAN)
    advantages, returns = gae(*dirty, mask, gamma=gamma, lam=lam, bootstrap=end)
    for b in range(3):
        last = 0.0 if end is None else end[b].item()
        expected = plain_gae(rewards[b].tolist(), values[b].tolist(), mask[b].tolist(), gamma, lam, last)
        assert advantages[b].tolist() == pytest.approx(expected, abs=1e-12)
        summed = [a + v if m else 0.0 for a, v, m in zip(expected, values[b].tolist(), mask[b].tolist(), strict=True)]
        assert returns[b].tolist() == pytest.approx(summed, abs=1e-12)


def test_lambda_one_is_return_minus_value_and_zero_is_one_step():
    rewards, values, mask = row(1, 2, 4), row(0.1, 0.2, 0.3), row(1, 1, 1).bool()
    assert gae(rewards, values, mask, gamma=0.5, lam=1.0)[1][0].tolist() == pytest.approx([3.0, 4.0, 4.0])
    assert gae(rewards, values, mask, gamma=0.5, lam=0.0)[0][0].tolist() == pytest.approx([1.0, 1.95, 3.7])


def test_bootstrap_of_a_cut_answer():
    """Trap 9: ended answers stop at 0, cut ones go on at the critic's value."""
    rewards, values = torch.zeros(2, 2), torch.full((2, 2), 0.5)
    mask = torch.ones(2, 2, dtype=torch.bool)
    advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=1.0, bootstrap=torch.tensor([0.0, 0.5]))
    assert advantages.tolist() == [[-0.5, -0.5], [0.0, 0.0]]


def test_right_padding_changes_nothing():
    args = row(0, 0, 1), row(0.2, 0.4, 0.5), row(1, 1, 1).bool()
    wide = torch.cat([args[0], row(9, NAN)], 1), torch.cat([args[1], row(NAN, 9)], 1)
    mask = torch.cat([args[2], row(0, 0).bool()], 1)
    assert gae(*wide, mask, gamma=1.0, lam=0.5)[0][0, :3].tolist() == gae(*args, gamma=1.0, lam=0.5)[0][0].tolist()


def test_advantages_and_returns_are_constants():
    values = row(0.2, 0.4).requires_grad_()
    advantages, returns = gae(row(0, 1), values, row(1, 1).bool(), gamma=1.0, lam=0.9)
    assert not advantages.requires_grad and not returns.requires_grad


def test_gae_refuses():
    good = row(0, 1), row(0, 1), row(1, 1).bool()
    with pytest.raises(ConfigError, match=r"gamma is 1\.5"):
        gae(*good, gamma=1.5, lam=0.9)
    with pytest.raises(ConfigError, match="lam is nan"):
        gae(*good, gamma=1.0, lam=NAN)
    with pytest.raises(TrainingError, match="shapes differ"):
        gae(row(0, 1, 2), *good[1:], gamma=1.0, lam=0.9)
    with pytest.raises(TrainingError, match="bootstrap"):
        gae(*good, gamma=1.0, lam=0.9, bootstrap=torch.zeros(1, 1))
    with pytest.raises(TrainingError, match="bool"):
        gae(*good[:2], row(1, 1), gamma=1.0, lam=0.9)
    for bad in (torch.zeros(2), torch.zeros(1, 0)):
        with pytest.raises(TrainingError, match="two dimensions"):
            gae(bad, bad, bad.bool(), gamma=1.0, lam=0.9)


# Groups ------------------------------------------------------------------------------------------

ONE_OF_FOUR = row(1, 0, 0, 0)


def test_group_goldens():
    sample, population = statistics.stdev([1, 0, 0, 0]), statistics.pstdev([1, 0, 0, 0])
    assert (0.75 / sample, -0.25 / sample) == pytest.approx((1.5, -0.5))
    assert (0.75 / population, -0.25 / population) == pytest.approx((1.732, -0.577), abs=5e-4)
    assert group_advantage(ONE_OF_FOUR)[0, :2].tolist() == pytest.approx([1.5, -0.5], abs=1e-5)
    assert group_advantage(ONE_OF_FOUR, std="population")[0, :2].tolist() == pytest.approx([1.732, -0.577], abs=5e-4)
    assert group_advantage(ONE_OF_FOUR, std="none")[0, :2].tolist() == pytest.approx([0.75, -0.25])
    assert rloo_advantage(ONE_OF_FOUR)[0, :2].tolist() == pytest.approx([1.0, -1 / 3])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_rloo_leaves_one_out(rewards: list[float]):
    expected = [r - statistics.mean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]
    assert rloo_advantage(row(*rewards))[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_a_bad_answer_does_not_poison_its_group():
    """Trap 12: left out by the mask, the rest is as if it had never been drawn."""
    rewards = torch.tensor([[1.0, NAN, 0.0, 0.0, 0.0], [2.0, 1.0, math.inf, 3.0, 0.0]], dtype=torch.float64)
    mask = torch.isfinite(rewards)
    for advantage in (rloo_advantage, group_advantage):
        out = advantage(rewards, mask)
        assert out[0, mask[0]].tolist() == pytest.approx(advantage(ONE_OF_FOUR)[0].tolist())
        assert out[0, 1] == 0 and out[1, 2] == 0


def test_a_bad_answer_that_counts_is_named():
    with pytest.raises(NonFiniteError, match="answer 1 in group 1 is nan"):
        rloo_advantage(torch.tensor([[1.0, 0.0], [1.0, NAN]]))
    with pytest.raises(NonFiniteError):
        group_has_spread(torch.tensor([[1.0, math.inf]]))


def test_alone_in_a_group():
    mask = torch.tensor([[True, False], [False, False]])
    for advantage in (rloo_advantage, group_advantage):
        assert advantage(torch.tensor([[3.0, 1.0], [2.0, 1.0]]), mask).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@settings(deadline=None, max_examples=40)
@given(st.floats(-1e3, 1e3), st.integers(2, 9))
def test_no_spread_means_no_advantage(reward: float, k: int):
    """.1 + .1 + .1 is not .3 in binary: the leftover over its own standard deviation must not become ±1."""
    rewards = torch.full((1, k), reward)
    for std in ("sample", "population", "none"):
        assert not group_advantage(rewards, std=std, eps=0.0).any()
    assert not rloo_advantage(rewards).any()


def test_which_groups_have_spread():
    assert group_has_spread(torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.2]])).tolist() == [False, True]
    masked_spread = group_has_spread(torch.tensor([[0.1, 0.1, 9.0]]), torch.tensor([[True, True, False]]))
    assert masked_spread.tolist() == [False]


def test_groups_refuse():
    with pytest.raises(ConfigError, match="at least 2"):
        rloo_advantage(torch.zeros(3, 1))
    with pytest.raises(TrainingError, match="answers per prompt"):
        rloo_advantage(torch.zeros(3))
    with pytest.raises(ConfigError, match="eps is -1"):
        group_advantage(ONE_OF_FOUR, eps=-1.0)
    with pytest.raises(ConfigError, match="std is 'pop'"):
        group_advantage(ONE_OF_FOUR, std="pop")  # type: ignore[arg-type]


# REINFORCE++ and whitening ---------------------------------------------------------------------


def test_reinforce_pp_by_hand():
    """Rewards to come (γ = .5): 1 + .5·2 + .25·4 = 3, 2 + .5·4 = 4, 4 | 0 (one token); mean 2.75."""
    rewards = torch.tensor([[1.0, 2.0, 4.0], [0.0, NAN, NAN]], dtype=torch.float64)
    mask = torch.isfinite(rewards)
    to_come = [3.0, 4.0, 4.0, 0.0]
    mean, std = statistics.mean(to_come), statistics.pstdev(to_come)
    out = reinforce_pp_advantage(rewards, mask, gamma=0.5)
    assert out[mask].tolist() == pytest.approx([(x - mean) / std for x in to_come], rel=1e-6)
    assert not out[~mask].any()


def test_whiten_shift_mean():
    """Trap 4: True removes the mean for good, False gives it back."""
    x, mask = row(1, 2, 3, 10, NAN), row(1, 1, 1, 1, 0).bool()
    shifted, unshifted = whiten(x, mask)[0, :4], whiten(x, mask, shift_mean=False)[0, :4]
    assert shifted.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert unshifted.mean().item() == pytest.approx(4.0)
    assert (unshifted - shifted).tolist() == pytest.approx([4.0] * 4)
    population, sample = statistics.pstdev([1, 2, 3, 10]), statistics.stdev([1, 2, 3, 10])
    assert shifted.tolist() == pytest.approx([(v - 4) / population for v in (1, 2, 3, 10)], rel=1e-6)
    bessel = whiten(x, mask, variance="sample")[0, :4]
    assert bessel.tolist() == pytest.approx([(v - 4) / sample for v in (1, 2, 3, 10)], rel=1e-6)


def test_whiten_spans_the_whole_batch():
    """Rows are not whitened one by one: a good and a bad answer stay apart."""
    x = torch.tensor([[2.0, 2.0], [0.0, 0.0]])
    assert whiten(x, torch.ones(2, 2, dtype=torch.bool)).tolist() == [
        [pytest.approx(1.0)] * 2,
        [pytest.approx(-1.0)] * 2,
    ]


def test_whiten_lets_no_garbage_into_the_gradient():
    """The sum of whitened values is 0 whatever they are, so their gradient is 0 too, and not NaN in the padding."""
    x = row(1, 2, 4, NAN).requires_grad_()
    whiten(x, row(1, 1, 1, 0).bool()).sum().backward()
    assert x.grad is not None and x.grad[0].tolist() == pytest.approx([0.0] * 4, abs=1e-12)


def test_whiten_edges():
    assert whiten(row(5, NAN), row(1, 0).bool(), variance="sample").tolist() == [[0.0, 0.0]]
    assert whiten(row(5, 5), row(1, 1).bool()).tolist() == [[0.0, 0.0]]
    assert whiten(row(5, 5), row(0, 0).bool()).tolist() == [[0.0, 0.0]]
    assert whiten(row(5, 5), row(1, 1).bool(), shift_mean=False).tolist() == [[5.0, 5.0]]
    with pytest.raises(ConfigError, match="eps is 0"):
        whiten(row(5, 5), row(1, 1).bool(), eps=0.0)
    with pytest.raises(ConfigError, match="variance"):
        whiten(row(5, 5), row(1, 1).bool(), variance="unbiased")  # type: ignore[arg-type]
