"""What must not change the result of RL: micro-batches, frozen layers, wrapped samplers, a step that was killed."""

from pathlib import Path

import pytest
import torch

from trimtab.errors import ConfigError, ScoringError
from trimtab.models import FrozenStates, Role, load_tensors
from trimtab.records import Rollout, read_records, write_records
from trimtab.rollout import LocalSampler, RewardModelScorer, SamplerConfig
from trimtab.testing import prompts, tiny_backbone
from trimtab.trainers import (
    RlRoles,
    check_rl,
)
from trimtab.trainers.rl_drawing import prompts_of_step

from ..kit import same_weights, stir
from .rl_kit import FULL, LORA, TOP, config, letters, run


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
    sampled, rows = run(settings, samples=tmp_path)
    saved = [r for step in (0, 1) for r in read_records(tmp_path / f"step-{step:06d}.jsonl", Rollout)]
    assert all(len(r.values) == len(r.tokens) for r in saved) and any(v != 0.0 for r in saved for v in r.values)
    roles = RlRoles.on(tiny_backbone(), adapter, seed=1, shared_critic=True)
    passed, others = run(settings, roles=roles, sampler=Unrecorded(roles.policy.backbone, settings.sampler))
    same_weights(sampled.policy, passed.policy)
    same_weights(sampled.critic, passed.critic)
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
    questions = prompts(7)
    seen = [p.id for step in range(14) for p in prompts_of_step(questions, 3, step, seed=0)]
    passes = [seen[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(p) == sorted(q.id for q in questions) for p in passes)
    assert passes[0] != passes[1]
    more = prompts_of_step(questions[:2], 5, 0, seed=0)  # more prompts in a step than there are
    assert len(more) == 5


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
@pytest.mark.parametrize("saved", [True, False])
def test_killed_step_goes_on_bit_by_bit_with_frozen_layers(saved, limit, tmp_path: Path):
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
    if not saved:
        states.unlink()
    again, sampler = start(tmp_path / "b")
    assert sampler.calls == (1 if saved else 2)
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
