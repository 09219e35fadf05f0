"""From a name to a model, and every way in which a folder may fall short."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trimtab.errors import ConfigError, ModelError
from trimtab.models import AdapterConfig, Backbone, ModelConfig, Role, collate, model_identity
from trimtab.models.loading import _limit, _selected, load_tokenizer, pick_device
from trimtab.testing import TEMPLATE, save_model, tiny_model, tokenizer


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def load(folder: Path, **settings) -> Backbone:
    return Backbone.load(ModelConfig(name=str(folder), context=settings.pop("context", 64), device="cpu", **settings))


def test_folder_gives_the_model_it_was_made_from(tiny: Path):
    backbone = load(tiny, system="be kind.")
    saved, loaded = tiny_model().state_dict(), backbone.model.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert backbone.chat.system == "be kind."
    assert backbone.chat.end_tokens == {tokenizer().eos_token_id}


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_other_architectures_load(architecture, tmp_path: Path):
    folder = save_model(tmp_path / "model", tiny_model(architecture, tied=True))
    backbone = load(folder)
    assert backbone.width == 32
    assert len(backbone.layers) == 3


def test_name_that_is_neither_folder_nor_hub_id():
    for name in ("./nowhere", "nowhere", "a/b/c", "$MODELS/a", "~nobody-of-this-name/a", "a/..", "~/b"):
        with pytest.raises(ModelError, match=r"not a folder here and not a hub id.*smollm2-135m-instruct"):
            Backbone.load(ModelConfig(name=name))


def test_folder_without_tokenizer(copy: Path):
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        (copy / file).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load(copy)


def test_folder_without_chat_template(copy: Path, tmp_path: Path):
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"no chat template.*set model\.chat_template"):
        load(copy)
    load(copy, chat_template=TEMPLATE)
    file = tmp_path / "chatml.jinja"
    file.write_text(TEMPLATE)
    assert load(copy, chat_template=str(file)).chat.tokenizer.chat_template == TEMPLATE
    with pytest.raises(ModelError, match="neither a file nor a Jinja template"):
        load(copy, chat_template="no-such-file.jinja")


def test_tokenizer_without_end(copy: Path):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    (copy / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match="no eos token"):
        load_tokenizer(ModelConfig(name=str(copy)))


def test_context_longer_than_the_model_was_built_for(tiny: Path):
    with pytest.raises(ModelError, match=r"model\.context is 129 tokens but .* was built for 128"):
        load(tiny, context=129)
    load(tiny, context=128)


@pytest.mark.parametrize("damage", ["cut", "missing", "not a model"])
def test_damaged_weights(copy: Path, damage: str):
    weights = copy / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "missing":
        weights.unlink()
    else:
        (copy / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(ModelError, match=r"cannot be loaded as a causal language model|config\.json cannot be used"):
        load(copy)


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"max_position_embeddings": 64, "index_topk": 8}, 8),
        ({"max_position_embeddings": 64, "keep_window_size": 16}, 16),
        ({"index_block_size": 4, "index_topk_blocks": 3}, 12),
        ({"max_position_embeddings": 64, "rope_parameters": {"rope_type": "longrope"},
          "original_max_position_embeddings": 32}, 32),
        ({"max_position_embeddings": 64, "rope_parameters": {
            "full": {"rope_type": "dynamic", "original_max_position_embeddings": 16},
            "sliding": {"rope_type": "default"},
        }}, 16),
        ({}, None),
    ],
)  # fmt: skip
def test_how_long_rows_may_be(settings, limit):
    """Where a token attends to those of highest score, or its angles depend on the row's length, rows stay short."""
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**settings))
    assert min(filter(None, [_limit(config), _selected(config)]), default=None) == limit


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_a_cap_shows_on_small_logits(cap: float):
    """A model that was never trained has logits near 0, where a soft cap does next to nothing."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    from trimtab.models import Chat

    config = Gemma2Config(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=cap, initializer_range=0.02,
    )  # fmt: skip
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="changes its logits after the output projection"):
        Backbone(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), Chat(tokenizer(), context=64))


def test_an_adapter_wider_than_the_layers_is_refused(tiny: Path):
    with pytest.raises(ConfigError, match=r"adapter\.rank is 1000000 but the widest layer has"):
        load(tiny).add_adapter("policy", AdapterConfig(rank=1_000_000), seed=0)


def test_a_weight_without_dimensions_takes_an_adapter_beside_it(tiny: Path):
    backbone = load(tiny)
    backbone.layers[0].register_parameter("scale", torch.nn.Parameter(torch.tensor(1.0)))
    backbone.add_adapter("policy", AdapterConfig(rank=2), seed=0)
    assert float(backbone.layers[0].scale) == 1.0
    assert backbone.adapter_parameters("policy")


def test_logits_changed_after_the_head_are_refused():
    from transformers import AutoModelForCausalLM, Gemma2Config

    from trimtab.models import Chat

    def model(cap: float | None):
        config = Gemma2Config(
            vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, final_logit_softcapping=cap, initializer_range=0.2,
        )  # fmt: skip
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

    Backbone(model(None), Chat(tokenizer(), context=64))
    with pytest.raises(ModelError, match="changes its logits after the output projection"):
        Backbone(model(0.5), Chat(tokenizer(), context=64))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an accelerator")
def test_asking_for_an_accelerator_that_is_not_there():
    with pytest.raises(ModelError, match="torch sees no accelerator"):
        pick_device("cuda")


def test_bfloat16_stays_near_float32(tiny: Path):
    tokens = tokenizer().encode("<|im_start|>user\nwarm tea<|im_end|>\n<|im_start|>assistant\nthank you.<|im_end|>")
    batch = collate([tokens], [[False] * 8 + [True] * (len(tokens) - 8)], torch.device("cpu"))
    exact = Role(load(tiny)).logprobs(batch)
    short = Role(load(tiny, precision="bfloat16")).logprobs(batch)
    assert short.dtype == torch.float32
    assert not torch.equal(exact, short)
    torch.testing.assert_close(short, exact, rtol=0.05, atol=0.1)


def test_identity_follows_the_files(copy: Path):
    config = ModelConfig(name=str(copy))
    before = model_identity(config)
    assert model_identity(config) == before
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert model_identity(config) != before
