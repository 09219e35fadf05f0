"""A policy's activations for linear probes: hidden states at chosen layers, read while the model runs, and pooled.

Legend: T tokens, L chosen layers, H width of the model, W windows, P = 3 poolings. Layer n (1 … number of layers) is
the state after n decoder layers.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.models import Backbone
from trimtab.models.batch import padded

POOLINGS = ("mean", "max", "last")
"""How the states of many tokens become one vector, in the order of axis P in :func:`pooled`."""

WINDOW = 64
"""Tokens per window; windows overlap by half."""

PIECE = 512
"""A text with more tokens is read in pieces of this many."""

PASS = 2048
"""Most padded tokens in one forward pass, unless a single row is longer."""


class _HighestLayerReached(Exception):
    """Ends a forward pass after the highest layer that is read."""


@contextmanager
def layer_states(backbone: Backbone, layers: Sequence[int], *, stop: bool = False) -> Iterator[dict[int, Tensor]]:
    """Context with the states after each chosen layer in the newest forward pass, ``[B, T, H]`` by layer.

    The server opens it around its own decoding steps, so a probe needs no extra forward pass.

    Args:
        backbone: the model.
        layers: 1 … number of layers.
        stop: True: end each forward pass after the highest chosen layer, with an exception that :func:`read` catches.

    Raises:
        ConfigError: the model has no such layer.
    """
    count = len(backbone.layers)
    out_of_range = [n for n in layers if not 1 <= n <= count]
    if out_of_range:
        raise ConfigError(f"layer {out_of_range[0]} is not one of 1 to {count}; name layers that the model has")
    states: dict[int, Tensor] = {}

    def keep(number: int, _module: Any, _inputs: Any, output: Any) -> None:
        states[number] = output[0] if isinstance(output, tuple) else output
        if stop and number == max(layers):
            raise _HighestLayerReached

    with ExitStack() as hooks:
        for number in layers:
            hooks.enter_context(backbone.layers[number - 1].register_forward_hook(partial(keep, number)))
        yield states


@torch.no_grad()
def read(
    backbone: Backbone, rows: Sequence[Sequence[int]], layers: Sequence[int], *, adapter: str | None = None
) -> Iterator[tuple[int, Tensor]]:
    """States of token sequences at the chosen layers; the layers above the highest one are not run.

    Rows of similar length share a forward pass.

    Args:
        backbone: the model.
        rows: token ids, at least one each, at most the model's context.
        layers: as for :func:`layer_states`.
        adapter: the adapter whose weights are used; None: the trunk.

    Yields:
        each row's index in ``rows`` and its states ``[T, L, H]``, float32, on the CPU; shortest rows first.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with layer_states(backbone, layers, stop=True) as states:
        while order:
            size = 1
            while size < len(order) and (size + 1) * len(rows[order[size]]) <= PASS:
                size += 1
            batch, order = order[:size], order[size:]
            with suppress(_HighestLayerReached):
                backbone.hidden(padded([rows[i] for i in batch]).to(backbone.device), adapter=adapter)
            stacked = torch.stack([states[n] for n in layers], dim=2).float().cpu()
            for row, i in enumerate(batch):
                yield i, stacked[row, : len(rows[i])]


def encode(backbone: Backbone, text: str) -> list[list[int]]:
    """A text as rows for :func:`read`: the end-of-turn token, then at most :data:`PIECE` tokens of the text.

    The text is encoded without the chat template, and control tokens in it are encoded as plain characters. The first
    token attracts attention whatever the text says, so all poolings leave its states out.
    """
    chat = backbone.chat
    tokens = chat.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    size = min(PIECE, chat.context - 1)
    return [[chat.end_token, *tokens[i : i + size]] for i in range(0, len(tokens), size)] or [[chat.end_token]]


def pooled(states: Tensor, *, window: int = WINDOW) -> Tensor:
    """One vector per pooling for all tokens together, and for each window if there are several.

    Args:
        states: ``[T, L, H]``.
        window: tokens of a window.

    Returns:
        ``[1 + W, P, L, H]``: row 0 is the whole text; W is 0 if it fits one window. Poolings as in :data:`POOLINGS`.
    """
    starts = range(0, len(states) - window // 2, window // 2) if len(states) > window else ()
    spans = [states, *(states[s : s + window] for s in starts)]
    return torch.stack([torch.stack([x.mean(dim=0), x.amax(dim=0), x[-1]]) for x in spans])


def pooled_texts(
    backbone: Backbone,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    adapter: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Pooled states of texts.

    Args:
        backbone: the model.
        texts: the texts, of any length.
        layers: as for :func:`layer_states`.
        adapter: the adapter whose weights are used; None: the trunk.
        dtype: type of the result; float16 halves the memory of large sets.

    Returns:
        for each text ``[1 + W, P, L, H]`` as from :func:`pooled`. For a long text, the rows of all its pieces are
        concatenated, so row 0 is the whole first piece.
    """
    rows = [(number, row) for number, text in enumerate(texts) for row in encode(backbone, text)]
    parts: dict[int, Tensor] = {}
    for i, states in read(backbone, [row for _, row in rows], layers, adapter=adapter):
        parts[i] = pooled(states[1:] if len(states) > 1 else states).to(dtype)
    result: list[list[Tensor]] = [[] for _ in texts]
    for i, (number, _) in enumerate(rows):
        result[number].append(parts[i])
    return [torch.cat(of_text) for of_text in result]
