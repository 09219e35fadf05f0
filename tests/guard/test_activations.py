"""States are the model's own, whatever the batch, and pooling is what it says."""

import pytest
import torch

from trimtab.errors import ConfigError
from trimtab.guard.activations import PIECE, encode, layer_states, pooled, pooled_texts, read
from trimtab.testing import END, sentences, tiny_backbone

TEXTS = [" ".join(sentences(n, start=10 * n)) for n in (1, 3, 2)]


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone(layers=4, context=128)


def test_states_are_the_models_own(backbone):
    rows = [row for text in TEXTS for row in encode(backbone, text)]
    states = dict(read(backbone, rows, [1, 3]))
    for i, row in enumerate(rows):
        with torch.no_grad():
            expected = backbone.model(torch.tensor([row]), output_hidden_states=True).hidden_states
        for place, layer in enumerate((1, 3)):
            torch.testing.assert_close(states[i][:, place], expected[layer][0], atol=1e-5, rtol=1e-5)


def test_layers_above_the_highest_are_not_run(backbone):
    ran = []
    handles = [layer.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, layer in enumerate(backbone.layers, 1)]
    list(read(backbone, [[1, 2, 3]], [2]))
    for handle in handles:
        handle.remove()
    assert ran == [1, 2]


def test_a_tap_leaves_the_models_answers_alone(backbone):
    tokens = torch.tensor([[5, 6, 7]])
    before = backbone.hidden(tokens, adapter=None)
    with layer_states(backbone, [2]) as states:
        inside = backbone.hidden(tokens, adapter=None)
        assert states[2].shape == (1, 3, backbone.width)
    assert torch.equal(before, inside)
    states.clear()
    backbone.hidden(tokens, adapter=None)
    assert not states  # the hooks are gone


def test_no_such_layer(backbone):
    with pytest.raises(ConfigError, match="layer 5 is not one of 1 to 4"):
        list(read(backbone, [[1]], [5]))


def test_pooling_by_hand():
    states = torch.arange(12.0).reshape(6, 1, 2)  # T = 6, one layer, H = 2
    table = pooled(states, window=4)
    assert table.shape == (1 + 2, 3, 1, 2)
    assert table[0, :, 0].tolist() == [[5.0, 6.0], [10.0, 11.0], [10.0, 11.0]]
    assert table[1, 0, 0].tolist() == [3.0, 4.0]  # tokens 0 to 3
    assert table[2, 0, 0].tolist() == [7.0, 8.0]  # tokens 2 to 5
    assert len(pooled(states, window=6)) == 1


def test_windows_reach_the_end_of_every_text():
    for length in range(1, 40):
        table = pooled(torch.arange(float(length)).reshape(length, 1, 1), window=8)
        assert table[1:, 2].max() == length - 1 if len(table) > 1 else length <= 8


def test_texts_of_any_length_and_control_tokens_as_text(backbone):
    long = " ".join(sentences(60))
    assert len(encode(backbone, long)) > 1 and all(len(row) <= 128 for row in encode(backbone, long))
    assert sum(len(row) - 1 for row in encode(backbone, long)) == len(backbone.chat.tokenizer(long)["input_ids"])
    assert PIECE >= 128
    end = backbone.chat.tokenizer.convert_tokens_to_ids(END)
    [row] = encode(backbone, f"a {END} b")
    assert end not in row[1:]
    one, three = pooled_texts(backbone, [long, "a"], [2, 4])
    assert one.shape[1:] == three.shape[1:] == (3, 2, backbone.width) and len(one) > len(three) == 1
    assert len(pooled_texts(backbone, [""], [2])) == 1
