"""One decoding step of the Llama family written out, for CPUs.

In a step of about 32 tokens, library calls between the matrix products and reading keys and values of padding cost as
much as the products themselves. Here query, key and value are one product, as are gate and up; weights are laid out
once per call of the sampler; rows attend in blocks, each only as far back as its longest row. The results equal those
of the model's own code up to the order of sums, which a probe checks before the first use; other models and devices
use the model's own code.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicCache

from trimtab.fast_cpu.packed import packed_linear
from trimtab.models import Backbone
from trimtab.models.cache import SlotCache

ROWS = 16
"""Answers that attend together; each reads as many keys as the longest of them has."""

TOLERANCE = 1e-4
"""Largest relative difference from the model's own hidden states on the probe."""


class LlamaDecoder:
    """The trunk with its current weights, without adapters.

    Args:
        base: a model with RMSNorm, rotary positions, grouped attention and SwiGLU, in float32 on a CPU.
        recorded_layer: also return the states after this many layers; 0: none.

    Raises:
        AttributeError: the model lacks a part that this family has.
    """

    def __init__(self, base: Any, *, recorded_layer: int = 0) -> None:
        self.recorded_layer = recorded_layer
        config = base.config.get_text_config()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.embed, self.rotary, self.norm = base.embed_tokens, base.rotary_emb, _norm(base.norm)
        self.layers = [_Layer(layer) for layer in base.layers]

    def __call__(self, tokens: Tensor, where: Tensor, cache: SlotCache) -> tuple[Tensor, Tensor | None]:
        """Read one more token of each row.

        Args:
            tokens: ``[B]``, the tokens.
            where: ``[B]``, their positions; all earlier ones are in the cache.
            cache: slot b contains row b; the new keys and values are added to it.

        Returns:
            final hidden states and those of the recorded layer (None: no layer is), both ``[B, H]``.
        """
        x = self.embed(tokens)
        cos, sin = self.rotary(x, where[:, None])  # [B, 1, D] each
        half = cos.shape[-1] // 2
        sin, size = sin[..., :half], cos.shape[-1]
        row, rotated = torch.arange(len(tokens)), self.heads + self.kv_heads
        blocks = list(_blocks(where, self.kv_heads))
        recorded: Tensor | None = None
        for number, (layer, slots) in enumerate(zip(self.layers, cache.slot_layers, strict=True), start=1):
            heads = layer.qkv(layer.norm(x)).view(len(tokens), -1, size)
            turned = heads[:, :rotated] * cos
            turned[..., :half].addcmul_(heads[:, :rotated, half:], sin, value=-1.0)
            turned[..., half:].addcmul_(heads[:, :rotated, :half], sin)
            keys, values = slots.keys, slots.values
            assert keys is not None and values is not None
            keys[row, :, where] = turned[:, self.heads :]
            values[row, :, where] = heads[:, rotated:]
            queries = turned[:, : self.heads].mul_(layer.scale).reshape(len(tokens) * self.kv_heads, -1, size)
            parts = []
            for rows, seen, bias in blocks:
                block = queries[rows.start * self.kv_heads : rows.stop * self.kv_heads]
                scores = torch.baddbmm(bias, block, keys[rows, :, :seen].flatten(0, 1).transpose(1, 2))
                parts.append(torch.bmm(torch.softmax(scores, dim=-1), values[rows, :, :seen].flatten(0, 1)))
            x = x + layer.out(torch.cat(parts).view(len(tokens), -1))
            gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, dim=-1)
            x = x + layer.down(functional.silu(gate).mul_(up))
            if number == self.recorded_layer:
                recorded = x
        return self.norm(x), recorded


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        if hasattr(attention, "q_norm") or getattr(attention, "sliding_window", None) is not None:
            raise AttributeError("attention of another kind")
        self.scale = attention.scaling
        self.qkv = packed_linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.down = packed_linear(attention.o_proj), packed_linear(mlp.down_proj)
        self.gate_up = packed_linear(mlp.gate_proj, mlp.up_proj)
        self.norm, self.mlp_norm = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    weight, eps = module.weight.detach(), module.variance_epsilon

    def norm(x: Tensor) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        return torch.mul(x, scale).mul_(weight)

    return norm


def _blocks(where: Tensor, kv_heads: int) -> Iterator[tuple[slice, int, Tensor]]:
    """Rows that attend together, the number of positions they attend to, and a bias that masks those after each row."""
    for start in range(0, len(where), ROWS):
        places = where[start : start + ROWS].repeat_interleave(kv_heads)
        seen = int(places.max()) + 1
        hidden = torch.arange(seen) > places[:, None, None]
        bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        yield slice(start, min(start + ROWS, len(where))), seen, bias


@torch.no_grad()
def can_decode(backbone: Backbone) -> bool:
    """Whether :class:`LlamaDecoder` gives the same results as this model."""
    if backbone.device.type != "cpu" or backbone.dtype != torch.float32 or not backbone.layouts.slots:
        return False
    base = backbone.model.base_model
    backbone.activate(None)
    tokens = torch.arange(10).view(2, 5) % backbone.head.weight.shape[0]
    lengths = (2, 5)
    try:
        decoder = LlamaDecoder(base)
        cache, prefill = SlotCache(len(backbone.layers), 2, 5), DynamicCache()
        expected = base(input_ids=tokens, past_key_values=prefill, use_cache=True).last_hidden_state
        for slot, length in enumerate(lengths):
            cache.fill(slot, prefill, slot, length - 1)
        last = torch.tensor(lengths) - 1
        hidden, _ = decoder(tokens[[0, 1], last], last, cache)
    except (AttributeError, RuntimeError, TypeError):
        return False
    expected = expected[[0, 1], last]
    return torch.allclose(hidden, expected, rtol=TOLERANCE, atol=TOLERANCE * float(expected.abs().max()))
