"""``trimtab eval``: a recipe up to the held-out evaluation, blind reading, and checkpoints compared on suites."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trimtab.cli.run import Json, Runs, Set, execute

if TYPE_CHECKING:
    from trimtab.pipeline.suite_comparison import SuiteOptions

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE | MODEL...",
        help="A recipe; or, for suites, checkpoints: model folders, hub ids, run folders (runs/NAME) or one model "
        "of a run (runs/NAME:sft).",
        show_default=False,
    ),
]
Blind = Annotated[
    Path | None,
    typer.Option(
        "--blind",
        metavar="FILE",
        help="Write pairs of answers without model names to this file (.csv or .jsonl), for people to judge.",
    ),
]
InApp = Annotated[bool, typer.Option("--annotate", help="Put these pairs into an annotation project.")]
Models = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--models",
        metavar="A B",
        help="The two models to compare: base, sft, best_of, policy. Default: the first and the last.",
    ),
]
Prompts = Annotated[
    int | None,
    typer.Option(
        "--prompts",
        min=1,
        help="Number of prompts to judge, or of questions of each suite, drawn at random. Default: all.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of all random draws of this command.")]
Read = Annotated[
    list[Path] | None,
    typer.Option(
        "--read",
        metavar="FILE",
        help="Read judgements back into the report: a filled-in file or a project folder; can be repeated.",
    ),
]
Reader = Annotated[
    str | None, typer.Option("--reader", metavar="NAME", help="Name of the reader, for rows without one.")
]
ReaderKind = Annotated[
    str,
    typer.Option("--reader-kind", metavar="human|ai", help="Whether people or a language model judged the files."),
]
Suites = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        metavar="NAME[=FILE]",
        help="Compare checkpoints on this suite: one that ships with trimtab (honesty, sycophancy, refusals, "
        "arithmetic, instructions, neutral) or a file of your own; can be repeated. Default for several "
        "checkpoints: all that ship.",
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--lm-eval", metavar="TASK", help="Also run this task of lm-eval (an extra); can be repeated."),
]
TaskFolder = Annotated[
    Path | None, typer.Option("--lm-eval-folder", metavar="FOLDER", help="Folder with lm-eval tasks of your own.")
]
Judge = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="URL|PATH",
        help="Scores the answers to a suite named judged: an endpoint like a recipe's rewards of kind http, or a "
        "function by its dotted path.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Folder for the results on suites. Default: suites in the run's folder if all models are of one run, "
        "otherwise suites.",
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Longest answer to an item of a suite, in tokens.")
]


def evaluate(
    targets: Targets,
    set: Set = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
    blind: Blind = None,
    annotate: InApp = False,
    models: Models = None,
    prompts: Prompts = None,
    seed: Seed = 0,
    read: Read = None,
    reader: Reader = None,
    reader_kind: ReaderKind = "human",
    suite: Suites = None,
    lm_eval: Tasks = None,
    lm_eval_folder: TaskFolder = None,
    judge: Judge = None,
    out: Out = None,
    max_new_tokens: MaxNewTokens = 128,
) -> None:
    """Run a recipe up to the held-out evaluation, with blind comparisons; or compare checkpoints on suites.

    Example: trimtab eval recipe.yaml --blind reading.csv, then trimtab eval recipe.yaml --read reading.csv --reader
    Ann. On suites: trimtab eval runs/quickstart:sft runs/quickstart --suite honesty
    """
    from trimtab.errors import ConfigError

    if suite or lm_eval or len(targets) > 1:
        if set or blind or annotate or models or read:
            raise ConfigError("--set, --blind, --annotate, --models and --read are for a recipe, not for suites")
        from trimtab.pipeline.suite_comparison import SuiteOptions

        options = SuiteOptions(
            specs=suite or (),
            tasks=lm_eval or (),
            task_folder=lm_eval_folder,
            judge=judge,
            questions=prompts,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        _on_suites(targets, options, out, runs, as_json)
        return
    if judge or lm_eval_folder:
        raise ConfigError("--judge and --lm-eval-folder are for suites; add --suite NAME=FILE or --lm-eval TASK")
    if read and (blind or annotate):
        raise ConfigError("--read reads judgements back, --blind and --annotate ask for them; give one of the two")
    if reader_kind not in ("human", "ai"):
        raise ConfigError(f"--reader-kind {reader_kind}: expected human (people) or ai (a language model)")
    if (models or prompts) and not (blind or annotate):
        raise ConfigError("--models and --prompts choose what blind readers judge; add --blind FILE or --annotate")
    recipe = Path(targets[0])
    if read:
        _read_back(recipe, set, runs, read, reader, "ai" if reader_kind == "ai" else "human", as_json)
        return
    if blind is not None:
        from trimtab.pipeline.blind_files import check_suffix

        check_suffix(blind)  # before a long evaluation
    execute(recipe, set, until="evaluate", runs=runs, as_json=as_json)
    if blind or annotate:
        _ask_readers(recipe, set, runs, blind, annotate, models, seed, prompts)


def _on_suites(targets: list[str], options: "SuiteOptions", out: Path | None, runs: Path, as_json: bool) -> None:
    """Compare checkpoints on suites and print the results."""
    from trimtab.evals.suite_results import result_lines
    from trimtab.pipeline.scale import require_one_process
    from trimtab.pipeline.suite_comparison import compare_on_suites

    require_one_process("trimtab eval")
    results, page = compare_on_suites(targets, options, out=out, runs=runs, say=lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(page.with_name("suites.json").read_text())
    else:
        for line in result_lines(results):
            typer.echo(line)
    typer.echo(f"Open {page} in a browser.", err=True)


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
    from trimtab.pipeline.scale import require_one_process
    from trimtab.storage import RunFolder

    require_one_process("trimtab eval --read")
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
