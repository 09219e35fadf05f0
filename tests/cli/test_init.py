"""``trimtab init``: whatever the data file holds, the recipe it writes passes ``trimtab plan``."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.cli.app import run_app
from trimtab.pipeline.config import load_recipe
from trimtab.records import Comparison, Judgement, Prompt, write_records
from trimtab.testing import save_model, sentences, tiny_model

QUESTIONS, GOOD, BAD = sentences(24, words=4), sentences(24, start=300), sentences(24, start=600)
PAIRS = [{"prompt": q, "chosen": g, "rejected": b} for q, g, b in zip(QUESTIONS, GOOD, BAD, strict=True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_model(tmp_path_factory.mktemp("init") / "model", tiny_model(layers=2, width=16, context=2048)))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def rows(name: str) -> list[dict[str, Any]]:
    """Rows of each format that is read."""
    head = "\n\nHuman: {}\n\nAssistant: {}"
    triples = list(zip(QUESTIONS, GOOD, BAD, strict=True))
    return {
        "pairs": PAIRS,
        "hh": [{"chosen": head.format(q, g), "rejected": head.format(q, b)} for q, g, b in triples],
        "conversational": [
            {"chosen": [turn("user", q), turn("assistant", g)], "rejected": [turn("user", q), turn("assistant", b)]}
            for q, g, b in triples
        ],
        "ultrafeedback": [
            {
                "instruction": q,
                "completions": [{"response": g, "overall_score": 9}, {"response": b, "overall_score": 2}],
            }
            for q, g, b in triples
        ],
        "messages": [{"messages": [turn("user", q), turn("assistant", g)]} for q, g, _ in triples],
        "sharegpt": [
            {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": g}]} for q, g, _ in triples
        ],
        "alpaca": [{"instruction": q, "input": "", "output": g} for q, g, _ in triples],
        "question-answer": [{"question": q, "answer": g} for q, g, _ in triples],
        "completion": [{"prompt": q, "completion": g} for q, g, _ in triples],
        "thumbs": [{"prompt": q, "completion": g, "label": i % 3 > 0} for i, (q, g, _) in enumerate(triples)],
        "prompts": [{"prompt": q} for q, _, _ in triples],
    }[name]


def write(path: Path, values: list[dict[str, Any]]) -> str:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(values[0]))
            writer.writeheader()
            writer.writerows(values)
    elif path.suffix == ".parquet":
        table = pytest.importorskip("pyarrow").Table.from_pylist(values)
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(values))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in values))
    return str(path)


def plan(recipe: Path | str, capsys) -> list[str]:
    """Stages of a recipe, which ``trimtab plan`` accepts without a warning about its settings."""
    capsys.readouterr()
    assert run_app(["plan", str(recipe), "--json"]) == 0, capsys.readouterr().err
    return [row["stage"] for row in json.loads(capsys.readouterr().out)["stages"]]


PREFERENCES = ["sft", "preferences", "reward", "align", "evaluate", "report"]
JUDGED = ["sample", "label", "preferences", "reward", "align", "evaluate", "report"]
VERIFIER = ["--verifier", "trimtab.feedback.verifiers.arithmetic"]


@pytest.mark.parametrize(
    ("name", "suffix", "options", "stages", "method"),
    [
        ("pairs", ".csv", [], PREFERENCES, "dpo"),
        ("pairs", ".jsonl", [], PREFERENCES, "dpo"),
        ("pairs", ".parquet", [], PREFERENCES, "dpo"),
        ("pairs", ".json", [], PREFERENCES, "dpo"),
        ("hh", ".jsonl", [], PREFERENCES, "dpo"),
        ("conversational", ".jsonl", [], PREFERENCES, "dpo"),
        ("ultrafeedback", ".jsonl", [], PREFERENCES, "dpo"),
        ("pairs", ".csv", ["--use", "demonstrations"], ["sft", "evaluate", "report"], None),
        ("messages", ".jsonl", [], ["sft", "evaluate", "report"], None),
        ("sharegpt", ".jsonl", [], ["sft", "evaluate", "report"], None),
        ("alpaca", ".json", [], ["sft", "evaluate", "report"], None),
        ("question-answer", ".csv", [], ["sft", "evaluate", "report"], None),
        ("completion", ".parquet", [], ["sft", "evaluate", "report"], None),
        ("question-answer", ".csv", VERIFIER, ["sft", "align", "evaluate", "report"], "grpo"),
        ("messages", ".jsonl", ["--behaviour", "be polite"], ["sft", *JUDGED], "dpo"),
        ("thumbs", ".csv", [], ["align", "evaluate", "report"], "kto"),
        ("thumbs", ".jsonl", [], ["align", "evaluate", "report"], "kto"),
        ("prompts", ".csv", VERIFIER, ["align", "evaluate", "report"], "grpo"),
        ("prompts", ".jsonl", ["--behaviour", "Answer: \"briefly\" # and 'kindly'"], JUDGED, "dpo"),
    ],
)
@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_every_kind_of_data_gives_a_recipe_that_plan_accepts(
    here, model, capsys, name, suffix, options, stages, method, machine
):
    file = write(here / f"{name} of ours{suffix}", rows(name))
    arguments = ["--data", file, "--model", model, "--machine", machine, "--memory-gb", "16", *options]
    assert run_app(["init", *arguments]) == 0, capsys.readouterr().err
    assert plan("recipe.yaml", capsys) == stages
    config = load_recipe(Path("recipe.yaml"))
    assert (config.align.method if config.align else None) == method
    assert config.memory_gb == 16 and config.model.name == model
    text = (here / "recipe.yaml").read_text()
    assert all(f"\n{section}:" in text for section in yaml.safe_load(text) if section != "name")
    assert text.count("#") > 6  # it is commented


def test_a_behaviour_alone_gives_prompts_and_a_constitution(here, model, capsys):
    behaviour = "Answer like a pirate, but stay polite."
    assert run_app(["init", "pirate.yaml", "--behaviour", behaviour, "--model", model]) == 0, capsys.readouterr().err
    assert plan("pirate.yaml", capsys) == JUDGED
    assert behaviour in " ".join((here / "pirate-constitution.yaml").read_text().split())
    prompts = [json.loads(line)["prompt"] for line in (here / "pirate-prompts.jsonl").read_text().splitlines()]
    assert len(set(prompts)) == len(prompts) > 100
    assert load_recipe(Path("pirate.yaml")).about == behaviour
    assert run_app(["constitution", "check", "pirate-constitution.yaml"]) == 0


def test_a_recipe_in_another_folder_finds_its_data(here, model, capsys, monkeypatch):
    (here / "runs here").mkdir()
    (here / "data").mkdir()
    file = write(here / "data" / "pairs.csv", PAIRS)
    assert run_app(["init", "runs here/a.yaml", "--data", "data/pairs.csv", "--model", model]) == 0
    monkeypatch.chdir(here / "runs here")
    assert plan("a.yaml", capsys) == PREFERENCES
    written = load_recipe(Path("a.yaml")).data.preferences
    assert written == file


def test_the_recipe_says_what_is_in_the_file(here, model, capsys):
    bad = [{"prompt": "", "chosen": "", "rejected": ""}]
    file = write(here / "pairs.csv", PAIRS + PAIRS[:1] + bad)
    assert run_app(["init", "--data", file, "--model", model]) == 0
    printed = capsys.readouterr().err
    assert (
        "26 rows, 25 preferences" in printed
        and "refused rows, which are not used: 1" in printed
        and "duplicate records: 1" in printed
    )
    assert "26 rows, 25 preferences" in (here / "recipe.yaml").read_text().replace("\n#", "")


def test_long_conversations_are_counted_and_the_context_fits_the_model(here, tmp_path, capsys):
    small = save_model(tmp_path / "small", tiny_model(layers=1, width=16, context=96))
    values = [*PAIRS, {"prompt": "red " * 300, "chosen": "a", "rejected": "b"}]
    assert run_app(["init", "--data", write(here / "p.jsonl", values), "--model", str(small)]) == 0
    config = load_recipe(Path("recipe.yaml"))
    assert config.model.context == 96 and "1 of 25 conversations" in (here / "recipe.yaml").read_text()
    assert plan("recipe.yaml", capsys) == PREFERENCES


def test_little_memory_gives_a_smaller_recipe_or_a_reason(here, model, capsys):
    file = write(here / "pairs.csv", PAIRS)
    assert run_app(["init", "--data", file, "--model", model, "--memory-gb", "0.5"]) == 2
    assert "memory_gb is 0.5" in capsys.readouterr().err and not (here / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "this is not a terminal, so nothing can be asked; give --data FILE"),
        (["--data", "missing.csv"], 3, "missing.csv: no such file"),
        (["--data", "prompts.jsonl"], 2, "gives prompts only"),
        (["--data", "prompts.jsonl", "--verifier", "trimtab.nothing"], 2, "trimtab.nothing"),
        (["--data", "prompts.jsonl", "--use", "preferences"], 3, "cannot become a Preference"),
        (["--data", "unknown.csv"], 3, "unknown format; columns seen: 'left', 'right'"),
        (["--data", "pairs.csv", "--format", "hhh"], 3, "did you mean 'hh'?"),
        (["--data", "same.jsonl"], 3, "in no preference is one answer better than another"),
        (["--data", "judgements.jsonl"], 3, "holds judgement"),
        (["--data", "empty.csv"], 3, "holds no rows"),
        (["--behaviour", "TODO"], 2, "is not filled in yet"),
        (["--behaviour", "be kind", "--verifier", "trimtab.feedback.verifiers.arithmetic"], 2, "give --data FILE"),
        (["--data", "pairs.csv", "--name", "two words"], 2, "name: 'two words' is not accepted"),
        (["--data", "pairs.csv", "--model", "./nothing"], 4, "'./nothing' is not a folder here"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(here, model, capsys, arguments, code, message):
    write(here / "pairs.csv", PAIRS)
    write(here / "prompts.jsonl", rows("prompts"))
    write(here / "unknown.csv", [{"left": "a", "right": "b"}])
    write(here / "same.jsonl", [row | {"rejected": row["chosen"]} for row in PAIRS])
    item = Comparison.of(Prompt.from_text("Hi?"), ["a", "b"])
    judged = Judgement(id="j", item=item.id, annotator="a", source="human", shown_order=(0, 1), ranks=(0, 1))
    write_records(here / "judgements.jsonl", [judged])
    (here / "empty.csv").write_text("prompt,chosen,rejected\n")
    before = sorted(here.iterdir())
    given = arguments if "--model" in arguments else [*arguments, "--model", model]
    assert run_app(["init", *given]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(here.iterdir()) == before


def test_files_are_overwritten_only_when_told(here, model, capsys):
    file = write(here / "pairs.csv", PAIRS)
    (here / "recipe.yaml").write_text("mine")
    arguments = ["init", "--data", file, "--model", model]
    assert run_app(arguments) == 2 and "--force" in capsys.readouterr().err
    assert (here / "recipe.yaml").read_text() == "mine"
    assert run_app([*arguments, "--force"]) == 0 and plan("recipe.yaml", capsys) == PREFERENCES
    (here / "b-constitution.yaml").write_text("mine")  # the files beside the recipe too
    assert run_app(["init", "b.yaml", "--behaviour", "be polite", "--model", model]) == 2
    assert (here / "b-constitution.yaml").read_text() == "mine" and not (here / "b.yaml").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_asks_and_asks_again(here, model, capsys, monkeypatch):
    """Answers: a wrong model, the model, a missing file, the file, no verifier, a behaviour, the machine."""
    write(here / "prompts.jsonl", rows("prompts"))
    typed = ["./nothing", model, "missing.csv", "prompts.jsonl", "", "be polite", "mainframe", "cpu"]
    monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in typed)))
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run_app(["init"]) == 0, sys.stderr.getvalue()
    printed = sys.stderr.getvalue()
    assert (
        "'./nothing' is not a folder here" in printed
        and "missing.csv: no such file" in printed
        and "mainframe" in printed
    )
    assert sys.stdin.read() == ""
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert plan("recipe.yaml", capsys) == JUDGED


def test_no_overwrites_nothing_on_a_terminal(here, model, monkeypatch):
    file = write(here / "pairs.csv", PAIRS)
    (here / "recipe.yaml").write_text("mine")
    monkeypatch.setattr(sys, "stdin", Terminal("\nn\n"))  # the machine, then no
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run_app(["init", "--data", file, "--model", model]) == 2
    assert (here / "recipe.yaml").read_text() == "mine"


def test_a_written_recipe_runs(here, model, capsys):
    """The shortest way from preferences in a CSV to a report, at toy size."""
    file = write(here / "pairs.csv", PAIRS)
    assert run_app(["init", "--data", file, "--model", model, "--machine", "cpu"]) == 0
    extra = [x for key in ("evaluate.prompts=2", "threads=1", "capability=null") for x in ("--set", key)]
    assert run_app(["run", "recipe.yaml", *extra]) == 0, capsys.readouterr().err
    assert (here / "runs" / "pairs" / "report.html").exists()


def test_prompts_held_out_of_a_demonstration_file_are_not_learnt(here, model, capsys):
    file = write(here / "demos.jsonl", rows("messages"))
    assert run_app(["init", "--data", file, "--model", model, "--machine", "cpu"]) == 0
    extra = [x for key in ("evaluate.prompts=2", "threads=1", "capability=null") for x in ("--set", key)]
    assert run_app(["run", "recipe.yaml", "--until", "sft", *extra]) == 0, capsys.readouterr().err
    counts = json.loads((here / "runs" / "demos" / "stages" / "sft" / "status.json").read_text())["counts"]
    assert counts["set_aside"] > 0
