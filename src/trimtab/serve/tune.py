"""Live tuning by one person: a page asks for comparisons, and a separate process learns from them.

The page shows two answers of the newest policy to a prompt of the run. From the second round on, it shows one answer of
the newest policy and one of the policy before, so that each choice also compares the two policies. Choices are votes of
the chat page, stored before they are acknowledged. After every few dozen choices with a winner, a process makes a round
of the run (:mod:`trimtab.pipeline.tuning`), and the page continues with the new policy.
"""

import asyncio
import logging
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from trimtab import __version__
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.context import Context
from trimtab.pipeline.rounds import check_finished, open_run, recipe_of
from trimtab.pipeline.tune_learning import (
    answering,
    check_tunable,
    first_round,
    learned,
    predictions,
    tuned_rounds,
)
from trimtab.pipeline.tuning import new_choices, work_left
from trimtab.pipeline.ui import Silent
from trimtab.pipeline.vote_files import measure
from trimtab.pipeline.votes import of_snapshot
from trimtab.records import Prompt
from trimtab.serve.app import Served, Service, Settings
from trimtab.serve.chat import ChatPage, Exchange, add_chat, belongs_to_page, page_templates, round_of, start
from trimtab.serve.errors import ApiError, add_error_handlers
from trimtab.serve.gate import Gate
from trimtab.serve.server import load_models
from trimtab.serve.stream import unless_gone
from trimtab.storage import RunFolder
from trimtab.storage.chat import ChatVotes
from trimtab.storage.labels import LabelStore
from trimtab.storage.snapshot import take_snapshot
from trimtab.web.pages import page_in
from trimtab.web.server import listen, open_project

if TYPE_CHECKING:
    import uvicorn

_log = logging.getLogger(__name__)

DRAWS = 8
"""Number of prompts tried before the page reports that the policy gives the same answer twice."""
NO_CAP = 1_000_000
"""Cap on a person's votes in a round: no limit, because one person is meant to decide."""
VERDICTS = {
    "waiting": "nothing can be said yet; choices after this round test it",
    "not_learned": "it has not learned your taste",
    "no_better": "it predicts your choices better than chance, and may be no better than before",
    "learned": "it has learned something of your taste",
}
"""The verdicts as the terminal shows them."""

Phase = Literal["asking", "training", "loading"]


