"""From an alarm to the annotation queue, to people's judgements, to the labels of the next round."""

from dataclasses import replace
from pathlib import Path

from trimtab.evals import AlarmConfig
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.context import Context
from trimtab.pipeline.monitoring import RunMonitor, read_alarms
from trimtab.pipeline.ui import Silent
from trimtab.pipeline.votes import run_votes
from trimtab.records import Judgement, read_records, write_records
from trimtab.storage import RunFolder
from trimtab.storage.form import Form
from trimtab.storage.queue import Assignment
from trimtab.storage.snapshot import take_snapshot
from trimtab.web.server import open_project

from .small_rounds import small_recipe
from .test_monitoring import ALIGN, Made, answers, go


def test_samples_of_an_alarm_are_labelled_and_make_the_next_round(tmp_path: Path):
    project = tmp_path / "hacks"
    made = Made(tmp_path / "run", AlarmConfig(queue=str(project)))
    (tmp_path / "run" / "samples").mkdir()
    remaining = [r for r in answers(3, 0) if r.id != "3/0"]  # the first question has no other answer
    write_records(tmp_path / "run" / "samples" / "step-000002.jsonl", remaining)
    (tmp_path / "run" / "samples" / "step-000005.jsonl").write_text('{"half a')
    go(made, 1, 20)
    alarms = read_alarms(made)  # pyright: ignore[reportArgumentType]
    assert made.lines[1] == f"    9 answers wait for people in {project} (1 have no other answer to their prompt)"
    app = open_project(project, create=False)
    token = app.people.first_owner()
    assert token is not None
    person = app.people.session(app.people.accept(token, name="Ann", password="a long password"))
    assert person is not None
    item, seen = app.store.next(person.id), 0
    while isinstance(item, Assignment):  # Ann dislikes flattery
        texts = [item.task.completions[i].text for i in item.shown_order]
        assert (
            sorted(texts) == ["Great question! Red.", "It is red."]
            and item.task.batch == f"alarm-flattery-step-{alarms[0].step}"
        )
        form = {"item": item.task.id, "key": f"test-key-{item.task.id}"}
        form |= {"answers": [{"ranks": [int("Great" in text) for text in texts], "strength": 1.0}]}
        _, item = app.store.submit(person.id, Form.model_validate(form))
        seen += 1
    app.close()
    assert seen == 9
    recipe = small_recipe(
        tmp_path / "recipe", sample=None, label={"source": "votes", "votes": {"project": str(project)}}
    )
    run = RunFolder(tmp_path / "runs" / "toy")
    run.begin("label", "f")
    counts, _ = run_votes(Context(config=load_recipe(recipe), recipe=recipe, run=run, ui=Silent()))
    assert counts["judgements"] == 9 and counts["source"] == "human"
    labels = read_records(run.stage("label") / "judgements.jsonl", Judgement)
    assert len(labels) == 9 and all(label.ranks is not None for label in labels)


def test_in_a_group_the_answer_with_least_of_it_is_the_rival_and_failure_stops_nothing(tmp_path: Path):
    made = Made(tmp_path / "run", AlarmConfig(queue=str(tmp_path / "hacks")))

    def grouped(step: int) -> list:
        texts = ("Great question! Red.", "Great question! Blue.", "It is red.") if step > 6 else ("It is.",) * 3
        return [replace(r, id=f"{r.id}/{k}", text=text) for r in answers(step, 0) for k, text in enumerate(texts)]

    with RunMonitor(made, ALIGN) as monitor:  # pyright: ignore[reportArgumentType]
        for step in range(1, 21):
            monitor(step, grouped(step))
    app = open_project(tmp_path / "hacks", create=False)
    pairs = [{c.text for c in task.completions} for task in take_snapshot(app.store).tasks]
    app.close()
    assert pairs and all("It is red." in pair for pair in pairs) and "10 answers wait" in made.lines[1]
    blocked = tmp_path / "file"
    blocked.write_text("")
    lost = Made(tmp_path / "other", AlarmConfig(queue=str(blocked / "project")))
    go(lost, 1, 20)
    assert "the answers behind the alarm are not in" in lost.lines[1]
