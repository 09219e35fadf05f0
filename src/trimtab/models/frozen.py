"""Hidden states of the layers below every adapter: computed once per sequence, used by every role and every pass.

With adapters on the upper layers only, the lower layers give the same states for policy, critic, reward model and
reference, in every epoch. A :class:`FrozenStates` holds these states by token sequence. The sampler adds
the states it computes; ``role.logprobs(batch, states=states)`` looks up stored states and computes the others.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from trimtab.files import write_atomic
from trimtab.models.backbone import Backbone
from trimtab.models.batch import Batch
from trimtab.models.tensors import load_tensors

_FULL = "full"
"""Name in a file under which :attr:`FrozenStates.full` is stored."""


class FrozenStates:
    """States of the frozen layers of one backbone, by token sequence.

    Legend: H width of the model. Adding, merging or removing an adapter empties it, because that moves the border
    between frozen and trained layers.

    A pass of a sharded model gathers weights from all ranks, so all ranks must agree on which layers run. Outside of
    :meth:`Backbone.gathered` such a model therefore uses only a store that :meth:`fill` completed, on every rank with
    the same sequences. With any other store all layers run.

    Args:
        backbone: the model with the frozen layers.
        limit: largest number of tokens to store; None: no limit. After the first sequence that does not fit, nothing
            is added, and other sequences are computed at each use. So the contents do not depend on how often they are
            used, and a resumed run computes the same bits as an uninterrupted one.
    """

    def __init__(self, backbone: Backbone, limit: int | None = None) -> None:
        self.backbone, self.limit = backbone, limit
        self.hits = 0
        """Rows taken from the store so far."""
        self.computed = 0
        """Rows computed so far because they were not stored."""
        self._layers: nn.Module | None = None
        self._states: dict[tuple[int, ...], tuple[Tensor, ...]] = {}
        self._tokens = 0
        self.full = False
        """True: a sequence did not fit, and nothing more is added."""
        self._complete = False  # True: ``fill`` stored all sequences

    @classmethod
    def within(cls, backbone: Backbone, megabytes: float) -> "FrozenStates":
        """A store of at most ``megabytes`` (10⁶ bytes) of float32 states."""
        return cls(backbone, int(megabytes * 1e6 / (4 * max(1, backbone.width))))

    @property
    def active(self) -> bool:
        """True: the backbone has frozen layers, whose states can be stored."""
        return self._frozen() is not None

    def __len__(self) -> int:
        return len(self._states)

    def clear(self) -> None:
        """Remove all states."""
        self._states, self._tokens, self.full, self._complete = {}, 0, False, False

    def add(self, tokens: Iterable[int], *pieces: Tensor) -> None:
        """Add a sequence, unless the limit is reached.

        Args:
            tokens: the sequence.
            pieces: ``[T₁, H]``, ``[T₂, H]``, …: its states, in order; answers to one prompt may share the prompt's.
        """
        if self._frozen() is None:
            return
        key = tuple(tokens)
        if key not in self._states:
            self.full = self.full or (self.limit is not None and self._tokens + len(key) > self.limit)
            if self.full:
                return
            self._tokens += len(key)
        self._states[key] = pieces

    def get(self, tokens: Iterable[int]) -> Tensor | None:
        """States of a sequence, ``[T, H]``; None if they are not stored."""
        pieces = self._states.get(tuple(tokens)) if self.active else None
        return None if pieces is None else torch.cat(pieces)

    def of(self, batch: Batch) -> Tensor | None:
        """States of a batch, ``[B, T, H]``, looked up or computed (and added).

        None: no layer is frozen, or the model is sharded and the store is not complete or lacks a sequence.
        """
        if self._frozen() is None:
            return None
        shards = self.backbone.shards
        together = shards is not None and not shards.whole  # with the other ranks
        if together and not self._complete:
            return None
        keys = [tuple(row[:n]) for row, n in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)]
        missing = [row for row, key in enumerate(keys) if key not in self._states]
        if together and missing:
            assert not torch.is_grad_enabled(), "ranks train on sequences that are not in their store of frozen states"
            return None
        self.hits += batch.size - len(missing)
        self.computed += len(missing)
        if len(missing) == batch.size:
            states = self.backbone.frozen_hidden(batch)
            self._add_rows(keys, states)
            return states
        known = [(row, self._states.get(key)) for row, key in enumerate(keys)]
        first = next(pieces[0] for _, pieces in known if pieces is not None)
        out = first.new_zeros(*batch.tokens.shape, first.shape[-1])
        for row, pieces in known:
            start = 0
            for piece in pieces or ():
                out[row, start : start + len(piece)] = piece
                start += len(piece)
        if missing:
            rest = batch.rows(torch.tensor(missing, device=batch.tokens.device))
            states = self.backbone.frozen_hidden(rest)
            out[missing, : rest.tokens.shape[1]] = states
            self._add_rows([keys[row] for row in missing], states)
        return out

    def fill(self, batches: Iterable[Batch]) -> None:
        """Compute and store the states of all batches that will be used, until the limit is reached.

        All ranks must call it with the same batches.
        """
        if self.limit == 0 or not self.active:
            return
        with self.backbone.gathered():
            for batch in batches:
                if self.full:
                    break
                self.of(batch)
        self._complete = not self.full

    def _add_rows(self, keys: Sequence[tuple[int, ...]], states: Tensor) -> None:
        for row, key in enumerate(keys):
            if not self.full and self.limit != 0:
                self.add(key, states[row, : len(key)].clone())

    def _frozen(self) -> nn.Module | None:
        """The backbone's frozen layers; empties the store if its states come from different layers."""
        layers = self.backbone.frozen_half
        if layers is not self._layers:
            self.clear()
            self._layers = layers
        return layers

    # Files --------------------------------------------------------------------------------

    def save(self, path: Path, sequences: Iterable[Sequence[int]]) -> None:
        """Write the stored states of these sequences as safetensors.

        Recomputed states would differ in their last bits, because of a different order of summation.
        """
        known = {_name(tokens): self.get(tokens) for tokens in sequences}
        tensors = {name: states.cpu() for name, states in known.items() if states is not None}
        write_atomic(path, save(tensors | {_FULL: torch.tensor(self.full)}))

    def load(self, path: Path, sequences: Iterable[Sequence[int]]) -> None:
        """Add the states that :meth:`save` wrote.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        tensors = load_tensors(path)
        for tokens in sequences:
            states = tensors.get(_name(tokens))
            if states is not None:
                self.add(tokens, states.to(self.backbone.device))
        self.full = self.full or bool(tensors[_FULL])


def _name(tokens: Sequence[int]) -> str:
    """Name of a sequence's states in a file."""
    return hashlib.sha256(str(list(tokens)).encode()).hexdigest()
