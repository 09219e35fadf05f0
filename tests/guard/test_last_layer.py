"""The adapter computes what merged weights compute, changes no weight of the model, and learns what a probe cannot."""

import copy
from random import Random

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from trimtab import fast_cpu
from trimtab.errors import ConfigError
from trimtab.guard.activations import encode, pooled_texts
from trimtab.guard.last_layer import (
    ALPHA,
    MEAN,
    RANK,
    LastLayer,
    LowRank,
    adapted,
    adapted_names,
    fit_last_layer,
    last_inputs,
    last_states,
    states_of,
)
from trimtab.guard.probe import Probe
from trimtab.models import AdapterConfig, Role
from trimtab.testing import sentences, tiny_backbone

TEXTS = [" ".join(sentences(n, start=10 * n)) for n in (1, 10, 2)]
LINEAR = {
    "llama": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
              "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
}  # fmt: skip


def random_adapter(backbone, names) -> dict[str, LowRank]:
    draw = torch.Generator().manual_seed(3)
    lora = {}
    for name in names:
        module = backbone.layers[-1].get_submodule(name)
        out, width = module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.T.shape
        lora[name] = LowRank(torch.randn(RANK, width, generator=draw) / 4, torch.randn(out, RANK, generator=draw) / 4)
    return lora


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_adapter_computes_what_merged_weights_compute(architecture):
    backbone = tiny_backbone(architecture)
    lora = random_adapter(backbone, LINEAR[architecture])
    tokens = torch.tensor([[5, 6, 7, 8]])
    names, before = list(dict(backbone.model.named_parameters())), backbone.hidden(tokens, adapter=None)
    merged = copy.deepcopy(backbone.model)
    last = next(name for name, module in backbone.model.named_modules() if module is backbone.layers[-1])
    for name, part in lora.items():
        module = merged.get_submodule(f"{last}.{name}")
        update = ALPHA / RANK * part.b @ part.a
        module.weight.data += update if isinstance(module, torch.nn.Linear) else update.T
    with torch.no_grad():
        expected = merged.base_model(tokens).last_hidden_state
    with adapted(backbone, lora):
        inside = backbone.hidden(tokens, adapter=None)
    torch.testing.assert_close(inside, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(inside, before, atol=1e-2)
    torch.testing.assert_close(backbone.hidden(tokens, adapter=None), before, atol=0, rtol=0)
    assert list(dict(backbone.model.named_parameters())) == names


@pytest.mark.parametrize("fast", [True, False])
def test_under_an_adapter_of_the_policy_it_still_computes_what_merged_weights_compute(fast):
    if fast:
        fast_cpu.install()
    try:
        backbone = tiny_backbone()
        role = Role.trainable(backbone, "policy", AdapterConfig(rank=2), seed=0)
    finally:
        fast_cpu.uninstall()
    with torch.no_grad():
        for parameter in role.parameters().values():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(4))
    lora = random_adapter(tiny_backbone(), LINEAR["llama"])
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        outside = backbone.hidden(tokens, adapter="policy")
        with adapted(backbone, lora):
            inside = backbone.hidden(tokens, adapter="policy")
        torch.testing.assert_close(backbone.hidden(tokens, adapter="policy"), outside, atol=0, rtol=0)
        for name, part in lora.items():
            backbone.layers[-1].get_submodule(f"{name}.base_layer").weight += ALPHA / RANK * part.b @ part.a
        expected = backbone.hidden(tokens, adapter="policy")
    torch.testing.assert_close(inside, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(inside, outside, atol=1e-2)
    assert not torch.allclose(outside, backbone.hidden(tokens, adapter=None), atol=1e-2)


def test_a_last_layer_without_linear_layers_is_refused_in_the_options_of_a_guard(monkeypatch, caplog):
    backbone = tiny_backbone()
    assert adapted_names(backbone) == LINEAR["llama"]
    monkeypatch.setattr("trimtab.models.adapting._unsuitable", lambda model, linear, tokens: set(linear))
    with pytest.raises(ConfigError, match="leave --escalate out, or name another --model") as caught:
        adapted_names(backbone)
    assert "adapter." not in str(caught.value) and not caplog.records


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_last_layer_alone_gives_the_states_of_the_whole_model(architecture):
    backbone = tiny_backbone(architecture)
    lora = random_adapter(backbone, LINEAR[architecture])
    states = states_of(backbone, last_inputs(backbone, TEXTS), lora)
    with adapted(backbone, lora):
        for i, text in enumerate(TEXTS):  # alone, so without padding
            [row] = encode(backbone, text)
            expected: list[torch.Tensor] = []
            handle = backbone.layers[-1].register_forward_hook(
                lambda _m, _i, out, into=expected: into.append(out[0] if isinstance(out, tuple) else out)
            )
            backbone.model(torch.tensor([row]))
            handle.remove()
            np.testing.assert_allclose(states[i], expected[0][0, 1:].mean(dim=0).detach().numpy(), atol=1e-4)
    head = Probe(np.ones(backbone.width, np.float32), 0.5)
    logits = LastLayer(lora, head).logits(backbone, TEXTS)
    with adapted(backbone, lora):
        pooled = pooled_texts(backbone, TEXTS, [len(backbone.layers)])
    highest = [max(float(row.sum()) + 0.5 for row in p[:, MEAN, 0]) for p in pooled]
    assert [len(p) > 1 for p in pooled] == [False, True, False]  # the second text has windows
    np.testing.assert_allclose(logits, highest, rtol=1e-4)


def test_gradients_of_the_adapter_are_those_of_finite_differences():
    backbone = tiny_backbone()
    lora = random_adapter(backbone, LINEAR["llama"])
    [inputs] = last_inputs(backbone, TEXTS)
    part = lora["mlp.up_proj"]

    def value() -> torch.Tensor:
        with adapted(backbone, lora):
            return last_states(backbone, inputs).square().sum()

    part.b.requires_grad_(True)
    value().backward()
    slope, part.b.grad = part.b.grad, None
    part.b.requires_grad_(False)
    for place in ((0, 0), (7, 3)):
        step = torch.zeros_like(part.b)
        step[place] = 1e-2
        with torch.no_grad():
            part.b.add_(step)
            above = float(value())
            part.b.sub_(2 * step)
            below = float(value())
            part.b.add_(step)
        assert float(slope[place]) == pytest.approx((above - below) / 2e-2, rel=2e-2, abs=1e-2)


def either_but_not_both(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Texts of two colours and four other words; restricted if exactly one of two colours is there twice."""
    draw, texts, labels = Random(seed), [], []
    words = "book cup day door field garden house lake moon paper road tree water window".split()
    for _ in range(count):
        first, second = draw.choice(["red", "blue"]), draw.choice(["green", "yellow"])
        texts.append(" ".join([first, *draw.sample(words, 2), second, *draw.sample(words, 2)]))
        labels.append(int((first == "red") != (second == "green")))
    return texts, np.array(labels)


def test_training_finds_what_a_linear_probe_does_not_and_changes_no_weight():
    backbone = tiny_backbone(width=48)
    texts, y = either_but_not_both(320, 0)
    inputs = last_inputs(backbone, texts)
    use = np.arange(320) < 224
    before = {name: p.clone() for name, p in backbone.model.named_parameters()}
    scores = {}
    for epochs in (0, 15):
        model = fit_last_layer(backbone, inputs, y, use, adapted_names(backbone), epochs=epochs)
        z = model.head.logits(states_of(backbone, inputs, model.lora))
        scores[epochs] = roc_auc_score(y[~use], z[~use])
    assert scores[15] > scores[0] + 0.1
    assert all(torch.equal(p, before[name]) for name, p in backbone.model.named_parameters())


def test_no_epoch_is_a_linear_probe_and_a_seed_repeats():
    backbone = tiny_backbone()
    texts, y = either_but_not_both(60, 1)
    inputs, use = last_inputs(backbone, texts), np.arange(60) < 40
    probe = fit_last_layer(backbone, inputs, y, use, adapted_names(backbone), epochs=0)
    states = np.stack([p[0, MEAN, 0].numpy() for p in pooled_texts(backbone, texts, [len(backbone.layers)])])
    expected = Probe.fit(states[use], y[use])
    np.testing.assert_allclose(probe.head.logits(states), expected.logits(states), atol=1e-3)
    assert all(not part.b.any() for part in probe.lora.values())
    first, second = (
        fit_last_layer(backbone, inputs, y, use, adapted_names(backbone), epochs=1, seed=5) for _ in range(2)
    )
    np.testing.assert_array_equal(first.head.weights, second.head.weights)
    assert any(part.b.any() for part in first.lora.values())
    flipped = np.where(use, y, 1 - y)  # labels of texts that are not used change nothing
    third = fit_last_layer(backbone, inputs, flipped, use, adapted_names(backbone), epochs=1, seed=5)
    np.testing.assert_array_equal(first.head.weights, third.head.weights)


def test_a_model_of_another_shape_is_refused():
    lora = random_adapter(tiny_backbone(), LINEAR["llama"])
    with pytest.raises(ConfigError, match="train a guard for this model"), adapted(tiny_backbone(width=16), lora):
        pass
    with pytest.raises(ConfigError, match="no such layer"), adapted(tiny_backbone("gpt2"), lora):
        pass
