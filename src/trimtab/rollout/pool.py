"""Jobs for worker processes that may die, come back and join: each job is done once, by whichever worker is there.

A worker has one call at a time. When it is lost, its job goes to another worker, and the worker is greeted until it
answers again; then it takes part from the next job on. What a worker is and how it is called is not known here:
:mod:`trimtab.rollout.ray` calls actors of Ray, a test calls threads.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from trimtab.errors import RankError

ATTEMPTS = 5
"""Workers that one job may cost; after that the job itself is what ends them."""

PAUSE = 0.5
"""Seconds before a lost worker is greeted again."""

CONTINUE = "what is finished is saved; run the same command to continue from the last checkpoint"

Facts = Mapping[str, str]
"""What must be equal where answers are drawn and where they are trained on: versions of packages, the model."""


class WorkerLostError(Exception):
    """A worker's process or machine is gone; it may come back."""


class Worker(Protocol):
    """A process that is called from here."""

    name: str
    """For messages."""

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method there; the future has its result, its error, or a :class:`WorkerLostError`."""
        ...


class Host:
    """The far end of a :class:`Worker`: builds what does the work when it is first called, and tells what it is.

    Args:
        build: makes the object whose methods are called.
        facts: compared with the learner's.
        where: of the process, for messages.
    """

    def __init__(self, build: Callable[[], Any], facts: Callable[[], Facts], where: Callable[[], str]) -> None:
        self._build, self._facts, self._where = build, facts, where
        self._target: Any = None

    def greet(self) -> tuple[str, Facts]:
        """Where this is, and its facts; returns once it can work."""
        facts = self._facts()  # before a large model is loaded
        if self._target is None:
            self._target = self._build()
        return self._where(), facts

    def call(self, method: str, *arguments: Any) -> Any:
        """What the method returns."""
        if self._target is None:  # restarted, and not greeted yet
            self._target = self._build()
        return getattr(self._target, method)(*arguments)


@dataclass(kw_only=True)
class _Call:
    """A call that has not returned."""

    worker: int
    job: int | None
    """None: a greeting."""
    phase: str


class Pool:
    """Workers of one kind.

    Args:
        workers: the first ``needed`` of them must be there at the start; the others may come later.
        facts: the learner's.
        needed: number of workers that are waited for.
        deadline: seconds without any finished job, or at the start without a greeting, that are too many.
        say: told when a worker is lost and when one joins.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        facts: Facts,
        *,
        needed: int | None = None,
        deadline: float = 600.0,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._workers, self._facts, self._deadline, self._say = list(workers), dict(facts), deadline, say
        self._needed = len(self._workers) if needed is None else needed
        self._where = [""] * len(self._workers)
        self._calls: dict[Future[Any], _Call] = {}
        self._idle: deque[int] = deque()
        self._lost: dict[int, float] = {}
        """When each lost worker is greeted again."""
        self._lock = threading.Lock()
        self.losses = 0
        """How often a worker was lost."""
        for number in range(len(self._workers)):
            self._greet(number, "start")

    def start(self) -> None:
        """Wait until the needed workers are there.

        Raises:
            RankError: one is not there in time, or is not the learner's like.
        """
        with self._lock:
            heard = time.monotonic()
            while any(not self._where[number] for number in range(self._needed)):
                self._turn("start", heard, {})

    def map(self, phase: str, method: str, jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The result of each job, in order.

        Args:
            phase: for messages.
            method: of the workers.
            jobs: its arguments. Done again after a loss, a job must give the same.

        Raises:
            RankError: no job was finished within the deadline, a job cost too many workers, or a worker failed.
            TrimtabError: a worker raised it.
        """
        with self._lock:
            results: dict[int, Any] = {}
            waiting, attempts = deque(range(len(jobs))), Counter[int]()
            heard = time.monotonic()
            try:
                while len(results) < len(jobs):
                    while waiting and self._idle:
                        number, job = self._idle.popleft(), waiting.popleft()
                        self._send(number, job, phase, method, *jobs[job])
                    done = len(results)
                    for job in self._turn(phase, heard, results):
                        attempts[job] += 1
                        if attempts[job] == ATTEMPTS:
                            raise RankError(
                                f"job {job + 1} of {len(jobs)} of {phase} ended {ATTEMPTS} workers one after the "
                                f"other, perhaps because it needs more memory than they have; lower scale.ray.chunk or "
                                f"sampler.slots; {CONTINUE}"
                            )
                        waiting.appendleft(job)
                    heard = time.monotonic() if len(results) > done else heard
            finally:
                self._forget_jobs()
            return [results[job] for job in range(len(jobs))]

    # Calls --------------------------------------------------------------------------------

    def _turn(self, phase: str, heard: float, results: dict[int, Any]) -> list[int]:
        """Wait for some calls and take what they brought; returns jobs that must be done again."""
        now = time.monotonic()
        if now - heard > self._deadline:
            raise self._late(phase)
        for number in [number for number, at in self._lost.items() if at <= now]:
            del self._lost[number]
            self._greet(number, phase)
        if not self._calls:
            time.sleep(PAUSE / 10)
            return []
        ended, _ = wait(self._calls, timeout=PAUSE, return_when=FIRST_COMPLETED)
        again: list[int] = []
        for future in ended:
            call, error = self._calls.pop(future), future.exception()
            if isinstance(error, WorkerLostError):
                self._lose(call, error)
                again += [] if call.job is None else [call.job]
            elif error is not None:
                raise error
            else:
                if call.job is None:
                    self._welcome(call, *future.result())
                elif call.job >= 0:
                    results[call.job] = future.result()
                self._idle.append(call.worker)
        return [job for job in again if job >= 0]

    def _send(self, number: int, job: int | None, phase: str, method: str, *arguments: Any) -> None:
        call = _Call(worker=number, job=job, phase=phase)
        if job is None:
            self._calls[self._workers[number].call(method)] = call
        else:
            self._calls[self._workers[number].call("call", method, *arguments)] = call

    def _greet(self, number: int, phase: str) -> None:
        self._send(number, None, phase, "greet")

    def _lose(self, call: _Call, error: WorkerLostError) -> None:
        """Greet a lost worker after a pause."""
        self._lost[call.worker] = time.monotonic() + PAUSE
        if self._where[call.worker]:
            self.losses += 1
            where, self._where[call.worker] = self._where[call.worker], ""
            self._say(f"{self._name(call.worker)} on {where} was lost during {call.phase} ({error}); others continue")

    def _welcome(self, call: _Call, where: str, facts: Facts) -> None:
        """Take a worker in, unless it differs from the learner."""
        name = self._name(call.worker)
        for key, value in self._facts.items():
            if facts.get(key) != value:
                raise RankError(
                    f"{name} on {where} has {key} {facts.get(key)} and the learner {value}: their answers would come "
                    "from other weights or other code; install the same packages and the same model on both machines"
                )
        self._where[call.worker] = where
        if call.phase != "start" or call.worker >= self._needed:
            self._say(f"{name} on {where} joins")

    def _forget_jobs(self) -> None:
        """What is still computed for a job of this map is not used."""
        for call in self._calls.values():
            call.job = call.job if call.job is None else -1

    # Messages -----------------------------------------------------------------------------

    def _name(self, number: int) -> str:
        return self._workers[number].name

    def _late(self, phase: str) -> RankError:
        states = {call.worker: f"works on {call.phase}" for call in self._calls.values() if call.job is not None}
        waiting = {call.worker: "does not answer" for call in self._calls.values() if call.job is None}
        gone = dict.fromkeys(self._lost, "is lost")
        each = "; ".join(f"{self._name(n)} {text}" for n, text in sorted((states | waiting | gone).items()))
        wanted = "no worker finished anything" if phase != "start" else "not all workers were there"
        return RankError(
            f"{wanted} within {self._deadline:g} s (scale.deadline) in phase {phase!r}: {each or 'none is there'}; see "
            f"that the machines have free cores and memory, or raise scale.deadline; {CONTINUE}"
        )


def finished(compute: Callable[[], Any], name: str = "background") -> Callable[[], Any]:
    """Begin to compute in a thread; the returned function waits for the result, or raises the error."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(compute())
        except BaseException as error:  # raised where the result is asked for
            with suppress(Exception):
                future.set_exception(error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future.result
