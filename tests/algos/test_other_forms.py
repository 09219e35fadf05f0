"""Each loss against another form of the same mathematics, in NumPy, on pairs and batches of all sizes.

The hand-made goldens hold a function at one point. Here the reference is written in the form that the authors' code or
another library uses (docs/explanation/methods-in-other-code.md), so that an error would have to be made twice.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trimtab import algos

Array = NDArray[np.float64]
BETA = 0.3


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def cross_entropy(logits: Array, labels: float) -> Array:
    """Of a classifier's logits."""
    return -labels * np.log(sigmoid(logits)) - (1 - labels) * np.log(sigmoid(-logits))


def pairs(seed: int, count: int = 200) -> tuple[list[torch.Tensor], list[Array]]:
    """log π of a chosen answer w and a rejected one y, and log ref of both, nats; their log-ratios reach ±30."""
    rng = np.random.default_rng(seed)
    values = [-rng.gamma(2.0, 20.0, count) for _ in range(2)]
    values += [v + rng.normal(0.0, 8.0, count) for v in values]
    return [torch.tensor(v) for v in values], values


def nca_of_k_answers(rewards: Array, labels: Array) -> Array:
    """Rewards and soft labels ``[B, K]``: the form for K answers with scores, which are preferences if K = 2."""
    right, wrong = np.log(sigmoid(rewards)), np.log(sigmoid(-rewards))
    return -(labels * right).sum(1) - wrong.mean(1)


def reverse_kl(rewards: Array, labels: Array) -> Array:
    """KL(softmax of the rewards‖labels), ``[B, K]``: EXO for K answers."""
    policy = np.exp(rewards - rewards.max(1, keepdims=True))
    policy /= policy.sum(1, keepdims=True)
    return (policy * (np.log(policy) - np.log(labels))).sum(1)


def odds_ratio_loss(chosen: Array, rejected: Array) -> Array:
    """−log of OR/(1 + OR), in probabilities in place of logarithms."""
    p, q = np.exp(chosen), np.exp(rejected)
    ratio = (p / (1 - p)) / (q / (1 - q))
    return -np.log(ratio / (1 + ratio))


LENGTHS = np.arange(200.0) % 37 + 1
SIZED = {"chosen_lengths": torch.tensor(LENGTHS), "rejected_lengths": torch.tensor(LENGTHS[::-1].copy())}

