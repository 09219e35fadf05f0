"""A trunk in bfloat16 with adapters in float32, on a processor: no accelerator has run it."""

import pytest
import torch
from pydantic import ValidationError

from trimtab.errors import ModelError
from trimtab.models import AdapterConfig, Backbone, Chat, ModelConfig, MovingReference, Role, collate
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.testing import prompts, tiny_model, tokenizer
from trimtab.trainers import Learner, Norms, OptimizerConfig


def trunk(**options) -> Backbone:
    chat = Chat(tokenizer(), context=128)
    return Backbone(tiny_model(), chat, dtype=torch.bfloat16, frozen_dtype=torch.bfloat16, **options)


@pytest.fixture
def batch():
    tokens = tokenizer().encode("<|im_start|>user\nwarm tea<|im_end|>\n<|im_start|>assistant\nthank you.<|im_end|>")
    return collate(
        [tokens, tokens[:-2]], [[False] * 8 + [True] * (len(tokens) - n) for n in (8, 10)], torch.device("cpu")
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_learn_in_float32_on_a_trunk_in_bfloat16(batch, checkpointing):
    backbone = trunk(gradient_checkpointing=checkpointing)
    role = Role.trainable(backbone, "policy", AdapterConfig(rank=4, top_layers=2), seed=0)
    base = [p for name, p in backbone.model.named_parameters() if ".lora_" not in name]
    assert {p.dtype for p in base} == {torch.bfloat16} and not any(p.requires_grad for p in base)
    assert {p.dtype for p in role.parameters().values()} == {torch.float32}
    rotary = backbone.model.base_model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32  # angles of far positions need it
    learner = Learner(role, OptimizerConfig(lr=5e-2, warmup=0.0, schedule="constant"), 8)
    losses = [
        learner.step(
            [(["a"], batch)],
            lambda part, norms: (-role.logprobs(part).sum() / norms.tokens, {}),
            Norms(tokens=float(batch.response_mask.sum()), sequences=2),
        )["loss"]
        for _ in range(8)
    ]
    assert losses[-1] < losses[0] - 1.0


def test_rounding_weights_moves_log_probabilities_little(batch):
    exact = Role(Backbone(tiny_model(), Chat(tokenizer(), context=128))).logprobs(batch)
    torch.testing.assert_close(Role(trunk()).logprobs(batch), exact, rtol=0.05, atol=0.15)


def test_the_sampler_merges_into_the_trunks_precision_and_puts_it_back(batch):
    backbone = trunk()
    role = Role.trainable(backbone, "policy", AdapterConfig(rank=4), seed=0)
    with torch.no_grad():
        for parameter in role.parameters().values():
            parameter.normal_(std=0.05)
    before = role.logprobs(batch)
    sampler = LocalSampler(backbone, SamplerConfig(max_new_tokens=6, slots=4))
    rollouts = sampler.generate(prompts(3), adapter="policy", seed=0, group=2)
    tokens = [r.prompt_tokens + r.tokens for r in rollouts]
    mask = [[False] * len(r.prompt_tokens) + [True] * len(r.tokens) for r in rollouts]
    drawn = collate(tokens, mask, backbone.device)
    with torch.no_grad():
        again = role.logprobs(drawn)[drawn.response_mask]
    reported = torch.tensor([x for r in rollouts for x in r.logprobs])
    assert float((again - reported).abs().mean()) < 0.1  # bfloat16: 8 bits
    torch.testing.assert_close(role.logprobs(batch), before, rtol=0, atol=0)


def test_all_weights_are_trained_in_float32_and_frozen_in_bfloat16():
    backbone = trunk()
    policy = Role.trainable(backbone, "policy", AdapterConfig(kind="full"), seed=0)
    assert {p.dtype for p in policy.parameters().values()} == {torch.float32}
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}
    policy.backbone.freeze()
    assert {(p.dtype, p.requires_grad) for p in policy.backbone.model.parameters()} == {(torch.bfloat16, False)}


def test_a_reference_that_follows_keeps_small_steps():
    """α = 1/1024 of a change of 1 moves a weight near 1 by 2⁻¹⁰, which bfloat16 would round away."""
    backbone = trunk()
    policy = Role.trainable(backbone, "policy", AdapterConfig(kind="full"), seed=0)
    reference = MovingReference(Role(backbone), policy)
    name = next(name for name in reference.state() if name.endswith("norm.weight"))
    with torch.no_grad():
        policy.parameters()[name].fill_(2.0)
    assert float(reference.state()[name][0]) == 1.0
    reference.update(1 / 1024)
    assert float(reference.state()[name][0]) == pytest.approx(1 + 2**-10)


def test_products_must_be_as_narrow():
    with pytest.raises(ModelError, match="frozen_precision is bfloat16 and products are in float32 here"):
        Backbone(tiny_model(), Chat(tokenizer(), context=128), frozen_dtype=torch.bfloat16)
    with pytest.raises(ValidationError, match="bfloat16 needs precision: bfloat16 or auto"):
        ModelConfig(precision="float32", frozen_precision="bfloat16")
