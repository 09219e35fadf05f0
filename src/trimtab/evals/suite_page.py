"""The page of a comparison on suites: one self-contained ``suites.html``, and ``suites.json``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.evals.page import page_environment, page_style
from trimtab.evals.suite_results import SuiteResults, SuiteRow, change_text, value_text
from trimtab.files import write_atomic
from trimtab.metrics import SUITES


def write_suites(results: SuiteResults, folder: Path, *, created_at: str, made: Mapping[str, str]) -> Path:
    """Write ``suites.json`` and ``suites.html``.

    Args:
        results: what to show.
        folder: folder of both files.
        created_at: time, ISO 8601 in UTC.
        made: facts about how the results were made, by title.

    Returns:
        the path of the page.
    """
    write_atomic(folder / "suites.json", results.model_dump_json(indent=2) + "\n")
    page = folder / "suites.html"
    write_atomic(page, render_suites(results, created_at=created_at, made=made))
    return page


def render_suites(results: SuiteResults, *, created_at: str, made: Mapping[str, str]) -> str:
    """The page as one HTML text."""
    return (
        page_environment(Path(__file__).parent)
        .get_template("suites.html.jinja")
        .render(
            results=results,
            headline=suites_headline(results),
            partial=[note for note in results.notes if note.startswith("PARTIAL")],
            created_at=created_at,
            made=made,
            **table_parts(results),
            **page_style(),
        )
    )


def table_parts(results: SuiteResults) -> dict[str, Any]:
    """What the tables of ``suite_tables.jinja`` need in addition to the results."""
    suites: dict[str, list[SuiteRow]] = {}
    for row in results.rows:
        suites.setdefault(row.suite, []).append(row)
    return {"suites": suites, "metrics": SUITES, "value_text": value_text, "change_text": change_text}


def suites_headline(results: SuiteResults) -> str:
    """One sentence: on how many measures each model differs from the first, with an interval that excludes zero."""
    first, *later = results.models
    if not later:
        return f"{first} on {len(results.sources)} suites."
    counts = []
    for index, model in enumerate(later):
        changes = [row.changes[index] for row in results.rows]
        clear_changes = sum(c.low is not None and c.high is not None and (c.low > 0 or c.high < 0) for c in changes)
        counts.append(f"{model} on {clear_changes}")
    return f"Of {len(results.rows)} measures, {first} differs clearly from {' and from '.join(counts)}."
