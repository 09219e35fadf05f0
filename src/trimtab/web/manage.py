"""The owner's pages: dashboard, items and batches, people, settings, guidelines, tokens, export."""

import io
import json
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from trimtab.config import parse_config
from trimtab.errors import ConfigError, DataError
from trimtab.records.annotation import Task
from trimtab.storage.curation import STATES
from trimtab.storage.form import Number
from trimtab.storage.people import ROLES, Person
from trimtab.storage.project import ProjectConfig
from trimtab.storage.tasks import Refused
from trimtab.web.dashboard import dashboard
from trimtab.web.exchange import FORMATS, export_zip
from trimtab.web.items_file import tasks_in
from trimtab.web.pages import Fields, link_to, page, signed_in, translator
from trimtab.web.words import left_out_words

router = APIRouter(include_in_schema=False, prefix="/manage")
Owner = Annotated[Person, Depends(signed_in("owner"))]


@router.get("")
def overview(request: Request, person: Owner) -> Response:
    """The dashboard."""
    state, t = request.app.state, translator(request, person)
    d = dashboard(state.store, state.people, state.cache)
    unused = {"agreement": left_out_words(d.left_out, t), "wins": left_out_words(d.wins.left_out, t)}
    return page(request, "dashboard.html", person, d=d, unused=unused)


@router.get("/items")
def items_page(
    request: Request, person: Owner, q: str = "", batch: str = "", state: str = "", after: Number = 0
) -> Response:
    """The items, searched and filtered; batches; and a form to add items."""
    return _items(request, person, q=q, batch=batch, state=state, after=after)


def _items(
    request: Request,
    person: Person,
    *,
    q: str = "",
    batch: str = "",
    state: str = "",
    after: int = 0,
    added: int | None = None,
    refused: Sequence[Refused] = (),
) -> Response:
    store = request.app.state.store
    if "\x00" in q + batch:
        raise DataError("the search holds a NUL character; remove it")
    chosen = next((s for s in STATES if s == state), None)
    listed, more = store.find(text=q[:1000], batch=batch, state=chosen, after=after)
    search = {"q": q[:1000], "batch": batch, "state": chosen or ""}
    return page(
        request,
        "items.html",
        person,
        batches=store.batches(),
        listed=listed,
        counts=store.item_counts(batch),
        search=search,
        query=urlencode(search),
        first=after == 0,
        more=more,
        added=added,
        refused=refused,
    )


@router.post("/items")
async def add_items(request: Request, person: Owner) -> Response:
    """Add items from an uploaded JSON lines file, or from pasted lines."""
    async with request.form() as form:
        upload = form.get("file")
        raw = await upload.read() if isinstance(upload, UploadFile) else b""
        raw = raw or str(form.get("lines", "")).encode()
        batch = str(form.get("batch", "")).strip()
    added, refused = await run_in_threadpool(_add, request, person, raw, batch)
    return await run_in_threadpool(_items, request, person, added=added, refused=refused)


def _add(request: Request, person: Person, raw: bytes, batch: str) -> tuple[int, list[Refused]]:
    tasks = tasks_in(raw)
    if batch:
        tasks = [
            t.model_copy(update={"batch": batch}) if isinstance(t, Task) and t.batch == "default" else t for t in tasks
        ]
    return request.app.state.store.add(tasks, person=person.id)


@router.post("/batches")
def change_batch(request: Request, person: Owner, form: Fields) -> Response:
    """Set priority and pause of a batch."""
    priority = form.get("priority", "0")
    if not priority.removeprefix("-").isdecimal() or len(priority) > 6:
        raise DataError(f"priority: a whole number, got {priority!r}")
    request.app.state.store.set_batch(
        form.get("name", ""), priority=int(priority), paused="paused" in form, person=person.id
    )
    return RedirectResponse("/manage/items", status_code=303)


@router.get("/people")
def people_page(request: Request, person: Owner) -> Response:
    """The page of all people and invitations."""
    return _people(request, person, link=None)


def _people(request: Request, person: Person, *, link: str | None) -> Response:
    people = request.app.state.people
    return page(
        request,
        "people.html",
        person,
        everybody=people.everybody(),
        invitations=people.open_invitations(),
        roles=ROLES,
        link=link,
    )


@router.post("/invitations")
def invite(request: Request, person: Owner, form: Fields) -> Response:
    """Create an invitation link; it is shown only once."""
    role = next((r for r in ROLES if r == form.get("role")), None)
    if role is None:
        raise DataError(f"role: one of {', '.join(ROLES)}")
    token = request.app.state.people.invite(role, by=person.id, note=form.get("note", "")[:100])
    return _people(request, person, link=link_to(request, f"/join/{token}"))


@router.post("/invitations/{number}/withdraw")
def withdraw(request: Request, person: Owner, number: Number) -> Response:
    """Invalidate an invitation link."""
    request.app.state.people.withdraw(number, by=person.id)
    return RedirectResponse("/manage/people", status_code=303)


