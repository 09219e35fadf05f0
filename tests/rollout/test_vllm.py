"""vLLM itself, with tiny models on a CPU. `make vllm` makes an environment for it and runs this file.

The errors that vLLM cannot be made to produce here are in test_vllm_errors.py.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from trimtab.errors import EngineError
from trimtab.models import AdapterConfig, Backbone, Batch, Chat, FrozenStates, Role, collate
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.records import Prompt
from trimtab.rollout import LocalSampler, SamplerConfig, make_sampler, vllm_engine
from trimtab.storage import read_metrics
from trimtab.testing import prompts, save_model, sentences, tiny_backbone, tiny_model, tokenizer, toy_recipe
from trimtab.trainers import PpoConfig, RlRoles, Session, train_rl

from ..kit import stir

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is NOT tested here: it is not installed; run `make vllm`"
    ),
    pytest.mark.filterwarnings("default"),  # vLLM and what it imports warn of many things
    pytest.mark.timeout(1200),
]

SHAPE = {"context": 512, "width": 64}  # vLLM's attention on a CPU wants heads of 32 numbers at least
TRAINED = AdapterConfig(rank=4)


def long_prompts(count: int) -> list[Prompt]:
    """Prompts that share more than one block of vLLM's cache, so that a stale one would be used."""
    start = " ".join(sentences(12, words=8))
    return [Prompt.from_text(f"{start} {text}") for text in sentences(count, words=4, start=900)]


def recomputed(role: Role, rollouts: list[Any], temperature: float) -> list[float]:
    """Log-probabilities of the answers' tokens, each answer in a row of its own."""
    values: list[float] = []
    for r in rollouts:
        batch: Batch = collate(
            [r.prompt_tokens + r.tokens], [[False] * len(r.prompt_tokens) + [True] * len(r.tokens)], torch.device("cpu")
        )
        with torch.no_grad():
            values += role.logprobs(batch, temperature=temperature)[batch.response_mask].tolist()
    return values


def apart(role: Role, rollouts: list[Any], temperature: float) -> float:
    """Largest difference between the log-probabilities reported and those of the role, in nats."""
    reported = torch.tensor([x for r in rollouts for x in r.logprobs])
    return float((reported - torch.tensor(recomputed(role, rollouts, temperature))).abs().max())


@pytest.mark.parametrize(
    ("kind", "architecture", "model"),
    [
        ("lora", "llama", {"tied": False}),
        ("lora", "llama", {"tied": True}),
        ("full", "llama", {"tied": True}),
        ("full", "qwen2", {"tied": False}),
        ("full", "gpt2", {"tied": True}),
    ],
)
def test_log_probabilities_are_the_models_after_every_push(kind: str, architecture: Any, model: dict[str, Any]):
    backbone = tiny_backbone(architecture, **SHAPE, **model)
    policy = Role.trainable(backbone, "policy", AdapterConfig(kind=kind, rank=4), seed=0)  # type: ignore[arg-type]
    config = SamplerConfig(engine="vllm", max_new_tokens=16, temperature=0.7, slots=8)
    sampler = make_sampler(policy.backbone, config)
    questions = long_prompts(3)
    rollouts = sampler.generate(questions, adapter=policy.adapter, seed=0, group=2)
    for version in range(3):
        stir(policy, seed=version, scale=0.05)  # larger weights enlarge the rounding errors of both sides
        assert apart(policy, rollouts, 0.7) > 1e-2  # what the old weights would give
        rollouts = sampler.generate(questions, adapter=policy.adapter, seed=version, group=2, weight_version=version)
        assert apart(policy, rollouts, 0.7) < 1e-4
        assert [r.weight_version for r in rollouts] == [version] * 6
    assert len({tuple(r.tokens) for r in rollouts}) > 1


def test_greedy_answers_are_the_local_samplers():
    backbone = tiny_backbone(**SHAPE)
    policy = stir(Role.trainable(backbone, "policy", TRAINED, seed=0))
    questions = [*long_prompts(2), *prompts(6)]
    questions.append(questions[0])  # given twice
    settings = {"max_new_tokens": 24, "temperature": 0.0, "slots": 8}
    local = LocalSampler(backbone, SamplerConfig(**settings)).generate(
        questions, adapter=policy.adapter, seed=0, group=2
    )
    stop = local[4].text[2:4]
    assert stop.strip()
    seen: list[tuple[int, int]] = []
    for more in ({}, {"stop": (stop,)}):
        local = LocalSampler(backbone, SamplerConfig(**settings, **more)).generate(
            questions, adapter=policy.adapter, seed=0, group=2
        )
        other = make_sampler(backbone, SamplerConfig(engine="vllm", **settings, **more)).generate(
            questions, adapter=policy.adapter, seed=0, group=2, progress=lambda *a: seen.append(a)
        )
        assert seen.pop() == (18, 18) and not seen
        for a, b in zip(local, other, strict=True):
            assert (a.id, a.tokens, a.text, a.finish_reason) == (b.id, b.tokens, b.text, b.finish_reason)
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert (
        "stop" in {r.finish_reason for r in local}
        and make_sampler(backbone, SamplerConfig(engine="vllm", **settings)).generate([], adapter=None, seed=0) == []
    )


