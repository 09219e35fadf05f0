"""The leash: what each estimator estimates and pulls towards, β in the right unit, rewards in the right place."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.algos import AdaptiveKL, best_of_n_kl, best_of_n_kl_bound, kl_k1, kl_k2, kl_k3, penalised_rewards
from trimtab.errors import ConfigError, NonFiniteError, TrainingError

NAN = math.nan
LOGITS = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64)
REF = torch.log_softmax(torch.tensor([0.0, 0.3, -0.4], dtype=torch.float64), 0)

# Estimators ----------------------------------------------------------------------------------


def test_estimators_by_hand():
    new, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])  # δ = .5, −1
    assert kl_k1(new, ref).tolist() == pytest.approx([0.5, -1.0])
    assert kl_k2(new, ref).tolist() == pytest.approx([0.125, 0.5])
    assert kl_k3(new, ref).tolist() == pytest.approx([math.exp(-0.5) - 0.5, math.exp(1) - 2])


def test_k1_and_k3_are_unbiased():
    new = torch.log_softmax(LOGITS, 0)
    exact = sum(p * math.log(p / q) for p, q in zip(new.exp().tolist(), REF.exp().tolist(), strict=True))
    assert (new.exp() * kl_k1(new, REF)).sum().item() == pytest.approx(exact)
    assert (new.exp() * kl_k3(new, REF)).sum().item() == pytest.approx(exact)


def expected_gradient(estimator) -> list[float]:
    """Σ_a π(a)·∇k(a): the tokens are drawn, only the loss is differentiated."""
    logits = LOGITS.clone().requires_grad_()
    new = torch.log_softmax(logits, 0)
    (new.detach().exp() * estimator(new, REF)).sum().backward()
    assert logits.grad is not None
    return logits.grad.tolist()


def analytic(weights: Tensor) -> list[float]:
    """Σ_a w_a·∇log π_a with respect to the logits: w_i − π_i·Σw."""
    p = torch.softmax(LOGITS, 0)
    return (weights - p * weights.sum()).tolist()


def test_gradient_goldens():
    p, q = torch.softmax(LOGITS, 0), REF.exp()
    forward = analytic(p * (p / q).log())  # ∇KL(π‖ref) = Σ π log(π/ref) ∇log π
    backward = analytic(-q)  # ∇KL(ref‖π) = −Σ ref ∇log π
    assert forward == pytest.approx([-0.0998, -0.2074, 0.3072], abs=5e-5)
    assert backward == pytest.approx([-0.0132, -0.2891, 0.3022], abs=5e-5)
    assert expected_gradient(kl_k1) == pytest.approx([0.0, 0.0, 0.0], abs=1e-15)
    assert expected_gradient(kl_k2) == pytest.approx(forward)
    assert expected_gradient(kl_k3) == pytest.approx(backward)


@settings(deadline=None, max_examples=100)
@given(st.floats(-40, 0), st.floats(-40, 0))
def test_never_negative(a: float, b: float):
    new, ref = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    assert kl_k2(new, ref) >= 0 and kl_k3(new, ref) >= -1e-15
    assert kl_k1(new, ref) == -kl_k1(ref, new)


def test_k3_keeps_small_differences():
    """e^{−δ} − 1 + δ cancels: at δ = 1e−3 float32 would lose δ²/2 = 5e−7 without expm1."""
    delta = torch.tensor(1e-3)
    assert kl_k3(delta, torch.zeros(())).item() == pytest.approx(0.5e-6, rel=0.02)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k2, kl_k3])
def test_padding(estimator):
    new = torch.tensor([0.5, NAN]).requires_grad_()
    out = estimator(new, torch.tensor([0.0, math.inf]), torch.tensor([True, False]))
    out.sum().backward()
    assert out[1] == 0 and new.grad is not None and new.grad[1] == 0 and torch.isfinite(new.grad[0])
    with pytest.raises(TrainingError, match="shapes differ"):
        estimator(torch.zeros(2), torch.zeros(3))


# Adaptive coefficient ----------------------------------------------------------------------------


def test_adaptive_golden():
    """KL 9 against 6 is +50 %, clipped to +20 %: .2·(1 + .2·256/10⁴)."""
    leash = AdaptiveKL(0.2, 6.0, 10_000)
    assert leash.update(9.0, 256) == pytest.approx(0.201024, abs=1e-9) == leash.value


def test_adaptive_below_target_and_within_the_clip():
    assert AdaptiveKL(0.2, 6.0, 10_000).update(0.0, 256) == pytest.approx(0.2 * (1 - 0.2 * 0.0256))
    assert AdaptiveKL(0.2, 6.0, 10_000).update(6.6, 256) == pytest.approx(0.2 * (1 + 0.1 * 0.0256))
    assert AdaptiveKL(0.2, 6.0, 10_000).update(6.0, 256) == pytest.approx(0.2)


def test_the_wrong_unit_sends_beta_to_zero():
    """Trap 7: on target per sequence, but measured per token of 100: β only ever falls."""
    right, wrong = AdaptiveKL(0.2, 6.0, 10_000), AdaptiveKL(0.2, 6.0, 10_000)
    for _ in range(2000):
        right.update(6.0, 256)
        wrong.update(6.0 / 100, 256)
    assert right.value == pytest.approx(0.2) and wrong.value < 1e-5


def test_adaptive_is_continued():
    a = AdaptiveKL(0.2, 6.0, 10_000)
    a.update(9.0, 256)
    b = AdaptiveKL(0.2, 6.0, 10_000)
    b.load_state_dict(a.state_dict())
    assert a.update(3.0, 64) == b.update(3.0, 64)


def test_adaptive_refuses():
    inf = math.inf
    for bad in ((-0.1, 6, 100), (0.2, 0, 100), (0.2, 6, 0), (NAN, 6, 100), (inf, 6, 100), (0.2, inf, 9), (0.2, 6, inf)):
        with pytest.raises(ConfigError, match="target"):
            AdaptiveKL(*bad)
    leash = AdaptiveKL(0.2, 6.0, 100)
    with pytest.raises(NonFiniteError, match="nan"):
        leash.update(NAN, 10)
    with pytest.raises(ConfigError, match="horizon"):
        leash.update(1.0, 500)
    assert leash.value == 0.2


# Rewards per token -------------------------------------------------------------------------------


def plain_rewards(score: float, new: list[float], ref: list[float], mask: list[bool], beta: float) -> list[float]:
    out = [0.0] * len(mask)
    last = None
    for i, counts in enumerate(mask):
        if counts:
            out[i] = -beta * (new[i] - ref[i])
            last = i
    assert last is not None
    out[last] += score
    return out


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.floats(0, 2))
def test_rewards_against_a_plain_loop(seed: int, beta: float):
    g = torch.Generator().manual_seed(seed)
    new, ref = (-torch.rand(3, 6, generator=g, dtype=torch.float64) for _ in range(2))
    scores = torch.randn(3, generator=g, dtype=torch.float64)
    mask = torch.rand(3, 6, generator=g) < 0.5
    mask[torch.arange(3), torch.randint(0, 6, (3,), generator=g)] = True
    dirty = torch.where(mask, new, NAN), torch.where(mask, ref, -math.inf)
    out = penalised_rewards(scores, *dirty, mask, beta=beta)
    for b in range(3):
        expected = plain_rewards(scores[b].item(), new[b].tolist(), ref[b].tolist(), mask[b].tolist(), beta)
        assert out[b].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_score_sits_on_the_last_token():
    """Trap 3: on the final token (EOS), not one slot after it, however much padding follows."""
    mask = torch.tensor([[False, True, True, False, False], [True, True, True, True, True]])
    out = penalised_rewards(torch.tensor([7.0, 9.0]), torch.zeros(2, 5), torch.zeros(2, 5), mask, beta=0.1)
    assert out.tolist() == [[0, 0, 7, 0, 0], [0, 0, 0, 0, 9]]


def test_rewards_add_up_to_score_minus_beta_kl():
    new, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -1.5]])  # δ = 1, −.5
    out = penalised_rewards(torch.tensor([3.0]), new, ref, torch.ones(1, 2, dtype=torch.bool), beta=0.2)
    assert out[0].tolist() == pytest.approx([-0.2, 3.1])


MISSING = {"scores": torch.tensor([2.0, 2.0]), "zeros": torch.zeros(2, 1), "mask": torch.ones(2, 1, dtype=torch.bool)}


def test_rewards_are_constants():
    new = torch.zeros(2, 1, requires_grad=True)
    assert not penalised_rewards(MISSING["scores"], new, MISSING["zeros"], MISSING["mask"], beta=0.1).requires_grad


def test_rewards_refuse():
    scores, zeros, mask = MISSING["scores"], MISSING["zeros"], MISSING["mask"]
    with pytest.raises(TrainingError, match=r"answers \[1\] have no token"):
        penalised_rewards(scores, zeros, zeros, torch.tensor([[True], [False]]), beta=0.1)
    for beta in (-0.1, math.inf, NAN):
        with pytest.raises(ConfigError, match="beta is"):
            penalised_rewards(scores, zeros, zeros, mask, beta=beta)
    for bad in (zeros[:, 0], zeros[:, :0]):
        with pytest.raises(TrainingError, match="two dimensions"):
            penalised_rewards(scores, bad, bad, bad.bool(), beta=0.1)
    with pytest.raises(TrainingError, match="scores"):
        penalised_rewards(scores[:1], zeros, zeros, mask, beta=0.1)


# Best of n -----------------------------------------------------------------------------------------


def exact_best_of_n(outcomes: int, n: int) -> float:
    """By enumeration of all draws from a uniform policy; outcome i has reward i."""
    best = [0] * outcomes
    for draw in itertools.product(range(outcomes), repeat=n):
        best[max(draw)] += 1
    share = [b / outcomes**n for b in best]
    return sum(s * math.log(s * outcomes) for s in share)


@pytest.mark.parametrize(("outcomes", "exact", "estimate"), [(2, 0.459356, 0.499124), (10, 0.628825, 0.634870)])
def test_best_of_four(outcomes: int, exact: float, estimate: float):
    assert exact_best_of_n(outcomes, 4) == pytest.approx(exact, abs=5e-7)
    assert best_of_n_kl_bound(4) == pytest.approx(0.636294, abs=5e-7)
    assert best_of_n_kl(torch.tensor([-math.log(outcomes)]), 4).item() == pytest.approx(estimate, abs=5e-7)


@settings(deadline=None, max_examples=60)
@given(st.floats(-1e4, 0), st.integers(1, 512))
def test_the_estimate_lies_between_zero_and_the_bound(logprob: float, n: int):
    estimate = best_of_n_kl(torch.tensor([logprob]), n).item()
    assert -1e-9 <= estimate <= best_of_n_kl_bound(n) + 1e-9


def test_best_of_n_limits():
    """A certain answer cannot be selected away from; a long one is never drawn twice; n = 1 selects nothing."""
    ends = best_of_n_kl(torch.tensor([0.0, -5000.0]), 8).tolist()
    assert ends == pytest.approx([0.0, best_of_n_kl_bound(8)], abs=1e-9)
    assert best_of_n_kl(torch.tensor([-3.0, 0.0]), 1).tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    for n in (0, 2.5, NAN, math.inf):
        with pytest.raises(ConfigError, match="whole number"):
            best_of_n_kl(torch.tensor([-3.0]), n)  # type: ignore[arg-type]
