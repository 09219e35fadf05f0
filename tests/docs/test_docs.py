"""What the documents say exists: commands, options, make targets, recipes and links."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from trimtab.cli.app import app
from trimtab.pipeline.config import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINES = [
    (page.name, line.removeprefix("$ "))
    for page in PAGES
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), flags=re.S)
    for line in block.splitlines()
    if line.strip()
]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[line for _, line in LINES])
def test_every_command_in_the_docs(page, line, monkeypatch, capsys):
    words = shlex.split(line)
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif words[0] == "trimtab":
        monkeypatch.chdir(ROOT)
        if words[1:3] == ["data", "check"]:
            from trimtab.cli.app import run_app

            assert run_app(words[1:]) == 0
            return
        command = get_command(app).commands[words[1]]  # type: ignore[attr-defined]
        with command.make_context(words[1], words[2:]) as context:
            recipe = context.params.get("recipe")
            if recipe is not None:
                load_recipe(recipe, context.params.get("set"))
    else:
        assert words[0] in ("pip", "python"), f"{page}: {line!r} starts with a program no test knows"


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_command_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [name for name in get_command(app).commands if name not in readme] == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_recipes_that_ship_are_valid(recipe):
    assert load_recipe(recipe).name == recipe.stem
