"""What vLLM cannot be made to do on a CPU: a stand-in that is too old, fails where it is told to, or sleeps."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trimtab.errors import ConfigError, DataError, EngineError, ModelError
from trimtab.models import AdapterConfig, Role
from trimtab.rollout import SamplerConfig, make_sampler, vllm_engine
from trimtab.testing import prompts, tiny_backbone

from ..kit import stir

ANSWER = [5, 6, 7]


class Engine:
    """Writes down what it is asked for; every answer is the same three tokens, with the probabilities of a model."""

    def __init__(self, **options: Any) -> None:
        Engine.last = self
        self.options, self.calls, self.weights = options, [], {}
        self.fails: str | None = None
        self.reset = True
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: self.calls.append("shutdown")))

    last: Engine
    role: Role
    """Whose probabilities."""

    def _record(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails:
            raise RuntimeError("no\n more memory")

    def wake_up(self, tags: list[str]) -> None:
        self._record(f"wake {tags[0]}")

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self._record(method)
        self.weights = dict(kwargs["weights_iterator"])

    def reset_prefix_cache(self) -> bool:
        self._record("reset")
        return self.reset

    def generate(self, asked: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
        self._record("generate")
        results = []
        for each in asked:
            rows = torch.tensor([each["prompt_token_ids"] + ANSWER])
            with torch.no_grad():
                logits = Engine.role.backbone.head(Engine.role.backbone.hidden(rows, adapter=Engine.role.adapter))
            reported = logits[0, -4:-1].log_softmax(-1)
            steps = [{t: SimpleNamespace(logprob=float(reported[i, t]))} for i, t in enumerate(ANSWER)]
            results.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ANSWER), logprobs=steps)]))
        return results

    def sleep(self, level: int) -> None:
        self._record(f"sleep {level}")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch):
    module = SimpleNamespace(
        __version__="0.32.0",
        LLM=Engine,
        SamplingParams=lambda **settings: SimpleNamespace(**settings),
    )
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(vllm_engine, "_current", {})
    return module


@pytest.fixture
def sampler(vllm: Any):
    backbone = tiny_backbone()
    Engine.role = Role(backbone)
    return make_sampler(backbone, SamplerConfig(engine="vllm", max_new_tokens=8, slots=4))


DRAWN = ["reload_weights", "reset", "generate"]


def test_an_accelerator_sleeps_between_batches_and_wakes_its_cache_after_the_weights_have_come(sampler: Any):
    sampler._engine._sleeps = True  # as on an accelerator
    calls = Engine.last.calls
    sampler.generate(prompts(1), adapter=None, seed=0)
    assert calls == [*DRAWN, "sleep 2"]
    calls.clear()
    sampler.generate(prompts(1), adapter=None, seed=0)
    assert calls == ["wake weights", "reload_weights", "wake kv_cache", "reset", "generate", "sleep 2"]


def test_a_cpu_does_not_sleep(sampler: Any):
    for _ in range(2):
        sampler.generate(prompts(1), adapter=None, seed=0)
    assert Engine.last.calls == DRAWN * 2
    assert Engine.last.options["enforce_eager"] and not Engine.last.options["enable_sleep_mode"]
    assert Engine.last.options["dtype"] == "float32" and Engine.last.options["load_format"] == "dummy"
    # 4 answers of 128 tokens and a block: 3 layers, keys and values, one head of 16 numbers of 4 bytes.
    assert Engine.last.options["kv_cache_memory_bytes"] == (4 + 1) * 128 * 3 * 2 * 16 * 4


def test_every_weight_is_handed_over_with_the_adapter_added_as_a_copy(vllm: Any):
    backbone = tiny_backbone(tied=True)
    plain = {n: p.detach().clone() for n, p in backbone.model.named_parameters(remove_duplicate=False)}
    assert "lm_head.weight" in plain
    Engine.role = stir(Role.trainable(backbone, "policy", AdapterConfig(rank=2), seed=0))
    sampler = make_sampler(backbone, SamplerConfig(engine="vllm", max_new_tokens=8))
    sampler.generate(prompts(2), adapter="policy", seed=0)
    assert set(Engine.last.weights) == set(plain)
    module = backbone.layers[0].self_attn.q_proj
    torch.testing.assert_close(
        Engine.last.weights["model.layers.0.self_attn.q_proj.weight"],
        module.get_base_layer().weight + module.get_delta_weight("policy"),
    )
    held = {p.data_ptr() for p in backbone.model.parameters()}
    assert held.isdisjoint(w.data_ptr() for w in Engine.last.weights.values())


@pytest.mark.parametrize(
    ("call", "phase"),
    [
        ("reload_weights", "being given weights of version 5"),
        ("generate", "drawing 2 answers with weights of version 5"),
        ("sleep 2", "going to sleep"),
    ],
)
def test_a_failure_says_when_and_the_engine_is_not_used_again(sampler: Any, call: str, phase: str):
    sampler._engine._sleeps, Engine.last.fails = True, call
    message = rf"vLLM 0\.32\.0 failed while {phase} \(RuntimeError: no more memory\).*Run the same command to continue"
    with pytest.raises(EngineError, match=message):
        sampler.generate(prompts(2), adapter=None, seed=0, weight_version=5)
    Engine.last.fails = None
    with pytest.raises(EngineError, match=f"failed while {phase}"):
        sampler.generate(prompts(2), adapter=None, seed=0, weight_version=6)
    broken = Engine.last
    again = make_sampler(sampler.backbone, sampler.config)
    assert broken.calls[-1] == "shutdown"
    assert len(again.generate(prompts(2), adapter=None, seed=0)) == 2


def test_a_cache_that_cannot_be_emptied_is_an_error(sampler: Any):
    Engine.last.reset = False
    with pytest.raises(EngineError, match="still holds keys and values of other weights"):
        sampler.generate(prompts(2), adapter=None, seed=0)


def test_weights_of_another_version_are_noticed(sampler: Any):
    stir(Role.trainable(Engine.role.backbone, "other", AdapterConfig(rank=2), seed=0))
    Engine.role = Role(Engine.role.backbone, adapter="other")  # the engine's, while the learner has the trunk
    with pytest.raises(EngineError, match=r"by [\d.]+ nats per token in answers drawn with weights of version 3"):
        sampler.generate(prompts(2), adapter=None, seed=0, weight_version=3)


def test_a_larger_engine_serves_and_a_smaller_one_is_replaced(vllm: Any):
    backbone = tiny_backbone()
    Engine.role = Role(backbone)
    samplers = [make_sampler(backbone, SamplerConfig(engine="vllm", max_new_tokens=8, slots=n)) for n in (4, 2, 8)]
    engines = [sampler._engine for sampler in samplers]  # type: ignore[attr-defined]
    assert engines[0] is engines[1] and engines[2] is not engines[0]
    assert engines[0].closed and not engines[2].closed
    assert len(samplers[0].generate(prompts(2), adapter=None, seed=0)) == 2  # with the larger one
    assert samplers[0]._engine is engines[2]  # type: ignore[attr-defined]


def test_prompts_that_do_not_fit(sampler: Any):
    sampler.config = SamplerConfig(max_new_tokens=sampler.backbone.chat.context)
    with pytest.raises(DataError, match=r"exceeds model\.context"):
        sampler.generate(prompts(1), adapter=None, seed=0)


def test_a_model_that_vllm_refuses(vllm: Any):
    def refuse(**options: Any) -> None:
        raise ValueError("unknown architecture")

    vllm.LLM = refuse
    with pytest.raises(ModelError, match=r"vLLM 0\.32\.0 cannot start with LlamaForCausalLM \(.*unknown"):
        make_sampler(tiny_backbone(), SamplerConfig(engine="vllm"))


def test_a_vllm_that_is_too_old(vllm: Any):
    vllm.__version__ = "0.10.2"
    with pytest.raises(ConfigError, match=r"vLLM 0\.10\.2 is too old: .*install 0\.32 or newer"):
        make_sampler(tiny_backbone(), SamplerConfig(engine="vllm"))


def test_several_ranks_are_refused(vllm: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"several ranks train together.*set sampler\.engine: local"):
        make_sampler(tiny_backbone(), SamplerConfig(engine="vllm"))


def test_without_vllm_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        ConfigError, match=r"cannot be imported .*environment of its own: pip install -e .*set engine: local"
    ):
        make_sampler(tiny_backbone(), SamplerConfig(engine="vllm"))
