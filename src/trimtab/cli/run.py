"""``trimtab run RECIPE``, and the commands that stop after one stage."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

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
    from trimtab.pipeline.scale import ScaleConfig, launch, run_arguments, starts_ranks

    config = load_recipe(recipe, overrides)
    if starts_ranks(config.scale):
        code = launch(config.scale, run_arguments(recipe, overrides or [], runs, until))
        if code:
            raise typer.Exit(code)
        if again:
            alone = config.model_copy(update={"scale": ScaleConfig()})
            run_recipe(alone, recipe, runs=runs, until=until, again=True)
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
    stages = {}
    for file in sorted((path / "stages").glob("*/status.json")):
        status = json.loads(file.read_text())
        stages[status["stage"]] = {k: status[k] for k in ("state", "fingerprint", "seconds", "counts", "memory_gb")}
    evaluation = path / "stages" / "evaluate" / "evaluation.json"
    result = json.loads(evaluation.read_text()) if evaluation.exists() else {}
    return {"stages": stages, "win_rates": result.get("win_rates")}


def _single(stage: str, text: str) -> Callable[..., None]:
    def command(recipe: Recipe, set: Set = None, runs: Runs = Path("runs"), as_json: Json = False) -> None:
        execute(recipe, set, until=stage, runs=runs, as_json=as_json)

    command.__doc__ = text
    return command


def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE | MODEL...",
            help="A recipe; or, for suites, checkpoints: model folders, hub ids, run folders (runs/NAME) or one model "
            "of a run (runs/NAME:sft).",
            show_default=False,
        ),
    ],
    set: Set = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
    blind: Annotated[
        Path | None,
        typer.Option(
            "--blind",
            metavar="FILE",
            help="Write pairs of answers without model names to this file (.csv or .jsonl), for people to judge.",
        ),
    ] = None,
    annotate: Annotated[bool, typer.Option("--annotate", help="Put such pairs into an annotation project.")] = False,
    models: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--models",
            metavar="A B",
            help="The two models to compare: base, sft, best_of, policy. Default: the first and the last.",
        ),
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(
            "--prompts",
            min=1,
            help="Number of prompts to judge, or of questions of each suite, drawn at random. Default: all.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything drawn at random here.")] = 0,
    read: Annotated[
        list[Path] | None,
        typer.Option(
            "--read",
            metavar="FILE",
            help="Read judgements back into the report: a filled-in file or a project folder; can be repeated.",
        ),
    ] = None,
    reader: Annotated[
        str | None, typer.Option("--reader", metavar="NAME", help="Name of the reader, for rows without one.")
    ] = None,
    reader_kind: Annotated[
        str,
        typer.Option("--reader-kind", metavar="human|ai", help="Whether people or a language model judged the files."),
    ] = "human",
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="NAME[=FILE]",
            help="Compare checkpoints on this suite: one that ships with trimtab (honesty, sycophancy, refusals, "
            "arithmetic, instructions, neutral) or a file of your own; can be repeated. Default for several "
            "checkpoints: all that ship.",
        ),
    ] = None,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option("--lm-eval", metavar="TASK", help="Also run this task of lm-eval (an extra); can be repeated."),
    ] = None,
    lm_eval_folder: Annotated[
        Path | None, typer.Option("--lm-eval-folder", metavar="FOLDER", help="Folder with lm-eval tasks of your own.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="URL|PATH",
            help="Scores the answers to a suite named judged: an endpoint like a recipe's rewards of kind http, or a "
            "function by its dotted path.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Where the results on suites go. Default: suites in the run, if all are models of one; else suites.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Longest answer to an item of a suite, in tokens.")
    ] = 128,
) -> None:
    """Run a recipe up to the held-out evaluation, with blind comparisons; or compare checkpoints on suites.

    Example: trimtab eval recipe.yaml --blind reading.csv, then trimtab eval recipe.yaml --read reading.csv --reader
    Ann. On suites: trimtab eval runs/quickstart:sft runs/quickstart --suite honesty
    """
    from trimtab.errors import ConfigError

    if suite or lm_eval or len(targets) > 1:
        from trimtab.cli.suites import compare_on_suites

        if set or blind or annotate or models or read:
            raise ConfigError("--set, --blind, --annotate, --models and --read are for a recipe, not for suites")
        compare_on_suites(
            targets,
            suite or [],
            tasks=lm_eval or [],
            task_folder=lm_eval_folder,
            judge=judge,
            out=out,
            questions=prompts,
            max_new_tokens=max_new_tokens,
            seed=seed,
            runs=runs,
            as_json=as_json,
        )
        return
    if judge or lm_eval_folder:
        raise ConfigError("--judge and --lm-eval-folder are for suites; add --suite NAME=FILE or --lm-eval TASK")
    recipe = Path(targets[0])
    if read and (blind or annotate):
        raise ConfigError("--read reads judgements back, --blind and --annotate ask for them; give one of the two")
    if reader_kind not in ("human", "ai"):
        raise ConfigError(f"--reader-kind {reader_kind}: expected human (people) or ai (a language model)")
    if (models or prompts) and not (blind or annotate):
        raise ConfigError("--models and --prompts choose what blind readers judge; add --blind FILE or --annotate")
    if read:
        _read_back(recipe, set, runs, read, reader, "ai" if reader_kind == "ai" else "human", as_json)
        return
    if blind is not None:
        from trimtab.pipeline.blind_files import check_suffix

        check_suffix(blind)  # before a long evaluation
    execute(recipe, set, until="evaluate", runs=runs, as_json=as_json)
    if blind or annotate:
        _ask_readers(recipe, set, runs, blind, annotate, models, seed, prompts)


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
            "preferences kept out of training.",
        ),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option("--by", metavar="KEY", help="With --evaluate: accuracy for each value of this metadata key."),
    ] = None,
) -> None:
    """Run a recipe up to the reward model; with --evaluate, measure it beside simple baselines.

    Example: trimtab reward recipe.yaml --evaluate heldout
    """
    from trimtab.errors import ConfigError

    if slices is not None and evaluate is None:
        raise ConfigError("--by divides what --evaluate measures; add --evaluate FILE or --evaluate heldout")
    if evaluate is None:
        execute(recipe, set, until="reward", runs=runs, as_json=as_json)
        return
    execute(recipe, set, until="reward", runs=runs, as_json=False)
    from trimtab.pipeline.config import load_recipe
    from trimtab.pipeline.memory import fit_memory
    from trimtab.pipeline.reward_evaluation import evaluate_reward, evaluation_lines
    from trimtab.storage import RunFolder

    config = load_recipe(recipe, set)
    run = RunFolder(runs / config.name, create=False).round(config.rounds)
    with run.lock():
        written = evaluate_reward(fit_memory(config), recipe, run, evaluate, slice_by=slices)
    if as_json:
        typer.echo(json.dumps(written, indent=2))
        return
    for line in evaluation_lines(written):
        typer.echo(line)
    typer.echo(f"Written to {run.path / 'reward-evaluation'}.", err=True)


def _ask_readers(
    recipe: Path,
    overrides: list[str] | None,
    runs: Path,
    file: Path | None,
    app: bool,
    models: tuple[str, str] | None,
    seed: int,
    prompts: int | None,
) -> None:
    """Write pairs of answers for blind readers."""
    from trimtab.pipeline.blind import make_key, put_in_app, write_reading
    from trimtab.pipeline.config import load_recipe
    from trimtab.storage import RunFolder

    config = load_recipe(recipe, overrides)
    run = RunFolder(runs / config.name, create=False).round(config.rounds)
    with run.lock():
        if file is not None:
            key = make_key(run, config, file.stem, models, seed=seed, prompts=prompts)
            write_reading(run, key, file)
            typer.echo(
                f"{file}: {len(key.items)} pairs of answers without names. Write A, B or tie under preferred; if you "
                "wish, yes or no under sensible_A and sensible_B. Then run\n"
                f"  trimtab eval {recipe} --read {file} --reader NAME",
                err=True,
            )
        if app:
            key = make_key(run, config, "app", models, seed=seed, prompts=prompts)
            folder, added, left_out = put_in_app(run, key)
            typer.echo(
                f"{added} pairs added to {folder}; {left_out} cannot be shown there (equal or empty answers). Let "
                f"people judge with\n  trimtab annotate {folder}\nthen run\n  trimtab eval {recipe} --read {folder}",
                err=True,
            )


def _read_back(
    recipe: Path,
    overrides: list[str] | None,
    runs: Path,
    paths: list[Path],
    reader: str | None,
    kind: Literal["human", "ai"],
    as_json: bool,
) -> None:
    """Store the judgements of blind readers and write the report again."""
    from trimtab.errors import DataError
    from trimtab.pipeline.blind import read_back, say_readback
    from trimtab.pipeline.config import load_recipe
    from trimtab.pipeline.memory import fit_memory
    from trimtab.pipeline.run import plan_rounds
    from trimtab.storage import RunFolder

    config = load_recipe(recipe, overrides)
    first = RunFolder(runs / config.name, create=False)
    run = first.round(config.rounds)
    if not run.path.is_dir():
        raise DataError(f"{run.path}: no such run; write a file for readers with `trimtab eval RECIPE --blind FILE`")
    with run.lock():
        result = read_back(run, paths, reader=reader, kind=kind)
    say_readback(result, run, lambda text: typer.echo(text, err=True))
    planned = [p for r in plan_rounds(fit_memory(config), recipe, first, "evaluate") for p in r.stages]
    stale = [p.stage.name for p in planned if p.state != "done"]
    if stale:
        raise DataError(
            f"the judgements are stored in {run.path / 'blind'}, but under these settings {', '.join(stale)} would run "
            f"again; restore the old settings, or accept that with `trimtab report {recipe}`"
        )
    execute(recipe, overrides, until="report", runs=runs, as_json=as_json, again=True)


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
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the page about run folders goes.")] = Path(
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


SINGLE = {
    "sft": _single("sft", "Run a recipe up to supervised fine-tuning (SFT)."),
    "sample": _single("sample", "Run a recipe up to the sampled answers."),
    "label": _single(
        "label", "Run a recipe up to the labels, by simulated annotators, people, AI judges, or judges and people."
    ),
    "reward": reward,
    "align": _single("align", "Run a recipe up to the aligned policy, by the method that align.method names."),
    "eval": evaluate,
    "report": report,
}
"""Commands that stop after one stage."""
