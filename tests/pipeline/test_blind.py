"""Blind readings: nothing gives the models away, every judgement is stored once, and nothing is ever lost."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from trimtab.cli.app import run_app
from trimtab.errors import ConfigError, DataError
from trimtab.pipeline.blind import (
    BlindKey,
    blind_results,
    load_judgements,
    load_keys,
    make_key,
    put_in_app,
    read_back,
    write_reading,
)
from trimtab.pipeline.blind_files import COLUMNS, read_rows, write_rows
from trimtab.pipeline.config import RunConfig, load_recipe
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.records import Judgement, Rollout, read_records
from trimtab.storage import RunFolder
from trimtab.storage.form import Form
from trimtab.storage.labels import Assignment
from trimtab.testing import toy_recipe
from trimtab.web.server import open_project


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blind")
    recipe = toy_recipe(folder)
    run_recipe(load_recipe(recipe), recipe, runs=folder / "runs", ui=Silent())
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A finished run to do things to; its model stays where it was."""
    return Path(shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("model")))


@pytest.fixture
def run(place: Path) -> RunFolder:
    return RunFolder(place / "runs" / "toy")


@pytest.fixture
def config(place: Path) -> RunConfig:
    return load_recipe(place / "recipe.yaml")


@pytest.fixture
def asked(run: RunFolder, config: RunConfig, place: Path) -> tuple[BlindKey, Path]:
    """A reading of policy against base, written and not filled in."""
    key, path = make_key(run, config, "first", None, seed=0, prompts=None), place / "first.csv"
    write_reading(run, key, path)
    return key, path


def fill(path: Path, change, *, target: Path | None = None) -> Path:
    """Write the file again after ``change(row, index)`` on each row, as a spreadsheet would."""
    rows = [dict(row.values) for row in read_rows(path)]
    for index, row in enumerate(rows):
        change(row, index)
    write_rows(target or path, rows)
    return target or path


def prefers(key: BlindKey, model: str, reader: str = "Ann"):
    """A reader who knows better than they should."""
    letters = {item.id: "AB"[item.shown.index(key.models.index(model))] for item in key.items}

    def change(row, index):
        row.update(preferred=letters[row["id"]], reader=reader)

    return change


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_the_file_holds_every_pair_and_no_names(run: RunFolder, config: RunConfig, place: Path, suffix: str):
    path = place / f"reading{suffix}"
    key = make_key(run, config, "reading", None, seed=0, prompts=None)
    write_reading(run, key, path)
    rows = read_rows(path)
    assert key.models == ("base", "policy") and len(rows) == len(key.items) == 10
    answers = {m: {r.prompt.text: r.text for r in read_records(run.stage("evaluate") / f"answers-{m}.jsonl", Rollout)}
               for m in key.models}  # fmt: skip
    orders = set()
    for row, item in zip(rows, key.items, strict=True):
        values = row.values
        pair = [" ".join(answers[m][values["prompt"]].split()) for m in key.models]
        shown = [" ".join(values[letter].removeprefix("'").split()) for letter in "AB"]
        assert shown == [pair[i] or "(an empty answer)" for i in item.shown]
        assert values["id"] == item.id and not row.filled
        orders.add(item.shown)
    assert orders == {(0, 1), (1, 0)}
    around = " ".join([*values, *(v for row in rows for k, v in row.values.items() if k not in ("prompt", "A", "B"))])
    assert not any(word in around.lower() for word in ("policy", "base", "pretrained", "ppo", "sft"))
    assert make_key(run, config, "reading", None, seed=0, prompts=None).items == key.items
    other = make_key(run, config, "reading", None, seed=1, prompts=None)
    assert [i.shown for i in other.items] != [i.shown for i in key.items]
    assert not {i.id for i in other.items} & {i.id for i in key.items}


