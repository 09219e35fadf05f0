"""kl.stop: the updates of a rollout batch end where the policy has moved too far from the one that drew the answers."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from trimtab.errors import ConfigError
from trimtab.models import AdapterConfig
from trimtab.records import Rollout, read_records
from trimtab.rollout import SamplerConfig
from trimtab.testing import prompts, tiny_backbone
from trimtab.trainers import (
    CispoConfig,
    DapoConfig,
    DrGrpoConfig,
    GrpoConfig,
    GspoConfig,
    KLConfig,
    Learner,
    Norms,
    OnlineDpoConfig,
    OptimizerConfig,
    PpoConfig,
    ReinforcePpBaselineConfig,
    ReinforcePpConfig,
    RejectionConfig,
    RlConfig,
    RlooConfig,
    RlRoles,
    Session,
    StepKLConfig,
    check_rl,
    train_rl,
)

from ..kit import same_weights

METHODS = (
    PpoConfig,
    RlooConfig,
    GrpoConfig,
    DrGrpoConfig,
    DapoConfig,
    GspoConfig,
    CispoConfig,
    ReinforcePpConfig,
    ReinforcePpBaselineConfig,
    OnlineDpoConfig,
    RejectionConfig,
)
FAST = OptimizerConfig(lr=3e-3, schedule="constant", warmup=0.0)
LIMIT = 0.05


def config(kind: type[RlConfig], stop: float | None, **settings) -> RlConfig:
    """Two passes of three updates on six prompts with four answers each."""
    base = {
        "adapter": AdapterConfig(kind="full"), "steps": 1, "prompts": 6, "group": 4, "epochs": 2, "minibatches": 3,
        "policy": FAST, "sampler": SamplerConfig(max_new_tokens=8, temperature=0.8),
        "kl": {"stop": stop}, "missing_eos": None,
    }  # fmt: skip
    return kind(**(base | ({"critic": FAST} if kind is PpoConfig else {}) | settings))


def vowels(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    return {"vowels": [sum(c in "aeiou" for c in r.text) + 0.01 * len(r.tokens) for r in rollouts]}


def run(settings: RlConfig, **more) -> tuple[RlRoles, list[dict]]:
    shared = isinstance(settings, PpoConfig) and settings.shared_critic
    critic = isinstance(settings, PpoConfig)
    roles = RlRoles.on(tiny_backbone(), settings.adapter, seed=1, critic=critic, shared_critic=shared)
    rows: list[dict] = []
    train_rl(roles, prompts(9), vowels, settings, seed=2, session=Session(log=rows.append), **more)
    return roles, rows


def kl_by_hand(model, rollouts: Sequence[Rollout], temperature: float) -> float:
    """Mean of k3, e^δ − 1 − δ with δ = log π − log π_old, over all tokens of some answers."""
    total, count = 0.0, 0
    for rollout in rollouts:
        start, tokens = len(rollout.prompt_tokens), rollout.prompt_tokens + rollout.tokens
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0] / temperature
        new = torch.log_softmax(logits, dim=-1)[start - 1 : -1].gather(-1, torch.tensor(rollout.tokens)[:, None])
        delta = new.squeeze(-1) - torch.tensor(rollout.logprobs)
        total, count = total + float((delta.exp() - 1 - delta).sum()), count + len(rollout.tokens)
    return total / count


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.model_fields["method"].default)
def test_an_update_ends_before_the_minibatch_that_is_too_far(kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before each optimiser step its KL is computed anew from Hugging Face's logits and the sampler's numbers."""
    measured: list[float] = []
    original = Learner.step

    def watched(self, parts, *arguments, **more):
        if not self.role.scalar:
            drawn = {r.id: r for r in read_records(tmp_path / "step-000000.jsonl", Rollout)}
            rollouts = [drawn[name] for names, _ in parts for name in names]
            measured.append(kl_by_hand(self.role.backbone.model, rollouts, 0.8))
        return original(self, parts, *arguments, **more)

    monkeypatch.setattr(Learner, "step", watched)
    _, [row] = run(config(kind, LIMIT), samples=tmp_path)
    assert measured[0] == pytest.approx(0.0, abs=1e-5)
    allowed = next(i for i, kl in enumerate(measured) if kl > LIMIT)
    assert allowed == len(measured) - 1 and 1 <= allowed < 6  # nothing was measured after the first that was too far
    assert row["updates"] == allowed and row["kl_stopped"] == 1.0
    assert row["approx_kl"] == pytest.approx(sum(measured) / len(measured), rel=1e-2)


