"""Experiment 9: a reward, and a cost with a limit. The constrained optimum is π ∝ ref·exp((r − λ*·c)/β)."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.conformance.rows import Row, worst_row
from trimtab.conformance.tables import BETA, F, gibbs, kl, settings, train_table
from trimtab.conformance.tabular import Tree
from trimtab.trainers import ConstraintConfig, KLConfig, PpoConfig

NAME = "9 a cost with a limit"

ARMS = 8

FIXED = 0.5
"""The fixed price that the constrained runs are compared with, the same for every seed."""


def instance(seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Reference, reward and cost of each arm, N(0, 1), the cost in part what earns the reward; and the limit.

    The limit is the reference's mean cost: holding it costs reward, and the price of that differs from seed to seed.
    """
    generator = torch.Generator().manual_seed(9000 + seed)
    ref, reward, other = torch.randn(3, ARMS, generator=generator, dtype=F)
    ref, cost = torch.log_softmax(ref, 0), 0.8 * reward + 0.6 * other
    return ref, reward, cost, float(ref.exp() @ cost)


def best_price(ref: Tensor, reward: Tensor, cost: Tensor, limit: float) -> float:
    """λ*: the smallest price from 0 at which E[c] ≤ limit, by bisection; E[c] falls in λ."""

    def paid(price: float) -> float:
        return float(gibbs(ref, reward - price * cost, BETA).exp() @ cost)

    low, high = 0.0, 100.0
    if paid(low) <= limit:
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if paid(middle) > limit else (low, middle)
    return high


def constraints(seeds: Sequence[int], steps: int = 500) -> Iterator[Row]:
    """PPO with a limit on the cost, and PPO with fixed weights, on a bandit of eight arms."""
    over, away, gained, fixed = [], [], [], []
    for seed in seeds:
        ref, reward, cost, limit = instance(seed)
        price = best_price(ref, reward, cost, limit)

        def train(limit: ConstraintConfig, seed: int = seed) -> Tensor:
            """The mean of the policies of the last tenth of the steps: λ swings a little around its end."""
            ref, reward, cost, _ = instance(seed)
            config = settings(
                PpoConfig, steps=steps, lr=0.05, kl=KLConfig(coefficient=BETA), constraint=limit, guard=None
            )
            policies: list[Tensor] = []
            train_table(
                Tree(actions=ARMS), ref[None], reward, config, seed=seed, cost=cost,
                watch=lambda policy: policies.append(torch.softmax(cast(Any, policy).logits[0].detach().double(), 0)),
            )  # fmt: skip
            return torch.stack(policies[-steps // 10 :]).mean(0).log()

        end = train(ConstraintConfig(reward="cost", limit=limit, initial=FIXED, lr=0.02))
        over.append(float(end.exp() @ cost) - limit)
        away.append(kl(end, gibbs(ref, reward - price * cost, BETA)))
        gained.append(float((end.exp() - ref.exp()) @ reward))
        held = train(ConstraintConfig(reward="cost", limit=limit, initial=FIXED, lr=1e-9))
        fixed.append(abs(float(held.exp() @ cost) - limit))
    yield worst_row(NAME, "ppo with constraint", "mean cost above its limit", over, high=0.03)
    yield worst_row(NAME, "ppo with constraint", "KL(π‖constrained optimum)", away, high=0.01)
    yield worst_row(NAME, "ppo with constraint", "reward gained over the reference", gained, low=0.0, high=10.0)
    worst = max(fixed)
    yield worst_row(
        NAME, f"ppo, fixed weights 1 and −{FIXED:g}", "furthest from the limit", [worst], low=0.05, high=10.0,
        seeds=len(seeds),
    )  # fmt: skip
