"""The documents, and what is in them: blocks, commands, headings."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "recipes").rglob("*.md")])
README = (ROOT / "README.md").read_text()


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language: what follows it on the fence, and the content."""
    return re.findall(rf"^```{language} *([^\n]*)\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def commands(page: Path) -> list[str]:
    lines = [line for _, block in blocks(page, "console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    text = page.read_text()
    if page.resolve() == DOCS / "contributing.md":  # shows the file of that name in the root
        text = (ROOT / "CONTRIBUTING.md").read_text()
    return {slug(head) for head in re.findall(r"^#+ (.*)$", text, flags=re.M)}


def slug(head: str) -> str:
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")


def section(page: Path, anchor: str) -> str:
    """A page from a heading to the next one of the same level or above; the whole page without an anchor."""
    text = page.read_text()
    if not anchor:
        return text
    parts = re.split(r"^(#+) (.*)$", text, flags=re.M)
    for place in range(1, len(parts), 3):
        if slug(parts[place + 1]) == anchor:
            content = parts[place + 2]
            for later in range(place + 3, len(parts), 3):
                if len(parts[later]) <= len(parts[place]):
                    break
                content += parts[later + 1] + parts[later + 2]
            return content
    raise AssertionError(f"{page.name} has no heading {anchor}")


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as a user does: these tests may run below a make, whose settings a second one would inherit."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=env)
