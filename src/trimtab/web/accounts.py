"""Pages for access: invitation links, sign-in, sign-out, one's own profile."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response

from trimtab.errors import ConflictError, DataError
from trimtab.storage.people import MIN_PASSWORD, Invitation, Person, name_key
from trimtab.web.pages import Fields, language_of, page, signed_in, start_session
from trimtab.web.strings import catalogues, translate, translate_error

router = APIRouter(include_in_schema=False)
Anybody = Annotated[Person, Depends(signed_in())]
COHORTS = ("language", "region", "expertise")
"""Kinds of groups that people may name; all are optional free text."""
NAME_TRIES = (20, 300.0)
"""Most wrong passwords for one name, and in how many seconds, from all addresses together."""


@router.get("/healthz")
def health(request: Request) -> dict[str, str]:
    """Check that the server and the database answer."""
    request.app.state.store.config()
    return {"status": "ok"}


@router.get("/")
def start(person: Anybody) -> Response:
    """Redirect to the person's start page."""
    return RedirectResponse("/manage" if person.role == "owner" else "/work", status_code=303)


@router.get("/signin")
def signin_page(request: Request) -> Response:
    """The sign-in form."""
    return page(request, "signin.html", None, problem=None, name="")


@router.post("/signin")
def signin(request: Request, form: Fields) -> Response:
    """Check name and password; the cookie of a new session replaces any earlier one."""
    names, key = request.app.state.names, name_key(form.get("name", "")[:1000])
    if not names.allow(key, *NAME_TRIES):
        problem = translate(language_of(request, None), "signin.too_many")
        return page(request, "signin.html", None, status=429, problem=problem, name=form.get("name", ""))
    try:
        token = request.app.state.people.sign_in(form.get("name", ""), form.get("password", ""))
    except DataError as error:
        problem = translate_error(language_of(request, None), str(error))
        return page(request, "signin.html", None, status=403, problem=problem, name=form.get("name", ""))
    names.forgive(key)
    return start_session(request, token, "/")


@router.post("/signout")
def signout(request: Request, person: Anybody) -> Response:
    """End the session."""
    request.app.state.people.sign_out(request.cookies.get(request.app.state.cookie, ""))
    answer = RedirectResponse("/signin", status_code=303)
    answer.delete_cookie(request.app.state.cookie, path=request.app.state.base or "/")
    return answer


@router.get("/join/{token}")
def join_page(request: Request, token: str) -> Response:
    """The page of an invitation link. Opening it does not use up the link."""
    try:
        invitation = request.app.state.people.invitation(token)
    except DataError as error:
        text = translate_error(language_of(request, None), str(error))
        return page(request, "message.html", None, status=404, text=text)
    return _join(request, invitation)


def _join(request: Request, invitation: Invitation, *, problem: str = "", name: str = "") -> Response:
    status = 422 if problem else 200
    values = {"problem": problem, "invitation": invitation, "name": name, "least": MIN_PASSWORD}
    return page(request, "join.html", None, status=status, **values)


@router.post("/join/{token}")
def join(request: Request, token: str, form: Fields) -> Response:
    """Use an invitation link."""
    people = request.app.state.people
    invitation = people.invitation(token)
    try:
        session = people.accept(
            token,
            name=form.get("name", ""),
            password=form.get("password", ""),
            language=language_of(request, None),
        )
    except (DataError, ConflictError) as error:
        problem = translate_error(language_of(request, None), str(error))
        return _join(request, invitation, problem=problem, name=form.get("name", ""))
    return start_session(request, session, "/")


@router.get("/profile")
def profile_page(request: Request, person: Anybody) -> Response:
    """One's own settings."""
    return _profile(request, person)


def _profile(request: Request, person: Person, *, problem: str = "", status: int = 200) -> Response:
    values = {"cohorts": COHORTS, "problem": problem, "least": MIN_PASSWORD}
    values["changed"] = "changed" in request.query_params
    return page(request, "profile.html", person, status=status, **values)


@router.post("/profile")
def profile(request: Request, person: Anybody, form: Fields) -> Response:
    """Change one's own settings."""
    language = form.get("language")
    if language not in catalogues():
        raise DataError(f"language: one of {', '.join(catalogues())}")
    groups = {name: form.get(f"cohort.{name}", "") for name in COHORTS}
    request.app.state.people.profile(person.id, language=language, cohort=groups)
    return RedirectResponse("/profile", status_code=303)


@router.post("/profile/password")
def change_password(request: Request, person: Anybody, form: Fields) -> Response:
    """Change one's own password; every other session of this person ends."""
    names, key, language = request.app.state.names, name_key(person.name), language_of(request, person)
    if not names.allow(key, *NAME_TRIES):
        return _profile(request, person, problem=translate(language, "signin.too_many"), status=429)
    try:
        token = request.app.state.people.change_password(
            person.id, old=form.get("old", ""), new=form.get("password", "")
        )
    except DataError as error:
        return _profile(request, person, problem=translate_error(language, str(error)), status=422)
    names.forgive(key)
    return start_session(request, token, "/profile?changed=1")
