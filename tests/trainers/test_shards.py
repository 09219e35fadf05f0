"""How a step is cut, into micro-batches or over ranks, never changes its gradient: 1×8 = 8×1 = 2 ranks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trimtab.algos import clipped_policy_loss
from trimtab.models import AdapterConfig, Batch, LowerCache, Role, collate
from trimtab.testing import prompts, sentences, tiny_backbone
from trimtab.trainers import (
    CpoConfig,
    DapoConfig,
    DpoConfig,
    DrGrpoConfig,
    GrpoConfig,
    HingeConfig,
    IpoConfig,
    KtoConfig,
    Norms,
    OrpoConfig,
    PpoConfig,
    Ranking,
    ReinforcePpBaselineConfig,
    ReinforcePpConfig,
    RewardConfig,
    RlooConfig,
    SimpoConfig,
    answer_logprobs,
    judged_from_rankings,
    reduce_policy_loss,
)
from trimtab.trainers import preference as offline
from trimtab.trainers import reward as rewards

from ..kit import stir

CUTS = {"1 × 8": [range(8)], "8 × 1": [[i] for i in range(8)], "2 ranks": [range(3), range(3, 8)]}


def role(*, head: bool = False) -> Role:
    made = Role.trainable(tiny_backbone(), "it", AdapterConfig(rank=4, alpha=8), seed=1, scalar_head=head)
    return stir(made, scale=0.05)


def gradient(one: Role, losses: list[Callable[[], Tensor]]) -> Tensor:
    """Of the sum of all parts' losses, each run and differentiated on its own."""
    for parameter in one.parameters().values():
        parameter.grad = None
    for loss in losses:
        loss().backward()
    return torch.cat([p.grad.flatten() for p in one.parameters().values() if p.grad is not None])


def same(gradients: dict[str, Tensor]) -> None:
    first = gradients["1 × 8"]
    assert first.abs().max() > 1e-5
    for name, other in gradients.items():
        assert torch.allclose(first, other, rtol=1e-4, atol=1e-6 * float(first.abs().max())), name


def ranked(one: Role) -> list[Ranking]:
    """Eight rankings of two or three answers of different lengths, some tied, with weights."""
    chat, found = one.backbone.chat, []
    for i, prompt in enumerate(prompts(8)):
        count = 2 + i % 2
        answers = [sentences(1, words=1 + (i + k) % 6, start=50 * k + i)[0] for k in range(count)]
        tokens = [chat.answer(prompt.messages, text).tokens for text in answers]
        found.append(
            Ranking(
                id=str(i), sequences=tokens, prompt_length=len(chat.prompt(prompt.messages)),
                ranks=(0, 1, 1)[:count] if i % 3 else (1, 0, 2)[:count], probability=None, margin=None,
                weight=1.0 + 0.5 * (i % 2),
            )
        )  # fmt: skip
    return found


OFFLINE = [DpoConfig(), DpoConfig(label_smoothing=0.2, smoothing="robust"), IpoConfig(), HingeConfig(), OrpoConfig(),
           SimpoConfig(), CpoConfig()]  # fmt: skip


@pytest.mark.parametrize("config", OFFLINE, ids=lambda c: c.method)
def test_offline(config):
    one = role()
    rankings = ranked(one)
    free = config.method in ("orpo", "simpo", "cpo")
    known = [None] * 8 if free else answer_logprobs(Role(one.backbone), rankings)
    norms = Norms(tokens=0, sequences=sum(r.weight for r in rankings))
    found = {}
    for name, cut in CUTS.items():
        parts = [
            part
            for rows in cut
            for _, part in offline._micro_batches(one, [rankings[i] for i in rows], [known[i] for i in rows], 10_000)
        ]
        found[name] = gradient(one, [lambda p=p: offline._pair_loss(one, p, norms, config)[0] for p in parts])
    same(found)


def test_kto():
    one, config = role(), KtoConfig()
    answers = judged_from_rankings(ranked(one))[0][:8]
    start = Role(one.backbone)
    point = offline._reference_point(one, start, answers, 10_000)
    known = offline._reference_of(one, start, answers, LowerCache(0.0), 10_000)
    norms = Norms(tokens=0, sequences=sum(a.weight for a in answers))
    found = {}
    for name, cut in CUTS.items():
        parts = [p for rows in cut for _, p in offline._judged_batches(one, [answers[i] for i in rows], 10_000)]
        found[name] = gradient(
            one, [lambda p=p: offline._judged_loss(one, *p, known, point, norms, config)[0] for p in parts]
        )
    same(found)


def test_reward():
    one, config = role(head=True), RewardConfig()
    rankings = ranked(one)
    norms = Norms(tokens=0, sequences=sum(r.weight for r in rankings))
    found = {}
    for name, cut in CUTS.items():
        parts = [p for rows in cut for _, p in rewards._micro_batches([rankings[i] for i in rows], 10_000, one)]
        found[name] = gradient(
            one, [lambda p=p: rewards._loss(one, p, norms, config, LowerCache(0.0))[0] for p in parts]
        )
    same(found)


ONLINE = [PpoConfig(), RlooConfig(), GrpoConfig(), DrGrpoConfig(), DapoConfig(), ReinforcePpConfig(),
          ReinforcePpBaselineConfig()]  # fmt: skip


@pytest.mark.parametrize("config", ONLINE, ids=lambda c: c.method)
def test_online(config):
    one = role()
    tokens = [s for r in ranked(one) for s in r.sequences][:8]
    starts = [r.prompt_length for r in ranked(one) for _ in r.sequences][:8]
    masks = [[i >= n for i in range(len(s))] for s, n in zip(tokens, starts, strict=True)]
    whole = collate(tokens, masks, torch.device("cpu"))
    advantages = torch.randn(whole.tokens.shape, generator=torch.Generator().manual_seed(0))
    whole.columns |= {"advantages": advantages, "old": one.logprobs(whole).detach() + 0.1 * advantages.sin()}
    norms = Norms(tokens=float(whole.response_mask.sum()), sequences=8)

    def loss(part: Batch) -> Tensor:
        losses = clipped_policy_loss(
            one.logprobs(part), part.columns["old"], part.columns["advantages"], part.response_mask
        )
        return reduce_policy_loss(config, losses, part.response_mask, norms)

    found = {
        name: gradient(one, [lambda rows=rows: loss(whole.rows(torch.tensor(list(rows)))) for rows in cut])
        for name, cut in CUTS.items()
    }
    same(found)
