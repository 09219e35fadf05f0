"""Folders whose weights are not what they say: an error with number, first key and likely cause."""

import json
import logging
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from trimtab.errors import ModelError
from trimtab.models import Backbone, ModelConfig, model_identity
from trimtab.models.loading import longest_context
from trimtab.models.weights_check import _mention_pickle
from trimtab.testing import save_model, tiny_model, tokenizer


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def load(folder: Path, context: int = 64) -> Backbone:
    return Backbone.load(ModelConfig(name=str(folder), context=context, device="cpu"))


def edit(folder: Path, change) -> None:
    """Rewrite a folder's weights."""
    weights = change(load_file(folder / "model.safetensors"))
    save_file({k: v.clone() for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **settings) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize("prefix", ["pretrained_model.", "_orig_mod.", "module.", "base_model.model."])
def test_prefixes_of_wrappers(copy: Path, prefix: str):
    edit(copy, lambda weights: {prefix + name: tensor for name, tensor in weights.items()})
    with pytest.raises(ModelError, match=rf"\d+ weights are missing .*first: .*{re.escape(prefix)}.*Likely cause"):
        load(copy)


@pytest.mark.parametrize("prefix", ["policy.", "actor.module.", "_fsdp_wrapped_module.", "language_model.", "llm."])
def test_prefixes_of_any_wrapper(copy: Path, prefix: str):
    edit(copy, lambda weights: {prefix + name: tensor for name, tensor in weights.items()})
    with pytest.raises(ModelError, match=rf"\d+ weights are missing .*Likely cause: the prefix '{prefix}'"):
        load(copy)


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ("model.layers", "model._orig_mod.layers"),
        (".self_attn.", "._checkpoint_wrapped_module.self_attn."),
        ("q_proj.weight", "q_proj.base_layer.weight"),
    ],
)
def test_wrappers_of_single_layers(copy: Path, place: str, part: str):
    edit(copy, lambda weights: {name.replace(place, part): tensor for name, tensor in weights.items()})
    with pytest.raises(ModelError, match=r"weights are missing .*Likely cause: '.*' inside the keys"):
        load(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["q_proj", "norm", "embed_tokens"])
