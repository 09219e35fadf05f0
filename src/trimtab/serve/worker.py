"""The worker thread: owns the engines, takes requests from the event loop and returns text to it."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from trimtab.records import Message
from trimtab.rollout.engine import Answer, Drawn, TokenLogprobs
from trimtab.serve.errors import ApiError
from trimtab.serve.guarding import Guard, GuardedAnswer, Verdict
from trimtab.serve.metrics import Metrics

_log = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "content_filter"]
BUFFER = 65_536
"""Most characters that wait for a slow client; with more, the request is cancelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """New text of one answer."""

    index: int
    """Index of the answer in the request."""
    text: str = ""
    """Text to send."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Log-probabilities of its tokens."""
    finish_reason: FinishReason | None = None
    """Why the answer ended; None: it continues."""


@dataclass(kw_only=True, eq=False)
class Job:
    """One request: answers to one conversation by one model.

    The worker's thread calls :meth:`put` and :meth:`fail`; everything else belongs to the event loop.
    """

    model: str
    """Name of the model that answers."""
    messages: Sequence[Message]
    """The conversation."""
    prompt_tokens: list[int]
    """The conversation as tokens."""
    answers: list[Answer]
    """The answers."""
    guard: Guard | None = None
    """Checks the answers."""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    created: float = field(default_factory=time.perf_counter)
    updates: deque[Update] = field(default_factory=deque)
    error: ApiError | None = None
    """Why the request cannot continue."""
    guarded: list[GuardedAnswer] = field(init=False)
    """Each answer with the guard's latest verdict."""
    unsent: int = 0
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    _token_at: dict[int, float] = field(default_factory=dict)
    _first_token_at: dict[int, float] = field(default_factory=dict)
    _unfinished: int = field(init=False)

    def __post_init__(self) -> None:
        self.guarded = [GuardedAnswer(self.guard, self.messages) for _ in self.answers]
        self._unfinished = len(self.answers)

    @property
    def completion_tokens(self) -> int:
        """Tokens drawn so far."""
        return sum(len(answer.tokens) for answer in self.answers)

    @property
    def verdicts(self) -> list[Verdict]:
        """The guard's latest verdict on each answer that has one."""
        return [g.verdict for g in self.guarded if g.verdict is not None]

    async def next(self) -> list[Update]:
        """The updates since the last call, at least one; empty once every answer is finished.

        Raises:
            ApiError: the request cannot continue.
        """
        while not self.updates:
            if self.error is not None:
                raise self.error
            if not self._unfinished:
                return []
            self._ready.clear()
            if not self.updates and self.error is None:
                await self._ready.wait()
        updates = [self.updates.popleft() for _ in range(len(self.updates))]
        self.unsent -= sum(len(update.text) for update in updates)
        self._unfinished -= sum(update.finish_reason is not None for update in updates)
        return updates

    def put(self, update: Update) -> None:
        """Add an update; called in the worker's thread."""
        self.unsent += len(update.text)
        self.updates.append(update)
        self._wake()

    def fail(self, error: ApiError) -> None:
        """Report that the request cannot continue; called in the worker's thread."""
        self.error = error
        self._wake()

    def _wake(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # the loop is closed: there is no client any more
            pass


class Engine(Protocol):
    """An engine that the worker steps: :class:`~trimtab.rollout.engine.StepEngine`, or another with the same interface.

    All calls come from one thread. An answer's settings, random stream and tokens are in the
    :class:`~trimtab.rollout.engine.Answer`, which the engine fills. Equal streams give equal answers, whatever else
    runs.
    """

    @property
    def slots(self) -> int:
        """Number of answers that can run at the same time."""
        ...

    @property
    def length(self) -> int:
        """Most tokens of a sequence, prompt included."""
        ...

    @property
    def running(self) -> int:
        """Number of answers that have a slot."""
        ...

    @property
    def waiting(self) -> int:
        """Number of answers without a slot."""
        ...

    @property
    def cached(self) -> int:
        """Number of tokens in the key-value cache."""
        ...

    def add(self, prompt_tokens: Sequence[int], answers: Sequence[Answer]) -> None:
        """Queue answers to one prompt; an answer's ``started`` becomes True when it gets a slot."""
        ...

    def cancel(self, answer: Answer) -> None:
        """Stop a queued or running answer; its slot is free at the next step. Unknown answers are ignored."""
        ...

    def step(self) -> list[Drawn]:
        """Draw at most one token of each running answer; an answer's last token has its ``finish_reason``.

        ``text`` contains only whole characters and never the beginning of a stop string. ``state`` is None if the
        engine records no states; a guard then cannot check the answer.
        """
        ...

    def close(self) -> None:
        """Free the engine's resources; running answers are lost."""
        ...


class Worker:
    """Steps the engines while there are answers to draw.

    Args:
        engines: one engine for each model, by name, with room for the longest prompt that will be submitted.
        queue: number of answers that may wait for a slot; further requests are refused.
        metrics: metrics to update.
    """

    def __init__(self, engines: Mapping[str, Engine], *, queue: int, metrics: Metrics) -> None:
        self.engines, self.queue, self.metrics = engines, queue, metrics
        self._jobs: dict[Answer, tuple[Job, int]] = {}
        self._condition = threading.Condition()
        self._commands: list[tuple[Callable[[Job], None], Job]] = []
        self._queued: set[Answer] = set()
        self._reserved = 0
        self._running = 0  # answers with a slot after the last step, because other threads must not read the engines
        self._stopping = False
        self._mean_latency = 1.0
        self._thread = threading.Thread(target=self._run, name="trimtab-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; running answers are lost."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join()
        for engine in self.engines.values():
            engine.close()

    @property
    def idle(self) -> bool:
        """True: nothing runs, nothing waits, and no request is on its way into the queue."""
        with self._condition:
            return not (self._jobs or self._queued or self._commands or self._reserved)

    @contextmanager
    def reserve(self, answers: int) -> Iterator[None]:
        """Reserve room in the queue while a request is encoded and checked by the guard; call :meth:`submit` inside.

        Raises:
            ApiError: the queue is full (status 429, with the time after which to try again).
        """
        with self._condition:
            self._check_capacity(answers)
            self._reserved += answers
        try:
            yield
        finally:
            with self._condition:
                self._reserved -= answers

    def _check_capacity(self, answers: int) -> None:
        slots = sum(engine.slots for engine in self.engines.values())
        waiting = sum(not answer.started for answer in self._queued) + self._reserved
        if waiting + answers > self.queue + slots - self._running:
            wait = round(self._mean_latency * waiting / slots)
            self.metrics.refused.labels("queue_full").inc()
            raise ApiError(
                429,
                f"{waiting} answers are waiting, and at most {self.queue} may; try again later",
                code="rate_limit_exceeded",
                retry_after=max(1, min(60, wait)),
            )

    def submit(self, job: Job) -> None:
        """Queue a request for which :meth:`reserve` has reserved room; its updates follow.

        Raises:
            ApiError: the worker has stopped.
        """
        with self._condition:
            if self._stopping:
                raise ApiError(503, "the server is about to stop; try again later", retry_after=30)
            self._queued.update(job.answers)
            self._commands.append((self._add, job))
            self._condition.notify()

    def cancel(self, job: Job) -> None:
        """Stop a request; its slots are free before the next step."""
        with self._condition:
            self._commands.append((self._cancel, job))
            self._condition.notify()

    # In the worker's thread ---------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._commands and not self._stopping and not self._jobs:
                    self._condition.wait()
                if self._stopping:
                    return
                commands, self._commands = self._commands, []
            for command, job in commands:
                try:
                    command(job)
                except Exception:
                    self._give_up([job])
            for name, engine in self.engines.items():
                if not (engine.running or engine.waiting):
                    continue
                try:
                    self._step(name, engine)
                except Exception:
                    self._give_up([job for job, _ in self._jobs.values() if job.model == name])
            running = sum(engine.running for engine in self.engines.values())
            with self._condition:
                self._running = running

    def _give_up(self, jobs: Sequence[Job]) -> None:
        """Fail requests because of the exception being handled; the thread continues."""
        _log.exception("the worker failed; %d answers are given up", len(jobs))
        for job in jobs:
            job.fail(ApiError(500, "the model failed; the server's log says why"))
        for job in jobs:
            try:
                self._cancel(job)
            except Exception:
                _log.exception("a request that failed could not be cancelled")

    def _add(self, job: Job) -> None:
        with self._condition:
            for index, answer in enumerate(job.answers):
                self._jobs[answer] = (job, index)
        self.engines[job.model].add(job.prompt_tokens, job.answers)

    def _cancel(self, job: Job) -> None:
        for answer in job.answers:
            with self._condition:
                running = self._jobs.pop(answer, None) is not None
                self._queued.discard(answer)
            if running:
                self.engines[job.model].cancel(answer)
                self.metrics.success.labels(job.model, "abort").inc()
        self._set_gauges(job.model)

    def _step(self, name: str, engine: Engine) -> None:
        drawn = engine.step()
        now = time.perf_counter()
        running = sum(each.running for each in self.engines.values())
        with self._condition:
            self._running = running
            started = [answer for answer in self._queued if answer.started]
            self._queued.difference_update(started)
        for answer in started:
            job, index = self._jobs[answer]
            self.metrics.queue_time.labels(name).observe(now - job.created)
            if index == 0:
                self.metrics.prompt_tokens.labels(name).inc(len(job.prompt_tokens))
        self.metrics.generation_tokens.labels(name).inc(len(drawn))
        for drawn_token in drawn:
            if drawn_token.answer in self._jobs:  # not cancelled because of an earlier answer of this step
                self._pass_on(drawn_token, now)
        self._set_gauges(name)

    def _pass_on(self, drawn: Drawn, now: float) -> None:
        job, index = self._jobs[drawn.answer]
        if index in job._token_at:
            self.metrics.between_tokens.labels(job.model).observe(now - job._token_at[index])
        else:
            self.metrics.first_token.labels(job.model).observe(now - job.created)
            job._first_token_at[index] = now
        job._token_at[index] = now
        guarded = job.guarded[index]
        piece = guarded.push(drawn)
        reason: FinishReason | None = "content_filter" if guarded.blocked else drawn.finish_reason
        if reason is not None:
            self._finish(job, index, drawn.answer, reason, now)
        if piece.text or piece.logprobs or reason:
            job.put(Update(index=index, text=piece.text, logprobs=piece.logprobs, finish_reason=reason))
        if job.unsent > BUFFER and reason is None:
            job.fail(ApiError(408, f"the reader is {job.unsent} characters behind; the answer was given up"))
            self._cancel(job)

    def _finish(self, job: Job, index: int, answer: Answer, reason: FinishReason, now: float) -> None:
        self.engines[job.model].cancel(answer)
        with self._condition:
            del self._jobs[answer]
        seconds = now - job.created
        self._mean_latency += 0.1 * (seconds - self._mean_latency)
        self.metrics.success.labels(job.model, reason).inc()
        self.metrics.latency.labels(job.model).observe(seconds)
        if len(answer.tokens) > 1:
            per_token = (now - job._first_token_at[index]) / (len(answer.tokens) - 1)
            self.metrics.per_token.labels(job.model).observe(per_token)

    def _set_gauges(self, name: str) -> None:
        engine = self.engines[name]
        self.metrics.running.labels(name).set(engine.running)
        self.metrics.waiting.labels(name).set(engine.waiting)
        self.metrics.cache_usage.labels(name).set(engine.cached / (engine.slots * engine.length))
