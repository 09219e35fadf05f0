"""Nash-MD and XPO: the first step from Hugging Face's logits, and what their settings refuse."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from trimtab.errors import ConfigError, ScoringError
from trimtab.models import ReferenceUpdateConfig
from trimtab.records import Rollout, read_records
from trimtab.rollout import SamplerConfig
from trimtab.testing import prompts, tiny_backbone
from trimtab.trainers import (
    KLConfig,
    MissingEosConfig,
    NashMdConfig,
    OptimizerConfig,
    RlConfig,
    RlRoles,
    Session,
    XpoConfig,
    check_rl,
    train_rl,
)

from ..kit import moved, same_weights, stir
from .rl_kit import LORA, SHORT
from .rl_kit import letters_and_length as letters


def stirred() -> RlRoles:
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1, critic=False)
    stir(roles.policy)
    return roles


def run(settings: RlConfig, *, score=letters, roles: RlRoles | None = None, **more) -> tuple[RlRoles, list[dict]]:
    roles, rows = roles or RlRoles.on(tiny_backbone(), settings.adapter, seed=1, critic=False), []
    train_rl(roles, prompts(6), score, settings, seed=2, session=Session(log=rows.append), **more)
    return roles, rows


def logprob(roles: RlRoles, adapter: str | None, rollout: Rollout) -> float:
    start, tokens = len(rollout.prompt_tokens), rollout.prompt_tokens + rollout.tokens
    roles.policy.backbone.activate(adapter)
    with torch.no_grad():
        every = torch.log_softmax(roles.policy.backbone.model(torch.tensor([tokens])).logits[0], -1)
    return float(every[start - 1 : -1].gather(-1, torch.tensor(rollout.tokens)[:, None]).sum())


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_nash_md_first_step_by_hand(tmp_path: Path):
    """The loss is −Σ over tokens of the advantage, P − ½ − β·log π/ref of the whole answer, while ratios are 1."""
    roles, kappa, beta = stirred(), 0.7, 0.2
    settings = NashMdConfig(mixture=0.4, log_odds=kappa, kl=KLConfig(coefficient=beta), group=2, **SHORT)
    before = [roles.policy.state()]
    _, [row] = run(settings, roles=roles, samples=tmp_path)
    own = read_records(tmp_path / "step-000000.jsonl", Rollout)
    other = read_records(tmp_path / "step-000000-opponent.jsonl", Rollout)
    assert len(own) == len(other) == 6 and [a.prompt.id for a in own] == [b.prompt.id for b in other]
    roles.policy.load_state(before[0])
    losses, wins, kls = [], [], []
    for a, b in zip(own, other, strict=True):
        wins.append(sigmoid(kappa * (a.rewards["letters"] - b.rewards["letters"])))
        kls.append(logprob(roles, roles.policy.adapter, a) - logprob(roles, None, a))
        losses.append(-len(a.tokens) * (wins[-1] - 0.5 - beta * kls[-1]))
        mixed = logprob(roles, roles.policy.adapter, b), logprob(roles, None, b)
        assert sum(b.logprobs) > 0.6 * mixed[0] + 0.4 * mixed[1] - 1e-3  # each token is divided by Z ≤ 1
    assert row["win"] == pytest.approx(sum(wins) / 6, rel=1e-4)
    assert row["kl"] == pytest.approx(sum(kls) / 6, rel=1e-3)  # of the policy's own answers
    assert row["policy_loss"] == pytest.approx(sum(losses) / 6, rel=1e-3)
    assert row["reward/letters"] == pytest.approx(sum(a.rewards["letters"] for a in own) / 6)


def test_xpo_first_step_by_hand(tmp_path: Path):
    roles, beta, alpha = stirred(), 0.3, 0.02
    settings = XpoConfig(beta=beta, alpha=alpha, log_odds=0.5, **SHORT)
    before = roles.policy.state()
    _, [row] = run(settings, roles=roles, samples=tmp_path)
    own = read_records(tmp_path / "step-000000.jsonl", Rollout)
    other = read_records(tmp_path / "step-000000-opponent.jsonl", Rollout)
    roles.policy.load_state(before)
    losses, bonus = [], []
    for a, b in zip(own, other, strict=True):
        p = sigmoid(0.5 * (a.rewards["letters"] - b.rewards["letters"]))
        assert sum(b.logprobs) == pytest.approx(logprob(roles, None, b), rel=1e-4)  # the reference drew it
        policy_other = logprob(roles, roles.policy.adapter, b)
        h = logprob(roles, roles.policy.adapter, a) - logprob(roles, None, a) - (policy_other - sum(b.logprobs))
        losses.append(-p * math.log(sigmoid(beta * h)) - (1 - p) * math.log(sigmoid(-beta * h)) + alpha * policy_other)
        bonus.append(policy_other)
    assert row["policy_loss"] == pytest.approx(sum(losses) / 3, rel=1e-3)
    assert row["exploration"] == pytest.approx(sum(bonus) / 3, rel=1e-3)
    assert row["mismatch"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("kind", [NashMdConfig, XpoConfig])
def test_micro_batches_change_nothing(kind):
    ends = []
    for tokens in (1, 10_000):
        settings = kind(**(SHORT | {"micro_batch_tokens": tokens, "steps": 2, "minibatches": 2}))
        ends.append(run(settings)[0].policy)
    moved(ends[0], RlRoles.on(tiny_backbone(), LORA, seed=1, critic=False).policy)
    same_weights(*ends)


def test_exploration_lowers_the_reference_s_answers():
    """On the answers it is trained on, in six passes over them; over all answers of π = ref its gradient is 0."""
    fast = SHORT | {"epochs": 6, "policy": OptimizerConfig(lr=2e-2, schedule="constant", warmup=0.0)}
    ends = [run(XpoConfig(alpha=alpha, beta=0.01, **fast))[1][-1]["exploration"] for alpha in (0.0, 5.0)]
    assert ends[1] < ends[0] - 1.0


def test_xpo_follows_a_moving_reference():
    update = ReferenceUpdateConfig(every=1)
    _, rows = run(XpoConfig(reference_update=update, **SHORT | {"steps": 3}))
    assert all(abs(row["gap"]) < 1e-4 and abs(row["kl"]) < 1e-4 for row in rows)  # it is the policy at each step


def test_given_preferences_see_each_answer_beside_its_opponent_s():
    calls: list[list[str]] = []

    def longer(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        calls.append([r.id for r in rollouts])
        pairs = zip(rollouts[0::2], rollouts[1::2], strict=True)
        return {"longer": [w for a, b in pairs for w in (float(len(a.tokens) > len(b.tokens)), 99.0)]}

    _, [row] = run(NashMdConfig(preference="given", score_clip=None, **SHORT), score=longer)
    [ids] = calls
    assert [i.endswith("/opponent") for i in ids] == [False, True] * 3
    assert row["win"] == pytest.approx(row["reward/longer"])
    with pytest.raises(ScoringError, match=r"preference is 'given' and the reward of sample .* is 7; expected the pro"):
        run(XpoConfig(preference="given", **SHORT), score=lambda rs: {"w": [7.0] * len(rs)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (NashMdConfig(running_scale=True), "running_scale is true and method 'nash_md' turns rewards into prob"),
        (XpoConfig(preference="given"), r"missing_eos is set and preference is 'given'"),
        (XpoConfig(preference="given", missing_eos=None, log_odds=2.0), r"log_odds is set and preference is 'given'"),
        (NashMdConfig(preference="given", missing_eos=None, score_clip=5.0), r"score_clip is set and preference is"),
        (
            XpoConfig(preference="given", missing_eos=None, sampler=SamplerConfig(engine="vllm")),
            "sampler.engine 'vllm', which may return an answer without a token",
        ),
    ],
)
def test_what_contradicts_is_refused(settings: RlConfig, message: str):
    with pytest.raises(ConfigError, match=message):
        check_rl(settings, 3)


def test_a_cut_answer_loses():
    """The penalty for missing ends is part of the scores that are compared."""
    settings = XpoConfig(**SHORT | {"missing_eos": MissingEosConfig(value=-50.0)})
    _, [row] = run(settings, score=lambda rs: {"one": [1.0] * len(rs)})
    assert row["win"] in (pytest.approx(k / 6, abs=1e-6) for k in range(7))  # each pair: 0, ½ or 1
