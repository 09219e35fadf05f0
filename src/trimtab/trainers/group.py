"""Several processes that train as one: which part of the work each does, and what they tell each other.

Every process, called a rank, runs the same trainer on the same data with the same seeds. What they divide is the
expensive part: answers to draw, answers to score, micro-batches. A :class:`Group` divides it and puts the results
together in the order one process would have had, so that everything after it is computed from equal numbers on every
rank. A group of one rank calls no other process; :class:`trimtab.trainers.ranks.Ranks` is a group of several.

Every method that waits for other ranks must be called by all of them, in the same order. ``phase`` says what they are
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
    """True: a model of which all weights are trained is divided among the processes (FSDP2)."""

    @property
    def first(self) -> bool:
        """True: this process logs, saves and talks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """The items of this rank: every ``size``-th, beginning with the ``rank``-th."""
        return list(items[self.rank :: self.size])

    def gather(self, phase: str, compute: Callable[[], Result]) -> list[Result]:
        """What ``compute`` returns on each rank, in the order of ranks.

        Raises:
            TrimtabError: ``compute`` raised it on some rank; every rank raises it.
            RankError: a rank is missing, has stopped or is in another phase.
        """
        return [compute()]

    def once(self, phase: str, compute: Callable[[], Result]) -> Result:
        """What ``compute`` returns on the first rank; it runs there alone, and may take long.

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
        """One result for each item, in order; each rank computes those of its share.

        Args:
            phase: for messages.
            items: the same on every rank.
            compute: results of some items, in order; may be called without any.

        Raises:
            TrimtabError: as for :meth:`gather`.
        """
        shares = self.gather(phase, lambda: compute(self.share(items)))
        return [shares[place % self.size][place // self.size] for place in range(len(items))]


ALONE = Group()
"""A single process, which shares nothing and never waits."""
