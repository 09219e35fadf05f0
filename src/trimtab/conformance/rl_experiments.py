"""Experiments 1, 2, 4 and 6: policy gradients."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.algos import clipped_policy_loss, kl_k2, kl_k3, kl_sequence
from trimtab.conformance.rows import Row, worst_row
from trimtab.conformance.tables import BETA, F, gibbs, kl, settings, train_table
from trimtab.conformance.tabular import TabularRole, Tree
from trimtab.rollout import SamplerConfig
from trimtab.trainers import (
    ONLINE,
    ClippedConfig,
    DrGrpoConfig,
    GrpoConfig,
    KLConfig,
    Norms,
    PpoConfig,
    ReinforcePpConfig,
    RlooConfig,
)

# 1 ------------------------------------------------------------------------------------------


def estimators(seeds: Sequence[int]) -> Iterator[Row]:
    """Three actions, all k-tuples: the expected gradient of each group method against the true one."""
    logits = torch.tensor([0.5, -0.2, 1.0], dtype=F)
    reward = torch.tensor([1.0, 0.0, 0.3], dtype=F)
    policy = torch.softmax(logits, 0)
    true = policy * (reward - policy @ reward)

    def expected(config: ClippedConfig) -> Tensor:
        """−∇ of the method's own loss, averaged over all groups with their probabilities."""
        tuples = torch.tensor(list(itertools.product(range(3), repeat=config.group)))
        chance = policy[tuples].prod(1).repeat_interleave(config.group)[:, None]
        leaf = logits.clone().requires_grad_()
        new = torch.log_softmax(leaf, 0)[tuples.flatten()][:, None]
        mask = torch.ones_like(new, dtype=torch.bool)
        rewards = reward[tuples].view(-1, 1)
        method = ONLINE[config.method]
        assert method.advantages is not None and method.reduction is not None
        advantages, _ = method.advantages(config, rewards, torch.zeros_like(rewards), mask)
        losses = clipped_policy_loss(new, new.detach(), advantages, mask) * chance
        loss = method.reduction(config, losses, mask, Norms(tokens=config.group, sequences=config.group))
        return -torch.autograd.grad(loss, leaf)[0]

    one = SamplerConfig(max_new_tokens=1)
    name = "1 estimators"
    for k in (2, 3, 4):
        rloo, mean = RlooConfig(group=k, sampler=one), DrGrpoConfig(group=k, sampler=one)
        off = float((expected(rloo) - true).abs().max())
        yield worst_row(name, f"RLOO, k = {k}", "largest error of the gradient", [off], high=1e-12)
        off = float((expected(mean) - (k - 1) / k * true).abs().max())
        yield worst_row(name, f"Dr.GRPO, k = {k}", "largest error against (k−1)/k of the gradient", [off], high=1e-12)
    for k, known in ((2, 0.982), (3, 0.993), (4, 0.997)):
        turned = expected(GrpoConfig(group=k, sampler=one))
        cosine = float(torch.cosine_similarity(turned, true, dim=0))
        yield worst_row(
            name, f"GRPO, k = {k}", f"cosine, {known} expected", [cosine], low=known - 5e-4, high=known + 5e-4
        )


# 2 ------------------------------------------------------------------------------------------

BANDIT = Tree(actions=16)


