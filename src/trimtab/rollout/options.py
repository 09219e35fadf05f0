"""Log-probabilities of a few possible answers to many prompts that begin alike.

What all prompts begin with runs once and its keys and values are kept. The rest is arranged as trees: a
token that several prompts have in common after the same tokens stands in a row once, at its depth, and
attends to its ancestors only. So two orders of the same two answers share the request, and ten
questions about one pair share everything before the question. The numbers are those of separate
forward passes up to the order in which sums are added.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from trimtab.models import Backbone

SHORTEST_PREFIX = 4
"""A common start of fewer tokens is not worth a pass of its own."""

SHARED = 8
"""Prompts that share at least so many tokens beyond the common start may stand in one tree."""

TREE = 1024
"""Tokens of a tree, at most, unless a single prompt has more."""


@dataclass
class _Tree:
    """A row: tokens at their depth, each with its parent's place (−1: the common start)."""

    tokens: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)

    def common(self, sequence: Sequence[int]) -> int:
        """How many tokens a sequence shares with the one added last."""
        pairs = zip(self.last, sequence, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.last), len(sequence)))

    def add(self, sequence: list[int]) -> list[int]:
        """Add a sequence (they come sorted); returns the places of its tokens."""
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
        """``[T, T]`` bool, True where a token may look: itself and its ancestors."""
        size = len(self.tokens)
        seen = torch.zeros(size, size, dtype=torch.bool)
        start = 0
        while start < size:  # runs without a branch are filled at once
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
    token_budget: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[float]]:
    """Log p(option | prompt) in nats, summed over the option's tokens.

    Args:
        backbone: the model.
        prompts: token ids of each prompt, at least one token each.
        options: for each prompt, token ids of each option, at least one token each.
        adapter: whose weights; None: the trunk.
        token_budget: padded tokens of a forward pass.
        progress: called with (rows done, all rows).

    Returns:
        for each prompt the numbers of its options, in their order.
    """
    result = [[0.0] * len(given) for given in options]
    if not prompts:
        return result
    # one entry per prompt and option: the sequence whose states predict the option's tokens
    sequences = [
        ([*prompt, *option[:-1]], list(option), index, place)
        for index, (prompt, given) in enumerate(zip(prompts, options, strict=True))
        for place, option in enumerate(given)
    ]
    sequences.sort(key=lambda entry: entry[0])
    first, last = sequences[0][0], sequences[-1][0]
    room = min(len(p) for p in prompts) - 1
    shared = next((i for i in range(min(room, len(first), len(last))) if first[i] != last[i]), room)
    if shared < SHORTEST_PREFIX or len(prompts) == 1:
        shared = 0
    trees: list[tuple[_Tree, list[tuple[list[int], list[int], int, int]]]] = []
    for sequence, option, index, place in sequences:
        rest = sequence[shared:]
        if trees:
            tree = trees[-1][0]
            common = tree.common(rest)
            if common < min(SHARED, len(rest)) or len(tree.tokens) + len(rest) - common > TREE:
                trees.append((_Tree(), []))
        else:
            trees.append((_Tree(), []))
        tree, wanted = trees[-1]
        path = tree.add(rest)
        wanted.append((path[-len(option) :], option, index, place))
    device = backbone.device
    order = sorted(range(len(trees)), key=lambda i: len(trees[i][0].tokens))
    backbone.activate(adapter)
    with backbone.autocast():  # not packed as for sampling: that layout is for few rows, here are hundreds
        prefix = DynamicCache()
        if shared:
            tokens = torch.tensor([first[:shared]], device=device)
            backbone.model.base_model(input_ids=tokens, past_key_values=prefix, use_cache=True)
        done = 0
        while done < len(order):
            rows = [order[done]]
            while done + len(rows) < len(order) and (
                len(trees[order[done + len(rows)]][0].tokens) * (len(rows) + 1) <= token_budget
            ):
                rows.append(order[done + len(rows)])
            _run(backbone, [trees[r] for r in rows], prefix, shared, result)
            done += len(rows)
            if progress is not None:
                progress(done, len(order))
    return result


def _run(
    backbone: Backbone,
    trees: Sequence[tuple[_Tree, list[tuple[list[int], list[int], int, int]]]],
    prefix: DynamicCache,
    shared: int,
    result: list[list[float]],
) -> None:
    """One forward pass over some trees; adds to ``result``."""
    device = backbone.device
    width = max(len(tree.tokens) for tree, _ in trees)
    tokens = torch.zeros(len(trees), width, dtype=torch.int64)
    positions = torch.zeros(len(trees), width, dtype=torch.int64)
    mask = torch.zeros(len(trees), 1, width, shared + width, dtype=torch.bool)
    mask[..., :shared] = True
    mask[:, 0, range(width), range(shared, shared + width)] = True  # padding looks at itself, so nothing is NaN
    for row, (tree, _) in enumerate(trees):
        size = len(tree.tokens)
        tokens[row, :size] = torch.tensor(tree.tokens)
        positions[row, :size] = torch.tensor(tree.depth)
        mask[row, 0, :size, shared : shared + size] = tree.mask()
    cache = DynamicCache()
    if shared:
        everyone = (len(trees), -1, -1, -1)
        layers: list[Any] = prefix.layers
        for number, layer in enumerate(layers):
            cache.update(layer.keys.expand(*everyone), layer.values.expand(*everyone), number)
    output = backbone.model.base_model(
        input_ids=tokens.to(device),
        position_ids=(positions + shared).to(device),
        attention_mask=mask.to(device),
        past_key_values=cache,
        use_cache=True,
    )
    places = sorted({(row, place) for row, (_, wanted) in enumerate(trees) for path, *_ in wanted for place in path})
    at = {key: number for number, key in enumerate(places)}
    rows, columns = (torch.tensor(x, device=device) for x in zip(*places, strict=True))
    logprobs = torch.log_softmax(backbone.head(output.last_hidden_state[rows, columns]).float(), dim=-1).cpu()
    for row, (_, wanted) in enumerate(trees):
        for path, option, index, place in wanted:
            result[index][place] = sum(
                float(logprobs[at[row, where], token]) for where, token in zip(path, option, strict=True)
            )
