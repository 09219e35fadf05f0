"""A run that falls apart is stopped, says why, and its last good weights are there."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from trimtab.errors import CollapseError, ConfigError, Interrupted
from trimtab.models import AdapterConfig, Role, load_tensors
from trimtab.records import Rollout
from trimtab.rollout import SamplerConfig
from trimtab.testing import chat_messages, prompts, sentences, tiny_backbone
from trimtab.trainers import (
    Checkpoints,
    Fall,
    GuardConfig,
    OptimizerConfig,
    RejectionConfig,
    RlooConfig,
    RlRoles,
    Session,
    SftConfig,
    train_rl,
    train_sft,
)
from trimtab.trainers.guard import Guard

HEALTHY = {"ended": 0.9, "reward": 1.0, "reward_std": 2.0, "kl": 0.0, "length": 10.0}
"""With the default limits: 45 % of answers must end, the reward must stay at −2 or above, and KL at 30 nats or below
where it has not risen."""


def reasons(changes: Sequence[dict], *, config: GuardConfig | None = None, **settings) -> list[str | None]:
    """The verdict on every step: a healthy first one, then one for each change."""
    guard = Guard(config or GuardConfig(), **({"answers": 64, "penalised": True} | settings))
    return [guard.check(HEALTHY | change) for change in [{}, *changes]]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"ended": 0.44}, "fewer than 45% of answers end their turn (ended by step, the last 3: 0.9, 0.44, 0.44)"),
        ({"reward": -2.01}, "the mean reward is below -2, 1.5 standard deviations under the first step's"),
        (
            {"kl": 30.1},
            "above 3 nats per token and the mean reward has not risen (kl by step, the last 3: 0, 3.01, 3.01)",
        ),
    ],
)
def test_one_limit_passed_twice_in_a_row(bad, reason):
    first, once, twice = reasons([bad, bad])
    assert first is once is None and twice is not None and reason in twice
    assert reasons([bad, {}, bad, {}]) == [None] * 5  # not in a row


def test_a_constrained_run_may_give_up_reward_for_its_limit():
    """Reward falls by half a standard deviation a step while the cost falls towards its limit: no collapse."""
    steps = [
        {"ended": 1.0, "reward": 1.0 - 0.15 * s, "reward_std": 0.3, "kl": 70.0 * s, "length": 20.0}
        | {"reward/harm": 2.0 - 0.1 * s}
        for s in range(12)
    ]
    constrained = Guard(GuardConfig(), answers=64, penalised=False, cost="harm")
    assert [constrained.check(step) for step in steps] == [None] * 12
    free = Guard(GuardConfig(), answers=64, penalised=False)
    assert any(free.check(step) for step in steps)


def test_a_constrained_run_that_gains_nothing_still_falls():
    guard = Guard(GuardConfig(), answers=64, penalised=False, cost="harm")
    first = {"ended": 1.0, "reward": 1.0, "reward_std": 0.3, "kl": 0.0, "length": 20.0, "reward/harm": 2.0}
    far = first | {"kl": 70.0, "reward": -1.0, "reward/harm": 2.5}
    verdicts = [guard.check(first), guard.check(far), guard.check(far)]
    assert verdicts[:2] == [None, None]
    assert verdicts[2] is not None and "the mean reward has not risen, nor has the cost fallen" in verdicts[2]


@pytest.mark.parametrize(
    "fine",
    [
        {"ended": 0.46},
        {"reward": -1.99},
        {"kl": 29.9},
        {"kl": 50.0, "length": 20.0},  # 2.5 nats per token
        {"kl": 100.0, "reward": 1.1},  # far, and for a gain
        {"reward": 100.0, "kl": 300.0, "entropy": 0.0, "distinct": 0.02},  # everything on one answer
    ],
)
def test_limits_not_passed(fine):
    assert reasons([fine] * 5) == [None] * 6


def test_different_limits_in_turn_are_no_fall():
    assert reasons([{"ended": 0.1}, {"reward": -9.0}, {"ended": 0.1}]) == [None] * 4


def test_what_is_not_judged():
    cut = {"ended": 0.0}
    assert reasons([cut, cut], penalised=False) == [None] * 3  # nobody minds answers that are cut
    assert reasons([cut, cut], answers=15) == [None] * 3  # too few to tell
    assert reasons([cut, cut], config=GuardConfig(ended=None)) == [None] * 3
    guard = Guard(GuardConfig(steps=1), answers=64, penalised=True)
    start = HEALTHY | {"ended": 0.5, "reward_std": 0.0}  # half were cut from the start, and all scored the same
    assert guard.check(start) is None and guard.check(start | {"ended": 0.0, "reward": -9.0}) is None
    off = Guard(None, answers=64, penalised=True)
    assert off.check(HEALTHY) is None and off.check(HEALTHY | cut) is None


def test_good_weights_are_those_that_drew_a_healthy_step():
    """Step s + 1 is drawn by the weights after s steps; the third and the fifth step are bad here."""
    guard = Guard(GuardConfig(), answers=64, penalised=True)
    for ended in (0.9, 0.9, 0.1, 0.9, 0.1):
        guard.check(HEALTHY | {"ended": ended})
    assert guard.good == [0, 1, 3]
    again = Guard(GuardConfig(), answers=64, penalised=True)
    again.load_state_dict(guard.state_dict())
    assert again.good == guard.good and again.check(HEALTHY | {"ended": 0.1})


# Whole runs ---------------------------------------------------------------------------------


def config(kind=RlooConfig, **settings):
    base = {
        "adapter": AdapterConfig(rank=4, alpha=8), "steps": 8, "prompts": 8, "group": 2,
        "sampler": SamplerConfig(max_new_tokens=6, slots=16),
        "policy": OptimizerConfig(lr=1e-3, schedule="constant", warmup=0.0),
    }  # fmt: skip
    return kind(**(base | settings))


def falls(start: int) -> Callable[[Sequence[Rollout]], dict[str, list[float]]]:
    """Rewards that are 100 lower from step ``start`` (from 1) on."""
    calls = [0]

    def score(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        calls[0] += 1
        drop = 100.0 if calls[0] >= start else 0.0
        return {"tokens": [sum(r.tokens) % 5 - drop for r in rollouts]}

    return score


def run(settings, folder: Path, score, *, every: int = 1, stop_after: int | None = None):
    roles = RlRoles.on(tiny_backbone(), settings.adapter, seed=1, critic=False)
    rows: list[dict] = []
    weights: list[dict] = [roles.policy.state()]

    def log(row: dict) -> None:
        rows.append(row)
        weights.append(roles.policy.state())

    session = Session(
        log=log,
        checkpoints=Checkpoints(folder / "checkpoints", "same", every=every),
        stop_requested=lambda: stop_after is not None and rows[-1]["step"] == stop_after,
    )
    fall = train_rl(roles, prompts(9), score, settings, seed=2, session=session)
    return fall, roles, weights


@pytest.mark.parametrize("kind", [RlooConfig, RejectionConfig])
def test_the_last_good_checkpoint_is_named_and_kept(kind, tmp_path: Path):
    """Step 5 is the first bad one, so the weights after 4 steps are bad and those after 3 are the last good ones."""
    with pytest.raises(CollapseError, match="noticed at step 6: the mean reward is below") as error:
        run(config(kind), tmp_path, falls(5))
    assert str(tmp_path / "checkpoints" / "step-000003") in str(error.value)
    assert "lower policy.lr (now 0.001)" in str(error.value)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-000003", "step-000004", "step-000005",
    ]  # fmt: skip


def test_patience_longer_than_the_checkpoints_that_are_kept(tmp_path: Path):
    with pytest.raises(CollapseError, match="noticed at step 8"):
        run(config(guard=GuardConfig(steps=4)), tmp_path, falls(5))
    assert (tmp_path / "checkpoints" / "step-000003" / "policy.safetensors").exists()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_without_a_checkpoint_the_message_says_so(tmp_path: Path):
    with pytest.raises(CollapseError, match="No checkpoint was written before that"):
        run(config(), tmp_path, falls(3), every=100)


@pytest.mark.parametrize(("every", "good"), [(1, 3), (2, 2), (100, 0)])
def test_keep_ends_with_the_last_good_weights(every: int, good: int, tmp_path: Path):
    settings = config(guard=GuardConfig(on_fall="keep"))
    fall, roles, weights = run(settings, tmp_path, falls(5), every=every)
    assert isinstance(fall, Fall) and (fall.step, fall.good) == (6, good)
    assert all(torch.equal(value, weights[good][name]) for name, value in roles.policy.state().items())
    assert load_tensors(tmp_path / "checkpoints" / f"step-{good:06d}" / "policy.safetensors").keys()


def test_keep_needs_checkpoints():
    roles = RlRoles.on(tiny_backbone(), AdapterConfig(), seed=1, critic=False)
    with pytest.raises(ConfigError, match=r"guard\.on_fall is 'keep', which needs checkpoints"):
        train_rl(roles, prompts(9), falls(9), config(guard=GuardConfig(on_fall="keep")), seed=0)


def test_stopped_between_two_bad_steps_and_continued(tmp_path: Path):
    messages = []
    with pytest.raises(CollapseError) as straight:
        run(config(), tmp_path / "straight", falls(5))
    with pytest.raises(Interrupted):
        run(config(), tmp_path / "pieces", falls(5), stop_after=5)
    with pytest.raises(CollapseError) as pieces:
        run(config(), tmp_path / "pieces", falls(1))  # a new process counts its calls anew
    for error in (straight, pieces):
        messages.append(re.sub(r"\S*/checkpoints/", "", str(error.value)))
    assert messages[0] == messages[1]


def spoken_backbone():
    """A tiny model that has learnt to answer in three words and to end its turn."""
    backbone = tiny_backbone()
    role = Role(backbone, full=True)
    questions, answers = prompts(24), sentences(24, words=3)
    learnt = [backbone.chat.conversation(chat_messages(p.text, a)) for p, a in zip(questions, answers, strict=True)]
    train_sft(role, learnt, SftConfig(batch=8, epochs=10, optimizer=OptimizerConfig(lr=1e-2, warmup=0.0)), seed=0)
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(False)
    return backbone


@pytest.mark.parametrize(("lr", "stopped"), [(1e-3, False), (0.3, True)])
def test_a_policy_that_really_falls_apart_is_stopped(lr: float, stopped: bool):
    """A real fall: only the learning rate differs."""
    settings = config(
        adapter=AdapterConfig(kind="full"), prompts=9, group=4, sampler=SamplerConfig(max_new_tokens=24, slots=36),
        policy=OptimizerConfig(lr=lr, schedule="constant", warmup=0.0),
    )  # fmt: skip
    roles = RlRoles.on(spoken_backbone(), settings.adapter, seed=1, critic=False)

    def vowels(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        return {"vowels": [sum(c in "aeiou" for c in r.text) / max(len(r.text), 1) for r in rollouts]}

    if not stopped:
        assert train_rl(roles, prompts(9), vowels, settings, seed=2) is None
        return
    with pytest.raises(CollapseError, match="alignment fell apart, noticed at step"):
        train_rl(roles, prompts(9), vowels, settings, seed=2)
