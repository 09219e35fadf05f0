"""The decoding step written out gives the model's own numbers, and stands aside for models it does not know."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

from trimtab.models import AdapterConfig, Role
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.rollout.cache import SlotCache
from trimtab.rollout.decoder import ROWS, LlamaDecoder, decodes
from trimtab.testing import prompts, tiny_backbone

from ..kit import stir


@pytest.mark.parametrize(("architecture", "known"), [("llama", True), ("qwen2", True), ("gpt2", False)])
def test_the_llama_family_is_written_out(architecture, known):
    assert decodes(tiny_backbone(architecture)) == known


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
            found = decoder(tokens[row, where], where, cache)
            torch.testing.assert_close(found, expected[row, where], rtol=1e-4, atol=1e-4)


def test_the_sampler_draws_what_it_draws_without(monkeypatch):
    backbone = tiny_backbone()
    stir(Role.trainable(backbone, "policy", AdapterConfig(rank=4, alpha=8), seed=1), scale=0.05)
    config = SamplerConfig(max_new_tokens=12, slots=7)
    fast = LocalSampler(backbone, config).generate(prompts(6), adapter="policy", seed=0, group=3)
    monkeypatch.setattr("trimtab.rollout.sampler.decodes", lambda _: False)
    slow = LocalSampler(backbone, config).generate(prompts(6), adapter="policy", seed=0, group=3)
    assert [r.tokens for r in fast] == [r.tokens for r in slow]
    for one, other in zip(fast, slow, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