def test_weights_that_are_no_numbers(copy: Path, name: str, value: float):
    def spoil(weights):
        key = next(k for k in sorted(weights) if name in k)
        weights[key].view(-1)[3] = value
        return weights

    edit(copy, spoil)
    with pytest.raises(ModelError, match=rf"1 weights hold NaN or infinity \(first: '.*{name}"):
        load(copy)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_whole_numbers_are_quantised_weights(copy: Path, dtype: torch.dtype):
    edit(copy, lambda weights: {k: v.to(dtype) if "proj" in k else v for k, v in weights.items()})
    with pytest.raises(ModelError, match=r"21 weights are whole numbers \(first: '.*proj.*before quantisation"):
        load(copy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_numbers_of_every_precision_load(copy: Path, dtype: torch.dtype):
    edit(copy, lambda weights: {k: v.to(dtype) for k, v in weights.items()})
    stored, held = load_file(copy / "model.safetensors"), load(copy).model.state_dict()
    assert {v.dtype for v in stored.values()} == {dtype} and stored.keys() <= held.keys()
    assert all(torch.equal(held[name], value.float()) for name, value in stored.items())


def without(pattern: str):
    return lambda weights: {k: v for k, v in weights.items() if not re.search(pattern, k)}


def with_(**more: torch.Tensor):
    return lambda weights: weights | {k.replace("__", "."): v for k, v in more.items()}


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (without(r"layers\.2\."), {}, r"9 weights are missing .*first: 'model\.layers\.2\..*layers concerned: 2"),
        (without(r"q_proj"), {}, r"3 weights are missing .*every layer lacks .* \(model\.layers\.\*\.self.*q_proj"),
        (without(r"lm_head"), {}, r"1 weights are missing .*'lm_head\.weight'.*the head is not in the files"),
        (without(r"embed_tokens"), {}, r"1 weights are missing .*embed_tokens"),
        (with_(v_head__summary__weight=torch.zeros(1, 32)), {}, r"1 weights .*no place.*v_head.*reward or value model"),
        (with_(score__weight=torch.zeros(1, 32)), {}, r"1 weights .*no place.*'score\.weight'.*reward or value model"),
        (with_(model__layers__0__mlp__lora_A=torch.zeros(4, 32)), {}, r"no place in the model.*an adapter among"),
        (lambda weights: weights, {"num_hidden_layers": 2}, r"9 weights .*no place.*says 2 layers .*files hold 3"),
        (lambda weights: weights, {"num_hidden_layers": 4}, r"9 weights are missing .*layers concerned: 3"),
        (lambda weights: weights, {"vocab_size": 400}, r"2 weights have another shape .*\(320, 32\).*\(400, 32\)"),
        (lambda weights: weights, {"intermediate_size": 32}, r"9 weights have another shape"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(copy: Path, change, settings, message: str):
    edit(copy, change)
    configure(copy, **settings)
    with pytest.raises(ModelError, match=message):
        load(copy)


def test_a_tied_head_needs_no_weights_of_its_own(tmp_path: Path):
    folder = save_model(tmp_path / "model", tiny_model(tied=True))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert load(folder).head.weight.shape == (320, 32)


def test_quantised_weights_are_refused(copy: Path):
    configure(copy, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(ModelError, match=r"quantised weights .*bitsandbytes.*before quantisation"):
        load(copy)


@pytest.mark.parametrize("kind", ["llama", "own-kind"])
def test_code_of_its_own_is_refused(copy: Path, kind: str):
    configure(copy, model_type=kind, auto_map={"AutoModelForCausalLM": "modeling_mine.MyLlama"})
    with pytest.raises(ModelError, match=r"code of its own|no usable tokenizer"):
        load(copy)


def test_code_that_transformers_has_taken_in_loads(copy: Path):
    plain = load(copy)
    configure(copy, auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"})
    backbone = load(copy)
    assert type(backbone.model).__module__.startswith("transformers.")
    assert torch.equal(backbone.head.weight, plain.head.weight)


def test_tokenizer_larger_than_the_embedding(tmp_path: Path):
    folder = save_model(tmp_path / "model", tiny_model(vocabulary=300))
    with pytest.raises(
        ModelError, match=r"tokens up to 319 but the model has 300 \(0 to 299\).*resize_token_embeddings"
    ):
        load(folder)


def test_whole_numbers_in_a_pickle_are_quantised_weights_too(copy: Path):
    weights = load_file(copy / "model.safetensors")
    torch.save(
        {k: (v * 20).to(torch.int8) if "proj" in k else v for k, v in weights.items()}, copy / "pytorch_model.bin"
    )
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"21 weights are whole numbers"):
        load(copy)


def test_weights_that_are_there_twice_are_refused(copy: Path):
    weights = load_file(copy / "model.safetensors")
    save_file(weights, copy / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"holds its weights twice.*keep only one"):
        load(copy)
    (copy / "model.safetensors").unlink()
    load(copy)


@pytest.mark.parametrize("listed", ["model.safetensors", "model-00001-of-00001.safetensors", None])
def test_an_index_of_the_one_file_or_of_files_that_are_gone_is_no_second_copy(copy: Path, listed: str | None):
    """Some tools write an index beside a single file; others leave one behind."""
    expected = load(copy).model.lm_head.weight.clone()
    index = {} if listed is None else {"weight_map": dict.fromkeys(load_file(copy / "model.safetensors"), listed)}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load(copy).model.lm_head.weight, expected)


def test_a_pickle_beside_safetensors_is_not_read(copy: Path, caplog: pytest.LogCaptureFixture):
    """The rule of transformers; many repositories keep one for older versions."""
    expected = load(copy).model.lm_head.weight.clone()
    torch.save({k: v + 1 for k, v in load_file(copy / "model.safetensors").items()}, copy / "pytorch_model.bin")
    assert "twice" not in caplog.text
    _mention_pickle.cache_clear()
    assert torch.equal(load(copy).model.lm_head.weight, expected)
    assert torch.equal(load(copy).model.lm_head.weight, expected)
    assert caplog.text.count("model*.safetensors (files: 1) is read, as in transformers, and pytorch_model*.bin") == 1


@pytest.mark.parametrize(
    "settings", [{"return_dict": False}, {"output_hidden_states": True, "output_attentions": True}]
)
def test_the_form_of_outputs_that_a_folder_asks_for_changes_nothing(copy: Path, settings):
    configure(copy, **settings)
    config = load(copy).model.config
    assert config.return_dict and not config.output_hidden_states and not config.output_attentions


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        ("config.json", '{"model_type": "llama",', r"config\.json cannot be used \(.*not a valid JSON"),
        ("config.json", "[1]", r"config\.json cannot be used"),
        ("generation_config.json", "{", r"generation_config\.json cannot be read .*tokens that end a turn"),
        ("generation_config.json", '{"eos_token_id": "</s>"}', r"'</s>', which is no token id"),
        ("generation_config.json", '{"eos_token_id": [2, 1.5]}', "1.5, which is no token id"),
    ],
)
def test_files_that_cannot_be_used_are_named(copy: Path, file: str, text: str, message: str):
    (copy / file).write_text(text)
    with pytest.raises(ModelError, match=message):
        load(copy)


