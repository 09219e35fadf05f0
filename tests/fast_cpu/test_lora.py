"""The adapter's own forward and backward pass against PEFT's, and where PEFT's must stay in charge."""

import copy

import pytest
import torch
from peft.tuners.lora.layer import Linear

from trimtab.fast_cpu.lora import OneFunctionLinear, lora_linear
from trimtab.models import AdapterConfig, Backbone
from trimtab.testing import tiny_backbone


def adapted(**settings) -> Backbone:
    backbone = tiny_backbone()
    backbone.add_adapter("one", AdapterConfig(rank=4, alpha=8, **settings), seed=1)
    with torch.no_grad():
        for weight in backbone.adapter_parameters("one").values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) * 0.1)
    return backbone


def plainly(backbone: Backbone) -> Backbone:
    """A copy in which PEFT's own code computes."""
    other = copy.deepcopy(backbone)
    for module in other.model.modules():
        if type(module) is OneFunctionLinear:
            module.__class__ = Linear
    return other


def slopes(backbone: Backbone, tokens: torch.Tensor, adapter: str = "one") -> tuple[torch.Tensor, dict]:
    hidden = backbone.hidden(tokens, adapter=adapter)
    weights = backbone.adapter_parameters(adapter)
    return hidden, dict(zip(weights, torch.autograd.grad(hidden.square().sum(), list(weights.values())), strict=True))


def test_one_layer_in_double_precision_against_numbers_by_finite_differences():
    torch.manual_seed(0)
    x, a, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 5), (2, 5), (4, 2)))
    weight, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, weight, bias, a, b, 1.7), (x, a, b))
    by_hand = x @ weight.T + bias + 1.7 * (x @ a.T) @ b.T
    torch.testing.assert_close(lora_linear(x, weight, bias, a, b, 1.7), by_hand)


@pytest.mark.parametrize("settings", [{}, {"top_layers": 2}], ids=["all layers", "upper layers"])
def test_same_states_and_gradients_as_peft(settings):
    quick = adapted(**settings)
    assert any(type(module) is OneFunctionLinear for module in quick.model.modules())
    tokens = torch.randint(1, 60, (3, 11), generator=torch.Generator().manual_seed(2))
    ours, result = slopes(quick, tokens)
    theirs, wanted = slopes(plainly(quick), tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert result.keys() == wanted.keys()
    for name, slope in result.items():
        torch.testing.assert_close(slope, wanted[name], rtol=1e-4, atol=1e-4 * float(wanted[name].abs().max()))


def test_what_comes_out_may_be_changed_in_place():
    """Some models clamp queries where they stand."""
    torch.manual_seed(0)
    weight, a, b = torch.randn(4, 5), torch.randn(2, 5, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    for bias in (None, torch.randn(4)):
        x, result = torch.randn(2, 3, 5), []
        result.append(torch.autograd.grad(lora_linear(x, weight, bias, a, b, 1.7).clamp_(-1, 1).sum(), (a, b)))
        result.append(torch.autograd.grad(lora_linear(x, weight, bias, a, b, 1.7).clamp(-1, 1).sum(), (a, b)))
        assert all(torch.equal(one, other) for one, other in zip(*result, strict=True))


def test_a_copy_computes_with_its_own_weights():
    backbone = adapted()
    tokens = torch.arange(1, 9)[None]
    before = backbone.hidden(tokens, adapter="one").detach()
    other = backbone.copy()
    with torch.no_grad():
        for weight in other.adapter_parameters("one").values():
            weight.zero_()
    torch.testing.assert_close(backbone.hidden(tokens, adapter="one"), before)
    torch.testing.assert_close(other.hidden(tokens, adapter="one"), backbone.hidden(tokens, adapter=None))


@pytest.mark.parametrize("case", ["dropout", "autocast", "two active", "off"])
def test_pefts_code_stays_in_charge_of_everything_else(case, monkeypatch: pytest.MonkeyPatch):
    backbone = adapted(**({"dropout": 0.5} if case == "dropout" else {}))
    layer = next(m for m in backbone.model.modules() if type(m) is OneFunctionLinear)
    x, taken = torch.randn(2, layer.in_features), []
    monkeypatch.setattr("trimtab.fast_cpu.lora.lora_linear", lambda *args: taken.append(args) or torch.zeros(1))
    backbone.activate("one")
    layer(x)
    assert len(taken) == 1  # as it is
    if case == "dropout":
        backbone.train(True, full=False)
    if case == "two active":
        backbone.add_adapter("two", AdapterConfig(rank=4, alpha=8), seed=2)
        layer.set_adapter(["one", "two"])
        layer.enable_adapters(enabled=True)
        assert len(layer.active_adapters) == 2
    if case == "off":
        backbone.activate(None)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "autocast"):
        layer(x)
    assert len(taken) == 1
