"""Checkpoints: whole or absent, and never somebody else's."""

import json
from pathlib import Path

import pytest
import torch

from trimtab.errors import CheckpointError, StorageError
from trimtab.models import AdapterConfig, Role, load_tensors, save_tensors
from trimtab.testing import tiny_backbone
from trimtab.trainers import Checkpoints, Learner, OptimizerConfig, seed_step, step_seed

from ..kit import stir


def learner(rank: int = 2) -> Learner:
    role = Role.trainable(tiny_backbone(layers=1), "policy", AdapterConfig(rank=rank), seed=0)
    return Learner(role, OptimizerConfig(lr=1e-4), 10)


def test_seeds_of_steps_are_the_same_on_every_machine():
    # The first 7 bytes of SHA-256 of "0|sft|0", as `printf '0|sft|0' | sha256sum` prints them.
    assert step_seed(0, "sft", 0) == 0x213903608CCDAD
    values = {step_seed(s, stage, i) for s in (0, 1) for stage in ("sft", "align") for i in range(100)}
    assert len(values) == 400
    seed_step(0, "sft", 3)
    first = torch.rand(3)
    seed_step(0, "sft", 3)
    assert torch.equal(torch.rand(3), first)


def test_newest_is_restored_and_old_ones_go(tmp_path: Path):
    one = learner()
    checkpoints = Checkpoints(tmp_path / "c", "print", every=3, keep=2)
    assert checkpoints.restore({"policy": one}) == (0, {})
    assert [step for step in range(1, 10) if checkpoints.due(step)] == [3, 6, 9]
    for step in (3, 6, 9):
        stir(one.role, seed=step)
        checkpoints.save(step, {"policy": one}, {"kl": {"value": step / 10}})
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["step-000006", "step-000009"]
    other = learner()
    assert Checkpoints(tmp_path / "c", "print").restore({"policy": other}) == (9, {"kl": {"value": 0.9}})
    own_state, other_state = one.role.state(), other.role.state()
    assert all(torch.equal(own_state[n], other_state[n]) for n in own_state)


def test_only_safetensors_and_json_are_written(tmp_path: Path):
    folder = Checkpoints(tmp_path, "print").save(1, {"policy": learner()})
    assert {p.name for p in folder.iterdir()} == {
        "policy.safetensors", "policy.optimizer.safetensors", "state.json",
    }  # fmt: skip


def test_other_settings(tmp_path: Path):
    Checkpoints(tmp_path, "a" * 64).save(1, {"policy": learner()})
    with pytest.raises(CheckpointError, match=r"step-000001 was made under another.*aaaaaaaaaaaa.*bbbbbbbbbbbb"):
        Checkpoints(tmp_path, "b" * 64).restore({"policy": learner()})


@pytest.mark.parametrize("file", ["state.json", "policy.safetensors", "policy.optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damage_is_named(file, damage, tmp_path: Path):
    target = Checkpoints(tmp_path, "print").save(1, {"policy": learner()}) / file
    if damage == "gone":
        target.unlink()
    else:
        target.write_bytes(target.read_bytes()[:30])
    with pytest.raises(CheckpointError, match=r"step-000001.*delete .* and run again"):
        Checkpoints(tmp_path, "print").restore({"policy": learner()})


@pytest.mark.parametrize("state", [[1], {"step": 1}, {"step": "x", "fingerprint": "print", "extra": {}}])
def test_a_state_without_its_fields(state, tmp_path: Path):
    (Checkpoints(tmp_path, "print").save(1, {"policy": learner()}) / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"state\.json (is damaged|lacks).*delete .* and run again"):
        Checkpoints(tmp_path, "print").restore({"policy": learner()})


def test_weights_of_another_shape(tmp_path: Path):
    Checkpoints(tmp_path, "print").save(1, {"policy": learner(rank=2)})
    with pytest.raises(CheckpointError, match=r"policy\.safetensors: weights do not fit"):
        Checkpoints(tmp_path, "print").restore({"policy": learner(rank=3)})


def test_leftovers_of_a_killed_save_are_not_checkpoints(tmp_path: Path):
    Checkpoints(tmp_path, "print").save(1, {"policy": learner()})
    (tmp_path / ".step-000002.77.tmp").mkdir()
    (tmp_path / "notes").mkdir()
    assert Checkpoints(tmp_path, "print").restore({"policy": learner()})[0] == 1


def test_state_says_what_it_belongs_to(tmp_path: Path):
    folder = Checkpoints(tmp_path, "print").save(4, {"policy": learner()}, {"kl": {"value": 0.1}})
    state = json.loads((folder / "state.json").read_text())
    assert state == {"step": 4, "fingerprint": "print", "extra": {"kl": {"value": 0.1}}}


def test_tensors_that_cannot_be_written_or_read(tmp_path: Path):
    with pytest.raises(StorageError, match=r"cannot be written.*run the same command"):
        save_tensors(tmp_path / "nowhere" / "weights.safetensors", {"a": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="damaged or missing"):
        load_tensors(tmp_path / "weights.safetensors")
