"""PPO's losses at ratios worked out by hand, on both sides of every bend."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.algos import (
    approx_kl,
    cispo_loss,
    clip_fraction,
    clipped_policy_loss,
    clipped_value_loss,
    dpo_loss,
    high_entropy_mask,
    hinge_loss,
    ipo_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    kto_loss,
    masked_importance_weights,
    sequence_log_ratio,
    truncated_importance_weights,
)
from trimtab.errors import ConfigError, TrainingError

NAN = math.nan


def ratios(*values: float) -> Tensor:
    """log π of tokens with these ratios to log π_old = 0."""
    return torch.tensor([values], dtype=torch.float64).log()


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def all_count(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [  # slope: dL/d log π = −A·ρ where the policy is still allowed to move, else 0
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # already 1.2 × as likely: no more reward
        (0.5, 2.0, -1.0, -1.0),  # moved the wrong way: full pull back
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.6, 0.0),
        (5.0, -2.0, 10.0, 10.0),  # the case dual clip is for
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float, slope: float):
    new = ratios(ratio).requires_grad_()
    out = clipped_policy_loss(new, row(0), row(advantage), all_count(new))
    assert out.item() == pytest.approx(loss)
    out.sum().backward()
    assert new.grad is not None and new.grad.item() == pytest.approx(slope)


def test_the_two_ends_are_separate():
    """DAPO's higher upper end: at A = 1, ρ = 1.25 is inside 1 + .28; below, .8 stays the end for A = −1."""
    new = ratios(1.25, 1.5, 0.7)
    out = clipped_policy_loss(new, row(0, 0, 0), row(1, 1, -1), all_count(new), eps_low=0.2, eps_high=0.28)
    assert out[0].tolist() == pytest.approx([-1.25, -1.28, 0.8])


def test_dual_clip_only_below_zero():
    new = ratios(5.0, 5.0, 2.0)
    out = clipped_policy_loss(new, row(0, 0, 0), row(-2, 2, -2), all_count(new), dual_clip=3.0)
    assert out[0].tolist() == pytest.approx([6.0, -2.4, 4.0])


def test_the_first_step_is_the_plain_policy_gradient():
    """ρ = 1: gradient −A, not half of it from the tie between the two branches."""
    new = row(-1.0, -2.0).requires_grad_()
    clipped_policy_loss(new, row(-1.0, -2.0), row(0.7, -0.4), all_count(new)).sum().backward()
    assert new.grad is not None and new.grad[0].tolist() == pytest.approx([-0.7, 0.4])


def test_ratio_in_thirty_two_bits():
    """Differences and ratios near 1 vanish in bfloat16, whose next number after 1 is 1.0078."""
    new = torch.tensor([[-1.0]], dtype=torch.bfloat16)
    out = clipped_policy_loss(new, torch.tensor([[-1.002]]), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert out.dtype == torch.float32
    assert out.item() == pytest.approx(-math.exp(0.002), abs=1e-6)


@pytest.mark.parametrize("garbage", [NAN, math.inf, -math.inf, 1e30])
def test_garbage_under_the_mask(garbage: float):
    mask = torch.tensor([[True, False]])
    new = row(0.1, garbage).requires_grad_()
    dirty = row(0.0, garbage)
    policy = clipped_policy_loss(new, dirty, row(1.0, garbage), mask, dual_clip=3.0)
    value = clipped_value_loss(new, dirty, row(1.0, garbage), mask, eps=0.2)
    (policy + value).sum().backward()
    assert policy[0, 1] == 0 and value[0, 1] == 0
    assert new.grad is not None and new.grad[0, 1] == 0 and torch.isfinite(new.grad).all()
    assert truncated_importance_weights(new, dirty, mask)[0].tolist() == pytest.approx([math.exp(0.1), 0.0])
    assert clip_fraction(new, dirty, mask, eps_low=0.2, eps_high=0.2).item() == 0.0
    assert approx_kl(new, dirty, mask).item() == pytest.approx(math.exp(0.1) - 1 - 0.1)


@pytest.mark.parametrize("log_ratio", [30.0, 100.0, 1e4])  # e⁸⁹ is infinite in float32
@pytest.mark.parametrize(
    ("advantage", "dual_clip", "loss"),
    [(1.0, None, -1.2), (0.0, None, 0.0), (-1.0, 3.0, 3.0), (-1.0, None, math.exp(20))],
)
def test_a_wild_ratio_is_no_nan(log_ratio: float, advantage: float, dual_clip: float | None, loss: float):
    """max(−A·∞, …) may choose the finite branch, but 0 · ∞ in its gradient would end the run."""
    new, zero = torch.tensor([[log_ratio, 0.0]]).requires_grad_(), torch.zeros(1, 2)
    out = clipped_policy_loss(new, zero, torch.full((1, 2), advantage), all_count(zero), dual_clip=dual_clip)
    assert out[0].tolist() == pytest.approx([loss, -advantage], rel=1e-6)
    out.sum().backward()
    assert new.grad is not None and new.grad[0].tolist() == [0.0, -advantage]


def test_a_vanishing_ratio_is_no_nan():
    new = torch.tensor([[-1e4, -math.inf]]).requires_grad_()
    out = clipped_policy_loss(new, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), all_count(new))
    out.sum().backward()
    assert out[0].tolist() == pytest.approx([0.0, 0.8]) and new.grad is not None and not new.grad.any()


