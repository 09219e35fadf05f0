"""A key-value cache with one slot per running answer, allocated once, filled in place."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache


def repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """Repeat a cache of one row as ``rows`` equal rows; appending to the result does not change ``cache``."""
    result = DynamicCache()
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        keys, values = (x.expand(rows, -1, -1, -1) for x in (layer.keys, layer.values))
        result.update(keys, values, number)
    return result


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, ``[slots, heads, length, size]``.

    In decoding, each of the first ``active`` slots receives one new position at ``where``.
    """

    def __init__(self, slots: int, length: int) -> None:
        super().__init__()
        self.slots, self.length = slots, length
        self.where: Tensor = torch.empty(0, dtype=torch.int64)
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate on first use, when shapes are known."""
        shape = (self.slots, key_states.shape[1], self.length)
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one position per active slot; return the used part of the cache."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        active = key_states.shape[0]
        row = torch.arange(active, device=key_states.device)
        self.keys[row, :, self.where] = key_states[:, :, 0]
        self.values[row, :, self.where] = value_states[:, :, 0]
        return self.keys[:active, :, : self.seen], self.values[:active, :, : self.seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the positions that attention covers."""
        return self.seen, 0

    def get_seq_length(self) -> int:
        """Number of positions in use."""
        return self.seen

    def get_max_length(self) -> int:
        """Number of allocated positions."""
        return self.length


class SlotCache(Cache):
    """Slots for ``slots`` answers of up to ``length`` tokens, prompt included."""

    def __init__(self, layers: int, slots: int, length: int) -> None:
        self.slot_layers = [SlotLayer(slots, length) for _ in range(layers)]
        super().__init__(layers=[*self.slot_layers])

    def fill(self, slot: int, prefill: Any, row: int, length: int) -> None:
        """Copy a prompt's keys and values from a prefill batch into a slot (a fork of the prompt's cache)."""
        for layer, source in zip(self.slot_layers, prefill.layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(source.keys, source.values)
            assert layer.keys is not None and layer.values is not None
            layer.keys[slot, :, :length] = source.keys[row, :, :length]
            layer.values[slot, :, :length] = source.values[row, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one slot over another."""
        for layer in self.slot_layers:
            assert layer.keys is not None and layer.values is not None
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def place(self, where: Tensor, seen: int) -> None:
        """Set where the next position of each active slot is written, and how many positions attention covers."""
        for layer in self.slot_layers:
            layer.where, layer.seen = where, seen
