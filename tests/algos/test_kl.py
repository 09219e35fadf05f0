"""The KL penalty: what each estimator estimates and pulls towards, β in the right unit, rewards in the right place."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.algos import (
    AdaptiveKL,
    approx_kl,
    best_of_n_kl,
    best_of_n_kl_bound,
    k3_clamped,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_sequence,
    penalised_rewards,
)
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
    assert kl_k2(new, ref) >= 0 and -1e-15 <= kl_k3(new, ref) <= 10
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


@pytest.mark.parametrize("delta", [-1e4, -90.0, -50.0, -21.0, -3.0, -2.0, 0.5, 9.0, 11.5, 30.0, 1e4])
def test_k3_is_limited_as_in_verl_and_openrlhf(delta: float):
    """verl: clamp(ref − new, ±20), then clamp(exp(x) − x − 1, ±10); OpenRLHF: the second clamp. δ = −90 was inf."""
    x = min(max(-delta, -20.0), 20.0)
    wanted = min(math.exp(x) - x - 1, 10.0)
    new, mask = torch.tensor([[delta - 1.0]], requires_grad=True), torch.ones(1, 1, dtype=torch.bool)
    ref = torch.full((1, 1), -1.0)
    k3 = kl_k3(new, ref, mask)
    k3.sum().backward()
    assert k3.item() == pytest.approx(wanted, rel=1e-4)
    slope = 0.0 if wanted == 10.0 else 1 - math.exp(-delta)  # d/dδ (e^{−δ} − 1 + δ)
    assert new.grad is not None and new.grad.item() == pytest.approx(slope, rel=1e-4)
    assert k3_clamped(new, ref, mask).item() == float(wanted == 10.0)


def test_clamped_tokens_are_a_share_of_those_that_count():
    new, ref = torch.tensor([[-91.0, -1.0, -91.0]]), torch.full((1, 3), -1.0)
    assert k3_clamped(new, ref, torch.tensor([[True, True, False]])).item() == 0.5


def test_the_distance_of_a_step_is_not_limited():
    """``kl.stop`` compares it; a limit per token would hide one that moved by e¹²."""
    one = torch.ones(1, 1, dtype=torch.bool)
    assert approx_kl(torch.tensor([[-1.0]]), torch.tensor([[-13.0]]), one).item() == pytest.approx(
        math.exp(12) - 13, rel=1e-4
    )


# KL of whole answers ------------------------------------------------------------------------

ACTIONS, DEPTH = 3, 4


def random_trees(seed: int, count: int) -> list[Tensor]:
    """Logits of every state of a tree of tokens: one row for each beginning of an answer."""
    g = torch.Generator().manual_seed(seed)
    states = sum(ACTIONS**level for level in range(DEPTH))
    return [torch.randn(states, ACTIONS, generator=g, dtype=torch.float64) for _ in range(count)]


def answers() -> tuple[Tensor, Tensor]:
    """Every answer, ``[81, 4]``, and the state before each of its tokens."""
    paths = torch.tensor(list(itertools.product(range(ACTIONS), repeat=DEPTH)))
    states = torch.zeros_like(paths)
    for level in range(1, DEPTH):  # children of state s are 3s + 1, 3s + 2, 3s + 3
        states[:, level] = ACTIONS * states[:, level - 1] + paths[:, level - 1] + 1
    return paths, states


def tokens_of(logits: Tensor) -> Tensor:
    paths, states = answers()
    return torch.log_softmax(logits, -1)[states].gather(-1, paths[..., None]).squeeze(-1)


def gradient_of(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss, leaf)[0]


def exact_kl_gradient(policy: Tensor, ref: Tensor) -> Tensor:
    leaf = policy.clone().requires_grad_()
    new, base = tokens_of(leaf).sum(1), tokens_of(ref).sum(1)
    return gradient_of((new.exp() * (new - base)).sum(), leaf)


@pytest.mark.parametrize("seed", range(3))
def test_the_sequence_form_has_the_gradient_of_kl_on_answers_of_four_tokens(seed: int):
    policy, ref = random_trees(seed, 2)
    leaf, mask = policy.clone().requires_grad_(), torch.ones(81, 4, dtype=torch.bool)
    new = tokens_of(leaf)
    chance = new.sum(1).exp().detach()
    exact = exact_kl_gradient(policy, ref)
    losses = kl_sequence(new, tokens_of(ref), mask)
    assert torch.allclose(gradient_of((chance[:, None] * losses).sum(), leaf), exact, atol=1e-13)
    whole = float(chance @ (tokens_of(policy) - tokens_of(ref)).sum(1))
    assert float((chance[:, None] * losses.detach()).sum()) == pytest.approx(whole)  # and its value is unbiased
    for estimator in (kl_k2, kl_k3):  # per token: another direction
        new = tokens_of(leaf)
        turned = gradient_of((chance[:, None] * estimator(new, tokens_of(ref), mask)).sum(), leaf)
        assert float(torch.cosine_similarity(turned.flatten(), exact.flatten(), dim=0)) < 0.95


@pytest.mark.parametrize("seed", range(3))
def test_the_sequence_form_is_exact_on_answers_of_an_older_policy(seed: int):
    policy, ref, step = random_trees(10 + seed, 3)
    older = policy + 0.4 * step
    leaf, mask = policy.clone().requires_grad_(), torch.ones(81, 4, dtype=torch.bool)
    chance = tokens_of(older).sum(1).exp()
    losses = kl_sequence(tokens_of(leaf), tokens_of(ref), mask, old_logprobs=tokens_of(older))
    exact = exact_kl_gradient(policy, ref)
    assert torch.allclose(gradient_of((chance[:, None] * losses).sum(), leaf), exact, atol=1e-13)
    without = kl_sequence(tokens_of(leaf), tokens_of(ref), mask)
    assert not torch.allclose(gradient_of((chance[:, None] * without).sum(), leaf), exact, atol=1e-2)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.floats(0.0, 0.6))
def test_the_gradient_is_the_slope_of_the_kl_and_that_of_the_per_token_forms_is_not(seed: int, stale: float):
    """Along a random direction, against the KL itself at two points; on answers of the policy or of an older one."""
    policy, ref, step, way = random_trees(20_000 + seed, 4)
    older = policy + stale * step
    chance, mask = tokens_of(older).sum(1).exp(), torch.ones(81, 4, dtype=torch.bool)

    def divergence(logits: Tensor) -> float:
        new = tokens_of(logits).sum(1)
        return float(new.exp() @ (new - tokens_of(ref).sum(1)))

    width = 1e-5
    slope = (divergence(policy + width * way) - divergence(policy - width * way)) / (2 * width)

    def climbed(form) -> float:
        leaf = policy.clone().requires_grad_()
        return float((gradient_of((chance[:, None] * form(tokens_of(leaf))).sum(), leaf) * way).sum())

    base, old = tokens_of(ref), tokens_of(older)
    ratio = (tokens_of(policy) - old).cumsum(1).exp()
    assert climbed(lambda new: kl_sequence(new, base, mask, old_logprobs=old)) == pytest.approx(slope, abs=1e-6)
    for estimator in (kl_k2, kl_k3):  # also where each token is weighed by how likely the policy comes to it
        assert abs(climbed(lambda new, e=estimator: ratio * e(new, base, mask)) - slope) > 1e-5


def test_the_penalty_in_the_reward_has_the_same_gradient():
    """Σ_t ∇log π_t · (reward to come), with −k1 as the only reward, is −∇KL."""
    policy, ref = random_trees(5, 2)
    leaf, mask = policy.clone().requires_grad_(), torch.ones(81, 4, dtype=torch.bool)
    new = tokens_of(leaf)
    chance = new.sum(1).exp().detach()
    rewards = penalised_rewards(torch.zeros(81, dtype=torch.float64), new, tokens_of(ref), mask, beta=1.0)
    to_come = rewards.flip(1).cumsum(1).flip(1)
    climbed = gradient_of((chance[:, None] * to_come * new).sum(), leaf)
    assert torch.allclose(climbed, -exact_kl_gradient(policy, ref), atol=1e-13)


def test_the_sequence_form_jumps_over_tokens_that_do_not_count():
    new = torch.tensor([[-1.0, NAN, -2.0, NAN]], requires_grad=True)
    ref, old = torch.tensor([[-1.5, 0.0, -1.0, math.inf]]), torch.tensor([[-1.0 - math.log(2), NAN, -2.0, 0.0]])
    mask = torch.tensor([[True, False, True, False]])
    loss = kl_sequence(new, ref, mask, old_logprobs=old)  # δ = .5, −1; w = 2, 2
    loss.sum().backward()
    assert loss[0].tolist() == pytest.approx([1.0, 0.0, -2.0, 0.0])
    assert new.grad is not None and new.grad[0].tolist() == pytest.approx([-1.0, 0.0, -2.0, 0.0])
    with pytest.raises(TrainingError, match="shapes differ"):
        kl_sequence(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(TrainingError, match="two dimensions"):
        kl_sequence(torch.zeros(2), torch.zeros(2), torch.ones(2, dtype=torch.bool))


# Adaptive coefficient ----------------------------------------------------------------------------


def test_adaptive_golden():
    """KL 9 against 6 is +50 %, clipped to +20 %: .2·(1 + .2·256/10⁴)."""
    adaptive = AdaptiveKL(0.2, 6.0, 10_000)
    assert adaptive.update(9.0, 256) == pytest.approx(0.201024, abs=1e-9) == adaptive.value


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
    adaptive = AdaptiveKL(0.2, 6.0, 100)
    with pytest.raises(NonFiniteError, match="nan"):
        adaptive.update(NAN, 10)
    with pytest.raises(ConfigError, match="horizon"):
        adaptive.update(1.0, 500)
    assert adaptive.value == 0.2


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
