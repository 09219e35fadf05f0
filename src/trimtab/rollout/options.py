"""Log-probabilities of a few possible answers to many prompts that begin alike.

The common start of all prompts runs once and its keys and values are kept. So does a longer start that many
prompts share, such as all questions under one principle. The rest is arranged as trees: a token that several
prompts share after the same preceding tokens is in a row once, at its depth, and attends only to its ancestors.
For example, two orders of the same two answers share the request. Rows of similar length run together. The
results equal those of separate forward passes up to the order in which sums are added.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from trimtab.models import Backbone
from trimtab.models.cache import repeated

SHORTEST_PREFIX = 4
"""Minimum length, in tokens, of a start that all prompts share for it to get a pass of its own."""

GROUP = 16
"""Minimum number of prompts, and of tokens that they share beyond the common start, for these tokens to get a pass."""


@dataclass
class _Tree:
    """A row of tokens, each with its depth and its parent's place (−1: the common start)."""

    tokens: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)

    def common(self, sequence: Sequence[int]) -> int:
        """Number of first tokens that a sequence shares with the one added last."""
        return _common(self.last, sequence)

    def add(self, sequence: list[int]) -> list[int]:
        """Add a sequence and return the places of its tokens. Sequences must come sorted."""
        shared = self.common(sequence)
        path = self.path[:shared]
        for depth in range(shared, len(sequence)):
            self.parent.append(path[-1] if path else -1)
            path.append(len(self.tokens))
            self.tokens.append(sequence[depth])
            self.depth.append(depth)
        self.path, self.last = path, sequence
        return path

    def mask(self) -> Tensor:
        """``[T, T]`` bool, True: may attend to, which is the token itself and its ancestors."""
        size = len(self.tokens)
        seen = torch.zeros(size, size, dtype=torch.bool)
        start = 0
        while start < size:  # stretches without a branch are filled at once
            stop = start + 1
            while stop < size and self.parent[stop] == stop - 1:
                stop += 1
            if self.parent[start] >= 0:
                seen[start:stop] = seen[self.parent[start]]
            seen[start:stop, start:stop] |= torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
            start = stop
        return seen


@torch.no_grad()
def option_logprobs(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    adapter: str | None = None,
    micro_batch_tokens: int = 1024,
    report: Callable[[Mapping[int, list[float]]], None] | None = None,
) -> list[list[float]]:
    """Log p(option | prompt) in nats, summed over the option's tokens.

    Args:
        backbone: the model.
        prompts: token ids of each prompt, at least one token each.
        options: for each prompt, token ids of each option, at least one token each.
        adapter: which adapter to compute with; None: the trunk.
        micro_batch_tokens: padded tokens of a forward pass.
        report: called after each forward pass with the places of the prompts that are done.

    Returns:
        for each prompt, the log-probabilities of its options, in order.
    """
    result = [[0.0] * len(given) for given in options]
    if not prompts:
        return result
    # one entry per prompt and option: the sequence whose states predict the option's tokens
    sequences = sorted(
        _Sequence([*prompt, *option[:-1]], list(option), index, place)
        for index, (prompt, given) in enumerate(zip(prompts, options, strict=True))
        for place, option in enumerate(given)
    )
    if not (backbone.layouts.slots and backbone.layouts.shared_prompts):
        return _row_by_row(backbone, prompts, options, adapter, report)
    left = [len(given) for given in options]
    backbone.activate(adapter)
    with backbone.autocast():  # not packed as for sampling: that layout is for few rows, and here there are hundreds
        for shared, prefix, members in _groups(backbone, sequences, 0, DynamicCache(), len(prompts)):
            for trees in _batches(_trees(members, shared, 6 * backbone.width), micro_batch_tokens):
                for index, place, value in _run(backbone, trees, prefix, shared):
                    result[index][place] = value
                    left[index] -= 1
                if report is not None:
                    done = {s.prompt for _, wanted in trees for _, s in wanted}
                    report({index: result[index] for index in done if not left[index]})
    return result


def _row_by_row(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    adapter: str | None,
    report: Callable[[Mapping[int, list[float]]], None] | None,
) -> list[list[float]]:
    """As :func:`option_logprobs`, for models that support neither trees nor our cache."""
    result: list[list[float]] = []
    for index, (prompt, given) in enumerate(zip(prompts, options, strict=True)):
        values: list[float] = []
        for option in given:
            row = torch.tensor([[*prompt, *option[:-1]]], device=backbone.device)
            with backbone.autocast():
                states = backbone.hidden(row, adapter=adapter)[0, -len(option) :]
                logprobs = torch.log_softmax(backbone.head(states).float(), dim=-1)
            values.append(float(logprobs[range(len(option)), list(option)].sum()))
        result.append(values)
        if report is not None:
            report({index: values})
    return result


