"""``label: {source: human}``: the run stops with the command for people, and goes on when they have judged."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from trimtab.errors import Interrupted
from trimtab.feedback.votes import first_better
from trimtab.pipeline.ai_labels import FilePeople
from trimtab.pipeline.config import HumanConfig, load_recipe
from trimtab.pipeline.people import AppPeople
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.records import Comparison, Judgement, Preference, Prompt, read_records
from trimtab.records.annotation import Check, Task
from trimtab.storage import RunFolder
from trimtab.storage.form import Form
from trimtab.storage.labels import Assignment
from trimtab.testing import toy_recipe
from trimtab.web.server import open_project


def test_people_take_the_simulated_annotators_place(tmp_path: Path):
    recipe = toy_recipe(tmp_path, sft=None, reward=None, align=None, evaluate=None, gold=None)
    overrides = ["label.source=human", "sample.prompts=3", "sample.answers=2"]
    config, runs = load_recipe(recipe, overrides), tmp_path / "runs"
    for _ in range(2):  # asked twice, queued once
        with pytest.raises(Interrupted, match=r"0 of \d judgements are in.*trimtab annotate .*annotation"):
            run_recipe(config, recipe, runs=runs, ui=Silent())
    project = open_project(runs / config.name / "annotation", create=False)
    project.store.set_address("http://127.0.0.1:8765")  # as serving it does
    with pytest.raises(Interrupted, match=r"let people judge at http://127.0.0.1:8765 .started with `trimtab annotate"):
        run_recipe(config, recipe, runs=runs, ui=Silent())
    token = project.people.first_owner()
    assert token is not None
    me = project.people.session(project.people.accept(token, name="Ann", password="a long password"))
    assert me is not None
    item, turn = project.store.next(me.id), 0
    while isinstance(item, Assignment):
        turn += 1
        form = {"item": item.task.id, "key": f"test-key-{turn}", "answers": [{"ranks": [0, 1], "strength": 1.0}]}
        _, item = project.store.submit(me.id, Form.model_validate(form))
    project.close()
    run = run_recipe(config, recipe, runs=runs, ui=Silent())
    judgements = read_records(run.stage("label") / "judgements.jsonl", Judgement)
    assert len(judgements) == turn > 0
    assert {(j.source, j.annotator) for j in judgements} == {("human", me.pseudonym)}
    made = read_records(run.stage("preferences") / "preferences.jsonl", Preference)
    assert [p.source for p in made] == ["human"] * turn
    for p, j in zip(sorted(made, key=lambda p: p.id), sorted(judgements, key=lambda j: j.item), strict=True):
        assert p.judgements == (j.id,)
        assert p.ranks[j.shown_order[0]] == 0  # the one that was shown first was called better


@pytest.fixture
def asked(tmp_path: Path):
    """The queue of a project in which Ann, who owns it, and one annotator, Bea, may work; and what is said."""
    project, lines = open_project(tmp_path / "annotation"), []
    token = project.people.first_owner()
    assert token is not None
    ann = project.people.session(project.people.accept(token, name="Ann", password="a long password"))
    assert ann is not None
    invited = project.people.invite("annotator", by=ann.id)
    bea = project.people.session(project.people.accept(invited, name="Bea", password="a long password"))
    assert bea is not None
    context = SimpleNamespace(
        run=RunFolder(tmp_path),
        config=SimpleNamespace(name="toy"),
        fingerprints={"label": "0" * 12},
        stop_requested=lambda: False,
        ui=SimpleNamespace(say=lines.append),
    )
    with AppPeople(context, HumanConfig()) as app:  # type: ignore[arg-type]
        yield SimpleNamespace(app=app, store=project.store, ann=ann, bea=bea, lines=lines)
    project.close()


def form(item: Assignment | str, key: str, best: int = 0, **more) -> Form:
    assert isinstance(item, Assignment)
    answers = [{"ranks": [int(i != best) for i in item.shown_order], "strength": 1.0}]
    return Form.model_validate({"item": item.task.id, "key": f"test-key-{key}", "answers": answers, **more})


def test_an_item_for_more_people_than_there_are_can_be_settled(asked):
    item = Comparison.of(Prompt.from_text("Name a fish."), ["a trout", "a dog"])
    asked.app.ask([item], 2)
    assert asked.store.submit(asked.bea.id, form(asked.store.next(asked.bea.id), "1"))[1] == "empty"
    with pytest.raises(Interrupted, match=r"1 of 2 judgements.*\(1 items need another annotator: invite one"):
        asked.app.wait([item])
    [(task, _)] = asked.store.exhausted()
    asked.store.adjudicate(asked.ann.id, form(asked.store.dispute(task.id, asked.ann.id)[0], "2", best=1))
    asked.app.wait([item])
    given, _ = asked.app.judgements([item])
    assert FilePeople(given)([item], 0)[item.id].adjudication


def test_people_stand_in_the_order_of_their_first_judgement(asked):
    item = Comparison.of(Prompt.from_text("Name a fish."), ["a trout", "a dog"])
    asked.app.ask([item], 2)
    asked.store.submit(asked.ann.id, form(asked.store.next(asked.ann.id), "1"))
    asked.store.submit(asked.bea.id, form(asked.store.next(asked.bea.id), "2"))
    [past] = asked.store.history(asked.ann.id)
    asked.store.submit(asked.ann.id, form(asked.store.reopen(asked.ann.id, past.version), "3", 1, version=past.version))
    given, _ = asked.app.judgements([item])
    assert [j.annotator for j in given] == [asked.ann.pseudonym, asked.bea.pseudonym]
    assert [first_better(j) for j in given] == [0.0, 1.0]


def test_check_items_of_a_shared_project_are_not_waited_for(asked):
    ours, gold = (Comparison.of(Prompt.from_text(q), ["a trout", "a dog"]) for q in ("A fish?", "No cat?"))
    check = Check(role="gold", ranks=(0, 1))
    assert asked.store.add([Task.of(gold.prompt, gold.completions, id=gold.id, check=check)])[0] == 1
    assert asked.app.fit([ours, gold]) == [ours]
    assert asked.lines == ["  1 items cannot be shown to people and are left out (1 are check items of the project)"]


@pytest.fixture
def without_sqlalchemy() -> Iterator[None]:
    """SQLAlchemy cannot be imported, and all of trimtab is imported again; afterwards the old modules are back."""

    def concerned() -> dict[str, ModuleType]:
        packages = ("trimtab", "sqlalchemy", "alembic")
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in packages}

    before = concerned()
    for name in before:
        del sys.modules[name]
    sys.modules["sqlalchemy"] = None  # pyright: ignore
    yield
    for name in concerned():
        del sys.modules[name]
    sys.modules.update(before)


def test_a_run_that_asks_nobody_needs_no_database(without_sqlalchemy: None):
    """The ``train`` extra brings no SQLAlchemy."""
    again = importlib.import_module("trimtab.pipeline.run")
    assert again.run_recipe is not run_recipe
    with pytest.raises(ModuleNotFoundError, match="sqlalchemy"):
        importlib.import_module("trimtab.storage.database")
