"""A group of several processes, over ``torch.distributed``.

Records and numbers are exchanged over Gloo on the CPU; tensors on an accelerator are summed over NCCL. A separate small
key-value store records what each rank is doing. When a connection breaks or a deadline passes, the error message uses
the store to name the missing rank, what it did last, and the error it stopped with.

=============  =====================================================
``at/RANK``    number of the rank's latest meeting with the others, and its phase
``alive/RANK`` counter, raised every few seconds while the process lives
``ended/RANK`` why the rank stopped
``once``       number of the latest meeting that the first rank has opened
=============  =====================================================
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from trimtab.errors import ConfigError, RankError, TrimtabError
from trimtab.trainers.group import Group
from trimtab.trainers.place import Place

dist: Any = torch.distributed  # its type stubs leave out the stores

Result = TypeVar("Result")

BUCKET = 1 << 24
"""Largest number of values that are summed over the ranks in one message."""

BEAT = 2.0
"""Most seconds between two signs of life."""

_EXCHANGE = re.compile("gloo|nccl|connection|timed out", re.IGNORECASE)
"""Matches torch's messages about failed sending or receiving."""

CONTINUE = "what is finished is saved; run the same command to continue from the last checkpoint"


class Ranks(Group):
    """This process and the others. Leave with :meth:`leave`.

    Args:
        place: place of this process.
        deadline: seconds that a rank may be late.
        shards: True: models that are trained, and references, are sharded over the ranks.

    Raises:
        ConfigError: the port is in use.
        RankError: not all ranks connected in time.
    """

    def __init__(self, place: Place, *, deadline: float, shards: bool = False) -> None:
        self.rank, self.size, self.shards, self._deadline = place.rank, place.size, shards, deadline
        self._place = place
        accelerators = torch.cuda.device_count()
        if accelerators and place.local_rank >= accelerators:
            raise ConfigError(
                f"rank {place.rank} has no accelerator of its own: this machine has {accelerators} and runs "
                f"{place.local_size} ranks; start one for each, or hide them with CUDA_VISIBLE_DEVICES= to use the CPU"
            )
        self._meetings, self._phase = 0, "start"
        self._store = self._connect(place.serves)
        if self.first:
            self._store.set("once", "0")
        self._store.set(f"alive/{self.rank}", "0")
        self._store.set(f"at/{self.rank}", "0|start")
        self._wait_for_all()
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, args=(self._connect(False),), daemon=True).start()
        if accelerators:
            torch.cuda.set_device(place.local_rank)
        backend = "cpu:gloo,cuda:nccl" if accelerators else "gloo"
        with self._explained("start"):
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("collectives", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=deadline),
            )
            self._objects = dist.new_group(backend="gloo", timeout=timedelta(seconds=deadline))

    # What a group does --------------------------------------------------------------------

    def gather(self, phase: str, compute: Callable[[], Result]) -> list[Result]:
        """As :meth:`Group.gather`."""
        if self.shards:  # ``compute`` may exchange weights
            self._arrive(phase)
            with self.explained():
                message = (phase, *_attempted(compute))
            self._tell(message[2])
        else:
            message = (phase, *_attempted(compute))
            self._arrive(phase)
        messages: list[Any] = [None] * self.size
        try:
            with self._explained(phase):
                dist.all_gather_object(messages, message, group=self._objects)
        except RankError:
            if message[2] is not None:  # the others were in a pass that this rank has left
                raise message[2] from None
            raise
        phases = [other for other, _, _ in messages]
        if set(phases) != {phase}:
            where = ", ".join(f"rank {rank} at {name!r}" for rank, name in enumerate(phases))
            raise RankError(
                f"the ranks do different things: {where}; they need the same recipe, the same data files and the same "
                "version of trimtab"
            )
        for _, _, error in messages:
            if error is not None:
                raise error
        return [value for _, value, _ in messages]

    def once(self, phase: str, compute: Callable[[], Result]) -> Result:
        """As :meth:`Group.once`. The other ranks wait as long as the first one shows signs of life."""
        self._arrive(phase)
        message: list[Any] = [None]
        if self.first:
            message[0] = (phase, *_attempted(compute))
            with self._store_errors():
                self._store.set("once", str(self._meetings))
        else:
            self._wait_for_first(phase)
        with self._explained(phase):
            dist.broadcast_object_list(message, src=0, group=self._objects)
        other, value, error = message.pop()
        if other != phase:
            raise RankError(
                f"the ranks do different things: rank 0 at {other!r}, rank {self.rank} at {phase!r}; they need the "
                "same recipe, the same data files and the same version of trimtab"
            )
        if error is not None:
            raise error
        return value

    def sum_(self, phase: str, tensors: Sequence[Tensor]) -> None:
        """As :meth:`Group.sum_`."""
        self._arrive(phase)
        with self._explained(phase):
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                dist.all_reduce(flat)
                parts = flat.split([tensor.numel() for tensor in bucket])
                for tensor, part in zip(bucket, parts, strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def leave(self, error: BaseException | None = None) -> bool:
        """Leave the group and tell the other ranks why.

        Returns:
            True: the first rank stopped with the same error and reports it, so this rank need not.
        """
        text = "" if error is None else f"{type(error).__name__}: {error}"
        told = False
        with suppress(Exception):  # the store may be gone; the others notice that too
            self._store.set(f"ended/{self.rank}", text)
            if error is not None and not self.first:
                told = self._same_as_first(text)
            if self._place.serves:  # the store goes with this process: let the others read it first
                self._poll(lambda: all(self._ended(rank) is not None for rank in range(self.size)), 5.0)
        self._stopped.set()
        if error is None:
            with suppress(Exception):
                dist.destroy_process_group()
        return told

    # Meetings -----------------------------------------------------------------------------

    def _arrive(self, phase: str) -> None:
        self._meetings += 1
        self._phase = phase
        with self._store_errors():
            self._store.set(f"at/{self.rank}", f"{self._meetings}|{phase}")

    def _tell(self, error: TrimtabError | None) -> None:
        """Report an error to ranks that wait for this one in a pass of a sharded model."""
        if error is not None:
            with self._store_errors():
                self._store.set(f"failed/{self.rank}", f"{self._meetings}|{type(error).__name__}: {error}")

    def _failed(self, rank: int) -> str | None:
        """The error that another rank met in this meeting, if any."""
        if not self._store.check([f"failed/{rank}"]):
            return None
        meeting, _, text = self._text(f"failed/{rank}").partition("|")
        return text if int(meeting) == self._meetings else None

    def _wait_for_first(self, phase: str) -> None:
        """Wait until the first rank has opened this meeting. It may work for hours while it shows signs of life."""
        last, heard = "", time.monotonic()
        pause = 0.01
        with self._store_errors():
            while int(self._store.get("once")) < self._meetings:
                beat = self._text("alive/0")
                if beat != last:
                    last, heard = beat, time.monotonic()
                if self._ended(0) is not None or time.monotonic() - heard > self._deadline:
                    raise self._error(phase, f"rank 0 gave no sign of life for {time.monotonic() - heard:.0f} s")
                time.sleep(pause)
                pause = min(0.2, 2 * pause)

    def _wait_for_all(self) -> None:
        """Wait until every rank has connected."""

        def missing() -> list[int]:
            return [rank for rank in range(self.size) if not self._store.check([f"at/{rank}"])]

        if not self._poll(lambda: not missing(), self._deadline):
            raise RankError(
                f"{_ranks(missing())} of {self.size} did not start within {self._deadline:g} s (phase 'start', seen "
                f"from rank {self.rank}); look for the error of that process, or set WORLD_SIZE to the number of "
                "processes that run"
            )

    def _poll(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Wait until ``ready`` returns True, at most ``seconds``; False: it did not."""
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    # What went wrong ----------------------------------------------------------------------

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Inside the context, a failed exchange of weights raises an error that names the missing rank."""
        try:
            yield
        except RuntimeError as error:
            text = str(error).splitlines()[0] if str(error) else ""
            if not self.shards or not (isinstance(error, dist.DistError) or _EXCHANGE.search(text)):
                raise
            raise self._error(self._phase, text[:200]) from error

    def _explained(self, phase: str) -> "_Explained":
        return _Explained(lambda cause: self._error(phase, cause))

    def _store_errors(self) -> "_Explained":
        host = f"{self._place.host}:{self._place.port}"
        return _Explained(
            lambda cause: RankError(
                f"rank {self.rank}: the process that started the ranks ({host}) is gone ({cause}); {CONTINUE}"
            )
        )

    def _error(self, phase: str, cause: str) -> RankError:
        """An error that says which rank is missing and why, as far as the store knows."""
        here = f"rank {self.rank} of {self.size} waited at {phase!r}"
        with self._store_errors():
            # A live rank that finds the connection broken reports it within moments; a dead one cannot.
            self._store.set(f"lost/{self.rank}", "1")
            others = [rank for rank in range(self.size) if rank != self.rank]
            self._poll(lambda: all(self._ended(r) or self._store.check([f"lost/{r}"]) for r in others), 1.0)
            stopped = {rank: text for rank in others if (text := self._failed(rank) or self._ended(rank)) is not None}
            late = [rank for rank in others if self._at(rank)[0] < self._meetings and rank not in stopped]
            silent = [rank for rank in others if not self._store.check([f"lost/{rank}"]) and rank not in stopped]
            causes = {rank: text for rank, text in stopped.items() if not text.startswith(RankError.__name__)}
            if causes:
                rank, text = next(iter(causes.items()))
                why = text or "it had finished"
                return RankError(f"rank {rank} stopped in phase {self._at(rank)[1]!r} ({why}); {here}; {CONTINUE}")
            missing = [rank for rank in late if rank in silent] or late or silent
            if missing:
                phases = "; ".join(f"the last phase of rank {r} is {self._at(r)[1]!r}" for r in missing)
                return RankError(
                    f"{_ranks(missing)} did not come: {here} (deadline {self._deadline:g} s); {phases} ({cause}); "
                    f"{CONTINUE}"
                )
        return RankError(f"the connection to another rank broke: {here} ({cause}); {CONTINUE}")

    def _at(self, rank: int) -> tuple[int, str]:
        number, _, phase = self._text(f"at/{rank}").partition("|")
        return int(number), phase

    def _ended(self, rank: int) -> str | None:
        key = f"ended/{rank}"
        return self._text(key) if self._store.check([key]) else None

    def _text(self, key: str) -> str:
        return self._store.get(key).decode()

    def _same_as_first(self, text: str) -> bool:
        """True: the first rank stops with this error too, possibly with a longer message."""
        self._poll(lambda: self._ended(0) is not None, 2.0)
        return (self._ended(0) or "").startswith(text)

    # The store ----------------------------------------------------------------------------

    def _connect(self, serves: bool) -> Any:
        place = self._place
        where = f"{place.host}:{place.port}"
        try:
            store = dist.TCPStore(
                place.host,
                place.port,
                is_master=serves,
                wait_for_workers=False,
                timeout=timedelta(seconds=self._deadline),
            )
        except dist.DistError as error:
            if serves and "in use" in str(error):
                raise ConfigError(
                    f"port {place.port} is in use by another process; set MASTER_PORT to a free one"
                ) from None
            raise RankError(
                f"rank {self.rank} did not reach {where} within {self._deadline:g} s (phase 'start'); start rank 0 "
                "too, and check MASTER_ADDR and MASTER_PORT"
            ) from None
        return dist.PrefixStore(_prefix(place.attempt), store)

    def _beat(self, store: Any) -> None:
        """Send signs of life over a separate connection, because the main one is busy while this rank waits."""
        count = 0
        while not self._stopped.wait(min(BEAT, self._deadline / 4)):
            count += 1
            try:
                store.set(f"alive/{self.rank}", str(count))
            except Exception:  # the store is gone; the next meeting reports it
                return


def serve() -> tuple[Any, int]:
    """A store on a free port, for ranks that this process starts; it lives as long as the returned object.

    Returns:
        the store and its port.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return dist.PrefixStore(_prefix("0"), store), store.port


def report_end(store: Any, rank: int, why: str) -> None:
    """Tell the other ranks that ``rank`` is gone, unless it has told them itself."""
    if not store.check([f"ended/{rank}"]):
        store.set(f"ended/{rank}", why)


def _prefix(attempt: str) -> str:
    return f"trimtab-{attempt}"


class _Explained:
    """Turns an error of ``torch.distributed`` into a trimtab error."""

    def __init__(self, explain: Callable[[str], RankError]) -> None:
        self._explain = explain

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError):
            raise self._explain(str(error).splitlines()[0][:200]) from error


def _attempted(compute: Callable[[], Result]) -> tuple[Result | None, TrimtabError | None]:
    """The result of ``compute``, or the error that all ranks raise."""
    try:
        return compute(), None
    except TrimtabError as error:
        return None, error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one type and device, up to :data:`BUCKET` numbers together (one tensor at least)."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        same = not bucket or (tensor.dtype == bucket[0].dtype and tensor.device == bucket[0].device)
        if bucket and not (same and sum(t.numel() for t in bucket) + tensor.numel() <= BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
