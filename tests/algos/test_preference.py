"""Offline preference losses against values worked out by hand from the papers' formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.algos import (
    cpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    masked_sum,
    orpo_loss,
    simpo_loss,
)
from trimtab.errors import ConfigError, TrainingError


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


POLICY = (t(-12.0), t(-15.0))
PAIR = (*POLICY, t(-13.0), t(-14.5))  # h = (−12 + 15) − (−13 + 14.5) = 1.5
LENGTHS = (t(10.0), t(12.0))
H, BETA = 1.5, 0.1


def nls(x: float) -> float:
    """−log σ(x) in plain Python."""
    return math.log1p(math.exp(-x))


def near(value: float) -> object:
    return pytest.approx(value, abs=5e-10)


# Golden values -----------------------------------------------------------------------------


def test_dpo():
    assert nls(BETA * H) == near(0.620957048)
    assert dpo_loss(*PAIR, beta=BETA).item() == near(0.620957048)


def test_conservative_dpo():
    assert 0.9 * nls(BETA * H) + 0.1 * nls(-BETA * H) == near(0.635957048)
    assert dpo_loss(*PAIR, beta=BETA, label_smoothing=0.1).item() == near(0.635957048)


def test_robust_dpo():
    assert (0.9 * nls(BETA * H) - 0.1 * nls(-BETA * H)) / 0.8 == near(0.602207048)
    assert dpo_loss(*PAIR, beta=BETA, label_smoothing=0.1, smoothing="robust").item() == near(0.602207048)


def test_ipo_sums_as_the_paper_does():
    assert (H - 1 / (2 * 0.1)) ** 2 == near(12.25)
    assert ipo_loss(*PAIR, tau=0.1).item() == near(12.25)


def test_ipo_of_averages_is_another_loss():
    """Trap 6: log-ratios averaged over length give 23.6034, the value of an implementation that is not the paper."""
    lengths = (*LENGTHS, *LENGTHS)
    averaged = [x / n for x, n in zip(PAIR, lengths, strict=True)]
    assert ipo_loss(*averaged, tau=0.1).item() == pytest.approx(23.6034, abs=5e-5)


def test_hinge():
    assert hinge_loss(*PAIR, beta=BETA).item() == near(0.85)
    assert hinge_loss(t(0.0), t(-20.0), t(0.0), t(0.0), beta=BETA).item() == 0.0


def test_kto():
    liked, disliked = -12.0 + 13.0, -15.0 + 14.5  # r = log π − log ref
    expected = [1 - 1 / (1 + math.exp(-0.1 * (liked - 0.3))), 1 - 1 / (1 + math.exp(-0.1 * (0.3 - disliked)))]
    assert expected == [near(0.482507142), near(0.480010660)]
    answers = t(-12.0, -15.0), t(-13.0, -14.5), torch.tensor([True, False])
    assert kto_loss(*answers, t(0.3)[0], beta=BETA).tolist() == [near(0.482507142), near(0.480010660)]
    weighted = kto_loss(*answers, t(0.3)[0], beta=BETA, weight_desirable=2.0, weight_undesirable=3.0)
    assert weighted.tolist() == [near(2 * expected[0]), near(3 * expected[1])]


def test_simpo():
    assert nls(2 * -1.2 - 2 * -1.25 - 1) == near(1.241153875)
    assert simpo_loss(*POLICY, *LENGTHS, beta=2.0, gamma=1.0).item() == near(1.241153875)


def test_orpo():
    p, q = math.exp(-1.2), math.exp(-1.25)
    expected = 1.2 + 0.1 * nls(math.log(p / (1 - p)) - math.log(q / (1 - q)))
    assert expected == near(1.265837225)
    assert orpo_loss(*POLICY, *LENGTHS, lam=0.1).item() == near(1.265837225)


def test_cpo():
    assert nls(0.1 * 3) == near(0.554355244)
    assert cpo_loss(*POLICY, beta=BETA, alpha=0.0).item() == near(0.554355244)
    assert cpo_loss(*POLICY, beta=BETA, alpha=0.5).item() == near(0.554355244 + 0.5 * 12)
    assert cpo_loss(*POLICY, beta=BETA, alpha=0.5, mean_length=10.0).item() == near(0.554355244 + 0.5 * 1.2)


# Soft labels ---------------------------------------------------------------------------------


def test_soft_labels_by_hand():
    p = t(0.7)
    assert dpo_loss(*PAIR, beta=BETA, probability=p).item() == near(0.7 * nls(0.15) + 0.3 * nls(-0.15))
    assert ipo_loss(*PAIR, tau=0.1, probability=p).item() == near(0.7 * 12.25 + 0.3 * 6.5**2)


def test_conservative_dpo_is_a_soft_label():
    soft = dpo_loss(*PAIR, beta=BETA, probability=t(0.9))
    assert soft.item() == near(dpo_loss(*PAIR, beta=BETA, label_smoothing=0.1).item())


def test_soft_labels_and_smoothing_exclude_each_other():
    with pytest.raises(ConfigError, match="use one of them"):
        dpo_loss(*PAIR, beta=BETA, label_smoothing=0.1, probability=t(0.9))


# KTO's reference point -----------------------------------------------------------------------


def test_reference_point_is_clamped_and_constant():
    policy = t(-10.0, -20.0).requires_grad_()
    assert kto_reference_point(policy, t(-11.0, -21.5)).item() == 1.25
    assert kto_reference_point(policy, t(-9.0, -19.0)).item() == 0.0
    assert not kto_reference_point(policy, t(-11.0, -21.5)).requires_grad


def test_no_gradient_through_the_reference_point():
    z = torch.tensor(0.3, requires_grad=True)
    policy = torch.tensor([-12.0], requires_grad=True)
    kto_loss(policy, torch.tensor([-13.0]), torch.tensor([True]), z, beta=BETA).sum().backward()
    assert z.grad is None and policy.grad is not None


# Properties ------------------------------------------------------------------------------------

nats = st.floats(-30, 0, allow_nan=False)
quads = st.tuples(nats, nats, nats, nats)


@settings(deadline=None, max_examples=50)
@given(quads)
def test_order_swap(values: tuple[float, float, float, float]):
    """Exchanging the answers turns h into −h: certainty p into 1 − p, and L(h) − L(−h) = −βh exactly."""
    c, r, rc, rr = (t(v) for v in values)
    h = float((c - r) - (rc - rr))
    assert (dpo_loss(c, r, rc, rr, beta=BETA) - dpo_loss(r, c, rr, rc, beta=BETA)).item() == pytest.approx(-BETA * h)
    for loss in (
        lambda *x, p: dpo_loss(*x, beta=BETA, probability=p),
        lambda *x, p: ipo_loss(*x, tau=BETA, probability=p),
    ):
        there, back = loss(c, r, rc, rr, p=t(0.8)), loss(r, c, rr, rc, p=t(0.2))
        assert there.item() == pytest.approx(back.item())


@settings(deadline=None, max_examples=50)
@given(quads, st.floats(0.01, 5))
def test_a_better_chosen_answer_costs_less(values: tuple[float, float, float, float], step: float):
    c, r, rc, rr = (t(v) for v in values)
    before, after = c - step, c
    one = torch.tensor([True])
    for loss in (
        lambda c: dpo_loss(c, r, rc, rr, beta=BETA),
        lambda c: dpo_loss(c, r, rc, rr, beta=BETA, label_smoothing=0.2, smoothing="robust"),
        lambda c: kto_loss(c, rc, one, torch.tensor(0.3), beta=BETA),
        lambda c: simpo_loss(c, r, *LENGTHS, beta=2.0, gamma=1.0),
        lambda c: orpo_loss(c, r, *LENGTHS, lam=0.1),
        lambda c: cpo_loss(c, r, beta=BETA),
    ):
        assert loss(after).item() < loss(before).item()
    assert hinge_loss(after, r, rc, rr, beta=BETA).item() <= hinge_loss(before, r, rc, rr, beta=BETA).item()


def test_ipo_is_lowest_at_its_target_gap():
    """h* = 1/(2τ) = 5; beyond it the loss rises again, which is its point."""
    gaps = [ipo_loss(t(h), t(0.0), t(0.0), t(0.0), tau=0.1).item() for h in (4.0, 5.0, 6.0)]
    assert gaps == [1.0, 0.0, 1.0]


def test_padding_does_not_matter():
    """From tokens to loss: garbage in the padding changes nothing, forward or backward."""
    mask = torch.tensor([[True, True, False], [True, True, True]])
    clean = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -0.5, -0.5]])
    dirty = torch.where(mask, clean, math.nan).requires_grad_()
    ref = torch.full((1,), -2.0)
    losses = []
    for tokens in (clean, dirty):
        sums = masked_sum(tokens, mask, dim=1)
        losses.append(dpo_loss(sums[:1], sums[1:], ref, ref, beta=BETA).sum())
    losses[1].backward()
    assert losses[0].item() == losses[1].item() == pytest.approx(nls(0.1 * (-3 + 1.5)))
    assert dirty.grad is not None and torch.isfinite(dirty.grad).all() and dirty.grad[0, 2] == 0


def test_extremes_stay_finite():
    far = torch.tensor([2e4], requires_grad=True)
    zero = torch.zeros(1)
    loss = dpo_loss(-far, zero, zero, zero, beta=1.0)
    loss.backward()
    assert loss.item() == 2e4 and far.grad is not None and far.grad.item() == 1.0
    certain = torch.zeros(1, requires_grad=True)  # log π = 0: the model is sure, the odds would be infinite
    loss = orpo_loss(certain, torch.tensor([-5.0]), torch.ones(1), torch.ones(1), lam=0.1)
    loss.backward()
    assert torch.isfinite(loss) and certain.grad is not None and torch.isfinite(certain.grad).all()


# What is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_beta_must_be_positive(beta: float):
    one = torch.tensor([True])
    for call in (
        lambda: dpo_loss(*PAIR, beta=beta),
        lambda: ipo_loss(*PAIR, tau=beta),
        lambda: hinge_loss(*PAIR, beta=beta),
        lambda: kto_loss(PAIR[0], PAIR[2], one, torch.tensor(0.0), beta=beta),
        lambda: simpo_loss(*POLICY, *LENGTHS, beta=beta, gamma=1.0),
        lambda: orpo_loss(*POLICY, *LENGTHS, lam=beta),
        lambda: cpo_loss(*POLICY, beta=beta),
    ):
        with pytest.raises(ConfigError, match="set it above 0"):
            call()


@pytest.mark.parametrize("eps", [-0.1, 0.5, 0.9, math.nan])
def test_smoothing_outside_its_range(eps: float):
    with pytest.raises(ConfigError, match="label_smoothing"):
        dpo_loss(*PAIR, beta=BETA, label_smoothing=eps)


def test_other_hyperparameters():
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="gamma"):
            simpo_loss(*POLICY, *LENGTHS, beta=2.0, gamma=bad)
        with pytest.raises(ConfigError, match="alpha"):
            cpo_loss(*POLICY, beta=BETA, alpha=bad)
    with pytest.raises(ConfigError, match="smoothing"):
        dpo_loss(*PAIR, beta=BETA, smoothing="both")  # type: ignore[arg-type]


def test_shapes_are_not_broadcast():
    with pytest.raises(TrainingError, match="shapes differ"):
        dpo_loss(t(-1.0, -2.0), t(-1.0), t(-1.0), t(-1.0), beta=BETA)
    with pytest.raises(TrainingError, match="one scalar for the whole step"):
        kto_loss(t(-1.0), t(-1.0), torch.tensor([True]), t(0.3), beta=BETA)
    with pytest.raises(TrainingError, match=r"desirable is torch\.float64"):
        kto_loss(t(-1.0), t(-1.0), t(1.0), t(0.3)[0], beta=BETA)
    with pytest.raises(TrainingError, match="at least 2"):
        kto_reference_point(torch.zeros(0), torch.zeros(0))


def test_empty_answers_have_no_average():
    """Trap 12: 0/0 would poison the step; it is refused with the row instead."""
    for empty in (0.0, math.nan):
        with pytest.raises(TrainingError, match=r"rejected_lengths is below 1 in rows \[0\]"):
            ipo_loss(*PAIR, tau=BETA, chosen_lengths=t(3.0), rejected_lengths=t(empty))
        with pytest.raises(TrainingError, match=r"chosen_lengths is below 1 in rows \[1\]"):
            simpo_loss(t(-1.0, 0.0), t(-1.0, -1.0), t(3.0, empty), t(3.0, 3.0), beta=2.0, gamma=1.0)


def test_impossible_probabilities():
    with pytest.raises(TrainingError, match=r"probability is 1.5 at \[0\]"):
        dpo_loss(*PAIR, beta=BETA, probability=t(1.5))
    with pytest.raises(TrainingError, match="probability is nan"):
        ipo_loss(*PAIR, tau=BETA, probability=t(math.nan))


def test_ipo_per_token_as_trl():
    """TRL's ``ipo``: log-ratios divided by completion tokens. 1/10 + .5/12 − 5, squared; and as a soft label."""
    lengths = {"chosen_lengths": t(10.0), "rejected_lengths": t(12.0)}
    assert ipo_loss(*PAIR, tau=BETA, **lengths).item() == near((0.1 + 0.5 / 12 - 5) ** 2)
    soft = 0.25 * (0.1 + 0.5 / 12 - 5) ** 2 + 0.75 * (0.1 + 0.5 / 12 + 5) ** 2
    assert ipo_loss(*PAIR, tau=BETA, **lengths, probability=t(0.25)).item() == near(soft)
    with pytest.raises(TrainingError, match="only one of chosen_lengths and rejected_lengths"):
        ipo_loss(*PAIR, tau=BETA, chosen_lengths=t(10.0))


def test_cpo_averages_over_the_tokens_of_the_batch():
    """The authors' cross-entropy: 10 and 50 nats over 5 and 50 tokens are 60/55, not (10/5 + 50/50)/2."""
    policy, lengths = t(-10.0, -50.0), t(5.0, 50.0)
    losses = cpo_loss(policy, policy, beta=BETA, alpha=1.0, mean_length=float(lengths.mean()))
    assert losses.mean().item() == near(math.log(2) + 60 / 55)
    with pytest.raises(ConfigError, match="mean_length is 0"):
        cpo_loss(policy, policy, beta=BETA, mean_length=0.0)
