"""With and without the fast implementations: the same answers, the same training."""

from pathlib import Path

import pytest

from trimtab import fast_cpu
from trimtab.models import AdapterConfig, FrozenStates, Role
from trimtab.models.kernels import Kernels, kernels
from trimtab.records import Rollout, read_records
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.testing import prompts, tiny_backbone
from trimtab.trainers import OptimizerConfig, PpoConfig, RlRoles, Session, train_rl

from ..kit import same_weights, stir

STEADY = OptimizerConfig(lr=1e-3, schedule="constant", warmup=0.0)


def test_nothing_is_installed_until_it_is_asked_for():
    assert type(kernels()) is fast_cpu.FastCpu  # by the fixture
    fast_cpu.uninstall()
    assert type(kernels()) is Kernels
    backbone = tiny_backbone()
    before = {type(module) for module in backbone.model.modules()}
    Role.trainable(backbone, "policy", AdapterConfig(rank=2), seed=0)
    LocalSampler(backbone, SamplerConfig(max_new_tokens=2)).generate(prompts(2), adapter="policy", seed=0)
    names = {kind.__module__ for kind in {type(module) for module in backbone.model.modules()} - before}
    assert not any(name.startswith("trimtab.fast_cpu") for name in names)
    assert not any("forward" in vars(module) for module in backbone.model.modules())


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("top", [None, 1], ids=["all layers", "top layer"])
def test_the_same_answers_and_states(architecture, top):
    rollouts: dict[bool, list[Rollout]] = {}
    stored: dict[bool, FrozenStates] = {}
    for fast in (True, False):
        if not fast:
            fast_cpu.uninstall()
        backbone = tiny_backbone(architecture)
        stir(Role.trainable(backbone, "policy", AdapterConfig(rank=4, alpha=8, top_layers=top), seed=1), scale=0.05)
        stored[fast] = FrozenStates(backbone)
        sampler = LocalSampler(backbone, SamplerConfig(max_new_tokens=12, slots=7))
        rollouts[fast] = sampler.generate(prompts(6), adapter="policy", seed=0, group=3, states=stored[fast])
    assert [r.tokens for r in rollouts[True]] == [r.tokens for r in rollouts[False]]
    for one, other in zip(rollouts[True], rollouts[False], strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        first, second = (stored[fast].get(one.prompt_tokens + one.tokens) for fast in (True, False))
        assert (first is None) == (second is None)
        assert first is None or first.flatten().tolist() == pytest.approx(second.flatten().tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "adapter",
    [AdapterConfig(rank=4, alpha=8), AdapterConfig(rank=4, alpha=8, top_layers=1), AdapterConfig(kind="full")],
    ids=["lora", "top", "full"],
)  # fmt: skip
def test_the_same_training(adapter, tmp_path: Path):
    settings = PpoConfig(
        adapter=adapter, steps=2, prompts=3, group=2, policy=STEADY, critic=STEADY, micro_batch_tokens=60,
        sampler=SamplerConfig(max_new_tokens=8),
    )  # fmt: skip
    ends: list[RlRoles] = []
    rows: list[list[dict]] = []
    for fast in (True, False):
        if not fast:
            fast_cpu.uninstall()
        roles = RlRoles.on(tiny_backbone(), adapter, seed=1)
        rows.append([])
        score = lambda rollouts: {"it": [float(r.text.count("e")) for r in rollouts]}  # noqa: E731
        session, folder = Session(log=rows[-1].append), tmp_path / str(fast)
        train_rl(roles, prompts(6), score, settings, seed=2, session=session, samples=folder)
        ends.append(roles)
    for step in range(2):
        fast, plain = (read_records(tmp_path / str(name) / f"step-{step:06d}.jsonl", Rollout) for name in (True, False))
        assert [r.tokens for r in fast] == [r.tokens for r in plain]
    same_weights(ends[0].policy, ends[1].policy)
    same_weights(ends[0].critic, ends[1].critic)
    for one, other in zip(*rows, strict=True):
        for name in one.keys() - {"mismatch"}:
            if not name.startswith("seconds/"):
                assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
