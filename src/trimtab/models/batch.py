"""From lists of tokens to right-padded tensors, and from one batch to micro-batches of equal length.

Legend: B sequences, T tokens. Column t of every ``[B, T]`` tensor is about token t itself: its
log-probability given all tokens before it, the value of the state before it was produced.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PASS_TOKENS = 4096
"""Default number of padded tokens per forward pass without gradients."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrompts:
    """The same batch with each prompt once: a row is a prompt followed by every answer to it.

    Legend: G distinct prompts, W tokens of the longest such row.
    """

    tokens: Tensor
    """``[G, W]`` int64."""
    positions: Tensor
    """``[G, W]`` int64; every answer continues its prompt's positions."""
    attention: Tensor
    """``[G, 1, W, W]`` bool, True: may attend to; an answer sees its prompt and itself, never another answer."""
    place: Tensor
    """``[B, T]`` int64: index among the G·W of token (b, t) of the batch."""
    source: Tensor
    """``[G·W]`` int64: index among the B·T of each packed token; 0 for padding."""

    def unpack(self, packed: Tensor) -> Tensor:
        """``[G, W, H]`` → ``[B, T, H]``."""
        flat = packed.flatten(0, 1).index_select(0, self.place.flatten())
        return flat.view(*self.place.shape, packed.shape[-1])

    def pack(self, rows: Tensor) -> Tensor:
        """``[B, T, H]`` → ``[G, W, H]``."""
        return rows.flatten(0, 1)[self.source].view(*self.tokens.shape, rows.shape[-1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Right-padded token sequences. A subclass may add tensors whose first dimension is B and whose second is T."""

    tokens: Tensor
    """``[B, T]`` int64, padded with zeros (attention never reaches them)."""
    response_mask: Tensor
    """``[B, T]`` bool; True: the model produces this token and it counts."""
    lengths: Tensor
    """``[B]`` int64, real tokens of each row."""
    prompt_lengths: Tensor | None = None
    """``[B]`` int64, prompt tokens of each row; rows with equal prompts then share one computation of it. None: every
    row is computed on its own."""
    segments: Tensor | None = None
    """``[B, T]`` int64, for packed rows: which sequence a token belongs to, -1 for padding. None: one per row."""
    positions: Tensor | None = None
    """``[B, T]`` int64, for packed rows: place of a token in its sequence. None: its column."""

    @property
    def size(self) -> int:
        """Number of sequences."""
        return self.tokens.shape[0]

    def rows(self, index: Tensor) -> Self:
        """The given rows, cut to the longest of them."""
        width = int(self.lengths[index].max())
        total = self.tokens.shape[1]

        def take(x: Tensor) -> Tensor:
            picked = x[index]
            return picked[:, :width] if picked.dim() > 1 and picked.shape[1] == total else picked

        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: take(x) for name, x in tensors.items() if x is not None})

    def micro_batches(self, micro_batch_tokens: int) -> Iterator[tuple[Tensor, Self]]:
        """Split into parts of similar length with at most ``micro_batch_tokens`` padded tokens each (one row at least).

        Rows that share a prompt stay together as far as the limit allows, and their prompt counts once. The largest
        part comes first, so the memory it frees is enough for every later part.

        Yields:
            the row indices of a part, and the part.
        """
        lengths, prompts = self.lengths.tolist(), self._prompts()
        groups: list[tuple[int, list[int]]] = []  # packed tokens, rows
        for rows in self._groups():
            size, members = 0, []
            for row in rows:
                if members and size + lengths[row] - prompts[row] > micro_batch_tokens:
                    groups.append((size, members))
                    size, members = 0, []
                size += lengths[row] - prompts[row] if members else lengths[row]
                members.append(row)
            groups.append((size, members))
        for part in parts_of_like_size([size for size, _ in groups], micro_batch_tokens):
            rows = [row for place in part for row in groups[place][1]]
            index = torch.tensor(rows, device=self.tokens.device)
            yield index, self.rows(index)

    @cached_property
    def shared_prompts(self) -> SharedPrompts | None:
        """The layout with each prompt once; None if no two rows share a prompt."""
        groups = self._groups()
        return self._share(groups) if len(groups) < self.size else None

    def _prompts(self) -> list[int]:
        return [0] * self.size if self.prompt_lengths is None else self.prompt_lengths.tolist()

    def _groups(self) -> list[list[int]]:
        """Rows grouped by prompt, in the order of first rows; every row is its own group if prompts are not known."""
        if self.prompt_lengths is None:
            return [[row] for row in range(self.size)]
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, (tokens, count) in enumerate(zip(self.tokens.tolist(), self._prompts(), strict=True)):
            groups.setdefault(tuple(tokens[:count]), []).append(row)
        return list(groups.values())

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


def parts_of_like_size(sizes: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
    """Indices of ``sizes`` in parts of at most ``micro_batch_tokens``, counted as count × largest (one at least).

    The largest part comes first, so the memory it frees is enough for every later part.
    """
    parts: list[list[int]] = []
    for place in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if parts and sizes[parts[-1][0]] * (len(parts[-1]) + 1) <= micro_batch_tokens:
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
    """Right-pad sequences and their response masks into one batch; see :class:`Batch` for ``prompt_lengths``."""
    lengths = [len(s) for s in sequences]
    width = max(lengths)
    tokens = torch.tensor([[*s, *[0] * (width - n)] for s, n in zip(sequences, lengths, strict=True)])
    response = torch.tensor([[*m, *[False] * (width - n)] for m, n in zip(masks, lengths, strict=True)])
    return Batch(
        tokens=tokens.to(device),
        response_mask=response.to(device),
        lengths=torch.tensor(lengths).to(device),
        prompt_lengths=None if prompt_lengths is None else torch.tensor(list(prompt_lengths)).to(device),
    )


def collate_answers(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device) -> Batch:
    """A row for each (prompt, answer): the response mask is True on the answer; equal prompts are computed once."""
    return collate(
        [[*prompt, *answer] for prompt, answer in pairs],
        [[False] * len(prompt) + [True] * len(answer) for prompt, answer in pairs],
        device,
        prompt_lengths=[len(prompt) for prompt, _ in pairs],
    )


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """``[B, T]`` int64, right-padded with zeros."""
    return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True)


def scatter(values: Sequence[Sequence[float]], response_mask: Tensor) -> Tensor:
    """Place per-response-token values at the True positions of ``response_mask``; zero elsewhere. ``[B, T]``."""
    out = torch.zeros(response_mask.shape, dtype=torch.float32, device=response_mask.device)
    flat = [v for row in values for v in row]
    out[response_mask] = torch.tensor(flat, dtype=torch.float32, device=response_mask.device)
    return out


def pack(
    sequences: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], width: int, device: torch.device
) -> Batch:
    """Pack sequences into rows of at most ``width`` tokens, longest first, each into the first row with room.

    ``segments`` and ``positions`` of the batch separate the sequences: attention never crosses between them, so a
    packed row gives the same results as separate rows.
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
    return replace(batch, segments=segments.to(device), positions=positions.to(device))


def block_diagonal_mask(segments: Tensor) -> Tensor:
    """``[B, 1, T, T]`` bool, True: may attend to, which is the token itself and earlier tokens of its segment."""
    width = segments.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    return ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]
