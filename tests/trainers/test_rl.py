"""One whole PPO step recomputed from Hugging Face's logits, and everything a reward function may do wrong."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trimtab.errors import ConfigError, NonFiniteError, ScoringError
from trimtab.models import Backbone, Role
from trimtab.records import Prompt, Rollout, read_records
from trimtab.rollout import SamplerConfig
from trimtab.testing import tiny_backbone
from trimtab.trainers import (
    KLConfig,
    MissingEosConfig,
    OptimizerConfig,
    RlRoles,
    Session,
    check_rl,
    train_rl,
)

from ..kit import same_weights, stir
from .rl_kit import FULL, LORA, TOP, answer_logprobs, config, letters, run

# One step by hand ---------------------------------------------------------------------------


def gae_by_hand(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Σ_k (γλ)^k δ_{t+k}: the sum written out, not the recursion."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


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
    questions = [Prompt.from_text("tea"), Prompt.from_text("tea and " * 40 + "tea")]
    rows: list[dict] = []
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1)
    train_rl(roles, questions, letters, config(steps=2, prompts=2, micro_batch_tokens=16), seed=2,
             session=Session(log=rows.append))  # fmt: skip
    assert len(rows) == 2 and all(math.isfinite(r["policy_loss"]) for r in rows)


# The KL penalty -----------------------------------------------------------------------------


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
    saved = read_records(tmp_path / "step-000000.jsonl", Rollout)
    assert [r.rewards for r in saved] == [{"a": 1.0, "b": float(i)} for i in range(4)]


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
