"""``trimtab run RECIPE``, and the plain commands that stop after one stage."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Recipe = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, for example recipes/quickstart.yaml.", show_default=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, for example align.steps=10; can be repeated."),
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print a summary as JSON on standard output.")]


def run(
    recipe: Recipe,
    set: Set = None,
    until: Annotated[str | None, typer.Option("--until", help="Stop after this stage.")] = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Run a recipe. Finished stages are skipped; an interrupted stage continues.

    Example: trimtab run recipes/quickstart.yaml --set align.steps=10
    """
    execute(recipe, set, until=until, runs=runs, as_json=as_json)


def execute(
    recipe: Path, overrides: list[str] | None, *, until: str | None, runs: Path, as_json: bool, again: bool = False
) -> None:
    """Load a recipe, run it and print where the results are.

    Args:
        recipe: path of the recipe.
        overrides: ``key=value`` settings.
        until: last stage; None: all.
        runs: folder of all runs.
        as_json: print a summary on standard output.
        again: run the last stage even if it is done.
    """
    from trimtab.pipeline.config import load_recipe
    from trimtab.pipeline.run import run_recipe
    from trimtab.pipeline.scale import launch, run_arguments, starts_ranks

    config = load_recipe(recipe, overrides)
    if starts_ranks(config.scale):
        code = launch(config.scale, run_arguments(recipe, overrides or [], runs, until))
        if code:
            raise typer.Exit(code)
        if again:
            run_recipe(config, recipe, runs=runs, until=until, again=True, alone=True)
        if not as_json:  # the first rank said where the report is
            return
        folder = runs / config.name
    else:
        folder = run_recipe(config, recipe, runs=runs, until=until, again=again).path
    if os.environ.get("RANK", "0") != "0":
        raise typer.Exit  # the first rank does what follows
    page = folder / "report.html"
    if as_json:
        typer.echo(json.dumps(summary(folder), indent=2))
    elif page.exists() and until in (None, "report"):
        typer.echo(f"Open {page} in a browser.", err=True)


def summary(path: Path) -> dict[str, Any]:
    """A run's stages, win rates and report, for scripts."""
    from trimtab.storage import RunFolder

    page = path / "report.html"
    first, *later = RunFolder(path, create=False).rounds()
    made = {"run": str(path)} | _results(first.path) | {"report": str(page) if page.exists() else None}
    return made | ({"rounds": {r.number: _results(r.path) for r in later}} if later else {})


def _results(path: Path) -> dict[str, Any]:
    """Stages and win rates of one round."""
    from trimtab.storage import RunFolder, read_json

    stages = {}
    for file in sorted((path / "stages").glob("*/status.json")):
        status = RunFolder(path, create=False).status(file.parent.name)
        if status is not None:  # a damaged one is not finished, and another run makes it anew
            shown = ("state", "fingerprint", "seconds", "counts", "memory_gb")
            stages[status.stage] = {name: getattr(status, name) for name in shown}
    evaluation = path / "stages" / "evaluate" / "evaluation.json"
    result = read_json(evaluation) if evaluation.exists() else {}
    return {"stages": stages, "win_rates": result.get("win_rates")}


def up_to(stage: str, text: str) -> Callable[..., None]:
    """The command that runs a recipe up to one stage; ``text``: its help."""

    def command(recipe: Recipe, set: Set = None, runs: Runs = Path("runs"), as_json: Json = False) -> None:
        execute(recipe, set, until=stage, runs=runs, as_json=as_json)

    command.__doc__ = text
    return command
