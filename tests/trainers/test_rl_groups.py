"""Methods without a critic: the first step by hand, equal rewards, importance weights."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from trimtab.records import Rollout, read_records
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.testing import tiny_backbone
from trimtab.trainers import (
    CispoConfig,
    DapoConfig,
    DrGrpoConfig,
    GrpoConfig,
    GspoConfig,
    KLConfig,
    PolicyGradientConfig,
    ReinforcePpBaselineConfig,
    ReinforcePpConfig,
    RlooConfig,
    RlRoles,
)
from trimtab.trainers.rl_metrics import _spread_within

from ..kit import same_weights, stir
from .rl_kit import LORA, STEADY, answer_logprobs, config, run

GROUPS: list[PolicyGradientConfig] = [
    RlooConfig(),
    RlooConfig(kl=KLConfig(coefficient=0.1, place="loss", estimator="k2")),
    RlooConfig(kl=KLConfig(coefficient=0.1, place="loss", estimator="sequence")),
    GrpoConfig(kl=KLConfig(coefficient=0.1, place="loss", estimator="k3")),
    GrpoConfig(kl=KLConfig(coefficient=0.1, place="loss")),
    GrpoConfig(std="population", kl=KLConfig(coefficient=0.1, place="loss", estimator="k1")),
    DrGrpoConfig(),
    DapoConfig(),
    GspoConfig(kl=KLConfig(coefficient=0.1, place="loss")),
    CispoConfig(kl=KLConfig(coefficient=0.1, place="loss")),
    ReinforcePpConfig(gamma=0.9),
    ReinforcePpBaselineConfig(),
]


def group_loss_by_hand(
    settings: PolicyGradientConfig, rollouts: list[Rollout], old: list, ref: list
) -> tuple[float, float]:
    """Policy loss of the first update, where every ratio is 1, and the KL per answer."""
    beta, k = settings.kl.coefficient, settings.group
    inside = beta if settings.kl.place == "reward" else 0.0
    deltas = [[a - b for a, b in zip(o, r, strict=True)] for o, r in zip(old, ref, strict=True)]
    rewards = [[-inside * d for d in row] for row in deltas]
    for row, rollout in zip(rewards, rollouts, strict=True):
        row[-1] += rollout.rewards["letters"]
    totals = [sum(row) for row in rewards]
    means = [sum(totals[i - i % k : i - i % k + k]) / k for i in range(len(totals))]
    kinds = {"sequence": lambda d: d, "k1": lambda d: d, "k2": lambda d: d * d / 2}
    kinds["k3"] = lambda d: math.exp(-d) - 1 + d
    advantages: list[list[float]] = []
    for i, row in enumerate(rewards):
        own = totals[i - i % k : i - i % k + k]
        squares = sum((x - means[i]) ** 2 for x in own)
        match settings:
            case RlooConfig():
                value = totals[i] - sum(x for j, x in enumerate(own) if j != i % k) / (k - 1)
            case DrGrpoConfig():
                value = totals[i] - means[i]
            case GrpoConfig() | DapoConfig() | GspoConfig() | CispoConfig():
                std = math.sqrt(squares / (k - 1 if settings.std == "sample" else k))
                value = (totals[i] - means[i]) / (std + 1e-6) if std else 0.0
            case _:
                if isinstance(settings, ReinforcePpBaselineConfig):
                    row[-1] -= means[i]
                later = [sum(settings.gamma**n * r for n, r in enumerate(row[t:])) for t in range(len(row))]
                advantages.append(later)
                continue
        advantages.append([value] * len(row))
    if isinstance(settings, ReinforcePpConfig | ReinforcePpBaselineConfig):
        flat = [a for row in advantages for a in row]
        mean = sum(flat) / len(flat)
        spread = math.sqrt(sum((a - mean) ** 2 for a in flat) / len(flat) + 1e-8)
        advantages = [[(a - mean) / spread for a in row] for row in advantages]
    penalty = beta if settings.kl.place == "loss" else 0.0
    likelihoods = old if isinstance(settings, CispoConfig) else [[1.0] * len(row) for row in old]  # −A·log π, −A·ρ
    losses = [
        [-a * p + penalty * kinds[settings.kl.estimator or "sequence"](d) for a, d, p in zip(x, y, z, strict=True)]
        for x, y, z in zip(advantages, deltas, likelihoods, strict=True)
    ]
    n, tokens = len(losses), sum(len(row) for row in losses)
    match settings:
        case RlooConfig():
            loss = sum(map(sum, losses)) / n
        case GrpoConfig() | GspoConfig():
            loss = sum(sum(row) / len(row) for row in losses) / n
        case DrGrpoConfig():
            loss = sum(map(sum, losses)) / (n * settings.sampler.max_new_tokens)
        case _:
            loss = sum(map(sum, losses)) / tokens
    return loss, sum(map(sum, deltas)) / n


@pytest.mark.parametrize("settings", GROUPS, ids=lambda c: c.method)
def test_group_methods_first_step_by_hand(settings, tmp_path: Path):
    group = 1 if settings.method == "reinforce_pp" else 4
    settings = settings.model_copy(
        update={
            "adapter": LORA, "steps": 1, "prompts": 3, "group": group, "policy": STEADY, "missing_eos": None,
            "sampler": SamplerConfig(max_new_tokens=8, slots=5), "micro_batch_tokens": 70,
        }
    )  # fmt: skip
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1, critic=False)
    stir(roles.policy, scale=0.05, seed=1)
    _, rows = run(settings, roles=roles, samples=tmp_path)
    rollouts = read_records(tmp_path / "step-000000.jsonl", Rollout)
    backbone = roles.reference.backbone
    backbone.activate(None)
    ref = [answer_logprobs(backbone.model, r, 1.0)[0].tolist() for r in rollouts]
    loss, kl = group_loss_by_hand(settings, rollouts, [r.logprobs for r in rollouts], ref)
    assert rows[0]["policy_loss"] == pytest.approx(loss, rel=1e-3, abs=1e-4)
    assert ("k3_clamped" in rows[0]) == (settings.kl.estimator == "k3")
    assert rows[0]["kl"] == pytest.approx(kl, abs=1e-3)
    assert ("flat_groups" in rows[0]) == ("reward_std_prompt" in rows[0]) == (group > 1)
    assert "value_loss" not in rows[0] and "explained_variance" not in rows[0]


@pytest.mark.parametrize("settings", [RlooConfig(), GrpoConfig(), DrGrpoConfig(), DapoConfig()], ids=lambda c: c.method)
def test_equal_rewards_teach_nothing_and_are_counted(settings):
    settings = settings.model_copy(
        update={
            "adapter": LORA, "steps": 1, "prompts": 3, "group": 3, "missing_eos": None,
            "kl": KLConfig(coefficient=0.0, place="loss"),
            "sampler": SamplerConfig(max_new_tokens=6),
        }
    )  # fmt: skip
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1, critic=False)
    before = roles.policy.state()
    _, rows = run(settings, roles=roles, score=lambda rollouts: {"one": [1.0] * len(rollouts)})
    assert rows[0]["flat_groups"] == 1.0
    assert rows[0].get("policy_grad_norm", 0.0) == 0.0  # DAPO does not even take the step
    after = roles.policy.state()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", [RlooConfig, GrpoConfig, DrGrpoConfig, DapoConfig, ReinforcePpBaselineConfig])
def test_groups_of_one_are_refused(kind):
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        kind(group=1)


def test_importance_weights_of_an_exact_sampler_are_one():
    roles, rows = run(config(steps=2))
    weighed, others = run(config(steps=2, importance_cap=2.0))
    assert [r["policy_loss"] for r in others] == pytest.approx([r["policy_loss"] for r in rows], abs=1e-4)
    same_weights(roles.policy, weighed.policy)


def test_importance_weights_scale_the_loss_of_another_samplers_tokens(tmp_path: Path):
    settings = RlooConfig(
        adapter=LORA, steps=1, prompts=3, missing_eos=None, kl=KLConfig(coefficient=0.0), importance_cap=1.5,
        sampler=SamplerConfig(max_new_tokens=6),
    )  # fmt: skip
    plain = run(settings, roles=RlRoles.on(tiny_backbone(), LORA, seed=1, critic=False))[1][0]

    class Quieter(LocalSampler):
        """Reports every token as less likely than the trainer does."""

        def generate(self, prompts, **more):
            rollouts = super().generate(prompts, **more)
            return [replace(r, logprobs=[x - 0.3 for x in r.logprobs]) for r in rollouts]

    roles = RlRoles.on(tiny_backbone(), LORA, seed=1, critic=False)
    other = run(settings, roles=roles, sampler=Quieter(roles.policy.backbone, settings.sampler))[1][0]
    assert plain["mismatch"] == pytest.approx(0.0, abs=1e-4) and other["mismatch"] == pytest.approx(0.3, abs=1e-3)
    assert other["policy_loss"] == pytest.approx(math.exp(0.3) * plain["policy_loss"], rel=1e-3, abs=1e-4)

    def weighed(samples: Path | None = None, **more) -> dict:
        roles = RlRoles.on(tiny_backbone(), LORA, seed=1, critic=False)
        changed = settings.model_copy(update=more)
        sampler = Quieter(roles.policy.backbone, changed.sampler)
        return run(changed, roles=roles, sampler=sampler, samples=samples)[1][0]

    masked = weighed(importance_cap=1.3, importance_beyond="mask")  # e^0.3 = 1.35
    assert masked["policy_loss"] == 0 and masked["importance_masked"] == 1.0
    within = weighed(importance_cap=1.5, importance_beyond="mask", importance_floor=1.2)
    assert within["policy_loss"] == pytest.approx(other["policy_loss"]) and within["importance_masked"] == 0.0
    # An answer of n tokens weighs e^(0.3·n): those of all six tokens are beyond the cap.
    answers = weighed(
        importance_cap=math.exp(0.3 * 5.5), importance_level="sequence", importance_beyond="mask", samples=tmp_path
    )
    lengths = [len(r.tokens) for r in read_records(tmp_path / "step-000000.jsonl", Rollout)]
    assert answers["importance_masked"] == pytest.approx(6 * lengths.count(6) / sum(lengths)) and 6 in lengths
    all_kept = weighed(importance_cap=7.0, importance_level="sequence", importance_beyond="mask")
    assert all_kept["importance_masked"] == 0.0
    # Equal ratios have the full effective size; those of answers differ with their lengths.
    ratios = [math.exp(0.3 * n) for n in lengths]
    assert other["importance_ess"] == pytest.approx(1.0) and "importance_ess" not in run(config())[1][0]
    effective = sum(ratios) ** 2 / (len(ratios) * sum(x * x for x in ratios))
    assert answers["importance_ess"] == all_kept["importance_ess"] == pytest.approx(effective, rel=1e-4)
    assert effective < 1


def test_the_spread_within_prompts():
    """Answers of the first prompt have variance 1, of the second 0; the third has no answer with a token."""
    assert _spread_within([1.0, 3.0, 5.0, 5.0, 5.0], [2, 3, 0]) == pytest.approx(0.5**0.5)
    assert _spread_within([], [0]) == 0.0