def test_a_reading_comes_back_as_records_and_on_the_page(place: Path, capsys):
    recipe, runs, path = place / "recipe.yaml", place / "runs", place / "ann.csv"
    common = [str(recipe), "--runs", str(runs)]
    assert run_app(["eval", *common, "--blind", str(path)]) == 0
    assert "10 pairs of answers without names" in capsys.readouterr().err
    run = RunFolder(runs / "toy")
    (key,) = load_keys(run)
    letters = {item.id: item.shown for item in key.items}

    def judge(row, index):
        policy = "AB"[letters[row["id"]].index(1)]
        row["preferred"] = "tie" if index == 0 else policy if index < 8 else "AB".replace(policy, "")
        row["sensible_A"], row["sensible_B"] = ("yes", "no") if policy == "A" else ("No", "Y")

    fill(path, judge)
    assert run_app(["eval", *common, "--read", str(path), "--reader", "Ann"]) == 0
    printed = capsys.readouterr().err
    assert "20 verdicts stored, 0 were there already, 0 rows are empty" in printed
    assert "ann, Ann: 10 of 10 pairs judged" in printed
    judgements = load_judgements(run, key)
    assert {(j.source, j.annotator, j.criterion) for j in judgements} == {
        ("human", "Ann", "overall"),
        ("human", "Ann", "sensible"),
    }
    data = json.loads((run.path / "report.json").read_text())
    first = data["win_rates"][0]
    assert (first["model"], first["against"], first["metric"]) == ("PPO", "Pretrained", "Ann, a person reading blind")
    assert (first["wins"], first["ties"], first["losses"], first["n"], first["rate"]) == (7, 1, 2, 10, 0.75)
    assert (round(first["low"], 3), round(first["high"], 3)) == (0.442, 0.919)  # Wilson's for 7.5 of 10, by hand
    (reading,) = data["readings"]
    assert reading["sensible"] == {"Pretrained": [0, 10], "PPO": [10, 10]} and reading["unread"] == 0
    page = (run.path / "report.html").read_text()
    assert "75\u202f%" in page and "judged by Ann, a person reading blind." in page
    assert "The held-out answers were read blind by one person." in page and "No person judged" not in page
    assert run_app(["eval", *common, "--read", str(path), "--reader", "Ann"]) == 0
    assert "0 verdicts stored, 20 were there already" in capsys.readouterr().err
    assert load_judgements(run, key) == judgements


def test_several_readers_and_a_language_model_are_told_apart(run: RunFolder, asked):
    key, path = asked
    for reader, model in (("Ann", "policy"), ("Bea", "policy"), ("Cem", "base")):
        read_back(run, [fill(path, prefers(key, model, reader), target=path.with_name(f"{reader}.csv"))],
                  reader=None, kind="human")  # fmt: skip
    file = fill(path, prefers(key, "base", "a-model"), target=path.with_name("model.csv"))
    read_back(run, [file], reader=None, kind="ai")
    results = blind_results(run)
    people, machine = results.rows
    assert people.judge == "3 people reading blind" and machine.judge == "a-model, a language model reading blind"
    assert people.rate == pytest.approx(2 / 3) and machine.rate == 0.0
    assert (people.n, people.wins, people.losses) == (10, 20, 10)
    assert [(r.reader, r.kind, r.rate) for r in results.readings] == [
        ("Ann", "human", 1.0), ("Bea", "human", 1.0), ("Cem", "human", 0.0), ("a-model", "ai", 0.0),
    ]  # fmt: skip
    assert machine.worst and set(machine.worst) <= {i.comparison.prompt.id for i in key.items}


def test_two_files_for_two_pairs(run: RunFolder, config: RunConfig, place: Path, asked):
    other = make_key(run, config, "second", ("policy", "sft"), seed=3, prompts=4)
    assert other.models == ("sft", "policy") and len(other.items) == 4
    write_reading(run, other, place / "second.jsonl")
    files = [fill(asked[1], prefers(asked[0], "base")), fill(place / "second.jsonl", prefers(other, "policy"))]
    result = read_back(run, files, reader=None, kind="human")
    assert result.stored == 14 and len(result.keys) == 2
    rates = {(row.model, row.against): row.rate for row in blind_results(run).rows}
    assert rates == {("policy", "base"): 0.0, ("policy", "sft"): 1.0}


def test_rows_left_empty_are_counted(run: RunFolder, asked):
    key, path = asked
    judge = prefers(key, "policy")
    result = read_back(
        run, [fill(path, lambda row, i: judge(row, i) if i < 6 else None)], reader=None, kind="human"
    )  # fmt: skip
    assert (result.stored, result.empty) == (6, 4)
    (reading,) = blind_results(run).readings
    assert (reading.n, reading.unread) == (6, 4)


