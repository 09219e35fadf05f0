"""The chat page: answers, blind comparisons of two models, and votes of people who agreed to the terms."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import ChoiceLoader, Environment, FileSystemLoader
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.errors import ConflictError, DataError, TrimtabError
from trimtab.records import Completion, Message, Prompt
from trimtab.records.types import content_id
from trimtab.rollout.engine import AnswerSettings
from trimtab.serve.app import Served, Service
from trimtab.serve.errors import ApiError, of_trimtab
from trimtab.serve.gate import same
from trimtab.serve.guarding import Verdict
from trimtab.serve.replies import event, refusal_text
from trimtab.serve.requests import Text
from trimtab.serve.stream import EventStream, unless_gone
from trimtab.serve.worker import FinishReason, Job, Update
from trimtab.storage.chat import REASONS, Ballot, ChatVotes, Choice, Shown
from trimtab.web.app import HERE as WEB
from trimtab.web.app import page_environment
from trimtab.web.pages import page_in
from trimtab.web.security import Guard as SameOrigin
from trimtab.web.text import render_all

HERE = Path(__file__).parent
YEAR = 365 * 86400
TEMPERATURE = 0.7
"""Default temperature, as in ``trimtab chat``."""
TERMS = """If you agree, each vote is stored with your conversation up to it, the answers you saw, the model, its
settings and the time. It is stored under a random pseudonym; your name, your account and your IP address are not.

- **Where:** in the label database of whoever runs this server, on their machine.
- **What for:** to train and compare models.
- **Licence:** {licence}
- **Withdrawing:** with your withdrawal code, at any time, on this page. Your texts and votes are then erased; you are
  told which exports had been made before and which runs were trained on your votes. Models that were trained stay as
  they are.

Write nothing here that identifies you or others. If you do not agree, you can chat, and nothing is stored.
"""


@dataclass(kw_only=True)
class ChatPage:
    """The chat page: its settings, its service and its store of votes."""

    service: Service
    """The service that answers the conversations."""
    votes: ChatVotes
    """The store of votes."""
    key: str
    """Part of the link; anyone with it may use the page."""
    licence: str = "not published"
    """Licence under which votes are published, as stated in the terms."""
    secure: bool = False
    """True: people reach the page over HTTPS, so cookies are sent only over HTTPS."""
    terms: str = field(init=False)
    """The terms that people agree to."""
    version: str = field(init=False)
    """Hash of the terms."""
    consents: "Rate" = field(default_factory=lambda: Rate(most=30, seconds=60.0))
    """Limit on the rate at which people can agree, over all people."""
    home: str = "/chat"
    """Path that the link leads to."""
    temperature: float = TEMPERATURE
    """Temperature of the answers."""
    on_vote: Callable[[], None] = lambda: None
    """Called after each vote is stored."""

    def __post_init__(self) -> None:
        self.terms = TERMS.format(licence=self.licence)
        self.version = content_id(self.terms)

    @property
    def page_cookie(self) -> str:
        """Name of the cookie with the page's key; distinct per page, because all ports of a host share cookies."""
        return f"trimtab_chat_{self.votes.store.project_id}"

    @property
    def visitor_cookie(self) -> str:
        """Name of the cookie with the visitor's secret."""
        return f"trimtab_visitor_{self.votes.store.project_id}"

    def allow(self, request: Request) -> None:
        """Refuse a visitor who does not have the link.

        Raises:
            ApiError: status 401.
        """
        if not same(request.cookies.get(self.page_cookie, ""), self.key):
            raise ApiError(401, "open the link that the server printed when it was started", code="no_page_key")

    async def visitor(self, request: Request) -> int | None:
        """The visitor's number; None: they have not agreed to the terms."""
        secret = request.cookies.get(self.visitor_cookie, "")
        return await run_in_threadpool(self.votes.visitor, secret, self.version) if secret else None

    @property
    def pair(self) -> tuple[Served, Served] | None:
        """The two models that are compared; None: there is only one."""
        models = list(self.service.models.values())
        return (models[0], models[1]) if len(models) > 1 else None


