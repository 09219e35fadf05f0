"""Hidden states below the lowest adapter: what frozen layers give for a sequence, computed once and used again."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from trimtab.models.batch import Batch

REMEMBERED = 32_768
"""Tokens whose hidden states are remembered, unasked for."""


class DrawnStates:
    """What the layers below all adapters gave for the tokens of answers while they were drawn.

    Scoring, the reference and training then go on from there: for a rollout, these layers run once.

    Args:
        limit: tokens to hold, prompts counted with every answer. What comes when they are full is not kept: what is
            there then does not depend on what was asked since, and a continued run has the same.
    """

    def __init__(self, limit: int = REMEMBERED) -> None:
        self.limit = limit
        self._kept: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._tokens = 0

    def keep(self, tokens: Iterable[int], prompt: Tensor, answer: Tensor) -> None:
        """Remember a sequence, if there is room.

        Args:
            tokens: prompt and answer.
            prompt: ``[P, H]``; answers to one prompt may share it.
            answer: ``[A, H]``.
        """
        key = tuple(tokens)
        if key not in self._kept:
            if self._tokens + len(key) > self.limit:
                return
            self._tokens += len(key)
        self._kept[key] = prompt, answer

    def get(self, tokens: Iterable[int]) -> tuple[Tensor, Tensor] | None:
        """States of a sequence's prompt and of its answer; None where they are not known."""
        return self._kept.get(tuple(tokens))

    def of(self, batch: Batch) -> list[tuple[Tensor, Tensor] | None]:
        """The same for each row of a batch."""
        lengths = batch.lengths.tolist()
        return [self.get(row[:n]) for row, n in zip(batch.tokens.tolist(), lengths, strict=True)]

    def clear(self) -> None:
        """Forget everything."""
        self._kept, self._tokens = {}, 0

    def __len__(self) -> int:
        return len(self._kept)


class LowerCache:
    """Hidden states below the lowest adapter, kept per sequence, so that later passes do not run them again.

    Args:
        limit_mb: megabytes to hold. From the first sequence that does not fit on, nothing more is kept, and what is
            not kept is computed each time: what is there then does not depend on what was asked since.
    """

    full: bool
    """Whether a sequence did not fit."""

    def __init__(self, limit_mb: float) -> None:
        self.full = False
        self._kept: dict[str, Tensor] = {}
        self._room = limit_mb * 1e6

    def fill(self, batch: Batch, keys: Sequence[str], lower: Callable[[Batch], Tensor | None]) -> None:
        """Put the column ``lower`` into ``batch``; ``keys`` name its rows, equal tokens by equal keys."""
        if all(key in self._kept for key in keys):
            rows = [self._kept[key] for key in keys]
            found = rows[0].new_zeros(len(rows), batch.tokens.shape[1], rows[0].shape[-1])
            for number, row in enumerate(rows):
                found[number, : len(row)] = row
            batch.columns["lower"] = found
            return
        computed = lower(batch)
        if computed is None:
            return
        batch.columns["lower"] = computed
        for number, (key, length) in enumerate(zip(keys, batch.lengths.tolist(), strict=True)):
            row = computed[number, :length]
            size = row.numel() * row.element_size()
            if key in self._kept:
                continue
            self.full = self.full or size > self._room
            if not self.full:
                self._kept[key] = row.clone()
                self._room -= size