def bandit(seed: int) -> tuple[Tensor, Tensor]:
    """Reference and reward of a Gibbs bandit, N(0, 1) each."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.log_softmax(torch.randn(16, generator=generator, dtype=F), 0), torch.randn(
        16, generator=generator, dtype=F
    )


def gibbs_bandit(seeds: Sequence[int]) -> Iterator[Row]:
    """Sixteen arms: which penalty leads to π*, and where the others lead."""
    name, fit = "2 Gibbs bandit", {"steps": 1500, "lr": 0.05}
    inside = KLConfig(coefficient=BETA)

    def end(config: ClippedConfig, seed: int) -> Tensor:
        ref, reward = bandit(seed)
        roles = train_table(BANDIT, ref[None], reward, config, seed=seed)
        return torch.log_softmax(cast(Any, roles.policy).logits[0].detach(), 0)

    for kind in (RlooConfig, PpoConfig, ReinforcePpConfig):
        config = settings(kind, kl=inside, **fit)
        distances = [kl(end(config, s), gibbs(*bandit(s), BETA)) for s in seeds]
        yield worst_row(name, f"{config.method}, KL in the reward", "KL(π‖π*)", distances, high=1e-3)
    config = settings(DrGrpoConfig, kl=KLConfig(coefficient=BETA, place="loss", estimator="k2"), **fit)
    moved = [kl(end(config, s), gibbs(*bandit(s), BETA * 4 / 3)) for s in seeds]
    yield worst_row(name, f"{config.method}, k2 in the loss", "KL(π‖π* of β·k/(k−1))", moved, high=2e-3)
    config = settings(RlooConfig, kl=KLConfig(coefficient=BETA, place="loss", estimator="k2"), **fit)
    distances = [kl(end(config, s), gibbs(*bandit(s), BETA)) for s in seeds]
    yield worst_row(name, "rloo, k2 in the loss", "KL(π‖π*)", distances, high=2e-3)
    config = settings(RlooConfig, kl=KLConfig(coefficient=BETA, place="loss", estimator="k3"), **fit)
    ends = [end(config, s) for s in seeds]
    own = [kl(e, _forward_optimum(*bandit(s), BETA)) for e, s in zip(ends, seeds, strict=True)]
    away = [kl(e, gibbs(*bandit(s), BETA)) for e, s in zip(ends, seeds, strict=True)]
    yield worst_row(name, "rloo, k3 in the loss", "KL(π‖optimum of E[r] − β·KL(ref‖π))", own, high=5e-3)
    mean, what = [sum(away) / len(away)], "KL(π‖π*), mean: it goes elsewhere"
    yield worst_row(name, "rloo, k3 in the loss", what, mean, low=0.1, high=1.0, seeds=len(seeds))
    config = settings(RlooConfig, kl=KLConfig(coefficient=BETA, place="loss", estimator="k1"), **fit)
    alone = [float(end(config, s).max().exp()) for s in seeds]
    yield worst_row(
        name, "rloo, k1 in the loss", "probability of one arm: no penalty at all", alone, low=0.95, high=1.0
    )


PENALTIES = (
    ("KL in the reward", KLConfig()),
    ("sequence KL in the loss", KLConfig(place="loss", estimator="sequence")),
    ("per-token k2 in the loss", KLConfig(place="loss", estimator="k2")),
    ("per-token k3 in the loss", KLConfig(place="loss", estimator="k3")),
)
"""Ways to penalise KL(π‖ref). The first two have its gradient on answers of any length."""


def divergence_gradients(seeds: Sequence[int]) -> Iterator[Row]:
    """All answers of four tokens: the expected gradient of each KL in the loss against that of KL(π‖ref)."""
    name, tree, config = "2 several tokens", Tree(actions=3, depth=4), RlooConfig()
    mask = torch.ones(tree.actions**tree.depth, tree.depth, dtype=torch.bool)
    errors, off_policy, angles = [], [], {"k2": [], "k3": []}
    for seed in seeds:
        generator = torch.Generator().manual_seed(2500 + seed)
        policy, ref, other = torch.randn(3, tree.states, tree.actions, generator=generator, dtype=F)
        older = policy + 0.3 * other

        leaf = policy.clone().requires_grad_()
        new = tree.path_logprobs(leaf)
        exact = torch.autograd.grad((new.exp() * (new - tree.path_logprobs(ref))).sum(), leaf)[0]

        def expected(divergence: Callable[[Tensor], Tensor], drawn: Tensor, policy: Tensor = policy) -> Tensor:
            """∇ of the divergence, reduced as a method does, averaged over all answers of the policy that drew them."""
            leaf = policy.clone().requires_grad_()
            reduction, size = ONLINE[config.method].reduction, Norms(tokens=float(tree.depth), sequences=1.0)
            assert reduction is not None
            losses = divergence(tree.token_logprobs(leaf)) * tree.path_logprobs(drawn).exp()[:, None]
            return torch.autograd.grad(reduction(config, losses, mask, size), leaf)[0]

        base, old = tree.token_logprobs(ref), tree.token_logprobs(older)
        on = expected(lambda new, base=base: kl_sequence(new, base, mask), policy)
        off = expected(lambda new, base=base, old=old: kl_sequence(new, base, mask, old_logprobs=old), older)
        errors.append(float((on - exact).abs().max()))
        off_policy.append(float((off - exact).abs().max()))
        for kind, estimator in (("k2", kl_k2), ("k3", kl_k3)):
            turned = expected(lambda new, base=base, e=estimator: e(new, base, mask), policy)
            angles[kind].append(float(torch.cosine_similarity(turned.flatten(), exact.flatten(), dim=0)))
    measure = "largest error of the gradient of KL(π‖ref)"
    yield worst_row(name, "sequence KL, answers of π", measure, errors, high=1e-12)
    yield worst_row(name, "sequence KL, answers of an older policy", measure, off_policy, high=1e-12)
    for kind, cosines in angles.items():
        yield worst_row(
            name, f"per-token {kind}", "cosine with the gradient of KL(π‖ref)", cosines, low=-1.0, high=0.99
        )


WRONG_BRANCH = Tree(actions=2, depth=2)
"""A, then a word that the reference says once in fifty times, earns 1; B earns ½."""


def divergence_ends(seeds: Sequence[int]) -> Iterator[Row]:
    """Where RLOO ends with each KL: on two tokens, and on the token MDP of experiment 4."""
    name = "2 several tokens"
    ref = torch.tensor([[0.5, 0.5], [0.02, 0.98], [0.5, 0.5]], dtype=F).log()
    reward = torch.tensor([1.0, 0.0, 0.5, 0.5], dtype=F)
    best = torch.log_softmax(WRONG_BRANCH.path_logprobs(ref) + reward / 0.2, 0)
    price = float(best[:2].exp().sum())
    for label, kl_config in PENALTIES:
        kl_config = kl_config.model_copy(update={"coefficient": 0.2})
        config = settings(RlooConfig, steps=300, lr=0.05, samples=384, depth=2, kl=kl_config)
        exact = label in (PENALTIES[0][0], PENALTIES[1][0])
        shares = []
        for seed in seeds:
            policy = cast(Any, train_table(WRONG_BRANCH, ref, reward, config, seed=seed).policy)
            shares.append(float(torch.softmax(policy.logits[0].detach(), 0)[0]))
        low, high = (price - 0.05, price + 0.05) if exact else (0.6, 1.0)
        yield worst_row(name, f"rloo, {label}", f"P(first token is A), {price:.3f} at π*", shares, low=low, high=high)
    for label, kl_config in PENALTIES:
        kl_config = kl_config.model_copy(update={"coefficient": BETA})
        config = settings(RlooConfig, steps=400, lr=0.1, samples=384, depth=5, kl=kl_config)
        exact = label in (PENALTIES[0][0], PENALTIES[1][0])
        gaps, reached = [], []
        for seed in seeds:
            ref, reward = mdp_instance(seed)
            logits = cast(Any, train_table(MDP, ref, reward, config, seed=seed).policy).logits.detach().double()
            gaps.append(gap_left(logits, ref, reward))
            optimum = gibbs(MDP.path_logprobs(ref), reward, BETA)
            reached.append(kl(MDP.path_logprobs(logits), MDP.path_logprobs(ref)) / kl(optimum, MDP.path_logprobs(ref)))
        low, high = (-math.inf, 0.03) if exact else (0.1, 1.0)
        yield worst_row(name, f"rloo, {label}", "token MDP: share of the gap left open", gaps, low=low, high=high)
        if label == "per-token k3 in the loss":
            continue  # on some seeds it ends beyond π*, on others short of it
        low, high = (0.9, 1.1) if exact else (1.2, math.inf)
        yield worst_row(name, f"rloo, {label}", "token MDP: KL(π‖ref) over that of π*", reached, low=low, high=high)


def _forward_optimum(ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """Argmax E_π[r] − β·KL(ref‖π): π = β·ref/(λ − r) with λ above the largest reward such that π sums to one."""
    low, high = float(reward.max()) + 1e-12, float(reward.max()) + beta + 1.0
    for _ in range(200):
        middle = (low + high) / 2
        total = float((beta * ref.exp() / (middle - reward)).sum())
        low, high = (middle, high) if total > 1 else (low, middle)
    return torch.log_softmax((beta * ref.exp() / (high - reward)).log(), 0)


# 4 ------------------------------------------------------------------------------------------

MDP = Tree(actions=4, depth=5)


def mdp_instance(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of a bigram reference and a reward for every answer of the token MDP, N(0, 1) each."""
    generator = torch.Generator().manual_seed(3000 + seed)
    first = torch.randn(1, 4, generator=generator, dtype=F)
    bigram = torch.randn(4, 4, generator=generator, dtype=F)
    reward = torch.randn(4**5, generator=generator, dtype=F)
    rows = [first]
    for level in range(1, 5):  # a state's last token decides: states of a level count in base 4
        rows.append(bigram.repeat(4 ** (level - 1), 1))
    return torch.cat(rows), reward


