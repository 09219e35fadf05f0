"""The decoding step written out gives the model's own numbers, and stands aside for models it does not know."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

from trimtab.fast_cpu.decoder import ROWS, LlamaDecoder, can_decode
from trimtab.models.cache import SlotCache
from trimtab.testing import tiny_backbone


@pytest.mark.parametrize(("architecture", "known"), [("llama", True), ("qwen2", True), ("gpt2", False)])
def test_the_llama_family_is_written_out(architecture, known):
    assert can_decode(tiny_backbone(architecture)) == known


def test_rows_of_all_lengths_over_several_blocks():
    backbone, count, longest = tiny_backbone(), 2 * ROWS + 5, 21
    torch.manual_seed(0)
    tokens = torch.randint(0, backbone.head.weight.shape[0], (count, longest))
    lengths = torch.randint(1, longest - 2, (count,))
    cache, prefill, base = SlotCache(len(backbone.layers), count, longest), DynamicCache(), backbone.model.base_model
    with torch.no_grad():
        expected = base(input_ids=tokens, past_key_values=prefill, use_cache=True).last_hidden_state
        for slot, length in enumerate(lengths.tolist()):
            cache.fill(slot, prefill, slot, length)
        row, decoder = torch.arange(count), LlamaDecoder(base)
        for where in (lengths, lengths + 1):
            result, _ = decoder(tokens[row, where], where, cache)
            torch.testing.assert_close(result, expected[row, where], rtol=1e-4, atol=1e-4)
