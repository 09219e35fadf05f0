"""Policies, critics and reward models that are tables, so that every expectation is a sum and the optimum is known.

They stand where a :class:`~trimtab.models.Role` stands, and the trainers run on them unchanged: an
"answer" is a path of ``depth`` actions down a tree, its "tokens" are the actions, and a state is
everything chosen so far. One level of 16 actions is a bandit; five levels of 4 are a token MDP.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.algos import mixture_logits
from trimtab.models import Batch
from trimtab.records import Prompt, Rollout

ASKED = 0
"""The one token of every prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """All paths of ``depth`` choices among ``actions``."""

    actions: int
    depth: int = 1

    @property
    def states(self) -> int:
        """Inner nodes, the root first, level by level."""
        return sum(self.actions**level for level in range(self.depth))

    def paths(self) -> Tensor:
        """Every path, ``[actions^depth, depth]``."""
        each = torch.arange(self.actions)
        return torch.cartesian_prod(*[each] * self.depth).view(-1, self.depth)

    def states_on(self, paths: Tensor) -> Tensor:
        """The state before each choice: ``[N, depth]`` → ``[N, depth]``."""
        columns, start, place = [], 0, torch.zeros(len(paths), dtype=torch.long)
        for level in range(self.depth):
            columns.append(start + place)
            start += self.actions**level
            place = place * self.actions + paths[:, level]
        return torch.stack(columns, dim=1)

    def token_logprobs(self, logits: Tensor) -> Tensor:
        """Log-probability of each choice of every path, ``[actions^depth, depth]``; logits ``[states, actions]``."""
        paths = self.paths()
        return torch.log_softmax(logits, dim=-1)[self.states_on(paths)].gather(-1, paths[..., None]).squeeze(-1)

    def path_logprobs(self, logits: Tensor) -> Tensor:
        """Log-probability of every path under a table of logits ``[states, actions]``; ``[actions^depth]``."""
        return self.token_logprobs(logits).sum(dim=1)

    def state_values(self, policy: Tensor, ends: Tensor, costs: Tensor) -> Tensor:
        """V(s) = Σ_a π(a|s)·(V(s·a) − cost(s, a)) of every state, from the ends to the root; ``[states]``.

        Args:
            policy: ``[states, actions]``, probabilities.
            ends: ``[actions^depth]``, what each path earns.
            costs: ``[states, actions]``, of each choice.
        """
        values, below, start = torch.zeros(self.states, dtype=ends.dtype), ends, self.states
        for level in reversed(range(self.depth)):
            count = self.actions**level
            start -= count
            rows = slice(start, start + count)
            values[rows] = below = (policy[rows] * (below.view(count, -1) - costs[rows])).sum(-1)
        return values


class Table:
    """What the trainers ask of a backbone, for models that have none."""

    device = torch.device("cpu")
    frozen_half = None
    frozen_layers = 0

    def __init__(self, width: int = 0) -> None:
        self.width = width