@router.post("/people/{number}")
def change_person(request: Request, person: Owner, number: Number, form: Fields) -> Response:
    """Change a person's role, pause or qualification, or create a link for a new password."""
    people, action = request.app.state.people, form.get("action", "")
    if action == "reset":
        people.change(number, by=person.id)  # refuses unknown people
        token = people.invite("annotator", by=person.id, person=number)
        return _people(request, person, link=link_to(request, f"/join/{token}"))
    changes: dict[str, Any] = {
        "pause": {"state": "paused"},
        "resume": {"state": "active"},
        "remove": {"state": "removed"},
        "qualify": {"qualified": True},
        "disqualify": {"qualified": False},
    } | {role: {"role": role} for role in ROLES}
    if action not in changes:
        raise DataError(f"action: one of reset, {', '.join(changes)}")
    people.change(number, by=person.id, **changes[action])
    return RedirectResponse("/manage/people", status_code=303)


@router.get("/settings")
def settings_page(request: Request, person: Owner) -> Response:
    """The project's settings."""
    return page(request, "settings.html", person, config=request.app.state.store.config(), problem=None)


@router.post("/settings")
def change_settings(request: Request, person: Owner, form: Fields) -> Response:
    """Change the project's settings; if there is a mistake, it is shown and nothing is stored."""
    store = request.app.state.store
    values = json.loads(store.config().model_dump_json())
    fields = ProjectConfig.model_fields
    for name, value in form.items():
        if name in fields and fields[name].annotation is not bool and name not in ("criteria", "flag_reasons"):
            values[name] = value
    for name in ("ties", "rewrite", "paused"):
        values[name] = name in form
    values["flag_reasons"] = [r.strip() for r in form.get("flag_reasons", "").splitlines() if r.strip()]
    try:
        values["criteria"] = [_criterion(line) for line in form.get("criteria", "").splitlines() if line.strip()]
        config = parse_config(ProjectConfig, values, where="settings")
    except ConfigError as error:
        return page(request, "settings.html", person, status=422, config=store.config(), problem=str(error))
    store.set_config(config, person=person.id)
    return RedirectResponse("/manage/settings", status_code=303)


def _criterion(line: str) -> dict[str, Any]:
    """``name | preference | label`` or ``name | scale 5 | label``."""
    parts = [part.strip() for part in line.split("|")]
    kind, _, points = (parts[1] if len(parts) > 1 and parts[1] else "preference").partition(" ")
    row: dict[str, Any] = {"name": parts[0], "kind": kind, "label": parts[2] if len(parts) > 2 else ""}
    return row | ({"points": points.strip()} if points.strip() else {})


@router.get("/guidelines")
def guidelines_page(request: Request, person: Owner) -> Response:
    """The guidelines' editor."""
    return page(request, "guidelines_edit.html", person, guideline=request.app.state.store.guideline())


@router.post("/guidelines")
def change_guidelines(request: Request, person: Owner, form: Fields) -> Response:
    """Add a version of the guidelines."""
    text = form.get("text", "").replace("\r\n", "\n")
    if len(text) > 200_000:
        raise DataError(f"guidelines of {len(text)} characters; 200000 fit")
    request.app.state.store.set_guideline(text, person=person.id)
    return RedirectResponse("/manage/guidelines", status_code=303)


@router.get("/tokens")
def tokens_page(request: Request, person: Owner) -> Response:
    """API tokens."""
    return page(request, "tokens.html", person, tokens=request.app.state.people.tokens(), fresh=None)


@router.post("/tokens")
def new_token(request: Request, person: Owner, form: Fields) -> Response:
    """Create a token; it is shown only once."""
    scope = form.get("scope", "")
    if scope not in ("read", "write"):
        raise DataError("scope: read or write")
    people = request.app.state.people
    fresh = people.new_token(form.get("name", ""), scope, by=person.id)
    return page(request, "tokens.html", person, tokens=people.tokens(), fresh=fresh)


@router.post("/tokens/{number}/revoke")
def revoke(request: Request, person: Owner, number: Number) -> Response:
    """Revoke a token."""
    request.app.state.people.revoke(number, by=person.id)
    return RedirectResponse("/manage/tokens", status_code=303)


@router.get("/export")
def export_page(request: Request, person: Owner) -> Response:
    """The page of export formats."""
    return page(request, "export.html", person, formats=FORMATS)


@router.get("/export/{format}")
def export(request: Request, person: Owner, format: str) -> Response:
    """A zip file with the data and its manifest."""
    if format not in FORMATS:
        raise DataError(f"format: one of {', '.join(FORMATS)}")
    buffer = io.BytesIO()
    export_zip(request.app.state.store, format, buffer)
    named = {"Content-Disposition": f'attachment; filename="trimtab-{format}.zip"'}
    return Response(buffer.getvalue(), media_type="application/zip", headers=named)