@settings(deadline=None, max_examples=50)
@given(st.floats(0.05, 5), st.floats(0.05, 5), st.floats(-3, 3).filter(lambda a: abs(a) > 0.01))
def test_never_below_the_unclipped_loss_and_monotone(a: float, b: float, advantage: float):
    new = ratios(a, b)
    loss = clipped_policy_loss(new, row(0, 0), row(advantage, advantage), all_count(new))[0].tolist()
    assert loss[0] >= -advantage * a - 1e-9
    low, high = (loss[0], loss[1]) if a <= b else (loss[1], loss[0])
    assert low >= high - 1e-9 if advantage > 0 else low <= high + 1e-9


# The critic ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (0.5, 0.5, 1.0, 0.125, -0.5),
        (1.0, 0.5, 1.0, 0.045, 0.0),  # v is right, yet clip(v) = .7 is .3 off: ½·.09, and no pull further
        (0.0, 0.5, 1.0, 0.5, -1.0),  # moved away: the unclipped error is the larger one
        (0.6, 0.5, 1.0, 0.08, -0.4),
        (2.0, 0.5, 1.0, 0.5, 1.0),
    ],
)
def test_value_loss_by_hand(value: float, old: float, target: float, loss: float, slope: float):
    v = row(value).requires_grad_()
    out = clipped_value_loss(v, row(old), row(target), all_count(v), eps=0.2)
    assert out.item() == pytest.approx(loss)
    out.sum().backward()
    assert v.grad is not None and v.grad.item() == pytest.approx(slope)


def test_an_infinite_range_is_the_squared_error():
    v = row(3.0)
    assert clipped_value_loss(v, row(0.0), row(1.0), all_count(v), eps=math.inf).item() == 2.0


# Weights and metrics -----------------------------------------------------------------------------


def test_importance_weights():
    new = ratios(0.5, 1.0, 3.0).requires_grad_()
    weights = truncated_importance_weights(new, row(0, 0, 0), all_count(new), cap=2.0)
    assert weights[0].tolist() == pytest.approx([0.5, 1.0, 2.0]) and not weights.requires_grad


def test_importance_weights_undo_another_sampler():
    """E_sampler[w·f] = E_trainer[f], exactly, where nothing is truncated."""
    trainer, sampler = torch.tensor([0.5, 0.3, 0.2]).log()[None], torch.tensor([0.4, 0.35, 0.25]).log()[None]
    weights = truncated_importance_weights(trainer, sampler, torch.ones(1, 3, dtype=torch.bool))
    f = torch.tensor([1.0, -2.0, 5.0])
    assert (sampler.exp() * weights * f).sum().item() == pytest.approx((trainer.exp() * f).sum().item(), abs=1e-6)


def test_clip_fraction_counts_what_counts():
    new = ratios(1.0, 1.3, 0.7, 1.19, 9.0)
    mask = torch.tensor([[True, True, True, True, False]])
    zero = torch.zeros_like(new)
    assert clip_fraction(new, zero, mask, eps_low=0.2, eps_high=0.2).item() == 0.5
    assert clip_fraction(new, zero, mask, eps_low=0.2, eps_high=0.35).item() == 0.25
    assert clip_fraction(new, zero, torch.zeros_like(mask), eps_low=0.2, eps_high=0.2).item() == 0.0


