"""Log-probabilities, entropies and their gradients against the formula written with library calls, in float64."""

import pytest
import torch

from trimtab.models.head import token_logprobs, token_logprobs_and_entropies


def made(rows: int, *, bias: bool):
    generator = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(11, generator=generator, dtype=torch.float64, requires_grad=True) if bias else None
    return states, torch.randint(0, 11, (rows,), generator=generator), weight, offset


def by_library(states, targets, weight, bias, temperature):
    table = torch.log_softmax(torch.nn.functional.linear(states, weight, bias) / temperature, dim=-1)
    return table.gather(-1, targets[:, None]).squeeze(-1), -(table.exp() * table).sum(-1)


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("chunk", [1024, 3, 0])  # 0: a vocabulary wider than the table may be
def test_equals_the_formula(monkeypatch: pytest.MonkeyPatch, rows, bias, temperature, gradient, chunk):
    monkeypatch.setattr("trimtab.models.head.TABLE", 11 * chunk + 1)
    inputs = made(rows, bias=bias)
    weights = torch.linspace(-1, 2, rows, dtype=torch.float64)
    wanted, spread = by_library(*inputs, temperature)
    ours, entropies = token_logprobs_and_entropies(*inputs, temperature=temperature, gradient=gradient)
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropies.double(), spread, rtol=1e-5, atol=1e-6)
    leaves = [x for x in (inputs[0], inputs[2], inputs[3]) if x is not None]
    goal = (wanted * weights).sum() + (spread * weights.flip(0)).sum() * gradient
    own = (ours * weights).sum() + ((entropies * weights.flip(0)).sum() if gradient else 0.0)
    for a, b in zip(torch.autograd.grad(own, leaves), torch.autograd.grad(goal, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(token_logprobs(*inputs, temperature=temperature), ours)


def test_entropies_without_a_gradient_say_so():
    assert not token_logprobs_and_entropies(*made(4, bias=False))[1].requires_grad


def test_no_tokens_give_no_numbers():
    states, targets, weight, _ = made(4, bias=False)
    assert token_logprobs(states[:0], targets[:0], weight).shape == (0,)


def test_a_frozen_projection_gets_no_gradient():
    states, targets, weight, _ = made(4, bias=False)
    weight.requires_grad_(False)
    token_logprobs(states, targets, weight).sum().backward()
    assert states.grad is not None and weight.grad is None


def test_bfloat16_products_under_autocast():
    states, targets, weight, _ = made(40, bias=False)
    states, weight = states.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    wanted = torch.autograd.grad(token_logprobs(states, targets, weight).sum(), [states, weight])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = token_logprobs(states, targets, weight)
    assert result.dtype == torch.float32
    for a, b in zip(torch.autograd.grad(result.sum(), [states, weight]), wanted, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)
