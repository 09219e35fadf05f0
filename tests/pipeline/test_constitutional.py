"""Constitutional AI from a recipe: critique and revision, AI labels, hybrid labels, the balance, on a toy model."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks import constitutional
from trimtab.cli.app import run_app
from trimtab.errors import ConfigError, DataError, Interrupted
from trimtab.feedback import Queued, Router, Thresholds, routing, thresholds
from trimtab.pipeline import labelling, people
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.plan import make_plan
from trimtab.pipeline.reporting import _label_lines  # pyright: ignore[reportPrivateUsage]
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.stages import STAGES
from trimtab.pipeline.ui import Silent, Ui
from trimtab.records import Comparison, Demonstration, Judgement, Preference, read_records, write_records
from trimtab.storage.form import Form
from trimtab.storage.labels import Assignment
from trimtab.testing import TOY, save_model, sentences, tiny_model, toy_recipe
from trimtab.web.server import open_project

SAMPLER = {"max_new_tokens": 8, "slots": 32}
SMALL = {
    "model": TOY["model"] | {"context": 4096},
    "sft": TOY["sft"] | {"epochs": 1},
    "sample": {"prompts": 10, "answers": 2, "sampler": SAMPLER},
    "reward": TOY["reward"] | {"epochs": 1},
    "align": TOY["align"] | {"steps": 1, "prompts": 4, "sampler": SAMPLER},
    "evaluate": {"sampler": SAMPLER, "examples": 2},
}


def recipe_in(folder: Path, **sections) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        save_model(folder / "model", tiny_model(layers=2, context=4096))
    model = SMALL["model"] | {"name": str((folder / "model").resolve())}
    data = TOY["data"] | {"redteam": "data/redteam.jsonl", "redteam_heldout": "data/redteam-heldout.jsonl"}
    path = toy_recipe(folder, **(SMALL | {"model": model, "data": data} | sections))
    for name, start, count in (("redteam", 3000, 6), ("redteam-heldout", 4000, 4)):
        rows = [{"prompt": text} for text in sentences(count, words=4, start=start)]
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


WHOLE = {
    "gold": None,
    "revise": {"rounds": 1, "helpful": 2.0, "sampler": SAMPLER},
    "label": {"source": "ai"},
    "balance": {},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = recipe_in(tmp_path_factory.mktemp("constitutional"), **WHOLE)
    go(recipe)
    return recipe


def go(recipe: Path, *overrides: str, until: str | None = None):
    config = load_recipe(recipe, list(overrides))
    return run_recipe(config, recipe, runs=recipe.parent / "runs", until=until, ui=Silent())


def stage(recipe: Path, name: str) -> Path:
    return recipe.parent / "runs" / "toy" / "stages" / name


def test_all_three_phases_and_the_page(whole: Path):
    facts = json.loads((stage(whole, "revise") / "revise.json").read_text())
    made = read_records(stage(whole, "revise") / "demonstrations.jsonl", Demonstration)
    revised = [d for d in made if "constitution" in d.metadata]
    assert len(revised) == 6 - facts["counts"]["left_out"]
    assert len(made) == len(revised) + (min(40, 2 * len(revised)) if revised else 40)  # no revision: all helpful ones
    judgements = read_records(stage(whole, "label") / "judgements.jsonl", Judgement)
    items = read_records(stage(whole, "sample") / "comparisons.jsonl", Comparison)
    assert {j.item for j in judgements} == {i.id for i in items}
    assert all(j.source == "ai" and j.guideline == facts["constitution"]["version"] and j.principle for j in judgements)
    report = json.loads((stage(whole, "label") / "judge" / "judge.json").read_text())
    assert report["judges"]["judge"]["run"]["replies"] == 2 * len(items)
    measures = json.loads((stage(whole, "balance") / "balance.json").read_text())["measures"]
    assert {"harmlessness", "helpfulness", "preachiness"} <= {m["name"] for m in measures}
    assert all("proxy" in m["how"] for m in measures)
    page = (whole.parent / "runs" / "toy" / "report.html").read_text()
    assert "Harmless, helpful, preachy" in page and "AI labels" in page and "position bias" in page
    assert "come from AI judges under a written constitution" in page


def test_a_second_run_does_nothing_and_an_edit_asks_only_what_it_touches(whole: Path):
    config = load_recipe(whole)
    states = {r["stage"]: r["state"] for r in make_plan(config, whole, whole.parent / "runs")["stages"]}
    assert set(states.values()) == {"done"} and {"revise", "balance"} <= set(states)
    reseeded = load_recipe(whole, ["revise.seed=1"])
    states = {r["stage"]: r["state"] for r in make_plan(reseeded, whole, whole.parent / "runs")["stages"]}
    assert states["revise"] == "run"
    changed = load_recipe(whole, ["label.judge.principles=2"])
    states = {r["stage"]: r["state"] for r in make_plan(changed, whole, whole.parent / "runs")["stages"]}
    assert states["label"] == "run" and states["sample"] == "done"


def test_an_edited_constitution_asks_only_what_it_touches(tmp_path: Path, capsys):
    recipe = recipe_in(tmp_path, label={"source": "ai"}, gold=None, sft=None, align=None, reward=None)
    go(recipe, until="label")
    judgements = read_records(stage(recipe, "label") / "judgements.jsonl", Judgement)
    touched = judgements[0].principle
    assert touched and run_app(["constitution", "show"]) == 0
    edited = capsys.readouterr().out.replace(f"- id: {touched}\n  text: ", f"- id: {touched}\n  text: Above all, ")
    (tmp_path / "mine.yaml").write_text(edited)
    go(recipe, f"constitution={tmp_path / 'mine.yaml'}", until="label")
    run = json.loads((stage(recipe, "label") / "judge" / "judge.json").read_text())["judges"]["judge"]["run"]
    assert run["asked"] == 2 * sum(j.principle == touched for j in judgements) < run["replies"] == 20


def test_hybrid_labels_with_simulated_people(tmp_path: Path):
    route = {"audit": 0.5, "least": 5, "window": 10}
    recipe = recipe_in(tmp_path, label={"source": "hybrid", "route": route}, sft=None, align=None, reward=None)
    go(recipe, until="preferences")
    routing = json.loads((stage(recipe, "label") / "routing.json").read_text())
    assert routing["items"] == sum(routing["routes"].values()) and routing["waiting"] == 0
    assert {j.source for j in read_records(stage(recipe, "label") / "judgements.jsonl", Judgement)} <= {
        "ai",
        "simulated",
    }


def test_simulated_people_who_always_skip_are_an_error_in_the_recipe(tmp_path: Path):
    label = {"source": "hybrid", "simulation": {"skip_rate": 1.0}}
    with pytest.raises(DataError, match=r"ten times in a row; lower label.simulation.skip_rate, which is 1$"):
        go(recipe_in(tmp_path, label=label, sft=None, align=None, reward=None), until="label")


def test_a_file_of_people_comes_later_and_simulated_ones_in_it_are_called_so(tmp_path: Path, capsys):
    label = {"source": "hybrid", "people": str(tmp_path / "people.jsonl"), "route": {"audit": 0.3}}
    recipe = recipe_in(tmp_path, label=label, gold=None, sft=None, align=None, reward=None)
    words: list[Judgement] = []
    for turn in range(2):
        with pytest.raises(Interrupted, match="items wait for a person"):
            run_recipe(load_recipe(recipe), recipe, runs=tmp_path / "runs", ui=Ui())
        assert ("no such file yet, so there are no judgements" in capsys.readouterr().err) == (turn == 0)
        for item in read_records(stage(recipe, "label") / "queue.jsonl", Queued):
            word = Judgement(
                id=f"c{item.id}", item=item.id, annotator="s", source="simulated", shown_order=(0, 1), ranks=(0, 1)
            )
            gone = word.model_copy(update={"ranks": None, "verdict": "flag"})  # the first audit is never ranked
            words.append(word if words else gone)
        write_records(tmp_path / "people.jsonl", words)
    go(recipe)
    routing = json.loads((stage(recipe, "label") / "routing.json").read_text())
    assert routing["items"] == 9 and routing["waiting"] == 0
    page = (tmp_path / "runs" / "toy" / "report.html").read_text()
    assert "come from simulated annotators. No person judged these answers." in page
    assert "from people" not in page.split("judged these answers")[0]


def test_people_an_ai_judge_is_compared_with_change_the_reports_only(whole: Path, tmp_path: Path):
    items = read_records(stage(whole, "sample") / "comparisons.jsonl", Comparison)
    file, override = tmp_path / "people.jsonl", f"label.people={tmp_path / 'people.jsonl'}"
    for count in (4, 10):
        words = [
            Judgement(id=i.id, item=i.id, annotator="ann", source="human", shown_order=(0, 1), ranks=(0, 1))
            for i in items[:count]
        ]
        write_records(file, words)
        plan = make_plan(load_recipe(whole, [override]), whole, whole.parent / "runs")
        assert [r["stage"] for r in plan["stages"] if r["state"] != "done"] == ["report"]
        go(whole, override)
        report = json.loads((stage(whole, "label") / "judge" / "judge.json").read_text())
        assert report["judges"]["judge"]["people"]["pairs"] == count
        page = (whole.parent / "runs" / "toy" / "report.html").read_text()
        assert f"agreement with people on {count} pairs" in page
    go(whole)  # as other tests expect it


def test_a_damaged_report_of_the_judges_is_made_anew_as_the_message_says(whole: Path):
    label, report = stage(whole, "label"), stage(whole, "report") / "report.html"
    before = json.loads((label / "judge" / "judge.json").read_text())["judges"]["judge"]["run"]
    (label / "judge" / "judge.json").write_text("{}")
    report.unlink()
    with pytest.raises(DataError, match=f"delete the folder {label} and run again"):
        go(whole)
    shutil.rmtree(label)
    go(whole)
    run = json.loads((label / "judge" / "judge.json").read_text())["judges"]["judge"]["run"]
    assert report.exists() and run == before | {"asked": 0}


def test_damaged_facts_of_revisions_are_refused_with_the_field(whole: Path):
    context = SimpleNamespace(config=load_recipe(whole), folder=lambda name: stage(whole, name))
    file = stage(whole, "revise") / "revise.json"
    text = file.read_text()
    facts = json.loads(text)
    try:
        for damage, field in (({"judge": {}}, "judge.position_bias"), ({"counts": None}, "counts")):
            file.write_text(json.dumps(facts | damage))
            with pytest.raises(DataError, match=f"{file}: no valid RevisionFacts: {field}: .*run again what writes it"):
                _label_lines(cast(Any, context))
    finally:
        file.write_text(text)


def test_what_is_not_used_for_labels_makes_none_anew(tmp_path: Path):
    def settings(label: dict, *overrides: str, **more):
        config = load_recipe(recipe_in(tmp_path, label=label, **more), list(overrides))
        return next(s for s in STAGES if s.name == "label").settings(config)

    app = {"source": "hybrid", "people": "app"}
    same = ("label.human.wait_minutes=5", "label.simulation.skip_rate=0.5", "label.aggregate.keep_tied=true")
    for change in same:
        assert settings(app, change) == settings(app)
    assert settings(app, "label.human.project=elsewhere") != settings(app) != settings(app, "label.route.audit=0.5")
    assert settings({"source": "hybrid"}, "label.simulation.skip_rate=0.5") != settings({"source": "hybrid"})
    assert settings({"source": "hybrid"}, gold=None) == settings(app)
    assert settings({"source": "human"}, "label.human.wait_minutes=5") == settings({"source": "human"})
    assert settings({"source": "human"}, "label.human.enough=0.5") != settings({"source": "human"})


def test_hybrid_labels_wait_for_people_and_go_on(tmp_path: Path):
    (tmp_path / "people.jsonl").touch()
    label = {"source": "hybrid", "people": str(tmp_path / "people.jsonl"), "route": {"audit": 0.3}}
    recipe = recipe_in(tmp_path, label=label, gold=None, sft=None, align=None, reward=None)
    clicks: list[Judgement] = []
    queues = []
    for _ in range(2):  # the audits, then the rest
        with pytest.raises(Interrupted, match=r"items wait for a person.*same command"):
            go(recipe, until="preferences")
        queues.append(read_records(stage(recipe, "label") / "queue.jsonl", Queued))
        clicks += [
            Judgement(id=f"c{i.id}", item=i.id, annotator="ann", source="human", shown_order=(0, 1), ranks=(0, 1))
            for i in queues[-1]
        ]
        write_records(tmp_path / "people.jsonl", clicks)
    go(recipe, until="preferences")
    assert read_records(stage(recipe, "label") / "queue.jsonl", Queued) == []
    assert 0 < len(queues[0]) < len(queues[1]) and sum(map(len, queues)) == 10


class Crowd:
    """People in a run's annotation project, without the app."""

    def __init__(self, recipe: Path) -> None:
        self.project = open_project(recipe.parent / "runs" / "toy" / "annotation", create=False)
        token = self.project.people.first_owner()
        assert token is not None
        self.people = {"Ann": self._enter(token, "Ann")}
        for name in ("Bea", "Cem"):
            invited = self.project.people.invite("annotator", by=self.people["Ann"])
            self.people[name] = self._enter(invited, name)

    def _enter(self, token: str, name: str) -> int:
        people = self.project.people
        person = people.session(people.accept(token, name=name, password="a long password"))
        assert person is not None
        return person.id

    def judge(self, name: str, say, *, skip: int = 0) -> list[str]:
        """Somebody works until there is nothing left; ``say`` gives the ranks of the answers in the item's order."""
        item, done = self.project.store.next(self.people[name]), []
        while isinstance(item, Assignment):
            form: dict = {"item": item.task.id, "key": f"test-key-{name}-{item.task.id}"}
            if len(done) < skip:
                form["verdict"] = "skip"
            else:
                ranks = say(item.task.id)
                form["answers"] = [{"ranks": [ranks[i] for i in item.shown_order], "strength": 1.0}]
            _, following = self.project.store.submit(self.people[name], Form.model_validate(form))
            done.append(item.task.id)
            item = following
        return done