def gap_left(logits: Tensor, ref: Tensor, reward: Tensor) -> float:
    """Share of J(π*) − J(ref) that a policy of the token MDP does not close."""
    old, new = MDP.path_logprobs(ref), MDP.path_logprobs(logits)
    best = BETA * float(torch.logsumexp(old + reward / BETA, 0))  # J(π*), by soft backward recursion to the root
    start = float(old.exp() @ reward)
    now = float(new.exp() @ reward) - BETA * kl(new, old)
    return (best - now) / (best - start)


def token_mdp(seeds: Sequence[int]) -> Iterator[Row]:
    """Four tokens, five steps, a bigram reference, a reward on all 1,024 answers."""
    name = "4 token MDP"

    for kind in (RlooConfig, PpoConfig):
        for epochs, bound in ((1, 0.01), (4, 0.03)):
            config = settings(
                kind, steps=800 if epochs == 1 else 500, lr=0.1 if epochs == 1 else 0.05, samples=512, depth=5,
                kl=KLConfig(coefficient=BETA), epochs=epochs, minibatches=1 if epochs == 1 else 2,
            )  # fmt: skip
            gaps, errors = [], []
            for seed in seeds:
                ref, reward = mdp_instance(seed)
                roles = train_table(MDP, ref, reward, config, seed=seed)
                logits = cast(Any, roles.policy).logits.detach().double()
                gaps.append(gap_left(logits, ref, reward))
                if roles.critic is not None:
                    errors.append(_critic_error(cast(Any, roles.critic).table.detach(), logits, ref, reward))
            yield worst_row(name, f"{config.method}, {epochs} epoch(s)", "share of the gap left open", gaps, high=bound)
            if errors:
                critic = f"{config.method}'s critic, {epochs} epoch(s)"
                yield worst_row(name, critic, "RMS error over spread of the exact V", errors, high=0.25)


