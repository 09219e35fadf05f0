"""The command line: one file per command, heavy imports inside functions."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from trimtab.cli import data
from trimtab.errors import TrimtabError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(data.app, name="data")

Recipe = Annotated[Path, typer.Argument(help="A recipe, for example recipes/quickstart.yaml.")]
Set = Annotated[list[str], typer.Option("--set", help="Override a setting: key.path=value.")]
Runs = Annotated[Path, typer.Option(help="Folder of all runs.")]


@app.command()
def run(
    recipe: Recipe,
    set: Set = [],  # noqa: A002, B006
    until: Annotated[str | None, typer.Option(help="Last stage to run.")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Run a recipe: every stage that is not done, in order; resumable."""
    from trimtab.pipeline.config import load_recipe
    from trimtab.pipeline.run import run_recipe

    run_recipe(load_recipe(recipe, set), recipe, runs=runs, until=until)


def main() -> None:
    """Entry point."""
    debug = "--debug" in sys.argv or bool(os.environ.get("TRIMTAB_DEBUG"))
    args = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        app(args=args)
    except TrimtabError as error:
        if debug:
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(error.exit_code)
