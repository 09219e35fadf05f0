"""Pages for judging: instructions, the task, submitting, taking back, history, guidelines."""

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict

from trimtab.records.annotation import OVERALL, Submission, Task, passes
from trimtab.storage.form import Form, Number
from trimtab.storage.labels import Assignment, Receipt
from trimtab.storage.own import (
    has_read_instructions,
    own_work,
    read_instructions,
    remaining,
    training_left,
    version_of,
)
from trimtab.storage.people import Person
from trimtab.storage.project import ProjectConfig
from trimtab.web.pages import fragment, language_of, page, signed_in, translator
from trimtab.web.text import LONGEST, plain, render_all
from trimtab.web.words import LETTERS, expected, in_words

router = APIRouter()
Anybody = Annotated[Person, Depends(signed_in())]
_ANSWER_FIELDS = {"verdict", "answers", "good", "first_wrong"}
_ONLY_ROW = {"criterion": "", "position": None, "group": ""}
"""Fields of a row that is the only one of its form."""
_CACHE_SECONDS = 60.0
"""Seconds for which the count of remaining items is cached, because counting many items takes a while."""


class Undo(BaseModel):
    """The judgement to take back."""

    model_config = ConfigDict(extra="forbid")
    version: Number


class Next(BaseModel):
    """The next task."""

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
    """Version of the judgement just stored."""
    judged: int
    """Number of items that this person has judged."""
    total: int
    """``judged`` plus the items left for this person, up to about a minute old."""
    last: int | None = None
    """Version of this person's last judgement; send it to take the judgement back."""
    as_of: int
    """Grows with every change: of two replies, the one with the lower number is older."""
    feedback: str | None = None
    """After a training item: the right answer and the explanation, as HTML."""


class Rules(BaseModel):
    """The guidelines as shown next to the task."""

    name: str | None
    """Version of the guidelines; None: the project has no guidelines."""
    html: str
    """The guidelines as HTML."""


@router.get("/work", include_in_schema=False)
def work_page(request: Request, person: Anybody, change: Number | None = None) -> Response:
    """The task page; ``change`` opens one's earlier judgement. Before the first item, the instructions are shown."""
    store = request.app.state.store
    progress, guideline = own_work(store.database, person.id), store.guideline()
    if person.role == "annotator" and change is None and not progress.judged:
        training = training_left(store.database, person.id)
        if (guideline or training) and not has_read_instructions(store.database, person.id):
            return page(request, "start.html", person, guideline=guideline, training=training)
    assignment = store.next(person.id) if change is None else store.reopen(person.id, change)
    return page(
        request,
        "work.html",
        person,
        task=task_html(request, person, assignment),
        last="" if progress.last is None else progress.last,
        as_of=progress.as_of,
        judged=progress.judged,
        total=_total(request, person, progress.judged),
        guideline=guideline,
    )


@router.post("/work/start", include_in_schema=False)
def begin(request: Request, person: Anybody) -> Response:
    """Confirm the instructions."""
    store = request.app.state.store
    guideline = store.guideline()
    read_instructions(store.database, person.id, guideline=guideline and guideline[1], at=store.clock())
    return RedirectResponse("/work", status_code=303)


@router.get("/work/next", responses={401: {}, 403: {}})
def next_task(request: Request, person: Anybody, item: str | None = None) -> Next:
    """The current task of the signed-in person, or their stored judgement of ``item`` if there is one."""
    store = request.app.state.store
    version = None if item is None or "\x00" in item else version_of(store.database, person.id, item)
    return _next(request, person, store.next(person.id) if version is None else store.reopen(person.id, version))


@router.get("/work/guidelines", responses={401: {}, 403: {}})
def rules(request: Request, person: Anybody) -> Rules:
    """The newest guidelines."""
    guideline = request.app.state.store.guideline()
    html = fragment(request, "_guidelines.html", language_of(request, person), guideline=guideline)
    return Rules(name=guideline[1] if guideline else None, html=html)