@dataclass(kw_only=True)
class Tuning:
    """The state of a tuning session; everything that is not in files can be recomputed from them."""

    run: RunFolder
    """The run."""
    project: Path
    """Annotation project of the choices."""
    store: LabelStore
    """The open label store of that project."""
    every: int = 24
    """Number of choices with a winner after which a round is made."""
    overrides: Sequence[str] = ()
    """Settings of the rounds."""
    say: Callable[[str], Any] = lambda _: None
    """Called with a line about each round."""
    page: ChatPage = field(init=False)
    phase: Phase = "asking"
    problem: str = ""
    """Why the last training failed."""
    new: int = 0
    """Number of choices with a winner that no round has used."""
    prompts: list[Prompt] = field(init=False)
    _wake: threading.Event = field(default_factory=threading.Event)
    _starting: threading.Lock = field(default_factory=threading.Lock)
    _stop: bool = False
    _child: "subprocess.Popen[bytes] | None" = None
    _failed_at: int = 0
    _summary: dict[str, Any] = field(default_factory=dict)
    _next_prompt: int = 0
    _drawn: "asyncio.Task[Exchange] | None" = None

    def __post_init__(self) -> None:
        config = load_recipe(self.run.path / "config.yaml")
        check_tunable(config)
        check_finished(self.run.newest())
        first_round(self.run)
        context = Context(config=config, recipe=recipe_of(self.run), run=self.run, ui=Silent())
        service, sampling = self._service(), answering(self.run)
        chat = next(iter(service.models.values())).backbone.chat
        self.prompts, _ = context.prompts(chat, sampling.max_new_tokens)
        Random(secrets.randbits(32)).shuffle(self.prompts)
        votes = ChatVotes(self.store, round_name=round_of(service), cap=NO_CAP)
        self.page = ChatPage(
            service=service, votes=votes, key=secrets.token_urlsafe(24), home="/chat/tune",
            temperature=sampling.temperature, on_vote=self._wake.set,
        )  # fmt: skip
        self._refresh()

    def _service(self) -> Service:
        """A service of the newest policy and, from the first tuned round on, of the policy before."""
        newest = self.run.newest().number
        names = [f"round-{n}" for n in (newest, newest - 1) if n >= first_round(self.run)]
        models = load_models(str(self.run.path), names, runs=self.run.path.parent)
        longest = answering(self.run).max_new_tokens
        return Service(models=models, settings=Settings(slots=2, queue=16, default_tokens=longest))

    # Comparisons ---------------------------------------------------------------------------

    async def comparison(self, person: int) -> dict[str, Any]:
        """The next comparison, which is stored as shown; the comparison after it is drawn in the background.

        Raises:
            ApiError: the policy gives the same answer twice to every prompt that was tried.
        """
        while True:
            drawing = self._drawn or asyncio.ensure_future(self._draw())
            self._drawn = None
            exchange = await drawing
            if exchange.service is self.page.service:
                break
        exchange.person = person
        shown = await exchange.end()
        if self._drawn is None:  # else another tab asked meanwhile, and the next comparison is already being drawn
            self._drawn = asyncio.ensure_future(self._draw())
            self._drawn.add_done_callback(lambda task: task.cancelled() or task.exception())  # told when asked for
        return shown | {"prompt": [{"role": turn.role, "text": turn.content} for turn in exchange.turns]}

    async def _draw(self) -> Exchange:
        for _ in range(DRAWS):
            prompt = self.prompts[self._next_prompt % len(self.prompts)]
            self._next_prompt += 1
            page = self.page
            models: Sequence[Served] = page.pair or [next(iter(page.service.models.values()))] * 2
            exchange = await start(page, prompt.messages, models, None)
            try:
                async for _ in exchange.pieces():
                    pass
            finally:
                exchange.leave()
            first, second = (text.strip() for text in exchange.texts)
            if first and second and first != second:
                return exchange
        raise ApiError(
            503,
            f"the policy gave the same answer twice, or none, to {DRAWS} prompts in a row; there is nothing to compare",
        )

    # Learning ------------------------------------------------------------------------------

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make rounds until :meth:`stop`; run this in a separate thread.

        Args:
            loop: event loop of the page, on which each new policy replaces the old one.
        """
        while not self._stop:
            try:
                self._refresh()
                due = self.new >= self.every and self.new >= self._failed_at + self.every
                if (work_left(self.run) and not self._failed_at) or due:
                    self._train(loop)
            except Exception as error:
                _log.exception("tuning failed")
                problem = str(error) or type(error).__name__
                self.problem, self.phase, self._failed_at = problem, "asking", max(self.new, 1)
            self._wake.wait(60)
            self._wake.clear()

    def stop(self) -> None:
        """End the training process; its finished work stays, and the next session continues from it."""
        with self._starting:
            self._stop, child = True, self._child
        self._wake.set()
        if child is not None:
            assert child.stdin is not None
            child.stdin.close()
            child.wait()

    def _train(self, loop: asyncio.AbstractEventLoop) -> None:
        self.phase, self.problem = "training", ""
        problem = self._make_round()
        if self._stop:
            return
        if problem is not None:
            self._refresh()
            self._failed_at, self.problem, self.phase = max(self.new, 1), problem, "asking"
            self.say(f"training failed: {problem}")
            return
        self._failed_at, self.phase = 0, "loading"
        self._switch_to(self._service(), loop)
        self._refresh()
        self.phase = "asking"
        verdict, choices = VERDICTS[self._summary["verdict"]], self._summary["choices"]
        self.say(f"round {self.run.newest().number}: {verdict} ({choices} choices tested)")

    def _make_round(self) -> str | None:
        """Make a round in a separate process; returns the error, or None on success and after :meth:`stop`."""
        command = [sys.executable, "-m", "trimtab.pipeline.tuning", str(self.run.path), str(self.project)]
        with tempfile.TemporaryFile() as errors:
            with self._starting:
                if self._stop:
                    return None
                child = self._child = subprocess.Popen(
                    [*command, *self.overrides], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
                    start_new_session=True,  # Ctrl-C goes to the page only, which ends this process
                )  # fmt: skip
            with child:
                code = child.wait()
            errors.seek(0)
            lines = errors.read().decode("utf-8", "replace").strip().splitlines()
        return None if code == 0 else (lines or [f"the training process ended with code {code}"])[-1]

    def _switch_to(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        """Compare the policies of another service from now on; comparisons on the screen can still be voted on."""
        previous = asyncio.run_coroutine_threadsafe(self._replace(service), loop).result()
        while not previous.worker.idle and not self._stop:  # its running answers are finished first
            time.sleep(0.05)
        previous.stop()

    async def _replace(self, service: Service) -> Service:
        """Give the page another service; runs on the event loop, so that each answer uses only one of the two."""
        previous, self.page.service = self.page.service, service
        self.page.votes.round = round_of(service)
        return previous

    def _refresh(self) -> None:
        """Update what the page shows from the files."""
        rounds = {round.number: p for round in tuned_rounds(self.run) if (p := predictions(round)) is not None}
        stored = [*rounds.values()]
        examples = stored[-1].examples if stored else ()
        self.new = new_choices(self.run, self.store)
        self._summary = learned(stored).model_dump(mode="json") | {
            "rounds": [
                {"round": number, "choices": len(p.newest), "right": sum(p.newest)} for number, p in rounds.items()
            ],
            "examples": [dict(zip(("prompt", "before", "after"), e, strict=True)) for e in examples],
            "preferred": self._win_rate(),
        }

    def _win_rate(self) -> dict[str, Any] | None:
        """How often the newest policy was preferred over the one before, in blind comparisons."""
        if self.page.pair is None:
            return None
        newest, previous = (m.checkpoint[:8] for m in self.page.pair)
        collected = of_snapshot(take_snapshot(self.store))
        for row in measure(collected.items, collected.judgements):
            if newest in row.model and previous in row.rival:
                return {"rate": row.rate, "low": row.low, "high": row.high, "n": row.n}
            if newest in row.rival and previous in row.model:
                return {"rate": 1 - row.rate, "low": 1 - row.high, "high": 1 - row.low, "n": row.n}
        return None

    def progress(self) -> Mapping[str, Any]:
        """What the page shows."""
        training = self.phase == "training"  # then the thread that counts choices is waiting for the process
        return {
            "phase": self.phase,
            "problem": self.problem,
            "new": new_choices(self.run, self.store) if training else self.new,
            "every": self.every,
            "round": self.run.newest().number,
            **self._summary,
        }


def tune_app(tuning: Tuning, *, hosts: set[str] | None) -> FastAPI:
    """The ASGI application of a tuning session: its page and the chat page."""
    page = tuning.page

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        watcher = threading.Thread(target=tuning.watch, args=(loop,), name="trimtab-tuning", daemon=True)
        watcher.start()
        yield
        await run_in_threadpool(tuning.stop)
        await run_in_threadpool(watcher.join)
        await run_in_threadpool(page.service.stop)

    app = FastAPI(title="trimtab tune", version=__version__, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Gate, key=secrets.token_urlsafe(24), free=belongs_to_page, draining=lambda: False)
    add_error_handlers(app)
    router = APIRouter(include_in_schema=False)
    pages = page_templates()

    @router.get("/chat/tune")
    async def show(request: Request) -> HTMLResponse:
        page.allow(request)
        agreed = await page.visitor(request) is not None
        return page_in(
            pages, request, "tune.html", title="trimtab", agreed=agreed, version=page.version, terms=page.terms,
            code=request.cookies.get(page.visitor_cookie, ""), every=tuning.every,
        )  # fmt: skip

    @router.post("/chat/tune/next")
    async def following(request: Request) -> Response:
        page.allow(request)
        person = await page.visitor(request)
        if person is None:
            raise ApiError(403, "comparisons are shown to people who agreed to the terms; agree on the page first")

        async def answer() -> Response:
            return JSONResponse(await tuning.comparison(person))

        return await unless_gone(request.receive, answer())

    @router.get("/chat/tune/progress")
    async def progress(request: Request) -> Response:
        page.allow(request)
        return JSONResponse(await run_in_threadpool(tuning.progress))

    app.include_router(router)
    add_chat(app, page, hosts=hosts)
    return app


def tune(
    path: Path,
    project: Path | None = None,
    *,
    every: int = 24,
    overrides: Sequence[str] = (),
    port: int = 8000,
    say: Callable[[str], Any] = print,
) -> None:
    """Serve a tuning session of a run until Ctrl-C.

    Args:
        path: the run's folder.
        project: annotation project of the choices; None: ``tune`` in the run's folder.
        every: number of choices with a winner after which a round is made.
        overrides: ``key=value`` settings of the rounds.
        port: port to listen on; 0: any free one.
        say: called with the link and with a line about each round.

    Raises:
        ConfigError: the run has no policy, or its recipe cannot learn from choices.
        DataError: there is no run.
        StorageError: the port is taken, or the project cannot be opened.
    """
    run = open_run(path)
    project = (project or run.path / "tune").resolve()
    opened = open_project(project)
    listening = listen("127.0.0.1", port)
    try:
        listening.listen()  # a link that is opened too early waits for the server
        tuning = Tuning(run=run, project=project, store=opened.store, every=every, overrides=overrides, say=say)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        say(f"Tuning page: {address}/chat/enter/{tuning.page.key} (until this server stops)")
        page_server(tune_app(tuning, hosts={"127.0.0.1", "localhost"})).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises it again after an orderly shutdown
        pass
    finally:
        listening.close()
        opened.close()


def page_server(app: FastAPI) -> "uvicorn.Server":
    """A server for the page, which runs until Ctrl-C or SIGTERM."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5
    )
    return uvicorn.Server(config)
