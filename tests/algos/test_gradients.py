"""Every loss against finite differences, in float64, away from its bends."""

import pytest
import torch
from torch import Tensor

from trimtab import algos

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int, shift: float = 0.0) -> Tensor:
    return (torch.randn(*shape, generator=GENERATOR, dtype=torch.float64) + shift).requires_grad_()


B, T = 4, 5
MASK = torch.arange(T) < torch.tensor([[5], [3], [1], [4]])
FLAGS = torch.tensor([True, False, True, False])
LENGTHS = torch.tensor([3.0, 5.0, 8.0, 2.0], dtype=torch.float64)
SOFT = torch.tensor([0.1, 0.9, 0.5, 1.0], dtype=torch.float64)
RATIOS = torch.tensor([0.5, 0.7, 0.9, 1.05, 1.5], dtype=torch.float64).log()
ADVANTAGES = torch.tensor([[1.0], [-1.0], [2.0], [-0.5]], dtype=torch.float64).expand(B, T)
Z = torch.tensor(0.3, dtype=torch.float64)


def tokens() -> Tensor:
    """Log-probabilities whose ratios to 0 lie on both sides of the clip range, none on its edge."""
    return RATIOS.expand(B, T).clone().requires_grad_()


def values() -> Tensor:
    return (torch.linspace(-0.55, 0.5, B * T, dtype=torch.float64).reshape(B, T)).requires_grad_()


def two() -> tuple[Tensor, Tensor]:
    return normal(B, shift=-9), normal(B, shift=-9)


