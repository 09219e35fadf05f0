"""The API for programs, with tokens: add items, read judgements. Its description is at ``/api/v1/openapi.json``."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from trimtab.records.annotation import Submission, Task
from trimtab.storage.form import Number
from trimtab.storage.labels import LabelStore
from trimtab.storage.progress import Progress
from trimtab.storage.tasks import parse_tasks
from trimtab.web.dashboard import agreement_of

router = APIRouter(prefix="/api/v1", tags=["v1"])
_bearer = HTTPBearer(auto_error=False)
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body is not JSON."},
    401: {"description": "No token, or one that does not work."},
    503: {"description": "The database cannot be written or read now; try again."},
}


class NewItems(BaseModel):
    """Items to add."""

    model_config = ConfigDict(extra="forbid")
    items: Annotated[list[dict[str, Any]], Field(max_length=10_000)]
    """Tasks as in an export, or short: ``{"prompt": "…", "answers": ["…", "…"]}`` with ``kind``, ``steps``,
    ``batch``, ``overlap``, ``check`` and ``metadata`` where needed."""


class RefusedItem(BaseModel):
    """An item that was not added."""

    index: int
    reason: str


class Added(BaseModel):
    """Result of adding items."""

    added: int
    refused: list[RefusedItem]


class StoredItem(BaseModel):
    """A task and its number."""

    number: int
    task: Task


class Items(BaseModel):
    """A page of tasks; ``next`` is the value of ``after`` for the next page; None at the end."""

    items: list[StoredItem]
    next: int | None


class StoredSubmission(BaseModel):
    """A submission and its version."""

    version: int
    submission: Submission


class Submissions(BaseModel):
    """A page of submissions; ``next`` is the value of ``after`` for the next page; None at the end."""

    judgements: list[StoredSubmission]
    next: int | None


def _token(scope: str):
    def check(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        granted = request.app.state.people.token_scope(credentials.credentials) if credentials else None
        if granted is None:
            raise HTTPException(401, "Send a token: Authorization: Bearer tt_…", {"WWW-Authenticate": "Bearer"})
        if scope == "write" and granted != "write":
            raise HTTPException(403, "This token may only read.")

    return Depends(check)


Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/status", dependencies=[_token("read")], responses=_ERRORS)
def status(request: Request) -> Progress:
    """Progress of the project."""
    return request.app.state.store.progress()


@router.post(
    "/items",
    dependencies=[_token("write")],
    responses=_ERRORS | {403: {"description": "Read-only token."}, 422: {"description": "Not a list of items."}},
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": NewItems.model_json_schema()}}}
    },
)
async def add_items(request: Request) -> Added:
    """Add items; refused items are listed with the reason, all others are added."""
    try:
        raw = await request.body()  # read only after the token was checked
    except ClientDisconnect:
        raise HTTPException(400, "The request ended early, or is too large; send it in parts.") from None
    return await run_in_threadpool(_add, request.app.state.store, raw)


def _add(store: LabelStore, raw: bytes) -> Added:
    try:
        body = NewItems.model_validate(json.loads(raw))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is not JSON.") from None
    added, refused = store.add(parse_tasks(body.items))
    return Added(added=added, refused=[RefusedItem(index=r.index, reason=r.reason) for r in refused])


@router.get("/items", dependencies=[_token("read")], responses=_ERRORS)
def items(request: Request, after: Number = 0, limit: Limit = 100) -> Items:
    """All tasks, page by page."""
    page = request.app.state.store.tasks(after=after, limit=limit)
    more = page[-1][0] if len(page) == limit else None
    return Items(items=[StoredItem(number=n, task=task) for n, task in page], next=more)


@router.get("/judgements", dependencies=[_token("read")], responses=_ERRORS)
def judgements(request: Request, after: Number = 0, limit: Limit = 100) -> Submissions:
    """All current judgements, page by page; a change has a new, higher version. Only exports name groups."""
    page = request.app.state.store.submissions(after=after, limit=limit)
    more = page[-1][0] if len(page) == limit else None
    named = [StoredSubmission(version=v, submission=s.model_copy(update={"cohort": None})) for v, s in page]
    return Submissions(judgements=named, next=more)


@router.get("/agreement", dependencies=[_token("read")], responses=_ERRORS)
def agreement(request: Request) -> dict[str, Any]:
    """Agreement and biases over the newest judgements, each with its interval or the reason why it is missing."""
    estimates, note, unused = agreement_of(request.app.state.store, request.app.state.cache)
    plain_estimates = {
        kind: {name: e.model_dump(exclude={"name"}) for name, e in by_name.items()}
        for kind, by_name in estimates.items()
    }
    return {"note": note, "estimates": plain_estimates.pop("compare"), "left_out": unused, **plain_estimates}
