"""Every architecture: packed rows, shared prompts, frozen halves and sampled answers against plain rows.

The expected values are transformers' own: ``model(input_ids=row).logits`` for one row at a time.
"""

import logging
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trimtab.errors import ConfigError, ModelError
from trimtab.models import AdapterConfig, Backbone, Chat, FrozenStates, Role, collate, pack
from trimtab.models.layouts import PROVEN, find_layouts, window_of
from trimtab.records import Message, Prompt
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.rollout.options import option_logprobs
from trimtab.testing import tokenizer

from ..kit import stir
from .families import short_windows, tiny

CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def backbone_of(kind: str, context: int = 96, model: Any = None) -> Backbone:
    return Backbone(tiny(kind) if model is None else model, Chat(tokenizer(), context=context))


def plain_logprobs(backbone: Backbone, row: list[int], count: int) -> torch.Tensor:
    """Log-probabilities of the last ``count`` tokens of a row, from transformers' logits for this row alone."""
    with torch.no_grad():
        logits = backbone.model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float()
    return torch.log_softmax(logits, dim=-1)[torch.arange(len(row) - 1), torch.tensor(row[1:])][-count:]


def rows_of(lengths=((20, 9), (20, 4), (11, 15))) -> list[tuple[list[int], int]]:
    """Rows and the number of answer tokens in each; the first two share their prompt."""
    numbers = torch.randint(5, 300, (80,), generator=torch.Generator().manual_seed(1)).tolist()
    return [
        (numbers[:prompt] + numbers[40 + i : 40 + i + answer], answer) for i, (prompt, answer) in enumerate(lengths)
    ]


def check_roles(role: Role, expected: list[torch.Tensor]) -> None:
    rows = rows_of()
    tokens, counts = [row for row, _ in rows], [count for _, count in rows]
    masks = [[False] * (len(row) - count) + [True] * count for row, count in rows]
    prompts = [len(row) - count for row, count in rows]
    device = role.backbone.device
    shared = collate(tokens, masks, device, prompt_lengths=prompts)
    packed = pack(tokens, masks, 96, device)
    states = FrozenStates(role.backbone)
    with torch.no_grad():
        plain, together = role.logprobs(collate(tokens, masks, device)), role.logprobs(shared)
        halves, side_by_side = role.logprobs(shared, states=states), role.logprobs(packed)
    assert packed.segments is not None
    for row, count in enumerate(counts):
        for table in (plain, together, halves):
            torch.testing.assert_close(table[row][masks_of(shared, row)], expected[row], **CLOSE)
        own = (packed.segments == row) & packed.response_mask
        torch.testing.assert_close(side_by_side[own], expected[row], **CLOSE)
        assert count == len(expected[row])


def masks_of(batch, row: int) -> torch.Tensor:
    return batch.response_mask[row]


def check_family(kind: str, model: Any = None) -> Backbone:
    """All that trimtab computes with a model of this kind equals what transformers computes."""
    backbone = backbone_of(kind, model=model)
    check_roles(Role(backbone), [plain_logprobs(backbone, row, count) for row, count in rows_of()])
    prompts = [
        Prompt(id=str(i), messages=[Message(role="user", content=t)]) for i, t in enumerate(["tea", "warm tea?"])
    ]
    sampler = LocalSampler(backbone, SamplerConfig(max_new_tokens=6, temperature=1.0))
    for rollout in sampler.generate(prompts, adapter=None, seed=3, group=2):
        row = [*rollout.prompt_tokens, *rollout.tokens]
        expected = plain_logprobs(backbone, row, len(rollout.tokens))
        torch.testing.assert_close(torch.tensor(rollout.logprobs), expected, **CLOSE)
    rows = rows_of()
    questions = [row[: len(row) - count] for row, count in rows]
    options = [[row[-count:][:1], row[-count:][:3]] for row, count in rows]
    values = option_logprobs(backbone, questions, options)
    for prompt, given, computed in zip(questions, options, values, strict=True):
        for option, value in zip(given, computed, strict=True):
            expected = float(plain_logprobs(backbone, prompt + option, len(option)).sum())
            assert value == pytest.approx(expected, rel=1e-3, abs=1e-3)
    try:
        role = stir(Role.trainable(backbone, "policy", AdapterConfig(rank=2, top_layers=2), seed=1))
    except ConfigError as error:
        assert "no linear layer that takes an adapter" in str(error)
        return backbone
    count = len(backbone.layers)
    top = {id(layer) for layer in list(backbone.layers)[count - 2 :]}
    prefixes = {name for name, module in backbone.model.named_modules() if id(module) in top}
    assert all(
        any(name.startswith(f"{prefix}.") for prefix in prefixes) for name in backbone.adapter_parameters("policy")
    )
    backbone.activate("policy")
    expected = [plain_logprobs(backbone, row, count) for row, count in rows_of()]
    check_roles(role, expected)
    with backbone.merged("policy"):
        for (row, count), values in zip(rows_of(), expected, strict=True):
            torch.testing.assert_close(plain_logprobs(backbone, row, count), values, **CLOSE)
    return backbone


