"""``trimtab methods``: which method of alignment fits which data."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from trimtab.cli.run import Json


def methods(
    data: Annotated[
        str | None,
        typer.Option("--data", help="Only methods that learn from this: pairs, rankings, thumbs or prompts."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the alignment methods: what each learns from, its cost and its weaknesses; * marks those to start with.

    Example: trimtab methods --data pairs
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from trimtab.errors import ConfigError
    from trimtab.trainers.choosing import ORDER, choices

    rows = [c for c in choices() if data is None or c.data.startswith(data)]
    if not rows:
        raise ConfigError(f"--data is {data!r}; the methods learn from {', '.join(ORDER)}")
    if as_json:
        typer.echo(json.dumps([asdict(c) for c in rows], indent=2, ensure_ascii=False))
        return
    table = Table(title="align.method (* to start with)")
    table.add_column("method", no_wrap=True)
    for column in ("learns from", "costs", "known to do wrong"):
        table.add_column(column, overflow="fold")
    for c in rows:
        data = f"{c.data}, also soft labels" if c.soft_labels else c.data
        table.add_row(f"{'*' if c.start else ' '} {c.method}", data, escape(c.cost), escape(c.flaw))
    Console().print(table)
