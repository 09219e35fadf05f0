"""The documents tell the truth: their commands run, their links lead somewhere, nothing is left out.

Every line of every ```console block runs, page by page, in a folder of its own. There the default model is a tiny
random one, and recipes are shrunk to seconds; `make` is only asked what it would do.
"""

import gzip
import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from trimtab import errors
from trimtab.cli.app import app, run_app
from trimtab.conformance.experiments import estimators
from trimtab.models import embedded
from trimtab.pipeline.config import RunConfig, load_recipe
from trimtab.records import KINDS, load
from trimtab.records.formats import FORMATS
from trimtab.testing import save_model, sentences, tiny_model

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "recipes").rglob("*.md")])
GUIDE = (DOCS / "guide.md").read_text()
README = (ROOT / "README.md").read_text()

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
    asked, good, bad = sentences(64, words=4), sentences(64, start=300), sentences(64, start=600)
    with gzip.open(hh, "wt") as file:
        for question, chosen, rejected in zip(asked, good, bad, strict=True):
            head = f"\n\nHuman: {question}\n\nAssistant: "
            file.write(json.dumps({"chosen": head + chosen, "rejected": head + rejected}) + "\n")
    # The table's own tests are in tests/conformance; here its first rows stand for all.
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


def run_trimtab(arguments: list[str]) -> None:
    """Run a command line as it stands, with a recipe in it made small, unless it says otherwise itself."""
    recipe = next((a for a in arguments if a.endswith(".yaml")), None)
    if recipe is not None:
        given = [value for option, value in itertools.pairwise(arguments) if option == "--set"]
        load_recipe(Path(recipe), given)  # as documented, without what is added here
        removed = {item.partition("=")[0] for item in given if item.endswith("=null")}
        extra = shrink(recipe)
        pairs = zip(extra[::2], extra[1::2], strict=True)
        arguments = arguments + [x for pair in pairs if pair[1].split(".")[0] not in removed for x in pair]
    assert run_app(arguments) == 0, f"trimtab {shlex.join(arguments)} failed"


def run_make(arguments: list[str]) -> None:
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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


def run_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = shlex.split(line)
    if program == "trimtab" and arguments[0] == "annotate":
        run_trimtab([*arguments, "--no-serve"])
    elif program == "trimtab":
        run_trimtab(arguments)
    elif program == "python":
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(arguments[0], run_name="__main__")
    elif program == "make":
        run_make(arguments)
    elif program == "pip":
        check_pip(arguments)
    else:
        pytest.fail(f"{line!r}: no test knows {program!r}")


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.name)
def test_every_command_runs(page, place, monkeypatch, capsys):
    for name, content in [*blocks(page, "jsonl"), *blocks(page, "csv")]:
        (place / name).write_text(content)
    for line in commands(page):
        run_line(line, monkeypatch)
        capsys.readouterr()


def test_python_of_the_readme_runs(place, capsys):
    [(_, code)] = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")) or path.endswith(".png"):
            continue
        goal = page.parent / path if path else page
        assert goal.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(goal), f"{page.name}: {target}"


def test_the_readme_has_no_placeholders():
    assert re.findall(r"«\w+»", README) == []


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_reference_is_what_the_code_says(capsys):
    main = runpy.run_path(str(DOCS / "generate.py"))["main"]
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_every_command_is_in_the_readme():
    def paths(command, name):
        inner = getattr(command, "commands", {})
        return [path for n, c in inner.items() for path in paths(c, f"{name} {n}")] or [name]

    documented = re.findall(r"^\| `(trimtab [a-z ]+[a-z])", README, flags=re.M)
    assert sorted(documented) == sorted(paths(get_command(app), "trimtab"))


def test_every_section_of_a_recipe_is_in_the_guide():
    assert re.findall(r"^\| `(\w+)` \| [^|]*\|$", GUIDE.split("## Recipes")[1].split("\n## ")[0], flags=re.M) == list(
        RunConfig.model_fields
    )


def test_every_exit_code_is_in_the_guide():
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", GUIDE, flags=re.M)}
    raised = {c.exit_code for c in vars(errors).values() if isinstance(c, type)}
    assert documented == raised | {0, 70}


def test_every_format_is_in_the_guide_and_its_row_is_read(tmp_path):
    rows = re.findall(r"^\| `([\w-]+)` \| `(\{.*\})` \| ([\w, ]+) \|$", GUIDE, flags=re.M)
    assert sorted(name for name, _, _ in rows) == sorted(FORMATS)
    for name, row, kinds in rows:
        file = tmp_path / f"{name}.jsonl"
        file.write_text(row + "\n")
        for kind in kinds.split(", "):
            loaded = load(file, kind=KINDS[kind.lower()])
            assert (loaded.format, len(loaded.records), loaded.refused) == (name, 1, ()), name


def test_every_stage_is_in_the_guide():
    from trimtab.pipeline.stages import STAGES

    first = GUIDE.split("\n## ")[1]
    assert re.findall(r"^\| `(\w+)` \|", first, flags=re.M) == [stage.name for stage in STAGES]


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