@pytest.mark.parametrize("shared", [False, True], ids=["own critic", "shared critic"])
def test_what_is_skipped_changes_no_weight(shared):
    """Stopped after k updates is the same as a shorter step of k updates: policy and critic."""
    more = {"shared_critic": shared, "epochs": 1, "minibatches": 6}
    stopped, [row] = run(config(PpoConfig, LIMIT, **more))
    original, taken = Learner.step, []

    def limited(self, *arguments, **settings):
        taken.append(self.role.scalar is not None)
        if taken.count(self.role.scalar is not None) > row["updates"]:
            return {"loss": 0.0, "approx_kl": 0.0, "mismatch": 0.0} | dict.fromkeys(
                ("entropy", "clip_fraction", "grad_norm", "lr", "policy_loss", "value_loss"), 0.0
            )
        return original(self, *arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", limited)
        shorter, _ = run(config(PpoConfig, None, **more))
    assert 1 <= row["updates"] < 6
    same_weights(stopped.policy, shorter.policy, within=0)
    same_weights(stopped.critic, shorter.critic, within=0)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.model_fields["method"].default)
def test_a_limit_that_is_never_reached_changes_nothing(kind):
    slow = {"policy": OptimizerConfig(lr=1e-5, schedule="constant"), "steps": 2}
    free, rows = run(config(kind, None, **slow))
    limited, others = run(config(kind, 1.0, **slow))
    same_weights(free.policy, limited.policy, within=0)
    for row, other in zip(rows, others, strict=True):
        assert other.pop("kl_stopped") == 0.0 and "kl_stopped" not in row
        assert row["updates"] == 6
        assert {k: v for k, v in row.items() if "seconds" not in k} == {
            k: v for k, v in other.items() if "seconds" not in k
        }


@pytest.mark.parametrize("kind", [PpoConfig, OnlineDpoConfig, RejectionConfig])
def test_micro_batches_do_not_decide(kind):
    ends = [run(config(kind, LIMIT, steps=3, micro_batch_tokens=budget)) for budget in (10_000, 60, 1)]
    updates = [[(row["updates"], row["kl_stopped"]) for row in rows] for _, rows in ends]
    assert updates[0] == updates[1] == updates[2]
    assert any(stopped for _, stopped in updates[0])
    for roles, _ in ends[1:]:
        same_weights(ends[0][0].policy, roles.policy, within=1e-4)


def test_a_skipped_step_leaves_the_learner_as_it_was():
    roles = RlRoles.on(tiny_backbone(), AdapterConfig(kind="full"), seed=1, critic=False)
    learner, before = Learner(roles.policy, FAST, 5), roles.policy.state()
    weight = next(iter(learner.parameters.values()))
    seen: list[dict] = []

    def skip(metrics) -> bool:
        seen.append(dict(metrics))
        return True

    metrics = learner.step(
        [(["a"], 1.0), (["b"], 2.0)],
        lambda part, norms: (part * weight.sum(), {"share": part / norms.tokens}),
        Norms(tokens=4.0, sequences=2.0),
        skip=skip,
    )
    assert seen == [metrics] and metrics["share"] == 0.75 and set(metrics) == {"share", "loss"}
    assert learner.steps == 0 and all(p.grad is None for p in learner.parameters.values())
    assert set(learner.optimizer_state()) == {"steps"}
    assert all(torch.equal(after, before[name]) for name, after in roles.policy.state().items())


def test_limits_without_sense_are_refused():
    with pytest.raises(ValidationError, match="greater than 0"):
        StepKLConfig(stop=0.0)
    with pytest.raises(ConfigError, match=r"kl\.stop is 4 nats per token: an answer of 8 tokens could move by 32 nats"):
        check_rl(config(PpoConfig, 4.0), 9)
    for kind in METHODS:
        with pytest.raises(ConfigError, match=r"kl\.stop is 0\.05, but epochs and minibatches are 1"):
            check_rl(config(kind, 0.05, epochs=1, minibatches=1), 9)
    check_rl(config(RlooConfig, 0.05, kl=KLConfig(stop=0.05), epochs=1), 9)
