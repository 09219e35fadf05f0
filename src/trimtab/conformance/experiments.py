"""Seven experiments whose result is known before they are run.

Experiments 2 to 6 run the trainers of language models; 1 and the gradients of 2 take their advantages and their
reduction of the loss, and 7 the loss of process rewards in a loop of its own.

J(π) = E_π[r] − β·KL(π‖ref) is largest at π* ∝ ref·exp(r/β), and J(π*) − J(π) = β·KL(π‖π*): the
distance to the optimum is exact, and nobody has to judge an answer.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.algos import clipped_policy_loss, kl_k2, kl_k3, kl_sequence, process_reward_loss, process_score
from trimtab.conformance.tabular import ASKED, LinearReward, TabularRole, TabularSampler, Tree
from trimtab.models import AdapterConfig
from trimtab.records import Prompt, Rollout
from trimtab.rollout import SamplerConfig
from trimtab.trainers import (
    ONLINE,
    ClippedConfig,
    DpoConfig,
    DrGrpoConfig,
    GrpoConfig,
    IpoConfig,
    KLConfig,
    Norms,
    OptimizerConfig,
    PairConfig,
    PpoConfig,
    Ranking,
    ReinforcePpConfig,
    RewardConfig,
    RlooConfig,
    RlRoles,
    Session,
    answer_logprobs,
    train_preference,
    train_reward,
    train_rl,
)

F = torch.float64


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    experiment: str
    """Which of the seven."""
    algorithm: str
    """What was run."""
    measure: str
    """What the value is."""
    value: float
    """The worst over the seeds."""
    low: float
    """Smallest value that passes."""
    high: float
    """Largest value that passes."""
    seeds: int
    """How many seeds."""

    @property
    def passed(self) -> bool:
        """True: the value lies within its tolerance."""
        return self.low <= self.value <= self.high

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {k: None if v in (math.inf, -math.inf) else v for k, v in asdict(self).items()} | {"passed": self.passed}


Experiment = Callable[[Sequence[int]], Iterator[Row]]


def _row(
    experiment: str,
    algorithm: str,
    measure: str,
    values: Sequence[float],
    *,
    low: float = -math.inf,
    high: float,
    seeds: int = 0,
) -> Row:
    """The value that is worst: furthest beyond a bound, or else nearest to one."""
    worst = min(values, key=lambda v: min(v - low, high - v) if math.isfinite(v) else -math.inf)
    return Row(
        experiment=experiment,
        algorithm=algorithm,
        measure=measure,
        value=worst,
        low=low,
        high=high,
        seeds=seeds or len(values),
    )


def kl(p: Tensor, q: Tensor) -> float:
    """KL(p‖q) in nats, of log-probabilities."""
    return float((p.exp() * (p - q)).sum())


def gibbs(ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """Log-probabilities of π* ∝ ref·exp(r/β)."""
    return torch.log_softmax(ref + reward / beta, dim=-1)


def train_table(
    tree: Tree,
    ref: Tensor,
    reward: Tensor,
    config: ClippedConfig,
    *,
    seed: int,
    features: Tensor | None = None,
    watch: Callable[[TabularRole], None] | None = None,
) -> RlRoles:
    """Run :func:`~trimtab.trainers.train_rl` on a table.

    Args:
        tree: the paths there are.
        ref: ``[states, actions]`` logits of the reference, where the policy starts.
        reward: ``[actions^depth]``, of every path.
        config: the method.
        seed: of the run.
        features: see :class:`TabularRole`.
        watch: called with the policy after every step.
    """
    ref, features = ref.float(), None if features is None else features.float()
    policy = TabularRole(tree, ref, features=features)
    critic = TabularRole(tree, critic=True) if isinstance(config, PpoConfig) else None
    roles = cast(Any, RlRoles)(policy=policy, reference=TabularRole(tree, ref), critic=critic)
    table, sizes = reward.tolist(), [tree.actions**k for k in reversed(range(tree.depth))]

    def score(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        return {"reward": [table[sum(t * s for t, s in zip(r.tokens, sizes, strict=True))] for r in rollouts]}

    def log(_: Any) -> None:
        if watch is not None:
            watch(policy)

    asked = [Prompt.from_text(str(i)) for i in range(config.prompts)]
    session = Session(log=log)
    train_rl(roles, asked, score, config, seed=seed, session=session, sampler=TabularSampler(policy))
    return roles


def settings(kind: type, *, steps: int, lr: float, samples: int = 256, depth: int = 1, **more: Any) -> Any:
    """A method's configuration for a table: nothing clipped that the formula does not clip."""
    optimizer = OptimizerConfig(lr=lr, schedule="linear", warmup=0.0, max_grad_norm=None)
    group = 4 if "group" in kind.model_fields and kind not in (PpoConfig, ReinforcePpConfig) else 1
    base: dict[str, Any] = {
        "adapter": AdapterConfig(kind="full"), "steps": steps, "prompts": samples // group, "group": group,
        "sampler": SamplerConfig(max_new_tokens=depth), "policy": optimizer, "missing_eos": None, "score_clip": None,
        "micro_batch_tokens": 1 << 20, "epochs": 1,
    }  # fmt: skip
    if kind is PpoConfig:
        base |= {"critic": OptimizerConfig(lr=2 * lr, schedule="linear", warmup=0.0, max_grad_norm=None)}
        base |= {"lam": 0.95, "value_eps": 1e6, "whiten_advantages": False}
    return kind(**(base | more))


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
        yield _row(name, f"RLOO, k = {k}", "largest error of the gradient", [off], high=1e-12)
        off = float((expected(mean) - (k - 1) / k * true).abs().max())
        yield _row(name, f"Dr.GRPO, k = {k}", "largest error against (k−1)/k of the gradient", [off], high=1e-12)
    for k, known in ((2, 0.982), (3, 0.993), (4, 0.997)):
        turned = expected(GrpoConfig(group=k, sampler=one))
        cosine = float(torch.cosine_similarity(turned, true, dim=0))
        yield _row(name, f"GRPO, k = {k}", f"cosine, {known} expected", [cosine], low=known - 5e-4, high=known + 5e-4)


