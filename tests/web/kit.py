"""An annotation project in memory of a temporary folder, with a clock that tests set, and clients for each role."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.testclient import TestClient

from trimtab.storage.database import Database
from trimtab.storage.form import Form
from trimtab.storage.labels import Assignment, LabelStore
from trimtab.storage.people import People, Person, RoleName
from trimtab.storage.project import ProjectConfig
from trimtab.storage.tasks import parse_tasks
from trimtab.web.app import create_app

PASSWORD = "correct horse battery"


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """A project and everybody in it."""

    database: Database
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.store = LabelStore(self.database, clock=self.clock)
        self.people = People(self.database, clock=self.clock)

    def configure(self, **values: Any) -> None:
        self.store.set_config(ProjectConfig(**values))

    def add(self, *rows: dict[str, Any]) -> list[str]:
        """Add items; all must be accepted. Returns their ids."""
        tasks = list(parse_tasks(rows))
        added, refused = self.store.add(tasks)
        assert (added, refused) == (len(rows), []), refused
        return [t.id for t in tasks if not isinstance(t, str)]

    def database_folder(self) -> Path:
        return Path(self.database.name).parent

    def pairs(self, count: int, **fields: Any) -> list[str]:
        return self.add(
            *({"prompt": f"question {i}", "answers": [f"yes {i}", f"no {i}"], **fields} for i in range(count))
        )

    def join(self, name: str, role: RoleName = "annotator") -> Person:
        token = self.people.invite(role, by=None)
        person = self.people.session(self.people.accept(token, name=name, password=PASSWORD))
        assert person is not None
        return person

    def app(self, **options: Any) -> FastAPI:
        return create_app(self.store, self.people, hosts=("testserver", "127.0.0.1"), **options)


def judge(item: Assignment | str, key: str, *, best: int = 0, **fields: Any) -> Form:
    """A form about a pair that prefers the answer with this canonical index."""
    assert not isinstance(item, str), item
    ranks = tuple(int(answer != best) for answer in item.shown_order)
    answers = ({"criterion": "overall", "ranks": ranks},)
    return Form.model_validate({"item": item.task.id, "key": f"test-key-{key}", "answers": answers, **fields})


class Browser(TestClient):
    """A client that sends the CSRF token like our pages do."""

    csrf = ""

    def sign_in(self, name: str) -> Browser:
        answer = self.post("/signin", data={"name": name, "password": PASSWORD}, follow_redirects=False)
        assert answer.status_code == 303, answer.text
        return self.learn()

    def learn(self) -> Browser:
        self.csrf = csrf_of(self.get("/profile"))
        return self

    def submit(self, path: str, content: Any) -> httpx.Response:
        return self.post(path, json=content, headers={"X-CSRF-Token": self.csrf})  # pyright: ignore

    def fill(self, path: str, **fields: str) -> httpx.Response:
        return self.post(path, data={"csrf": self.csrf, **fields})  # pyright: ignore


def csrf_of(answer: Any) -> str:
    match = re.search(r'data-csrf="([^"]*)"', answer.text)
    assert match, answer.text
    return match[1]


Visit = Callable[[str], Browser]
