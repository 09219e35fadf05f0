"""Trainers of language models on a table of logits, where the optimum π* ∝ ref·exp(r/β) is known."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.conformance.tabular import ASKED, TabularOpponent, TabularRole, TabularSampler, Tree
from trimtab.models import AdapterConfig
from trimtab.records import Prompt, Rollout
from trimtab.rollout import SamplerConfig
from trimtab.trainers import (
    ONLINE,
    OptimizerConfig,
    PairConfig,
    PpoConfig,
    Ranking,
    ReinforcePpConfig,
    RlConfig,
    RlRoles,
    Session,
    answer_logprobs,
    train_preference,
    train_rl,
)

F = torch.float64

BETA = 0.5
"""β of the experiments, unless one says otherwise."""

STEADY = OptimizerConfig(lr=0.1, schedule="cosine", warmup=0.0, max_grad_norm=None)
"""The optimiser of preferences and reward models."""


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
    config: RlConfig,
    *,
    seed: int,
    features: Tensor | None = None,
    watch: Callable[[TabularRole], None] | None = None,
    cost: Tensor | None = None,
    game: Tensor | None = None,
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
        cost: ``[actions^depth]``, of every path, a second reward named ``cost``; None: there is none.
        game: ``[actions^depth, actions^depth]``, P(a path beats another), in place of ``reward`` where the method takes
            preferences as given (``preference: given``).
    """
    ref, features = ref.float(), None if features is None else features.float()
    policy = TabularRole(tree, ref, features=features)
    critic = TabularRole(tree, critic=True) if isinstance(config, PpoConfig) else None
    roles = cast(Any, RlRoles)(policy=policy, reference=TabularRole(tree, ref), critic=critic)
    tables = {"reward": reward.tolist()} | ({} if cost is None else {"cost": cost.tolist()})
    sizes = [tree.actions**k for k in reversed(range(tree.depth))]

    def score(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        places = [sum(t * s for t, s in zip(r.tokens, sizes, strict=True)) for r in rollouts]
        if game is not None:  # each answer is followed by its opponent's
            wins = game[places[0::2], places[1::2]].repeat_interleave(2)
            return {"wins": wins.tolist()}
        return {name: [table[place] for place in places] for name, table in tables.items()}

    def log(_: Any) -> None:
        if watch is not None:
            watch(policy)

    prompts = [Prompt.from_text(str(i)) for i in range(config.prompts)]
    session = Session(log=log)
    share = ONLINE[config.method].opponent
    opponent = None if share is None else TabularOpponent(policy, roles.reference, share(config))
    sampler = TabularSampler(policy)
    train_rl(roles, prompts, score, config, seed=seed, session=session, sampler=sampler, opponent=opponent)
    return roles


def ranking(answers: Sequence[Sequence[int]], weight: float = 1.0, *, ranks: tuple[int, ...] = ()) -> Ranking:
    """Paths down a tree, each with its rank (0 is best); without ``ranks`` the best comes first."""
    return Ranking(
        id=str(answers), sequences=[[ASKED, *answer] for answer in answers], prompt_length=1,
        ranks=ranks or tuple(range(len(answers))), probability=None, margin=None, weight=weight,
    )  # fmt: skip


def train_on_rankings(tree: Tree, ref: Tensor, rankings: list[Ranking], config: PairConfig, *, seed: int) -> Tensor:
    """The logits ``[states, actions]`` after :func:`~trimtab.trainers.train_preference`, which starts at ``ref``."""
    policy, start = TabularRole(tree, ref), TabularRole(tree, ref)
    known = answer_logprobs(cast(Any, start), rankings)
    train_preference(cast(Any, policy), rankings, config, reference=known, seed=seed)
    return policy.logits.detach()


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