def test_hybrid_labels_by_people_in_the_annotation_app(tmp_path: Path):
    label = {"source": "hybrid", "people": "app", "route": {"audit": 0.4}}
    recipe = recipe_in(tmp_path, label=label, sft=None, align=None, reward=None)
    for _ in range(2):  # asked twice, queued once
        with pytest.raises(Interrupted, match=r"0 of \d judgements are in.*let people judge with `trimtab annotate"):
            go(recipe, until="preferences")
    audits = {q.id for q in read_records(stage(recipe, "label") / "queue.jsonl", Queued)}
    crowd = Crowd(recipe)
    crowd.project.store.set_address("http://127.0.0.1:8765")  # as serving it does
    assert 0 < len(audits) < 10 and set(crowd.judge("Ann", lambda _: (0, 1), skip=1)) == audits
    with pytest.raises(Interrupted, match=r"let people judge at http://127.0.0.1:8765"):
        go(recipe, until="preferences")  # what Ann skipped is an audit and still waits
    assert len(read_records(stage(recipe, "label") / "queue.jsonl", Queued)) == 1
    assert len(crowd.judge("Bea", lambda _: (0, 1))) == 1
    with pytest.raises(Interrupted, match="judgements are in"):
        go(recipe, until="preferences")  # too few audits for thresholds: people label the rest
    rest = {q.id for q in read_records(stage(recipe, "label") / "queue.jsonl", Queued)}
    assert len(rest) == 10 - len(audits) and not rest & audits
    gone = sorted(rest)[0]
    crowd.project.store.retire(gone, person=crowd.people["Ann"])
    assert set(crowd.judge("Cem", lambda _: (1, 0))) == rest - {gone}
    go(recipe, until="preferences")
    crowd.project.close()
    judgements = {j.item: j for j in read_records(stage(recipe, "label") / "judgements.jsonl", Judgement)}
    assert judgements.keys() == (audits | rest) - {gone} and {j.source for j in judgements.values()} == {"human"}
    made = {p.id: p for p in read_records(stage(recipe, "preferences") / "preferences.jsonl", Preference)}
    assert all(made[i].ranks == ((0, 1) if i in audits else (1, 0)) for i in judgements)
    routing = json.loads((stage(recipe, "label") / "routing.json").read_text())
    assert routing["items"] == routing["labels_of_people"] == 9 and routing["waiting"] == 0
    judge = json.loads((stage(recipe, "label") / "judge" / "judge.json").read_text())["judges"]["judge"]
    assert judge["people"]["pairs"] == 9  # the judge's report knows what people said


