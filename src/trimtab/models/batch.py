"""From lists of tokens to right-padded tensors, and from one batch to micro-batches of equal length.

Legend: B sequences, T tokens. Column t of every ``[B, T]`` tensor is about token t itself: its
log-probability given all tokens before it, the value of the state before it was produced.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(kw_only=True)
class Batch:
    """Token sequences with what is known about each token or sequence."""

    tokens: Tensor
    """``[B, T]`` int64, right-padded with zeros (never looked at)."""
    response_mask: Tensor
    """``[B, T]`` bool; True: the model produces this token and it counts."""
    lengths: Tensor
    """``[B]`` int64, real tokens of each row."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """Further tensors whose first dimension is B and second, if any, is T."""

    @property
    def size(self) -> int:
        """Number of sequences."""
        return self.tokens.shape[0]

    def rows(self, index: Tensor) -> "Batch":
        """The given rows, cut to the longest of them."""
        width = int(self.lengths[index].max())
        total = self.tokens.shape[1]

        def take(x: Tensor) -> Tensor:
            picked = x[index]
            return picked[:, :width] if picked.dim() > 1 and picked.shape[1] == total else picked

        return Batch(
            tokens=take(self.tokens),
            response_mask=take(self.response_mask),
            lengths=self.lengths[index],
            columns={name: take(x) for name, x in self.columns.items()},
        )

    def micro_batches(self, token_budget: int) -> Iterator[tuple[Tensor, "Batch"]]:
        """Split into parts of similar length with at most ``token_budget`` padded tokens each (one row at least).

        Yields:
            the row indices of a part, and the part.
        """
        order = torch.argsort(self.lengths, stable=True)
        lengths = self.lengths[order].tolist()
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and lengths[stop] * (stop + 1 - start) <= token_budget:
                stop += 1
            index = order[start:stop]
            yield index, self.rows(index)
            start = stop


def collate(sequences: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], device: torch.device) -> Batch:
    """Right-pad sequences and their response masks into one batch."""
    lengths = [len(s) for s in sequences]
    width = max(lengths)
    tokens = torch.tensor([[*s, *[0] * (width - n)] for s, n in zip(sequences, lengths, strict=True)])
    response = torch.tensor([[*m, *[False] * (width - n)] for m, n in zip(masks, lengths, strict=True)])
    return Batch(tokens=tokens.to(device), response_mask=response.to(device), lengths=torch.tensor(lengths).to(device))


def scatter(values: Sequence[Sequence[float]], response_mask: Tensor) -> Tensor:
    """Place per-response-token values at the True positions of ``response_mask``; zero elsewhere. ``[B, T]``."""
    out = torch.zeros(response_mask.shape, dtype=torch.float32, device=response_mask.device)
    flat = [v for row in values for v in row]
    out[response_mask] = torch.tensor(flat, dtype=torch.float32, device=response_mask.device)
    return out


def pack(
    sequences: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], width: int, device: torch.device
) -> Batch:
    """Put several sequences into rows of at most ``width`` tokens, longest first, each where it first fits.

    Columns ``segments`` (``[B, T]``, which sequence a token belongs to, −1 = padding) and ``positions``
    (``[B, T]``, counted within the sequence) keep the sequences apart: attention never crosses from one
    to another, so a packed row gives the same numbers as separate rows.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        length = len(sequences[index])
        place = next((r for r, free in enumerate(room) if free >= length), None)
        if place is None:
            rows.append([])
            room.append(max(width, length))
            place = len(rows) - 1
        rows[place].append(index)
        room[place] -= length
    joined = [[t for i in row for t in sequences[i]] for row in rows]
    batch = collate(joined, [[m for i in row for m in masks[i]] for row in rows], device)
    segments = torch.full(batch.tokens.shape, -1, dtype=torch.int64)
    positions = torch.zeros(batch.tokens.shape, dtype=torch.int64)
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            length = len(sequences[index])
            segments[number, start : start + length] = index
            positions[number, start : start + length] = torch.arange(length)
            start += length
    batch.columns |= {"segments": segments.to(device), "positions": positions.to(device)}
    return batch


class LowerCache:
    """Hidden states below the lowest adapter, kept per sequence, so that later epochs do not run them again.

    Args:
        limit_mb: megabytes to hold; what does not fit is computed each time.
    """

    def __init__(self, limit_mb: float) -> None:
        self._kept: dict[str, Tensor] = {}
        self._room = limit_mb * 1e6

    def fill(self, batch: Batch, keys: Sequence[str], lower: Callable[[Tensor], Tensor | None]) -> None:
        """Put the column ``lower`` into ``batch``; ``keys`` name its rows, equal tokens by equal keys."""
        if all(key in self._kept for key in keys):
            rows = [self._kept[key] for key in keys]
            found = rows[0].new_zeros(len(rows), batch.tokens.shape[1], rows[0].shape[-1])
            for number, row in enumerate(rows):
                found[number, : len(row)] = row
            batch.columns["lower"] = found
            return
        computed = lower(batch.tokens)
        if computed is None:
            return
        batch.columns["lower"] = computed
        for number, (key, length) in enumerate(zip(keys, batch.lengths.tolist(), strict=True)):
            row = computed[number, :length]
            size = row.numel() * row.element_size()
            if key not in self._kept and size <= self._room:
                self._kept[key] = row.clone()
                self._room -= size


def block_diagonal_mask(segments: Tensor) -> Tensor:
    """``[B, 1, T, T]`` bool, True where a token may look: itself and earlier tokens of its own segment."""
    width = segments.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    return ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]
