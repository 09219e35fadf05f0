"""Experiment 10: methods with an opponent, and a reference that follows the policy, against their known ends."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.conformance.rows import Row, worst_row
from trimtab.conformance.tables import BETA, F, gibbs, kl, ranking, settings, train_table
from trimtab.conformance.tabular import MovingTable, TabularRole, Tree
from trimtab.models import AdapterConfig, ReferenceUpdateConfig
from trimtab.rollout import SamplerConfig
from trimtab.trainers import (
    DpoConfig,
    KLConfig,
    NashMdConfig,
    OptimizerConfig,
    XpoConfig,
    answer_logprobs,
    train_preference,
)

NAME = "10 games"

PRICE = 0.08
"""β of the game, in units of P(win)."""


def games(seeds: Sequence[int]) -> Iterator[Row]:
    """A cyclic game of four answers, XPO on four answers, DPO with two updates of its reference."""
    for share in (0.0, 0.5):
        ends = [_nash_md(seed, share) for seed in seeds]
        own = [kl(end, fixed_point(*game(seed), share)) for end, seed in zip(ends, seeds, strict=True)]
        goal = "the Nash equilibrium" if share == 0 else "π ∝ ref·exp(P(y beats the mixture)/β)"
        yield worst_row(NAME, f"nash_md, mixture {share:g}", f"KL(π‖{goal})", own, high=1e-2 if share == 0 else 5e-3)
        if share == 0:
            gains = [exploitability(end, *game(seed)) for end, seed in zip(ends, seeds, strict=True)]
            yield worst_row(NAME, "nash_md, mixture 0", "most that any policy gains against it", gains, high=3e-3)
        else:
            away = [kl(fixed_point(*game(s), share), fixed_point(*game(s), 0.0)) for s in seeds]
            mean = [sum(away) / len(away)]
            yield worst_row(
                NAME, "nash_md, mixture 0.5", "KL(its end‖Nash equilibrium), mean: it is another point", mean, low=1e-3,
                high=1.0, seeds=len(seeds),
            )  # fmt: skip
    yield worst_row(NAME, "xpo, α = 0", "KL(π‖π*)", [_xpo(s, 0.0) for s in seeds], high=2e-3)
    yield worst_row(
        NAME, "dpo, reference updated twice, α = ½", "KL(π‖ref·exp(2r/β))", [_followed(s) for s in seeds], high=1e-6
    )


# Nash-MD ------------------------------------------------------------------------------------


def game(seed: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the reference and P(row beats column): 0 beats 1 beats 2 beats 0, beside noise."""
    generator = torch.Generator().manual_seed(7000 + seed)
    ref = torch.log_softmax(torch.randn(4, generator=generator, dtype=F), 0)
    odds = torch.zeros(4, 4, dtype=F)
    for winner, loser in ((0, 1), (1, 2), (2, 0)):
        odds[winner, loser] = 2.0
    odds += 0.5 * torch.randn(4, 4, generator=generator, dtype=F)
    return ref, torch.sigmoid(odds - odds.T)


def fixed_point(ref: Tensor, beats: Tensor, share: float) -> Tensor:
    """Log π with π ∝ ref·exp(P(y beats the mixture)/β), by damped iteration; at share 0 the Nash equilibrium."""
    now = ref
    for _ in range(4_000):
        opponent = torch.log_softmax((1 - share) * now + share * ref, 0)
        now = 0.95 * now + 0.05 * torch.log_softmax(ref + beats @ opponent.exp() / PRICE, 0)
    return torch.log_softmax(now, 0)


def exploitability(policy: Tensor, ref: Tensor, beats: Tensor) -> float:
    """Most that a policy gains in P(win) − β·KL(·‖ref) over playing ``policy`` against itself: 0 at the equilibrium."""
    chances = beats @ policy.exp()
    best = PRICE * float(torch.logsumexp(ref + chances / PRICE, 0))
    return best - (float(policy.exp() @ chances) - PRICE * kl(policy, ref))


def _nash_md(seed: int, share: float) -> Tensor:
    ref, beats = game(seed)
    config = settings(
        NashMdConfig, steps=600, lr=0.1, samples=256, kl=KLConfig(coefficient=PRICE), mixture=share, preference="given"
    )
    roles = train_table(Tree(actions=4), ref[None], torch.zeros(4), config, seed=seed, game=beats)
    return torch.log_softmax(cast(Any, roles.policy).logits[0].detach().double(), 0)


# XPO ----------------------------------------------------------------------------------------


def _instance(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7100 + seed)
    ref, reward = torch.randn(2, 4, generator=generator, dtype=F)
    return torch.log_softmax(ref, 0), reward


def _xpo(seed: int, alpha: float) -> float:
    ref, reward = _instance(seed)
    config = XpoConfig(
        adapter=AdapterConfig(kind="full"), steps=300, prompts=256, sampler=SamplerConfig(max_new_tokens=1),
        policy=OptimizerConfig(lr=0.1, schedule="linear", warmup=0.0, max_grad_norm=None), missing_eos=None,
        micro_batch_tokens=1 << 20, guard=None, beta=BETA, alpha=alpha,
    )  # fmt: skip
    roles = train_table(Tree(actions=4), ref[None], reward, config, seed=seed)
    return kl(torch.log_softmax(cast(Any, roles.policy).logits[0].detach().double(), 0), gibbs(ref, reward, BETA))


# A reference that follows -------------------------------------------------------------------


def _followed(seed: int, alpha: float = 0.5) -> float:
    """DPO ends at log ref + r/β; each update moves ref by α·r/β, so after two of them at ref·exp((2α + 1)·r/β)."""
    ref, reward = _instance(seed)
    tree, pairs = Tree(actions=4), [(i, j) for i in range(4) for j in range(4) if i != j]
    rankings = [ranking([[i], [j]], float(torch.sigmoid(reward[i] - reward[j]))) for i, j in pairs]
    config = DpoConfig(
        optimizer=OptimizerConfig(lr=0.05, schedule="constant", warmup=0.0, max_grad_norm=None), epochs=3 * 600,
        batch=len(rankings), holdout=0.0, micro_batch_tokens=1 << 20, beta=BETA,
        reference_update=ReferenceUpdateConfig(every=600, alpha=alpha),
    )  # fmt: skip
    policy = TabularRole(tree, ref[None])
    start = MovingTable(tree, ref[None], policy)
    known = answer_logprobs(cast(Any, start), rankings)
    train_preference(cast(Any, policy), rankings, config, reference=known, start=cast(Any, start), seed=seed)
    end = torch.log_softmax(policy.logits[0].detach(), 0)
    return kl(end, gibbs(ref, reward, BETA / (2 * alpha + 1)))
