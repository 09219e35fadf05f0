"""Adapters on mixtures of experts: their effect, their gradient, their merge, and what is refused.

The expected values are those of plain transformers with merged weights, and of plain PEFT on the same model.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from pydantic import ValidationError

from trimtab import fast_cpu
from trimtab.errors import ConfigError
from trimtab.models import (
    AdapterConfig,
    Backbone,
    Batch,
    Chat,
    FrozenStates,
    MovingReference,
    Role,
    collate,
    load_tensors,
)
from trimtab.models.adapting import expert_parameters, linear_layers
from trimtab.models.layouts import Layouts
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.context import Context
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.testing import prompts, save_model, tokenizer, toy_recipe

from ..kit import stir
from .families import tiny

ON = AdapterConfig(rank=2, alpha=3, experts=True)
TOP = AdapterConfig(rank=2, alpha=3, experts=True, top_layers=2)
ROW = torch.randint(5, 300, (1, 24), generator=torch.Generator().manual_seed(1))
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}
PLAIN = Layouts(packed=False, shared_prompts=False, slots=False)
"""Nothing to try when a model is loaded: these tests compute plain rows."""

FEW = ["deepseek_v3", "gpt_oss", "granitemoehybrid", "jetmoe", "mixtral", "olmoe", "qwen3_moe", "qwen3_next"]
MORE = (
    "afmoe aria_text axk1 axk2 bailing_hybrid beam cohere2_moe deepseek_v2 deepseek_v32 deepseek_v4 dots1 ernie4_5_moe "
    "exaone_moe flex_olmo flint glm4_moe glm4_moe_lite glm_moe_dsa granitemoe granitemoe_swa granitemoeshared "
    "hunyuan_v1_moe hy_v3 hy_v4 inkling2_text jamba kimi_linear kolibri1 laguna lfm2_moe mellum mimo_v2_flash minimax "
    "minimax_m2 minimax_m3_vl_text phimoe qwen2_moe qwen3_5_moe_text qwen4_exp_text solar_open zaya"
).split()


def trunk(kind: str = "mixtral", model: Any = None, **options: Any) -> Backbone:
    settings: dict[str, Any] = {"layouts": PLAIN} | options
    return Backbone(tiny(kind) if model is None else model, Chat(tokenizer(), context=64), **settings)


def logits(model: Any) -> torch.Tensor:
    """Transformers' own, of one row."""
    with torch.no_grad():
        return model(input_ids=ROW, use_cache=False).logits


def batch_of_two() -> Batch:
    rows = [ROW[0].tolist(), ROW[0, :17].tolist()]
    return collate(rows, [[False] * 9 + [True] * (len(row) - 9) for row in rows], torch.device("cpu"))


def of_experts(role: Role) -> dict[str, torch.nn.Parameter]:
    """The weights of an adapter that belong to parameters of experts."""
    modules = {name.rpartition(".")[0] for name in expert_parameters(role.backbone.layers)}
    here = {
        name: p
        for name, p in role.parameters().items()
        if any(f"layers.{module}." in name.replace(".base_layer", "") for module in modules)
    }
    return here


def check_family(kind: str) -> None:
    """Effect, gradient and merge; two adapters with experts of other layers, and one without, on one trunk."""
    model = tiny(kind)
    below = logits(copy.deepcopy(model))
    backbone = trunk(model=model)
    count = len(backbone.layers)
    policy = Role.trainable(backbone, "policy", TOP, seed=1)
    torch.testing.assert_close(logits(model), below, rtol=0, atol=0)
    weights = of_experts(policy)
    expected = expert_parameters(backbone.layers, count - 2)
    assert len(weights) == 2 * len(expected) > 0
    assert {int(name.split("layers.")[1].split(".")[0]) for name in policy.parameters()} == {count - 2, count - 1}

    policy.hidden(batch_of_two()).pow(2).sum().backward()
    slopes = {name: float(p.grad.abs().max()) for name, p in weights.items() if p.grad is not None}
    assert slopes.keys() == weights.keys()
    assert all((slope > 0) == (".lora_B." in name) for name, slope in slopes.items())  # B is zero, so A has none yet

    reward = Role.trainable(backbone, "reward", AdapterConfig(rank=2), seed=2)
    critic = stir(Role.trainable(backbone, "critic", AdapterConfig(rank=3, experts=True), seed=3), seed=5)
    assert not of_experts(reward)
    assert len(of_experts(critic)) == 2 * len(expert_parameters(backbone.layers))

    with torch.no_grad():
        for number, parameter in enumerate(weights.values()):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    backbone.activate("policy")
    adapted = logits(model)
    assert float((adapted - below).abs().max()) > 1e-2  # by its experts alone: the other layers' B is zero
    with backbone.merged("policy"):
        torch.testing.assert_close(logits(model), adapted, **CLOSE)
    backbone.activate(None)
    torch.testing.assert_close(logits(model), below, rtol=0, atol=0)
    assert not torch.allclose(critic.hidden(batch_of_two()), reward.hidden(batch_of_two()), atol=1e-2)
    backbone.merge("policy")
    backbone.activate(None)
    torch.testing.assert_close(logits(model), adapted, **CLOSE)