def test_approx_kl_is_the_kl_from_the_old_policy():
    """Exact expectation over three tokens drawn from π_old."""
    old, new = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.35, 0.25])
    exact = (old * (old / new).log()).sum().item()
    one = torch.ones(1, dtype=torch.bool)
    estimate = sum(
        float(p) * approx_kl(new[i : i + 1].log(), old[i : i + 1].log(), one).item() for i, p in enumerate(old)
    )
    assert estimate == pytest.approx(exact, abs=1e-6)


def test_refusals():
    x = row(0.0)
    mask = all_count(x)
    for eps in ({"eps_low": 0.0}, {"eps_low": -0.2}, {"eps_high": 0.0}, {"eps_low": NAN}, {"eps_low": 1.5}):
        with pytest.raises(ConfigError, match="eps_"):
            clipped_policy_loss(x, x, x, mask, **eps)
    with pytest.raises(ConfigError, match="dual_clip is 1"):
        clipped_policy_loss(x, x, x, mask, dual_clip=1.0)
    with pytest.raises(ConfigError, match="eps is 0"):
        clipped_value_loss(x, x, x, mask, eps=0.0)
    with pytest.raises(ConfigError, match="cap is 0"):
        truncated_importance_weights(x, x, mask, cap=0.0)
    with pytest.raises(TrainingError, match="advantages"):
        clipped_policy_loss(x, x, torch.zeros(1), mask)
    with pytest.raises(TrainingError, match="shapes differ"):
        clip_fraction(x, torch.zeros(1), mask, eps_low=0.2, eps_high=0.2)
    with pytest.raises(TrainingError, match="bool"):
        clipped_policy_loss(x, x, x, torch.ones_like(x))


# Constants --------------------------------------------------------------------------------------


def test_what_is_a_constant_has_no_gradient():
    """The first update compares a policy with itself; the same tensor twice must not cancel the gradient."""
    one, advantages = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[2.0, -1.0]], requires_grad=True)
    new = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    clipped_policy_loss(new, new, advantages, one).sum().backward()
    assert new.grad is not None and new.grad.tolist() == [[-2.0, 1.0]] and advantages.grad is None  # −A·∇ρ, ρ = 1
    value = torch.tensor([[0.5]], requires_grad=True)
    returns = torch.tensor([[1.0]], requires_grad=True)
    clipped_value_loss(value, value, returns, one[:, :1], eps=0.2).sum().backward()
    assert value.grad is not None and value.grad.item() == pytest.approx(-0.5) and returns.grad is None


# GSPO, CISPO, weights of the sampler -----------------------------------------------------------