@router.post("/work/submit", responses={401: {}, 403: {}, 409: {}, 503: {}})
def submit(request: Request, person: Anybody, form: Form) -> Next:
    """Store a filled-in form and return the next task. Sending the same form again changes nothing."""
    receipt, assignment = request.app.state.store.submit(person.id, form)
    if receipt.new and receipt.state == "stored":
        request.app.state.notify({"event": "judgement", "item": form.item, "submission": receipt.submission})
    return _next(request, person, assignment, receipt, feedback=_feedback(request, person, form, receipt))


@router.post("/work/undo", responses={401: {}, 403: {}, 409: {}, 503: {}})
def undo(request: Request, person: Anybody, what: Undo) -> Next:
    """Take back one's last judgement; it becomes a draft."""
    return _next(request, person, request.app.state.store.undo(person.id, what.version))


@router.get("/history", include_in_schema=False)
def history(request: Request, person: Anybody, before: Number | None = None) -> Response:
    """One's own judgements, newest first."""
    store, t = request.app.state.store, translator(request, person)
    entries = store.history(person.id, before=before)
    words = [in_words(p.task, p.submission, store.order(p.task, person.pseudonym), t) for p in entries]
    more = entries[-1].version if len(entries) == 25 else None
    return page(request, "history.html", person, past=list(zip(entries, words, strict=True)), more=more)


@router.get("/guidelines", include_in_schema=False)
def guidelines(request: Request, person: Anybody, version: Number | None = None) -> Response:
    """The guidelines; the newest unless an older version is requested."""
    store = request.app.state.store
    return page(request, "guidelines.html", person, guideline=store.guideline(version), names=store.guideline_names())


def _next(
    request: Request,
    person: Person,
    assignment: Assignment | str,
    receipt: Receipt | None = None,
    feedback: str | None = None,
) -> Next:
    progress = own_work(request.app.state.store.database, person.id)
    return Next(
        item=None if isinstance(assignment, str) else assignment.task.id,
        state=assignment if isinstance(assignment, str) else "task",
        html=task_html(request, person, assignment),
        guideline=None if isinstance(assignment, str) else assignment.guideline,
        stored=receipt.state if receipt else None,
        version=receipt.version if receipt else None,
        judged=progress.judged,
        total=_total(request, person, progress.judged),
        last=progress.last,
        as_of=progress.as_of,
        feedback=feedback,
    )


def _total(request: Request, person: Person, judged: int) -> int:
    """Number of items for this person, including judged ones; recounted once a minute."""
    cache, key = request.app.state.cache, ("total", person.id)
    expires, total = cache.get(key, (0.0, 0))
    if time.monotonic() >= expires or judged > total:
        total = judged + remaining(request.app.state.store.database, person.id)
        cache[key] = (time.monotonic() + _CACHE_SECONDS, total)
    return total


def _feedback(request: Request, person: Person, form: Form, receipt: Receipt) -> str | None:
    """The right answer of a training item as HTML; None for other items and if nothing was judged."""
    store = request.app.state.store
    task = store.task(form.item)
    if task.check is None or task.check.role != "training" or form.verdict != "judged" or receipt.state != "stored":
        return None
    order = store.order(task, person.pseudonym)
    submission = Submission(
        id="-", task=task.id, annotator=person.pseudonym, shown_order=order, **form.model_dump(include=_ANSWER_FIELDS)
    )
    return fragment(
        request,
        "_feedback.html",
        language_of(request, person),
        right=passes(task, submission),
        expected=expected(task, task.check, order, translator(request, person)),
        explanation=task.check.explanation,
    )


def task_html(
    request: Request,
    person: Person,
    assignment: Assignment | str,
    *,
    adjudication: bool = False,
    causes: Sequence[str] = (),
) -> str:
    """The task as a part of the page, or why there is none. With ``causes``, the form asks why people disagree."""
    language = language_of(request, person)
    if isinstance(assignment, str):
        return fragment(request, "_nothing.html", language, state=assignment)
    task = assignment.task
    return fragment(
        request,
        "_task.html",
        language,
        task=task,
        **shown_texts(task, assignment.shown_order),
        models=(),
        letters=LETTERS,
        rows=rows(assignment, assignment.config, translator(request, person)),
        version=assignment.version,
        draft=assignment.draft,
        config=assignment.config,
        adjudication=adjudication,
        causes=causes,
    )