class TabularRole:
    """A policy (or reference) given by a table of logits; or, with ``critic``, a table of values.

    Args:
        tree: the paths there are.
        logits: ``[states, actions]``, where a policy starts.
        features: ``[states, actions, F]``; None: every logit is a parameter of its own. Otherwise the policy is
            ``logits + features·θ`` and θ, which starts at 0, is what is trained.
        critic: True: a critic; ``logits`` is not read.
    """

    adapter = None
    head_only = False

    def __init__(
        self, tree: Tree, logits: Tensor | None = None, *, features: Tensor | None = None, critic: bool = False
    ) -> None:
        self.tree, self.features = tree, features
        self.backbone: Any = Table()
        self._start = torch.zeros(tree.states, tree.actions) if logits is None else logits.clone()
        if critic:
            self.table = nn.Parameter(torch.zeros(tree.states, dtype=torch.float64))
        elif features is None:
            self.table = nn.Parameter(self._start.clone())
        else:
            self.table = nn.Parameter(torch.zeros(features.shape[-1], dtype=features.dtype))

    @property
    def logits(self) -> Tensor:
        """The policy's table now, ``[states, actions]``."""
        return self.table if self.features is None else self._start + self.features @ self.table

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained."""
        return {"table": self.table}

    def state(self) -> dict[str, Tensor]:
        """A copy of the trained numbers, for checkpoints."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy the trained numbers in."""
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(state[name])

    def train(self, on: bool = True) -> None:
        """There is no dropout."""

    def accumulating_gradients(self) -> AbstractContextManager[None]:
        """Autograd adds up the few numbers there are."""
        return nullcontext()

    def gathered(self) -> AbstractContextManager[None]:
        """The table is never sharded."""
        return nullcontext()

    def logprobs(self, batch: Batch, *, temperature: float = 1.0, states: Any = None) -> Tensor:
        """As :meth:`trimtab.models.Role.logprobs`."""
        return self.logprobs_and_entropies(batch, temperature=temperature)[0]

    def logprobs_and_entropies(
        self,
        batch: Batch,
        *,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
        hidden: None = None,  # a table has no hidden states
        states: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`trimtab.models.Role.logprobs_and_entropies`."""
        paths = batch.tokens[:, 1:]
        every, states = torch.log_softmax(self.logits / temperature, dim=-1), self.tree.states_on(paths)
        chosen = every[states, paths]
        entropies = -(every.exp() * every).sum(dim=-1)[states]
        pad = torch.zeros(len(paths), 1, dtype=chosen.dtype)
        return torch.cat([pad, chosen], dim=1), torch.cat([pad, entropies.detach()], dim=1)

    def values(self, batch: Batch, *, hidden: None = None, states: Any = None) -> Tensor:
        """As :meth:`trimtab.models.Role.values`."""
        values = self.table[self.tree.states_on(batch.tokens[:, 1:])]
        return torch.cat([torch.zeros(len(values), 1, dtype=values.dtype), values], dim=1).float()


class MovingTable(TabularRole):
    """The reference of a tabular policy that follows it: ref ← α·θ + (1 − α)·ref, on logits."""

    def __init__(self, tree: Tree, logits: Tensor, policy: TabularRole) -> None:
        super().__init__(tree, logits)
        self.policy = policy

    @torch.no_grad()
    def update(self, alpha: float) -> None:
        """As :meth:`trimtab.models.MovingReference.update`."""
        self.table.lerp_(self.policy.logits.detach(), alpha)

    def state(self) -> dict[str, Tensor]:
        """A copy of the table."""
        return {"table": self.table.detach().clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy a table in."""
        self.table.data.copy_(state["table"])


class LinearReward:
    """A reward model that is linear in known features of its answers; answer i is the single token i.

    Args:
        features: ``[answers, D]``.
        heads: how many numbers it gives.
    """

    adapter = None

    def __init__(self, features: Tensor, heads: int = 1) -> None:
        self.features = features
        self.backbone: Any = Table(width=features.shape[1])
        self.scalar = nn.Linear(features.shape[1], heads, dtype=features.dtype)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained."""
        return dict(self.scalar.named_parameters())

    def train(self, on: bool = True) -> None:
        """There is no dropout."""

    def accumulating_gradients(self) -> AbstractContextManager[None]:
        """Autograd adds up the few numbers there are."""
        return nullcontext()

    def head_scores(self, batch: Batch, *, states: Any = None) -> Tensor:
        """As :meth:`trimtab.models.Role.head_scores`."""
        return self.scalar(self.features[batch.tokens[:, 1]])


class TabularSampler:
    """Draws paths from a tabular policy."""

    def __init__(self, policy: TabularRole) -> None:
        self.policy = policy

    def logits(self) -> Tensor:
        """The table that is drawn from."""
        return self.policy.logits

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        adapter: str | None,
        seed: int,
        group: int = 1,
        weight_version: int = 0,
        **_: Any,
    ) -> list[Rollout]:
        """As :meth:`trimtab.rollout.Sampler.generate`; a table has no hidden states."""
        tree, count = self.policy.tree, len(prompts) * group
        generator = torch.Generator().manual_seed(seed)
        every = torch.log_softmax(self.logits(), dim=-1)
        paths = torch.zeros(count, tree.depth, dtype=torch.long)
        logprobs = torch.zeros(count, tree.depth)
        for level in range(tree.depth):
            states = tree.states_on(paths)[:, level]
            if level == 0:
                drawn = torch.multinomial(every[0].exp(), count, replacement=True, generator=generator)
            else:
                drawn = torch.multinomial(every[states].exp(), 1, generator=generator).squeeze(1)
            paths[:, level] = drawn
            logprobs[:, level] = every[states, paths[:, level]]
        return [
            Rollout(
                id=f"{weight_version}/{i}",
                prompt=prompts[i // group],
                prompt_tokens=[ASKED],
                tokens=tokens,
                logprobs=known,
                text=" ".join(map(str, tokens)),
                finish_reason="stop",
                weight_version=weight_version,
            )
            for i, (tokens, known) in enumerate(zip(paths.tolist(), logprobs.tolist(), strict=True))
        ]


class TabularOpponent(TabularSampler):
    """Draws from the geometric mixture of a tabular policy and its reference; see :class:`trimtab.rollout.Opponent`."""

    def __init__(self, policy: TabularRole, reference: TabularRole, share: float) -> None:
        super().__init__(policy)
        self.reference, self.share = reference, share

    def logits(self) -> Tensor:
        """Of the mixture."""
        return mixture_logits(self.policy.logits, self.reference.logits, share=self.share)

    def draw(self, prompts: Sequence[Prompt], *, seed: int, group: int = 1, weight_version: int = 0) -> list[Rollout]:
        """As :meth:`trimtab.rollout.Opponent.draw`."""
        return self.generate(prompts, adapter=None, seed=seed, group=group, weight_version=weight_version)
