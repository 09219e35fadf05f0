"""Adjudication pages: the queue, one item with people's judgements, the adjudicator's decision."""

from collections.abc import Sequence
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from trimtab.errors import ConflictError
from trimtab.records.annotation import Submission, Task, disagree
from trimtab.storage.form import Form
from trimtab.storage.people import Person
from trimtab.web.pages import Fields, page, signed_in, translator
from trimtab.web.words import in_words
from trimtab.web.work import task_html

router = APIRouter(include_in_schema=False)
Adjudicator = Annotated[Person, Depends(signed_in("adjudicator"))]
CAUSES = ("noise", "guideline", "values", "broken")
"""Causes of a disagreement: a slip, an unclear guideline, a real difference of values, a broken item."""


@router.get("/adjudicate")
def queue(request: Request, person: Adjudicator) -> Response:
    """Items in dispute, flagged items, and items with no annotator left."""
    store = request.app.state.store
    lists = {"disputed": store.disputed(), "flagged": store.flagged(), "exhausted": store.exhausted()}
    return page(request, "adjudicate.html", person, **lists)


@router.get("/adjudicate/item")
def one(request: Request, person: Adjudicator, id: str) -> Response:
    """One item with all judgements, in the order in which this adjudicator sees the answers."""
    assignment, submissions = request.app.state.store.dispute(id, person.id)
    t = translator(request, person)
    lines = [(s, in_words(assignment.task, s, assignment.shown_order, t)) for s in submissions]
    causes = _causes(assignment.task, submissions)
    task = task_html(request, person, assignment, adjudication=True, causes=causes)
    return page(request, "adjudicate_item.html", person, item=id, judgements=lines, task=task)


@router.get("/adjudicate/task")
def current(request: Request, person: Adjudicator, item: str) -> JSONResponse:
    """The form of one item with this adjudicator's earlier decision; ``settled`` if there is nothing to decide."""
    store = request.app.state.store
    try:
        assignment, submissions = store.dispute(item, person.id)
    except ConflictError:
        return JSONResponse({"state": "settled", "html": task_html(request, person, "settled")})
    html = task_html(request, person, assignment, adjudication=True, causes=_causes(assignment.task, submissions))
    return JSONResponse({"state": "task", "html": html})


def _causes(task: Task, submissions: Sequence[Submission]) -> Sequence[str]:
    """The causes to choose from if people disagree; else none."""
    return CAUSES if disagree(task, submissions) else ()


@router.post("/adjudicate/submit")
def settle(request: Request, person: Adjudicator, form: Form) -> JSONResponse:
    """Store the adjudicator's decision; ``to`` is the next item they can decide, or the list if there is none."""
    store = request.app.state.store
    receipt = store.adjudicate(person.id, form)
    waiting = [*store.disputed(), *store.flagged()]
    free = (task.id for task, submissions in waiting if all(s.annotator != person.pseudonym for s in submissions))
    next_item = next((uid for uid in free if uid != form.item), None)
    next_page = "/adjudicate" if next_item is None else f"/adjudicate/item?id={quote(next_item, safe='')}"
    return JSONResponse({"state": "settled", "stored": receipt.state, "version": receipt.version, "to": next_page})


@router.post("/adjudicate/retire")
def retire(request: Request, person: Adjudicator, form: Fields) -> Response:
    """Retire a broken item."""
    request.app.state.store.retire(form.get("item", ""), person=person.id, reason=form.get("reason", "")[:200])
    return RedirectResponse("/adjudicate", status_code=303)