def test_a_second_person_in_the_app_settles_where_judge_and_person_differ(tmp_path: Path, monkeypatch):
    """With both routes forced open, every item that is no audit needs judge and person, and half of them a second."""
    label = {"source": "hybrid", "people": "app", "route": {"audit": 0.4}}
    recipe = recipe_in(tmp_path, label=label, sft=None, align=None, reward=None, gold=None)
    both = Router(thresholds=Thresholds(low=0.5, audited=40), calibrate=lambda p: p)
    monkeypatch.setattr(thresholds, "set_thresholds", lambda audits, config: both)
    with pytest.raises(Interrupted):
        go(recipe, until="preferences")
    audits = {q.id for q in read_records(stage(recipe, "label") / "queue.jsonl", Queued)}
    judged = read_records(stage(recipe, "label") / "judge" / "judgements.jsonl", Judgement)
    leans = {j.item: routing.first_better(j) or 0.0 for j in judged}

    def with_it(item: str) -> tuple[int, int]:
        return (0, 1) if leans[item] > 0.5 else (1, 0)

    def against(item: str) -> tuple[int, int]:
        return (1, 0) if leans[item] > 0.5 else (0, 1)

    crowd = Crowd(recipe)
    crowd.judge("Ann", with_it)
    with pytest.raises(Interrupted):
        go(recipe, until="preferences")
    rest = sorted({q.id for q in read_records(stage(recipe, "label") / "queue.jsonl", Queued)})
    assert set(rest) == leans.keys() - audits and len(rest) >= 3
    odd = set(rest[: len(rest) // 2])
    crowd.judge("Ann", lambda i: against(i) if i in odd else with_it(i))
    with pytest.raises(Interrupted, match=rf"{len(odd)} of {2 * len(odd)} judgements"):
        go(recipe, until="preferences")
    queue = read_records(stage(recipe, "label") / "queue.jsonl", Queued)
    assert {q.id for q in queue} == odd and {q.overlap for q in queue} == {2}
    assert crowd.judge("Ann", with_it) == []  # it has to be somebody else
    assert set(crowd.judge("Bea", against)) == odd
    go(recipe, until="preferences")
    crowd.project.close()
    made = {p.id: p for p in read_records(stage(recipe, "preferences") / "preferences.jsonl", Preference)}
    assert all(made[i].ranks == tuple(against(i) if i in odd else with_it(i)) for i in leans)


def test_a_run_that_waits_for_the_app_goes_on_by_itself(tmp_path: Path, monkeypatch):
    label = {"source": "hybrid", "people": "app", "human": {"wait_minutes": 5}, "route": {"audit": 0.4}}
    recipe = recipe_in(tmp_path, label=label, sft=None, align=None, reward=None, gold=None)
    crowd: list[Crowd] = []
    rounds: list[int] = []

    def work(seconds: float) -> None:
        """People judge while the stage sleeps."""
        if not crowd:
            crowd.append(Crowd(recipe))
        rounds.append(len(crowd[0].judge("Ann", lambda _: (0, 1))))

    monkeypatch.setattr(people, "time", SimpleNamespace(monotonic=time.monotonic, sleep=work))
    go(recipe, until="preferences")
    crowd[0].project.close()
    assert len(rounds) == 2 and sum(rounds) == 10  # the audits, then the rest
    judge = json.loads((stage(recipe, "label") / "judge" / "judge.json").read_text())["judges"]["judge"]
    assert judge["people"]["pairs"] == 10  # what was said during the wait is in the report


def test_a_skip_that_becomes_a_judgement_does_not_stop_a_run_that_waits(tmp_path: Path, monkeypatch):
    """As many words as before, but another one: the audits are complete, and the next items wait."""
    label = {"source": "hybrid", "people": "app", "human": {"wait_minutes": 5}, "route": {"audit": 0.4}}
    recipe = recipe_in(tmp_path, label=label, sft=None, align=None, reward=None, gold=None)
    with pytest.raises(Interrupted):
        go(recipe, "label.human.wait_minutes=0", until="preferences")
    crowd = Crowd(recipe)
    assert len(crowd.judge("Ann", lambda _: (0, 1), skip=1)) > 1

    def work(seconds: float) -> None:
        passed = [p for p in crowd.project.store.history(crowd.people["Ann"]) if p.submission.verdict == "skip"]
        for past in passed:
            item = crowd.project.store.reopen(crowd.people["Ann"], past.version)
            form = {"item": item.task.id, "key": "test-key-again", "version": past.version}
            form |= {"answers": [{"ranks": [int(i) for i in item.shown_order], "strength": 1.0}]}
            crowd.project.store.submit(crowd.people["Ann"], Form.model_validate(form))
        if not passed:
            crowd.judge("Ann", lambda _: (0, 1))

    monkeypatch.setattr(people, "time", SimpleNamespace(monotonic=time.monotonic, sleep=work))
    go(recipe, until="preferences")
    crowd.project.close()
    assert len(read_records(stage(recipe, "label") / "judgements.jsonl", Judgement)) == 10


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"revise": {}, "data": TOY["data"]}, "revise needs data.redteam"),
        ({"revise": {}, "sft": None}, "revise needs sft"),
        ({"balance": {}, "align": None}, "balance needs data.redteam_heldout, evaluate and align"),
        ({"label": {"source": "hybrid", "people": "simulated"}, "gold": None}, "'simulated' and needs gold"),
        ({"label": {"source": "human", "people": "app"}}, "source 'human' asks no one else"),
        ({"label": {"source": "ai", "people": "app"}}, "name a file of judgements to compare with"),
        ({"label": {"source": "hybrid", "people": "App"}}, "label.people is 'App'; expected app, simulated, or a file"),
        (
            {"label": {"source": "hybrid", "people": "app", "human": {"overlap": 2}}},
            "human.overlap is 2",
        ),
        ({"label": {"source": "hybrid"}, "sample": {"answers": 3}}, "compares pairs; set sample.answers to 2, not 3"),
    ],
)
def test_sections_that_need_each_other(tmp_path: Path, sections: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        load_recipe(recipe_in(tmp_path, **sections))


def test_a_judge_that_sees_ties_only_is_named_as_the_reason(whole: Path, monkeypatch):
    run = SimpleNamespace(stage=lambda name: stage(whole, name))
    context = SimpleNamespace(config=load_recipe(whole), run=run, folder=run.stage, seed=lambda name: 0)
    tied = [
        j.model_copy(update={"ranks": (0, 0), "probability": None})
        for j in read_records(stage(whole, "label") / "judgements.jsonl", Judgement)
    ]
    monkeypatch.setattr(
        labelling, "read_records", lambda path, kind: tied if kind is Judgement else read_records(path, kind)
    )
    with pytest.raises(DataError, match=r"10 items make no preference \(all answers tied: 10\).*stronger one"):
        labelling.run_preferences(context)  # type: ignore[arg-type]


def test_the_benchmark_writes_what_the_page_needs(whole: Path, tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("<!-- constitutional -->\n<!-- /constitutional -->\n")
    line = ["--recipe", str(whole), "--runs", str(whole.parent / "runs"), "--out", str(tmp_path / "out.json")]
    assert constitutional.main([*line, "--docs", str(page)]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["seconds"].keys() >= {"revise", "label", "align", "balance"} and result["kl"]["n"] > 0
    rows = [row for row in page.read_text().splitlines() if row.startswith("| ")]
    assert len(rows) == 1 + len(result["measures"]) and "KL per answer" in page.read_text()


# The command line ---------------------------------------------------------------------------


def test_judge_from_the_command_line(whole: Path, tmp_path: Path, capsys):
    rows = [{"prompt": q, "chosen": q + " yes", "rejected": "no " + q} for q in sentences(4, words=3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    out, model = tmp_path / "out", str(whole.parent / "model")
    line = ["judge", str(tmp_path / "pairs.jsonl"), "--out", str(out), "--model", model, "--context", "4096"]
    assert run_app([*line, "--principles", "null", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["judges"]["local"]["run"]["asked"] == 4 * 2 * 18 and report["judges"]["local"]["people"]["pairs"] == 4
    assert run_app([*line, "--principles", "null", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["judges"]["local"]["run"]["asked"] == 0
    assert run_app(["constitution", "show"]) == 0
    edited = capsys.readouterr().out.replace("no longer than the matter needs", "short")
    (tmp_path / "mine.yaml").write_text(edited)
    assert (
        run_app(["constitution", "diff", "default", str(tmp_path / "mine.yaml"), "--judged", str(out), "--json"]) == 1
    )
    result = json.loads(capsys.readouterr().out)
    assert [c["id"] for c in result["changes"]] == ["clear-and-plain"]
    assert result["again"] == {"local": {"questions": 144, "again": 8}}
    principles = json.loads((out / "principles.json").read_text())["judges"]["local"]["principles"]
    assert len(principles) == 18 and {p["asked"] for p in principles.values()} == {4}
    assert run_app([*line, "--principles", "null", "--json", "--constitution", str(tmp_path / "mine.yaml")]) == 0
    report = json.loads(capsys.readouterr().out)["judges"]["local"]
    assert report["run"]["asked"] == 8 and sum(report["edit"].values()) == 4 and not report["edit"]["new"]
    capsys.readouterr()

    everything = ["route", str(out), "--audit", "1.0"]
    assert run_app(everything) == 0  # nobody has judged yet
    assert "4 of 4 audits wait" in " ".join(capsys.readouterr().err.split())
    queue = read_records(out / "queue.jsonl", Queued)
    assert len(queue) == 4 and read_records(out / "labels.jsonl", Judgement) == []
    written = (out / "queue.jsonl").read_bytes()
    for name, reason in (("none.jsonl", "thereisnosuchfile"), ("judgements.jsonl", "judgementsareanAI'sanddonotcount")):
        assert run_app([*everything, "--people", str(out / name)]) == 3
        assert reason in "".join(capsys.readouterr().err.split())  # a long path is wrapped anywhere
    assert (out / "queue.jsonl").read_bytes() == written, "a refused file changes nothing"
    words = [
        Judgement(id=i.id, item=i.id, annotator="ann", source="human", shown_order=(0, 1), ranks=(0, 1), seconds=36)
        for i in queue
    ]
    words[3] = words[3].model_copy(update={"ranks": None, "verdict": "flag"})
    write_records(tmp_path / "one.jsonl", words[:2])
    write_records(tmp_path / "two.jsonl", words[1:])
    files = [f"--people={tmp_path / name}.jsonl" for name in ("one", "two")]
    assert run_app([*everything, *files, "--cost-per-hour", "50", "--least", "5"]) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "1 items were flagged and not ranked; left out" in printed
    assert "people cost 1.50" in printed  # three judgements of 36 seconds at 50 an hour
    assert "3 audited items, 5 are needed" in printed and read_records(out / "queue.jsonl", Queued) == []
    labels = {label.item: label for label in read_records(out / "labels.jsonl", Judgement)}
    assert {i for i, label in labels.items() if label.source == "human"} == {w.item for w in words[:3]}
    assert run_app(["route", str(out), *files, "--cost", "1"]) == 2 and "--cost" in capsys.readouterr().err


def test_constitution_from_the_command_line(tmp_path: Path, capsys):
    assert run_app(["constitution", "check"]) == 0
    assert "18 principles, version " in capsys.readouterr().out
    assert run_app(["constitution", "diff", "default", "default"]) == 0
    (tmp_path / "empty.yaml").write_text("name: x\nprinciples: []\n")
    assert run_app(["constitution", "check", str(tmp_path / "empty.yaml")]) == 2
    assert "the constitution is empty" in capsys.readouterr().err