EXPECTED_OFF = {
    "llama": set(), "gpt2": set(), "qwen2": set(), "mixtral": set(), "deepseek_v3": set(), "qwen3_moe": set(),
    "bloom": {"packed", "shared_prompts", "slots"},
    "lfm2": {"packed", "shared_prompts", "slots"},
    "qwen3_next": {"packed", "shared_prompts", "slots"},
    "mistral": {"packed", "shared_prompts", "slots"},
    "gemma3_text": {"packed", "shared_prompts", "slots"},
    "granitemoehybrid": {"packed", "shared_prompts", "slots"},
    "gpt_oss": {"packed", "shared_prompts", "slots"},
}  # fmt: skip
"""Arrangements that a family cannot have; the windows are of 16 tokens, the rows longer."""


@pytest.mark.parametrize("kind", sorted(EXPECTED_OFF))
def test_families(kind: str):
    backbone = check_family(kind)
    assert EXPECTED_OFF[kind] <= set(backbone.layouts.off)
    assert EXPECTED_OFF[kind] or not backbone.layouts.off


def test_what_is_off_is_said_with_the_reason(caplog):
    with caplog.at_level(logging.WARNING):
        backbone = backbone_of("mistral")
    assert "MistralForCausalLM computes rows on their own" in caplog.text
    assert all(name in caplog.text for name in backbone.layouts.off)


def test_within_its_window_a_model_takes_every_arrangement():
    assert not backbone_of("mistral", context=16).layouts.off


def test_window_too_long_to_try(monkeypatch):
    monkeypatch.setattr("trimtab.models.layouts.AFFORDABLE", {"cpu": (10, 1.0)})
    layouts = backbone_of("mistral").layouts
    assert not (layouts.packed or layouts.shared_prompts or layouts.slots or layouts.split)
    assert layouts.own_cache
    assert "longer than its window of 16 tokens" in layouts.off["packed"]


def test_proven_architectures_pass_the_probe_that_they_skip(monkeypatch):
    assert PROVEN == {"LlamaForCausalLM"}
    backbone = backbone_of("llama")
    monkeypatch.setattr("trimtab.models.layouts.PROVEN", frozenset())
    assert not find_layouts(backbone).off


def test_models_that_are_not_causal_are_refused():
    model = tiny("qwen2")

    def mix(_module, _inputs, output):
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, keepdim=True)
        return output

    model.model.register_forward_hook(mix)
    with pytest.raises(ModelError, match="not a causal language model"):
        Backbone(model, Chat(tokenizer(), context=96))


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ({}, None),
        ({"sliding_window": 8}, 8),
        ({"sliding_window": None}, None),
        ({"sliding_window": 8, "use_sliding_window": False}, None),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, 8),
        ({"attention_chunk_size": 4, "layer_types": ["chunked_attention"]}, 4),
        ({"attention_window_size": 5}, 5),
    ],
)
def test_windows_are_read_from_the_configuration(settings, window):
    assert window_of(type("Config", (), settings)()) == window


def test_adapters_never_land_on_a_vision_tower():
    backbone = check_family("gemma3")
    assert len(backbone.model.model.vision_tower.encoder.layers) == len(backbone.layers) == 4
    names = backbone.adapter_parameters("policy")
    assert names
    assert not any("vision" in name for name in names)
    assert backbone.width == 32


