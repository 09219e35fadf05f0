"""Every trainer learns something known, on a tiny random model, in seconds."""

from collections.abc import Sequence

import pytest
import torch

from trimtab.models import AdapterConfig, Backbone, Role
from trimtab.records import Rollout
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.testing import WORDS, chat_messages, prompts, sentences, tiny_backbone
from trimtab.trainers import (
    METHODS,
    ApoDownConfig,
    ApoZeroConfig,
    BcoConfig,
    CispoConfig,
    CpoConfig,
    DapoConfig,
    DpoConfig,
    DrGrpoConfig,
    ExoConfig,
    GdpoConfig,
    GrpoConfig,
    GspoConfig,
    HingeConfig,
    IpoConfig,
    KLConfig,
    KtoConfig,
    NashMdConfig,
    NcaConfig,
    OnlineDpoConfig,
    OptimizerConfig,
    OrpoConfig,
    PairConfig,
    PlackettLuceConfig,
    PpoConfig,
    Ranking,
    ReinforcePpBaselineConfig,
    ReinforcePpConfig,
    RejectionConfig,
    RewardConfig,
    RlConfig,
    RlooConfig,
    RlRoles,
    Session,
    SftConfig,
    SimpoConfig,
    SppoConfig,
    XpoConfig,
    answer_logprobs,
    evaluate_kto,
    evaluate_preference,
    judged_from_rankings,
    mean_nll,
    score_rankings,
    train_kto,
    train_preference,
    train_reward,
    train_rl,
    train_sft,
)

LORA = AdapterConfig(rank=8, alpha=16)
FULL = AdapterConfig(kind="full")


def trunk() -> Backbone:
    """The tiny model with a louder head: adapters cannot reach it, and a quiet one never becomes certain."""
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.head.weight *= 3  # type: ignore[operator]
    return backbone


@pytest.mark.parametrize("adapter", [LORA, FULL], ids=["lora", "full"])
def test_sft_learns_eight_answers_by_heart(adapter):
    role = Role.trainable(trunk(), "sft", adapter, seed=1)
    questions, answers = prompts(8), sentences(8)
    some = [role.backbone.chat.conversation(chat_messages(p.text, a)) for p, a in zip(questions, answers, strict=True)]
    before = mean_nll(role, some)
    config = SftConfig(batch=8, epochs=100, optimizer=OptimizerConfig(lr=2e-2, schedule="cosine"))
    train_sft(role, some, config, seed=0)
    assert before > 5 and mean_nll(role, some) < 0.05
    rollouts = LocalSampler(role.backbone, SamplerConfig(temperature=0.0, max_new_tokens=32)).generate(
        questions, adapter=role.adapter, seed=0
    )
    assert [r.text for r in rollouts] == answers  # and says them, and stops
    assert {r.finish_reason for r in rollouts} == {"stop"}


def rankings(role: Role, start: int, count: int) -> list[Ranking]:
    """Answers that differ in how many of their words come from the liked half of the vocabulary."""
    liked, other = WORDS[::2], WORDS[1::2]
    result = []
    for i in range(start, start + count):
        prompt = prompts(i % 40 + 1)[-1]
        better = " ".join((liked if k < 4 else other)[(7 * i + 5 * k) % len(liked) - 1] for k in range(5))
        worse = " ".join((liked if k < 1 else other)[(11 * i + 3 * k) % len(liked) - 1] for k in range(5))
        both = [role.backbone.chat.answer(prompt.messages, text).tokens for text in (better, worse)]
        flip = i % 2 == 1
        result.append(
            Ranking(
                id=str(i),
                sequences=both[::-1] if flip else both,
                prompt_length=len(role.backbone.chat.prompt(prompt.messages)),
                ranks=(1, 0) if flip else (0, 1),
                probability=None,
                margin=None,
                weight=1.0,
            )
        )
    return result


