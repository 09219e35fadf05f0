"""A pool of worker processes that may die, return or join late; each job is done once, by any available worker.

A worker has one call at a time. When a worker is lost, its job goes to another one, and the pool greets the lost worker
until it answers; then it gets jobs again. The pool does not know how workers are called: :mod:`trimtab.rollout.ray`
calls Ray actors, a test calls threads.
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
"""Workers that may be lost on one job; after that the job is assumed to be the cause."""

PAUSE = 0.5
"""Seconds before a lost worker is greeted again."""

CONTINUE = "what is finished is saved; run the same command to continue from the last checkpoint"

Facts = Mapping[str, str]
"""Facts that must be equal on workers and learner, such as package versions and the model."""


class WorkerLostError(Exception):
    """A worker's process or machine is gone; it may return."""


class Worker(Protocol):
    """A process that the pool can call."""

    name: str
    """For messages."""

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of the worker; the future has its result, its error, or a :class:`WorkerLostError`."""
        ...


class Host:
    """The remote side of a :class:`Worker`: builds the target object on first use, and reports its facts.

    Args:
        build: creates the object whose methods are called.
        facts: facts of this process, compared with the learner's.
        where: location of the process, for messages.
    """

    def __init__(self, build: Callable[[], Any], facts: Callable[[], Facts], where: Callable[[], str]) -> None:
        self._build, self._facts, self._where = build, facts, where
        self._target: Any = None

    def greet(self) -> tuple[str, Facts]:
        """Location and facts of this process; returns once it is ready to work."""
        facts = self._facts()  # before a large model is loaded
        if self._target is None:
            self._target = self._build()
        return self._where(), facts

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the target object and return its result."""
        if self._target is None:  # restarted, and not greeted yet
            self._target = self._build()
        return getattr(self._target, method)(*arguments)


@dataclass(kw_only=True)
class _Call:
    """A call that has not returned."""

    worker: int
    job: int | None
    """Number of the job; None: a greeting."""
    phase: str


class Pool:
    """Workers of one kind.

    Args:
        workers: the first ``needed`` workers must be ready at the start; the others may join later.
        facts: the learner's facts.
        needed: number of workers to wait for at the start.
        deadline: most seconds without a finished job, or at the start without a greeting.
        say: receives a message when a worker is lost or joins.
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
        """Time at which each lost worker is greeted again."""
        self._lock = threading.Lock()
        self.losses = 0
        """Number of times a worker was lost."""
        for number in range(len(self._workers)):
            self._greet(number, "start")

    def start(self) -> None:
        """Wait until the needed workers are ready.

        Raises:
            RankError: one is not ready in time, or its facts differ from the learner's.
        """
        with self._lock:
            heard = time.monotonic()
            while any(not self._where[number] for number in range(self._needed)):
                self._turn("start", heard, {})

    def map(self, phase: str, method: str, jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The result of each job, in order.

        Args:
            phase: for messages.
            method: name of the workers' method.
            jobs: arguments of each call. A job that is repeated after a loss must give the same result.

        Raises:
            RankError: no job was finished within the deadline, a job lost too many workers, or a worker failed.
            TrimtabError: a worker raised one.
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
        """Wait for some calls and collect their results; return the jobs that must be repeated."""
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
        """Schedule a greeting of a lost worker after a pause."""
        self._lost[call.worker] = time.monotonic() + PAUSE
        if self._where[call.worker]:
            self.losses += 1
            where, self._where[call.worker] = self._where[call.worker], ""
            self._say(f"{self._name(call.worker)} on {where} was lost during {call.phase} ({error}); others continue")

    def _welcome(self, call: _Call, where: str, facts: Facts) -> None:
        """Add a worker, unless its facts differ from the learner's."""
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
        """Ignore results that are still being computed for this map."""
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
    """Start computing in a thread; the returned function waits for the result, or raises the error."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(compute())
        except BaseException as error:  # raised where the result is requested
            with suppress(Exception):
                future.set_exception(error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future.result
