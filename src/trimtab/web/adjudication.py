"""Settling disagreements: the queue, one item with what people said, the adjudicator's word."""

from itertools import pairwise
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from trimtab.records.annotation import Submission, Task, overall_ranks
from trimtab.storage.form import Form
from trimtab.storage.people import Person
from trimtab.web.pages import fields, page, signed_in
from trimtab.web.work import LETTERS, task_html

router = APIRouter(include_in_schema=False)
Adjudicator = Annotated[Person, Depends(signed_in("adjudicator"))]
CAUSES = ("noise", "guideline", "values", "broken")
"""What a disagreement can come from: a slip, an unclear guideline, a real difference of values, a broken item."""


@router.get("/adjudicate")
def queue(request: Request, person: Adjudicator) -> Response:
    """Items in dispute, and flagged ones."""
    store = request.app.state.store
    queues = {"disputed": store.disputed(), "flagged": store.flagged(), "exhausted": store.exhausted()}
    return page(request, "adjudicate.html", person, **queues)


@router.get("/adjudicate/item")
def one(request: Request, person: Adjudicator, id: str) -> Response:
    """One item, with what everybody said in the order this adjudicator sees the answers."""
    assignment, submissions = request.app.state.store.dispute(id, person.id)
    lines = [(s, in_words(assignment.task, s, assignment.shown_order)) for s in submissions]
    task = task_html(request, person, assignment, adjudication=True)
    return page(request, "adjudicate_item.html", person, item=id, said=lines, task=task, causes=CAUSES)


@router.post("/adjudicate/submit")
def settle(request: Request, person: Adjudicator, form: Form) -> JSONResponse:
    """Store the adjudicator's word."""
    receipt = request.app.state.store.adjudicate(person.id, form)
    return JSONResponse({"state": "settled", "stored": receipt.state, "version": receipt.version, "to": "/adjudicate"})


@router.post("/adjudicate/retire")
def retire(request: Request, person: Adjudicator, given: Annotated[dict[str, str], Depends(fields)]) -> Response:
    """Take a broken item out."""
    request.app.state.store.retire(given.get("item", ""), person=person.id, reason=given.get("reason", "")[:200])
    return RedirectResponse("/adjudicate", status_code=303)


def in_words(task: Task, submission: Submission, order: tuple[int, ...]) -> str:
    """What somebody said, short, with the answers named as on the reader's screen: ``B > A = C``."""
    if submission.verdict != "judged":
        return f"{submission.verdict}: {submission.reason}" if submission.reason else submission.verdict
    if task.kind == "thumbs":
        return "👍" if submission.good else "👎"
    if task.kind == "steps":
        return "✓" if submission.first_wrong is None else f"✗ {submission.first_wrong + 1}"
    ranks = overall_ranks(task, submission)
    named = sorted((ranks[answer], LETTERS[p]) for p, answer in enumerate(order))
    text = named[0][1]
    for (before, _), (rank, letter) in pairwise(named):
        text += f" {'=' if rank == before else '>'} {letter}"
    return text