def edit(index: int, **values: str):
    """Change one row of a file that is filled in otherwise."""

    def change(row, i):
        if i == index:
            row.update(values)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(2, id="feedfeedfeed"), r"no such answers in this run \(unknown id\): feedfeedfeed"),
        (edit(2, id=""), r"unknown id\): line \d+"),
        (edit(1, A="Something else."), "A or B is not the answer that was written there: "),
        (edit(1, preferred="C"), r"preferred is neither A, B nor tie: \w+ \('C'\)"),
        (edit(1, preferred="policy"), r"preferred is neither A, B nor tie: \w+ \('policy'\)"),
        (edit(1, sensible_A="yes"), "sensible_A and sensible_B need yes or no, both or neither: "),
        (edit(1, sensible_A="maybe", sensible_B="no"), "sensible_A and sensible_B need yes or no"),
        (edit(1, reader=""), "no reader is named; fill in the column reader, or pass --reader NAME: "),
        (lambda row, i: row.update(dict.fromkeys(COLUMNS[4:], "")), "none of 10 rows is filled in; write A, B or tie"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_stored(run: RunFolder, asked, change, message: str):
    key, path = asked
    fill(path, prefers(key, "policy"))
    fill(path, change)
    before = path.read_bytes()
    with pytest.raises(DataError, match=message) as caught:
        read_back(run, [path], reader=None, kind="human")
    assert str(caught.value).startswith("nothing was stored:")
    assert load_judgements(run, key) == [] and path.read_bytes() == before


def test_all_problems_are_listed_at_once(run: RunFolder, asked):
    key, path = asked
    fill(path, prefers(key, "policy"))
    fill(path, lambda row, i: row.update(preferred="?") if i < 7 else row.update(id=f"x{i}"))
    with pytest.raises(DataError) as caught:
        read_back(run, [path], reader=None, kind="human")
    assert "and 2 more" in str(caught.value) and "x7, x8, x9" in str(caught.value)


def test_judged_twice(run: RunFolder, asked):
    key, path = asked
    fill(path, prefers(key, "policy"))
    rows = [dict(row.values) for row in read_rows(path)]
    write_rows(path, [*rows, rows[0]])  # the same verdict again counts once
    result = read_back(run, [path], reader=None, kind="human")
    assert (result.stored, result.repeated) == (10, 1)
    other = {"A": "B", "B": "A"}[rows[3]["preferred"]]
    write_rows(path, [*rows, rows[3] | {"preferred": other}])
    problem = rf"judged twice by the same reader with different verdicts: {rows[3]['id']} \(Ann\); make them agree"
    with pytest.raises(DataError, match=problem):
        read_back(run, [path], reader=None, kind="human")
    assert len(load_judgements(run, key)) == 10
    write_rows(path, [rows[3] | {"preferred": other, "reader": "Bea"}])  # somebody else may see it otherwise
    assert read_back(run, [path], reader=None, kind="human").stored == 1


def test_what_spreadsheets_do_to_a_file(run: RunFolder, asked):
    key, path = asked
    fill(path, prefers(key, "policy"))
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    with open(path, "w", encoding="utf-8", newline="") as file:  # other separator, line ends, no mark, a blank line
        csv.writer(file, delimiter=";", lineterminator="\r\n", quoting=csv.QUOTE_ALL).writerows([*rows, [""] * 9])
    assert read_back(run, [path], reader=None, kind="human").stored == 10


def test_a_cell_is_never_a_formula(tmp_path: Path):
    path = tmp_path / "f.csv"
    write_rows(path, [{"id": "1", "prompt": "p", "A": "=HYPERLINK(1)", "B": "-2"}])
    with open(path, encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["A"], row["B"]) == ("'=HYPERLINK(1)", "'-2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "a,b\n1,2\n", "has the columns a, b; expected id, prompt"),
        ("x.csv", b"id,preferred\n\xe9,A\n", "not UTF-8; save it again"),
        ("x.jsonl", "{\n", r"x.jsonl:1: not JSON"),
        ("x.jsonl", "[1]\n", r"x.jsonl:1: expected an object, got list"),
        ("x.jsonl", '{"id": "1"}\n', "has the columns id; expected id, prompt, A, B"),
    ],
)
def test_files_that_are_no_readings(run: RunFolder, asked, name: str, content, message: str):
    path = asked[1].with_name(name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        read_back(run, [path], reader="Ann", kind="human")


def test_a_filled_file_is_never_overwritten(run: RunFolder, config: RunConfig, asked):
    key, path = asked
    write_reading(run, key, path)  # nothing is filled in: written again
    fill(path, edit(4, preferred="A"))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"1 rows are filled in already, so it was left as it is; read them with"):
        write_reading(run, make_key(run, config, "first", None, seed=9, prompts=None), path)
    path.with_name("notes.csv").write_text("my,notes\n1,2\n")
    with pytest.raises(DataError, match="is there already and was left as it is"):
        write_reading(run, key, path.with_name("notes.csv"))
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match=r"a blind reading is a \.csv file"):
        write_reading(run, key, path.with_suffix(".xlsx"))


