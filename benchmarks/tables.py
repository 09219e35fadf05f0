"""Measured tables in documents: a block between two marks is replaced by what a benchmark found."""

from collections.abc import Sequence
from pathlib import Path


def replace_table(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put lines between ``<!-- name -->`` and ``<!-- /name -->`` of a page."""
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if start not in text or end not in text:
        raise SystemExit(f"{page}: no marks <!-- {name} --> and <!-- /{name} --> to write between")
    head, rest = text.split(start, 1)
    tail = rest.split(end, 1)[1]
    body = "\n".join(lines)
    page.write_text(f"{head}{start}{body}\n{end}{tail}", encoding="utf-8")