def _critic_error(values: Tensor, logits: Tensor, ref: Tensor, reward: Tensor) -> float:
    """RMS of critic − V over the RMS of V − mean V, states weighed by how often the policy visits them."""
    every, old = torch.log_softmax(logits, -1), torch.log_softmax(ref, -1)
    exact = MDP.state_values(every.exp(), reward, BETA * (every - old))
    visits = torch.zeros(MDP.states, dtype=F)
    paths = MDP.paths()
    visits.index_add_(
        0, MDP.states_on(paths).flatten(), MDP.path_logprobs(logits).exp()[:, None].expand(-1, MDP.depth).flatten()
    )
    visits /= visits.sum()
    mean = float(visits @ exact)
    return math.sqrt(float(visits @ (values - exact) ** 2) / float(visits @ (exact - mean) ** 2))


# 6 ------------------------------------------------------------------------------------------


def goodhart(seeds: Sequence[int]) -> Iterator[Row]:
    """Climbing a proxy: the known gain under Gaussians; under heavy tails, one proxy against an ensemble's worst."""
    name, arms, rho = "6 Goodhart", 8_000, 0.6
    tree, flat = Tree(actions=arms), torch.zeros(1, arms, dtype=F)

    def climb(score: Tensor, gold: Tensor, beta: float, seed: int, steps: int = 100) -> list[tuple[float, float]]:
        """(KL, gold gain) after each step of RLOO on ref·exp(θ·score), the family that holds π* for every β."""
        ref = torch.log_softmax(flat[0], 0)
        curve: list[tuple[float, float]] = []

        def watch(policy: TabularRole) -> None:
            now = torch.log_softmax(policy.logits[0].detach(), 0)
            curve.append((kl(now, ref), float((now.exp() - ref.exp()) @ gold)))

        config = settings(RlooConfig, steps=steps, lr=0.1, kl=KLConfig(coefficient=beta))
        train_table(tree, flat, score, config, seed=seed, features=score.view(1, arms, 1), watch=watch)
        return curve

    off = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(5000 + seed)
        proxy = torch.randn(arms, generator=generator, dtype=F)
        gold = rho * proxy + math.sqrt(1 - rho**2) * torch.randn(arms, generator=generator, dtype=F)
        reached, gain = climb(proxy, gold, 0.6, seed)[-1]
        off.append(abs(gain - math.sqrt(2) * rho * math.sqrt(reached)) / gain)
    yield worst_row(name, "rloo on a Gaussian proxy", "gold gain, relative error against √2·ρ·σ·√KL", off, high=0.06)

    fall, higher, later = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(6000 + seed)
        quality, length = torch.randn(2, arms, generator=generator, dtype=F)
        gold = quality + length - 0.5 * length**2  # longer is better up to a point
        slopes = torch.tensor([1.5, 0.9, 0.4, -0.1], dtype=F)  # what four reward models made of the length
        tails = torch.randn(4, arms, generator=generator, dtype=F) / (
            torch.randn(4, 3, arms, generator=generator, dtype=F).square().mean(1).sqrt()
        )  # Student's t with three degrees of freedom
        proxies = quality + slopes[:, None] * length + 0.5 * tails
        capped: dict[str, list[tuple[float, float]]] = {}
        scores = {
            "single": proxies[0],
            "worst": proxies.min(0).values,
            "uncertain": proxies.mean(0) - 0.5 * proxies.var(0),
        }
        for kind, score in scores.items():
            score = (score - score.mean()) / score.std()
            capped[kind] = [point for point in climb(score, gold, 0.05, seed) if point[0] <= 5.0]
        peak = {kind: max(points, key=lambda point: point[1]) for kind, points in capped.items()}
        fall.append(peak["single"][1] - capped["single"][-1][1])
        higher.append(min(peak[kind][1] for kind in ("worst", "uncertain")) - peak["single"][1])
        later.append(min(peak[kind][0] for kind in ("worst", "uncertain")) - peak["single"][0])
    yield worst_row(name, "one proxy, heavy tails", "gold lost after its peak, KL ≤ 5", fall, low=0.1, high=math.inf)
    yield worst_row(
        name, "worst case and variance-penalised", "peak gold above one proxy's", higher, low=0.0, high=math.inf
    )
    yield worst_row(
        name, "worst case and variance-penalised", "KL at the peak beyond one proxy's", later, low=0.0, high=math.inf
    )
