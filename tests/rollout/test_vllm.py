"""The vLLM adapter against a stand-in that takes what vLLM takes and answers with our own sampler's numbers."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trimtab.errors import ConfigError, DataError
from trimtab.models import AdapterConfig, FrozenStates, Role
from trimtab.rollout import LocalSampler, SamplerConfig, make_sampler
from trimtab.testing import prompts, tiny_backbone
from trimtab.trainers import PpoConfig, RlRoles, train_rl

from ..kit import stir


class Engine:
    """Records what it is given; every answer is the same three tokens with made-up log-probabilities."""

    def __init__(self, **options: Any) -> None:
        self.options, self.weights, self.resets = options, {}, 0
        Engine.last = self
        self.answer = [5, 6, 7]

    last: Engine

    def apply_model(self, function: Any) -> None:
        function(SimpleNamespace(load_weights=lambda found: self.weights.update({n: w.clone() for n, w in found})))

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def generate(self, asked: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
        self.params = params
        step = {t: SimpleNamespace(logprob=-0.1 * t) for t in self.answer}
        output = SimpleNamespace(token_ids=tuple(self.answer), logprobs=[step] * len(self.answer))
        return [
            SimpleNamespace(prompt_token_ids=a["prompt_token_ids"], outputs=[output] * p.n)
            for a, p in zip(asked, params, strict=True)
        ]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch):
    module = SimpleNamespace(LLM=Engine, SamplingParams=lambda **settings: SimpleNamespace(**settings))
    monkeypatch.setitem(sys.modules, "vllm", module)
    backbone = tiny_backbone()
    return backbone, make_sampler(backbone, SamplerConfig(engine="vllm", max_new_tokens=8, temperature=0.5))


def test_the_policys_weights_are_given_adapter_added_under_plain_names(made):
    backbone, sampler = made
    plain = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    policy = stir(Role.trainable(backbone, "policy", AdapterConfig(rank=2), seed=0))
    sampler.generate(prompts(2), adapter=policy.adapter, seed=0)
    engine = Engine.last
    assert set(engine.weights) == set(plain) and engine.resets == 1
    module = backbone.layers[0].self_attn.q_proj
    wanted = module.get_base_layer().weight + module.get_delta_weight("policy")
    name = next(n for n in plain if n.endswith("layers.0.self_attn.q_proj.weight"))
    torch.testing.assert_close(engine.weights[name], wanted)
    sampler.generate(prompts(2), adapter=None, seed=0)
    assert all(torch.equal(engine.weights[n], plain[n]) for n in plain)


def test_training_on_upper_layers_with_a_sampler_that_shows_no_states(made, tmp_path):
    backbone, _ = made
    settings = PpoConfig(
        adapter=AdapterConfig(rank=2, top_layers=1), steps=2, prompts=2, importance_cap=2.0,
        sampler=SamplerConfig(engine="vllm", max_new_tokens=8),
    )  # fmt: skip
    roles = RlRoles.on(backbone, settings.adapter, seed=0)
    states = FrozenStates(backbone)
    score = lambda found: {"one": [1.0] * len(found)}  # noqa: E731
    train_rl(roles, prompts(4), score, settings, seed=0, samples=tmp_path, states=states)
    assert backbone.frozen_layers > 0 and states.computed > 0 and states.hits > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000.jsonl", "step-000001.jsonl"]


def test_answers_come_back_in_order_with_the_reported_logprobs(made):
    backbone, sampler = made
    asked = prompts(2)
    seen: list[tuple[int, int]] = []
    found = sampler.generate(
        [*asked, asked[0]], adapter=None, seed=3, group=2, weight_version=4, progress=lambda *a: seen.append(a)
    )
    mine = LocalSampler(backbone, sampler.config).generate([*asked, asked[0]], adapter=None, seed=3, group=2)
    assert [r.id for r in found] == [r.id.replace("/0/", "/4/") for r in mine]
    assert [r.prompt_tokens for r in found] == [r.prompt_tokens for r in mine]
    assert found[0].tokens == [5, 6, 7] and found[0].logprobs == pytest.approx([-0.5, -0.6, -0.7])
    assert found[0].finish_reason == "length" and found[0].weight_version == 4
    assert seen == [(2, 6), (4, 6), (6, 6)]
    params = Engine.last.params
    assert (params[0].n, params[0].temperature, params[0].max_tokens, params[0].logprobs) == (2, 0.5, 8, 0)
    assert params[0].stop_token_ids == sorted(backbone.chat.end_tokens) and params[0].ignore_eos
    assert len({p.seed for p in params}) == 3  # a prompt given twice gets different answers


def test_an_end_token_and_a_stop_string_end_an_answer(made):
    backbone, sampler = made
    end = min(backbone.chat.end_tokens)
    Engine.last.answer = [5, end]
    assert sampler.generate(prompts(1), adapter=None, seed=0)[0].finish_reason == "stop"
    Engine.last.answer = [5, 6, 7]
    text = backbone.chat.decode([5, 6, 7], strip=False)
    sampler.config = SamplerConfig(max_new_tokens=8, stop=(text[1],))
    found = sampler.generate(prompts(1), adapter=None, seed=0)[0]
    assert (found.text, found.finish_reason, found.tokens) == (text[:1].strip(), "stop", [5, 6, 7])
    assert Engine.last.params[0].stop == [text[1]]


def test_no_prompts_and_prompts_that_do_not_fit(made):
    backbone, sampler = made
    assert sampler.generate([], adapter=None, seed=0) == []
    sampler.config = SamplerConfig(max_new_tokens=backbone.chat.context)
    with pytest.raises(DataError, match=r"exceeds model\.context"):
        sampler.generate(prompts(1), adapter=None, seed=0)


def test_without_vllm_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt -e '\.\[vllm\]'"):
        make_sampler(tiny_backbone(), SamplerConfig(engine="vllm"))
