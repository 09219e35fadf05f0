"""``trimtab report RECIPE`` and ``trimtab report RUN...``: the page of a run, or of several."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.run import Json, Runs, Set, execute


def report(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECIPE | RUN...",
            help="A recipe; or run folders (runs/NAME), up to four, for one page about all of them.",
            show_default=False,
        ),
    ],
    set: Set = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File for the page about run folders.")] = Path(
        "comparison.html"
    ),
) -> None:
    """Run a recipe to the end and write its report again; or compare runs, finished or not, on one page.

    Example: trimtab report runs/quickstart runs/other
    """
    from trimtab.errors import ConfigError

    if len(targets) == 1 and not targets[0].is_dir():
        execute(targets[0], set, until="report", runs=runs, as_json=as_json, again=True)
        return
    if set or as_json:
        raise ConfigError("--set and --json are for a recipe, not for run folders")
    from trimtab.pipeline.run_comparison import write_comparison

    typer.echo(f"Open {write_comparison(targets, out)} in a browser.", err=True)
