"""The API: its routes, and how one request is answered."""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

from trimtab import __version__
from trimtab.errors import TooLongError, TrimtabError
from trimtab.models import Backbone
from trimtab.records import Message
from trimtab.records.types import message_id
from trimtab.rollout.drawing import answer_stream
from trimtab.rollout.engine import Answer, AnswerSettings, StepEngine, TokenLogprobs
from trimtab.serve.errors import ApiError, ErrorBody, add_error_handlers, of_trimtab
from trimtab.serve.gate import Gate
from trimtab.serve.guarding import Guard, Verdict, check_prompt
from trimtab.serve.metrics import Metrics
from trimtab.serve.replies import DONE, Reply, event, moderation, moderation_result, refusal_text, usage
from trimtab.serve.requests import ChatRequest, ModerationRequest
from trimtab.serve.spelling import Spelling
from trimtab.serve.stream import EventStream, unless_gone
from trimtab.serve.worker import FinishReason, Job, Worker


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that is served."""

    name: str
    """Name in ``/v1/models``."""
    backbone: Backbone
    """The loaded model."""
    adapter: str | None
    """Name of the adapter of ``backbone`` that answers; None: no adapter."""
    checkpoint: str
    """Hash of the weights."""


@dataclass(kw_only=True)
class Settings:
    """Settings of the server."""

    slots: int = 16
    """Answers that one model generates at the same time."""
    queue: int = 64
    """Answers that may wait for a slot."""
    default_tokens: int = 512
    """Default maximum length of an answer, in tokens."""
    blocked: Literal["answer", "error"] = "answer"
    """What a blocked conversation gets: an answer that says so (200, ``content_filter``), or status 400."""


@dataclass(kw_only=True)
class Service:
    """Models, the worker that draws, and the guard."""

    models: Mapping[str, Served]
    """Served models by name; the first is the default of the chat page."""
    settings: Settings = field(default_factory=Settings)
    guard: Guard | None = None
    """Checks conversations and answers; None: nothing is checked."""
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False
    """True: new requests are refused."""
    started: int = field(default_factory=lambda: int(time.time()))
    worker: Worker = field(init=False)
    _encoding: threading.Lock = field(default_factory=threading.Lock)
    _encoders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "trimtab-encoder"))
    _guards: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "trimtab-guard"))
    _spelling: dict[str, Spelling] = field(init=False)

    def __post_init__(self) -> None:
        layer = self.guard.layer if self.guard else 0
        engines = {
            name: StepEngine(
                model.backbone,
                adapter=model.adapter,
                slots=self.settings.slots,
                length=model.backbone.chat.context,
                recorded_layer=layer,
            )
            for name, model in self.models.items()
        }
        self.worker = Worker(engines, queue=self.settings.queue, metrics=self.metrics)
        self._spelling = {name: Spelling(model.backbone.chat.tokenizer) for name, model in self.models.items()}

    def model(self, name: str) -> Served:
        """A model by name.

        Raises:
            ApiError: there is no such model.
        """
        if name not in self.models:
            names = ", ".join(self.models)
            raise ApiError(
                404, f"there is no model {name[:100]!r}; this server has {names}", param="model", code="model_not_found"
            )
        return self.models[name]

    def stop(self) -> None:
        """Stop all threads; unfinished answers are lost."""
        self.worker.stop()
        for pool in (self._encoders, self._guards):
            pool.shutdown(wait=False, cancel_futures=True)

    async def encoded(self, model: Served, turns: Sequence[Message], *, param: str = "messages") -> list[int]:
        """Run :meth:`encode` in a separate thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._encoders, lambda: self.encode(model, turns, param=param)
        )

    async def checked(self, turns: Sequence[Message]) -> Verdict | None:
        """The guard's verdict on a conversation; None: there is no guard.

        The guard runs in separate threads, so that a slow guard delays nothing else.
        """
        guard = self.guard
        if guard is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._guards, check_prompt, guard, turns)

    def encode(self, model: Served, turns: Sequence[Message], *, param: str = "messages") -> list[int]:
        """Tokens of a conversation.

        Args:
            model: the model whose tokenizer and chat template are used.
            turns: the conversation.
            param: request parameter that an error names as its cause.

        Raises:
            ApiError: the conversation is too long, or the model's chat template rejects it.
        """
        context = model.backbone.chat.context
        subject = "conversation" if param == "messages" else "text"
        too_long = f"the {subject} is longer than the context of {context} tokens; shorten it"
        if sum(len(turn.content) for turn in turns) > context * self._spelling[model.name].longest:
            raise ApiError(400, too_long, param=param, code="context_length_exceeded")  # without encoding it
        try:
            with self._encoding:
                return model.backbone.chat.prompt(turns)
        except TrimtabError as error:
            api_error = of_trimtab(error)
            api_error.param = param
            if isinstance(error, TooLongError):
                api_error.message = too_long
            raise api_error from None

    def reply(self, model: Served, *, logprobs: bool = False, include_usage: bool = False) -> Reply:
        """A builder of the response bodies of one request."""
        return Reply(
            model=model.name,
            fingerprint=f"fp_{model.checkpoint[:10]}",
            spelling=self._spelling[model.name],
            logprobs=logprobs,
            include_usage=include_usage,
        )

    def submit(
        self,
        model: Served,
        turns: Sequence[Message],
        prompt_tokens: list[int],
        settings: AnswerSettings,
        *,
        seed: int,
        count: int = 1,
    ) -> Job:
        """Queue answers, inside :meth:`Worker.reserve`. Equal seeds give equal answers, as in the trainers' sampler.

        Raises:
            ApiError: the server is stopping.
        """
        prompt = message_id(turns)
        answers = [Answer(settings=settings, stream=answer_stream(seed, prompt, index)) for index in range(count)]
        job = Job(model=model.name, messages=turns, prompt_tokens=prompt_tokens, answers=answers, guard=self.guard)
        self.worker.submit(job)
        return job


