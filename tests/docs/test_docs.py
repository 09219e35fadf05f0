"""The documents tell the truth: their commands work, their links lead somewhere, nothing is left out.

Every line of every ```console block runs, page by page, in a folder of its own, and what it leaves behind is checked
(``CHECKS``). There the default model is a tiny random one, and recipes are shrunk to seconds; `make` only prints what
it would do. Pages that continue a run of the quickstart get one that is done.
"""

import csv
import gzip
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient
from typer.main import get_command

from trimtab import errors
from trimtab.cli.app import app, run_app
from trimtab.conformance.rl_experiments import estimators
from trimtab.evals import BUILT_IN
from trimtab.guard.attacks import ATTACKS
from trimtab.models import embedded
from trimtab.pipeline.config import RunConfig, load_recipe
from trimtab.pipeline.plan import objective
from trimtab.pipeline.stages import STAGES
from trimtab.records import KINDS, Completion, Prompt, load
from trimtab.records.formats import FORMATS
from trimtab.storage.chat import Ballot, ChatVotes, Shown
from trimtab.storage.database import Database
from trimtab.storage.labels import LabelStore
from trimtab.testing import save_model, sentences, tiny_model

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "recipes").rglob("*.md")])
README = (ROOT / "README.md").read_text()
QUICKSTART = "recipes/quickstart.yaml"

SHRUNK = {
    "threads": 1,
    "data": {"limit": 24},
    "sft": {"epochs": 1, "adapter.top_layers": 1},
    "revise": {"prompts": 3, "rounds": 1, "sampler.max_new_tokens": 6},
    "sample": {"prompts": 8, "answers": 3, "sampler.max_new_tokens": 6},
    "reward": {"epochs": 1, "adapter.top_layers": 1},
    "align": {"steps": 1, "prompts": 4, "adapter.top_layers": 1, "sampler.max_new_tokens": 6},
    "evaluate": {"prompts": 4, "sampler.max_new_tokens": 6},
    "balance": {"prompts": 2},
}
OFFLINE = {"epochs": 1, "adapter.top_layers": 1}
"""What is set on top of a recipe, in the sections it has, so that a run takes seconds."""


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language: what follows it on the fence, and the content."""
    return re.findall(rf"^```{language} *([^\n]*)\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def commands(page: Path) -> list[str]:
    lines = [line for _, block in blocks(page, "console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the default model lives, which here is a tiny one with room for every recipe's context."""
    folder = tmp_path_factory.mktemp("cache")
    save_model(folder / embedded.NAME, tiny_model(layers=2, width=16, context=4096))
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_questions(tmp_path_factory):
    """The capability check asks every 16th of its questions."""
    path = tmp_path_factory.mktemp("capability") / BUILT_IN.name
    path.write_text("".join(BUILT_IN.read_text().splitlines(keepends=True)[::16]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.evals.capability.BUILT_IN", path)
        yield


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory, cache, few_questions):
    """The runs folder after the quickstart."""
    here = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(cache))
        patch.chdir(here)
        (here / "recipes").symlink_to(ROOT / "recipes")
        assert run_app(["run", QUICKSTART, *shrink(QUICKSTART)]) == 0
    return here / "runs"


