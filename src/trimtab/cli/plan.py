"""``trimtab plan RECIPE``: what a run would do, without training."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.cli.run import Json, Recipe, Runs, Set


def plan(
    recipe: Recipe,
    set: Set = None,
    machine: Annotated[
        str | None,
        typer.Option(
            "--machine", help="Predict time and memory for cpu, 24gb, 80gb, h200 or h200x8 instead of this machine."
        ),
    ] = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Show what a run would do: stages, data, updates, tokens, estimates of time and memory, the objective.

    Example: trimtab plan recipe.yaml --set align.steps=10
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from trimtab.pipeline.config import load_recipe
    from trimtab.pipeline.plan import make_plan

    made = make_plan(load_recipe(recipe, set), recipe, runs, machine=machine)
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    console = Console()
    table = Table(title=f"{made['name']}: what a run would do")
    columns = ["stage", "state", "what", "updates", "tokens", "about"]
    if machine is not None:
        columns += ["drawing", "GB"]
    for column in columns:
        table.add_column(column, justify="left" if column in ("stage", "state", "what") else "right")
    for row in made["stages"]:
        table.add_row(
            row["stage"] if made["rounds"] == 1 else f"{row['round']}: {row['stage']}",
            row["state"],
            escape(row["what"]),
            f"{row['updates']:,}" if row["updates"] else "",
            f"{row['tokens']:,}" if row["tokens"] else "",
            f"{row['seconds'] / 60:.1f} min" if row["seconds"] >= 1 else "",
            *([] if machine is None else _on_machine(row, made["memory_of_stages_gb"])),
        )
    console.print(table)
    for line in made["objective"]:
        console.print(escape(line), highlight=False, soft_wrap=True)
    console.print(escape(made["estimate"]), highlight=False, soft_wrap=True)
    for line in made["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(line)}", highlight=False, soft_wrap=True)


def _on_machine(row: dict[str, Any], memory: dict[str, float]) -> tuple[str, str]:
    """Minutes of drawing answers, and memory, of a stage."""
    gb = memory.get(row["stage"])
    minutes = f"{row['drawing_seconds'] / 60:.1f} min" if row["drawing_seconds"] >= 1 else ""
    return minutes, "" if gb is None else f"{gb:.1f}"