def create_app(service: Service, *, key: str, free: Callable[[str], bool] = lambda path: False) -> FastAPI:
    """The ASGI application.

    Args:
        service: the models, the worker and the guard.
        key: API key of every route but ``/health``.
        free: further paths that need no key.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(
        title="trimtab", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False
    )
    app.state.service = service
    app.add_middleware(
        Gate,
        key=key,
        free=lambda path: path == "/health" or free(path),
        draining=lambda: service.draining,
    )
    add_error_handlers(app)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    errors: dict[int | str, dict[str, Any]] = {s: {"model": ErrorBody} for s in (400, 401, 404, 413, 429, 500, 503)}

    @app.get("/health", responses={503: {"model": ErrorBody}})
    async def health() -> Response:
        """Whether the server takes requests."""
        if service.draining:
            return ApiError(503, "the server is about to stop").response()
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", response_class=PlainTextResponse, responses={401: {"model": ErrorBody}})
    def metrics() -> Response:
        """Metrics in Prometheus's text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", responses={401: {"model": ErrorBody}})
    def models() -> Any:
        """The models that are served."""
        return {"object": "list", "data": [_model(service, model) for model in service.models.values()]}

    @app.get("/v1/models/{name:path}", responses=errors)
    def model(name: str) -> Any:
        """One model."""
        return _model(service, service.model(name))

    @app.post("/v1/chat/completions", responses=errors | {200: {"content": {"text/event-stream": {}}}})
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        return await complete(service, request, body)

    @app.post("/v1/moderations", responses=errors)
    async def moderations(request: Request, body: ModerationRequest) -> Response:
        """The guard's verdict on texts."""
        return await unless_gone(request.receive, _moderate(service, body))

    @app.api_route("/v1/responses", methods=["GET", "POST"], include_in_schema=False)
    def responses() -> Response:
        raise ApiError(404, "this server has no responses API; use POST /v1/chat/completions", code="unknown_url")


def _model(service: Service, model: Served) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": service.started, "owned_by": "trimtab"}


async def _moderate(service: Service, body: ModerationRequest) -> Response:
    if service.guard is None:
        raise ApiError(404, "this server has no guard; start it with one", code="no_guard")
    model, results = next(iter(service.models.values())), []
    with service.worker.reserve(1):
        conversations = [[Message(role="user", content=text)] for text in body.texts]
        for turns in conversations:
            await service.encoded(model, turns, param="input")  # no text longer than the context reaches the guard
        for turns in conversations:
            verdict = await service.checked(turns)
            assert verdict is not None
            results.append(moderation_result(verdict))
    return JSONResponse({"id": f"modr-{secrets.token_hex(12)}", "model": service.guard.version, "results": results})