@pytest.fixture
def place(tmp_path, cache, monkeypatch):
    """A current folder like the repository's, with the files the page shows, and invented HH rows beside it."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(cache))
    here = tmp_path / "trimtab"
    here.mkdir()
    for name in ("recipes", "examples", "constraints.txt"):
        (here / name).symlink_to(ROOT / name)
    hh = tmp_path / "shared" / "data" / "pairwise" / "hh-harmless-base.jsonl.gz"
    hh.parent.mkdir(parents=True)
    questions, good, bad = sentences(64, words=4), sentences(64, start=300), sentences(64, start=600)
    with gzip.open(hh, "wt") as file:
        for question, chosen, rejected in zip(questions, good, bad, strict=True):
            head = f"\n\nHuman: {question}\n\nAssistant: "
            file.write(json.dumps({"chosen": head + chosen, "rejected": head + rejected}) + "\n")
    # The tables' own tests are in tests/guard and tests/conformance; here their first rows stand for all.
    monkeypatch.setattr("trimtab.guard.evaluation.ATTACKS", dict([*ATTACKS.items()][:2]))
    monkeypatch.setattr("trimtab.conformance.conformance", lambda seeds, long: estimators(seeds))
    monkeypatch.chdir(here)
    return here


def shrink(recipe: str) -> list[str]:
    """``--set`` options that make a recipe small."""
    has = yaml.safe_load(Path(recipe).read_text())
    options = []
    if "revise" in has:  # the tiny model's tokenizer spells most words letter by letter
        options += ["--set", "model.context=4096"]
    for section, values in SHRUNK.items():
        if section == "align" and "steps" not in has.get("align", {}):
            values = OFFLINE
        if not isinstance(values, dict):
            options += ["--set", f"{section}={values}"]
        elif section in has:
            options += [x for key, value in values.items() for x in ("--set", f"{section}.{key}={value}")]
    if (
        has.get("label", {}).get("source") == "ai"
    ):  # of three answers the tiny judge, which contradicts itself, sees ties
        options += ["--set", f"sample.answers={has['sample']['answers']}"]
    return options


# What a command must leave behind ---------------------------------------------------------


def option(arguments: list[str], name: str) -> str:
    """The value of an option."""
    return arguments[arguments.index(name) + 1]


def config_of(arguments: list[str]) -> RunConfig:
    """The recipe of a command line with its own overrides."""
    values = [value for name, value in itertools.pairwise(arguments) if name == "--set"]
    return load_recipe(Path(arguments[1]), values)


def states(arguments: list[str]) -> dict[str, str]:
    """State of each stage in the folder of the run."""
    stages = Path("runs", config_of(arguments).name, "stages")
    found = [json.loads(path.read_text()) for path in stages.glob("*/status.json")]
    return {status["stage"]: status["state"] for status in found}


def check_run(arguments: list[str], printed: str) -> None:
    """All stages of the recipe are done, and the report names the run."""
    config = config_of(arguments)
    wanted = {stage.name for stage in STAGES if stage.settings(config) is not None}
    assert wanted and states(arguments).items() >= dict.fromkeys(wanted, "done").items()
    assert config.name in Path("runs", config.name, "report.html").read_text()
    if "--json" in arguments:
        assert set(json.JSONDecoder().raw_decode(printed[printed.index("{") :])[0]["stages"]) >= wanted


def is_recipe(arguments: list[str]) -> bool:
    """Is a command's first argument a recipe, not a run's folder or one of its models?"""
    return arguments[0] in TAKES_RECIPE and not Path(arguments[1].partition(":")[0]).is_dir()


def check_report(arguments: list[str], printed: str) -> None:
    """The page of a run, or the one about several."""
    if is_recipe(arguments):
        check_run(arguments, printed)
    else:
        assert "Settings that differ" in Path("comparison.html").read_text()


def check_eval(arguments: list[str], printed: str) -> None:
    """The stage of a recipe, or the page of a comparison on suites."""
    if is_recipe(arguments):
        check_stage(arguments, printed)
    else:
        run = Path(arguments[1].partition(":")[0])
        out = Path(option(arguments, "--out")) if "--out" in arguments else run / "suites"
        assert json.loads((out / "suites.json").read_text())["rows"] and (out / "suites.html").exists()


def check_stage(arguments: list[str], printed: str) -> None:
    """The stage is done."""
    stage = {"eval": "evaluate"}.get(arguments[0], arguments[0])
    assert states(arguments)[stage] == "done"
    if "--evaluate" in arguments:
        name = Path(option(arguments, "--evaluate")).name
        folder = Path("runs", config_of(arguments).name, "reward-evaluation")
        assert json.loads((folder / f"{name}.json").read_text())["edits"] and (folder / f"{name}.svg").exists()
        assert "words" in printed and "Brier" in printed and "edit flattery" in printed
    run = Path("runs", config_of(arguments).name)
    if "--blind" in arguments:
        with open(option(arguments, "--blind"), newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) >= 2 and all(row["A"] is not None and row["preferred"] == "" for row in rows)
    if "--annotate" in arguments:
        assert (run.parent / f"{run.name}/blind-annotation" / "labels.db").exists()


def check_plan(arguments: list[str], printed: str) -> None:
    """Every stage of the recipe is in the table (whose cells may be narrow), and the objective below it."""
    config = config_of(arguments)
    shown = "".join(printed.split())
    assert [s.name for s in STAGES if s.settings(config) is not None and s.name[:5] not in shown] == []
    formulas = [line for line in objective(config) if not line.startswith(" ")]  # below them are shrunk settings
    assert formulas and [line for line in formulas if "".join(line.split()) not in shown] == []


def check_export(arguments: list[str], printed: str) -> None:
    """Each file of the manifest is there with as many rows as the manifest says."""
    folder = Path(arguments[3])
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert files and all((folder / name).is_file() for name in files)


def check_convert(arguments: list[str], printed: str) -> None:
    """No row was lost."""
    source, target = (Path(a).read_text().splitlines() for a in arguments[2:4])
    assert len(source) == len(target) > 0


def check_backup(arguments: list[str], printed: str) -> None:
    """A whole database."""
    with sqlite3.connect(arguments[3]) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)


def check_database(arguments: list[str], printed: str) -> None:
    """A project with a database, which holds every item of the file."""
    folder = Path(arguments[3] if arguments[0] == "data" else arguments[1])
    wanted = len(Path(option(arguments, "--items")).read_text().splitlines()) if "--items" in arguments else 0
    with sqlite3.connect(folder / "labels.db") as database:
        assert database.execute("select count(*) from items").fetchone()[0] >= wanted


def check_judge(arguments: list[str], printed: str) -> None:
    """Labels, and the biases that the page promises."""
    folder = Path(option(arguments, "--out"))
    assert json.loads((folder / "judge.json").read_text())["judges"] and (folder / "principles.json").exists()
    assert "position bias" in printed and "longer answer wins" in printed


def check_route(arguments: list[str], printed: str) -> None:
    """Every item has a route, and the queue is there."""
    folder = Path(arguments[1])
    routes = json.loads((folder / "routing.json").read_text())["routes"]
    assert sum(routes.values()) > 0 and (folder / "queue.jsonl").exists()


def check_doctor(arguments: list[str], printed: str) -> None:
    """Findings about the machine; with --conformance a table in which all rows pass."""
    if "--conformance" in arguments:
        assert "RLOO" in printed and "FAIL" not in printed
    else:
        assert "python" in printed and "torch" in printed
    if "--out" in arguments:
        assert "| RLOO" in Path(option(arguments, "--out")).read_text()


def prints(*texts: str) -> Callable[[list[str], str], None]:
    """A check that all texts were printed."""

    def check(arguments: list[str], printed: str) -> None:
        missing = [text for text in texts if text not in printed]
        assert not missing, f"{missing} not in {printed!r}"

    return check


def check_principles(arguments: list[str], printed: str) -> None:
    """The principle that was named, or several."""
    wanted = option(arguments, "--principle") if "--principle" in arguments else "id:"
    assert wanted in printed and "revision" in printed


def check_data(arguments: list[str], printed: str) -> None:
    """Every file is named, and none of its texts."""
    files = [a for a in arguments[2:] if not a.startswith("--")]
    assert all(Path(file).name in printed for file in files)
    texts = [line for file in files for line in re.findall(r'"prompt": "([^"]+)"', Path(file).read_text())]
    assert texts and not [text for text in texts if text in printed]


def check_agreement(arguments: list[str], printed: str) -> None:
    """A line of the statistics, or why there is none."""
    assert re.search("agree|judged", printed)


def check_chat(arguments: list[str], printed: str) -> None:
    """An answer."""
    assert printed.strip()


def check_serve(arguments: list[str], printed: str) -> None:
    """Every model is named, and a page if one was asked for."""
    run = Path(arguments[1]).name
    models = [value for name, value in itertools.pairwise(arguments) if name == "--model"]
    assert all(f"{run}-{model}" in printed for model in models) and "API key: sk-" in printed
    assert ("Chat page: http" in printed) == ("--chat" in arguments)


def put_votes(project: Path) -> None:
    """Comparisons by visitors of the chat page, in place of people."""
    store = LabelStore(Database(f"sqlite:///{project / 'labels.db'}"))
    votes = ChatVotes(store, round_name="chat-1", source="simulated")
    person = votes.visitor(votes.consent("v1"), "v1")
    assert person is not None
    for number, answer in enumerate(sentences(12)):
        answers = (Completion(text=answer, model="a"), Completion(text=answer.split()[0], model="b"))
        shown = Shown(prompt=Prompt.from_text(f"question {number}"), completions=answers, order=(0, 1), details={})
        token = votes.expose(person, "v1", shown)
        assert token is not None
        votes.vote(person, "v1", Ballot(token=token, key=f"key-{number:08}", choice="left"))
    store.database.close()


def check_round(arguments: list[str], printed: str) -> None:
    """The next round is done, and the page shows it."""
    run = Path(arguments[1])
    assert re.search(r"Round \d is done", printed) and '<section id="rounds">' in (run / "report.html").read_text()


def check_lineage(arguments: list[str], printed: str) -> None:
    """The judgements behind a figure."""
    if "--json" in arguments:
        assert json.loads(printed)["judgements"]
    else:
        assert "judgements of round 1" in printed


def check_withdraw(arguments: list[str], printed: str) -> None:
    """A new run, without the person."""
    gone = option(arguments, "--annotator")
    labels = Path(f"{arguments[2]}-without-{gone}") / "stages" / "label" / "judgements.jsonl"
    assert labels.is_file() and gone not in labels.read_text() and "the old run stays as it is" in printed


class ServesOnce:
    """In place of a server: answers one request, and stops."""

    def __init__(self, app: Any, service: Any) -> None:
        self.app, self.models = app, service.models

    def run(self, sockets: list[Any]) -> None:
        with TestClient(self.app) as client:
            assert client.get("/health").json() == {"status": "ok"}
            assert client.get("/v1/models").status_code == 401


def check_init(arguments: list[str], printed: str) -> None:
    """A recipe that loads."""
    written = [p for p in Path().glob("*.yaml") if p.stat().st_size and not p.stem.endswith("constitution")]
    assert written and all(load_recipe(path) for path in written)


def check_model_export(arguments: list[str], printed: str) -> None:
    """A model or adapter in Hugging Face's layout."""
    folder = Path([a for a in arguments[2:] if not a.startswith("--")][1])
    assert {"config.json", "adapter_config.json"} & {path.name for path in folder.iterdir()}


