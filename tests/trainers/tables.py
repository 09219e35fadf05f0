"""Online methods on a table of logits, where a batch can hold every answer as often as the policy draws it."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.conformance.tabular import ASKED, TabularOpponent, TabularRole, TabularSampler, Tree
from trimtab.models import AdapterConfig
from trimtab.records import Prompt, Rollout
from trimtab.rollout import SamplerConfig
from trimtab.trainers import ONLINE, OptimizerConfig, PpoConfig, RlConfig, RlRoles, train_rl
from trimtab.trainers.rl_config import OnlineConfig

STILL = OptimizerConfig(lr=1e-9, schedule="constant", warmup=0.0, max_grad_norm=None)
"""Gradients are looked at, and no weight moves far."""


def settings(kind: type[OnlineConfig], tree: Tree, *, prompts: int, **more: Any) -> Any:
    """One step of a method: nothing is clipped or penalised that its formula does not clip or penalise."""
    plain: dict[str, Any] = {
        "adapter": AdapterConfig(kind="full"), "steps": 1, "prompts": prompts, "policy": STILL, "missing_eos": None,
        "sampler": SamplerConfig(max_new_tokens=tree.depth), "micro_batch_tokens": 1 << 20, "guard": None,
        "epochs": 1,
    }  # fmt: skip
    if "score_clip" in kind.model_fields:
        plain["score_clip"] = None
    if kind is PpoConfig:
        plain |= {"critic": STILL, "lam": 1.0}
    return kind(**(plain | more))


def step(
    config: RlConfig,
    tree: Tree,
    policy: Tensor,
    reference: Tensor,
    score: Callable[[Sequence[Rollout]], Any],
    *,
    answers: Tensor | None = None,
    opponents: Tensor | None = None,
) -> Tensor:
    """The gradient of one step's loss with respect to the policy's logits, ``[states, actions]``.

    Args:
        config: of the method.
        tree: the answers there are.
        policy: ``[states, actions]`` logits.
        reference: ``[states, actions]`` logits.
        score: as for :func:`train_rl`.
        answers: ``[prompts · group, depth]``, the step's answers; None: they are drawn.
        opponents: ``[prompts · group, depth]``, those of a method with an opponent; None: they are drawn.
    """
    own, other = TabularRole(tree, policy), TabularRole(tree, reference)
    critic = TabularRole(tree, critic=True) if isinstance(config, PpoConfig) else None
    roles = cast(Any, RlRoles)(policy=own, reference=other, critic=critic)
    share = ONLINE[config.method].opponent
    opponent: Any = None if share is None else TabularOpponent(own, other, share(config))
    gradients: list[Tensor] = []
    own.table.register_hook(gradients.append)  # pyright: ignore
    train_rl(
        roles,
        [Prompt.from_text(str(i)) for i in range(config.prompts)],
        score,
        config,
        seed=0,
        sampler=cast(Any, TabularSampler(own) if answers is None else Given(own, answers)),
        opponent=opponent if opponents is None else Given(opponent.reference, opponents),
    )
    return torch.stack(gradients).sum(0) if gradients else torch.zeros_like(policy)


class Given:
    """A sampler, and an opponent, whose answers are given; their log-probabilities are the table's."""

    def __init__(self, role: TabularRole, answers: Tensor) -> None:
        self.role, self.answers = role, answers

    def generate(
        self, prompts: Sequence[Prompt], *, group: int = 1, weight_version: int = 0, **_: Any
    ) -> list[Rollout]:
        """As :meth:`trimtab.rollout.Sampler.generate`."""
        states = self.role.tree.states_on(self.answers)
        chances = torch.log_softmax(self.role.logits.detach(), -1)[states].gather(-1, self.answers[..., None])
        rows = zip(self.answers.tolist(), chances.squeeze(-1).tolist(), strict=True)
        return [
            Rollout(
                id=f"{weight_version}/{i}", prompt=prompts[i // group], prompt_tokens=[ASKED], tokens=tokens,
                logprobs=logprobs, text=" ".join(map(str, tokens)), finish_reason="stop",
                weight_version=weight_version,
            )
            for i, (tokens, logprobs) in enumerate(rows)
        ]  # fmt: skip

    draw = generate
    """As :meth:`trimtab.rollout.Opponent.draw`."""