@pytest.mark.parametrize("kind", FEW)
def test_families(kind: str):
    check_family(kind)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MORE)
def test_every_family(kind: str):
    check_family(kind)


@pytest.mark.parametrize("kind", ["gpt_oss", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("config", [ON, TOP], ids=["all", "top"])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_plain_peft_computes_the_same(kind: str, config: AdapterConfig):
    """``get_peft_model`` with the same targets and weights on the same model."""
    backbone = trunk(kind)
    first = len(backbone.layers) - (config.top_layers or len(backbone.layers))
    named = {id(layer): name for name, layer in backbone.model.named_modules()}
    start = named[id(backbone.layers[0])].removesuffix("0")
    linear = [start + name for name in linear_layers(backbone.layers, first)]
    parameters = [start + name for name in expert_parameters(backbone.layers, first)]
    role = stir(Role.trainable(backbone, "policy", config, seed=1))
    settings: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": linear}
    there = get_peft_model(tiny(kind), LoraConfig(**settings, target_parameters=parameters))
    state = {f"base_model.model.{name.replace('.adapter.', '.')}": w for name, w in role.state().items()}
    loaded = set_peft_model_state_dict(there, state)
    assert not loaded.unexpected_keys and not [name for name in loaded.missing_keys if ".lora_" in name]
    backbone.activate("policy")
    torch.testing.assert_close(logits(backbone.model), logits(there.eval()), rtol=1e-5, atol=1e-5)


def test_answers_are_drawn_and_scored_with_the_adapted_experts():
    backbone = trunk(layouts=None)
    role = stir(Role.trainable(backbone, "policy", TOP, seed=1))
    sampler = LocalSampler(backbone, SamplerConfig(max_new_tokens=6, slots=4))
    rollouts = sampler.generate(prompts(2), adapter="policy", seed=0, group=2)
    rows = [r.prompt_tokens + r.tokens for r in rollouts]
    batch = collate(rows, [[False] * len(r.prompt_tokens) + [True] * len(r.tokens) for r in rollouts], backbone.device)
    assert backbone.frozen_half is not None
    for states in (None, FrozenStates(backbone)):
        with torch.no_grad():
            again = role.logprobs(batch, states=states)[batch.response_mask]
        torch.testing.assert_close(torch.tensor([x for r in rollouts for x in r.logprobs]), again, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_gives_the_same_gradients(dtype: torch.dtype):
    slopes = []
    for checkpointing in (False, True):
        backbone = trunk(dtype=dtype, frozen_dtype=dtype, gradient_checkpointing=checkpointing)
        role = stir(Role.trainable(backbone, "policy", ON, seed=1))
        assert {p.dtype for p in role.parameters().values()} == {torch.float32}
        role.train()
        role.logprobs(batch_of_two()).sum().backward()
        role.train(False)
        slopes.append({name: p.grad for name, p in role.parameters().items()})
    for name, slope in slopes[0].items():
        torch.testing.assert_close(slopes[1][name], slope)
        assert slope is not None and float(slope.abs().max()) > 0


def test_a_reference_follows_the_experts():
    backbone = trunk()
    reference, policy = Role(backbone), stir(Role.trainable(backbone, "policy", TOP, seed=1))
    moving = MovingReference(reference, policy)
    batch = batch_of_two()
    assert not torch.allclose(moving.logprobs(batch), policy.logprobs(batch), atol=1e-2)
    moving.update(1.0)
    torch.testing.assert_close(moving.logprobs(batch), policy.logprobs(batch), **CLOSE)
    moving.update(0.5)
    torch.testing.assert_close(moving.logprobs(batch), policy.logprobs(batch), **CLOSE)


def test_weights_are_saved_and_loaded_and_the_fast_path_computes_the_same(tmp_path: Path):
    role = stir(Role.trainable(trunk(), "policy", TOP, seed=1))
    role.save(tmp_path / "weights.safetensors")
    fast_cpu.install()
    try:
        again = Role.trainable(trunk(), "other", TOP, seed=7)
    finally:
        fast_cpu.uninstall()
    again.load_state(load_tensors(tmp_path / "weights.safetensors"))
    torch.testing.assert_close(again.logprobs(batch_of_two()), role.logprobs(batch_of_two()), rtol=1e-4, atol=1e-5)


# Refused before training ------------------------------------------------------------------


def test_no_adapter_on_experts_unless_asked_for(caplog):
    backbone = trunk()
    with caplog.at_level(logging.WARNING):
        role = Role.trainable(backbone, "policy", AdapterConfig(rank=2), seed=1)
    assert "no adapter on mlp.experts.down_proj, mlp.experts.gate_up_proj" in caplog.text
    assert "adapter.experts: true adapts the experts" in caplog.text
    assert not of_experts(role)
    caplog.clear()
    Role.trainable(backbone, "other", TOP, seed=1)
    assert not caplog.text


def test_dropout_of_experts_is_refused():
    with pytest.raises(ValidationError, match=r"dropout is 0\.1 and experts is true"):
        AdapterConfig(experts=True, dropout=0.1)
    assert AdapterConfig(kind="full", experts=True, dropout=0.1).experts  # neither is used


def test_a_model_without_experts_is_refused():
    with pytest.raises(ConfigError, match=r"top 2 layers of Qwen2ForCausalLM have no mixture of experts"):
        trunk("qwen2").add_adapter("policy", TOP, seed=1)


class Bypass:
    """Replacements of an experts' forward pass; the weights are those before an adapter is put on."""

    def __init__(self, experts: Any) -> None:
        self.experts, self.plain = experts, experts.forward
        self.up, self.down = experts.gate_up_proj, experts.down_proj

    def without_gradient(self, *args: Any) -> torch.Tensor:
        with torch.no_grad():
            return self.plain(*args)

    def kept_weight(self, states: torch.Tensor, *_: Any) -> torch.Tensor:
        """A kernel that holds one of the two weights itself."""
        gate, up = (states @ self.up[0].T).chunk(2, dim=-1)
        return (gate.sigmoid() * up) @ self.experts.down_proj[0].T

    def constant(self, states: torch.Tensor, *_: Any) -> torch.Tensor:
        return states + 0 * self.experts.down_proj.sum()

    def failing(self, *args: Any) -> torch.Tensor:
        if hasattr(self.experts, "parametrizations"):
            raise RuntimeError("no kernel for weights of this kind")
        return self.plain(*args)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("without_gradient", "gets no gradient"),
        ("kept_weight", "computes something else than the weights that it is merged into"),
        ("constant", "has no effect"),
        ("failing", r"fails \(no kernel for weights of this kind\)"),
        (None, "is never called"),
    ],
)
def test_experts_that_an_adapter_does_not_change_rightly_are_refused(monkeypatch, forward: str | None, message: str):
    backbone = trunk()
    block: Any = backbone.layers[3].mlp
    if forward is None:
        monkeypatch.setattr(block, "forward", lambda states: states)
    else:
        monkeypatch.setattr(block.experts, "forward", getattr(Bypass(block.experts), forward))
    with pytest.raises(ConfigError, match=message) as caught:
        backbone.add_adapter("policy", TOP, seed=1)
    assert "MixtralForCausalLM" in str(caught.value)
    assert "set adapter.experts: false, or adapter.kind: full to train all weights" in str(caught.value)
    assert not backbone.adapter_parameters("policy")
    backbone.add_adapter("policy", AdapterConfig(rank=2), seed=1)


def test_experts_of_two_layers_are_refused():
    """Merged there, an adapter on one layer would change both."""
    model = tiny("mixtral")
    model.model.layers[0].mlp.experts.down_proj = model.model.layers[3].mlp.experts.down_proj
    backbone = trunk(model=model)
    with pytest.raises(ConfigError, match=r"\(mlp.experts\) would change another layer with the same weights"):
        backbone.add_adapter("policy", TOP, seed=1)
    backbone.add_adapter("policy", AdapterConfig(rank=2), seed=1)


# A whole stage ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_sft_of_a_recipe(tmp_path: Path):
    """The stage trains the experts, and the trunk of the next stage has them."""
    save_model(tmp_path / "model", tiny("mixtral"))
    sft = {"adapter": {"rank": 4, "alpha": 8, "experts": True}, "optimizer": {"lr": 1e-2}, "epochs": 2, "batch": 8}
    recipe = toy_recipe(tmp_path, sft=sft, reward=None, sample=None, label=None, align=None, evaluate=None)
    config = load_recipe(recipe)
    run = run_recipe(config, recipe, runs=tmp_path / "runs", ui=Silent())
    weights = load_tensors(run.stage("sft") / "weights.safetensors")
    b = {name: w for name, w in weights.items() if ".experts." in name and ".lora_B." in name}
    assert len(b) == 8 and all(float(w.abs().max()) > 1e-3 for w in b.values())
    context = Context(config=config, recipe=recipe, run=run, ui=Silent())
    trained, start = context.trunk(), context.trunk(pretrained=True)
    for name, weight in trained.model.named_parameters():
        if "experts" in name:
            there = dict(start.model.named_parameters())[name.replace(".base_layer", "")]
            assert not torch.equal(weight, there)
