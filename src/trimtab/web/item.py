"""The owner's page of one item: its judgements and comments; correcting, retiring and restoring it."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response

from trimtab.errors import ConflictError, DataError
from trimtab.records.annotation import Task
from trimtab.records.types import content_id
from trimtab.storage.curation import LogEntry
from trimtab.storage.people import Person
from trimtab.web.pages import Fields, language_of, page, signed_in, translator
from trimtab.web.strings import translate_error
from trimtab.web.words import LETTERS, expected, in_words
from trimtab.web.work import shown_texts

router = APIRouter(include_in_schema=False, prefix="/manage/item")
Owner = Annotated[Person, Depends(signed_in("owner"))]
_SEPARATORS = ("\n", "\n\n", "", " ")
"""Possible separators between the steps of an answer."""


@router.get("")
def item_page(request: Request, person: Owner, id: str) -> Response:
    """One item."""
    return _page(request, person, id)


def _page(
    request: Request, person: Person, uid: str, *, problem: str = "", given: dict[str, str] | None = None
) -> Response:
    details = request.app.state.store.item(uid)
    task, t = details.summary.task, translator(request, person)
    order = range(len(task.completions))
    return page(
        request,
        "item.html",
        person,
        status=422 if problem else 200,
        one=details,
        task=task,
        **shown_texts(task, order),
        models=[answer.model for answer in task.completions],
        letters=LETTERS,
        right=expected(task, task.check, order, t) if task.check else None,
        judgements=[(s, in_words(task, s.submission, order, t)) for s in details.submissions],
        digest=digest(task),
        log=[(entry, _iso(entry.at), _log_words(entry)) for entry in details.log],
        metadata=_pretty(task.metadata),
        prompt_metadata=_pretty(task.prompt.metadata),
        problem=problem,
        given=given,
    )


@router.post("/comment")
def comment(request: Request, person: Owner, form: Fields) -> Response:
    """Add a comment."""
    request.app.state.store.comment(form.get("item", ""), form.get("text", ""), person=person.id)
    return _redirect_to_item(form.get("item", ""))


@router.post("/retire")
def retire(request: Request, person: Owner, form: Fields) -> Response:
    """Take the item out of the queue, statistics and exports."""
    request.app.state.store.retire(form.get("item", ""), person=person.id, reason=form.get("reason", ""))
    return _redirect_to_item(form.get("item", ""))


@router.post("/restore")
def restore(request: Request, person: Owner, form: Fields) -> Response:
    """Put the item back."""
    request.app.state.store.restore(form.get("item", ""), person=person.id, reason=form.get("reason", ""))
    return _redirect_to_item(form.get("item", ""))


@router.post("/correct")
def correct(request: Request, person: Owner, form: Fields) -> Response:
    """Correct the item; if there is a mistake, it is shown and nothing is stored."""
    store, uid = request.app.state.store, form.get("item", "")
    task = store.task(uid)
    if form.get("digest") != digest(task):
        raise ConflictError("this item was changed since you opened it; reload the page")
    try:
        uid = store.correct(task, corrected(task, form), person=person.id, reason=form.get("reason", ""))
    except (ConflictError, DataError) as error:
        problem = translate_error(language_of(request, person), str(error))
        return _page(request, person, uid, problem=problem, given=form)
    return _redirect_to_item(uid)


def corrected(task: Task, form: dict[str, str]) -> Task:
    """The item as a form gives it. Texts that differ only in line ends, which browsers change, are unchanged.

    Raises:
        DataError: the metadata are not a JSON object.
    """
    messages = tuple(
        m.model_copy(update={"content": _text(form, f"message.{i}", m.content)})
        for i, m in enumerate(task.prompt.messages)
    )
    steps = tuple(_text(form, f"step.{i}", step) for i, step in enumerate(task.steps))
    answers = []
    for i, answer in enumerate(task.completions):
        text = _text(form, f"answer.{i}", answer.text)
        if task.steps and steps != task.steps:
            text = next((s for s in _SEPARATORS if s.join(task.steps) == answer.text), "\n").join(steps)
        changes: dict[str, Any] = {"text": text, "model": form.get(f"model.{i}", answer.model or "").strip() or None}
        if text != answer.text:
            changes["finish_reason"] = None  # it is no longer the sampled text
        answers.append(answer.model_copy(update=changes))
    metadata = _object(form, "prompt_metadata", task.prompt.metadata)
    prompt = task.prompt.model_copy(update={"messages": messages, "metadata": metadata})
    changes = {"prompt": prompt, "completions": tuple(answers), "steps": steps}
    return task.model_copy(update=changes | {"metadata": _object(form, "metadata", task.metadata)})


def _text(form: dict[str, str], name: str, old_text: str) -> str:
    text = _one_line_end(form.get(name, old_text))
    return old_text if text == _one_line_end(old_text) else text


def _one_line_end(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "\ufffd")


def _object(form: dict[str, str], name: str, old_value: dict[str, Any]) -> dict[str, Any]:
    try:
        value = json.loads(form[name]) if form.get(name, "").strip() else {} if name in form else old_value
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataError("the metadata are not a JSON object; write names and values in curly brackets")
    return value


def digest(task: Task) -> str:
    """Hash of an item, which shows whether it was changed."""
    return content_id(task.model_dump(mode="json"))


def _log_words(entry: LogEntry) -> dict[str, Any]:
    """The values that the page fills into the phrase of a log entry."""
    before = entry.body.get("before")
    return {
        "text": entry.body.get("text") or entry.body.get("reason") or "",
        "item": entry.body.get("by") or entry.body.get("of"),
        "before": _pretty(before) if before else "",
    }


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) if value else ""


def _redirect_to_item(uid: str) -> Response:
    return RedirectResponse(f"/manage/item?id={quote(uid, safe='')}", status_code=303)
