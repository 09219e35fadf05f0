"""Gradients added up in one block against autograd's own, on models of several kinds."""

import contextlib

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from trimtab.fast_cpu.gradients import _Gated, _Norm, gradients_in_one_block
from trimtab.models import Backbone, Batch, Role, collate
from trimtab.testing import tiny_backbone

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
KINDS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "llama, tied, with a padding token": LlamaConfig(**SMALL, tie_word_embeddings=True, pad_token_id=3),
    "llama, gate by another function": LlamaConfig(**SMALL, hidden_act="gelu"),
    "qwen2": Qwen2Config(**SMALL),
    "gemma": GemmaConfig(**SMALL, head_dim=4),
    "gpt2": GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=4),
}


def role(config: PretrainedConfig, **settings) -> Role:
    torch.manual_seed(0)
    return Role(Backbone(AutoModelForCausalLM.from_config(config).eval(), tiny_backbone().chat, **settings), full=True)


def parts() -> list[Batch]:
    """Two micro-batches; the first answers one prompt twice. Token 3 is among the tokens."""
    rows = [[5, 3, 7, 9, 11], [5, 3, 7, 8], [1, 2, 3, 4, 3, 6]]
    masks = [[False, False, False] + [True] * (len(row) - 3) for row in rows]
    cpu = torch.device("cpu")
    return [
        collate(rows[:2], masks[:2], cpu, prompt_lengths=[3, 3]),
        collate(rows[2:], masks[2:], cpu, prompt_lengths=[3]),
    ]


def gradients(role: Role, *, block: bool) -> dict[str, torch.Tensor | None]:
    for parameter in role.parameters().values():
        parameter.grad = None
    with role.accumulating_gradients() if block else contextlib.nullcontext():
        for part in parts():
            logprobs, entropies = role.logprobs_and_entropies(part, entropy_gradient=True)
            (logprobs.sum() + 0.1 * entropies.sum()).backward()
    return {name: p.grad for name, p in role.parameters().items()}


def same(found: dict[str, torch.Tensor | None], wanted: dict[str, torch.Tensor | None]) -> None:
    assert found.keys() == wanted.keys()
    for name, slope in wanted.items():
        ours = found[name]
        if slope is None:
            assert ours is None, name
        else:
            torch.testing.assert_close(ours, slope, rtol=1e-4, atol=1e-5 * float(slope.abs().max()), msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_two_micro_batches_against_autograd(kind):
    one = role(KINDS[kind])
    wanted = {name: None if g is None else g.clone() for name, g in gradients(one, block=False).items()}
    assert any(float(g.abs().max()) > 0 for g in wanted.values() if g is not None)
    same(gradients(one, block=True), wanted)


def test_with_gradient_checkpointing():
    plain, checkpointed = role(KINDS["llama"]), role(KINDS["llama"], gradient_checkpointing=True)
    checkpointed.train(True)
    same(gradients(checkpointed, block=True), gradients(plain, block=False))


def test_all_products_write_to_one_block():
    one = role(KINDS["llama, tied, with a padding token"])
    result = gradients(one, block=True)
    blocks = {g.untyped_storage().data_ptr() for g in result.values() if g is not None and g.dim() == 2}
    assert len(blocks) == 1
    assert sum(g.numel() for g in result.values() if g is not None and g.dim() == 2) * 4 == next(
        g.untyped_storage().nbytes() for g in result.values() if g is not None and g.dim() == 2
    )


def test_a_weight_that_is_not_used_has_no_gradient():
    """A critic never uses the output projection; it must get no moments and no weight decay."""
    one = role(KINDS["llama"])
    with one.accumulating_gradients():
        one.hidden(parts()[0]).sum().backward()
    result = {name: p.grad for name, p in one.parameters().items()}
    assert result["lm_head.weight"] is None
    assert all(g is not None for name, g in result.items() if name != "lm_head.weight")


def test_afterwards_the_model_computes_as_before():
    one = role(KINDS["llama"])
    with one.accumulating_gradients():
        assert any("forward" in vars(module) for module in one.backbone.model.modules())
    assert not any("forward" in vars(module) for module in one.backbone.model.modules())


def test_frozen_weights_are_left_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    with gradients_in_one_block(model):
        model(torch.ones(4, 3)).sum().backward()
    assert model[0].weight.grad is None
    torch.testing.assert_close(model[1].weight.grad, model[0](torch.ones(4, 3)).sum(0).expand(2, 3))


def test_reduced_precision_is_autograds():
    one = role(KINDS["llama"], dtype=torch.bfloat16)
    with one.accumulating_gradients():
        assert not any("forward" in vars(module) for module in one.backbone.model.modules())


def test_formulas_by_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((4, 5), (4, 5), (5, 4))]
    scale = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_Gated.apply, (x, *weights))
    assert torch.autograd.gradcheck(lambda x, w: _Norm.apply(x, w, 1e-5), (x, scale))
