"""``trimtab eval MODEL… --suite NAME``: checkpoints compared on suites."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from trimtab.evals.suites import Outcome, Suite


def compare_on_suites(
    targets: list[str],
    specs: list[str],
    *,
    tasks: list[str],
    task_folder: Path | None,
    judge: str | None,
    out: Path | None,
    questions: int | None,
    max_new_tokens: int,
    seed: int,
    runs: Path,
    as_json: bool,
) -> None:
    """Measure every target on every suite, print the table and write the page.

    Args:
        targets: models; the others are compared with the first.
        specs: of suites, see :func:`trimtab.evals.suites.load_suite`; empty: all that ship with trimtab.
        tasks: of lm-eval.
        task_folder: with definitions of lm-eval tasks.
        judge: of items that need one.
        out: folder of the results; None: in the run, if all models are of one, else ``suites``.
        questions: the most questions of each suite.
        max_new_tokens: longest answer.
        seed: of the choice of questions and of the bootstrap.
        runs: folder of all runs.
        as_json: print the results on standard output.
    """
    from trimtab.errors import ConfigError
    from trimtab.evals.suite_page import write_suites
    from trimtab.evals.suite_results import compare_suites, result_lines
    from trimtab.evals.suites import SAMPLES, load_suite
    from trimtab.files import write_json
    from trimtab.pipeline.context import now
    from trimtab.pipeline.lm_eval_tasks import measure_tasks, require_lm_eval
    from trimtab.pipeline.reporting import machine, versions
    from trimtab.pipeline.suites import (
        SUITES,
        fingerprint,
        load_judge,
        measure_suite,
        open_target,
        run_of,
        split_target,
    )

    if len(set(targets)) < len(targets):
        raise ConfigError(f"{' '.join(targets)}: a model is named twice; name different checkpoints")
    suites = [load_suite(spec, most=questions, seed=seed) for spec in specs or ([] if tasks else SAMPLES)]
    names = [suite.name for suite in suites]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--suite: {twice[0]!r} is named twice; give the files different names")
    if tasks:
        require_lm_eval()
    scorer = None if judge is None else load_judge(judge)
    outcomes: dict[str, dict[str, dict[str, Outcome]]] = {}
    measured: list[Suite] = list(suites)
    for target in targets:
        typer.echo(f"{target}: loading", err=True)
        role = open_target(target, runs=runs)
        outcomes[target] = {}
        for suite in suites:
            typer.echo(f"{target}: {suite.name}, {len(suite.items)} items", err=True)
            result = measure_suite(role, suite, max_new_tokens=max_new_tokens, judge=scorer)
            outcomes[target][suite.name] = result
        if tasks:
            typer.echo(f"{target}: lm-eval {', '.join(tasks)}", err=True)
            task_suites, values = measure_tasks(role, tasks, folder=task_folder, most=questions)
            measured = [*suites, *task_suites]
            outcomes[target] |= values
        del role
    folders = {target: run_of(target) for target in targets}
    checkpoints = {
        target: (split_target(target)[1], fingerprint(run, split_target(target)[1]))
        for target, run in folders.items()
        if run is not None
    }
    paths = {None if run is None else run.path for run in folders.values()}
    if out is None:
        only = paths.pop() if len(paths) == 1 else None
        out = Path(SUITES) if only is None else only / SUITES
    results = compare_suites(measured, outcomes, seed=seed).model_copy(update={"checkpoints": checkpoints})
    write_json(out / "outcomes.json", _plain(outcomes))
    made = {
        "Models": ", ".join(targets),
        "Longest answer": f"{max_new_tokens} tokens, greedy",
        "Seed": str(seed),
        "Machine": machine(),
        "Versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    page = write_suites(results, out, created_at=now(), made=made)
    if as_json:
        typer.echo((out / "suites.json").read_text())
    else:
        for line in result_lines(results):
            typer.echo(line)
    typer.echo(f"Open {page} in a browser.", err=True)


def _plain(outcomes: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    return {
        model: {
            suite: {key: o.model_dump(exclude_defaults=True) for key, o in of.items()} for suite, of in known.items()
        }
        for model, known in outcomes.items()
    }
