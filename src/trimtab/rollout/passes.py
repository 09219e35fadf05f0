"""Passes of a model over a cache with slots, used by the trainers' sampler and the server's engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.models import Backbone
from trimtab.models.cache import SlotCache
from trimtab.models.kernels import Decoder


class Passes:
    """A backbone, its slots, and the layer whose output is recorded.

    Args:
        backbone: the model, with the weights to compute with.
        slots: answers that can be decoded at the same time.
        length: tokens of the longest sequence, prompt included.
        decoder: a faster decoding step; None: the model's own.
        recorded_layer: each pass returns the states after this many layers; 0: none.
    """

    def __init__(
        self, backbone: Backbone, slots: int, length: int, *, decoder: Decoder | None = None, recorded_layer: int = 0
    ) -> None:
        self.backbone = backbone
        self.cache = SlotCache(len(backbone.layers), slots, length)
        self.decoder = decoder
        self.recorded: nn.Module | None = backbone.layers[recorded_layer - 1] if recorded_layer else None

    def run(self, **inputs: Any) -> tuple[Tensor, Tensor | None]:
        """Final hidden states of a pass through the model, and those of the recorded layer."""
        with _output_of(self.recorded) as outputs:
            output = self.backbone.model.base_model(use_cache=True, **inputs)
        return output.last_hidden_state, outputs[0] if outputs else None

    def read(self, tokens: list[int], where: list[int]) -> tuple[Tensor, Tensor | None]:
        """Read one token in each of the first slots; return final and recorded states, ``[B, H]`` each.

        Args:
            tokens: one for each running answer, in the order of slots.
            where: their positions; all earlier ones are in the cache.
        """
        device = self.backbone.device
        places = torch.tensor(where, device=device)
        ids = torch.tensor(tokens, device=device)
        if self.decoder is not None:
            return self.decoder(ids, places, self.cache)
        seen = int(places.max()) + 1
        self.cache.place(places, seen)
        mask = torch.arange(seen, device=device)[None, :] <= places[:, None]
        final, states = self.run(
            input_ids=ids[:, None],
            position_ids=places[:, None],
            attention_mask=self.backbone.mask(mask[:, None, None, :]),
            past_key_values=self.cache,
        )
        return final[:, 0], None if states is None else states[:, 0]


@contextmanager
def _output_of(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """Append the output of each pass through ``layer`` to the list; for None the list stays empty."""
    outputs: list[Tensor] = []
    if layer is None:
        yield outputs
        return

    def keep(_module: nn.Module, _inputs: Any, out: Any) -> None:
        outputs.append(out[0] if isinstance(out, tuple) else out)

    with layer.register_forward_hook(keep):
        yield outputs