def shown_texts(task: Task, order: Sequence[int]) -> dict[str, Any]:
    """The prompt and the answers in this order, as values for ``_texts.html``."""
    answers = [task.completions[i].text for i in order]
    messages = task.prompt.messages
    rendered = render_all([*(m.content for m in messages), *answers])
    return {
        "turns": [(m.role, html, plain(m.content)) for m, html in zip(messages, rendered, strict=False)],
        "shown": [(text, html, plain(text)) for text, html in zip(answers, rendered[len(messages) :], strict=True)],
        "long": any(len(text) > LONGEST for text in [*(m.content for m in messages), *answers]),
    }


def rows(assignment: Assignment, config: ProjectConfig, t: Callable[..., str]) -> list[dict[str, Any]]:
    """The form as rows of choices: each row is one question, each choice one value."""

    def option(label: str, key: int | None, short: str = "", **data: Any) -> dict[str, Any]:
        return {"label": label, "key": key, "short": short, "data": data}

    task = assignment.task
    if task.kind == "thumbs":
        options = [option(t("task.good"), 1, good="true"), option(t("task.bad"), 2, good="false")]
        return [{"type": "thumb", "label": t("task.thumbs"), "options": options} | _ONLY_ROW]
    if task.kind == "steps":
        options = [option(step, i + 1 if i < 9 else None, step=i) for i, step in enumerate(task.steps)]
        options.append(option(t("task.no_mistake"), 0, step=""))
        return [{"type": "step", "label": t("task.steps"), "options": options} | _ONLY_ROW]
    form_rows: list[dict[str, Any]] = []
    count = len(task.completions)
    for criterion in config.criteria:
        label = criterion.label or (t("criterion.overall") if criterion.name == OVERALL else criterion.name)
        row = {"criterion": criterion.name, "label": label, "position": None, "group": ""}
        if criterion.kind == "scale":
            for p in range(count):
                points = [option(str(n), n, score=n) for n in range(1, criterion.points + 1)]
                form_rows.append(row | _of_answer(p, label) | {"type": "scale", "options": points})
        elif count == 2:
            form_rows.append(row | {"type": "pair", "options": _pair_options(config, t, option)})
        else:
            for p in range(count):
                ranks = [option(t(f"rank.{n}"), n, str(n), rank=n - 1) for n in range(1, count + 1)]
                form_rows.append(row | _of_answer(p, label) | {"type": "rank", "options": ranks})
    return form_rows


def _of_answer(position: int, label: str) -> dict[str, Any]:
    """Fields of a row about one answer; only the first answer's row has the question as heading."""
    return {"position": position, "label": f"{label} – {LETTERS[position]}", "group": "" if position else label}


def _pair_options(config: ProjectConfig, t: Any, option: Any) -> list[dict[str, Any]]:
    levels = range(config.strength, 0, -1)
    names = {1: ("pair.better",), 2: ("pair.slightly", "pair.much")}
    names |= {
        3: ("pair.slightly", "pair.better", "pair.much"),
        4: ("pair.barely", "pair.slightly", "pair.better", "pair.much"),
    }
    words = names[config.strength]
    strength = {n: "" if config.strength == 1 else round(n / config.strength, 4) for n in levels}
    left = [(t(words[n - 1], answer="A"), "A" + "+" * (n - 1), "0,1", strength[n]) for n in levels]
    right = [(t(words[n - 1], answer="B"), "B" + "+" * (n - 1), "1,0", strength[n]) for n in reversed(levels)]
    middle = [(t("pair.tie"), "=", "0,0", "")] if config.ties else []
    return [
        option(label, number, short, ranks=ranks, strength=level)
        for number, (label, short, ranks, level) in enumerate([*left, *middle, *right], 1)
    ]