@pytest.mark.parametrize(
    ("models", "override", "message"),
    [
        (("best_of", "policy"), "seed=0", "--models best_of: this run has no such answers; choose two of base, sft, p"),
        (("sft", "sft"), "seed=0", "name two different models of base, sft, policy"),
    ],
)
def test_models_that_cannot_be_compared(run: RunFolder, config: RunConfig, models, override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        make_key(run, config, "x", models, seed=0, prompts=None)


def test_a_model_trained_from_scratch_has_no_pretrained_answers(run: RunFolder, place: Path):
    (run.stage("evaluate") / "answers-base.jsonl").unlink()
    config = load_recipe(place / "recipe.yaml", ["evaluate.pretrained=false"])
    with pytest.raises(ConfigError, match=r"--models base: the model was not pretrained.*choose two of sft, policy"):
        make_key(run, config, "x", ("base", "policy"), seed=0, prompts=None)
    assert make_key(run, config, "x", None, seed=0, prompts=None).models == ("sft", "policy")


def test_answers_made_again_keep_the_old_judgements(run: RunFolder, place: Path, asked, capsys):
    key, path = asked
    fill(path, prefers(key, "policy"))
    read_back(run, [path], reader=None, kind="human")
    common = [str(place / "recipe.yaml"), "--runs", str(place / "runs")]
    assert run_app(["report", *common, "--set", "evaluate.sampler.temperature=0.5"]) == 0
    page = (run.path / "report.html").read_text()
    assert "Answers were made again since blind readers judged them (first)" in page and "reading blind" not in page
    assert len(load_judgements(run, key)) == 10
    capsys.readouterr()
    again = ["eval", *common, "--read", str(path)]
    assert run_app([*again, "--set", "evaluate.sampler.temperature=0.5"]) == 3
    assert "first: the answers were made again since this reading was written" in " ".join(
        capsys.readouterr().err.split()
    )
    assert len(load_judgements(run, key)) == 10
    assert run_app(["report", *common]) == 0  # the old settings, and the old answers with them
    assert "Ann, a person reading blind" in (run.path / "report.html").read_text()
    assert run_app([*again, "--set", "sft.epochs=1"]) == 3  # reading back trains nothing
    assert "sft, sample" in " ".join(capsys.readouterr().err.split())


def test_reading_back_before_anything_was_written(place: Path, run: RunFolder, capsys):
    common = ["eval", str(place / "recipe.yaml"), "--runs", str(place / "runs")]
    assert run_app([*common, "--read", str(place / "x.csv")]) == 3
    assert "nothing was given to blind readers yet" in " ".join(capsys.readouterr().err.split())
    assert run_app([*common, "--set", "name=other", "--read", str(place / "x.csv")]) == 3
    assert "no such run" in " ".join(capsys.readouterr().err.split())
    assert not (place / "runs" / "other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--blind", "a.csv", "--read", "b.csv"], "give one of the two"),
        (["--models", "base", "sft"], "add --blind FILE or --annotate"),
        (["--read", "b.csv", "--reader-kind", "dog"], "expected human (people) or ai (a language model)"),
        (["--blind", "a.xlsx"], "a blind reading is a .csv file"),
    ],
)
def test_options_that_contradict(place: Path, options: list[str], message: str, capsys):
    assert run_app(["eval", str(place / "recipe.yaml"), "--runs", str(place / "runs"), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_annotation_app_holds_the_same_pairs(place: Path, run: RunFolder, capsys):
    common = ["eval", str(place / "recipe.yaml"), "--runs", str(place / "runs")]
    assert run_app([*common, "--annotate", "--prompts", "5"]) == 0
    printed = capsys.readouterr().err
    folder = run.path / "blind-annotation"
    assert "5 pairs added" in printed and f"trimtab annotate {folder}" in printed
    (key,) = load_keys(run)
    assert put_in_app(run, key)[1:] == (0, 0)  # nothing twice
    project = open_project(folder, create=False)
    token = project.people.first_owner()
    assert token is not None
    ann = project.people.session(project.people.accept(token, name="Ann", password="a long password"))
    assert ann is not None
    places = {item.id: item for item in key.items}
    item, turn = project.store.next(ann.id), 0
    while isinstance(item, Assignment):
        turn += 1
        policy = places[item.task.id].shown.index(1)  # A or B, as position in the task
        ranks = [int(shown != policy) for shown in item.shown_order]
        form = {"item": item.task.id, "key": f"test-key-{turn}", "answers": [{"ranks": ranks, "strength": 1.0}]}
        _, item = project.store.submit(ann.id, Form.model_validate(form))
    assert not any("policy" in task.model_dump_json() for _, task in project.store.tasks())
    project.close()
    assert turn == 5
    assert run_app([*common, "--read", str(folder)]) == 0
    assert "5 verdicts stored" in capsys.readouterr().err
    (row,) = blind_results(run).rows
    assert (row.rate, row.n, row.judge) == (1.0, 5, f"{ann.pseudonym}, a person reading blind")
    judgements = read_records(key.path(run, "judgements.jsonl"), Judgement)
    assert {j.source for j in judgements} == {"human"}
    with pytest.raises(DataError, match=r"holds no labels\.db"):
        read_back(run, [place], reader=None, kind="human")
