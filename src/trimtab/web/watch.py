"""The page of ``trimtab watch``: the curves of one to four runs while they train, and the answers behind each step.

The server only reads. It answers only to this machine's own names. A random token in the link becomes a cookie;
requests without the cookie get only a hint to use the link. Server-sent events tell the page about changes, and the
page fetches the rows that it does not have. Text of models is sent as text with invisible characters named, and
inserted into the page as text, never as markup.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from trimtab.errors import ConfigError, DataError, TrimtabError
from trimtab.metrics import training_metric
from trimtab.records import Rollout
from trimtab.storage.watched import ALIGN, WatchedRun, token_kl, total_reward
from trimtab.text import visible
from trimtab.web.security import Guard

HERE = Path(__file__).parent
LOCAL = ("127.0.0.1", "localhost", "::1")

LARGEST = 4
"""Most runs on one page."""

POLL = 0.4
"""Seconds between two checks of the files."""

QUIET = 15.0
"""Seconds without changes after which a comment is sent, so that a dead connection is noticed."""


def create_watch_app(
    runs: Sequence[WatchedRun], token: str, *, notify: Callable[[dict[str, Any]], None] | None = None
) -> FastAPI:
    """The ASGI application.

    Args:
        runs: one to four runs to show.
        token: the token that the link must contain.
        notify: called once with each alarm that is raised while the application runs (webhook); None: off.

    Raises:
        ConfigError: there is no run, or there are more than four.
    """
    if not 1 <= len(runs) <= LARGEST:
        raise ConfigError(f"watch shows one to {LARGEST} runs, got {len(runs)}")
    app = FastAPI(title="trimtab watch", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.runs, app.state.token = runs, token
    app.state.cookie = f"trimtab_watch_{secrets.token_hex(4)}"  # browsers share cookies among the ports of a host
    app.state.known = [len(run.alarms()) for run in runs]
    app.state.notify = notify
    app.add_middleware(Guard, hosts=LOCAL)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.add_api_route("/", _page, methods=["GET"], response_model=None)
    for path, endpoint in {
        "/api/runs": _runs,
        "/api/series": _series,
        "/api/step": _step,
        "/api/tokens": _tokens,
        "/api/events": _events,
    }.items():
        app.add_api_route(path, endpoint, methods=["GET"], response_model=None, dependencies=[Depends(_signed_in)])
    app.add_exception_handler(TrimtabError, _error)
    return app


def _signed_in(request: Request) -> None:
    """Refuse visitors without the cookie that the link sets."""
    if not _equal(request.cookies.get(request.app.state.cookie, ""), request.app.state.token):
        raise HTTPException(401, "Open the link that `trimtab watch` printed; each start makes a new one.")


def _equal(a: str, b: str) -> bool:
    return secrets.compare_digest(a.encode("utf-8", "replace"), b.encode())


async def _error(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": visible(str(error))}, status_code=404 if isinstance(error, DataError) else 400)


# Pages and numbers --------------------------------------------------------------------------


def _page(request: Request, token: str | None = None) -> Response:
    """The page; the link with the token sets the cookie first."""
    state = request.app.state
    if token is not None and _equal(token, state.token):
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(state.cookie, state.token, httponly=True, samesite="lax")
        return answer
    _signed_in(request)
    return FileResponse(HERE / "templates" / "watch.html", media_type="text/html")


def _runs(request: Request) -> Response:
    """The state, the steps and the alarms of every run."""
    return JSONResponse([_state(run) for run in request.app.state.runs])


def _state(run: WatchedRun) -> dict[str, Any]:
    config, stages = run.config(), run.stages()
    align = config.get("align") or {}
    return {
        "name": visible(run.name),
        "running": run.is_running(),
        "stages": stages,
        "about": visible(str(config.get("about") or "")),
        "method": align.get("method"),
        "steps": align.get("steps"),
        "alarms": [_shown_alarm(alarm) for alarm in run.alarms()],
    }


def _shown_alarm(alarm: dict[str, Any]) -> dict[str, Any]:
    return {key: visible(value) if isinstance(value, str) else value for key, value in alarm.items()}


def _run(request: Request, number: int) -> WatchedRun:
    runs = request.app.state.runs
    if not 0 <= number < len(runs):
        raise DataError(f"there is no run {number}; this page shows {len(runs)}")
    return runs[number]


def _series(
    request: Request,
    run: int = 0,
    stage: str = ALIGN,
    keys: str = "",
    start: int = Query(0, ge=0),
    generation: int | None = None,
) -> Response:
    """Columns of a stage's metrics from row ``start`` on, and the meaning of each column."""
    _check_name(stage)
    series = _run(request, run).series(
        stage, [key for key in keys.split(",") if key], start=start, generation=generation
    )
    meanings = {}
    for key in series["keys"]:
        metric = training_metric(key)
        if metric is not None:
            title = f"{metric.title}: {key.partition('/')[2]}" if "/" in key else metric.title
            meanings[key] = {"title": visible(title), "unit": metric.unit, "meaning": metric.meaning}
    return JSONResponse(series | {"meanings": meanings})


