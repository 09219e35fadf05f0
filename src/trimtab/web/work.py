"""Judging: the task page, submitting, taking back, history, guidelines."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from trimtab.records.annotation import OVERALL
from trimtab.storage.form import Form, Number
from trimtab.storage.labels import Assignment, Receipt
from trimtab.storage.people import Person
from trimtab.storage.project import ProjectConfig
from trimtab.web.pages import fragment, language_of, page, signed_in
from trimtab.web.strings import translate

router = APIRouter()
Anybody = Annotated[Person, Depends(signed_in())]
LETTERS = "ABCDEFGHI"


class Undo(BaseModel):
    """Which judgement to take back."""

    model_config = ConfigDict(extra="forbid")
    version: Number


class Next(BaseModel):
    """What to look at next."""

    item: str | None
    """Id of the task; None: there is none."""
    state: str
    """``task``, or why there is none: ``empty``, ``paused``, ``closed``, ``unqualified``."""
    html: str
    """The task, rendered."""
    guideline: str | None = None
    """Newest version of the guidelines, while there is a task."""
    stored: str | None = None
    """``stored`` or ``late``, after a submission."""
    version: int | None = None
    """Of the judgement just stored; name it to take it back."""


@router.get("/work", include_in_schema=False)
def work_page(request: Request, person: Anybody, change: Number | None = None) -> Response:
    """The task page; ``change`` opens one's earlier judgement."""
    store = request.app.state.store
    current = store.next(person.id) if change is None else store.reopen(person.id, change)
    last = store.history(person.id, limit=1)
    return page(
        request,
        "work.html",
        person,
        task=task_html(request, person, current),
        last=last[0].version if last else "",
        count=store.count(person.id),
        guideline=store.guideline(),
    )


@router.get("/work/next", responses={401: {}, 403: {}})
def next_task(request: Request, person: Anybody) -> Next:
    """The task in front of the person signed in."""
    current = request.app.state.store.next(person.id)
    return _next(request, person, current)


@router.post("/work/submit", responses={401: {}, 403: {}, 409: {}, 503: {}})
def submit(request: Request, person: Anybody, form: Form) -> Next:
    """Store a filled-in form and give the next task. Sending the same form again changes nothing."""
    receipt, current = request.app.state.store.submit(person.id, form)
    if receipt.new and receipt.state == "stored":
        request.app.state.notify({"event": "judgement", "item": form.item, "submission": receipt.submission})
    return _next(request, person, current, receipt)


@router.post("/work/undo", responses={401: {}, 403: {}, 409: {}, 503: {}})
def undo(request: Request, person: Anybody, what: Undo) -> Next:
    """Take back one's last judgement; it comes back as a draft."""
    return _next(request, person, request.app.state.store.undo(person.id, what.version))


@router.get("/history", include_in_schema=False)
def history(request: Request, person: Anybody, before: Number | None = None) -> Response:
    """One's own judgements, newest first."""
    past = request.app.state.store.history(person.id, before=before)
    return page(request, "history.html", person, past=past, more=past[-1].version if len(past) == 25 else None)


@router.get("/guidelines", include_in_schema=False)
def guidelines(request: Request, person: Anybody, version: Number | None = None) -> Response:
    """The guidelines, the newest unless an older version is asked for."""
    store = request.app.state.store
    return page(request, "guidelines.html", person, guideline=store.guideline(version), names=store.guideline_names())


def _next(request: Request, person: Person, current: Assignment | str, receipt: Receipt | None = None) -> Next:
    return Next(
        item=None if isinstance(current, str) else current.task.id,
        state=current if isinstance(current, str) else "task",
        html=task_html(request, person, current),
        guideline=None if isinstance(current, str) else current.guideline,
        stored=receipt.state if receipt else None,
        version=receipt.version if receipt else None,
    )


def task_html(request: Request, person: Person, current: Assignment | str, *, adjudication: bool = False) -> str:
    """The task as a part of the page; or why there is none."""
    language = language_of(request, person)
    if isinstance(current, str):
        return fragment(request, "_nothing.html", language, state=current)
    shown = [current.task.completions[i] for i in current.shown_order]
    return fragment(
        request,
        "_task.html",
        language,
        task=current.task,
        shown=shown,
        letters=LETTERS,
        rows=rows(current, current.config, language),
        version=current.version,
        draft=current.draft,
        config=current.config,
        adjudication=adjudication,
    )


def rows(assignment: Assignment, config: ProjectConfig, language: str) -> list[dict[str, Any]]:
    """The form as rows of choices: each row is one question, each choice one value."""

    def t(key: str, **values: object) -> str:
        return translate(language, key, **values)

    def option(label: str, key: int | None, **data: Any) -> dict[str, Any]:
        return {"label": label, "key": key, "data": data}

    task = assignment.task
    if task.kind == "thumbs":
        options = [option(t("task.good"), 1, good="true"), option(t("task.bad"), 2, good="false")]
        return [{"type": "thumb", "criterion": "", "label": t("task.thumbs"), "position": None, "options": options}]
    if task.kind == "steps":
        options = [option(step, i + 1 if i < 9 else None, step=i) for i, step in enumerate(task.steps)]
        options.append(option(t("task.no_mistake"), 0, step=""))
        return [{"type": "step", "criterion": "", "label": t("task.steps"), "position": None, "options": options}]
    questions: list[dict[str, Any]] = []
    count = len(task.completions)
    for criterion in config.criteria:
        label = criterion.label or (t("criterion.overall") if criterion.name == OVERALL else criterion.name)
        row = {"criterion": criterion.name, "label": label, "position": None}
        if criterion.kind == "scale":
            for p in range(count):
                points = [option(str(n), n, score=n) for n in range(1, criterion.points + 1)]
                questions.append(
                    row | {"type": "scale", "position": p, "options": points, "label": f"{label} – {LETTERS[p]}"}
                )
        elif count == 2:
            questions.append(row | {"type": "pair", "options": _pair_options(config, t, option)})
        else:
            for p in range(count):
                ranks = [option(t(f"rank.{n}"), n, rank=n - 1) for n in range(1, count + 1)]
                questions.append(
                    row | {"type": "rank", "position": p, "options": ranks, "label": f"{label} – {LETTERS[p]}"}
                )
    return questions


def _pair_options(config: ProjectConfig, t: Any, option: Any) -> list[dict[str, Any]]:
    levels = range(config.strength, 0, -1)
    names = {1: ("pair.better",), 2: ("pair.slightly", "pair.much")}
    names |= {
        3: ("pair.slightly", "pair.better", "pair.much"),
        4: ("pair.barely", "pair.slightly", "pair.better", "pair.much"),
    }
    words = names[config.strength]
    strength = {n: "" if config.strength == 1 else round(n / config.strength, 4) for n in levels}
    left = [(t(words[n - 1], answer="A"), "0,1", strength[n]) for n in levels]
    right = [(t(words[n - 1], answer="B"), "1,0", strength[n]) for n in reversed(levels)]
    middle = [(t("pair.tie"), "0,0", "")] if config.ties else []
    return [
        option(label, number, ranks=ranks, strength=level)
        for number, (label, ranks, level) in enumerate([*left, *middle, *right], 1)
    ]
