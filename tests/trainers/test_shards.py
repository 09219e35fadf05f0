"""How a step is cut, into micro-batches or over ranks, never changes its gradient: 1×8 = 8×1 = 2 ranks."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trimtab.models import AdapterConfig, Role
from trimtab.rollout import SamplerConfig
from trimtab.testing import prompts, sentences, tiny_backbone
from trimtab.trainers import (
    OFFLINE,
    BcoConfig,
    CispoConfig,
    CpoConfig,
    DapoConfig,
    DpoConfig,
    DrGrpoConfig,
    GrpoConfig,
    GspoConfig,
    HingeConfig,
    IpoConfig,
    KLConfig,
    KtoConfig,
    Learner,
    NcaConfig,
    Norms,
    OnlineDpoConfig,
    OptimizerConfig,
    OrpoConfig,
    PlackettLuceConfig,
    PpoConfig,
    Ranking,
    ReinforcePpBaselineConfig,
    ReinforcePpConfig,
    RejectionConfig,
    RewardConfig,
    RlooConfig,
    RlRoles,
    Session,
    SimpoConfig,
    answer_logprobs,
    judged_from_rankings,
    kto,
    preference,
    train_rl,
)
from trimtab.trainers.rankings import ranking_batches
from trimtab.trainers.reward_losses import StepTerms, reward_loss
from trimtab.trainers.rl_optional import critic_on_policy

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
    chat, rankings = one.backbone.chat, []
    for i, prompt in enumerate(prompts(8)):
        count = 2 + i % 2
        answers = [sentences(1, words=1 + (i + k) % 6, start=50 * k + i)[0] for k in range(count)]
        tokens = [chat.answer(prompt.messages, text).tokens for text in answers]
        rankings.append(
            Ranking(
                id=str(i), sequences=tokens, prompt_length=len(chat.prompt(prompt.messages)),
                ranks=(0, 1, 1)[:count] if i % 3 else (1, 0, 2)[:count], probability=None, margin=None,
                weight=1.0 + 0.5 * (i % 2),
            )
        )  # fmt: skip
    return rankings


PAIRS = [
    DpoConfig(),
    DpoConfig(label_smoothing=0.2, smoothing="robust"),
    IpoConfig(),
    HingeConfig(),
    OrpoConfig(),
    SimpoConfig(),
    CpoConfig(),
    DpoConfig(normalise=True, nll=0.5),
    PlackettLuceConfig(),
    BcoConfig(),
    NcaConfig(),
]


@pytest.mark.parametrize("config", PAIRS, ids=lambda c: c.method)
def test_offline(config):
    one = role()
    rankings = ranked(one)
    free = not OFFLINE[config.method].reference
    known = None if free else answer_logprobs(Role(one.backbone), rankings)
    norms = Norms(tokens=0, sequences=sum(r.weight for r in rankings))
    length = preference._mean_chosen_length(rankings)  # of the whole step, as every shard has to be told
    gradients = {}
    for name, cut in CUTS.items():
        parts = [
            replace(part, mean_chosen_length=length, mean_ratio=0.25)
            for rows in cut
            for part in preference._parts(
                one, [rankings[i] for i in rows], None if known is None else [known[i] for i in rows], 10_000
            )
        ]
        gradients[name] = gradient(one, [lambda p=p: preference._pair_loss(one, p, norms, config)[0] for p in parts])
    same(gradients)


def test_kto():
    one, config = role(), KtoConfig()
    answers = judged_from_rankings(ranked(one))[0][:8]
    start = Role(one.backbone)
    point = kto._reference_point(one, start, answers, 10_000)
    known = kto._reference_logprobs(start, answers, None, 10_000)
    norms = Norms(tokens=0, sequences=sum(a.weight for a in answers))
    gradients = {}
    for name, cut in CUTS.items():
        parts = [p for rows in cut for p in kto._parts(one, [answers[i] for i in rows], point, config)]
        gradients[name] = gradient(one, [lambda p=p: kto._kto_loss(one, p, known, norms, config)[0] for p in parts])
    same(gradients)


def test_reward():
    one, config = role(head=True), RewardConfig()
    rankings = ranked(one)
    norms = Norms(tokens=0, sequences=sum(r.weight for r in rankings))
    terms = StepTerms(strict=norms.sequences, length=None, annotators=None, votes=0.0)
    gradients = {}
    for name, cut in CUTS.items():
        parts = [p for rows in cut for p in ranking_batches([rankings[i] for i in rows], 10_000, one)]
        gradients[name] = gradient(one, [lambda p=p: reward_loss(one, p, norms, config, terms, None)[0] for p in parts])
    same(gradients)


STEP = {
    "adapter": AdapterConfig(rank=4, alpha=8), "steps": 1, "prompts": 4, "group": 2, "epochs": 1, "missing_eos": None,
    "sampler": SamplerConfig(max_new_tokens=6), "policy": OptimizerConfig(lr=1e-2, schedule="constant", warmup=0.0),
}  # fmt: skip
KL_IN_LOSS = KLConfig(coefficient=0.1, place="loss")
ONLINE = [
    PpoConfig(**STEP), PpoConfig(**STEP, shared_critic=True), PpoConfig(**STEP, entropy_bonus=0.01, importance_cap=2.0),
    RlooConfig(**STEP), GrpoConfig(**STEP), DrGrpoConfig(**STEP, kl=KL_IN_LOSS), DapoConfig(**STEP),
    GspoConfig(**STEP, kl=KL_IN_LOSS), CispoConfig(**STEP, entropy_top=0.4),
    RlooConfig(**(STEP | {"sampler": SamplerConfig(max_new_tokens=48)}), overlong_filter=True),
    RlooConfig(**STEP, importance_cap=2.0, importance_level="sequence", importance_beyond="mask"),
    PpoConfig(**STEP, bootstrap_cut=True),
    ReinforcePpConfig(**STEP), ReinforcePpBaselineConfig(**STEP, kl=KL_IN_LOSS), OnlineDpoConfig(**STEP),
    RejectionConfig(**STEP),
]  # fmt: skip


@pytest.mark.parametrize("config", ONLINE, ids=lambda c: c.method)
def test_online(config, monkeypatch: pytest.MonkeyPatch):
    """The gradient of a real update, taken where the optimiser would read it, whatever the micro-batches are."""
    gradients: dict[int, dict[str, Tensor]] = {}
    rows: list[dict] = []

    def recorded(self, names) -> float:
        role = "critic" if self.role.scalar is not None else "policy"
        gradients[budget][role] = torch.cat([p.grad.flatten() for p in self.parameters.values() if p.grad is not None])
        return 0.0

    monkeypatch.setattr(Learner, "_clip", recorded)
    for budget in (10_000, 70, 1):
        gradients[budget] = {}
        critic, shared = isinstance(config, PpoConfig), critic_on_policy(config)
        roles = RlRoles.on(tiny_backbone(), config.adapter, seed=1, critic=critic, shared_critic=shared)
        stir(roles.policy, scale=0.05)
        settings = config.model_copy(update={"micro_batch_tokens": budget})
        score = lambda rollouts: {"it": [float(sum(r.tokens) % 7) for r in rollouts]}  # noqa: E731
        train_rl(roles, prompts(8), score, settings, seed=3, session=Session(log=rows.append))
    assert all(row["updates"] == 1 for row in rows)
    whole = gradients.pop(10_000)
    assert set(whole) == ({"policy", "critic"} if isinstance(config, PpoConfig) else {"policy"})
    for role, expected in whole.items():
        scale = float(expected.abs().max())
        assert scale > 1e-6
        for budget, found in gradients.items():
            assert torch.allclose(found[role], expected, rtol=1e-3, atol=1e-4 * scale), (role, budget)
