"""Forms that annotators submit, and their validation."""

from typing import Annotated

from pydantic import AfterValidator, Field

from trimtab.errors import DataError
from trimtab.records.annotation import Answer, Rewrite, Task, Verdict
from trimtab.records.types import Record
from trimtab.storage.project import ProjectConfig


def whole_characters(text: str) -> str:
    """Refuse unpaired surrogates, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half a surrogate pair, which UTF-8 cannot write") from None
    return text


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("NUL is not allowed here")
    return text


Text = Annotated[str, AfterValidator(whole_characters)]
Key = Annotated[Text, AfterValidator(_no_nul)]
"""A text that a database compares; PostgreSQL does not accept NUL."""
Number = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""A row's number, in the range of both databases."""


class Form(Record):
    """One filled-in form."""

    item: Annotated[Key, Field(min_length=1, max_length=200)]
    """Id of the task."""
    key: Annotated[Key, Field(min_length=8, max_length=64)]
    """Chosen by the sender for each form; a form with a known key changes nothing."""
    version: Number | None = None
    """Version of the judgement that this form replaces; None: the first judgement."""
    verdict: Verdict = "judged"
    """``judged`` carries an answer; the others are reasons for not judging."""
    answers: tuple[Answer, ...] = Field(default=(), max_length=12)
    """For a comparison: one answer for each criterion, by position on the screen."""
    good: bool | None = None
    """For thumbs: True is good."""
    first_wrong: int | None = Field(default=None, ge=0, le=100_000)
    """For steps: index of the first wrong one; None: all are right."""
    rewrite: Rewrite | None = None
    """A better answer."""
    reason: Annotated[Text, Field(max_length=200)] = ""
    """Why the item is flagged, or the cause an adjudicator found."""
    comment: Annotated[Text, Field(max_length=10_000)] = ""
    """A remark."""
    guideline: Annotated[Key, Field(max_length=40)] | None = None
    """Version of the guidelines the sender saw; None: the newest."""
    seconds: float | None = Field(default=None, ge=0.0, le=1e9, allow_inf_nan=False)
    """Seconds spent on the item, as measured by the sender."""


def check_form(form: Form, task: Task, config: ProjectConfig) -> None:
    """Refuse a form that does not fit the task.

    Raises:
        DataError: the form does not fit; the message says what was given and what is expected.
    """
    if form.verdict != "judged":
        if form.answers or form.good is not None or form.first_wrong is not None or form.rewrite:
            raise DataError(f"verdict {form.verdict!r} carries no answer; send the answer alone or the verdict alone")
        if form.verdict == "flag" and not form.reason.strip():
            raise DataError("a flag needs a reason")
        return
    if form.rewrite is not None:
        whole_characters_or_refuse(form.rewrite.text)
        if form.rewrite.of >= len(task.completions):
            raise DataError(f"rewrite.of is {form.rewrite.of}; there are {len(task.completions)} answers, from 0")
        if not form.rewrite.text.strip():
            raise DataError("the rewritten answer is empty")
        if len(form.rewrite.text) > config.max_characters:
            raise DataError(
                f"the rewritten answer has {len(form.rewrite.text)} characters, {config.max_characters} fit"
            )
    if task.kind != "compare" and form.answers:
        raise DataError(f"a {task.kind} task has no criteria")
    if task.kind != "thumbs" and form.good is not None:
        raise DataError(f"a {task.kind} task takes no thumb")
    if task.kind != "steps" and form.first_wrong is not None:
        raise DataError(f"a {task.kind} task has no steps")
    if task.kind == "thumbs" and form.good is None:
        raise DataError("a thumbs task needs good: true or false")
    if task.kind == "steps" and form.first_wrong is not None and form.first_wrong >= len(task.steps):
        raise DataError(f"first_wrong is {form.first_wrong}; there are {len(task.steps)} steps, counted from 0")
    if task.kind == "compare":
        _check_answers(form, task, config)


def whole_characters_or_refuse(text: str) -> None:
    """As :func:`whole_characters`, with an error for users."""
    try:
        whole_characters(text)
    except ValueError as error:
        raise DataError(str(error)) from None


def _check_answers(form: Form, task: Task, config: ProjectConfig) -> None:
    answered, needed = [a.criterion for a in form.answers], [c.name for c in config.criteria]
    if sorted(answered) != sorted(needed):
        raise DataError(f"answers are needed for the criteria {', '.join(needed)}; got {', '.join(answered) or 'none'}")
    kinds = {c.name: c for c in config.criteria}
    count = len(task.completions)
    for answer in form.answers:
        criterion = kinds[answer.criterion]
        if criterion.kind == "scale":
            scores = answer.scores or ()
            if len(scores) != count or not all(1 <= s <= criterion.points for s in scores) or answer.ranks is not None:
                raise DataError(f"{answer.criterion}: needs {count} scores from 1 to {criterion.points} and no ranks")
            continue
        ranks = answer.ranks or ()
        levels = sorted(set(ranks))
        if len(ranks) != count or levels != list(range(len(levels))) or answer.scores is not None:
            raise DataError(f"{answer.criterion}: needs {count} ranks, 0 = best, without gaps, and no scores")
        if not config.ties and len(levels) < count:
            raise DataError(f"{answer.criterion}: ties are not allowed in this project")
        if answer.strength is not None and (count != 2 or len(levels) < 2):
            raise DataError(f"{answer.criterion}: strength is for two answers of which one is better")
