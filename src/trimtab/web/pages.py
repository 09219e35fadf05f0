"""Shared by all routes: the signed-in person, form fields, and pages in the person's language."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment
from starlette.concurrency import run_in_threadpool

from trimtab.errors import DataError
from trimtab.storage.people import SESSION_DAYS, Person, RoleName
from trimtab.web.strings import catalogues, choose, translate


class SignInNeeded(Exception):
    """Nobody is signed in; pages redirect to the sign-in page, scripts get status 401."""


def signed_in(role: RoleName = "annotator") -> Callable[[Request], Awaitable[Person]]:
    """A dependency: the signed-in person. Checks that they have this role and, for changes, sent the CSRF token."""

    async def person(request: Request) -> Person:
        token = request.cookies.get(request.app.state.cookie)
        user = await run_in_threadpool(request.app.state.people.session, token) if token else None
        if user is None:
            raise SignInNeeded
        if not user.may(role):
            raise HTTPException(403, "Your role does not allow this.")
        if request.method not in ("GET", "HEAD"):
            sent = request.headers.get("x-csrf-token")
            if sent is None and _is_form(request):
                sent = str((await request.form()).get("csrf", ""))
            if sent != user.csrf:
                raise HTTPException(403, "The page is too old, or this request came from elsewhere; reload the page.")
        return user

    return person


async def fields(request: Request) -> dict[str, str]:
    """A dependency: the text fields of an HTML form."""
    if not _is_form(request):
        raise HTTPException(415, "Send a form.")
    form = {k: v for k, v in (await request.form()).items() if isinstance(v, str)}
    if any("\x00" in value for value in form.values()):
        raise DataError("the form holds a NUL character; remove it")
    return form


Fields = Annotated[dict[str, str], Depends(fields)]


def page(request: Request, template: str, person: Person | None, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a page in the person's language."""
    values["title"] = request.app.state.store.config().title
    return page_in(request.app.state.pages, request, template, person, status=status, **values)


def page_in(
    pages: Environment,
    request: Request,
    template: str,
    person: Person | None = None,
    *,
    title: str,
    status: int = 200,
    **values: Any,
) -> HTMLResponse:
    """Render a page of an environment, in the person's language."""
    language = language_of(request, person)
    script = {k: v for k, v in catalogues()["en"].items() if k.startswith("js.")}
    script |= {k: v for k, v in catalogues()[language].items() if k in script}
    values |= {"title": title, "script_strings": json.dumps(script)}
    values |= {"person": person, "here": request.url.path, "languages": list(catalogues())}
    return HTMLResponse(_rendered(pages, template, language, **values), status_code=status)


def fragment(request: Request, template: str, language: str, **values: Any) -> str:
    """Render a template."""
    return _rendered(request.app.state.pages, template, language, **values)


def _rendered(pages: Environment, template: str, language: str, **values: Any) -> str:
    html = pages.get_template(template).render(t=partial(translate, language), language=language, **values)
    return html.encode("utf-8", "replace").decode()  # unpaired surrogates cannot be sent


def translator(request: Request, person: Person | None) -> Callable[..., str]:
    """A function that translates a key of the catalogue into the person's language, with values filled in."""
    return partial(translate, language_of(request, person))


def language_of(request: Request, person: Person | None) -> str:
    """The person's language, or the browser's."""
    return choose(person.language if person else None, request.headers.get("accept-language", ""))


def link_to(request: Request, path: str) -> str:
    """A link to one of our pages for another person."""
    return (request.app.state.public_url or f"{request.url.scheme}://{request.headers['host']}") + path


def start_session(request: Request, token: str, location: str) -> Response:
    """Set the cookie of a new session and redirect."""
    answer = RedirectResponse(location, status_code=303)
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