async def complete(service: Service, request: Request, body: ChatRequest) -> Response:
    """Answer a request, streaming or not."""
    model, turns = service.model(body.model), body.turns
    if body.moderation is not None and service.guard is None:
        raise ApiError(400, "moderation: this server has no guard; leave the parameter out", param="moderation")
    if body.answers > service.settings.slots:
        raise ApiError(400, f"n: at most {service.settings.slots}, the slots of this server", param="n")
    return await unless_gone(request.receive, _respond(service, body, model, turns))


async def _respond(service: Service, body: ChatRequest, model: Served, turns: Sequence[Message]) -> Response:
    with service.worker.reserve(body.answers):
        prompt_tokens = await service.encoded(model, turns)
        settings = body.settings(len(prompt_tokens), model.backbone.chat.context, service.settings.default_tokens)
        verdict = await service.checked(turns)
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        reply = service.reply(model, logprobs=bool(body.logprobs), include_usage=include_usage)
        exchange = _Exchange(service=service, body=body, reply=reply, verdict=verdict, prompt_tokens=len(prompt_tokens))
        if verdict is not None and verdict.flagged:
            return exchange.blocked()
        seed = secrets.randbelow(2**63) if body.seed is None else body.seed
        job = service.submit(model, turns, prompt_tokens, settings, seed=seed, count=body.answers)
    if body.stream:
        return EventStream(exchange.stream(job), lambda: service.worker.cancel(job))
    try:
        return JSONResponse(await exchange.collect(job))
    except asyncio.CancelledError:
        service.worker.cancel(job)
        raise


@dataclass(kw_only=True)
class _Exchange:
    """One request, and its possible responses."""

    service: Service
    body: ChatRequest
    reply: Reply
    verdict: Verdict | None
    prompt_tokens: int

    def blocked(self) -> Response:
        """The response to a conversation that the guard flags."""
        assert self.verdict is not None
        text = refusal_text(self.verdict)
        self.service.metrics.refused.labels("guard").inc()
        if self.service.settings.blocked == "error":
            raise ApiError(400, text, param="messages", code="content_filter")
        if self.body.stream:
            return EventStream(self._blocked_events(text), lambda: None)
        choices: list[tuple[str, Sequence[TokenLogprobs], FinishReason]] = [(text, (), "content_filter")]
        counts = usage(self.prompt_tokens, 0)
        body = self.reply.whole(
            choices * self.body.answers, counts, refusal=text, moderation=self._moderation([self.verdict])
        )
        return JSONResponse(body)

    async def _blocked_events(self, text: str) -> AsyncGenerator[bytes]:
        assert self.verdict is not None
        for index in range(self.body.answers):
            yield event(self.reply.first_chunk(index))
            for chunk in self.reply.refusal_chunks(index, text):
                yield event(chunk)
        for content in self._last_events(0, [self.verdict]):
            yield content

    async def stream(self, job: Job) -> AsyncGenerator[bytes]:
        """The server-sent events of a streamed response."""
        for index in range(self.body.answers):
            yield event(self.reply.first_chunk(index))
        try:
            while updates := await job.next():
                yield b"".join(event(chunk) for update in updates for chunk in self.reply.chunks(update))
        except ApiError as error:
            yield event(error.body)
            return
        for content in self._last_events(job.completion_tokens, job.verdicts):
            yield content

    async def collect(self, job: Job) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        texts = [""] * self.body.answers
        logprobs: list[list[TokenLogprobs]] = [[] for _ in texts]
        reasons: list[FinishReason] = ["stop"] * self.body.answers
        while updates := await job.next():
            for update in updates:
                texts[update.index] += update.text
                logprobs[update.index] += update.logprobs
                reasons[update.index] = update.finish_reason or reasons[update.index]
        choices = list(zip(texts, logprobs, reasons, strict=True))
        counts = usage(self.prompt_tokens, job.completion_tokens)
        return self.reply.whole(choices, counts, moderation=self._moderation(job.verdicts))

    def _last_events(self, completion_tokens: int, verdicts: Sequence[Verdict]) -> list[bytes]:
        events = []
        if (verdict := self._moderation(verdicts)) is not None:
            events.append(event(self.reply.moderation_chunk(verdict)))
        if self.reply.include_usage:
            events.append(event(self.reply.usage_chunk(usage(self.prompt_tokens, completion_tokens))))
        return [*events, DONE]

    def _moderation(self, verdicts: Sequence[Verdict]) -> dict[str, Any] | None:
        if self.body.moderation is None or self.service.guard is None or self.verdict is None:
            return None
        return moderation(self.service.guard, self.verdict, verdicts)