def test_answers_end_at_the_end_of_a_turn_and_come_from_random_streams_of_their_own():
    ends = range(3, 43)  # an end is likely, but not certain
    backbone = Backbone(tiny_model(**SHAPE), Chat(tokenizer(), context=512, extra_end_tokens=ends))
    config = SamplerConfig(engine="vllm", max_new_tokens=8, slots=8, temperature=1.5)
    sampler = make_sampler(backbone, config)
    questions = prompts(4)
    first = sampler.generate(questions, adapter=None, seed=1, group=8)
    assert len({tuple(r.tokens) for r in first}) > 24
    assert {r.finish_reason for r in first} == {"stop", "length"}
    for r in first:
        assert (r.tokens[-1] in ends) == (r.finish_reason == "stop") and not set(r.tokens[:-1]) & set(ends)
    again = sampler.generate(questions[1:3], adapter=None, seed=1, group=8)
    same = sum(a.tokens == b.tokens for a, b in zip(first[8:24], again, strict=True))
    assert same >= 14  # other neighbours move the last bits, which may change a draw
    other = sampler.generate(questions, adapter=None, seed=2, group=8)
    assert sum(a.tokens == b.tokens for a, b in zip(first, other, strict=True)) < 4


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_frequencies_are_the_models(top_p: float):
    """How often each likely token comes first in 600 answers, against the local sampler's probabilities of it."""
    backbone = tiny_backbone(**SHAPE)
    settings = {"max_new_tokens": 1, "top_p": top_p, "temperature": 0.3, "slots": 8}
    drawn = make_sampler(backbone, SamplerConfig(engine="vllm", **settings)).generate(
        prompts(1), adapter=None, seed=0, group=600
    )
    exact = {
        r.tokens[0]: r.logprobs[0]
        for r in LocalSampler(backbone, SamplerConfig(**settings)).generate(prompts(1), adapter=None, seed=5, group=600)
    }
    for r in drawn:
        if r.tokens[0] in exact:
            assert r.logprobs[0] == pytest.approx(exact[r.tokens[0]], abs=1e-4)
    likely = {t: torch.tensor(p).exp().item() for t, p in exact.items() if p > torch.tensor(0.03).log().item()}
    for token, p in likely.items():
        count = sum(r.tokens[0] == token for r in drawn)
        assert abs(count - 600 * p) < 4.5 * (600 * p * (1 - p)) ** 0.5
    assert len(likely) > 4


def test_a_tied_head_that_is_not_handed_over_is_noticed(monkeypatch: pytest.MonkeyPatch):
    backbone = tiny_backbone(tied=True, **SHAPE)
    sampler = make_sampler(backbone, SamplerConfig(engine="vllm", max_new_tokens=16, slots=8))
    sampler.generate(prompts(2), adapter=None, seed=0)
    whole = vllm_engine.checkpoint_weights
    names = [name for name, _ in whole(backbone)]
    assert "lm_head.weight" in names and "model.embed_tokens.weight" in names
    stir(Role(backbone, full=True))
    monkeypatch.setattr(vllm_engine, "checkpoint_weights", lambda b: (x for x in whole(b) if x[0] != "lm_head.weight"))
    with pytest.raises(EngineError, match=r"weights of version 7: it computes with other weights than it was given"):
        sampler.generate(prompts(2), adapter=None, seed=0, weight_version=7)


def test_weights_are_copied(monkeypatch: pytest.MonkeyPatch):
    """Training writes into its tensors; the engine must not see that before the next push."""
    backbone = tiny_backbone(**SHAPE)
    engine = vllm_engine.shared_engine(backbone, 8)
    settings: list[dict[str, Any]] = [{"temperature": 0.0, "max_tokens": 8, "logprobs": 0}]
    tokens = [backbone.chat.prompt(prompts(1)[0].messages)]

    def logprobs() -> list[float]:
        (output,) = engine.generate(tokens, settings, 0)
        return [step[t].logprob for step, t in zip(output.logprobs, output.token_ids, strict=True)]

    with engine.holding(backbone, None, 0):
        before = logprobs()
        stir(Role(backbone, full=True))
        assert logprobs() == before
    with engine.holding(backbone, None, 1):
        assert logprobs() != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_at_the_models_precision(dtype: torch.dtype):
    backbone = Backbone(tiny_model(**SHAPE), Chat(tokenizer(), context=512), dtype=dtype)
    sampler = make_sampler(backbone, SamplerConfig(engine="vllm", max_new_tokens=16, slots=8))
    rollouts = sampler.generate(prompts(4), adapter=None, seed=0)
    dtypes = sampler._engine._llm.apply_model(lambda model: {p.dtype for p in model.parameters()})  # type: ignore[attr-defined]
    assert dtypes == [{dtype}]
    if dtype == torch.float32:
        assert apart(Role(backbone), rollouts, 1.0) < 1e-4
    else:
        assert 1e-3 < apart(Role(backbone), rollouts, 1.0)