@pytest.mark.parametrize("adapter", [LORA, FULL], ids=["lora", "full"])
def test_reward_model_learns_a_rule_and_keeps_it_on_unseen_answers(adapter):
    role = Role.trainable(trunk(), "reward", adapter, seed=1, scalar_head=True)

    def accuracy(of: Sequence[Ranking]) -> float:
        right = [s[r.ranks.index(0)] > s[r.ranks.index(1)] for r, s in zip(of, score_rankings(role, of), strict=True)]
        return sum(right) / len(right)

    seen, unseen = rankings(role, 0, 160), rankings(role, 1000, 100)
    config = RewardConfig(batch=16, epochs=6, optimizer=OptimizerConfig(lr=1e-2, schedule="cosine"))
    train_reward(role, seen, config, seed=0)
    assert accuracy(seen) > 0.95
    assert accuracy(unseen) > 0.9


FAST = {"batch": 16, "epochs": 2, "optimizer": OptimizerConfig(lr=1e-2, schedule="cosine")}
LONGER = FAST | {"epochs": 4}
"""IPO first overshoots the gap that it aims at; CPO learns more slowly, as nothing starts at the reference."""
OFFLINE: dict[str, PairConfig] = {
    "dpo": DpoConfig(**FAST),
    "cdpo": DpoConfig(label_smoothing=0.1, **FAST),
    "robust dpo": DpoConfig(label_smoothing=0.1, smoothing="robust", **FAST),
    "ipo": IpoConfig(**LONGER),
    "hinge": HingeConfig(**FAST),
    "orpo": OrpoConfig(lam=1.0, **FAST),
    "simpo": SimpoConfig(**FAST),
    "cpo": CpoConfig(**LONGER),
    "dpo, per token": DpoConfig(beta=1.0, normalise=True, **FAST),
    "rpo": DpoConfig(nll=1.0, **FAST),
    "plackett_luce": PlackettLuceConfig(**FAST),
    "apo_zero": ApoZeroConfig(**FAST),
    "apo_down": ApoDownConfig(**FAST),
    "bco": BcoConfig(**FAST),
    "sppo": SppoConfig(**FAST),
    "exo": ExoConfig(**FAST),
    "nca": NcaConfig(**FAST),
}


