"""``trimtab plan RECIPE``: what a run would do, without training."""

import json
from pathlib import Path

import typer

from trimtab.cli.run import Json, Recipe, Runs, Set


def plan(recipe: Recipe, set: Set = None, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Show what a run would do: stages, data, updates, tokens, estimates of time and memory, the objective.

    Example: trimtab plan recipe.yaml --set align.steps=10
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from trimtab.pipeline.config import load_recipe
    from trimtab.pipeline.plan import make_plan

    made = make_plan(load_recipe(recipe, set), recipe, runs)
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    console = Console()
    table = Table(title=f"{made['name']}: what a run would do")
    for column in ("stage", "state", "what", "updates", "tokens", "about"):
        table.add_column(column, justify="right" if column in ("updates", "tokens", "about") else "left")
    for row in made["stages"]:
        table.add_row(
            row["stage"] if made["rounds"] == 1 else f"{row['round']}: {row['stage']}",
            row["state"],
            escape(row["what"]),
            f"{row['updates']:,}" if row["updates"] else "",
            f"{row['tokens']:,}" if row["tokens"] else "",
            f"{row['seconds'] / 60:.1f} min" if row["seconds"] >= 1 else "",
        )
    console.print(table)
    for line in made["objective"]:
        console.print(escape(line), highlight=False, soft_wrap=True)
    console.print(escape(made["estimate"]), highlight=False, soft_wrap=True)
    for line in made["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(line)}", highlight=False, soft_wrap=True)
