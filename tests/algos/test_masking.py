"""Masked sums and the reduction: trap 1 (a loss normalised per micro-batch changes the objective)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.algos import clipped_policy_loss, masked_mean, masked_sum, reduce_sum
from trimtab.errors import TrainingError

X = torch.tensor([[1.0, 2.0, math.nan], [4.0, math.inf, -math.inf]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_sums_and_means_by_hand():
    assert float(masked_sum(X, MASK)) == 7.0
    assert masked_sum(X, MASK, dim=1).tolist() == [3.0, 4.0]
    assert float(masked_mean(X, MASK)) == pytest.approx(7 / 3)
    assert masked_mean(X, MASK, dim=1).tolist() == [1.5, 4.0]


def test_nothing_counts():
    nothing = torch.zeros_like(MASK)
    assert float(masked_sum(X, nothing)) == 0.0
    assert float(masked_mean(X, nothing)) == 0.0


def test_a_share_is_the_mean_of_a_bool():
    assert float(masked_mean(torch.tensor([True, False, True]), torch.tensor([True, True, False]))) == 0.5


def test_sixteen_bits_are_summed_in_thirty_two():
    x = torch.ones(3000, dtype=torch.bfloat16)  # 3000 is no bfloat16 number, its neighbours are 2992 and 3008
    assert float(masked_sum(x, torch.ones(3000, dtype=torch.bool))) == 3000.0


def test_garbage_under_the_mask_has_no_gradient():
    x = X.clone().requires_grad_()
    masked_mean(x, MASK).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[pytest.approx(1 / 3)] * 2 + [0.0], [pytest.approx(1 / 3), 0.0, 0.0]]


@pytest.mark.parametrize("norm", [0, -1, math.nan, math.inf])
def test_a_norm_that_is_no_size_is_refused(norm: float):
    with pytest.raises(TrainingError, match="norm"):
        reduce_sum(torch.ones(2), norm=norm)


def test_wrong_masks_are_refused():
    with pytest.raises(TrainingError, match=r"x \[2, 3\], mask \[2\]"):
        masked_sum(X, torch.ones(2, dtype=torch.bool))
    with pytest.raises(TrainingError, match="bool"):
        masked_sum(X, torch.ones(2, 3))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), cuts=st.lists(st.integers(1, 7), max_size=3))
def test_cutting_the_step_changes_nothing(seed: int, cuts: list[int]):
    """Trap 1: any cut into micro-batches gives the same loss and gradient, however uneven the lengths."""
    rows, g = 8, torch.Generator().manual_seed(seed)
    mask = torch.arange(9) < torch.randint(1, 10, (rows, 1), generator=g)
    old, advantages = (torch.randn(rows, 9, generator=g, dtype=torch.float64) for _ in range(2))
    noise = torch.randn(rows, 9, generator=g, dtype=torch.float64)
    norm = float(mask.sum())

    def run(pieces: list[torch.Tensor]) -> tuple[float, torch.Tensor]:
        new = (old + 0.3 * noise).requires_grad_()
        total = 0.0
        for piece in pieces:
            part = reduce_sum(clipped_policy_loss(new[piece], old[piece], advantages[piece], mask[piece]), norm=norm)
            part.backward()
            total += part.item()
        assert new.grad is not None
        return total, new.grad

    everything = torch.arange(rows)
    whole, whole_gradient = run([everything])
    parts, parts_gradient = run([p for p in everything.tensor_split(sorted(cuts)) if len(p)])
    assert parts == pytest.approx(whole, abs=1e-12)
    assert torch.allclose(parts_gradient, whole_gradient, atol=1e-14)


def test_the_wrong_way_would_differ():
    """What trap 1 does: the mean of two micro-batch means is not the mean of the step."""
    loss = torch.tensor([1.0, 2.0, 3.0, 6.0])
    right = float(reduce_sum(loss[:1], norm=4) + reduce_sum(loss[1:], norm=4))
    wrong = float(loss[:1].mean() + loss[1:].mean()) / 2
    assert (right, wrong) == (3.0, pytest.approx(7 / 3))