@dataclass(kw_only=True)
class Rate:
    """At most ``most`` events in any ``seconds``; for the event loop's thread."""

    most: int
    """Largest number of events."""
    seconds: float
    """Length of the window."""
    _times: deque[float] = field(default_factory=deque)

    def take(self) -> bool:
        """Whether another event may happen now; if so, count it."""
        now = time.monotonic()
        while self._times and self._times[0] <= now - self.seconds:
            self._times.popleft()
        if len(self._times) >= self.most:
            return False
        self._times.append(now)
        return True


def round_of(service: Service) -> str:
    """Name of the round of votes, from the served checkpoints."""
    return f"chat-{content_id(sorted(m.checkpoint for m in service.models.values()))[:8]}"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Turn(_Strict):
    """One turn of a conversation, as the page sends it."""

    role: Literal["user", "assistant"]
    """Author of the turn; the page has no system prompt."""
    content: Text
    """The text."""

    @property
    def message(self) -> Message:
        """The turn as a record."""
        return Message(role=self.role, content=self.content)


class Question(_Strict):
    """A request for an answer."""

    messages: list[Turn] = Field(min_length=1, max_length=512)
    """Turns of the conversation so far; the last one is the user's."""
    compare: bool = False
    """True: two models answer, in random order."""


class Vote(_Strict):
    """A vote on one answer, or a choice between two."""

    token: Annotated[str, Field(max_length=100)]
    """Token sent with the end of the answer."""
    key: Annotated[str, Field(pattern="^[0-9a-zA-Z-]{8,64}$")]
    """Idempotency key that the page chooses for each vote: a vote that is sent twice is stored once."""
    good: bool | None = None
    """Verdict on a single answer: True for good, False for bad."""
    reason: Annotated[str, Field(max_length=40)] = ""
    """Why the single answer is bad; empty: no reason given."""
    choice: Choice | None = None
    """Choice between two answers."""


class Consent(_Strict):
    """Agreement to the terms."""

    version: str
    """Hash of the terms that were read."""


class Code(_Strict):
    """A request to withdraw a visitor's votes."""

    code: Annotated[str, Field(max_length=100)]
    """The visitor's secret code."""


class PageGuard:
    """ASGI middleware: the annotation app's checks and headers, for the page only."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] | None, public: str) -> None:
        self.app, self.guarded = app, SameOrigin(app, hosts, public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check requests to the page; pass on those to the API."""
        is_page = scope["type"] == "http" and belongs_to_page(scope["path"])
        await (self.guarded if is_page else self.app)(scope, receive, send)


def belongs_to_page(path: str) -> bool:
    """Whether a path belongs to the page, which has its own key."""
    return path == "/chat" or path.startswith(("/chat/", "/static/"))


def page_templates() -> Environment:
    """Template environment with the pages of this package and the annotation app's templates, which they extend."""
    pages = page_environment("")
    pages.loader = ChoiceLoader([FileSystemLoader(HERE / "templates"), FileSystemLoader(WEB / "templates")])
    return pages