def check_guard(arguments: list[str], printed: str) -> None:
    """A guard that loads, its report, and the table."""
    folder = Path(option(arguments, "--out") if "--out" in arguments else arguments[2])
    assert json.loads((folder / "report.json").read_text())["requests"]["families"]["plain"]
    assert (folder / "report.html").exists() and "harmless twins" in printed


CHECKS: dict[str, Callable[[list[str], str], None]] = {
    "run": check_run,
    "report": check_report,
    "methods": prints("dpo", "apo_zero"),
    "plan": check_plan,
    **dict.fromkeys(("sft", "sample", "label", "reward", "align"), check_stage),
    "eval": check_eval,
    "populations": prints("cohort", "people", "disagree"),
    "chat": check_chat,
    "serve": check_serve,
    "judge": check_judge,
    "route": check_route,
    "constitution check": prints("principles", "version"),
    "constitution show": check_principles,
    "data check": check_data,
    "data convert": check_convert,
    "data export": check_export,
    "data import": check_database,
    "data backup": check_backup,
    "data withdraw": check_withdraw,
    "round": check_round,
    "lineage": check_lineage,
    "annotate": check_database,
    "watch": prints("align: done"),
    "agreement": check_agreement,
    "doctor": check_doctor,
    "init": check_init,
    "model export": check_model_export,
    "guard train": check_guard,
    "guard evaluate": check_guard,
    "guard explain": prints("threshold", "words that move"),
}
"""By command, what must be so after it; a documented command without a check is an error."""