def test_one_engine_serves_models_of_one_shape():
    threads = torch.set_num_threads
    one, two = tiny_backbone(seed=1, **SHAPE), tiny_backbone(seed=2, **SHAPE)
    config = SamplerConfig(engine="vllm", max_new_tokens=16, slots=8)
    first, second = make_sampler(one, config), make_sampler(two, config)
    assert first._engine is second._engine  # type: ignore[attr-defined]
    for sampler in (first, second, first):
        rollouts = sampler.generate(prompts(2), adapter=None, seed=0)
        assert apart(Role(sampler.backbone), rollouts, 1.0) < 1e-4  # type: ignore[attr-defined]
    other = make_sampler(tiny_backbone(layers=2, **SHAPE), config)
    assert apart(Role(other.backbone), other.generate(prompts(2), adapter=None, seed=0), 1.0) < 1e-4  # type: ignore[attr-defined]
    assert first._engine.closed  # type: ignore[attr-defined]
    assert apart(Role(one), first.generate(prompts(2), adapter=None, seed=0), 1.0) < 1e-4  # it gets a new one
    assert torch.set_num_threads is threads  # vLLM would leave a function there that does nothing


def test_an_engine_that_dies_while_drawing_or_idle(monkeypatch: pytest.MonkeyPatch):
    backbone = tiny_backbone(**SHAPE)
    config = SamplerConfig(engine="vllm", max_new_tokens=16, slots=8)
    sampler = make_sampler(backbone, config)
    sampler.generate(prompts(2), adapter=None, seed=0)
    core = sampler._engine._llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
    monkeypatch.setattr(core.model_executor, "execute_model", _no_memory)
    with pytest.raises(EngineError, match=r"while drawing 2 answers with weights of version 3 \(.*out of memory"):
        sampler.generate(prompts(2), adapter=None, seed=0, weight_version=3)
    with pytest.raises(EngineError, match="failed while drawing 2 answers"):  # it stays refused
        sampler.generate(prompts(2), adapter=None, seed=0)
    fresh = make_sampler(backbone, config)
    assert apart(Role(backbone), fresh.generate(prompts(2), adapter=None, seed=0), 1.0) < 1e-4
    fresh._engine._llm.llm_engine.engine_core.shutdown()  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match=r"failed while being given weights of version 4"):
        fresh.generate(prompts(2), adapter=None, seed=0, weight_version=4)


def _no_memory(*args: Any, **more: Any) -> None:
    raise RuntimeError("out of memory")


def test_training_with_a_sampler_that_shows_no_states():
    backbone = tiny_backbone(**SHAPE)
    settings = PpoConfig(
        adapter=AdapterConfig(rank=2, top_layers=1), steps=3, prompts=4, shared_critic=True,
        sampler=SamplerConfig(engine="vllm", max_new_tokens=8, slots=8),
    )  # fmt: skip
    roles = RlRoles.on(backbone, settings.adapter, seed=0, shared_critic=True)
    states, lines = FrozenStates(backbone), []
    train_rl(
        roles, prompts(8), lambda rollouts: {"length": [len(r.tokens) / 8 for r in rollouts]}, settings, seed=0,
        session=Session(log=lines.append), states=states,
    )  # fmt: skip
    assert backbone.frozen_layers > 0 and states.computed > 0 and states.hits > 0
    assert all(line["mismatch"] < 1e-4 and line["importance_ess"] > 0.9999 for line in lines) and len(lines) == 3


def test_a_whole_recipe(tmp_path):
    save_model(tmp_path / "model", tiny_model(width=64))
    recipe = toy_recipe(tmp_path)
    engines = [f"{stage}.sampler.engine=vllm" for stage in ("sample", "align", "evaluate")]
    run = run_recipe(load_recipe(recipe, engines), recipe, runs=tmp_path / "runs", ui=Silent())
    steps = read_metrics(run.stage("align") / "metrics.jsonl")
    assert len(steps) == 8 and all(s["mismatch"] < 1e-4 and s["importance_ess"] > 0.999 for s in steps)
    assert (run.path / "report.html").is_file()