def add_chat(app: FastAPI, page: ChatPage, *, hosts: Collection[str] | None, public: str = "") -> None:
    """Add the page to the app of the API.

    Args:
        app: from :func:`trimtab.serve.app.create_app`, with :func:`belongs_to_page` as ``free``.
        page: the chat page.
        hosts: host names that the server accepts; None: any, behind a proxy.
        public: the address that people use, if there is a proxy.
    """
    app.add_middleware(PageGuard, hosts=hosts, public=public)
    app.mount("/static", StaticFiles(directory=WEB / "static"))
    app.mount("/chat/static", StaticFiles(directory=HERE / "static"))
    pages = page_templates()
    router = APIRouter(include_in_schema=False)

    def cookie(answer: Response, name: str, value: str) -> Response:
        answer.set_cookie(name, value, max_age=YEAR, httponly=True, samesite="lax", secure=page.secure, path="/chat")
        return answer

    @router.get("/chat/enter/{key}")
    def enter(key: str) -> Response:
        if not same(key, page.key):
            raise ApiError(401, "this link is not known; the server prints a new one each time it is started")
        return cookie(RedirectResponse(page.home, status_code=303), page.page_cookie, key)

    @router.get("/chat")
    async def show(request: Request) -> HTMLResponse:
        page.allow(request)
        agreed = await page.visitor(request) is not None
        return page_in(
            pages, request, "chat.html", title="trimtab", agreed=agreed, version=page.version, terms=page.terms,
            reasons=",".join(REASONS), comparable=page.pair is not None,
            code=request.cookies.get(page.visitor_cookie, ""),
        )  # fmt: skip

    @router.post("/chat/answer")
    async def answer(request: Request, question: Question) -> Response:
        page.allow(request)
        return await unless_gone(request.receive, _answer(page, question, await page.visitor(request)))

    @router.post("/chat/vote")
    async def vote(request: Request, body: Vote) -> Response:
        page.allow(request)
        person = await page.visitor(request)
        if person is None:
            raise ApiError(403, "votes are stored only for people who agreed to the terms; agree on the page first")
        ballot = Ballot(token=body.token, key=body.key, good=body.good, reason=body.reason, choice=body.choice)
        try:
            is_new = await run_in_threadpool(page.votes.vote, person, page.version, ballot)
        except ConflictError as error:
            raise ApiError(409, str(error), code="conflict") from None
        page.on_vote()
        return JSONResponse({"stored": True, "new": is_new})

    @router.post("/chat/consent")
    async def consent(request: Request, body: Consent) -> Response:
        page.allow(request)
        if body.version != page.version:
            raise ApiError(409, "the terms have changed since; reload the page and read them again", code="conflict")
        if not page.consents.take():
            raise ApiError(429, "too many people agreed in the last minute; try again", retry_after=60)
        secret = request.cookies.get(page.visitor_cookie, "")
        secret = await run_in_threadpool(page.votes.consent, page.version, secret)
        return cookie(JSONResponse({"code": secret}), page.visitor_cookie, secret)

    @router.post("/chat/withdraw")
    async def withdraw(request: Request, body: Code) -> Response:
        page.allow(request)
        withdrawal = await run_in_threadpool(page.votes.withdraw, body.code)
        answer = JSONResponse(
            {
                "votes": withdrawal.votes,
                "exposures": withdrawal.exposures,
                "exports": list(withdrawal.exports),
                "runs": list(withdrawal.runs),
            }
        )
        answer.delete_cookie(page.visitor_cookie, path="/chat")
        return answer

    app.include_router(router)


# Answers ----------------------------------------------------------------------------------


async def _answer(page: ChatPage, question: Question, person: int | None) -> Response:
    turns = tuple(m.message for m in question.messages)
    if turns[-1].role != "user":
        raise DataError("the last turn of the conversation is not the user's")
    if question.compare and page.pair is None:
        raise DataError("this server has one model, so there is nothing to compare")
    models = list(page.pair) if question.compare and page.pair else [next(iter(page.service.models.values()))]
    exchange = await start(page, turns, models, person)
    return EventStream(exchange.events(), exchange.leave)


async def start(page: ChatPage, turns: Sequence[Message], models: Sequence[Served], person: int | None) -> "Exchange":
    """Check a conversation and queue an answer of each model; a model that occurs twice gives two answers.

    Raises:
        ApiError: the conversation cannot be answered.
    """
    service = page.service
    with service.worker.reserve(len(models)):
        encoded = [await service.encoded(model, turns) for model in models]
        verdict = await service.checked(turns)
        order = list(range(len(models)))
        secrets.SystemRandom().shuffle(order)
        exchange = Exchange(
            page=page, service=service, turns=turns, models=models, order=order, person=person, verdict=verdict
        )
        if verdict is not None and verdict.flagged:
            return exchange
        for model, tokens in zip(models, encoded, strict=True):
            longest = min(service.settings.default_tokens, model.backbone.chat.context - len(tokens))
            settings = AnswerSettings(temperature=page.temperature, max_new_tokens=longest)
            seed = secrets.randbelow(2**31)
            exchange.jobs.append(service.submit(model, turns, tokens, settings, seed=seed))
            exchange.seeds.append(seed)
            exchange.longest.append(longest)
    return exchange


