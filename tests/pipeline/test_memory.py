"""Micro-batches cut to a memory limit: the count against tensors that were really kept, and what is refused."""

import pytest
import torch

from trimtab.errors import ConfigError
from trimtab.models import AdapterConfig, ModelConfig, Role, collate
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.memory import _activations, fit_memory, model_shape, stage_gb
from trimtab.pipeline.plan import make_plan

from ..kit import chat_messages, save_model, sentences, tiny_backbone, toy_recipe


@pytest.mark.parametrize("top", [None, 1])
def test_counted_activations_are_those_a_forward_pass_keeps(tmp_path, top):
    """Bytes of distinct storages that autograd holds, all layers against one fewer, so that only layers count."""
    backbone = tiny_backbone()
    role = Role.trainable(backbone, "policy", AdapterConfig(rank=2, top_layers=top), seed=0)
    found = [backbone.chat.conversation(chat_messages("sing", text)) for text in sentences(6)]
    batch = collate([e.tokens for e in found], [e.response_mask for e in found], backbone.device)
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in backbone.model.parameters()}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    if top is not None:
        batch.columns["lower"] = backbone.lower(batch)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
        role.last_hidden(batch).sum()
    shape = model_shape(ModelConfig(name=str(save_model(tmp_path / "model"))))
    counted = _activations(shape, AdapterConfig(rank=2, top_layers=top), batch.tokens.numel(), checkpointing=False)
    # A layer more is counted than kept, for what the backward pass holds for a moment; the toy's layers are few.
    layers = min(top or shape["layers"], shape["layers"])
    assert sum(kept.values()) == pytest.approx(counted * layers / (layers + 1), rel=0.25)


def test_a_limit_sizes_what_does_not_say_its_own(tmp_path):
    recipe = toy_recipe(tmp_path)
    plain = load_recipe(recipe)
    assert fit_memory(plain) is plain
    wide = fit_memory(load_recipe(recipe, ["memory_gb=64"]))
    assert wide.sft.micro_batch_tokens > plain.sft.micro_batch_tokens
    own = fit_memory(load_recipe(recipe, ["memory_gb=64", "sft.micro_batch_tokens=77"]))
    assert own.sft.micro_batch_tokens == 77


def test_what_is_sized_fits_and_one_token_more_does_not(tmp_path):
    config = load_recipe(toy_recipe(tmp_path), ["memory_gb=0.72", "reward.cache_mb=0"])
    fitted = fit_memory(config)
    shape = model_shape(config.model)
    tokens = fitted.sft.micro_batch_tokens
    assert config.model.context < tokens < 8192
    assert stage_gb(config, fitted.sft, shape) <= 0.72 < stage_gb(config, config.sft, shape, tokens=tokens + 1)


def test_a_limit_too_small_for_one_sample_names_the_smallest_that_works(tmp_path):
    recipe = toy_recipe(tmp_path)
    config = load_recipe(recipe, ["memory_gb=0.5"])
    with pytest.raises(ConfigError, match=r"memory_gb is 0.5 but sft needs about 0\.\d GB with one sample") as caught:
        fit_memory(config)
    assert "gradient_checkpointing" in str(caught.value)
    with pytest.raises(ConfigError, match=r"memory_gb is 0\.5"):
        make_plan(config, recipe, tmp_path / "runs")


def test_a_critic_on_the_policys_states_has_no_weights_to_hold(tmp_path):
    config = load_recipe(toy_recipe(tmp_path), ["align.adapter={kind: full}"])
    shape = model_shape(config.model)
    own, shared = (stage_gb(config, config.align.model_copy(update={"shared_critic": s}), shape) for s in (False, True))
    assert own - shared == pytest.approx(4 * 4 * shape["parameters"] / 1e9)


def test_states_of_frozen_layers_are_counted(tmp_path):
    settings = ["align.adapter.top_layers=1", "align.prompts=6", "align.sampler.slots=1", "model.context=60"]
    config = load_recipe(toy_recipe(tmp_path), settings)
    shape, align = model_shape(config.model), config.align
    some, more = (stage_gb(config, align.model_copy(update={"prompts": n}), shape) for n in (6, 12))
    assert more - some == pytest.approx(2 * 6 * align.group * 60 * 4 * shape["width"] / 1e9)


def test_checkpointing_full_weights_and_longer_batches_cost_what_one_expects():
    shape = {"parameters": 10**9, "layer": 10**7, "layers": 80, "head": 10**8, "vocabulary": 10**5, "width": 1000,
             "keys": 1000, "inner": 4000}  # fmt: skip
    some, many = (_activations(shape, AdapterConfig(), n, checkpointing=False) for n in (1000, 2000))
    assert many == 2 * some
    assert _activations(shape, AdapterConfig(), 1000, checkpointing=True) < some / 10
