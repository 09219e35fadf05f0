"""The annotation app: combines routes, sessions, templates and error handling."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from trimtab import __version__
from trimtab.errors import ConflictError, DataError, StorageError, TrimtabError
from trimtab.storage.labels import LabelStore
from trimtab.storage.people import People
from trimtab.text import visible
from trimtab.web import accounts, adjudication, api, item, manage, work
from trimtab.web.pages import SignInNeeded, language_of, page
from trimtab.web.security import Guard, Tries, base_path
from trimtab.web.strings import translate_error
from trimtab.web.text import render_all

HERE = Path(__file__).parent
LOCAL = ("127.0.0.1", "localhost", "::1")


def create_app(
    store: LabelStore,
    people: People,
    *,
    hosts: Collection[str] = LOCAL,
    public_url: str | None = None,
    notify: Callable[[dict[str, Any]], None] | None = None,
) -> FastAPI:
    """The ASGI application.

    Args:
        store: items and judgements.
        people: accounts.
        hosts: host names that the server answers to.
        public_url: address for people if a proxy is in front, with a path if the app has only part of a host. Requests
            may then name any host; with HTTPS, cookies are marked secure.
        notify: called after each stored judgement (webhook); None: off.
    """
    app = FastAPI(
        title="trimtab annotation",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        servers=[{"url": public_url}] if public_url else None,
    )
    app.state.store, app.state.people, app.state.public_url = store, people, public_url
    app.state.notify = notify or (lambda _: None)
    app.state.base = base_path(public_url)
    app.state.pages = page_environment(app.state.base)
    app.state.cache = {}
    app.state.cookie = f"trimtab_{store.project_id}"  # browsers share cookies among the ports of a host
    app.state.names = Tries()
    app.add_middleware(Guard, hosts=None if public_url else hosts, public=public_url or "")
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for part in (accounts, work, adjudication, manage, item, api):
        app.include_router(part.router)
    app.add_exception_handler(TrimtabError, _trimtab_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(SignInNeeded, _sign_in)
    return app


def page_environment(base: str) -> Environment:
    """The environment that renders pages: our templates and filters, everything escaped."""
    pages = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pages.globals["base"] = base
    pages.filters["markdown"] = lambda text: render_all([text])[0]
    pages.filters["visible"] = visible
    pages.filters["percent"] = lambda v: "–" if v is None else f"{100 * v:.0f} %"
    pages.filters["decimal"] = lambda v: "–" if v is None else f"{v:.2f}"
    return pages


# Errors -----------------------------------------------------------------------------------


def status_of(error: TrimtabError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, ConflictError):
        return 409
    if isinstance(error, StorageError):
        return 503
    return 422 if isinstance(error, DataError) else 400


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")


def _answer(request: Request, status: int, text: str) -> Response:
    text = translate_error(language_of(request, None), text)
    if not _wants_page(request):
        safe = text.encode("utf-8", "replace").decode()
        return JSONResponse({"detail": safe}, status_code=status)
    try:
        return page(request, "message.html", None, status=status, text=text)
    except StorageError:  # the title is in the database that just failed
        return Response(text, status_code=status, media_type="text/plain")


async def _trimtab_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TrimtabError)
    return await run_in_threadpool(_answer, request, status_of(error), str(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    answer = await run_in_threadpool(_answer, request, error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _invalid(request: Request, error: Exception) -> Response:
    """Report where and what is wrong, without sending back the input."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()[:5]]
    return await run_in_threadpool(_answer, request, 422, "; ".join(problems))


async def _sign_in(request: Request, _: Exception) -> Response:
    if _wants_page(request) and request.method == "GET":
        return RedirectResponse("/signin", status_code=303)
    return await run_in_threadpool(_answer, request, 401, "Sign in first.")