TAKES_RECIPE = {"run", "plan", "report", "sft", "sample", "label", "reward", "align", "eval"}
"""Commands whose first argument is a recipe."""

MAKE = {
    "demo": ["trimtab run recipes/quickstart.yaml"],
    "test": ["ruff check", "pytest"],
    "test-slow": ["pytest -q -m slow"],
    "check": ["ruff check", "lint-imports", "pyright", "sphinx-build", "--fail-on-warning", "pytest"],
    "help": [],
}
"""By target, what `make` must run."""


def run_trimtab(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command line as it stands, with a recipe in it made small, unless it says otherwise itself."""
    name = next((n for n in (" ".join(arguments[:2]), arguments[0]) if n in CHECKS), None)
    assert name is not None, f"no check for `trimtab {shlex.join(arguments)}`; add one to CHECKS"
    line = list(arguments)
    recipe = arguments[1] if is_recipe(arguments) else None
    if recipe is not None:
        given = [value for option, value in itertools.pairwise(arguments) if option == "--set"]
        load_recipe(Path(recipe), given)  # as documented, without what is added here
        removed = {item.partition("=")[0] for item in given if item.endswith("=null")}
        extra = shrink(recipe)
        pairs = zip(extra[::2], extra[1::2], strict=True)
        line += [x for pair in pairs if pair[1].split(".")[0] not in removed for x in pair]
    if name == "annotate":
        line.append("--no-serve")
    if name == "serve":
        line += ["--port", "0"]
    if name == "round":
        put_votes(Path(option(arguments, "--votes")))
    if name == "watch" and "--once" not in line:
        line.append("--once")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.serve.server.draining_server", ServesOnce)
        patch.delenv("TRIMTAB_API_KEY", raising=False)
        code = run_app(line)
    output = capsys.readouterr()
    assert code == 0, f"trimtab {shlex.join(line)} failed: {output.err}"
    CHECKS[name](arguments, output.out + output.err)


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as a user does: these tests may run below a make, whose settings a second one would inherit."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=env)


def run_make(arguments: list[str]) -> None:
    done = make("--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    missing = [text for text in MAKE[arguments[0]] if text not in done.stdout]
    assert not missing, f"make {arguments[0]} does not run {missing}"


def check_pip(arguments: list[str]) -> None:
    """Nothing is installed; what a line names must be what this project has and pins."""
    assert arguments[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = (ROOT / "constraints.txt").read_text() + (ROOT / "Makefile").read_text()
    for word in arguments[1:]:
        if "==" in word:
            assert word in pinned, f"{word} is pinned nowhere else"
        extras = re.search(r"\[(.*)\]", word)
        assert extras is None or set(extras[1].split(",")) <= set(project["optional-dependencies"]), word
        assert not word.startswith("trimtab"), "no package index has trimtab; install from the clone: -e '.[extra]'"


def run_line(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = shlex.split(line)
    if program == "trimtab":
        run_trimtab(arguments, capsys)
    elif program == "python":
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(arguments[0], run_name="__main__")
        assert capsys.readouterr().out.strip(), f"{line!r} printed nothing"
    elif program == "make":
        run_make(arguments)
    elif program == "pip":
        check_pip(arguments)
    else:
        pytest.fail(f"{line!r}: no test knows {program!r}")


def _page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=_page_name)
def test_every_command_works(page, place, quickstart, monkeypatch, capsys):
    for name, content in [*blocks(page, "jsonl"), *blocks(page, "csv")]:
        (place / name).write_text(content)
    if any(f" {QUICKSTART}" in f" {line}" or "runs/quickstart" in line for line in commands(page)):
        shutil.copytree(quickstart, place / "runs")
    for line in commands(page):
        run_line(line, monkeypatch, capsys)


def test_python_of_the_readme_runs(place, capsys):
    [(_, code)] = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("page", PAGES, ids=_page_name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")) or path.endswith(".png"):
            continue
        goal = page.parent / path if path else page
        assert goal.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(goal), f"{page.name}: {target}"


def test_the_readme_installs_before_line_40_and_measures_nothing_before_that():
    """A reader first learns what this is and how to get it; figures come later."""
    before = README.split("\n## Install\n")[0]
    assert len(before.splitlines()) < 40
    assert not re.findall(r"\d+ ?%|\d+ min|\d+ seconds|\[\d+, \d+\]", before)
    assert before.count("](docs/images/") == 1, "one picture"


def test_the_front_page_leads_to_the_questions_of_a_newcomer():
    """Each answer is one link away from the front page, at the heading that has it."""
    front = (DOCS / "index.md").read_text()
    for link, text in {
        "explanation/methods-and-papers.md#online-methods": "Ahmadian et al. 2024",
        "reference/algorithms.md#rloo_advantage": "2402.14740",
        "explanation/kl-estimators.md#per-token-estimators-in-the-loss": "the reverse divergence KL(ref‖π)",
        "explanation/click-to-gradient.md": "preferences.jsonl",
        "reference/metrics.md#explained_variance": "Var(returns − values) / Var(returns)",
        "explanation/design.md#where-settings-are-checked": "check_recipe",
    }.items():
        assert f"({link})" in front, link
        path, _, anchor = link.partition("#")
        assert text in section(DOCS / path, anchor), f"{link} does not say {text!r}"
    assert "contributing.md#add-a-method" in front
    assert "rl_config.py" in section(ROOT / "CONTRIBUTING.md", "add-a-method")


def section(page: Path, anchor: str) -> str:
    """A page from a heading to the next one of the same level or above; the whole page without an anchor."""
    text = page.read_text()
    if not anchor:
        return text
    parts = re.split(r"^(#+) (.*)$", text, flags=re.M)
    for place in range(1, len(parts), 3):
        if slug(parts[place + 1]) == anchor:
            found = parts[place + 2]
            for later in range(place + 3, len(parts), 3):
                if len(parts[later]) <= len(parts[place]):
                    break
                found += parts[later + 1] + parts[later + 2]
            return found
    raise AssertionError(f"{page.name} has no heading {anchor}")


def test_every_target_of_make_has_a_help_text():
    done = make("help")
    assert done.returncode == 0, done.stderr
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert targets is not None
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == sorted(targets[1].split())


def test_ci_runs_make_check():
    assert re.findall(r"^make .*$", (ROOT / ".ci" / "run").read_text(), flags=re.M) == ["make check"]


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    text = page.read_text()
    if page.resolve() == DOCS / "contributing.md":  # shows the file of that name in the root
        text = (ROOT / "CONTRIBUTING.md").read_text()
    return {slug(head) for head in re.findall(r"^#+ (.*)$", text, flags=re.M)}


def slug(head: str) -> str:
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")


def test_the_reference_is_what_the_code_says(capsys):
    main = runpy.run_path(str(DOCS / "generate.py"))["main"]
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_every_command_is_in_the_readme():
    def paths(command, name):
        inner = getattr(command, "commands", {})
        return [path for n, c in inner.items() for path in paths(c, f"{name} {n}")] or [name]

    documented = re.findall(r"^\| `(trimtab [a-z ]+[a-z])", README, flags=re.M)
    assert sorted(documented) == sorted(paths(get_command(app), "trimtab"))


def test_every_section_of_a_recipe_is_documented():
    table = section(DOCS / "how-to" / "recipes.md", "sections")
    assert re.findall(r"^\| `(\w+)` \| [^|]*\|$", table, flags=re.M) == list(RunConfig.model_fields)


def test_every_exit_code_is_documented():
    table = section(DOCS / "how-to" / "troubleshooting.md", "exit-codes")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.M)}
    raised = {c.exit_code for c in vars(errors).values() if isinstance(c, type)}
    assert documented == raised | {0, 70}


def test_every_format_is_documented_and_its_row_is_read(tmp_path):
    table = section(DOCS / "how-to" / "your-data.md", "formats")
    rows = re.findall(r"^\| `([\w-]+)` \| `(\{.*\})` \| ([\w, ]+) \|$", table, flags=re.M)
    assert sorted(name for name, _, _ in rows) == sorted(FORMATS)
    for name, row, kinds in rows:
        file = tmp_path / f"{name}.jsonl"
        file.write_text(row + "\n")
        for kind in kinds.split(", "):
            loaded = load(file, kind=KINDS[kind.lower()])
            assert (loaded.format, len(loaded.records), loaded.refused) == (name, 1, ()), name


def test_every_stage_is_in_the_first_tutorial():
    table = section(DOCS / "tutorials" / "researcher.md", "run-the-demo")
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.M) == [stage.name for stage in STAGES]


def test_decisions_are_numbered_and_listed():
    files = sorted(p.name for p in (DOCS / "decisions").glob("0*.md"))
    numbers = [int(name[:4]) for name in files]
    assert len(set(numbers)) == len(numbers)
    listed = re.findall(r"^(\d+)\. \[(.*)\]\((.*)\)$", (DOCS / "decisions" / "README.md").read_text(), flags=re.M)
    assert [name for _, _, name in listed] == files
    for number, title, name in listed:
        text = (DOCS / "decisions" / name).read_text()
        assert text.startswith(f"# {number}. {title}\n")
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, flags=re.M) == ["Context", "Decision", "Consequences"]


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_recipes_are_named_like_their_files(recipe):
    assert load_recipe(recipe).name == recipe.stem


def test_tests_that_documents_name_exist():
    written = "".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert named and [name for name in sorted(named) if f"def {name}(" not in written] == []


def test_nothing_of_one_machine_is_in_the_documents():
    for page in PAGES:
        assert str(ROOT) not in page.read_text(), page.name
