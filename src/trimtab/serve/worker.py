"""The thread that draws: it owns the engines, takes requests from the event loop and hands text back to it."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from trimtab.records import Message
from trimtab.rollout.engine import Answer, Drawn, StepEngine, TokenLogprobs
from trimtab.serve.errors import ApiError
from trimtab.serve.guarding import Guard, GuardedAnswer, Verdict
from trimtab.serve.metrics import Metrics

_log = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "content_filter"]
BUFFER = 65_536
"""Characters of an answer that wait for a slow reader; with more, the request is cancelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """News of one answer."""

    index: int
    """Which of the request's answers."""
    text: str = ""
    """Text to send."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of its tokens."""
    finish_reason: FinishReason | None = None
    """None: it goes on."""


@dataclass(kw_only=True, eq=False)
class Job:
    """One request: answers to one conversation by one model.

    The worker's thread calls :meth:`put` and :meth:`fail`; everything else belongs to the event loop.
    """

    model: str
    """Who answers."""
    messages: Sequence[Message]
    """The conversation."""
    prompt_tokens: list[int]
    """The same, encoded."""
    answers: list[Answer]
    """The answers."""
    guard: Guard | None = None
    """Watches them."""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    created: float = field(default_factory=time.perf_counter)
    updates: deque[Update] = field(default_factory=deque)
    error: ApiError | None = None
    """Why it cannot go on."""
    guarded: list[GuardedAnswer] = field(init=False)
    """Each answer with the guard's latest verdict."""
    unsent: int = 0
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    _token_at: dict[int, float] = field(default_factory=dict)
    _first_at: dict[int, float] = field(default_factory=dict)
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
        """The updates since the last call, at least one; none once every answer is finished.

        Raises:
            ApiError: the request cannot go on.
        """
        while not self.updates:
            if self.error is not None:
                raise self.error
            if not self._unfinished:
                return []
            self._ready.clear()
            if not self.updates and self.error is None:
                await self._ready.wait()
        news = [self.updates.popleft() for _ in range(len(self.updates))]
        self.unsent -= sum(len(update.text) for update in news)
        self._unfinished -= sum(update.finish_reason is not None for update in news)
        return news

    def put(self, update: Update) -> None:
        """Called by the worker."""
        self.unsent += len(update.text)
        self.updates.append(update)
        self._wake()

    def fail(self, error: ApiError) -> None:
        """Called by the worker."""
        self.error = error
        self._wake()

    def _wake(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # the loop is closed: nobody reads any more
            pass


class Worker:
    """Steps the engines while there is something to draw.

    Args:
        engines: one for each model, by name; with room for the longest prompt that will be submitted.
        queue: answers that may wait for a slot; further requests are refused.
        metrics: told what happens.
    """

    def __init__(self, engines: Mapping[str, StepEngine], *, queue: int, metrics: Metrics) -> None:
        self.engines, self.queue, self.metrics = engines, queue, metrics
        self._jobs: dict[Answer, tuple[Job, int]] = {}
        self._condition = threading.Condition()
        self._commands: list[Callable[[], None]] = []
        self._queued: set[Answer] = set()
        self._stopping = False
        self._mean_latency = 1.0
        self._thread = threading.Thread(target=self._run, name="trimtab-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; answers that run are lost."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join()
        for engine in self.engines.values():
            engine.close()

    @property
    def idle(self) -> bool:
        """True: nothing runs and nothing waits."""
        return not self._jobs and not self._commands

    def check_room(self, answers: int) -> None:
        """Refuse a request that would wait behind too many.

        Raises:
            ApiError: 429, with the time after which to try again.
        """
        slots = sum(engine.slots for engine in self.engines.values())
        with self._condition:
            waiting = sum(not answer.started for answer in self._queued)
            free = slots - sum(engine.running for engine in self.engines.values())
        if waiting + answers > self.queue + free:
            wait = round(self._mean_latency * waiting / slots)
            self.metrics.refused.labels("queue_full").inc()
            raise ApiError(
                429,
                f"{waiting} answers are waiting, and at most {self.queue} may; try again later",
                code="rate_limit_exceeded",
                retry_after=max(1, min(60, wait)),
            )

    def submit(self, job: Job) -> None:
        """Queue a request; its updates follow.

        Raises:
            ApiError: the queue is full.
        """
        with self._condition:
            self.check_room(len(job.answers))
            self._queued.update(job.answers)
            self._commands.append(lambda: self._add(job))
            self._condition.notify()

    def cancel(self, job: Job) -> None:
        """Draw a request no further; its slots are free before the next step."""
        with self._condition:
            self._commands.append(lambda: self._cancel(job))
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
            for command in commands:
                command()
            for name, engine in self.engines.items():
                if engine.running or engine.waiting:
                    self._step(name, engine)

    def _add(self, job: Job) -> None:
        for index, answer in enumerate(job.answers):
            self._jobs[answer] = (job, index)
        self.engines[job.model].add(job.prompt_tokens, job.answers)

    def _cancel(self, job: Job) -> None:
        for answer in job.answers:
            if self._jobs.pop(answer, None) is not None:
                self.engines[job.model].cancel(answer)
                with self._condition:
                    self._queued.discard(answer)
                self.metrics.success.labels(job.model, "abort").inc()
        self._gauge(job.model)

    def _step(self, name: str, engine: StepEngine) -> None:
        try:
            drawn = engine.step()
        except Exception:
            _log.exception("%s: a step failed; its requests are given up", name)
            for job in {id(job): job for job, _ in self._jobs.values() if job.model == name}.values():
                job.fail(ApiError(500, "the model failed; the server's log says why"))
                self._cancel(job)
            return
        now = time.perf_counter()
        with self._condition:
            started = [answer for answer in self._queued if answer.started]
            self._queued.difference_update(started)
        for answer in started:
            job, index = self._jobs[answer]
            self.metrics.queue_time.labels(name).observe(now - job.created)
            if index == 0:
                self.metrics.prompt_tokens.labels(name).inc(len(job.prompt_tokens))
        self.metrics.generation_tokens.labels(name).inc(len(drawn))
        for one in drawn:
            if one.answer in self._jobs:  # not cancelled by an answer before it in this step
                self._pass_on(one, now)
        self._gauge(name)

    def _pass_on(self, drawn: Drawn, now: float) -> None:
        job, index = self._jobs[drawn.answer]
        if index in job._token_at:
            self.metrics.between_tokens.labels(job.model).observe(now - job._token_at[index])
        else:
            self.metrics.first_token.labels(job.model).observe(now - job.created)
            job._first_at[index] = now
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
        del self._jobs[answer]
        seconds = now - job.created
        self._mean_latency += 0.1 * (seconds - self._mean_latency)
        self.metrics.success.labels(job.model, reason).inc()
        self.metrics.latency.labels(job.model).observe(seconds)
        if len(answer.tokens) > 1:
            per_token = (now - job._first_at[index]) / (len(answer.tokens) - 1)
            self.metrics.per_token.labels(job.model).observe(per_token)

    def _gauge(self, name: str) -> None:
        engine = self.engines[name]
        self.metrics.running.labels(name).set(engine.running)
        self.metrics.waiting.labels(name).set(engine.waiting)
        self.metrics.cache_usage.labels(name).set(engine.cached / (engine.slots * engine.length))
