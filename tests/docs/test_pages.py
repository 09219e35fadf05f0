"""The documents tell the truth: links lead somewhere, and nothing is left out."""

import re
import runpy

import pytest
from typer.main import get_command

from trimtab import errors
from trimtab.cli.app import app
from trimtab.pipeline.config import RunConfig, load_recipe
from trimtab.pipeline.stages import STAGES
from trimtab.records import KINDS, load
from trimtab.records.formats import FORMATS

from .pages import DOCS, PAGES, README, ROOT, anchors, make, page_name, section


@pytest.mark.parametrize("page", PAGES, ids=page_name)
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


def test_every_target_of_make_has_a_help_text():
    done = make("help")
    assert done.returncode == 0, done.stderr
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert targets is not None
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == sorted(targets[1].split())


def test_ci_runs_make_check():
    assert re.findall(r"^make .*$", (ROOT / ".ci" / "run").read_text(), flags=re.M) == ["make check"]


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
