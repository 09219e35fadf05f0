"""States of frozen layers in the stages that only sample."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trimtab.models import AdapterConfig, FrozenStates, Role
from trimtab.pipeline.evaluation import kl_per_answer
from trimtab.pipeline.labelling import sample_in_chunks
from trimtab.pipeline.ui import Silent
from trimtab.records import Rollout
from trimtab.rollout import LocalSampler, SamplerConfig, remove_states
from trimtab.testing import prompts, tiny_backbone
from trimtab.trainers import ALONE

from ..kit import stir

CONFIG = SamplerConfig(max_new_tokens=8, slots=4)


def top(seed: int = 1) -> Role:
    return stir(Role.trainable(tiny_backbone(), "policy", AdapterConfig(rank=4, alpha=8, top_layers=1), seed=seed))


def test_kl_on_the_samplers_states_is_the_one_without():
    policy = top()
    states, reference = FrozenStates(policy.backbone), Role(policy.backbone)
    rollouts = LocalSampler(policy.backbone, CONFIG).generate(
        prompts(5), adapter="policy", seed=0, group=2, states=states
    )
    sampled = kl_per_answer(reference, rollouts, 1.0, states=states)
    assert states.computed == 0 and states.hits == len(rollouts)
    computed = kl_per_answer(reference, rollouts, 1.0, states=FrozenStates(policy.backbone))
    whole = kl_per_answer(reference, rollouts, 1.0)
    assert sampled == pytest.approx(whole, abs=1e-4) and computed == pytest.approx(whole, abs=1e-4)
    assert max(map(abs, whole)) > 0.01


def sampled(folder: Path, policy: Role, states: FrozenStates | None = None, count: int = 12) -> list[Rollout]:
    surroundings: Any = SimpleNamespace(
        folder=lambda stage: folder, ui=Silent(), group=ALONE, stop_requested=lambda: False, seed=lambda stage: 3
    )
    return sample_in_chunks(
        surroundings, policy.backbone, prompts(count), CONFIG, group=2, stage="evaluate", name="p", adapter="policy",
        states=states,
    )  # fmt: skip


def test_parts_of_another_size_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trimtab.pipeline.labelling.CHUNK", 8)
    monkeypatch.setattr("trimtab.pipeline.labelling.REFILLS", 1)
    first = sampled(tmp_path, top())
    assert sorted(p.name for p in (tmp_path / "samples" / "p").iterdir()) == [
        "prompts-000000.jsonl", "prompts-000004.jsonl", "prompts-000008.jsonl",
    ]  # fmt: skip
    monkeypatch.setattr("trimtab.pipeline.labelling.CHUNK", 12)  # as by another version of this code
    again = sampled(tmp_path, top())
    assert [(r.id, r.tokens) for r in again] == [(r.id, r.tokens) for r in first]


def test_states_are_written_beside_the_answers_and_read_with_them(tmp_path: Path):
    policy = top()
    states = FrozenStates(policy.backbone)
    first = sampled(tmp_path, policy, states)
    folder = tmp_path / "samples" / "p"
    answers, beside = folder / "prompts-000000.jsonl", folder / "prompts-000000.states.safetensors"
    written = answers.stat().st_mtime_ns
    assert beside.exists()
    other = top()
    loaded = FrozenStates(other.backbone)
    assert sampled(tmp_path, other, loaded) == first
    assert answers.stat().st_mtime_ns == written  # nothing was drawn
    for rollout in first:
        sequence = rollout.prompt_tokens + rollout.tokens
        assert torch.equal(states.get(sequence), loaded.get(sequence))
    remove_states(folder)
    assert sampled(tmp_path, other) == first  # the answers alone are enough where no states are wanted
    assert answers.stat().st_mtime_ns == written
    assert sampled(tmp_path, other, FrozenStates(other.backbone)) == first
    assert answers.stat().st_mtime_ns > written and beside.exists()  # the states were missing: drawn once more