class _Sequence(NamedTuple):
    tokens: list[int]
    option: list[int]
    prompt: int
    place: int


_Row = tuple[_Tree, list[tuple[list[int], _Sequence]]]
"""A tree and, for each sequence in it, the places that predict its option."""


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common start of two sequences."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _groups(
    backbone: Backbone, sequences: Sequence[_Sequence], depth: int, prefix: DynamicCache, prompts: int
) -> Iterator[tuple[int, DynamicCache, Sequence[_Sequence]]]:
    """Sorted sequences grouped by the longest start that enough of them share, with its length, keys and values."""
    room = min(len(s.tokens) - len(s.option) for s in sequences)
    shared = min(room, _common(sequences[0].tokens, sequences[-1].tokens))
    if prompts > 1 and shared - depth >= SHORTEST_PREFIX:
        prefix = repeated(prefix, 1)
        tokens = torch.tensor([sequences[0].tokens[depth:shared]], device=backbone.device)
        backbone.model.base_model(input_ids=tokens, past_key_values=prefix, use_cache=True)
        depth = shared
    alone: list[_Sequence] = []
    start = 0
    while start < len(sequences):
        stop, first = start + 1, sequences[start].tokens
        while stop < len(sequences) and _common(first, sequences[stop].tokens) >= depth + GROUP:
            stop += 1
        part = sequences[start:stop]
        many = len({s.prompt for s in part})
        if GROUP <= many and len(part) < len(sequences):
            yield from _groups(backbone, part, depth, prefix, many)
        else:
            alone += part
        start = stop
    if alone:
        yield depth, prefix, alone


def _trees(sequences: Sequence[_Sequence], shared: int, scale: int) -> list[_Row]:
    """Sorted sequences as trees. A sequence joins the previous tree if that saves more tokens than attention costs.

    A token costs as much as attending to ``scale`` keys (about six times the model's width); a sequence of n tokens in
    a row of w adds n · w key lookups each way.
    """
    rows: list[_Row] = []
    for sequence in sequences:
        rest = sequence.tokens[shared:]
        if rows:
            tree = rows[-1][0]
            saved = tree.common(rest)
            if saved * scale < 2 * len(tree.tokens) * (len(rest) - saved):
                rows.append((_Tree(), []))
        else:
            rows.append((_Tree(), []))
        tree, wanted = rows[-1]
        wanted.append((tree.add(rest)[-len(sequence.option) :], sequence))
    return rows


def _batches(rows: Sequence[_Row], micro_batch_tokens: int) -> Iterator[list[_Row]]:
    """Batches of rows of similar length (at most a quarter is padding) within a token budget, the longest first."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda r: -len(r[0].tokens)):
        longest = len(batch[0][0].tokens) if batch else 0
        if batch and (longest * (len(batch) + 1) > micro_batch_tokens or 4 * len(row[0].tokens) < 3 * longest):
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _run(backbone: Backbone, trees: Sequence[_Row], prefix: DynamicCache, shared: int) -> list[tuple[int, int, float]]:
    """One forward pass over some trees; returns (prompt's place, option's place, log-probability) entries."""
    device = backbone.device
    width = max(len(tree.tokens) for tree, _ in trees)
    tokens = torch.zeros(len(trees), width, dtype=torch.int64)
    positions = torch.zeros(len(trees), width, dtype=torch.int64)
    mask = torch.zeros(len(trees), 1, width, shared + width, dtype=torch.bool)
    mask[..., :shared] = True
    mask[:, 0, range(width), range(shared, shared + width)] = True  # padding attends to itself, so nothing is NaN
    for row, (tree, _) in enumerate(trees):
        size = len(tree.tokens)
        tokens[row, :size] = torch.tensor(tree.tokens)
        positions[row, :size] = torch.tensor(tree.depth)
        mask[row, 0, :size, shared : shared + size] = tree.mask()
    output = backbone.model.base_model(
        input_ids=tokens.to(device),
        position_ids=(positions + shared).to(device),
        attention_mask=backbone.mask(mask.to(device)),
        past_key_values=repeated(prefix, len(trees)),
        use_cache=True,
    )
    places = sorted({(row, place) for row, (_, wanted) in enumerate(trees) for path, *_ in wanted for place in path})
    at = {key: number for number, key in enumerate(places)}
    rows, columns = (torch.tensor(x, device=device) for x in zip(*places, strict=True))
    logprobs = torch.log_softmax(backbone.head(output.last_hidden_state[rows, columns]).float(), dim=-1).cpu()
    return [
        (s.prompt, s.place, sum(float(logprobs[at[row, w], t]) for w, t in zip(path, s.option, strict=True)))
        for row, (_, wanted) in enumerate(trees)
        for path, s in wanted
    ]
