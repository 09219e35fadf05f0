"""What the estimators estimate and where the losses lead, by exact enumeration: no sampling, no judge."""

import itertools

import pytest
import torch
from torch import Tensor

from trimtab.algos import dpo_loss, group_advantage, ipo_loss, rloo_advantage

F = torch.float64

# Three actions, all k-tuples -------------------------------------------------------------------

POLICY = torch.softmax(torch.tensor([0.5, -0.2, 1.0], dtype=F), 0)
REWARD = torch.tensor([1.0, 0.0, 0.3], dtype=F)
TRUE = POLICY * (REWARD - POLICY @ REWARD)
"""∇E[R] with respect to the logits."""


def expected(k: int, advantage) -> Tensor:
    """E over all k-tuples of (1/k)·Σ_i A_i·∇log π(a_i)."""
    tuples = torch.tensor(list(itertools.product(range(3), repeat=k)))
    probability = POLICY[tuples].prod(1)
    score = torch.eye(3, dtype=F)[tuples] - POLICY
    return (probability[:, None, None] * advantage(REWARD[tuples])[..., None] * score).sum((0, 1)) / k


@pytest.mark.parametrize("k", [2, 3, 4])
def test_rloo_is_the_true_gradient(k: int):
    assert (expected(k, rloo_advantage) - TRUE).abs().max() < 1e-12


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_mean_baseline_is_short_by_a_known_factor(k: int):
    biased = expected(k, lambda r: group_advantage(r, std="none"))
    assert (biased - (k - 1) / k * TRUE).abs().max() < 1e-12


@pytest.mark.parametrize(("k", "cosine"), [(2, 0.982), (3, 0.993), (4, 0.997)])
@pytest.mark.parametrize("std", ["sample", "population"])
def test_dividing_by_the_spread_turns_the_gradient(k: int, cosine: float, std):
    turned = expected(k, lambda r: group_advantage(r, std=std))
    assert torch.cosine_similarity(turned, TRUE, dim=0).item() == pytest.approx(cosine, abs=5e-4)


# Eight answers, the whole population of pairs --------------------------------------------------

_g = torch.Generator().manual_seed(1)
REF = torch.log_softmax(torch.randn(8, generator=_g, dtype=F), 0)
R = torch.randn(8, generator=_g, dtype=F)
BETA, FLIPS = 0.5, 0.2
BETTER = torch.sigmoid(R[:, None] - R[None])
"""P(answer i is judged better than answer j)."""
OBSERVED = (1 - FLIPS) * BETTER + FLIPS * BETTER.T
OPTIMUM = torch.log_softmax(REF + R / BETA, 0)
"""π* ∝ ref·exp(r/β)."""
FIRST, SECOND = torch.triu_indices(8, 8, 1)


def minimise(loss) -> Tensor:
    """log π that minimises the mean of ``loss(log π_i, log π_j, log ref_i, log ref_j)`` over all pairs."""
    shift = torch.zeros(8, dtype=F, requires_grad=True)
    search = torch.optim.LBFGS(
        [shift], max_iter=1000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        policy = torch.log_softmax(REF + shift, 0)
        value = loss(policy[FIRST], policy[SECOND], REF[FIRST], REF[SECOND]).sum()
        value.backward()
        return value

    search.step(closure)  # type: ignore[arg-type]
    return torch.log_softmax(REF + shift.detach(), 0)


def kl(a: Tensor, b: Tensor) -> float:
    return (a.exp() * (a - b)).sum().item()


def flipped(**kwargs):
    """Population loss under flipped labels, written as what it is: both orders, weighted by how often they occur."""
    p = OBSERVED[FIRST, SECOND]
    return lambda c, r, rc, rr: p * dpo_loss(c, r, rc, rr, **kwargs) + (1 - p) * dpo_loss(r, c, rr, rc, **kwargs)


def test_dpo_finds_the_optimum():
    optimum = minimise(lambda *x: dpo_loss(*x, beta=BETA, probability=BETTER[FIRST, SECOND]))
    assert kl(optimum, OPTIMUM) < 1e-9


def test_flipped_labels():
    """20 % flips: robust DPO still finds π*; DPO and cDPO end a known way off (.05–.12 and .13–.26)."""
    robust = minimise(flipped(beta=BETA, label_smoothing=FLIPS, smoothing="robust"))
    assert kl(robust, OPTIMUM) < 1e-9
    assert 0.05 < kl(minimise(flipped(beta=BETA)), OPTIMUM) < 0.12
    assert 0.13 < kl(minimise(flipped(beta=BETA, label_smoothing=FLIPS)), OPTIMUM) < 0.26


def test_ipo_finds_its_own_optimum():
    """π* ∝ ref·exp(E_{y'~ref} p(y ≻ y')/τ), pairs drawn from ref (Azar et al. 2023, section 5.2)."""
    weight = (REF[FIRST] + REF[SECOND]).exp()
    optimum = minimise(lambda *x: weight * ipo_loss(*x, tau=BETA, probability=BETTER[FIRST, SECOND]))
    assert kl(optimum, torch.log_softmax(REF + BETTER @ REF.exp() / BETA, 0)) < 1e-9
