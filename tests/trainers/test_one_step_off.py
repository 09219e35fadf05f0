"""Answers drawn one step ahead: with which weights, continued from a checkpoint, and drawn elsewhere."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.rl_kit import LORA, STEADY, config, letters
from trimtab.conformance.rl_experiments import BANDIT, bandit
from trimtab.conformance.tables import BETA, gibbs, kl, settings, train_table
from trimtab.errors import CheckpointError, ConfigError, EngineError, Interrupted
from trimtab.models import Role
from trimtab.records import Prompt, Rollout
from trimtab.rollout import LocalSampler
from trimtab.testing import prompts, tiny_backbone
from trimtab.trainers import Checkpoints, DapoConfig, KLConfig, RlooConfig, RlRoles, Session, check_rl, train_rl

AHEAD: dict[str, Any] = {"steps": 4, "epochs": 2, "one_step_off": True}


class Drawn:
    """A sampler that notes with which weights each step's answers are drawn; in the background if asked to."""

    def __init__(self, policy: Role) -> None:
        self.policy, self.sampler = policy, LocalSampler(policy.backbone, config().sampler)
        self.versions: list[int] = []
        self.weights: list[float] = []

    def generate(self, prompts: Sequence[Prompt], *, weight_version: int, **arguments: Any) -> list[Rollout]:
        self.versions.append(weight_version)
        self.weights.append(sum(float(p.abs().sum()) for p in self.policy.parameters().values()))
        return self.sampler.generate(prompts, weight_version=weight_version, **arguments)


class Background(Drawn):
    def start(self, prompts: Sequence[Prompt], **arguments: Any) -> Callable[[], list[Rollout]]:
        rollouts = self.generate(prompts, **arguments)
        return lambda: rollouts


def trained(
    kind: type = Drawn, folder: Path | None = None, stop_after: int = 9, **more: Any
) -> tuple[Role, Drawn, list[dict]]:
    """Policy, sampler and metrics of a run of four steps, or of the part of it until so many are done."""
    method = config(**AHEAD | more)
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1)
    rows: list[dict] = []
    session = Session(
        log=rows.append,
        checkpoints=None if folder is None else Checkpoints(folder / "checkpoints", "f", every=1),
        stop_requested=lambda: rows[-1]["step"] >= stop_after,
    )
    sampler = kind(roles.policy)
    try:
        train_rl(
            roles, prompts(9), letters, method, seed=2, session=session, sampler=sampler,
            samples=None if folder is None else folder / "samples",
        )  # fmt: skip
    except Interrupted:
        pass
    return roles.policy, sampler, rows


def apart(one: Role, other: Role) -> float:
    a, b = one.state(), other.state()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_answers_come_from_the_weights_before_the_last_update():
    policy, sampler, rows = trained()
    assert sampler.versions == [0, 0, 2, 4]  # two updates in each step
    assert sampler.weights[0] == sampler.weights[1] < sampler.weights[2]
    assert [row["policy_lag"] for row in rows] == [0.0, 2.0, 2.0, 2.0]
    assert rows[0]["mismatch"] < 1e-4 < rows[1]["mismatch"]  # the trainer's weights are newer
    assert all("seconds/wait" in row for row in rows)
    elsewhere, other, _ = trained(Background)
    assert apart(policy, elsewhere) == 0.0 and other.versions == sampler.versions
    usual, sampler, rows = trained(one_step_off=False)
    assert sampler.versions == [0, 2, 4, 6] and "policy_lag" not in rows[0] and apart(policy, usual) > 0


def test_a_run_that_is_continued_uses_the_answers_that_were_drawn_before(tmp_path: Path):
    whole, _, all_rows = trained(folder=tmp_path / "whole")
    trained(folder=tmp_path / "parts", stop_after=2)
    policy, sampler, rows = trained(folder=tmp_path / "parts")
    assert sampler.versions == [4]  # those of the third step were on disk
    assert apart(whole, policy) == 0.0
    assert [row["policy_lag"] for row in rows] == [2.0, 2.0]
    keys = [key for key in rows[0] if not key.startswith("seconds/")]
    assert [[row[key] for key in keys] for row in rows] == [[row[key] for key in keys] for row in all_rows[2:]]


def test_answers_that_are_missing_or_of_other_weights_are_refused(tmp_path: Path):
    trained(folder=tmp_path, stop_after=2)
    (tmp_path / "samples" / "step-000002.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"step-000002\.jsonl is missing.*weight version 2; .*cannot be drawn"):
        trained(folder=tmp_path)

    class Stale(Drawn):
        def generate(self, prompts: Sequence[Prompt], *, weight_version: int, **arguments: Any) -> list[Rollout]:
            return super().generate(prompts, weight_version=0, **arguments)

    for ahead, step in (True, 3), (False, 2):
        message = rf"4 of 4 answers of step {step} were drawn with weights of version 0 .* version 2 was asked for"
        with pytest.raises(EngineError, match=message):
            trained(Stale, one_step_off=ahead)


def test_replaced_groups_would_be_of_other_weights():
    with pytest.raises(ConfigError, match=r"one_step_off is true and resample is 3.*resample: 0"):
        check_rl(DapoConfig(one_step_off=True, policy=STEADY), 100)


@pytest.mark.slow
def test_the_optimum_of_a_bandit_is_reached():
    """Within the tolerance of the conformance table for answers of the newest weights."""
    for seed in range(3):
        ref, reward = bandit(seed)
        method = settings(RlooConfig, steps=1500, lr=0.05, kl=KLConfig(coefficient=BETA), one_step_off=True)
        policy: Any = train_table(BANDIT, ref[None], reward, method, seed=seed).policy
        end = torch.log_softmax(policy.logits[0].detach(), 0)
        assert kl(end, gibbs(ref, reward, BETA)) <= 1e-3