def test_full_fine_tuning_leaves_a_vision_tower_as_it_is(caplog: pytest.LogCaptureFixture):
    backbone = backbone_of("gemma3")
    role = Role.trainable(backbone, "policy", AdapterConfig(kind="full"), seed=0)
    assert "text does not reach multi_modal_projector, vision_tower; they stay as they are" in caplog.text
    parameters = role.parameters()
    every = dict(role.backbone.model.named_parameters())
    towers = {name for name in every if "vision_tower" in name or "projector" in name}
    assert towers and parameters.keys() == every.keys() - towers == set(role.state())
    assert {name for name, p in every.items() if p.requires_grad} == set(parameters)
    role.load_state({name: weight.detach().clone() for name, weight in every.items()})  # a file of an earlier version
    encoded = backbone.chat.answer([Message(role="user", content="tea?")], "warm tea.")
    batch = collate([encoded.tokens], [encoded.response_mask], backbone.device)
    role.backbone.train(True, full=True)
    role.logprobs(batch).sum().backward()
    assert {name for name, p in every.items() if p.grad is not None} == set(parameters)


@pytest.mark.parametrize("kind", ["deepseek_v3", "mixtral"])
def test_experts_keep_their_weights_and_are_named(kind: str, caplog):
    backbone = backbone_of(kind)
    with caplog.at_level(logging.WARNING):
        backbone.add_adapter("policy", AdapterConfig(rank=2), seed=1)
    assert "no adapter on mlp.experts.down_proj, mlp.experts.gate_up_proj" in caplog.text
    assert not any(".experts." in name for name in backbone.adapter_parameters("policy"))
    stirred = stir(Role(backbone, adapter="policy"))
    backbone.activate("policy")
    before = plain_logprobs(backbone, list(range(5, 20)), 5)
    assert stirred.adapter == "policy"
    backbone.merge("policy")
    torch.testing.assert_close(plain_logprobs(backbone, list(range(5, 20)), 5), before, **CLOSE)


def test_a_linear_layer_that_computes_something_else_gets_no_adapter(caplog):
    """DeepSeek V4 multiplies groups of inputs with rows of one ``nn.Linear``: an adapter of its own shape fails."""
    backbone = backbone_of("deepseek_v4")
    with caplog.at_level(logging.WARNING):
        backbone.add_adapter("policy", AdapterConfig(rank=2), seed=1)
    assert "self_attn.o_a_proj" in caplog.text
    names = backbone.adapter_parameters("policy")
    assert any("self_attn" in name for name in names)
    assert not any("o_a_proj" in name for name in names)
    stir(Role(backbone, adapter="policy"))
    backbone.activate("policy")
    before = plain_logprobs(backbone, list(range(5, 20)), 5)
    backbone.merge("policy")
    torch.testing.assert_close(plain_logprobs(backbone, list(range(5, 20)), 5), before, **CLOSE)


@pytest.mark.parametrize("kind", ["zamba"])
def test_weights_of_several_layers_get_no_adapter(kind: str, caplog):
    """The attention of Zamba is one block that several layers call: merged there, an adapter would change them all."""
    backbone = backbone_of(kind)
    with caplog.at_level(logging.WARNING):
        backbone.add_adapter("policy", AdapterConfig(rank=2, top_layers=2), seed=1)
    assert "no adapter on shared_transf" in caplog.text
    assert not any("shared_transf" in name for name in backbone.adapter_parameters("policy"))
    stir(Role(backbone, adapter="policy"))
    backbone.activate("policy")
    before = plain_logprobs(backbone, list(range(5, 20)), 5)
    backbone.merge("policy")
    torch.testing.assert_close(plain_logprobs(backbone, list(range(5, 20)), 5), before, **CLOSE)


@pytest.mark.parametrize("kind", ["llama4_text", "mllama"])
def test_models_without_hidden_states_are_refused(kind: str):
    with pytest.raises(ModelError, match="gives no hidden states"):
        backbone_of(kind)


# All of them ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_family_is_right_or_refused(kind: str):
    """A model that can be made tiny either gives transformers' numbers everywhere, or does not load.

    Windows are shorter than the rows.
    """
    try:
        model = tiny(kind, **short_windows(kind))
        with torch.no_grad():
            model(input_ids=torch.arange(3, 12)[None])
    except Exception as error:
        pytest.skip(f"no tiny model of it: {error}")
    try:
        check_family(kind, model)
    except ModelError:
        pass
