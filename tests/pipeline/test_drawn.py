"""What frozen layers give while answers are drawn, in the stages that only sample."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trimtab.models import AdapterConfig, Backbone, DrawnStates, Role
from trimtab.pipeline.evaluation import kl_per_answer
from trimtab.pipeline.labelling import sample_in_chunks
from trimtab.pipeline.ui import Silent
from trimtab.records import Rollout
from trimtab.rollout import LocalSampler, SamplerConfig, forget_drawn
from trimtab.testing import prompts, tiny_backbone

from ..kit import stir

CONFIG = SamplerConfig(max_new_tokens=8, slots=4)


def top(seed: int = 1) -> Role:
    return stir(Role.trainable(tiny_backbone(), "policy", AdapterConfig(rank=4, alpha=8, top_layers=1), seed=seed))


def test_kl_on_kept_states_is_the_one_without(monkeypatch: pytest.MonkeyPatch):
    policy = top()
    policy.backbone.drawn = DrawnStates()
    rollouts = LocalSampler(policy.backbone, CONFIG).generate(prompts(5), adapter="policy", seed=0, group=2)
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "_computed", None)  # nothing is missing
        kept = kl_per_answer(Role(policy.backbone), rollouts, 1.0)
    policy.backbone.drawn = None
    computed = kl_per_answer(Role(policy.backbone), rollouts, 1.0)
    monkeypatch.setattr(Backbone, "lower", lambda self, batch: None)
    whole = kl_per_answer(Role(policy.backbone), rollouts, 1.0)
    assert kept == pytest.approx(whole, abs=1e-4) and computed == pytest.approx(whole, abs=1e-4)
    assert max(map(abs, whole)) > 0.01


def sampled(folder: Path, policy: Role, count: int = 12) -> list[Rollout]:
    surroundings: Any = SimpleNamespace(
        folder=lambda stage: folder, ui=Silent(), stop_requested=lambda: False, seed=lambda stage: 3
    )
    return sample_in_chunks(
        surroundings, policy.backbone, prompts(count), CONFIG, group=2, stage="evaluate", name="p", adapter="policy"
    )


def test_parts_of_another_size_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trimtab.pipeline.labelling.CHUNK", 8)
    monkeypatch.setattr("trimtab.pipeline.labelling.FILLINGS", 1)
    found = sampled(tmp_path, top())
    assert sorted(p.name for p in (tmp_path / "samples" / "p").iterdir()) == [
        "prompts-000000.jsonl", "prompts-000004.jsonl", "prompts-000008.jsonl",
    ]  # fmt: skip
    monkeypatch.setattr("trimtab.pipeline.labelling.CHUNK", 12)  # as by another version of this code
    again = sampled(tmp_path, top())
    assert [(r.id, r.tokens) for r in again] == [(r.id, r.tokens) for r in found]


def test_states_are_written_where_they_are_wanted_and_read_with_the_answers(tmp_path: Path, monkeypatch):
    policy = top()
    policy.backbone.drawn = DrawnStates()
    found = sampled(tmp_path, policy)
    folder = tmp_path / "samples" / "p"
    assert (folder / "prompts-000000.states.safetensors").exists()
    other = top()
    other.backbone.drawn = DrawnStates()
    with monkeypatch.context() as patch:
        patch.setattr(LocalSampler, "generate", None)  # all is at hand
        again = sampled(tmp_path, other)
    for a, b in zip(found, again, strict=True):
        mine, theirs = (role.backbone.drawn.get(a.prompt_tokens + a.tokens) for role in (policy, other))
        assert a == b and all(x.equal(y) for x, y in zip(mine, theirs, strict=True))
    forget_drawn(folder)
    draws = []
    generate = LocalSampler.generate
    monkeypatch.setattr(LocalSampler, "generate", lambda *a, **k: draws.append(1) or generate(*a, **k))
    assert sampled(tmp_path, other) == found and draws == [1]  # states are missing: once more
    other.backbone.drawn = None
    assert sampled(tmp_path, other) == found and draws == [1]  # nobody wants them
