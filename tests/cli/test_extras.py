"""Commands run with the packages of the extra that the documentation names for them, and no others."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
EXTRAS = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MODULES = {
    "argon2-cffi": "argon2",
    "markdown-it-py": "markdown_it",
    "prometheus-client": "prometheus_client",
    "psycopg": "psycopg",
    "python-multipart": "multipart",
    "scikit-learn": "sklearn",
}
"""Modules whose name differs from their distribution's."""
RUN = """
import sys
from importlib.machinery import PathFinder
missing, arguments = set(sys.argv[1].split(",")), sys.argv[2:]
find = PathFinder.find_spec
def absent(name, path=None, target=None):
    return None if name.partition(".")[0] in missing else find(name, path, target)
PathFinder.find_spec = staticmethod(absent)
from trimtab.cli.app import run_app
sys.exit(run_app(arguments))
"""


def modules(extra: str) -> set[str]:
    """Top-level modules that an extra brings, those of the extras it includes too."""
    brought: set[str] = set()
    for requirement in EXTRAS[extra]:
        name = requirement.partition(">")[0].partition("=")[0].strip()
        if name.startswith("trimtab["):
            for other in name.removeprefix("trimtab[").removesuffix("]").split(","):
                brought |= modules(other)
        else:
            name = name.partition("[")[0]
            brought.add(MODULES.get(name, name))
    return brought


@pytest.mark.parametrize(
    ("extra", "arguments", "says"),
    [
        ("train", ["plan", "recipes/quickstart.yaml"], "what a run would do"),
        ("web", ["agreement", "nowhere"], "nowhere"),
        ("web", ["watch", "nowhere"], "nowhere"),
        ("serve", ["serve", "nowhere"], "nowhere"),
        ("guard", ["guard", "explain", "nowhere", "text"], "nowhere"),
    ],
)
def test_a_command_needs_only_its_extra(extra: str, arguments: list[str], says: str) -> None:
    optional = set().union(*(modules(name) for name in ("train", "data", "web", "serve", "guard", "postgresql")))
    missing = optional - modules(extra)
    done = subprocess.run(
        [sys.executable, "-c", RUN, ",".join(sorted(missing)), *arguments],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    output = done.stdout + done.stderr
    assert "is not installed" not in output
    assert says in output, output
