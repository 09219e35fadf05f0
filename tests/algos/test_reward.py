"""Reward-model losses, against the likelihoods written with λ = e^r in plain Python."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.algos import (
    bradley_terry_loss,
    davidson_loss,
    plackett_luce_loss,
    process_reward_loss,
    process_score,
    ranking_loss,
    ranking_pairs,
    rao_kupper_loss,
)
from trimtab.errors import ConfigError, TrainingError


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


W, L = t(1.2), t(0.4)
LW, LL = math.exp(1.2), math.exp(0.4)  # strengths λ
TIE, NO_TIE = torch.tensor([True]), torch.tensor([False])


def near(value: float) -> object:
    return pytest.approx(value, abs=5e-10)


# Pairs -----------------------------------------------------------------------------------------


def test_bradley_terry():
    assert -math.log(LW / (LW + LL)) == near(0.371100666)
    assert bradley_terry_loss(W, L).item() == near(0.371100666)


def test_margin():
    assert math.log(1 + math.exp(-(0.8 - 1 / 3))) == near(0.486792581)
    assert bradley_terry_loss(W, L, margin=t(1 / 3)).item() == near(0.486792581)


def test_centring():
    assert 0.371100666 + 0.01 * 1.6**2 == near(0.396700666)
    assert bradley_terry_loss(W, L, centring=0.01).item() == near(0.396700666)


def test_soft_label():
    p_win = LW / (LW + LL)
    expected = -0.7 * math.log(p_win) - 0.3 * math.log(1 - p_win)
    assert bradley_terry_loss(W, L, probability=t(0.7)).item() == near(expected)


@settings(deadline=None, max_examples=50)
@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0, 1))
def test_order_swap_turns_p_into_its_complement(a: float, b: float, p: float):
    there = bradley_terry_loss(t(a), t(b), probability=t(p), centring=0.01).item()
    back = bradley_terry_loss(t(b), t(a), probability=t(1 - p), centring=0.01).item()
    assert there == pytest.approx(back, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0.01, 5))
def test_losses_fall_as_the_margin_grows(a: float, b: float, step: float):
    for loss in (
        bradley_terry_loss,
        lambda c, r: rao_kupper_loss(c, r, NO_TIE, theta=1.5),
        lambda c, r: davidson_loss(c, r, NO_TIE, nu=0.5),
        lambda c, r: plackett_luce_loss(torch.stack([c, r], dim=1)),
    ):
        assert loss(t(a + step), t(b)).item() < loss(t(a), t(b)).item()


def test_huge_differences_stay_finite():
    low, high = torch.tensor([-1e4], requires_grad=True), torch.tensor([1e4])
    for loss in (
        bradley_terry_loss(low, high),
        rao_kupper_loss(low, high, TIE, theta=1.5),
        davidson_loss(low, high, NO_TIE, nu=0.5),
        plackett_luce_loss(torch.stack([low, high], dim=1)),
        plackett_luce_loss(torch.stack([low, high, high - 1], dim=1), ranks=torch.tensor([[0, 0, 1]])),
    ):
        (gradient,) = torch.autograd.grad(loss.sum(), low)
        assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


# Rankings --------------------------------------------------------------------------------------


def test_pairs_of_a_ranking():
    assert sorted(map(tuple, ranking_pairs([2, 0, 1]).tolist())) == [(1, 0), (1, 2), (2, 0)]
    assert ranking_pairs([0, 0]).shape == (0, 2)
    assert len(ranking_pairs(range(9))) == math.comb(9, 2)


@given(st.lists(st.integers(0, 4), max_size=7))
def test_every_strict_pair_once(ranks: list[int]):
    pairs = ranking_pairs(ranks).tolist()
    better = {(i, j) for i, j in itertools.permutations(range(len(ranks)), 2) if ranks[i] < ranks[j]}
    assert len(pairs) == len(better) and {(i, j) for i, j in pairs} == better


def test_pair_mean_of_a_ranking():
    """All C(3, 2) pairs of one prompt, averaged: (.371101 + .201413 + .403186)/3."""
    rewards = t(1.2, 0.4, -0.3)
    by_hand = sum(math.log(1 + math.exp(-d)) for d in (0.8, 1.5, 0.7)) / 3
    assert by_hand == near(0.325233331)
    pairs = ranking_pairs([0, 1, 2])
    assert bradley_terry_loss(rewards[pairs[:, 0]], rewards[pairs[:, 1]]).mean().item() == near(0.325233331)


def test_ranking_loss():
    """The same mean in one call, whatever the order; padded rankings and ties beside it."""
    nan = math.nan
    rewards = torch.tensor([[0.4, -0.3, 1.2, nan], [1.2, nan, 0.4, 9.0], [1.0, 2.0, 0.4, 1.2]], dtype=torch.float64)
    ranks = torch.tensor([[2, 3, 1, 0], [1, 0, 2, 3], [4, 4, 4, 4]])
    mask = torch.tensor([[True, True, True, False], [True, False, True, False], [True] * 4])
    rewards.requires_grad_()
    loss = ranking_loss(rewards, ranks, mask)
    assert loss.tolist() == [near(0.325233331), near(0.371100666), 0.0]
    loss.sum().backward()
    assert rewards.grad is not None and torch.isfinite(rewards.grad).all() and not rewards.grad[~mask].any()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3)), min_size=2, max_size=6))
def test_ranking_loss_against_a_plain_loop(answers: list[tuple[float, int]]):
    """Ties make no pair; a prompt with many answers weighs as much as one with two."""
    losses = [math.log1p(math.exp(s - r)) for r, i in answers for s, j in answers if i < j]
    expected = sum(losses) / len(losses) if losses else 0.0
    rewards, ranks = zip(*answers, strict=True)
    assert ranking_loss(t(*rewards)[None], torch.tensor([ranks])).item() == pytest.approx(expected)


def test_plackett_luce():
    a, b, c = (math.exp(r) for r in (1.2, 0.4, -0.3))
    assert -math.log(a / (a + b + c) * b / (b + c)) == near(0.917481122)
    assert plackett_luce_loss(t(1.2, 0.4, -0.3)[None]).item() == near(0.917481122)


def test_plackett_luce_is_a_distribution_over_rankings():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    assert (-plackett_luce_loss(t(1.2, 0.4, -0.3, 2.0)[orders])).exp().sum().item() == pytest.approx(1.0)


def test_plackett_luce_of_two_is_bradley_terry():
    assert plackett_luce_loss(t(1.2, 0.4)[None]).item() == near(bradley_terry_loss(W, L).item())


def strict_orders(ranks: Sequence[int]) -> list[tuple[int, ...]]:
    """All orders of the answers, best first, in which no answer comes before a better one."""
    orders = itertools.permutations(range(len(ranks)))
    return [order for order in orders if all(ranks[a] <= ranks[b] for a, b in itertools.pairwise(order))]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(-6, 6), st.integers(0, 3)), min_size=1, max_size=6))
def test_ties_sum_over_the_strict_rankings_that_agree(answers: list[tuple[float, int]]):
    strengths, ranks = [math.exp(r) for r, _ in answers], [rank for _, rank in answers]
    likelihood = 0.0
    for order in strict_orders(ranks):
        left = [strengths[i] for i in order]
        likelihood += math.prod(left[k] / math.fsum(left[k:]) for k in range(len(left)))
    ours = plackett_luce_loss(t(*(r for r, _ in answers))[None], ranks=torch.tensor([ranks]))
    assert ours.item() == pytest.approx(-math.log(likelihood), abs=1e-9)


def test_two_best_of_three_by_hand():
    """a before b before c, or b before a before c."""
    a, b, c = (math.exp(r) for r in (1.2, 0.4, -0.3))
    wanted = a / (a + b + c) * b / (b + c) + b / (a + b + c) * a / (a + c)
    for rewards, ranks in (((1.2, 0.4, -0.3), (0, 0, 1)), ((-0.3, 1.2, 0.4), (7, 2, 2))):
        assert plackett_luce_loss(t(*rewards)[None], ranks=torch.tensor([ranks])).item() == near(-math.log(wanted))


def test_rankings_with_and_without_ties_in_one_batch():
    rewards = torch.tensor([[1.2, 0.4, -0.3, math.nan], [0.4, 1.2, -0.3, 0.1], [1.0, 2.0, 3.0, 4.0]])
    mask = torch.tensor([[True, True, True, False], [True] * 4, [True] * 4])
    ranks = torch.tensor([[0, 0, 1, 1], [1, 0, 3, 2], [0, 0, 0, 0]])
    ours = plackett_luce_loss(rewards.double().requires_grad_(), mask, ranks=ranks)
    alone = [
        plackett_luce_loss(r[m][None].double(), ranks=k[m][None]) for r, m, k in zip(rewards, mask, ranks, strict=True)
    ]
    assert ours.tolist() == pytest.approx(torch.cat(alone).tolist()) and ours[2] == 0
    assert ours[1].item() == near(plackett_luce_loss(rewards[1, [1, 0, 3, 2]].double()[None]).item())


def test_too_many_ties_are_refused():
    with pytest.raises(TrainingError, match="13 answers of a ranking tie above its last place"):
        plackett_luce_loss(torch.zeros(1, 14), ranks=torch.tensor([[0] * 13 + [1]]))
    assert plackett_luce_loss(torch.zeros(1, 14).double(), ranks=torch.tensor([[0] + [1] * 13])).item() == near(
        math.log(14)
    )


def test_short_rankings_are_padded():
    rewards = torch.tensor([[1.2, 0.4, math.nan, math.inf], [1.2, 0.4, -0.3, math.nan]], dtype=torch.float64)
    rewards.requires_grad_()
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    loss = plackett_luce_loss(rewards, mask)
    assert loss.tolist() == [near(0.371100666), near(0.917481122)]
    loss.sum().backward()
    assert rewards.grad is not None and torch.isfinite(rewards.grad).all()
    assert not rewards.grad[~mask].any()


# Ties --------------------------------------------------------------------------------------------


def test_rao_kupper():
    win, loss = LW / (LW + 1.5 * LL), LL / (LL + 1.5 * LW)
    tie = (1.5**2 - 1) * LW * LL / ((LW + 1.5 * LL) * (1.5 * LW + LL))
    assert (win, tie, loss) == pytest.approx((0.597374, 0.172122, 0.230504), abs=5e-7)
    ours = [rao_kupper_loss(*x, theta=1.5).item() for x in ((W, L, NO_TIE), (W, L, TIE), (L, W, NO_TIE))]
    assert [math.exp(-x) for x in ours] == pytest.approx([win, tie, loss])


def test_davidson():
    middle = 0.5 * math.sqrt(LW * LL)
    total = LW + LL + middle
    assert (LW / total, middle / total, LL / total) == pytest.approx((0.560385, 0.187818, 0.251797), abs=5e-7)
    ours = [davidson_loss(*x, nu=0.5).item() for x in ((W, L, NO_TIE), (W, L, TIE), (L, W, NO_TIE))]
    assert [math.exp(-x) for x in ours] == pytest.approx([LW / total, middle / total, LL / total])


@settings(deadline=None, max_examples=30)
@given(st.floats(-8, 8), st.floats(-8, 8), st.floats(1.01, 5), st.floats(0.01, 5))
def test_win_tie_and_loss_add_up_and_ties_are_symmetric(a: float, b: float, theta: float, nu: float):
    for model in (lambda *x: rao_kupper_loss(*x, theta=theta), lambda *x: davidson_loss(*x, nu=nu)):
        win, tie, loss = model(t(a), t(b), NO_TIE), model(t(a), t(b), TIE), model(t(b), t(a), NO_TIE)
        assert sum(math.exp(-x.item()) for x in (win, tie, loss)) == pytest.approx(1.0)
        assert tie.item() == pytest.approx(model(t(b), t(a), TIE).item())


# Steps -------------------------------------------------------------------------------------------


def test_process_loss_by_hand():
    nan = math.nan
    logits = torch.tensor([[nan, math.log(3.0), nan, math.log(3.0), math.log(3.0)]], requires_grad=True)  # σ = .75
    labels = torch.tensor([[nan, 1.0, 7.0, 0.0, 0.5]])
    mask = torch.tensor([[False, True, False, True, True]])
    loss = process_reward_loss(logits, labels, mask)
    half = -0.5 * math.log(0.75) - 0.5 * math.log(0.25)
    assert loss[0].tolist() == pytest.approx([0.0, -math.log(0.75), 0.0, -math.log(0.25), half], abs=1e-6)
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([0.0, -0.25, 0.0, 0.75, 0.25], abs=1e-6)  # σ − y


def test_process_score_by_hand():
    logits = torch.tensor([[0.9, math.nan, 0.5], [0.8, 0.99, math.nan]]).logit()
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert process_score(logits, mask).tolist() == pytest.approx([0.45, 0.792])
    assert process_score(logits, mask, how="minimum").tolist() == pytest.approx([0.5, 0.8])
    assert process_score(logits, mask, how="last").tolist() == pytest.approx([0.5, 0.99])
    assert process_score(logits, mask, how="mean").tolist() == pytest.approx([0.7, 0.895])


def test_a_solution_without_steps_is_no_perfect_solution():
    with pytest.raises(TrainingError, match=r"solutions \[1\] have no step"):
        process_score(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))


# What is refused -----------------------------------------------------------------------------


def test_bool_labels_are_probabilities():
    assert bradley_terry_loss(W, L, probability=torch.tensor([True])).item() == near(0.371100666)
    assert bradley_terry_loss(W, L, probability=torch.tensor([0])).item() == near(1.171100666)  # −log σ(−.8)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_numbers_that_make_no_loss(bad: float):
    with pytest.raises(ConfigError, match="centring"):
        bradley_terry_loss(W, L, centring=bad)
    with pytest.raises(ConfigError, match="theta"):
        rao_kupper_loss(W, L, TIE, theta=bad)
    with pytest.raises(ConfigError, match="nu"):
        davidson_loss(W, L, TIE, nu=bad)


def test_refused_shapes_and_types():
    for loss in (lambda x: rao_kupper_loss(W, L, x, theta=1.5), lambda x: davidson_loss(W, L, x, nu=0.5)):
        with pytest.raises(TrainingError, match=r"tie is torch\.float32"):
            loss(torch.ones(1))
    for call in (
        lambda: plackett_luce_loss(t(1.2, 0.4)),
        lambda: ranking_loss(t(1.2, 0.4), torch.tensor([0, 1])),
        lambda: process_score(t(1.2), TIE),
    ):
        with pytest.raises(TrainingError, match="two dimensions"):
            call()
    with pytest.raises(TrainingError, match="shapes differ"):
        ranking_loss(t(1.2, 0.4)[None], torch.tensor([0, 1]))


def test_refusals():
    with pytest.raises(ConfigError, match="centring is -1"):
        bradley_terry_loss(W, L, centring=-1)
    with pytest.raises(ConfigError, match="theta is 1"):
        rao_kupper_loss(W, L, TIE, theta=1.0)
    with pytest.raises(ConfigError, match="nu is 0"):
        davidson_loss(W, L, TIE, nu=0.0)
    with pytest.raises(ConfigError, match="how"):
        process_score(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), how="sum")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"chosen \[1\], rejected \[2\]"):
        bradley_terry_loss(W, t(1.0, 2.0))
    with pytest.raises(TrainingError, match="margin"):
        bradley_terry_loss(W, L, margin=t(1.0, 2.0))
    with pytest.raises(TrainingError, match=r"probability is -0\.5"):
        bradley_terry_loss(W, L, probability=t(-0.5))
    with pytest.raises(TrainingError, match="label is 2"):
        process_reward_loss(torch.zeros(1, 1), torch.full((1, 1), 2.0), torch.ones(1, 1, dtype=torch.bool))


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.3, 0.49, 0.5, 0.51, 0.9, 1.0])
@pytest.mark.parametrize("gap", [-1.5, 0.0, 1.0])
def test_a_margin_is_asked_of_the_likelier_winner(probability: float, gap: float):
    """Both ways of writing the same label agree; and a margin never lowers the loss of a certain one."""
    one, zero, margin = torch.tensor([gap]), torch.zeros(1), torch.tensor([1.0])
    first = bradley_terry_loss(one, zero, margin=margin, probability=torch.tensor([probability]))
    turned = bradley_terry_loss(zero, one, margin=margin, probability=torch.tensor([1 - probability]))
    assert first.item() == pytest.approx(turned.item(), abs=1e-6)
    if probability in (0.0, 1.0):
        assert first > bradley_terry_loss(one, zero, probability=torch.tensor([probability]))


def test_the_second_answer_ahead_by_its_margin():
    """Ahead by 1 where 1 is asked: −log σ(0) = log 2, by rank and by probability 0."""
    one, zero, margin = torch.ones(1), torch.zeros(1), torch.ones(1)
    by_rank = bradley_terry_loss(one, zero, margin=margin)
    by_label = bradley_terry_loss(zero, one, margin=margin, probability=torch.zeros(1))
    assert by_rank.item() == by_label.item() == pytest.approx(math.log(2))
