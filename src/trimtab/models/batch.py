"""From lists of tokens to right-padded tensors, and from one batch to micro-batches of equal length.

Legend: B sequences, T tokens. Column t of every ``[B, T]`` tensor is about token t itself: its
log-probability given all tokens before it, the value of the state before it was produced.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

PASS_TOKENS = 4096
"""Padded tokens of a forward pass that trains nothing, where nobody says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrompts:
    """The same batch with each prompt once: a row is a prompt and, behind it, every answer to it.

    Legend: G distinct prompts, W tokens of the longest such row.
    """

    tokens: Tensor
    """``[G, W]`` int64."""
    positions: Tensor
    """``[G, W]`` int64; every answer counts on from its prompt."""
    attention: Tensor
    """``[G, 1, W, W]`` bool, True: may look at; an answer sees its prompt and itself, never another answer."""
    place: Tensor
    """``[B, T]`` int64: where token (b, t) of the batch is among the G·W."""
    source: Tensor
    """``[G·W]`` int64: a place among the B·T that each packed token comes from; 0 for padding."""

    def unpack(self, packed: Tensor) -> Tensor:
        """``[G, W, H]`` → ``[B, T, H]``."""
        flat = packed.flatten(0, 1).index_select(0, self.place.flatten())
        return flat.view(*self.place.shape, packed.shape[-1])

    def pack(self, rows: Tensor) -> Tensor:
        """``[B, T, H]`` → ``[G, W, H]``."""
        return rows.flatten(0, 1)[self.source].view(*self.tokens.shape, rows.shape[-1])


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
    """Further tensors whose first dimension is B and second, if any, is T. ``prompt_lengths`` (``[B]``) says how many
    tokens of a row are its prompt; rows with equal prompts then share one computation of it."""
    _shared: SharedPrompts | None = field(default=None, repr=False)

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

        Rows that share a prompt stay together as far as the budget allows; their prompt counts once. The largest part
        comes first: what it leaves free in memory holds all that follow.

        Yields:
            the row indices of a part, and the part.
        """
        lengths, prompts = self.lengths.tolist(), self._prompts()
        groups: list[tuple[int, list[int]]] = []  # packed tokens, rows
        for rows in self._groups():
            size, members = 0, []
            for row in rows:
                if members and size + lengths[row] - prompts[row] > token_budget:
                    groups.append((size, members))
                    size, members = 0, []
                size += lengths[row] - prompts[row] if members else lengths[row]
                members.append(row)
            groups.append((size, members))
        for part in parts_of_like_size([size for size, _ in groups], token_budget):
            rows = [row for place in part for row in groups[place][1]]
            index = torch.tensor(rows, device=self.tokens.device)
            yield index, self.rows(index)

    def shared_prompts(self) -> SharedPrompts | None:
        """The layout with each prompt once; None where no two rows share one."""
        if "prompt_lengths" not in self.columns:
            return None
        if self._shared is None:
            groups = self._groups()
            if len(groups) < self.size:
                self._shared = self._share(groups)
        return self._shared

    def _prompts(self) -> list[int]:
        known = self.columns.get("prompt_lengths")
        return [0] * self.size if known is None else known.tolist()

    def _groups(self) -> list[list[int]]:
        """Rows by prompt, in the order of their first row; every row is alone if prompts are not known."""
        if "prompt_lengths" not in self.columns:
            return [[row] for row in range(self.size)]
        found: dict[tuple[int, ...], list[int]] = {}
        for row, (tokens, count) in enumerate(zip(self.tokens.tolist(), self._prompts(), strict=True)):
            found.setdefault(tuple(tokens[:count]), []).append(row)
        return list(found.values())

    def _share(self, groups: list[list[int]]) -> SharedPrompts:
        lengths, prompts, total = self.lengths.tolist(), self._prompts(), self.tokens.shape[1]
        sizes = [prompts[rows[0]] + sum(lengths[row] - prompts[row] for row in rows) for rows in groups]
        width = max(sizes)
        place = torch.zeros(self.size, total, dtype=torch.int64)
        source = torch.zeros(len(groups) * width, dtype=torch.int64)
        segments = torch.full((len(groups) * width,), -1, dtype=torch.int64)  # 0: prompt, from 1 on: answers
        for number, rows in enumerate(groups):
            base, head = number * width, prompts[rows[0]]
            segments[base : base + head] = 0
            start = base + head
            for answer, row in enumerate(rows):
                count = lengths[row] - head
                place[row, :head] = torch.arange(base, base + head)
                place[row, head : head + count] = torch.arange(start, start + count)
                source[base : base + head] = torch.arange(row * total, row * total + head)
                source[start : start + count] = torch.arange(row * total + head, row * total + head + count)
                segments[start : start + count] = answer + 1
                start += count
        segments = segments.view(len(groups), width)
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        own = segments[:, :, None] == segments[:, None, :]
        device = self.tokens.device
        source = source.to(device)
        return SharedPrompts(
            tokens=self.tokens.flatten()[source].view(len(groups), width),
            positions=(source % total).view(len(groups), width),
            attention=((own | (segments[:, None, :] == 0)) & causal)[:, None].to(device),
            place=place.to(device),
            source=source,
        )


def parts_of_like_size(sizes: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of ``sizes`` in parts whose padded size, count × largest, is at most ``token_budget`` (one at least).

    The largest part comes first: what it leaves free in memory holds all that follow.
    """
    parts: list[list[int]] = []
    for place in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if parts and sizes[parts[-1][0]] * (len(parts[-1]) + 1) <= token_budget:
            parts[-1].append(place)
        else:
            parts.append([place])
    return sorted(parts, key=lambda part: -sizes[part[0]] * len(part))


def collate(
    sequences: Sequence[Sequence[int]],
    masks: Sequence[Sequence[bool]],
    device: torch.device,
    *,
    prompt_lengths: Sequence[int] | None = None,
) -> Batch:
    """Right-pad sequences and their response masks into one batch; see :attr:`Batch.columns` for ``prompt_lengths``."""
    lengths = [len(s) for s in sequences]
    width = max(lengths)
    tokens = torch.tensor([[*s, *[0] * (width - n)] for s, n in zip(sequences, lengths, strict=True)])
    response = torch.tensor([[*m, *[False] * (width - n)] for m, n in zip(masks, lengths, strict=True)])
    columns = {} if prompt_lengths is None else {"prompt_lengths": torch.tensor(list(prompt_lengths)).to(device)}
    return Batch(
        tokens=tokens.to(device),
        response_mask=response.to(device),
        lengths=torch.tensor(lengths).to(device),
        columns=columns,
    )


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


def block_diagonal_mask(segments: Tensor) -> Tensor:
    """``[B, 1, T, T]`` bool, True where a token may look: itself and earlier tokens of its own segment."""
    width = segments.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    return ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]
