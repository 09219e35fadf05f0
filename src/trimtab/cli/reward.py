"""``trimtab reward RECIPE``: the reward model, and how good it is."""

import json
from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.run import Json, Recipe, Runs, Set, execute


def reward(
    recipe: Recipe,
    set: Set = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            metavar="FILE",
            help="Then measure the reward model on a file of preferences or of RewardBench 2, or on heldout, the "
            "preferences kept out of training; or the process reward model on a file of judged steps (ProcessBench, "
            "PRMBench).",
        ),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option("--by", metavar="KEY", help="With --evaluate: accuracy for each value of this metadata key."),
    ] = None,
) -> None:
    """Run a recipe up to the reward model; with --evaluate, compare it with simple baselines.

    Example: trimtab reward recipe.yaml --evaluate heldout
    """
    from trimtab.errors import ConfigError
    from trimtab.pipeline.config import load_recipe

    if slices is not None and evaluate is None:
        raise ConfigError("--by splits the results of --evaluate; add --evaluate FILE or --evaluate heldout")
    if evaluate is None:
        execute(recipe, set, until="reward", runs=runs, as_json=as_json)
        return
    from trimtab.pipeline.process_evaluation import evaluate_process, process_lines, process_source

    config = load_recipe(recipe, set)
    steps = process_source(config, recipe, evaluate)
    if steps and slices is not None:
        raise ConfigError(f"--by splits preferences, and {evaluate} has judged steps; leave --by out")
    execute(recipe, set, until="process" if steps else "reward", runs=runs, as_json=False)
    from trimtab.pipeline.memory import fit_memory
    from trimtab.pipeline.reward_evaluation import evaluate_reward, evaluation_lines
    from trimtab.storage import RunFolder

    run = RunFolder(runs / config.name, create=False).round(config.rounds)
    with run.lock():
        if steps:
            written = evaluate_process(fit_memory(config), recipe, run, evaluate)
            lines = process_lines(written)
        else:
            result = evaluate_reward(fit_memory(config), recipe, run, evaluate, slice_by=slices)
            written, lines = result.as_json(), evaluation_lines(result)
    if as_json:
        typer.echo(json.dumps(written, indent=2))
        return
    for line in lines:
        typer.echo(line)
    typer.echo(f"Written to {run.path / 'reward-evaluation'}.", err=True)
