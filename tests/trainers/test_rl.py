"""One whole PPO step recomputed from Hugging Face's logits, and everything a reward function may do wrong."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from trimtab.errors import ConfigError, NonFiniteError, ScoringError
from trimtab.models import AdapterConfig, Backbone, FrozenStates, Role, load_tensors
from trimtab.records import Prompt, Rollout, read_records, write_records
from trimtab.rollout import LocalSampler, RewardModelScorer, SamplerConfig
from trimtab.testing import prompts, tiny_backbone
from trimtab.trainers import (
    CispoConfig,
    DapoConfig,
    DrGrpoConfig,
    GroupConfig,
    GrpoConfig,
    GspoConfig,
    KLConfig,
    MissingEosConfig,
    OptimizerConfig,
    PpoConfig,
    ReinforcePpBaselineConfig,
    ReinforcePpConfig,
    RlooConfig,
    RlRoles,
    Session,
    check_rl,
    train_rl,
)
from trimtab.trainers.rl import _prompts_of_step

from ..kit import same_weights, stir

FULL = AdapterConfig(kind="full")
LORA = AdapterConfig(rank=4, alpha=8)
TOP = AdapterConfig(rank=4, alpha=8, top_layers=2)
STEADY = OptimizerConfig(lr=3e-3, schedule="constant", warmup=0.0)


def config(adapter: AdapterConfig = LORA, **settings) -> PpoConfig:
    base = {
        "adapter": adapter, "steps": 2, "prompts": 4, "sampler": SamplerConfig(max_new_tokens=8), "policy": STEADY,
        "critic": STEADY,
    }  # fmt: skip
    return PpoConfig(**(base | settings))


def letters(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    return {"letters": [sum(c in "aeiou" for c in r.text) - 3.0 for r in rollouts]}


def run(settings: PpoConfig, *, score=letters, roles: RlRoles | None = None, **more) -> tuple[RlRoles, list[dict]]:
    shared = isinstance(settings, PpoConfig) and settings.shared_critic
    roles = roles or RlRoles.on(tiny_backbone(), settings.adapter, seed=1, shared_critic=shared)
    rows: list[dict] = []
    train_rl(roles, prompts(9), score, settings, seed=2, session=Session(log=rows.append), **more)
    return roles, rows


# One step by hand ---------------------------------------------------------------------------


def gae_by_hand(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Σ_k (γλ)^k δ_{t+k}: the sum written out, not the recursion."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


def answer_logprobs(model, rollout: Rollout, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    start, tokens = len(rollout.prompt_tokens), rollout.prompt_tokens + rollout.tokens
    full = torch.log_softmax(model(torch.tensor([tokens])).logits[0] / temperature, dim=-1)[start - 1 : -1]
    return full.gather(-1, torch.tensor(rollout.tokens)[:, None]).squeeze(-1), -(full.exp() * full).sum(-1)


def answer_values(model, head, rollout: Rollout) -> torch.Tensor:
    start, tokens = len(rollout.prompt_tokens), rollout.prompt_tokens + rollout.tokens
    states = model.model(torch.tensor([tokens])).last_hidden_state[0]
    return (states @ head.weight[0] + head.bias)[start - 1 : -1]


def value_after(model, head, rollout: Rollout) -> float:
    tokens = torch.tensor([rollout.prompt_tokens + rollout.tokens])
    return float(model.model(tokens).last_hidden_state[0, -1] @ head.weight[0] + head.bias)


@pytest.mark.parametrize(
    "settings",
    [
        {"whiten_advantages": False, "missing_eos": None, "kl": KLConfig(coefficient=0.3)},
        {"whiten_advantages": True, "missing_eos": MissingEosConfig(value=-2.0), "gamma": 0.9, "lam": 0.5},
        {
            "whiten_advantages": False,
            "missing_eos": MissingEosConfig(value=-2.0, mode="subtract"),
            "sampler": SamplerConfig(max_new_tokens=24, temperature=0.8),
            "score_clip": 1.5,
        },
        {"whiten_advantages": False, "missing_eos": None, "shared_critic": True, "value_coefficient": 0.3},
        {"whiten_advantages": False, "missing_eos": None, "bootstrap_cut": True, "gamma": 0.9},
        {"whiten_advantages": True, "missing_eos": None, "shared_critic": True, "value_coefficient": 0.0},
    ],
    ids=[
        "plain",
        "whitened, replace",
        "subtract, temperature, score clip",
        "shared critic",
        "cut answers go on",
        "shared critic, head alone",
    ],
)
def test_one_step_recomputed(settings, tmp_path: Path):
    settings = config(
        FULL, **({"sampler": SamplerConfig(max_new_tokens=24)} | settings), steps=1, prompts=5, group=2, epochs=2,
        eps=0.05, value_eps=0.05, micro_batch_tokens=70,
    )  # fmt: skip
    shared = settings.shared_critic
    roles = RlRoles.on(tiny_backbone(), FULL, seed=1, shared_critic=shared)
    stir(roles.policy, scale=0.02, seed=1)
    stir(roles.critic, scale=0.1, seed=2)
    policy = copy.deepcopy(roles.policy.backbone.model)
    critic = policy if shared else copy.deepcopy(roles.critic.backbone.model)
    head, reference = copy.deepcopy(roles.critic.scalar), roles.reference.backbone.model
    assert head is not None
    _, [logged] = run(settings, roles=roles, samples=tmp_path)

    rollouts = read_records(tmp_path / "step-000000.jsonl", Rollout)
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    temperature, beta = settings.sampler.temperature, settings.kl.coefficient
    scores = letters(rollouts)["letters"]
    limit = settings.score_clip or math.inf
    total = sum(len(r.tokens) for r in rollouts)
    old, old_values, advantages, returns, kl = [], [], [], [], 0.0
    with torch.no_grad():
        for rollout, score in zip(rollouts, scores, strict=True):
            logprobs = answer_logprobs(policy, rollout, temperature)[0].tolist()
            assert rollout.logprobs == pytest.approx(logprobs, abs=1e-4)
            fixed = answer_logprobs(reference, rollout, temperature)[0].tolist()
            values = answer_values(critic, head, rollout).tolist()
            score = max(-limit, min(limit, score))
            if rollout.finish_reason == "length" and settings.missing_eos is not None:
                score = -2.0 if settings.missing_eos.mode == "replace" else score - 2.0
            rewards = [-beta * (p - q) for p, q in zip(logprobs, fixed, strict=True)]
            rewards[-1] += score
            if settings.bootstrap_cut and rollout.finish_reason == "length":
                rewards[-1] += settings.gamma * value_after(critic, head, rollout)
            gained = gae_by_hand(rewards, values, settings.gamma, settings.lam)
            kl += sum(p - q for p, q in zip(logprobs, fixed, strict=True))
            old.append(logprobs)
            old_values.append(values)
            advantages.append(gained)
            returns.append([a + v for a, v in zip(gained, values, strict=True)])
    if settings.whiten_advantages:
        flat = [a for row in advantages for a in row]
        mean = sum(flat) / total
        deviation = (sum((a - mean) ** 2 for a in flat) / total) ** 0.5
        advantages = [[(a - mean) / deviation for a in row] for row in advantages]

    # Two epochs of one optimiser step each, policy and critic; a shared critic's step is its head's alone.
    ours, theirs = list(policy.parameters()), [*([] if shared else critic.parameters()), *head.parameters()]
    optimizers = [torch.optim.AdamW(weights, lr=3e-3, weight_decay=0.0) for weights in (ours, theirs)]
    policy_losses, value_losses, clipped, entropies, moved = [], [], [], [], []
    for _ in range(2):
        policy_loss, value_loss, outside, entropy, shift = torch.zeros(()), torch.zeros(()), 0, 0.0, 0.0
        for i, rollout in enumerate(rollouts):
            new, spread = answer_logprobs(policy, rollout, temperature)
            ratio = torch.exp(new - torch.tensor(old[i]))
            a = torch.tensor(advantages[i])
            policy_loss = policy_loss - torch.minimum(ratio * a, ratio.clamp(0.95, 1.05) * a).sum() / total
            value, before = answer_values(critic, head, rollout), torch.tensor(old_values[i])
            goal = torch.tensor(returns[i])
            near = torch.maximum(torch.minimum(value, before + 0.05), before - 0.05)
            value_loss = value_loss + 0.5 * torch.maximum((value - goal) ** 2, (near - goal) ** 2).sum() / total
            outside += int(((ratio < 0.95) | (ratio > 1.05)).sum())
            entropy += float(spread.detach().sum()) / total
            gap = torch.tensor(old[i]) - new.detach()
            shift += float((torch.exp(-gap) - 1 + gap).sum()) / total
        objective = policy_loss + settings.value_coefficient * value_loss if shared else policy_loss
        slopes = [
            torch.autograd.grad(
                loss, weights, retain_graph=True, materialize_grads=True
            )  # a critic has no use for lm_head
            for loss, weights in ((objective, ours), (value_loss, theirs))
        ]
        for weights, gradient, optimizer in zip((ours, theirs), slopes, optimizers, strict=True):
            for weight, slope in zip(weights, gradient, strict=True):
                weight.grad = slope.clone()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        policy_losses.append(float(policy_loss.detach()))
        value_losses.append(float(value_loss.detach()))
        clipped.append(outside / total)
        entropies.append(entropy)
        moved.append(shift)

    assert clipped[0] == 0 and clipped[1] > 0.05  # the clip is at work
    assert logged["policy_loss"] == pytest.approx(sum(policy_losses) / 2, abs=1e-4)
    assert logged["value_loss"] == pytest.approx(sum(value_losses) / 2, rel=1e-4)
    assert logged["clip_fraction"] == pytest.approx(sum(clipped) / 2, abs=1 / total)
    assert logged["entropy"] == pytest.approx(sum(entropies) / 2, abs=1e-4)
    assert logged["approx_kl"] == pytest.approx(sum(moved) / 2, abs=1e-4)
    assert logged["mismatch"] < 1e-4
    assert logged["kl"] == pytest.approx(kl / len(rollouts), abs=1e-3)
    assert logged["reward"] == logged["reward/letters"] == pytest.approx(sum(scores) / len(scores))
    assert logged["length"] == total / len(rollouts)
    assert logged["ended"] == sum(r.finish_reason == "stop" for r in rollouts) / len(rollouts)
    assert logged["distinct"] == len({r.text for r in rollouts}) / len(rollouts)
    flat_returns, flat_values = (torch.tensor([x for row in rows for x in row]) for rows in (returns, old_values))
    share = 1 - float((flat_returns - flat_values).var(unbiased=False) / flat_returns.var(unbiased=False))
    assert logged["explained_variance"] == pytest.approx(share, abs=1e-3)
    by_hand = RlRoles.on(Backbone(policy, roles.policy.backbone.chat), FULL, seed=1, shared_critic=shared)
    same_weights(roles.policy, by_hand.policy, within=5e-5)
    own = {} if shared else Role(Backbone(critic, roles.policy.backbone.chat), full=True).state()
    by_hand.critic.load_state({**own, "head.weight": head.weight, "head.bias": head.bias})
    same_weights(roles.critic, by_hand.critic, within=5e-5)


def test_a_shared_critic_and_its_settings_must_agree():
    shared = RlRoles.on(tiny_backbone(), LORA, seed=1, shared_critic=True)
    with pytest.raises(ConfigError, match="shared_critic is True, but the critic is not a head on this policy"):
        run(config(shared_critic=True), roles=RlRoles.on(tiny_backbone(), LORA, seed=1))
    with pytest.raises(ConfigError, match="shared_critic is True, but the critic is not a head on this policy"):
        other = RlRoles.on(tiny_backbone(), LORA, seed=1, shared_critic=True)
        run(config(shared_critic=True), roles=replace(shared, critic=other.critic))
    with pytest.raises(ConfigError, match="shared_critic is False, but the critic is a head on this policy"):
        run(config(), roles=shared)
    with pytest.raises(ConfigError, match="has no adapter to copy; set critic_init: zero"):
        check_rl(config(shared_critic=True, critic_init="reward_model"), 4)
    with pytest.raises(ConfigError, match=r"value_coefficient is 0\.3 and shared_critic is false"):
        check_rl(config(value_coefficient=0.3), 4)


@pytest.mark.parametrize("adapter", [LORA, TOP, FULL], ids=["lora", "top", "full"])
def test_a_head_that_moves_no_weights_leaves_the_first_update_as_it_was(adapter):
    """From a zero head both critics value every state 0, so the advantages are the same."""
    own, _ = run(config(adapter, steps=1, epochs=1))
    shared, _ = run(config(adapter, steps=1, epochs=1, shared_critic=True, value_coefficient=0.0))
    same_weights(own.policy, shared.policy)
    assert set(shared.critic.state()) == {"head.weight", "head.bias"}
    both, _ = run(config(adapter, steps=1, epochs=1, shared_critic=True, value_coefficient=1.0))
    assert float(both.critic.state()["head.weight"].abs().max()) > 0
    with pytest.raises(AssertionError):  # a coefficient above 0 does move them, once the head is not zero
        two = {"steps": 1, "epochs": 3, "shared_critic": True}
        same_weights(run(config(adapter, **two, value_coefficient=0.0))[0].policy,
                     run(config(adapter, **two, value_coefficient=1.0))[0].policy)  # fmt: skip


def test_a_wide_vocabulary_a_batch_of_one_and_prompts_of_any_length(monkeypatch: pytest.MonkeyPatch):
    """256k words, in tables of 16 tokens; one answer a step; then one word beside many, in micro-batches too small."""
    monkeypatch.setattr("trimtab.models.head.TABLE", 16 * 262_144)
    backbone = tiny_backbone()
    backbone.model.resize_token_embeddings(262_144)
    settings = config(steps=1, prompts=1, epochs=1)
    _, [row] = run(settings, roles=RlRoles.on(backbone, LORA, seed=1))
    assert row["length"] <= 8 and math.isfinite(row["policy_loss"]) and row["policy_grad_norm"] > 0
    asked = [Prompt.from_text("tea"), Prompt.from_text("tea and " * 40 + "tea")]
    rows: list[dict] = []
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1)
    train_rl(roles, asked, letters, config(steps=2, prompts=2, micro_batch_tokens=16), seed=2,
             session=Session(log=rows.append))  # fmt: skip
    assert len(rows) == 2 and all(math.isfinite(r["policy_loss"]) for r in rows)


# What must not change the result ------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True], ids=["own critic", "shared critic"])
@pytest.mark.parametrize("adapter", [LORA, TOP, FULL], ids=["lora", "top", "full"])
def test_micro_batches_do_not_change_the_result(adapter, shared):
    whole, rows = run(config(adapter, micro_batch_tokens=10_000, minibatches=2, shared_critic=shared))
    for budget in (60, 1):
        parts, others = run(config(adapter, micro_batch_tokens=budget, minibatches=2, shared_critic=shared))
        same_weights(whole.policy, parts.policy)
        same_weights(whole.critic, parts.critic)
        for a, b in zip(rows, others, strict=True):
            for name in a.keys() - {"mismatch"}:
                if not name.startswith("seconds/"):
                    assert a[name] == pytest.approx(b[name], abs=1e-4), name


class Unrecorded(LocalSampler):
    """A sampler that shows neither states of frozen layers nor values, like one that runs elsewhere."""

    def generate(self, prompts, *, states=None, value_head=None, **more):
        return super().generate(prompts, **more)


def test_frozen_layers_run_once_and_give_the_same_training():
    roles = RlRoles.on(tiny_backbone(), TOP, seed=1)
    states = FrozenStates(roles.policy.backbone)
    halves, _ = run(config(TOP), roles=roles, states=states)
    assert roles.policy.backbone.frozen_layers == 1
    assert states.computed == 0 and states.hits > 0  # they ran while the answers were drawn, and not once more
    again = RlRoles.on(tiny_backbone(), TOP, seed=1)
    passed = FrozenStates(again.policy.backbone)
    sampler = Unrecorded(again.policy.backbone, config(TOP).sampler)
    run(config(TOP), roles=again, states=passed, sampler=sampler)
    assert passed.computed == 2 * 4  # every answer of both steps, once
    none = RlRoles.on(tiny_backbone(), TOP, seed=1)
    run(config(TOP), roles=none, states=FrozenStates(none.policy.backbone.copy()))  # another backbone's: not used
    for other in (again, none):
        same_weights(halves.policy, other.policy)
        same_weights(halves.critic, other.critic)


def test_a_reward_model_on_the_same_trunk_reads_the_states_of_the_sampler():
    roles = RlRoles.on(tiny_backbone(), TOP, seed=1)
    states = FrozenStates(roles.policy.backbone)
    reward = stir(Role.trainable(roles.policy.backbone, "reward", TOP, seed=3, scalar_head=True))
    run(config(TOP), roles=roles, states=states, score=RewardModelScorer(reward, states=states))
    assert states.computed == 0 and states.hits > 0


def test_a_sampler_around_ours_loses_nothing():
    class Wrapped:
        def __init__(self, inner: LocalSampler) -> None:
            self.inner = inner

        def generate(self, prompts, **more):
            return self.inner.generate(prompts, **more)

    settings = config(TOP, shared_critic=True)
    plain, rows = run(settings)
    roles = RlRoles.on(tiny_backbone(), TOP, seed=1, shared_critic=True)
    states = FrozenStates(roles.policy.backbone)
    sampler = Wrapped(LocalSampler(roles.policy.backbone, settings.sampler))
    _, others = run(settings, roles=roles, states=states, sampler=sampler)
    assert states.computed == 0
    same_weights(plain.policy, roles.policy, within=0)
    assert [r["value"] for r in rows] == [r["value"] for r in others]


def test_an_error_leaves_nothing_behind():
    """After a reward function that failed, the same models train as new ones do."""

    def dies(rollouts):
        raise KeyError

    roles = RlRoles.on(tiny_backbone(), TOP, seed=1)
    with pytest.raises(ScoringError):
        run(config(TOP), roles=roles, score=dies)
    assert not any(layer._forward_hooks for layer in roles.policy.backbone.layers)
    again, _ = run(config(TOP), roles=roles)
    fresh, _ = run(config(TOP))
    same_weights(again.policy, fresh.policy, within=0)


@pytest.mark.parametrize("adapter", [LORA, TOP, FULL], ids=["lora", "top", "full"])
def test_values_come_from_the_sampler_where_the_critic_is_on_the_policys_states(adapter, tmp_path: Path):
    settings = config(adapter, shared_critic=True, epochs=2)
    found, rows = run(settings, samples=tmp_path)
    kept = [r for step in (0, 1) for r in read_records(tmp_path / f"step-{step:06d}.jsonl", Rollout)]
    assert all(len(r.values) == len(r.tokens) for r in kept) and any(v != 0.0 for r in kept for v in r.values)
    roles = RlRoles.on(tiny_backbone(), adapter, seed=1, shared_critic=True)
    passed, others = run(settings, roles=roles, sampler=Unrecorded(roles.policy.backbone, settings.sampler))
    same_weights(found.policy, passed.policy)
    same_weights(found.critic, passed.critic)
    for name in ("value", "explained_variance"):
        assert [r[name] for r in rows] == pytest.approx([r[name] for r in others], abs=1e-4)


def test_reference_never_moves():
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1)
    before = {n: p.detach().clone() for n, p in roles.reference.backbone.model.named_parameters() if "lora" not in n}
    run(config(), roles=roles)
    after = dict(roles.reference.backbone.model.named_parameters())
    assert all(torch.equal(p, after[n]) for n, p in before.items())
    assert any(p.abs().max() > 0 for n, p in after.items() if "lora_B.policy" in n)


@pytest.mark.parametrize("minibatches", [1, 3, 4])
def test_every_answer_is_used_once_per_pass(minibatches, monkeypatch: pytest.MonkeyPatch):
    settings = config(steps=1, prompts=4, group=2, epochs=3, minibatches=minibatches)
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1)
    sizes: list[int] = []
    values = roles.critic.values

    def counting(batch, **more):
        if torch.is_grad_enabled():
            sizes.append(batch.size)
        return values(batch, **more)

    monkeypatch.setattr(roles.critic, "values", counting)
    run(settings, roles=roles)
    assert len(sizes) == 3 * minibatches  # nothing was cut into micro-batches
    for epoch in range(3):
        assert sum(sizes[epoch * minibatches : (epoch + 1) * minibatches]) == 8


def test_every_pass_over_the_prompts_sees_each_once():
    asked = prompts(7)
    seen = [p.id for step in range(14) for p in _prompts_of_step(asked, 3, step, seed=0)]
    passes = [seen[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(p) == sorted(q.id for q in asked) for p in passes)
    assert passes[0] != passes[1]
    more = _prompts_of_step(asked[:2], 5, 0, seed=0)  # more prompts in a step than there are
    assert len(more) == 5


# The KL penalty ----------------------------------------------------------------------------------


def test_adaptive_beta_moves_by_the_formula():
    """The target is near what the second step will measure per answer, so that its correction is not the largest."""
    settings = {"steps": 4, "policy": OptimizerConfig(lr=2e-2)}
    _, rows = run(config(kl=KLConfig(coefficient=0.2), **settings))
    target = 1.05 * rows[1]["kl"]
    _, rows = run(config(kl=KLConfig(coefficient=0.2, target=target, horizon=8), **settings))
    beta = 0.2
    for row in rows:
        assert row["beta"] == pytest.approx(beta)
        beta *= 1 + max(-0.2, min(0.2, row["kl"] / target - 1)) * 4 / 8
    assert rows[1]["beta"] == pytest.approx(0.2 * 0.9)  # nothing had moved yet: the largest step down
    assert rows[2]["beta"] == pytest.approx(0.2 * 0.9 * (1 + (1 / 1.05 - 1) / 2), rel=1e-3)


def test_fixed_beta_stays():
    _, rows = run(config(steps=3, kl=KLConfig(coefficient=0.2)))
    assert [row["beta"] for row in rows] == [0.2] * 3


# Reward functions ---------------------------------------------------------------------------


def test_components_are_weighted_and_kept(tmp_path: Path):
    def two(rollouts):
        return {"a": [1.0] * len(rollouts), "b": [float(i) for i in range(len(rollouts))]}

    _, [row] = run(config(steps=1), score=two, weights={"b": 2.0}, samples=tmp_path)
    assert row["reward"] == 1 + 2 * (0 + 1 + 2 + 3) / 4
    assert (row["reward/a"], row["reward/b"]) == (1.0, 1.5)
    kept = read_records(tmp_path / "step-000000.jsonl", Rollout)
    assert [r.rewards for r in kept] == [{"a": 1.0, "b": float(i)} for i in range(4)]


def test_answers_are_kept_with_their_log_probabilities_under_the_reference(tmp_path: Path):
    _, rows = run(config(steps=2), samples=tmp_path)
    first, second = (read_records(tmp_path / f"step-00000{i}.jsonl", Rollout) for i in (0, 1))
    for r in first:  # the policy starts as the reference
        assert r.reference_logprobs == pytest.approx(r.logprobs, abs=1e-4)
    ratios = [sum(r.logprobs) - sum(r.reference_logprobs) for r in second]
    assert sum(ratios) / len(ratios) == pytest.approx(rows[1]["kl"], abs=1e-3) and abs(rows[1]["kl"]) > 1e-3


def test_monitor_is_logged_and_not_trained_on():
    watched, rows = run(config(), monitor=lambda step, rollouts: {"gold": step + float(len(rollouts))})
    plain, _ = run(config())
    assert [row["gold"] for row in rows] == [5.0, 6.0]
    same_weights(watched.policy, plain.policy, within=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_reward_that_is_no_number_names_the_sample(bad):
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1)
    before = roles.policy.state()
    named = []

    def score(rollouts):
        named.append(rollouts[2].id)
        return {"mine": [0.0, 0.0, bad, 0.0]}

    with pytest.raises(NonFiniteError, match=rf"reward 'mine' is {bad} for sample") as error:
        run(config(), score=score, roles=roles)
    assert named[0] in str(error.value)
    after = roles.policy.state()
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"mine": [0.0]}, r"reward 'mine' has 1 values for 4 answers"),
        ([0.0] * 4, r"returned list; expected a dict"),
        (None, r"returned NoneType; expected a dict"),
        ({}, r"expected a dict"),
        ({"mine": 0.0}, r"reward 'mine'.*float"),
        ({"mine": ["good", "bad", "good", "bad"]}, r"reward 'mine'.*'good'"),
        ({"mine": [0.0, None, 0.0, 0.0]}, r"reward 'mine'.*None"),
    ],
)
def test_reward_function_that_returns_something_else(answer, message):
    with pytest.raises(ScoringError, match=message):
        run(config(), score=lambda rollouts: answer)


def test_reward_function_that_raises():
    def score(rollouts):
        raise KeyError("lexicon")

    with pytest.raises(ScoringError, match=r"raised KeyError at step 0: 'lexicon'") as error:
        run(config(), score=score)
    assert isinstance(error.value.__cause__, KeyError)


# Continuing and refusing --------------------------------------------------------------------


def test_answers_of_a_killed_step_are_taken_up(tmp_path: Path):
    straight, _ = run(config(), samples=tmp_path / "a")
    seen = []

    def score(rollouts):
        seen.extend(r.text for r in rollouts)
        return letters(rollouts)

    drawn = read_records(tmp_path / "a" / "step-000000.jsonl", Rollout)
    write_records(tmp_path / "b" / "step-000000.jsonl", drawn)
    (tmp_path / "b" / "step-000001.jsonl").write_text('{"cut in the mid')  # damaged: drawn again
    again, _ = run(config(), score=score, samples=tmp_path / "b")
    assert seen[:4] == [r.text for r in drawn]
    same_weights(straight.policy, again.policy, within=0)


@pytest.mark.parametrize("limit", [32_768, 50])
@pytest.mark.parametrize("kept", [True, False])
def test_killed_step_goes_on_bit_by_bit_with_frozen_layers(kept, limit, tmp_path: Path):
    class Counted(LocalSampler):
        calls = 0

        def generate(self, prompts, **more):
            self.calls += 1
            return super().generate(prompts, **more)

    def start(folder: Path, **more) -> tuple[RlRoles, Counted]:
        roles = RlRoles.on(tiny_backbone(), TOP, seed=1)
        sampler = Counted(roles.policy.backbone, config(TOP).sampler)
        states = FrozenStates(roles.policy.backbone, limit)
        run(config(TOP), roles=roles, samples=folder, sampler=sampler, states=states, **more)
        return roles, sampler

    straight, _ = start(tmp_path / "a")
    assert not list((tmp_path / "a").glob("*.safetensors"))  # used, and deleted

    def dies(rollouts):
        raise KeyError

    with pytest.raises(ScoringError):
        start(tmp_path / "b", score=dies)
    states = tmp_path / "b" / "step-000000.states.safetensors"
    assert (len(load_tensors(states)) < 1 + 4) == (limit == 50)  # and whether the store was full
    if not kept:
        states.unlink()
    again, sampler = start(tmp_path / "b")
    assert sampler.calls == (1 if kept else 2)
    after = again.policy.state()
    assert all(torch.equal(weight, after[name]) for name, weight in straight.policy.state().items())


def test_answers_of_other_weights_are_not_taken_up(tmp_path: Path):
    straight, _ = run(config(), samples=tmp_path / "a")
    first = read_records(tmp_path / "a" / "step-000000.jsonl", Rollout)
    write_records(tmp_path / "b" / "step-000001.jsonl", first)  # right number, wrong prompts and version
    again, _ = run(config(), samples=tmp_path / "b")
    same_weights(straight.policy, again.policy, within=0)
    second, other = (read_records(tmp_path / name / "step-000001.jsonl", Rollout) for name in "ab")
    assert [r.tokens for r in second] == [r.tokens for r in other] != [r.tokens for r in first]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": SamplerConfig(top_p=0.9)}, r"sampler\.top_p is 0\.9.*use top_p: 1\.0"),
        ({"sampler": SamplerConfig(temperature=0.0)}, r"sampler\.temperature is 0"),
        ({"minibatches": 5, "prompts": 4, "group": 2}, r"minibatches is 5 but a rollout batch has 4 prompts"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        run(config(**settings))


def test_no_prompts():
    with pytest.raises(ConfigError, match="there are no prompts to align on"):
        check_rl(config(), 0)


# Methods without a critic -------------------------------------------------------------------

GROUPS: list[GroupConfig] = [
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


def group_loss_by_hand(settings: GroupConfig, rollouts: list[Rollout], old: list, ref: list) -> tuple[float, float]:
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
    assert ("flat_groups" in rows[0]) == (group > 1)
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
    kept = weighed(importance_cap=1.5, importance_beyond="mask", importance_floor=1.2)
    assert kept["policy_loss"] == pytest.approx(other["policy_loss"]) and kept["importance_masked"] == 0.0
    # An answer of n tokens weighs e^(0.3·n): those of all six tokens are beyond the cap.
    answers = weighed(
        importance_cap=math.exp(0.3 * 5.5), importance_level="sequence", importance_beyond="mask", samples=tmp_path
    )
    lengths = [len(r.tokens) for r in read_records(tmp_path / "step-000000.jsonl", Rollout)]
    assert answers["importance_masked"] == pytest.approx(6 * lengths.count(6) / sum(lengths)) and 6 in lengths
    all_kept = weighed(importance_cap=7.0, importance_level="sequence", importance_beyond="mask")
    assert all_kept["importance_masked"] == 0.0


def test_entropy_bonus_keeps_the_policy_more_uncertain():
    quiet = {"score": lambda rollouts: {"none": [0.0] * len(rollouts)}}
    settings = {"steps": 12, "kl": KLConfig(coefficient=0.0), "missing_eos": None, "whiten_advantages": False}
    plain, bonus = run(config(**settings), **quiet)[1], run(config(entropy_bonus=0.5, **settings), **quiet)[1]
    assert plain[-1]["entropy"] < bonus[-1]["entropy"] - 0.1


def test_ppo_without_a_critic_is_refused():
    with pytest.raises(ConfigError, match="'ppo' needs a critic"):
        run(config(), roles=RlRoles.on(tiny_backbone(), LORA, seed=1, critic=False))


def test_adaptive_kl_that_could_not_work_is_refused():
    with pytest.raises(ConfigError, match=r"raise kl\.horizon above 0\.8"):
        check_rl(config(kl=KLConfig(target=1.0, horizon=0.5)), 3)
    with pytest.raises(ConfigError, match="start above 0"):
        check_rl(config(kl=KLConfig(target=1.0, coefficient=0.0)), 3)