# 2 ------------------------------------------------------------------------------------------

BANDIT, BETA = Tree(actions=16), 0.5


def bandit(seed: int) -> tuple[Tensor, Tensor]:
    """Reference and reward of a Gibbs bandit, N(0, 1) each."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.log_softmax(torch.randn(16, generator=generator, dtype=F), 0), torch.randn(
        16, generator=generator, dtype=F
    )


def gibbs_bandit(seeds: Sequence[int]) -> Iterator[Row]:
    """Sixteen arms: which leash leads to π*, and where the others lead."""
    name, fit = "2 Gibbs bandit", {"steps": 1500, "lr": 0.05}
    inside = KLConfig(coefficient=BETA)

    def end(config: ClippedConfig, seed: int) -> Tensor:
        ref, reward = bandit(seed)
        roles = train_table(BANDIT, ref[None], reward, config, seed=seed)
        return torch.log_softmax(cast(Any, roles.policy).logits[0].detach(), 0)

    for kind in (RlooConfig, PpoConfig, ReinforcePpConfig):
        config = settings(kind, kl=inside, **fit)
        found = [kl(end(config, s), gibbs(*bandit(s), BETA)) for s in seeds]
        yield _row(name, f"{config.method}, KL in the reward", "KL(π‖π*)", found, high=1e-3)
    config = settings(DrGrpoConfig, kl=KLConfig(coefficient=BETA, place="loss", estimator="k2"), **fit)
    moved = [kl(end(config, s), gibbs(*bandit(s), BETA * 4 / 3)) for s in seeds]
    yield _row(name, f"{config.method}, k2 in the loss", "KL(π‖π* of β·k/(k−1))", moved, high=2e-3)
    config = settings(RlooConfig, kl=KLConfig(coefficient=BETA, place="loss", estimator="k2"), **fit)
    found = [kl(end(config, s), gibbs(*bandit(s), BETA)) for s in seeds]
    yield _row(name, "rloo, k2 in the loss", "KL(π‖π*)", found, high=2e-3)
    config = settings(RlooConfig, kl=KLConfig(coefficient=BETA, place="loss", estimator="k3"), **fit)
    ends = [end(config, s) for s in seeds]
    own = [kl(e, _forward_optimum(*bandit(s), BETA)) for e, s in zip(ends, seeds, strict=True)]
    away = [kl(e, gibbs(*bandit(s), BETA)) for e, s in zip(ends, seeds, strict=True)]
    yield _row(name, "rloo, k3 in the loss", "KL(π‖optimum of E[r] − β·KL(ref‖π))", own, high=5e-3)
    mean, what = [sum(away) / len(away)], "KL(π‖π*), mean: it goes elsewhere"
    yield _row(name, "rloo, k3 in the loss", what, mean, low=0.1, high=1.0, seeds=len(seeds))
    config = settings(RlooConfig, kl=KLConfig(coefficient=BETA, place="loss", estimator="k1"), **fit)
    alone = [float(end(config, s).max().exp()) for s in seeds]
    yield _row(name, "rloo, k1 in the loss", "probability of one arm: no leash at all", alone, low=0.95, high=1.0)


LEASHES = (
    ("KL in the reward", KLConfig()),
    ("sequence KL in the loss", KLConfig(place="loss", estimator="sequence")),
    ("per-token k2 in the loss", KLConfig(place="loss", estimator="k2")),
    ("per-token k3 in the loss", KLConfig(place="loss", estimator="k3")),
)
"""Ways to penalise KL(π‖ref). The first two have its gradient on answers of any length."""


def divergence_gradients(seeds: Sequence[int]) -> Iterator[Row]:
    """All answers of four tokens: the expected gradient of each KL in the loss against that of KL(π‖ref)."""
    name, tree, config = "2 several tokens", Tree(actions=3, depth=4), RlooConfig()
    paths = tree.paths()
    mask = torch.ones(paths.shape, dtype=torch.bool)
    errors, off_policy, angles = [], [], {"k2": [], "k3": []}
    for seed in seeds:
        generator = torch.Generator().manual_seed(2500 + seed)
        policy, ref, other = torch.randn(3, tree.states, tree.actions, generator=generator, dtype=F)
        older = policy + 0.3 * other

        def tokens(logits: Tensor) -> Tensor:
            return torch.log_softmax(logits, -1)[tree.states_on(paths)].gather(-1, paths[..., None]).squeeze(-1)

        leaf = policy.clone().requires_grad_()
        new = tree.path_logprobs(leaf)
        exact = torch.autograd.grad((new.exp() * (new - tree.path_logprobs(ref))).sum(), leaf)[0]

        def expected(divergence: Callable[[Tensor], Tensor], drawn: Tensor, policy: Tensor = policy) -> Tensor:
            """∇ of the divergence, reduced as a method does, averaged over all answers of the policy that drew them."""
            leaf = policy.clone().requires_grad_()
            reduction, size = ONLINE[config.method].reduction, Norms(tokens=float(tree.depth), sequences=1.0)
            assert reduction is not None
            losses = divergence(tokens(leaf)) * tree.path_logprobs(drawn).exp()[:, None]
            return torch.autograd.grad(reduction(config, losses, mask, size), leaf)[0]

        base, old = tokens(ref), tokens(older)
        on = expected(lambda new, base=base: kl_sequence(new, base, mask), policy)
        off = expected(lambda new, base=base, old=old: kl_sequence(new, base, mask, old_logprobs=old), older)
        errors.append(float((on - exact).abs().max()))
        off_policy.append(float((off - exact).abs().max()))
        for kind, estimator in (("k2", kl_k2), ("k3", kl_k3)):
            turned = expected(lambda new, base=base, e=estimator: e(new, base, mask), policy)
            angles[kind].append(float(torch.cosine_similarity(turned.flatten(), exact.flatten(), dim=0)))
    measure = "largest error of the gradient of KL(π‖ref)"
    yield _row(name, "sequence KL, answers of π", measure, errors, high=1e-12)
    yield _row(name, "sequence KL, answers of an older policy", measure, off_policy, high=1e-12)
    for kind, cosines in angles.items():
        yield _row(name, f"per-token {kind}", "cosine with the gradient of KL(π‖ref)", cosines, low=-1.0, high=0.99)


WRONG_BRANCH = Tree(actions=2, depth=2)
"""A, then a word that the reference says once in fifty times, earns 1; B earns ½."""


def divergence_ends(seeds: Sequence[int]) -> Iterator[Row]:
    """Where RLOO ends with each KL: on two tokens, and on the token MDP of experiment 4."""
    name = "2 several tokens"
    ref = torch.tensor([[0.5, 0.5], [0.02, 0.98], [0.5, 0.5]], dtype=F).log()
    reward = torch.tensor([1.0, 0.0, 0.5, 0.5], dtype=F)
    best = torch.log_softmax(WRONG_BRANCH.path_logprobs(ref) + reward / 0.2, 0)
    price = float(best[:2].exp().sum())
    for label, kl_config in LEASHES:
        kl_config = kl_config.model_copy(update={"coefficient": 0.2})
        config = settings(RlooConfig, steps=300, lr=0.05, samples=384, depth=2, kl=kl_config)
        exact = label in (LEASHES[0][0], LEASHES[1][0])
        shares = []
        for seed in seeds:
            policy = cast(Any, train_table(WRONG_BRANCH, ref, reward, config, seed=seed).policy)
            shares.append(float(torch.softmax(policy.logits[0].detach(), 0)[0]))
        low, high = (price - 0.05, price + 0.05) if exact else (0.6, 1.0)
        yield _row(name, f"rloo, {label}", f"P(first token is A), {price:.3f} at π*", shares, low=low, high=high)
    for label, kl_config in LEASHES:
        kl_config = kl_config.model_copy(update={"coefficient": BETA})
        config = settings(RlooConfig, steps=400, lr=0.1, samples=384, depth=5, kl=kl_config)
        exact = label in (LEASHES[0][0], LEASHES[1][0])
        gaps, reached = [], []
        for seed in seeds:
            ref, reward = mdp_instance(seed)
            logits = cast(Any, train_table(MDP, ref, reward, config, seed=seed).policy).logits.detach().double()
            gaps.append(gap_left(logits, ref, reward))
            optimum = gibbs(MDP.path_logprobs(ref), reward, BETA)
            reached.append(kl(MDP.path_logprobs(logits), MDP.path_logprobs(ref)) / kl(optimum, MDP.path_logprobs(ref)))
        low, high = (-math.inf, 0.03) if exact else (0.1, 1.0)
        yield _row(name, f"rloo, {label}", "token MDP: share of the gap left open", gaps, low=low, high=high)
        low, high = (0.9, 1.1) if exact else (1.2, math.inf)
        yield _row(name, f"rloo, {label}", "token MDP: KL(π‖ref) over that of π*", reached, low=low, high=high)


def _forward_optimum(ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """Argmax E_π[r] − β·KL(ref‖π): π = β·ref/(λ − r) with λ above the largest reward such that π sums to one."""
    low, high = float(reward.max()) + 1e-12, float(reward.max()) + beta + 1.0
    for _ in range(200):
        middle = (low + high) / 2
        total = float((beta * ref.exp() / (middle - reward)).sum())
        low, high = (middle, high) if total > 1 else (low, middle)
    return torch.log_softmax((beta * ref.exp() / (high - reward)).log(), 0)


# 3 ------------------------------------------------------------------------------------------


def preference_identities(seeds: Sequence[int]) -> Iterator[Row]:
    """Eight answers and the whole population of labels, with and without one label in five flipped."""
    name, flips = "3 preferences", 0.2
    tree = Tree(actions=8)

    def instance(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2000 + seed)
        return torch.log_softmax(torch.randn(8, generator=generator, dtype=F), 0), torch.randn(
            8, generator=generator, dtype=F
        )

    def better(reward: Tensor) -> Tensor:
        return torch.sigmoid(reward[:, None] - reward[None])

    def end(config: PairConfig, seed: int, *, flipped: float = 0.0, by_ref: bool = False) -> Tensor:
        ref, reward = instance(seed)
        seen = (1 - flipped) * better(reward) + flipped * better(reward).T
        rankings = []
        for i, j in itertools.permutations(range(8), 2):  # i was said to be better than j, this often
            often = float(seen[i, j]) * (float((ref[i] + ref[j]).exp()) if by_ref else 1.0)
            rankings.append(
                Ranking(
                    id=f"{i}>{j}", sequences=[[ASKED, i], [ASKED, j]], prompt_length=1, ranks=(0, 1),
                    probability=None, margin=None, weight=often,
                )
            )  # fmt: skip
        policy, start = TabularRole(tree, ref[None]), TabularRole(tree, ref[None])
        known = answer_logprobs(cast(Any, start), rankings)
        train_preference(cast(Any, policy), rankings, config, reference=known, seed=seed)
        return torch.log_softmax(policy.logits[0].detach(), 0)

    def fit(**more: Any) -> dict[str, Any]:
        steady = OptimizerConfig(lr=0.1, schedule="cosine", warmup=0.0, max_grad_norm=None)
        return {"optimizer": steady, "epochs": 800, "batch": 64, "holdout": 0.0} | more

    def away(config: PairConfig, **more: Any) -> list[float]:
        return [kl(end(config, s, **more), gibbs(*instance(s), BETA)) for s in seeds]

    exact = DpoConfig(beta=BETA, **fit())
    yield _row(name, "dpo", "KL(π‖π*)", away(exact), high=1e-9)
    robust = DpoConfig(beta=BETA, label_smoothing=flips, smoothing="robust", **fit())
    yield _row(name, "robust dpo, 20 % flipped", "KL(π‖π*)", away(robust, flipped=flips), high=1e-9)
    believed = away(exact, flipped=flips)
    yield _row(name, "dpo, 20 % flipped", "KL(π‖π*): it believes the flips", believed, low=0.03, high=1.0)
    cautious = DpoConfig(beta=BETA, label_smoothing=flips, **fit())
    further = [c - d for c, d in zip(away(cautious, flipped=flips), believed, strict=True)]
    yield _row(name, "cdpo, 20 % flipped", "KL(π‖π*) beyond DPO's: more cautious", further, low=0.0, high=1.0)
    ipo, found = IpoConfig(tau=BETA, **fit()), []
    for seed in seeds:
        ref, reward = instance(seed)
        wins = better(reward) @ ref.exp()  # E_{y'~ref} p(y beats y')
        found.append(kl(end(ipo, seed, by_ref=True), torch.log_softmax(ref + wins / BETA, 0)))
    yield _row(name, "ipo", "KL(π‖ref·exp(E p/τ))", found, high=1e-9)


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
            yield _row(name, f"{config.method}, {epochs} epoch(s)", "share of the gap left open", gaps, high=bound)
            if errors:
                critic = f"{config.method}'s critic, {epochs} epoch(s)"
                yield _row(name, critic, "RMS error over spread of the exact V", errors, high=0.25)


def _critic_error(values: Tensor, logits: Tensor, ref: Tensor, reward: Tensor) -> float:
    """RMS of critic − V over the RMS of V − mean V, states weighed by how often the policy visits them."""
    every, old = torch.log_softmax(logits, -1), torch.log_softmax(ref, -1)
    exact = torch.zeros(MDP.states, dtype=F)
    below, start = reward, MDP.states
    for level in reversed(range(MDP.depth)):  # V(s) = Σ_a π(a|s)·(V(s·a) − β·log π/ref)
        count = MDP.actions**level
        start -= count
        rows = slice(start, start + count)
        share = every[rows].exp()
        exact[rows] = (share * (below.view(count, -1) - BETA * (every[rows] - old[rows]))).sum(-1)
        below = exact[rows]
    visits = torch.zeros(MDP.states, dtype=F)
    paths = MDP.paths()
    visits.index_add_(
        0, MDP.states_on(paths).flatten(), MDP.path_logprobs(logits).exp()[:, None].expand(-1, MDP.depth).flatten()
    )
    visits /= visits.sum()
    mean = float(visits @ exact)
    return math.sqrt(float(visits @ (values - exact) ** 2) / float(visits @ (exact - mean) ** 2))


# 5 ------------------------------------------------------------------------------------------


def reward_efficiency(seeds: Sequence[int], pairs: int = 8000) -> Iterator[Row]:
    """A linear Bradley–Terry model in ten dimensions: as efficient as theory allows, and calibrated."""
    name, size = "5 reward model", 10
    errors, ahead, off = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(4000 + seed)
        true = torch.randn(size, generator=generator, dtype=F) / math.sqrt(size) * 1.5
        features = torch.randn(2 * pairs, size, generator=generator, dtype=F)
        gaps = features[0::2] - features[1::2]
        won = torch.rand(pairs, generator=generator, dtype=F) < torch.sigmoid(gaps @ true)
        rankings = [
            Ranking(
                id=str(i), sequences=[[ASKED, 2 * i], [ASKED, 2 * i + 1]], prompt_length=1,
                ranks=(0, 1) if first else (1, 0), probability=None, margin=None, weight=1.0,
            )
            for i, first in enumerate(won.tolist())
        ]  # fmt: skip
        role = LinearReward(features)
        steady = OptimizerConfig(lr=0.1, schedule="cosine", warmup=0.0, max_grad_norm=None)
        config = RewardConfig(
            optimizer=steady, batch=pairs, epochs=80, holdout=0.0, centring=0.0, micro_batch_tokens=1 << 22
        )
        train_reward(cast(Any, role), rankings, config, seed=seed)
        found = role.scalar.weight.detach()[0]
        chance = torch.sigmoid(gaps @ true)
        fisher = (gaps * (chance * (1 - chance))[:, None]).T @ gaps
        errors.append(float((found - true) @ fisher @ (found - true)) / size)
        fresh = torch.randn(200_000, size, generator=generator, dtype=F) * math.sqrt(2)
        truth, said = torch.sigmoid(fresh @ true), torch.sigmoid(fresh @ found)
        outcome = torch.rand(len(fresh), generator=generator, dtype=F) < truth
        bayes = torch.maximum(truth, 1 - truth)
        error = math.sqrt(float((bayes * (1 - bayes)).mean()) / len(fresh))
        ahead.append((float(((said > 0.5) == outcome).double().mean()) - float(bayes.mean())) / error)
        bins = (said * 10).long().clamp(max=9)
        totals = torch.zeros(10, dtype=F).index_add_(0, bins, said - truth)
        off.append(float(totals.abs().sum()) / len(fresh))
    mean, spread = sum(errors) / len(errors), math.sqrt(2 / size / len(errors))
    yield _row(
        name,
        "Bradley–Terry",
        "Fisher-normalised error / D, mean; 1 ± 3 SE",
        [mean],
        low=1 - 3 * spread,
        high=1 + 3 * spread,
        seeds=len(seeds),
    )
    yield _row(name, "Bradley–Terry", "accuracy above Bayes, in standard errors", ahead, high=3.0)
    yield _row(name, "Bradley–Terry", "calibration error", off, high=0.01)


# 6 ------------------------------------------------------------------------------------------


def goodhart(seeds: Sequence[int]) -> Iterator[Row]:
    """Climbing a proxy: the known gain under Gaussians; under heavy tails, one proxy against an ensemble's worst."""
    name, arms, rho = "6 Goodhart", 8_000, 0.6
    tree, flat = Tree(actions=arms), torch.zeros(1, arms, dtype=F)

    def climb(score: Tensor, gold: Tensor, beta: float, seed: int, steps: int = 100) -> list[tuple[float, float]]:
        """(KL, gold gain) after each step of RLOO on ref·exp(θ·score), the family that holds π* for every β."""
        ref, found = torch.log_softmax(flat[0], 0), []

        def watch(policy: TabularRole) -> None:
            now = torch.log_softmax(policy.logits[0].detach(), 0)
            found.append((kl(now, ref), float((now.exp() - ref.exp()) @ gold)))

        config = settings(RlooConfig, steps=steps, lr=0.1, kl=KLConfig(coefficient=beta))
        train_table(tree, flat, score, config, seed=seed, features=score.view(1, arms, 1), watch=watch)
        return found

    off = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(5000 + seed)
        proxy = torch.randn(arms, generator=generator, dtype=F)
        gold = rho * proxy + math.sqrt(1 - rho**2) * torch.randn(arms, generator=generator, dtype=F)
        reached, gain = climb(proxy, gold, 0.6, seed)[-1]
        off.append(abs(gain - math.sqrt(2) * rho * math.sqrt(reached)) / gain)
    yield _row(name, "rloo on a Gaussian proxy", "gold gain, relative error against √2·ρ·σ·√KL", off, high=0.06)

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
    yield _row(name, "one proxy, heavy tails", "gold lost after its peak, KL ≤ 5", fall, low=0.1, high=math.inf)
    yield _row(name, "worst case and variance-penalised", "peak gold above one proxy's", higher, low=0.0, high=math.inf)
    yield _row(
        name, "worst case and variance-penalised", "KL at the peak beyond one proxy's", later, low=0.0, high=math.inf
    )


