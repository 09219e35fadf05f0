"""Parsing new items into tasks, and the reasons why an item is refused."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trimtab.errors import DataError
from trimtab.records.annotation import Task
from trimtab.records.types import Message, Prompt
from trimtab.storage.form import whole_characters
from trimtab.storage.project import ProjectConfig


@dataclass(frozen=True, kw_only=True)
class Refused:
    """An item that was not added."""

    index: int
    """Index in the request."""
    reason: str
    """Why it was refused."""


def parse_task(values: Any) -> Task:
    """A task from plain values; missing ids are created.

    A short form is accepted too: ``{"prompt": "text or messages", "answers": ["…", "…"]}`` with ``kind``,
    ``steps``, ``batch``, ``overlap``, ``check`` and ``metadata`` as in :class:`Task`.

    Raises:
        DataError: the values are no task; the message says why.
    """
    if not isinstance(values, dict):
        raise DataError(f"an item is an object, got {type(values).__name__}")
    values = dict(values)
    try:
        if isinstance(values.get("prompt"), str):
            values["prompt"] = Prompt.from_text(values["prompt"])
        elif isinstance(values.get("prompt"), list):
            values["prompt"] = Prompt.of([Message.model_validate(m) for m in values["prompt"]])
        if isinstance(values.get("answers"), list) and "completions" not in values:
            values["completions"] = [{"text": a} if isinstance(a, str) else a for a in values.pop("answers")]
        if values.get("kind") == "steps" and "completions" not in values and isinstance(values.get("steps"), list):
            values["completions"] = [{"text": "\n".join(map(str, values["steps"]))}]
        if "id" not in values:
            draft = Task.model_validate(values | {"id": "-"})
            fields = {name: getattr(draft, name) for name in ("kind", "steps", "batch", "overlap", "check", "metadata")}
            return Task.of(draft.prompt, draft.completions, **fields)
        return Task.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "item"
        raise DataError(f"{field}: {first['msg']}") from None


def parse_tasks(rows: Iterable[Any]) -> Iterator[Task | str]:
    """Each row as a task, or the reason why it is refused."""
    for row in rows:
        try:
            yield parse_task(row)
        except DataError as error:
            yield str(error)


def unusable(task: Task, config: ProjectConfig) -> str | None:
    """Why a task cannot be shown to people in this project; None: it can be shown."""
    texts = [m.content for m in task.prompt.messages] + [c.text for c in task.completions] + list(task.steps)
    try:
        whole_characters(json.dumps(task.model_dump(), ensure_ascii=False))
    except ValueError as error:
        return str(error)
    if not task.id.strip() or "\x00" in task.id + task.batch or len(task.id) > 200:
        return "unusable id: 1 to 200 characters without NUL"
    if not all(c.text.strip() for c in task.completions):
        return "empty answer"
    if not any(m.content.strip() for m in task.prompt.messages):
        return "empty prompt"
    if len({c.text for c in task.completions}) < len(task.completions):
        return "two answers are the same"
    if len(task.completions) > config.max_answers:
        return f"too many answers: {len(task.completions)}, the project allows {config.max_answers}"
    longest = max(map(len, texts))
    if longest > config.max_characters:
        return f"too long: a text of {longest} characters, the project allows {config.max_characters}"
    return None


def duplicate(index: int, uid: str) -> Refused:
    """The refusal of an item that already exists."""
    return Refused(index=index, reason=f"duplicate: item {uid} is there already")
