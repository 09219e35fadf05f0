"""PPO on a tiny model, ready to be varied: settings, a reward, and a run of two steps."""

from collections.abc import Sequence
from typing import Any

import torch

from trimtab.models import AdapterConfig
from trimtab.records import Rollout
from trimtab.rollout import SamplerConfig
from trimtab.testing import prompts, tiny_backbone
from trimtab.trainers import (
    OptimizerConfig,
    PpoConfig,
    RlRoles,
    Session,
    train_rl,
)

FULL = AdapterConfig(kind="full")
LORA = AdapterConfig(rank=4, alpha=8)
TOP = AdapterConfig(rank=4, alpha=8, top_layers=2)
STEADY = OptimizerConfig(lr=3e-3, schedule="constant", warmup=0.0)
SHORT: dict[str, Any] = {
    "adapter": LORA, "steps": 1, "prompts": 3, "policy": STEADY, "sampler": SamplerConfig(max_new_tokens=8, slots=5),
    "missing_eos": None, "micro_batch_tokens": 70,
}  # fmt: skip
"""Settings of one step on few answers, for any method."""


def config(adapter: AdapterConfig = LORA, **settings) -> PpoConfig:
    base = {
        "adapter": adapter, "steps": 2, "prompts": 4, "sampler": SamplerConfig(max_new_tokens=8), "policy": STEADY,
        "critic": STEADY,
    }  # fmt: skip
    return PpoConfig(**(base | settings))


def letters(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    return {"letters": [sum(c in "aeiou" for c in r.text) - 3.0 for r in rollouts]}


def letters_and_length(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    return {"letters": [sum(c in "aeiou" for c in r.text) + 0.01 * len(r.tokens) for r in rollouts]}


def run(settings: PpoConfig, *, score=letters, roles: RlRoles | None = None, **more) -> tuple[RlRoles, list[dict]]:
    shared = isinstance(settings, PpoConfig) and settings.shared_critic
    roles = roles or RlRoles.on(tiny_backbone(), settings.adapter, seed=1, shared_critic=shared)
    rows: list[dict] = []
    train_rl(roles, prompts(9), score, settings, seed=2, session=Session(log=rows.append), **more)
    return roles, rows


def answer_logprobs(model, rollout: Rollout, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    start, tokens = len(rollout.prompt_tokens), rollout.prompt_tokens + rollout.tokens
    full = torch.log_softmax(model(torch.tensor([tokens])).logits[0] / temperature, dim=-1)[start - 1 : -1]
    return full.gather(-1, torch.tensor(rollout.tokens)[:, None]).squeeze(-1), -(full.exp() * full).sum(-1)
