"""``label: {source: human}``: the run stops with the command for people, and goes on when they have judged."""

import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.errors import Interrupted
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.records import Judgement, Preference, read_records
from trimtab.storage.form import Form
from trimtab.storage.labels import Assignment
from trimtab.web.server import open_project

from ..kit import toy_recipe


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
    said = read_records(run.stage("label") / "judgements.jsonl", Judgement)
    assert len(said) == turn > 0
    assert {(j.source, j.annotator) for j in said} == {("human", me.pseudonym)}
    made = read_records(run.stage("preferences") / "preferences.jsonl", Preference)
    assert [p.source for p in made] == ["human"] * turn
    for p, j in zip(sorted(made, key=lambda p: p.id), sorted(said, key=lambda j: j.item), strict=True):
        assert p.judgements == (j.id,)
        assert p.ranks[j.shown_order[0]] == 0  # the one that was shown first was called better


def test_a_run_that_asks_nobody_needs_no_database():
    """``pip install trimtab[train]`` brings no SQLAlchemy; here it cannot be imported."""
    check = "import sys; sys.modules['sqlalchemy'] = None; import trimtab.pipeline.run"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
