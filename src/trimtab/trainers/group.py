"""Several processes that train as one: how they divide the work and exchange results.

Every process, called a rank, runs the same trainer on the same data with the same seeds. The ranks divide the expensive
work: drawing answers, scoring answers, micro-batches. A :class:`Group` divides it and combines the results in the order
that a single process would have, so every rank continues with the same numbers. A group of one rank calls no other
process; :class:`trimtab.trainers.ranks.Ranks` is a group of several.

Every method that waits for other ranks must be called by all of them, in the same order. ``phase`` names what they are
doing, for messages.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


class Group:
    """One process alone."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    shards: bool = False
    """True: models that are trained, and references, are sharded over the processes (FSDP2)."""

    @property
    def first(self) -> bool:
        """True: this process logs, saves and talks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """The items of this rank: every ``size``-th, beginning with the ``rank``-th."""
        return list(items[self.rank :: self.size])

    def gather(self, phase: str, compute: Callable[[], Result]) -> list[Result]:
        """Results of ``compute`` from all ranks, in the order of ranks.

        Raises:
            TrimtabError: ``compute`` raised it on some rank; every rank raises it.
            RankError: a rank is missing, has stopped or is in another phase.
        """
        return [compute()]

    def once(self, phase: str, compute: Callable[[], Result]) -> Result:
        """Result of ``compute`` on the first rank, for all ranks. It runs only there and may take long.

        Raises:
            TrimtabError: ``compute`` raised it; every rank raises it.
            RankError: the first rank is missing or has stopped.
        """
        return compute()

    def sum_(self, phase: str, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks. Shapes and types are the same on every rank.

        Raises:
            RankError: a rank is missing or has stopped.
        """

    def spread(
        self, phase: str, items: Sequence[Item], compute: Callable[[list[Item]], Sequence[Result]]
    ) -> list[Result]:
        """One result for each item, in order; each rank computes its share.

        Args:
            phase: for messages.
            items: the same on every rank.
            compute: items → their results, in order; may be called with no items.

        Raises:
            TrimtabError: as for :meth:`gather`.
        """
        shares = self.gather(phase, lambda: compute(self.share(items)))
        return [shares[place % self.size][place // self.size] for place in range(len(items))]


ALONE = Group()
"""A group of one process, which never waits."""