def _check_name(stage: str) -> None:
    if not stage.isidentifier():
        raise ConfigError("a stage is named by letters, digits and underscores")


def _step(request: Request, run: int = 0, stage: str = ALIGN, step: int = Query(ge=1)) -> Response:
    """All numbers of a step and, for alignment, its answers."""
    _check_name(stage)
    watched = _run(request, run)
    answer: dict[str, Any] = {"step": step, "numbers": watched.row(stage, step), "answers": [], "missing": ""}
    if stage == ALIGN:
        try:
            rollouts, weights = watched.answers(step), watched.reward_weights()
            prompts = {r.prompt.id: r.prompt.text for r in rollouts}
            numbers = {prompt: number for number, prompt in enumerate(prompts)}
            answer["prompts"] = [visible(text) for text in prompts.values()]
            answer["answers"] = [_answer(i, r, weights, numbers) for i, r in enumerate(rollouts)]
        except DataError as error:
            answer["missing"] = visible(str(error))
    return JSONResponse(answer)


def _answer(index: int, rollout: Rollout, weights: dict[str, float], numbers: dict[str, int]) -> dict[str, Any]:
    kl = token_kl(rollout)
    return {
        "index": index,
        "id": rollout.id,
        "prompt": numbers[rollout.prompt.id],
        "text": visible(rollout.text),
        "reward": round(total_reward(rollout, weights), 5),
        "rewards": {visible(name): round(value, 5) for name, value in rollout.rewards.items()},
        "finish": rollout.finish_reason,
        "tokens": len(rollout.tokens),
        "kl": None if kl is None else round(sum(kl), 3),
    }


def _tokens(request: Request, run: int = 0, step: int = Query(ge=1), index: int = Query(ge=0)) -> Response:
    """The text and the KL of each token of one answer."""
    watched = _run(request, run)
    rollouts, texts = watched.answers(step), watched.token_texts()
    if index >= len(rollouts):
        raise DataError(f"step {step} has {len(rollouts)} answers, there is no answer {index}")
    rollout = rollouts[index]
    kl = token_kl(rollout)
    if kl is None or not texts:
        raise DataError("this run did not keep the KL of each token; runs of this version do")
    pieces = [visible(texts[t]) if 0 <= t < len(texts) else "?" for t in rollout.tokens]
    return JSONResponse([[piece, round(value, 3)] for piece, value in zip(pieces, kl, strict=True)])


# News -----------------------------------------------------------------------------------------


async def _events(request: Request) -> Response:
    """Server-sent events: the numbers of the runs that have changed."""
    return StreamingResponse(_news(request), media_type="text/event-stream")


async def _news(request: Request) -> AsyncIterator[str]:
    runs, seen, quiet = request.app.state.runs, {}, 0.0
    yield "retry: 1000\n\n"
    while not await request.is_disconnected():
        changed = await run_in_threadpool(_changed, runs, seen)
        if changed:
            quiet = 0.0
            yield f"data: {json.dumps(changed)}\n\n"
        elif quiet >= QUIET:
            quiet = 0.0
            yield ": nothing new\n\n"
        await asyncio.sleep(POLL)
        quiet += POLL


def _changed(runs: Sequence[WatchedRun], seen: dict[int, Any]) -> list[int]:
    """The numbers of the runs whose stamp differs from ``seen``, which is updated."""
    stamps = {number: run.stamp() for number, run in enumerate(runs)}
    changed = [number for number, stamp in stamps.items() if seen.get(number) != stamp]
    seen.update(stamps)
    return changed


def send_new_alarms(app: FastAPI) -> None:
    """Pass alarms raised since the last call of this function to ``notify``."""
    if app.state.notify is None:
        return
    for number, run in enumerate(app.state.runs):
        alarms = run.alarms()
        for alarm in alarms[app.state.known[number] :]:
            app.state.notify({"event": "alarm", "run": run.name, **alarm})
        app.state.known[number] = len(alarms)