SLOW = ("dpo, per token", "rpo", "apo_down", "sppo", "exo")
"""Forms of methods of which another is tested in every run."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in OFFLINE])
def test_offline_methods_improve_their_own_objective_on_unseen_answers(name):
    config, backbone = OFFLINE[name], trunk()
    policy, start = Role.trainable(backbone, "policy", LORA, seed=1), Role(backbone)
    seen, unseen = rankings(policy, 0, 160), rankings(policy, 1000, 60)
    free = not METHODS[config.method].reference
    known, known_unseen = (None, None) if free else (answer_logprobs(start, seen), answer_logprobs(start, unseen))
    before = evaluate_preference(policy, unseen, config, reference=known_unseen)
    train_preference(policy, seen, config, reference=known, seed=0)
    after = evaluate_preference(policy, unseen, config, reference=known_unseen)
    assert after["loss"] < before["loss"]
    assert after["accuracy"] > 0.85 > before["accuracy"]


def test_kto_learns_from_thumbs():
    backbone = trunk()
    policy, start = Role.trainable(backbone, "policy", LORA, seed=1), Role(backbone)
    seen, _ = judged_from_rankings(rankings(policy, 0, 160))
    unseen, balanced = judged_from_rankings(rankings(policy, 1000, 60))
    assert balanced == 0 and sum(a.desirable for a in unseen) == 60
    config = KtoConfig(**FAST)
    before = evaluate_kto(policy, start, unseen, config)
    train_kto(policy, start, seen, config, seed=0)
    after = evaluate_kto(policy, start, unseen, config)
    assert before["loss"] == pytest.approx(0.5) and after["loss"] < 0.4
    assert after["chosen"] > 0 > after["rejected"]
    assert after["accuracy"] > 0.85


def even(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    """From −1 to 1: how much likelier tokens with an even number are than the others."""
    return {"even": [2 * sum(t % 2 == 0 for t in r.tokens) / len(r.tokens) - 1 for r in rollouts]}


def ppo(adapter: AdapterConfig, **settings) -> PpoConfig:
    fast = OptimizerConfig(lr=1e-2, schedule="constant")
    base = {
        "adapter": adapter, "steps": 20, "prompts": 32, "sampler": SamplerConfig(max_new_tokens=8), "policy": fast,
        "critic": fast, "kl": KLConfig(coefficient=0.02), "missing_eos": None,
    }  # fmt: skip
    return PpoConfig(**(base | settings))


def ends(rows: list[dict], name: str = "reward") -> tuple[float, float]:
    """Mean over the first and over the last three steps."""
    return sum(r[name] for r in rows[:3]) / 3, sum(r[name] for r in rows[-3:]) / 3


@pytest.mark.parametrize("adapter", [LORA, FULL], ids=["lora", "full"])
def test_ppo_raises_its_reward(adapter):
    roles, rows = RlRoles.on(trunk(), adapter, seed=1), []
    train_rl(roles, prompts(32), even, ppo(adapter, steps=22), seed=0, session=Session(log=rows.append))
    first, last = ends(rows)
    assert first < 0 and last > 0.5
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert 1 < rows[-1]["kl"] < 100  # it moved, and not to infinity
    assert abs(ends(rows, "value")[1] - last) < 0.5  # the critic knows what to expect


FEW = {"adapter": LORA, "steps": 16, "sampler": SamplerConfig(max_new_tokens=8), "missing_eos": None}
QUICK = OptimizerConfig(lr=1e-2, schedule="constant")
ONLINE: list[RlConfig] = [
    RlooConfig(group=4, prompts=8, policy=QUICK, kl=KLConfig(coefficient=0.02), **FEW),
    GrpoConfig(group=4, prompts=8, policy=QUICK, **FEW),
    DrGrpoConfig(group=4, prompts=8, policy=QUICK, **FEW),
    DapoConfig(group=4, prompts=8, policy=QUICK, **FEW),
    GspoConfig(group=4, prompts=8, policy=QUICK, **FEW),
    CispoConfig(group=4, prompts=8, policy=QUICK, **FEW),
    GdpoConfig(group=4, prompts=8, policy=QUICK, **FEW),
    ReinforcePpConfig(prompts=32, policy=QUICK, kl=KLConfig(coefficient=0.02), **FEW),
    ReinforcePpBaselineConfig(group=4, prompts=8, policy=QUICK, **FEW),
    OnlineDpoConfig(group=4, prompts=8, policy=QUICK, **FEW),
    NashMdConfig(prompts=32, policy=QUICK, kl=KLConfig(coefficient=0.005), log_odds=4.0, **FEW),
    XpoConfig(prompts=32, policy=QUICK, log_odds=4.0, **FEW),
    RejectionConfig(group=4, prompts=8, policy=QUICK, **FEW),
]


@pytest.mark.parametrize("config", ONLINE, ids=lambda c: c.method)
def test_online_methods_raise_their_reward_on_unseen_prompts(config):
    roles = RlRoles.on(trunk(), LORA, seed=1, critic=False)
    seen, unseen = prompts(48)[:24], prompts(48)[24:]

    def held_out() -> float:
        sampler = LocalSampler(roles.policy.backbone, SamplerConfig(max_new_tokens=8))
        answers = sampler.generate(unseen, adapter=roles.policy.adapter, seed=7, group=2)
        return sum(even(answers)["even"]) / len(answers)

    before = held_out()
    train_rl(roles, seen, even, config, seed=0)
    assert held_out() > before + 0.4


def test_strong_kl_penalty_holds():
    slow, moved = OptimizerConfig(lr=2e-3, schedule="constant"), {}
    for beta in (0.02, 5.0):
        roles, rows = RlRoles.on(trunk(), LORA, seed=1), []
        config = ppo(LORA, kl=KLConfig(coefficient=beta), steps=10, policy=slow)
        train_rl(roles, prompts(32), even, config, seed=0, session=Session(log=rows.append))
        moved[beta] = ends(rows, "kl")[1]
    assert moved[0.02] > 3  # nats per answer; what the reward pays for
    assert moved[5.0] < 1.5