FORMS: dict[str, tuple[Callable[..., torch.Tensor], Callable[[Array, Array, Array, Array], Array]]] = {
    "dpo": (
        lambda *x: algos.dpo_loss(*x, beta=BETA),
        lambda w, y, rw, ry: cross_entropy(BETA * (w - rw) - BETA * (y - ry), 1.0),
    ),
    "dpo per token": (
        lambda *x: algos.dpo_loss(*x, beta=5.0, **SIZED),
        lambda w, y, rw, ry: cross_entropy(5 * ((w - rw) / LENGTHS - (y - ry) / LENGTHS[::-1]), 1.0),
    ),
    "simpo": (  # authors: margin as a multiple of β
        lambda w, y, *_: algos.simpo_loss(w, y, **SIZED, beta=2.0, gamma=0.5 * 2.0),
        lambda w, y, *_: cross_entropy(2.0 * (w / LENGTHS - y / LENGTHS[::-1] - 0.5), 1.0),
    ),
    "orpo": (
        lambda w, y, *_: algos.orpo_loss(w, y, **SIZED, lam=0.7),
        lambda w, y, *_: -w / LENGTHS + 0.7 * odds_ratio_loss(w / LENGTHS, y / LENGTHS[::-1]),
    ),
    "cpo": (  # DPO with a uniform reference, and likelihood
        lambda w, y, *_: algos.cpo_loss(w, y, beta=BETA, alpha=0.5),
        lambda w, y, *_: cross_entropy(BETA * (w - y), 1.0) - 0.5 * w,
    ),
    "apo_zero": (
        lambda *x: algos.apo_zero_loss(*x, beta=BETA),
        lambda w, y, rw, ry: 1 - sigmoid(BETA * (w - rw)) + sigmoid(BETA * (y - ry)),
    ),
    "apo_down": (
        lambda *x: algos.apo_down_loss(*x, beta=BETA),
        lambda w, y, rw, ry: sigmoid(BETA * (w - rw)) + 1 - sigmoid(BETA * ((w - rw) - (y - ry))),
    ),
    "bco": (  # a classifier of rewards minus their mean over all answers of the step
        lambda *x: algos.bco_loss(*x, ((x[0] - x[2]) + (x[1] - x[3])).mean() / 2, beta=BETA),
        lambda w, y, rw, ry: np.add(*(
            cross_entropy(BETA * r - np.concatenate([BETA * (w - rw), BETA * (y - ry)]).mean(), label)
            for r, label in ((w - rw, 1.0), (y - ry, 0.0))
        )),
    ),
    "sppo": (  # authors: P(win) of each answer beside its own log-ratio, and the mean of both where we add
        lambda *x: algos.sppo_loss(*x, beta=BETA, probability=torch.full_like(x[0], 0.8)) / 2,
        lambda w, y, rw, ry: ((w - rw - 0.3 / BETA) ** 2 + (y - ry + 0.3 / BETA) ** 2) / 2,
    ),
    "exo": (
        lambda *x: algos.exo_loss(*x, beta=BETA, eps=0.05),
        lambda w, y, rw, ry: reverse_kl(BETA * np.stack([w - rw, y - ry], 1), np.array([[0.95, 0.05]])),
    ),
    "nca": (
        lambda *x: algos.nca_loss(*x, beta=BETA),
        lambda w, y, rw, ry: nca_of_k_answers(BETA * np.stack([w - rw, y - ry], 1), np.array([[1.0, 0.0]])),
    ),
    "xpo": (  # the mean over a drawn label of the loss of that label
        lambda *x: algos.xpo_loss(*x, torch.full_like(x[0], 0.7), beta=BETA, alpha=0.2),
        lambda w, y, rw, ry: cross_entropy(BETA * ((w - rw) - (y - ry)), 0.7) + 0.2 * y,
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", FORMS)
def test_pair_losses(name: str, seed: int):
    ours, theirs = FORMS[name]
    tensors, arrays = pairs(seed)
    np.testing.assert_allclose(ours(*tensors).numpy(), theirs(*arrays), rtol=1e-9, atol=1e-9)


def test_kto_is_a_value_under_prospect_theory():
    """λ − v with v = λ·σ(β(r − z)) for gains and λ·σ(β(z − r)) for losses; z from answers to other prompts."""
    (policy, other, ref, ref_other), (p, o, r, r_o) = pairs(3)
    liked = torch.arange(200) % 3 == 0
    z = max(0.0, float((o - r_o).mean()))
    gain = np.where(liked.numpy(), 1.0, -1.0) * (p - r - z)
    weight = np.where(liked.numpy(), 1.5, 0.5)
    point = algos.kto_reference_point(other, ref_other)
    loss = algos.kto_loss(policy, ref, liked, point, beta=BETA, weight_desirable=1.5, weight_undesirable=0.5)
    np.testing.assert_allclose(loss.numpy(), weight - weight * sigmoid(BETA * gain), atol=1e-9)


# Online ------------------------------------------------------------------------------------


def ragged(seed: int, prompts: int = 6, group: int = 4, tokens: int = 9) -> tuple[Array, Array]:
    """A score of each answer, and a mask of answers of 1 to ``tokens`` tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, tokens + 1, prompts * group)
    return rng.normal(size=prompts * group), np.arange(tokens) < lengths[:, None]


def at_last(scores: Array, mask: Array) -> Array:
    return np.where(np.arange(mask.shape[1]) == mask.sum(1, keepdims=True) - 1, scores[:, None], 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_reinforce_pp_with_baseline_is_a_score_per_answer_whitened_over_tokens(seed: int):
    """Without discount and with one score per answer: score − group mean at each token, as verl writes it."""
    scores, mask = ragged(seed)
    centred = scores - scores.reshape(-1, 4).mean(1).repeat(4)
    tokens = np.repeat(centred, mask.sum(1))
    out = algos.reinforce_pp_baseline_advantage(
        torch.tensor(at_last(scores, mask)), torch.tensor(mask), group=4, gamma=1.0
    )
    np.testing.assert_allclose(out.numpy()[mask], (tokens - tokens.mean()) / tokens.std(), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_reinforce_pp_is_gae_with_lambda_one_and_no_critic(seed: int):
    """Σ_{s≥t} γ^(s−t)·r_s as a product with a triangular matrix."""
    scores, mask = ragged(seed)
    rewards = at_last(scores, mask) - 0.1 * mask
    steps = np.arange(mask.shape[1])
    discount = np.where(steps[:, None] >= steps, 0.9 ** np.maximum(steps[:, None] - steps, 0), 0.0)
    to_come = (rewards @ discount)[mask]
    out = algos.reinforce_pp_advantage(torch.tensor(rewards), torch.tensor(mask), gamma=0.9)
    np.testing.assert_allclose(out.numpy()[mask], (to_come - to_come.mean()) / to_come.std(), atol=1e-6)


@pytest.mark.parametrize("advantage", [1.5, -0.7])
def test_gspo_has_the_gradient_of_gspo_token(advantage: float):
    """Paper and TRL: ratio of the answer; verl: sg[s]·π/sg[π] at each token. Inside the clip range one gradient."""
    rng = np.random.default_rng(0)
    _, mask = ragged(1, prompts=3)
    old = torch.tensor(rng.normal(-2.0, 0.5, mask.shape))
    new = torch.tensor(old.numpy() + rng.normal(0.0, 0.05, mask.shape), requires_grad=True)
    counts = torch.tensor(mask)
    log_ratio = algos.sequence_log_ratio(new, old, counts)
    losses = algos.clipped_policy_loss(
        log_ratio, torch.zeros_like(log_ratio), torch.full_like(new, advantage), counts, eps_low=0.9, eps_high=9.0
    )
    (ours,) = torch.autograd.grad(algos.masked_mean(losses, counts, dim=1).mean(), new)
    lengths = mask.sum(1, keepdims=True)
    s = np.exp(((new.detach().numpy() - old.numpy()) * mask).sum(1, keepdims=True) / lengths)
    np.testing.assert_allclose(ours.numpy(), -advantage * s * mask / lengths / len(mask), atol=1e-12)
