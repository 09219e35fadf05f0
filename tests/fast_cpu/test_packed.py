"""Packed weights compute what the plain ones do, and leave no trace."""

import pytest
import torch
from torch import nn

from trimtab.fast_cpu.packed import packed


@pytest.mark.parametrize("rows", [1, 3, 32, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_same_numbers_at_any_number_of_rows(rows, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 80, bias=bias), torch.randn(rows, 2, 48)
    with torch.no_grad():
        wanted = layer(x)
        with packed(layer):
            assert "forward" in layer.__dict__
            torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(layer(x), wanted)


def test_the_layers_own_forward_comes_back_after_an_error():
    layer = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).half())
    with pytest.raises(RuntimeError, match="on purpose"), packed(layer):
        assert "forward" in layer[0].__dict__ and "forward" not in layer[1].__dict__  # only float32 is packed
        raise RuntimeError("on purpose")
    assert "forward" not in layer[0].__dict__
