"""A reference that follows the policy: the mixture by hand, no stale log-probabilities, and exact continuation."""

import copy
from pathlib import Path

import pytest
import torch

from trimtab.errors import ConfigError, Interrupted, ModelError
from trimtab.models import AdapterConfig, FrozenStates, MovingReference, ReferenceUpdateConfig, Role, collate
from trimtab.rollout import SamplerConfig
from trimtab.testing import prompts, sentences, tiny_backbone
from trimtab.trainers import (
    Checkpoints,
    DpoConfig,
    KLConfig,
    KtoConfig,
    OptimizerConfig,
    Ranking,
    RejectionConfig,
    RlooConfig,
    RlRoles,
    Session,
    SimpoConfig,
    answer_logprobs,
    check_rl,
    judged_from_rankings,
    train_kto,
    train_preference,
    train_rl,
)
from trimtab.trainers import preference as preference_module

from ..kit import stir

LORA = AdapterConfig(rank=4, alpha=8)
TOP = AdapterConfig(rank=4, alpha=8, top_layers=1)
FULL = AdapterConfig(kind="full")
STEADY = OptimizerConfig(lr=3e-3, schedule="constant", warmup=0.0)
TWICE = ReferenceUpdateConfig(every=2, alpha=0.5)


def batch(role: Role):
    rows = [[*role.backbone.chat.prompt(p.messages), 7, 9, 11] for p in prompts(3)]
    return collate(rows, [[False] * (len(r) - 3) + [True] * 3 for r in rows], role.backbone.device)


def dense(role: Role) -> dict[str, torch.Tensor]:
    """The weights that the role computes with, by name on the plain model."""
    model = role.backbone.model
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" not in name}
    for name, module in model.named_modules():
        if role.adapter is not None and role.adapter in getattr(module, "lora_A", {}):
            a, b = module.lora_A[role.adapter].weight, module.lora_B[role.adapter].weight
            weights[f"{name}.base_layer.weight"] += (module.scaling[role.adapter] * b @ a).detach()
    return {name.replace(".base_layer", ""): weight for name, weight in weights.items()}


@pytest.mark.parametrize("adapter", [LORA, TOP, FULL], ids=["lora", "top layer", "full"])
def test_two_updates_are_mixtures_of_whole_weights(adapter: AdapterConfig):
    backbone = tiny_backbone()
    plain = copy.deepcopy(backbone.model)
    policy = stir(Role.trainable(backbone, "policy", adapter, seed=1))
    start, moving = Role(backbone), MovingReference(Role(backbone), policy)
    states = FrozenStates(backbone)
    some = batch(start)
    untouched = start.logprobs(some)
    assert torch.equal(moving.logprobs(some, states=states), start.logprobs(some, states=states))  # it starts there
    expected = dense(start)
    for seed, alpha in ((2, 0.3), (3, 0.6)):
        stir(policy, seed=seed)
        moving.update(alpha)
        expected = {name: alpha * weight + (1 - alpha) * expected[name] for name, weight in dense(policy).items()}
    plain.load_state_dict(expected, strict=False)
    moved = moving.logprobs(some, states=states)
    with torch.no_grad():
        full = torch.log_softmax(plain(some.tokens).logits[:, :-1], -1)
    by_hand = full.gather(-1, some.tokens[:, 1:, None]).squeeze(-1)
    mask = some.response_mask[:, 1:]
    assert torch.allclose(moved[:, 1:][mask], by_hand[mask], atol=1e-4)
    assert not torch.allclose(moved, untouched, atol=1e-2)
    assert torch.equal(start.logprobs(some), untouched)  # the trunk is as it was
    moving.update(1.0)  # hard: the policy itself
    assert torch.allclose(moving.logprobs(some), policy.logprobs(some), atol=1e-4)
    again = MovingReference(Role(backbone), policy)
    again.load_state(moving.state())
    assert torch.equal(again.logprobs(some), moving.logprobs(some))
    with pytest.raises(ModelError, match="weights of the reference do not fit"):
        again.load_state({"odd": torch.zeros(1)})


def rankings(role: Role, count: int = 8) -> list[Ranking]:
    chat, texts = role.backbone.chat, sentences(2 * count)
    return [
        Ranking(
            id=str(i),
            sequences=[chat.answer(p.messages, texts[2 * i + k]).tokens for k in (0, 1)],
            prompt_length=len(chat.prompt(p.messages)),
            ranks=(0, 1),
            probability=None,
            margin=None,
            weight=1.0,
        )
        for i, p in enumerate(prompts(count))
    ]