REFS = tuple(x.detach() for x in two())
REF_TOKENS = normal(B, T).detach()
ZERO = torch.zeros(B, T, dtype=torch.float64)
CASES = {
    "bradley_terry_loss": (
        lambda c, r, m: algos.bradley_terry_loss(c, r, margin=m, probability=SOFT, centring=0.01),
        (normal(B), normal(B), normal(B)),
    ),
    "ranking_loss": (lambda r: algos.ranking_loss(r, torch.arange(T).flip(0).expand(B, T), MASK), (normal(B, T),)),
    "plackett_luce_loss": (lambda r: algos.plackett_luce_loss(r, MASK), (normal(B, T),)),
    "rao_kupper_loss": (lambda c, r: algos.rao_kupper_loss(c, r, FLAGS, theta=1.5), (normal(B), normal(B))),
    "davidson_loss": (lambda c, r: algos.davidson_loss(c, r, FLAGS, nu=0.5), (normal(B), normal(B))),
    "vote_loss": (
        lambda d, a: algos.vote_loss(d, a, torch.arange(B) % 3, likelihood="davidson"),
        (normal(B), normal(B)),
    ),
    "vote_loss rao_kupper": (
        lambda d, a: algos.vote_loss(d, a, torch.arange(B) % 3, likelihood="rao_kupper"),
        (normal(B), normal(B)),
    ),
    "process_reward_loss": (
        lambda z: algos.process_reward_loss(z, SOFT[:, None].expand(B, T), MASK),
        (normal(B, T),),
    ),
    "process_score": (lambda z: algos.process_score(z, MASK), (normal(B, T),)),
    "dpo_loss": (lambda *x: algos.dpo_loss(*x, *REFS, beta=0.3), two()),
    "dpo_loss soft": (lambda *x: algos.dpo_loss(*x, *REFS, beta=0.3, probability=SOFT), two()),
    "dpo_loss conservative": (lambda *x: algos.dpo_loss(*x, *REFS, beta=0.3, label_smoothing=0.2), two()),
    "dpo_loss robust": (lambda *x: algos.dpo_loss(*x, *REFS, beta=0.3, label_smoothing=0.2, smoothing="robust"), two()),
    "dpo_loss per token": (
        lambda *x: algos.dpo_loss(*x, *REFS, beta=3.0, chosen_lengths=LENGTHS, rejected_lengths=LENGTHS.flip(0)),
        two(),
    ),
    "plackett_luce_loss, ties": (
        lambda r: algos.plackett_luce_loss(r, MASK, ranks=torch.arange(T).div(2, rounding_mode="floor").expand(B, T)),
        (normal(B, T),),
    ),
    "apo_zero_loss": (lambda *x: algos.apo_zero_loss(*x, *REFS, beta=0.3), two()),
    "apo_down_loss": (lambda *x: algos.apo_down_loss(*x, *REFS, beta=0.3), two()),
    "bco_loss": (lambda *x: algos.bco_loss(*x, *REFS, Z, beta=0.3), two()),
    "sppo_loss": (lambda *x: algos.sppo_loss(*x, *REFS, beta=0.3, probability=SOFT), two()),
    "exo_loss": (lambda *x: algos.exo_loss(*x, *REFS, beta=0.3, eps=0.05), two()),
    "nca_loss": (lambda *x: algos.nca_loss(*x, *REFS, beta=0.3), two()),
    "ipo_loss": (lambda *x: algos.ipo_loss(*x, *REFS, tau=0.3, probability=SOFT), two()),
    "ipo_loss per token": (
        lambda *x: algos.ipo_loss(*x, *REFS, tau=0.3, chosen_lengths=LENGTHS, rejected_lengths=LENGTHS.flip(0)),
        two(),
    ),
    "hinge_loss": (lambda *x: algos.hinge_loss(*x, *REFS, beta=0.3), two()),
    "kto_loss": (
        lambda p: algos.kto_loss(p, REFS[0], FLAGS, Z, beta=0.3, weight_undesirable=1.3),
        (normal(B, shift=-9),),
    ),
    "orpo_loss": (
        lambda c, r: algos.orpo_loss(c, r, LENGTHS, LENGTHS, lam=0.5),
        (normal(B, shift=-9), normal(B, shift=-9)),
    ),
    "simpo_loss": (lambda c, r: algos.simpo_loss(c, r, LENGTHS, LENGTHS, beta=2.0, gamma=1.0), (normal(B), normal(B))),
    "cpo_loss": (lambda c, r: algos.cpo_loss(c, r, beta=0.3, mean_length=4.5), (normal(B), normal(B))),
    "xpo_loss": (
        lambda own, other: algos.xpo_loss(own, other, REFS[0], REFS[1], SOFT, beta=0.3, alpha=0.2),
        (normal(B, shift=-9), normal(B, shift=-9)),
    ),
    "clipped_policy_loss": (lambda x: algos.clipped_policy_loss(x, ZERO, ADVANTAGES, MASK), (tokens(),)),
    "clipped_policy_loss dual": (
        lambda x: algos.clipped_policy_loss(x, ZERO, ADVANTAGES, MASK, dual_clip=1.3),
        (tokens(),),
    ),
    "clipped_policy_loss of answers": (  # GSPO
        lambda x: algos.clipped_policy_loss(algos.sequence_log_ratio(x, ZERO, MASK), ZERO, ADVANTAGES, MASK),
        (tokens(),),
    ),
    "cispo_loss": (  # every weight at an end of its range, where it is a constant as in the gradient
        lambda x: algos.cispo_loss(x, ZERO, ADVANTAGES, MASK, eps_low=0.01, eps_high=0.01),
        (tokens(),),
    ),
    "clipped_value_loss": (lambda v: algos.clipped_value_loss(v, ZERO, ZERO + 0.3, MASK, eps=0.2), (values(),)),
    "kl_k1": (lambda x: algos.kl_k1(x, REF_TOKENS, MASK), (normal(B, T),)),
    "kl_k2": (lambda x: algos.kl_k2(x, REF_TOKENS, MASK), (normal(B, T),)),
    "kl_k3": (lambda x: algos.kl_k3(x, REF_TOKENS, MASK), (normal(B, T),)),
    "masked_mean": (lambda x: algos.masked_mean(x, MASK, dim=1), (normal(B, T),)),
    "reduce_sum": (lambda x: algos.reduce_sum(x, MASK, norm=13), (normal(B, T),)),
    "whiten": (lambda x: algos.whiten(x, MASK), (normal(B, T),)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient(name: str):
    function, inputs = CASES[name]
    assert torch.autograd.gradcheck(function, inputs)


def test_every_loss_is_here():
    """A new loss needs its line above."""
    losses = {name for name in algos.__all__ if name.endswith("_loss")}
    assert losses <= {name.split()[0] for name in CASES}


def test_everything_public_is_documented():
    for name in algos.__all__:
        doc = getattr(algos, name).__doc__
        assert doc, name
        definitions = (
            "explained_variance",
            "masked_sum",
            "masked_mean",
            "reduce_sum",
            "ranking_pairs",
            "scale_gradient",
        )
        if name not in definitions:
            assert "Source:" in doc, f"{name} names no source"