def ragged(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """New and old log-probabilities, advantages and a mask with answers of 1 to 5 tokens."""
    g = torch.Generator().manual_seed(seed)
    new, old, advantages = (torch.randn(5, 5, generator=g, dtype=torch.float64) for _ in range(3))
    return new, old, advantages, torch.arange(5) < torch.tensor([[1], [2], [3], [4], [5]])


@pytest.mark.parametrize("seed", range(3))
def test_new_losses_against_numpy(seed: int):
    new, old, advantages, mask = ragged(seed)
    a, b, adv, m = (x.numpy() for x in (new, old, advantages, mask))
    for i in range(5):
        n = int(m[i].sum())
        log_s = (a[i, :n] - b[i, :n]).mean()
        assert sequence_log_ratio(new, old, mask)[i, :n].tolist() == pytest.approx([log_s] * n)
        ratio = np.exp(a[i, :n] - b[i, :n])
        weight = np.clip(ratio, 0.7, 1.5)
        loss = cispo_loss(new, old, advantages, mask, eps_low=0.3, eps_high=0.5)[i]
        assert loss[:n].tolist() == pytest.approx(list(-weight * adv[i, :n] * a[i, :n])) and not loss[n:].any()
        whole = float(np.prod(ratio))
        for level, weights in (("token", list(ratio)), ("sequence", [whole] * n)):
            cut = truncated_importance_weights(new, old, mask, cap=1.5, level=level)[i]
            left = masked_importance_weights(new, old, mask, cap=1.5, floor=0.5, level=level)[i]
            assert cut[:n].tolist() == pytest.approx([min(w, 1.5) for w in weights])
            assert left[:n].tolist() == pytest.approx([w if 0.5 <= w <= 1.5 else 0.0 for w in weights])
            assert not cut[n:].any() and not left[n:].any()


def test_with_ratios_of_one_all_surrogates_pull_alike():
    new, _, _, mask = ragged(0)
    advantages = torch.randn(5, 1, dtype=torch.float64).expand(5, 5)
    slopes = []
    for loss in (
        lambda x: clipped_policy_loss(x, new, advantages, mask),
        lambda x: clipped_policy_loss(sequence_log_ratio(x, new, mask), torch.zeros_like(new), advantages, mask),
        lambda x: cispo_loss(x, new, advantages, mask),
    ):
        leaf = new.clone().requires_grad_()
        slopes.append(torch.autograd.grad(loss(leaf).sum(), leaf)[0])
    assert torch.allclose(slopes[0], slopes[1]) and torch.allclose(slopes[0], slopes[2])


def test_cispo_still_teaches_where_the_clip_is_silent():
    one, up = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1)
    slopes = []
    for loss in (clipped_policy_loss, cispo_loss):
        leaf = torch.tensor([[2.0]], requires_grad=True)  # ratio e²
        slopes.append(torch.autograd.grad(loss(leaf, torch.zeros(1, 1), up, one).sum(), leaf)[0].item())
    assert slopes == pytest.approx([0.0, -5.0])


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_the_share_of_tokens_with_the_highest_entropy(share: float):
    entropies, mask = torch.rand(6, 7, generator=torch.Generator().manual_seed(1)), torch.rand(6, 7) < 0.7
    chosen = high_entropy_mask(entropies, mask, share=share)
    assert int(chosen.sum()) == math.ceil(share * int(mask.sum())) and not (chosen & ~mask).any()
    assert share == 1.0 or entropies[chosen].min() > entropies[mask & ~chosen].max()
    nan = torch.where(mask, entropies, math.nan)
    assert torch.equal(high_entropy_mask(nan, mask, share=share), chosen)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, m: high_entropy_mask(x, m, share=0.0), "share is 0.0; set it above 0 and at most 1"),
        (lambda x, m: masked_importance_weights(x, x, m, cap=0.5, floor=0.5), "no weight lies between them"),
        (lambda x, m: masked_importance_weights(x, x, m, floor=-1.0), "floor is -1"),
        (lambda x, m: truncated_importance_weights(x, x, m, level="word"), "'word'; use 'token' or 'sequence'"),
        (lambda x, m: cispo_loss(x, x, x, m, eps_low=1.5), "eps_low is 1.5"),
    ],
)
def test_settings_of_weights_that_make_no_sense(call, message: str):
    with pytest.raises(ConfigError, match=message):
        call(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("loss", "slope"),
    [
        (lambda a, b: dpo_loss(a, b, a, b, beta=0.2), -0.1),  # −β·σ(0)
        (lambda a, b: ipo_loss(a, b, a, b, tau=0.5), -2.0),  # 2(h − 1/(2τ)), h = 0
        (lambda a, b: hinge_loss(a, b, a, b, beta=0.2), -0.2),
        (lambda a, b: kto_loss(a, a, torch.tensor([True]), torch.tensor(0.0), beta=0.2), -0.05),  # −β·σ(0)(1 − σ(0))
    ],
    ids=["dpo", "ipo", "hinge", "kto"],
)
def test_a_reference_that_is_the_policy_itself_is_a_constant(loss, slope):
    better, worse = torch.tensor([-3.0], requires_grad=True), torch.tensor([-4.0], requires_grad=True)
    loss(better, worse).sum().backward()
    assert better.grad is not None and better.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize(("estimator", "slope"), [(kl_k1, 1.0), (kl_k2, 0.0), (kl_k3, 0.0)])
def test_an_estimator_of_a_policy_against_itself(estimator, slope):
    new = torch.tensor([-1.0], requires_grad=True)
    estimator(new, new).sum().backward()
    assert new.grad is not None and new.grad.item() == slope