@dataclass(kw_only=True)
class Exchange:
    """One conversation, and the answers of one or two models to it."""

    page: ChatPage
    service: Service
    """The service that answers this conversation, even if the page has switched to another service."""
    turns: Sequence[Message]
    models: Sequence[Served]
    order: list[int]
    """``order[p]``: index of the model at place p on the screen."""
    person: int | None
    """The visitor; None: nothing is stored."""
    verdict: Verdict | None
    jobs: list[Job] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    longest: list[int] = field(default_factory=list)
    texts: list[str] = field(init=False)
    """The answers, in the order of the models."""
    reasons: list[FinishReason | None] = field(init=False)

    def __post_init__(self) -> None:
        self.texts, self.reasons = ["" for _ in self.models], [None for _ in self.models]

    def leave(self) -> None:
        """Stop drawing the answers."""
        for job in self.jobs:
            self.service.worker.cancel(job)

    async def pieces(self) -> AsyncIterator[tuple[int, str]]:
        """Pieces of text with their place on the screen, until the answers are complete.

        Raises:
            ApiError: an answer cannot be completed.
        """
        async for number, update in _merged(self.jobs):
            self.texts[number] += update.text
            self.reasons[number] = update.finish_reason or self.reasons[number]
            if update.text:
                yield self.order.index(number), update.text
        for number, reason in enumerate(self.reasons):
            blocked_by = self.jobs[number].guarded[0].verdict if self.jobs else self.verdict
            if reason in (None, "content_filter") and blocked_by is not None:
                self.texts[number], self.reasons[number] = refusal_text(blocked_by), "content_filter"

    async def events(self) -> AsyncGenerator[bytes]:
        """The pieces as events; at the end, the complete answers and a token for a vote."""
        try:
            async for place, text in self.pieces():
                yield event({"place": place, "text": text})
        except ApiError as error:
            self.leave()
            yield event(error.body)
            return
        try:
            yield event(await self.end())
        except TrimtabError as error:
            yield event(of_trimtab(error).body)

    async def end(self) -> dict[str, Any]:
        """Store the exposure; return the complete answers in screen order, with a ``token`` for a vote."""
        token = await run_in_threadpool(self._expose)
        rendered = await run_in_threadpool(render_all, [self.texts[number] for number in self.order])
        answers = [
            {
                "text": self.texts[number],
                "html": html,
                "finish_reason": self.reasons[number],
                "blocked": self.reasons[number] == "content_filter",
            }
            for number, html in zip(self.order, rendered, strict=True)
        ]
        return {"answers": answers, "token": token}

    def _expose(self) -> str | None:
        if self.person is None:
            return None
        completions = tuple(
            Completion(
                text=text.strip(), model=model.name, finish_reason=None if reason == "content_filter" else reason
            )
            for text, model, reason in zip(self.texts, self.models, self.reasons, strict=True)
        )
        details = {
            "checkpoints": [model.checkpoint for model in self.models],
            "seeds": self.seeds,
            "temperature": self.page.temperature,
            "max_new_tokens": self.longest,
            "blocked": [reason == "content_filter" for reason in self.reasons],
            "unchecked_assistant_turns": sum(turn.role == "assistant" for turn in self.turns),
            "guard": None if self.service.guard is None else self.service.guard.version,
        }
        shown = Shown(
            prompt=Prompt.of(tuple(self.turns)), completions=completions, order=tuple(self.order), details=details
        )
        return self.page.votes.expose(self.person, self.page.version, shown)


async def _merged(jobs: Sequence[Job]) -> AsyncIterator[tuple[int, Update]]:
    """The updates of several jobs as they come, with the number of the job.

    Raises:
        ApiError: an answer cannot be completed.
    """
    waiting = {asyncio.ensure_future(job.next()): number for number, job in enumerate(jobs)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                updates = task.result()
                for update in updates:
                    yield number, update
                if updates:
                    waiting[asyncio.ensure_future(jobs[number].next())] = number
    finally:
        for task in waiting:
            task.cancel()