def dpo(**settings) -> DpoConfig:
    return DpoConfig(adapter=LORA, batch=2, epochs=1.5, optimizer=STEADY, reference_update=TWICE, **settings)


def test_each_step_of_dpo_reads_the_reference_as_it_then_is(monkeypatch: pytest.MonkeyPatch):
    backbone = tiny_backbone()
    policy = Role.trainable(backbone, "policy", LORA, seed=1)
    some = rankings(policy)
    seen: list[list[float]] = []
    ours = preference_module.answer_logprobs

    def watched(role, chosen, **more):
        known, fixed = ours(role, chosen, **more), ours(Role(backbone), chosen)
        seen.append([a - b for both in zip(known, fixed, strict=True) for a, b in zip(*both, strict=True)])
        return known

    monkeypatch.setattr(preference_module, "answer_logprobs", watched)
    known = answer_logprobs(Role(backbone), some)
    train_preference(policy, some, dpo(), reference=known, start=Role(backbone), seed=0)
    apart = [max(map(abs, step)) for step in seen]
    assert len(apart) == 6
    assert max(apart[:2]) < 1e-5 and all(a > 1e-4 for a in apart[2:])  # moved after steps 2 and 4


@pytest.mark.parametrize("method", ["dpo", "kto", "rloo"])
def test_an_interrupted_run_ends_on_the_same_weights(method: str, tmp_path: Path):
    def run(folder: Path, *, stop_after: int | None) -> tuple[Role, list[dict]]:
        backbone, rows = tiny_backbone(), []
        calls = iter(range(1, 100))
        session = Session(
            log=rows.append,
            checkpoints=Checkpoints(folder, "same", every=100),
            stop_requested=lambda: next(calls) == stop_after,
        )
        if method == "rloo":
            config = RlooConfig(
                adapter=LORA, steps=5, prompts=2, group=2, policy=STEADY, sampler=SamplerConfig(max_new_tokens=6),
                reference_update=TWICE, kl=KLConfig(coefficient=0.5), missing_eos=None,
            )  # fmt: skip
            roles = RlRoles.on(backbone, LORA, seed=1, critic=False)
            train_rl(roles, prompts(4), lambda rs: {"n": [float(len(r.tokens)) for r in rs]}, config, seed=0,
                     session=session)  # fmt: skip
            return roles.policy, rows
        policy, start = Role.trainable(backbone, "policy", LORA, seed=1), Role(backbone)
        some = rankings(policy)
        if method == "dpo":
            known = answer_logprobs(start, some)
            train_preference(policy, some, dpo(), reference=known, start=start, seed=0, session=session)
        else:
            judged, _ = judged_from_rankings(some)
            config = KtoConfig(adapter=LORA, batch=4, optimizer=STEADY, epochs=1.5, reference_update=TWICE)
            train_kto(policy, start, judged, config, seed=0, session=session)
        return policy, rows

    whole, rows = run(tmp_path / "whole", stop_after=None)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", stop_after=3)
    assert (tmp_path / "cut" / "step-000003" / "reference.safetensors").exists()
    continued, rest = run(tmp_path / "cut", stop_after=None)
    assert len(rest) == len(rows) - 3
    for name, weight in whole.state().items():
        assert torch.equal(weight, continued.state()[name]), name


def test_what_contradicts_is_refused():
    update = ReferenceUpdateConfig(every=2)
    with pytest.raises(ConfigError, match=r"every is 2 and training has 2 steps: the reference would not move"):
        check_rl(RlooConfig(steps=2, reference_update=update), 3)
    with pytest.raises(ConfigError, match=r"kl\.coefficient is 0, so nothing depends on the reference"):
        check_rl(RlooConfig(reference_update=update, kl=KLConfig(coefficient=0.0)), 3)
    with pytest.raises(ConfigError, match=r"kl\.budget is 2 and reference_update is set: .* does not say how far"):
        check_rl(RlooConfig(reference_update=update, kl=KLConfig(budget=2.0)), 3)
    with pytest.raises(ConfigError, match=r"'rejection' has no penalty"):
        check_rl(RejectionConfig(reference_update=update), 3)
    policy = Role.trainable(tiny_backbone(), "policy", LORA, seed=1)
    simpo = SimpoConfig(adapter=LORA, reference_update=update)
    with pytest.raises(ConfigError, match=r"'simpo' has no reference"):
        train_preference(policy, rankings(policy), simpo, reference=None, seed=0)
    known = answer_logprobs(Role(policy.backbone), rankings(policy))
    with pytest.raises(ConfigError, match="give train_preference the reference's model as start"):
        train_preference(policy, rankings(policy), dpo(), reference=known, seed=0)
