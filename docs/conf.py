"""Sphinx settings: ``make docs`` builds and serves the site, ``make check`` builds it with warnings as errors."""

import os
import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

_project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = _project["name"]
author = _project["authors"][0]["name"]
release = version = _project["version"]

extensions = ["myst_parser", "sphinx_design"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # rows of JSON are cut with … where that helps the reader

html_theme = "pydata_sphinx_theme"
html_title = "trimtab"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


_OUTSIDE = {
    "contributing": "CONTRIBUTING.md",
    "changes": "CHANGELOG.md",
    "reference/recipe-data": "recipes/data/README.md",
}
"""Pages whose text is a file outside this folder."""


def _show_outside_file(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the file in the place of its page, with links that start at the page's folder."""
    if docname in _OUTSIDE:
        root = Path(__file__).parents[1]
        file, page = root / _OUTSIDE[docname], root / "docs" / docname

        def link(match: re.Match[str]) -> str:
            return "](" + os.path.relpath(file.parent / match[1], page.parent)

        source[0] = re.sub(r"\]\((?!https?:|#)([^)#\s]+)", link, file.read_text(encoding="utf-8"))


def _link_papers(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make arXiv numbers links on the pages of explanations, whose text is prose and tables."""
    if docname.startswith("explanation/"):
        source[0] = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source[0])


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", _show_outside_file)
    app.connect("source-read", _link_papers)