# 7 ------------------------------------------------------------------------------------------


def process_and_outcome(seeds: Sequence[int]) -> Iterator[Row]:
    """Six steps, each right three times in four; a wrong solution ends right by luck 15 times in 100. Best of 64.

    What a model sees of a step (and of the ending) is right or wrong plus noise; the process model learns
    from step labels, the outcome model from endings.
    """
    name, steps, signal = "7 process rewards", 6, 2.5
    by_process, by_outcome = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(7000 + seed)

        def solutions(count: int, generator: torch.Generator = generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            right = torch.rand(count, steps, generator=generator) < 0.75
            ending = right.all(1) | (torch.rand(count, generator=generator) < 0.15)
            seen = signal * (2.0 * right - 1) + torch.randn(count, steps, generator=generator)
            seen_end = signal * (2.0 * ending - 1) + torch.randn(count, generator=generator)
            return right, ending, seen, seen_end

        right, ending, seen, seen_end = solutions(2000)
        process, outcome = _logistic(seen, right), _logistic(seen_end[:, None], ending[:, None])
        right, ending, seen, seen_end = solutions(2000 * 64)
        valid = right.all(1).view(-1, 64)
        mask = torch.ones(seen.shape, dtype=torch.bool)
        scores = process_score(process[0] * seen + process[1], mask).view(-1, 64)
        ends = (outcome[0] * seen_end + outcome[1]).view(-1, 64)
        rows = torch.arange(len(valid))
        by_process.append(float(valid[rows, scores.argmax(1)].double().mean()))
        by_outcome.append(float(valid[rows, ends.argmax(1)].double().mean()))
    share = 0.75**6 / (0.75**6 + (1 - 0.75**6) * 0.15)
    yield _row(name, "process reward model", "valid solutions among the best of 64", by_process, low=0.95, high=1.0)
    yield _row(
        name, "outcome reward model", f"valid solutions among the best of 64, {share:.3f} by calculation", by_outcome,
        low=share - 0.05, high=share + 0.05,
    )  # fmt: skip


def _logistic(seen: Tensor, right: Tensor) -> tuple[float, float]:
    """Slope and offset of a step's logit, by :func:`~trimtab.algos.process_reward_loss`."""
    weights = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.1)
    mask = torch.ones(seen.shape, dtype=torch.bool)
    for _ in range(150):
        optimizer.zero_grad()
        process_reward_loss(weights[0] * seen + weights[1], right.float(), mask).sum().div(seen.numel()).backward()
        optimizer.step()
    slope, offset = weights.detach().tolist()
    return slope, offset


FAST: tuple[Experiment, ...] = (estimators, divergence_gradients, preference_identities, goodhart, process_and_outcome)
"""Seconds each."""

LONG: tuple[Experiment, ...] = (gibbs_bandit, divergence_ends, token_mdp, reward_efficiency)
"""Minutes each."""


def conformance(seeds: Sequence[int], *, long: bool) -> Iterator[Row]:
    """Every row of the table, as soon as it is known."""
    for experiment in FAST + (LONG if long else ()):
        yield from experiment(seeds)
