"""``trimtab eval MODEL… --suite NAME``: checkpoints measured on suites and compared with the first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError
from trimtab.evals.suite_page import write_suites
from trimtab.evals.suite_results import SuiteResults, compare_suites
from trimtab.evals.suites import SAMPLES, Outcome, Suite, load_suite
from trimtab.files import write_json
from trimtab.pipeline.context import now
from trimtab.pipeline.judging import plain
from trimtab.pipeline.lm_eval_tasks import measure_tasks, require_lm_eval
from trimtab.pipeline.reporting import machine, versions
from trimtab.pipeline.suites import (
    SUITES,
    Judge,
    fingerprint,
    load_judge,
    measure_suite,
    open_target,
    run_of,
    split_target,
)


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """The suites on which checkpoints are measured, and the settings of the measurement."""

    specs: Sequence[str] = ()
    """Suites, see :func:`trimtab.evals.suites.load_suite`; empty, and ``tasks`` too: all suites that ship with
    trimtab."""
    tasks: Sequence[str] = ()
    """Tasks of lm-eval."""
    task_folder: Path | None = None
    """Folder with definitions of lm-eval tasks."""
    judge: str | None = None
    """Scores items of kind ``judged``: the URL of an endpoint, or a function's dotted path."""
    questions: int | None = None
    """Maximum number of questions of each suite; None: all."""
    max_new_tokens: int = 128
    """Longest answer, in tokens."""
    seed: int = 0
    """Seed of the choice of questions and of the bootstrap."""


def compare_on_suites(
    targets: Sequence[str], options: SuiteOptions, *, out: Path | None, runs: Path, say: Callable[[str], Any]
) -> tuple[SuiteResults, Path]:
    """Measure every target on every suite and write the results and their page.

    Args:
        targets: models; the others are compared with the first.
        options: the suites and settings.
        out: folder of the results; None: in the run's folder if all models are of one run, else ``suites``.
        runs: folder of all runs.
        say: called with a line before each measurement.

    Returns:
        the results, and the path of the page; ``suites.json`` is next to it.

    Raises:
        ConfigError: a model or a suite is named twice, or lm-eval is needed but not installed.
    """
    if len(set(targets)) < len(targets):
        raise ConfigError(f"{' '.join(targets)}: a model is named twice; name different checkpoints")
    suites = _suites(options)
    if options.tasks:
        require_lm_eval()
    judge = None if options.judge is None else load_judge(options.judge)
    outcomes: dict[str, dict[str, dict[str, Outcome]]] = {}
    task_suites: list[Suite] = []
    for target in targets:
        outcomes[target], task_suites = _measure(target, suites, options, judge, runs, say)
    results = compare_suites([*suites, *task_suites], outcomes, seed=options.seed)
    results = results.model_copy(update={"checkpoints": _checkpoints(targets)})
    folder = _folder(targets) if out is None else out
    write_json(folder / "outcomes.json", plain(outcomes))
    page = write_suites(results, folder, created_at=now(), made=_facts(targets, options))
    return results, page


def _suites(options: SuiteOptions) -> list[Suite]:
    """The suites to measure, without the tasks of lm-eval."""
    specs = options.specs or ([] if options.tasks else SAMPLES)
    suites = [load_suite(spec, most=options.questions, seed=options.seed) for spec in specs]
    names = [suite.name for suite in suites]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--suite: {repeated[0]!r} is named twice; give the files different names")
    return suites


def _measure(
    target: str,
    suites: Sequence[Suite],
    options: SuiteOptions,
    judge: Judge | None,
    runs: Path,
    say: Callable[[str], Any],
) -> tuple[dict[str, dict[str, Outcome]], list[Suite]]:
    """One model's outcomes by suite, and the suites made from lm-eval's tasks."""
    say(f"{target}: loading")
    role = open_target(target, runs=runs)
    outcomes: dict[str, dict[str, Outcome]] = {}
    for suite in suites:
        say(f"{target}: {suite.name}, {len(suite.items)} items")
        outcomes[suite.name] = measure_suite(role, suite, max_new_tokens=options.max_new_tokens, judge=judge)
    if not options.tasks:
        return outcomes, []
    say(f"{target}: lm-eval {', '.join(options.tasks)}")
    task_suites, values = measure_tasks(role, options.tasks, folder=options.task_folder, most=options.questions)
    return outcomes | values, task_suites


def _checkpoints(targets: Sequence[str]) -> dict[str, tuple[str, str]]:
    """For each target that is a model of a run: which model, and the fingerprint of the stage that made it."""
    checkpoints: dict[str, tuple[str, str]] = {}
    for target in targets:
        run, (_, which) = run_of(target), split_target(target)
        if run is not None:
            checkpoints[target] = which, fingerprint(run, which)
    return checkpoints


def _folder(targets: Sequence[str]) -> Path:
    """Folder of the results: in the run's folder if all targets are models of one run, else in the current folder."""
    paths = {None if (run := run_of(target)) is None else run.path for target in targets}
    path = paths.pop() if len(paths) == 1 else None
    return Path(SUITES) if path is None else path / SUITES


def _facts(targets: Sequence[str], options: SuiteOptions) -> dict[str, str]:
    """Facts about how the results were measured, by title."""
    return {
        "Models": ", ".join(targets),
        "Longest answer": f"{options.max_new_tokens} tokens, greedy",
        "Seed": str(options.seed),
        "Machine": machine(),
        "Versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