def test_a_negative_token_ends_nothing(copy: Path):
    (copy / "generation_config.json").write_text('{"eos_token_id": [2, -1]}')
    assert min(load(copy).chat.end_tokens) >= 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ({"hidden_size": "32"}, "'hidden_size' expected int"),
        ({"rope_scaling": "linear"}, "'rope_parameters' with value 'linear'"),
    ],
)
def test_settings_that_cannot_be_used_are_told_with_their_reason(copy: Path, settings, reason: str):
    configure(copy, **settings)
    with pytest.raises(ModelError, match=rf"config\.json cannot be used .*{reason}"):
        load(copy)


def test_settings_of_generation_that_are_not_applied_are_said(copy: Path, caplog):
    (copy / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.1, "eos_token_id": 2}))
    with caplog.at_level(logging.WARNING):
        load(copy)
    assert "sets repetition_penalty=1.1; answers are drawn and scored without it" in caplog.text


# Adapters ---------------------------------------------------------------------------------


def adapter(folder: Path, base: Path, config=None):
    """Save a stirred adapter for ``base``; returns the model with it, which transformers and PEFT compute."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config or LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of adapters on embeddings
        adapted.save_pretrained(folder)
    return adapted.eval()


def test_an_adapter_folder_is_its_base_with_the_adapter(tiny: Path, tmp_path: Path):
    adapted, row = adapter(tmp_path / "adapter", tiny), torch.arange(3, 12)[None]
    tokenizer().save_pretrained(tmp_path / "adapter")
    backbone = load(tmp_path / "adapter")
    with torch.no_grad():
        expected = adapted(input_ids=row).logits
        torch.testing.assert_close(backbone.model(input_ids=row).logits, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(load(tiny).model(input_ids=row).logits, expected, atol=1e-2)
    assert longest_context(str(tmp_path / "adapter")) == 128
    assert "base" in model_identity(ModelConfig(name=str(tmp_path / "adapter")))


def test_an_adapter_folder_without_tokenizer_takes_that_of_its_base(tiny: Path, tmp_path: Path):
    adapter(tmp_path / "adapter", tiny)
    assert load(tmp_path / "adapter").chat.tokenizer.eos_token == tokenizer().eos_token


def test_an_adapter_beside_full_weights_is_refused(copy: Path, tiny: Path, tmp_path: Path):
    adapter(tmp_path / "adapter", tiny)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "adapter" / file, copy)
    with pytest.raises(ModelError, match=r"full weights and an adapter .*keep only one"):
        load(copy)


def test_an_adapter_with_missing_weights_is_refused(tiny: Path, tmp_path: Path):
    adapter(tmp_path / "adapter", tiny)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if "layers.1." not in k}, file)
    with pytest.raises(ModelError, match=r"lacks 4 weights"):
        load(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("settings", "tied", "message"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, True, "merging the adapter .* would change what it computes"),
        ({"target_modules": ["q_proj", "lm_head"]}, True, "merging the adapter .* would change what it computes"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, False, None),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True, None),
        ({"target_modules": ["q_proj"], "use_dora": True}, False, None),
        ({"target_modules": ["q_proj"], "use_rslora": True, "bias": "all"}, False, None),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]}, False, None),
    ],
)
def test_an_adapter_of_any_shape_is_merged_exactly_or_refused(settings, tied: bool, message, tmp_path: Path):
    base, row = save_model(tmp_path / "base", tiny_model(tied=tied)), torch.arange(3, 12)[None]
    adapted = adapter(tmp_path / "adapter", base, LoraConfig(r=2, **settings))
    if message is not None:
        with pytest.raises(ModelError, match=message):
            load(tmp_path / "adapter")
        return
    with torch.no_grad():
        expected = adapted(input_ids=row).logits
        torch.testing.assert_close(
            load(tmp_path / "adapter").model(input_ids=row).logits, expected, rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("named", ["tiny", "../tiny", "~/tiny"])
def test_the_base_of_an_adapter_is_found_beside_it_and_at_home(named: str, tiny: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny, tmp_path / "tiny")
    adapter(tmp_path / "adapter", tiny)
    rename(tmp_path / "adapter", base_model_name_or_path=named)
    load(tmp_path / "adapter")
    assert "files" in model_identity(ModelConfig(name=str(tmp_path / "adapter")))["base"]


def rename(folder: Path, **settings) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_model_name_or_path": "/nowhere/at/all"}, "neither a folder here nor a hub id"),
        ({"base_model_name_or_path": "$MODELS/base"}, "neither a folder here nor a hub id"),
        ({"base_model_name_or_path": "../adapter"}, "an adapter itself"),
        ({"base_model_name_or_path": None}, "does not name the model"),
        ({"peft_type": "WONDER"}, "a kind that the installed PEFT does not know"),
        ({"r": 4}, "does not fit its base model .*size mismatch"),
    ],
)
def test_adapters_that_fit_nothing(settings, message: str, tiny: Path, tmp_path: Path):
    adapter(tmp_path / "adapter", tiny)
    tokenizer().save_pretrained(tmp_path / "adapter")
    rename(tmp_path / "adapter", **settings)
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "adapter")


def test_adapters_that_name_each_other_have_an_identity_and_are_refused(tiny: Path, tmp_path: Path):
    for name, other in (("one", "two"), ("two", "one")):
        adapter(tmp_path / name, tiny)
        rename(tmp_path / name, base_model_name_or_path=str(tmp_path / other))
    assert "base" not in model_identity(ModelConfig(name=str(tmp_path / "one")))
    with pytest.raises(ModelError, match="an adapter itself"):
        load(tmp_path / "one")


def test_a_pointer_in_the_folder_of_the_base_is_named(tiny: Path, tmp_path: Path):
    shutil.copytree(tiny, tmp_path / "base")
    adapter(tmp_path / "adapter", tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "adapter")
    (tmp_path / "base" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match=r"model\.safetensors is a pointer of Git LFS .* in .*base"):
        load(tmp_path / "adapter")


def test_an_adapter_that_diverged_or_lacks_its_file_is_refused(tiny: Path, tmp_path: Path):
    adapter(tmp_path / "adapter", tiny)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k: v * float("nan") for k, v in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="12 weights hold NaN"):
        load(tmp_path / "adapter")
    file.unlink()
    with pytest.raises(ModelError, match="the weights of its adapter are missing"):
        load(tmp_path / "adapter")


def test_an_adapter_that_cannot_be_merged_is_refused(tiny: Path, tmp_path: Path):
    adapter(tmp_path / "adapter", tiny, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match=r"PROMPT_TUNING cannot be merged"):
        load(tmp_path / "adapter")
