"""``trimtab run RECIPE`` and the commands that run it up to one stage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Recipe = Annotated[Path, typer.Argument(help="A recipe, for example recipes/quickstart.yaml.", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. align.steps=10.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds all runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print a summary as JSON on standard output.")]


def run(
    recipe: Recipe,
    set: Set = None,
    until: Annotated[str | None, typer.Option("--until", help="Last stage to run.")] = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Run a recipe, stage by stage; what is done is skipped, what was interrupted continues."""
    execute(recipe, set, until=until, runs=runs, as_json=as_json)


def execute(
    recipe: Path, overrides: list[str] | None, *, until: str | None, runs: Path, as_json: bool, again: bool = False
) -> None:
    """Load, run, and say where things lie.

    Args:
        recipe: path of the recipe.
        overrides: ``key=value`` settings.
        until: last stage; None: all.
        runs: folder of all runs.
        as_json: summary on standard output.
        again: run the last stage even if it is done.
    """
    from trimtab.pipeline.config import load_recipe
    from trimtab.pipeline.run import run_recipe

    config = load_recipe(recipe, overrides)
    folder = run_recipe(config, recipe, runs=runs, until=until, again=again)
    page = folder.path / "report.html"
    if as_json:
        typer.echo(json.dumps(summary(folder.path), indent=2))
    elif page.exists() and until in (None, "report"):
        typer.echo(f"Open {page} in a browser.", err=True)


def summary(path: Path) -> dict[str, Any]:
    """What a script wants to know about a run."""
    stages = {}
    for file in sorted((path / "stages").glob("*/status.json")):
        status = json.loads(file.read_text())
        stages[status["stage"]] = {k: status[k] for k in ("state", "fingerprint", "seconds", "counts", "memory_gb")}
    evaluation = path / "stages" / "evaluate" / "evaluation.json"
    result = json.loads(evaluation.read_text()) if evaluation.exists() else {}
    page = path / "report.html"
    return {
        "run": str(path),
        "stages": stages,
        "win_rates": result.get("win_rates"),
        "report": str(page) if page.exists() else None,
    }


def _single(stage: str, text: str) -> Callable[..., None]:
    def command(recipe: Recipe, set: Set = None, runs: Runs = Path("runs"), as_json: Json = False) -> None:
        execute(recipe, set, until=stage, runs=runs, as_json=as_json, again=stage == "report")

    command.__doc__ = text
    return command


SINGLE = {
    "sft": _single("sft", "Run a recipe up to supervised fine-tuning."),
    "sample": _single("sample", "Run a recipe up to the sampled answers."),
    "label": _single(
        "label", "Run a recipe up to the judgements: simulated annotators, people, AI judges, or judges and people."
    ),
    "reward": _single("reward", "Run a recipe up to the reward model."),
    "align": _single("align", "Run a recipe up to the aligned policy (PPO)."),
    "eval": _single("evaluate", "Run a recipe up to the held-out evaluation."),
    "report": _single("report", "Run a recipe to the end and write its report page again."),
}
"""Commands that stop after one stage."""
