"""Experiment 8: answers that another policy drew, and answers that were cut, by enumeration of all of them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trimtab.algos import (
    bootstrapped_rewards,
    cispo_loss,
    clipped_policy_loss,
    gae,
    masked_importance_weights,
    masked_mean,
    sequence_log_ratio,
    truncated_importance_weights,
)
from trimtab.conformance.rows import Row, worst_row
from trimtab.conformance.tables import F
from trimtab.conformance.tabular import Tree

NAME = "8 off policy"

TREE = Tree(actions=3, depth=3)
"""27 answers of three tokens."""

WIDE = {"eps_low": 1.0, "eps_high": 1e6}
"""A clip range that nothing leaves."""


def off_policy(seeds: Sequence[int]) -> Iterator[Row]:
    """The expected gradient of each correction against that of E_π[reward], and of GSPO against GRPO's."""
    sequence, token, single, whole = [], [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(8000 + seed)
        policy, other = torch.randn(2, TREE.states, TREE.actions, generator=generator, dtype=F)
        reward = torch.randn(27, generator=generator, dtype=F)
        sampler = policy + 0.4 * other
        sequence.append(float((_weighted(policy, sampler, reward, "sequence") - _true(policy, reward)).abs().max()))
        turned = _weighted(policy, sampler, reward, "token").flatten()
        token.append(float(torch.cosine_similarity(turned, _true(policy, reward).flatten(), dim=0)))
        single.append(_cispo_error(policy[0], sampler[0], reward[:3]))
        whole.append(_gspo_error(policy, reward))
    error = "largest error of the gradient of E[reward]"
    yield worst_row(NAME, "importance weights of answers, no cap", error, sequence, high=1e-12)
    yield worst_row(NAME, "importance weights of tokens, no cap", "cosine with it", token, low=-1.0, high=0.9999)
    yield worst_row(NAME, "CISPO on one token, weights below the cap", error, single, high=1e-12)
    yield worst_row(
        NAME, "GSPO with one update", "largest difference to GRPO's gradient, answers of one length", whole, high=1e-12
    )
    with_value, without = zip(*(_cut(seed) for seed in seeds), strict=True)
    yield worst_row(NAME, "GAE on cut answers, bootstrapped with the exact V", error, with_value, high=1e-12)
    yield worst_row(NAME, "GAE on cut answers, their end as an end", error, without, low=0.01, high=10.0)


def _true(logits: Tensor, reward: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(TREE.path_logprobs(leaf).exp() @ reward, leaf)[0]


def _weighted(policy: Tensor, sampler: Tensor, reward: Tensor, level: str) -> Tensor:
    """−∇ of REINFORCE's loss on the sampler's answers with importance weights, over all answers."""
    leaf = policy.clone().requires_grad_()
    new, drawn = TREE.token_logprobs(leaf), TREE.token_logprobs(sampler)
    mask = torch.ones(new.shape, dtype=torch.bool)
    masked = masked_importance_weights(new, drawn, mask, cap=1e6, level=level)  # type: ignore[arg-type]
    cut = truncated_importance_weights(new, drawn, mask, cap=1e6, level=level)  # type: ignore[arg-type]
    assert torch.equal(masked, cut)  # without a cap both are the plain ratio
    losses = clipped_policy_loss(new, new.detach(), reward[:, None].expand(new.shape), mask) * masked
    return -torch.autograd.grad((losses.sum(1) * TREE.path_logprobs(sampler).exp()).sum(), leaf)[0]


def _cispo_error(policy: Tensor, sampler: Tensor, reward: Tensor) -> float:
    leaf = policy.clone().requires_grad_()
    new, drawn = torch.log_softmax(leaf, 0)[:, None], torch.log_softmax(sampler, 0)[:, None]
    losses = cispo_loss(new, drawn, reward[:, None], torch.ones(3, 1, dtype=torch.bool), **WIDE)
    gradient = -torch.autograd.grad((losses[:, 0] * drawn[:, 0].exp()).sum(), leaf)[0]
    share = torch.softmax(policy, 0)
    return float((gradient - share * (reward - share @ reward)).abs().max())


def _gspo_error(policy: Tensor, reward: Tensor) -> float:
    """With ratios of 1 and answers of one length, the average over tokens is in the ratio or in the reduction."""
    gradients = []
    for kind in ("token", "answer"):
        leaf = policy.clone().requires_grad_()
        new = TREE.token_logprobs(leaf)
        mask, old = torch.ones(new.shape, dtype=torch.bool), new.detach()
        if kind == "answer":
            new, old = sequence_log_ratio(new, old, mask), torch.zeros_like(old)
        losses = masked_mean(clipped_policy_loss(new, old, reward[:, None].expand(new.shape), mask), mask, dim=1)
        gradients.append(torch.autograd.grad((losses * TREE.path_logprobs(policy).exp()).sum(), leaf)[0])
    return float((gradients[0] - gradients[1]).abs().max())


def _cut(seed: int, length: int = 2) -> tuple[float, float]:
    """Answers of three tokens that are cut after two: the gradient of the first two tokens, with V after the cut."""
    generator = torch.Generator().manual_seed(8500 + seed)
    policy = torch.randn(TREE.states, TREE.actions, generator=generator, dtype=F)
    reward = torch.randn(27, generator=generator, dtype=F)
    values = TREE.state_values(torch.softmax(policy, -1), reward, torch.zeros_like(policy))
    short = Tree(actions=3, depth=length)
    paths, true = short.paths(), _true(policy, reward)[: short.states]
    mask, nothing = torch.ones(paths.shape, dtype=torch.bool), torch.zeros(paths.shape, dtype=F)
    after = values[short.states :][paths[:, 0] * 3 + paths[:, 1]]
    errors = []
    for cut in (True, False):
        earned = bootstrapped_rewards(nothing, after, torch.full((len(paths),), cut), mask, gamma=1.0)
        advantages, _ = gae(earned, values[short.states_on(paths)], mask, gamma=1.0, lam=0.95)
        leaf = policy[: short.states].clone().requires_grad_()
        new = short.token_logprobs(leaf)
        losses = clipped_policy_loss(new, new.detach(), advantages, mask).sum(1)
        weighted = (losses * short.path_logprobs(policy[: short.states]).exp()).sum()
        errors.append(float((-torch.autograd.grad(weighted, leaf)[0] - true).abs().max()))
    return errors[0], errors[1]
