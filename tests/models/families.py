"""Tiny models with random weights of the causal language models that transformers has, by model type."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 2,
    "pad_token_id": 0, "initializer_range": 0.15,
    # mixtures of experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "moe_intermediate_size": 16, "topk_group": 1, "first_k_dense_replace": 1, "shared_expert_intermediate_size": 16,
    "n_shared_experts": 1, "moe_topk": 2, "layer_group_size": 2, "moe_num_experts": 4, "moe_k": 2,
    # latent attention
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    # recurrent layers
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2, "mamba_n_groups": 1,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "state_size": 8, "lru_width": 32,
    "num_heads": 8,
    # older names
    "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256, "n_ctx": 256, "n_inner": 64, "d_model": 32,
    "n_layers": 4, "n_heads": 4, "max_seq_len": 256, "d_ff": 64, "decoder_layers": 4, "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64, "ffn_dim": 64, "num_layers": 4, "attention_heads": 4, "dim_ff": 64, "embedding_size": 32,
    "word_embed_proj_dim": 32, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "rotary_dim": 8, "dropout": 0.0, "ffn_hidden_size": 64, "kv_channels": 8, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 320, "final_logit_softcapping": 1e4, "logit_scale": 1.0,
    # selection of what is attended to, and expert identities
    "index_n_heads": 4, "index_head_dim": 16, "zero_expert_num": 2, "expert_ffn_hidden_size": 16, "ngram_size": 3,
    # towers of other senses
    "depth": 2, "embed_dim": 16, "image_size": 28, "patch_size": 14, "num_channels": 3,
}  # fmt: skip

LATENT = (
    "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash minicpm3 "
    "youtu"
)
"""Types of latent attention, which has as many keys as queries."""

SPECIAL: dict[str, dict[str, Any]] = {
    kind: {"head_dim": 8, "num_key_value_heads": 4} for kind in LATENT.split()
} | {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cwm": {"bos_token_id": 1},
    "emu3": {"bos_token_id": 1},
    "mllama": {"bos_token_id": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma2": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 16},
    "gpt_oss": {"sliding_window": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"] * 2, "linear_head_dim": 8, "linear_num_heads": 4,
        "num_key_value_heads": 4, "pad_token_id": 0,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mistral": {"sliding_window": 16},
    "modernbert-decoder": {"bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 2},
    "mpt": {"expansion_ratio": 2},
    "qwen4_exp_text": {
        "ple_embed_dim": 8, "ngram_vocab_size_base": 50, "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1, "heads_per_ngram": 2, "indexer_n_heads": 4, "indexer_kv_heads": 1,
        "indexer_head_dim": 8, "hc_lowrank": 8,
        "indexer_budget": 16, "indexer_compress_ratio": 4,
    },
    "zamba": {"layers_block_type": ["mamba", "mamba", "hybrid", "hybrid"], "num_key_value_heads": 4},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

SHORT = {
    "sliding_window": 16, "attention_chunk_size": 16, "sliding_window_size": 16, "attention_window_size": 16,
    "local_attention": 32,
}  # fmt: skip
"""Windows shorter than the rows of the tests, for configurations that have any."""


def tiny(kind: str, **more: Any) -> Any:
    """A model of a type, with four layers as far as its configuration can be made that small.

    Args:
        kind: the ``model_type``.
        more: further settings, of the text model.

    Raises:
        ValueError: it has more than five million weights all the same.
    """
    if kind == "gemma3":
        return _gemma3()
    standard = type(AutoConfig.for_model(kind))
    parts = {name: part for name, part in standard.sub_configs.items() if part.__name__ != "AutoConfig"}
    special = SPECIAL.get(kind, {}) | more
    settings = _sizes(standard) | {name: _sizes(part) | special for name, part in parts.items()} | special
    config = standard(**settings)
    with torch.device("meta"):
        weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if weights > 5e6:
        raise ValueError(f"{kind} has {weights} weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def short_windows(kind: str) -> dict[str, int]:
    """Settings that make a type's windows shorter than the rows of the tests; empty where it has none."""
    text = AutoConfig.for_model(kind).get_text_config()
    return {name: size for name, size in SHORT.items() if type(w := getattr(text, name, None)) is int and w > 0}


def _gemma3() -> Any:
    """A text model behind a vision tower with as many layers."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = _sizes(type(AutoConfig.for_model("gemma3_text"))) | SPECIAL["gemma3_text"]
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": 317, "boi_token_index": 318, "eoi_token_index": 319, "mm_tokens_per_image": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gemma3ForConditionalGeneration(
            Gemma3Config(text_config=text, vision_config=vision, **tokens, eos_token_id=2, bos_token_id=None)
        ).eval()


def _sizes(config: type) -> dict[str, Any]:
    """Those of :data:`SIZES` that a configuration has under these names."""
    names: set[str] = set()
    for base in config.__mro__:
        names |= set(getattr(base, "__annotations__", {})) | set(inspect.signature(base.__init__).parameters)
    return {k: v for k, v in SIZES.items() if k in names and k not in getattr(config, "attribute_map", {})}
