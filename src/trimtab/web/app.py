"""The annotation app: puts routes, sessions, templates and errors together."""

import json
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from trimtab import __version__
from trimtab.errors import ConflictError, DataError, StorageError, TrimtabError
from trimtab.storage.labels import LabelStore
from trimtab.storage.people import SESSION_DAYS, People, Person, RoleName
from trimtab.web.security import Guard, Tries, base_path
from trimtab.web.strings import catalogues, choose, translate, translate_error
from trimtab.web.text import render_all, visible

HERE = Path(__file__).parent
LOCAL = ("127.0.0.1", "localhost", "::1")


class SignInNeeded(Exception):
    """Nobody is signed in; a page leads to the sign-in page, a script gets 401."""


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
        hosts: names the server answers to.
        public_url: how people reach it, where a proxy is in front, with a path if the app has only a part of a host.
            Requests may then name any host; with HTTPS, cookies are marked secure.
        notify: called after each stored judgement (webhook); None: off.
    """
    from trimtab.web import accounts, adjudication, api, manage, work

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
    app.state.pages = _environment(app.state.base)
    app.state.cache = {}
    app.state.cookie = f"trimtab_{store.project_id}"  # browsers do not tell the ports of one host apart
    app.state.names = Tries()
    app.add_middleware(Guard, hosts=None if public_url else hosts, public=public_url or "")
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for part in (accounts, work, adjudication, manage, api):
        app.include_router(part.router)
    app.add_exception_handler(TrimtabError, _trimtab_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(SignInNeeded, _sign_in)
    return app


def _environment(base: str) -> Environment:
    pages = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pages.globals["base"] = base
    pages.filters["markdown"] = lambda text: render_all([text])[0]
    pages.filters["visible"] = visible
    pages.filters["percent"] = lambda v: "–" if v is None else f"{100 * v:.0f} %"
    pages.filters["decimal"] = lambda v: "–" if v is None else f"{v:.2f}"
    return pages


# What handlers use ------------------------------------------------------------------------


def signed_in(role: RoleName = "annotator") -> Callable[[Request], Awaitable[Person]]:
    """A dependency: the person signed in, who has this role, and sent the CSRF token with anything that changes."""

    async def person(request: Request) -> Person:
        token = request.cookies.get(request.app.state.cookie)
        found = await run_in_threadpool(request.app.state.people.session, token) if token else None
        if found is None:
            raise SignInNeeded
        if not found.may(role):
            raise HTTPException(403, "Your role does not allow this.")
        if request.method not in ("GET", "HEAD"):
            sent = request.headers.get("x-csrf-token")
            if sent is None and _is_form(request):
                sent = str((await request.form()).get("csrf", ""))
            if sent != found.csrf:
                raise HTTPException(403, "The page is too old, or this request came from elsewhere; reload the page.")
        return found

    return person


async def fields(request: Request) -> dict[str, str]:
    """A dependency: the text fields of an HTML form."""
    if not _is_form(request):
        raise HTTPException(415, "Send a form.")
    given = {k: v for k, v in (await request.form()).items() if isinstance(v, str)}
    if any("\x00" in value for value in given.values()):
        raise DataError("the form holds a NUL character; remove it")
    return given


def page(request: Request, template: str, person: Person | None, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a page in the person's language."""
    language = language_of(request, person)
    script = {k: v for k, v in catalogues()["en"].items() if k.startswith("js.")}
    script |= {k: v for k, v in catalogues()[language].items() if k in script}
    values |= {"title": request.app.state.store.config().title, "script_strings": json.dumps(script)}
    values |= {"person": person, "here": request.url.path, "languages": list(catalogues())}
    return HTMLResponse(fragment(request, template, language, **values), status_code=status)


def fragment(request: Request, template: str, language: str, **values: Any) -> str:
    """Render a template."""

    def t(key: str, **inner: object) -> str:
        return translate(language, key, **inner)

    html = request.app.state.pages.get_template(template).render(t=t, language=language, **values)
    return html.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be sent


def language_of(request: Request, person: Person | None) -> str:
    """The person's language, or the browser's."""
    return choose(person.language if person else None, request.headers.get("accept-language", ""))


def link_to(request: Request, path: str) -> str:
    """A link to a page of ours for somebody else."""
    return (request.app.state.public_url or f"{request.url.scheme}://{request.headers['host']}") + path


def start_session(request: Request, token: str, to: str) -> Response:
    """Set the session cookie, always a new one, and go on."""
    answer = RedirectResponse(to, status_code=303)
    answer.set_cookie(
        request.app.state.cookie,
        token,
        max_age=SESSION_DAYS * 86400,
        httponly=True,
        samesite="lax",
        secure=(request.app.state.public_url or "").startswith("https:"),
        path=request.app.state.base or "/",
    )
    return answer


def _is_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "")
    return kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data"))


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
    """Say where and what, and do not send back what was sent."""
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()[:5]]
    return await run_in_threadpool(_answer, request, 422, "; ".join(found))


async def _sign_in(request: Request, _: Exception) -> Response:
    if _wants_page(request) and request.method == "GET":
        return RedirectResponse("/signin", status_code=303)
    return await run_in_threadpool(_answer, request, 401, "Sign in first.")
