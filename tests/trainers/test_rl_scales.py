"""Several rewards, a cost with a limit, a running scale, and what the critic may have of its own: by hand."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trimtab.errors import ConfigError
from trimtab.models import AdapterConfig
from trimtab.records import Rollout, read_records
from trimtab.rollout import SamplerConfig
from trimtab.testing import prompts, tiny_backbone
from trimtab.trainers import (
    Checkpoints,
    ConstraintConfig,
    GdpoConfig,
    GrpoConfig,
    KLConfig,
    MissingEosConfig,
    OptimizerConfig,
    PpoConfig,
    ReinforcePpBaselineConfig,
    RlConfig,
    RlooConfig,
    RlRoles,
    Session,
    check_rl,
    train_rl,
)
from trimtab.trainers.methods import ONLINE

from ..kit import stir

LORA = AdapterConfig(rank=4, alpha=8)
STEADY = OptimizerConfig(lr=3e-3, schedule="constant", warmup=0.0)
NONE = KLConfig(coefficient=0.0)
SHORT = {
    "adapter": LORA, "steps": 1, "prompts": 3, "policy": STEADY, "sampler": SamplerConfig(max_new_tokens=6, slots=5),
    "missing_eos": None,
}  # fmt: skip


def two(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    """A small reward and a cost a hundred times as large."""
    return {
        "letters": [sum(c in "aeiou" for c in r.text) + 0.01 * sum(r.tokens) for r in rollouts],
        "cost": [100.0 * (sum(r.tokens) % 5) for r in rollouts],
    }


def run(settings: RlConfig, *, roles: RlRoles | None = None, **more) -> tuple[RlRoles, list[dict]]:
    if roles is None:
        roles = RlRoles.on(tiny_backbone(), LORA, seed=1, critic=isinstance(settings, PpoConfig))
        stir(roles.policy, scale=0.05, seed=1)
    rows: list[dict] = []
    session = Session(log=rows.append, checkpoints=more.pop("checkpoints", None))
    train_rl(roles, prompts(9), more.pop("score", two), settings, seed=2, session=session, **more)
    return roles, rows


def test_gdpo_first_step_by_hand(tmp_path: Path):
    settings = GdpoConfig(group=4, **SHORT, kl=KLConfig(coefficient=0.0, place="loss"))
    _, [row] = run(settings, samples=tmp_path, weights={"letters": 1.0, "cost": -0.5})
    rollouts = read_records(tmp_path / "step-000000.jsonl", Rollout)
    sums = [0.0] * len(rollouts)
    for name, weight in (("letters", 1.0), ("cost", -0.5)):
        for start in range(0, len(rollouts), 4):
            own = [r.rewards[name] for r in rollouts[start : start + 4]]
            spread = statistics.stdev(own)
            for i, value in enumerate(own):
                sums[start + i] += weight * (value - statistics.mean(own)) / (spread + 1e-6)
    scale = math.sqrt(statistics.pvariance(sums) + 1e-8)
    advantages = [(s - statistics.mean(sums)) / scale for s in sums]
    assert row["policy_loss"] == pytest.approx(-sum(advantages) / len(advantages), abs=1e-4)
    assert row["reward"] == pytest.approx(row["reward/letters"] - 0.5 * row["reward/cost"])


def test_the_advantages_of_gdpo_are_constant_over_an_answer(monkeypatch: pytest.MonkeyPatch):
    seen = {}
    row = ONLINE["gdpo"]

    def watch(config, rewards, weights, mask):
        seen["advantages"], seen["mask"] = row.component_advantages(config, rewards, weights, mask), mask
        return seen["advantages"]

    monkeypatch.setitem(ONLINE, "gdpo", replace(row, component_advantages=watch))
    run(GdpoConfig(group=4, **SHORT))
    spread = [a[m].std(unbiased=False) for a, m in zip(seen["advantages"], seen["mask"], strict=True)]
    assert max(spread) < 1e-6 and seen["advantages"].abs().max() > 0.5


def test_the_price_of_a_cost_follows_its_limit_and_is_saved(tmp_path: Path):
    """λ: 1, then + ½·(mean cost − 150)/100 of each step; a run in two parts has the same prices."""
    limit = ConstraintConfig(reward="cost", limit=150.0, initial=1.0, lr=0.005)
    settings = RlooConfig(group=2, constraint=limit, **(SHORT | {"steps": 4}), kl=NONE)
    _, rows = run(settings)
    price = 1.0
    for row in rows:
        assert row["multiplier"] == pytest.approx(price)
        assert row["reward"] == pytest.approx(row["reward/letters"])  # shown without the cost
        price = max(0.0, price + 0.005 * (row["reward/cost"] - 150.0))
    checkpoints = Checkpoints(tmp_path / "c", "x", every=1)
    halted: list[dict] = []
    stop = Session(log=halted.append, checkpoints=checkpoints, stop_requested=lambda: len(halted) == 2)
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1, critic=False)
    stir(roles.policy, scale=0.05, seed=1)
    with pytest.raises(BaseException, match="stopped after step 2"):
        train_rl(roles, prompts(9), two, settings, seed=2, session=stop)
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1, critic=False)
    stir(roles.policy, scale=0.05, seed=1)
    _, later = run(settings, roles=roles, checkpoints=checkpoints)
    assert [r["multiplier"] for r in halted + later] == [r["multiplier"] for r in rows]


def test_a_price_weighs_the_cost_against_the_reward():
    """With λ fixed at .02 the step is that of weights 1 and −.02."""
    limit = ConstraintConfig(reward="cost", limit=150.0, initial=0.02, lr=1e-9)
    plain = run(RlooConfig(group=2, **SHORT, kl=NONE), weights={"cost": -0.02})[1][0]
    priced = run(RlooConfig(group=2, constraint=limit, **SHORT, kl=NONE))[1][0]
    assert priced["policy_loss"] == pytest.approx(plain["policy_loss"], rel=1e-6)
    with pytest.raises(ConfigError, match=r"constraint\.reward is 'harm', but the rewards are cost, letters"):
        run(RlooConfig(group=2, constraint=ConstraintConfig(reward="harm", limit=0.0), **SHORT))


def test_a_running_scale_divides_scores_and_is_saved(tmp_path: Path):
    base = SHORT | {"steps": 3, "kl": NONE}
    both = (False, True)
    plain, scaled = (run(RlooConfig(group=2, running_scale=x, **base), samples=tmp_path / str(x))[1] for x in both)
    totals = [sum(r.rewards.values()) for r in read_records(tmp_path / "True" / "step-000000.jsonl", Rollout)]
    assert scaled[0]["reward_scale"] == pytest.approx(statistics.pstdev(totals), rel=1e-5)
    step = plain[0]["policy_grad_norm"] / scaled[0]["reward_scale"]
    assert step > 1e-3 and scaled[0]["policy_grad_norm"] == pytest.approx(step, rel=1e-3)
    assert scaled[0]["reward"] == pytest.approx(plain[0]["reward"])  # what is shown keeps its units
    for number in (1, 2):
        totals += [
            sum(r.rewards.values()) for r in read_records(tmp_path / "True" / f"step-{number:06d}.jsonl", Rollout)
        ]
    assert scaled[2]["reward_scale"] == pytest.approx(statistics.pstdev(totals), rel=1e-5)


def test_the_critic_learns_first_and_the_policy_waits():
    settings = PpoConfig(critic_warmup=2, **(SHORT | {"steps": 3, "epochs": 1, "critic": STEADY}))
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1)
    before, values, after = roles.policy.state(), roles.critic.state(), []
    rows: list[dict] = []

    def log(row: dict) -> None:
        rows.append(row)
        after.append({name: x.clone() for name, x in roles.policy.state().items()})

    train_rl(roles, prompts(9), two, settings, seed=2, session=Session(log=log))
    assert [row["updates"] for row in rows] == [0, 0, 1]
    assert all(torch.equal(after[1][name], before[name]) for name in before)
    assert any(not torch.equal(after[2][name], before[name]) for name in before)
    assert any(not torch.equal(x, values[name]) for name, x in roles.critic.state().items())
    assert all(row["value_loss"] > 0 for row in rows) and "policy_loss" not in rows[0]
    assert rows[1]["kl"] == pytest.approx(0.0, abs=1e-3)


def test_the_critic_has_returns_of_its_own():
    """λ = 1 for the critic: returns are the rewards still to come; the policy's advantages keep their λ."""
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values, mask = torch.tensor([[0.2, 0.4, 0.5]]), torch.ones(1, 3, dtype=torch.bool)
    settings = PpoConfig(lam=0.5, critic_lam=1.0, whiten_advantages=False)
    advantages, returns = ONLINE["ppo"].advantages(settings, rewards, values, mask)
    assert advantages[0].tolist() == pytest.approx([0.375, 0.35, 0.5])
    assert returns[0].tolist() == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (GdpoConfig(score_clip=5.0), "score_clip is set and method 'gdpo' normalises each reward by itself"),
        (GdpoConfig(missing_eos=MissingEosConfig()), "missing_eos is set and method 'gdpo'"),
        (GdpoConfig(kl=KLConfig(coefficient=0.1)), "gdpo divides rewards by their standard deviation"),
        (
            RlooConfig(score_clip=1.0, constraint=ConstraintConfig(reward="cost", limit=0.1)),
            "score_clip is 1 and constraint is set",
        ),
        (
            ReinforcePpBaselineConfig(running_scale=True, missing_eos=None),
            "running_scale is true and reinforce_pp_baseline divides advantages by their deviation over the batch",
        ),
        (GrpoConfig(running_scale=True), "running_scale is true and grpo divides by the group's standard deviation"),
        (PpoConfig(critic_warmup=50, steps=50), "critic_warmup is 50 of 50 steps"),
        (PpoConfig(critic_warmup=1, shared_critic=True), "critic_warmup is 1 and shared_critic is true"),
        (
            PpoConfig(constraint=ConstraintConfig(reward="c", limit=0.0, initial=2.0, largest=1.0)),
            r"constraint\.initial is 2 and constraint\.largest 1",
        ),
    ],
)
def test_settings_that_contradict(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_rl(settings, 3)


def test_price_and_beta_stand_still_while_the_critic_warms_up():
    """Two warm-up steps, then one: only the last may move λ and β for the step after it."""
    settings = PpoConfig(
        **SHORT | {"steps": 4},
        critic=STEADY,
        critic_warmup=2,
        guard=None,
        kl=KLConfig(coefficient=0.05, target=6.0, horizon=100),
        constraint=ConstraintConfig(reward="cost", limit=1.0),
    )
    _, rows = run(settings)
    assert [row["multiplier"] for row in rows[:3]] == [1.0] * 3 and rows[3]["multiplier"] != 1.0
    assert [row["beta"] for row in rows[:3]] == [0.05] * 3 and rows[3]["beta"] != 0.05
