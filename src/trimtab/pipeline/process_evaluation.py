"""Measures a run's process reward model on a file of judged steps: ProcessBench, PRMBench, or any other."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError, DataError
from trimtab.evals.prm_bench import has_prm_bench_columns, prm_bench_scores, read_prm_bench
from trimtab.feedback import Estimate
from trimtab.files import locate, write_json
from trimtab.models import Role, load_tensors
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.context import Context
from trimtab.pipeline.process import first_error_line, measured, process_role
from trimtab.pipeline.ui import Ui
from trimtab.records import read_records
from trimtab.records.annotation import StepLabel
from trimtab.records.readers import Refusal, Row, read_rows
from trimtab.records.steps import has_step_columns, load_steps
from trimtab.storage import RunFolder
from trimtab.trainers.process import Solution, encode_solutions, score_solutions


def process_source(config: RunConfig, recipe: Path, source: str) -> bool:
    """True: the first row of a file has judged steps, so the file measures the process reward model.

    Raises:
        ConfigError: the file has judged steps, but the recipe has no process reward model.
    """
    columns = _first_columns(locate(source, recipe.parent))
    if not (has_prm_bench_columns(columns) or has_step_columns(columns)):
        return False
    if config.process is None:
        raise ConfigError(
            f"{source} has judged steps, which measure a process reward model, and this recipe has no process section; "
            "add one, or name a file of preferences"
        )
    return True


def _first_columns(path: str) -> Mapping[str, Any]:
    """The columns of the first row; empty if the file has no readable rows."""
    try:
        row = next(iter(read_rows(path, limit=1)), None)
    except DataError:
        return {}
    return row.columns if isinstance(row, Row) else {}


def evaluate_process(config: RunConfig, recipe: Path, run: RunFolder, source: str) -> dict[str, Any]:
    """Score the steps of a file with the trained process reward model, and write the result.

    A step counts as right if its logit is above 0.

    Args:
        config: the resolved recipe, whose process stage is done.
        recipe: its file.
        run: the run's folder.
        source: a file of judged steps.

    Returns:
        the content of ``reward-evaluation/NAME.json`` in the run's folder: ``source``, ``counts``, and either
        ``prm_bench`` (scores by name, and ``all_right``, the scores of a model that calls every step right) or
        ``first_error``, as in ``process.json``.

    Raises:
        DataError: nothing can be scored.
    """
    context = Context(config=config, recipe=recipe, run=run, ui=Ui())
    role = process_role(context, context.trunk())
    role.load_state(load_tensors(context.folder("process") / "weights.safetensors"))
    path = context.data_path(source)
    score = _prm_bench if has_prm_bench_columns(_first_columns(path)) else _first_error
    written = {"source": source, **score(context, role, path)}
    folder = run.path / "reward-evaluation"
    folder.mkdir(exist_ok=True)
    name = re.sub(r"[^\w.-]+", "-", Path(source).name)
    write_json(folder / f"{name}.json", written)
    return written


def _prm_bench(context: Context, role: Role, path: str) -> dict[str, Any]:
    """PRMBench's scores."""
    bench = read_prm_bench(path)
    solutions, used, counts = _encoded(context, role, [row.label for row in bench.rows], bench.refused, path)
    scored = {label.id for label in used}
    rows = [row for row in bench.rows if row.label.id in scored]
    called_right = [[logit > 0 for logit in logits] for logits in score_solutions(role, solutions)]
    scores = prm_bench_scores(rows, called_right)
    constant = prm_bench_scores(rows, [[True] * len(row.label.steps) for row in rows])
    return {
        "counts": counts | {"repeated": bench.repeated, "error_steps_beyond": bench.beyond},
        "prm_bench": {name: e.model_dump(mode="json") for name, e in scores.items()},
        "all_right": {name: e.value for name, e in constant.items()},
    }


def _first_error(context: Context, role: Role, path: str) -> dict[str, Any]:
    """ProcessBench's score."""
    loaded = load_steps(path)
    solutions, used, counts = _encoded(context, role, loaded.records, loaded.refused, path)
    return {"counts": counts, "first_error": measured(role, solutions, used)}


def _encoded(
    context: Context, role: Role, labels: Sequence[StepLabel], refused: Sequence[Refusal], path: str
) -> tuple[list[Solution], list[StepLabel], dict[str, int]]:
    """Solutions as tokens with their labels, and counts.

    Raises:
        DataError: no solution fits.
    """
    config = context.config.process
    assert config is not None
    for refusal in refused[:5]:
        context.ui.say(f"  {path}: line {refusal.line} refused: {refusal.reason}")
    solutions, used, left_out = encode_solutions(role.backbone.chat, labels, config.separator)
    counts = {"solutions": len(used), "refused": len(refused)} | context.left_out(left_out, len(labels), "solutions")
    if not solutions:
        raise DataError(f"{path}: {none_scored(counts)}")
    learned = {label.prompt.id for label in read_records(context.folder("process") / "labels.jsonl", StepLabel)}
    counts["known_prompts"] = len({label.prompt.id for label in used} & learned)
    return solutions, used, counts


def none_scored(counts: Mapping[str, int]) -> str:
    """Why no solution can be scored, and the next step: a larger context if solutions are too long."""
    words = {
        "too_long": "do not fit model.context",
        "unrendered": "cannot be written with the model's chat template",
        "refused": "are in rows that were refused",
    }
    reasons = ", ".join(f"{counts[name]} {text}" for name, text in words.items() if counts[name])
    step = "raise model.context" if counts["too_long"] else "correct the file, or name another one"
    return f"no solution can be scored: {reasons or 'the file has none'}; {step}"


def process_lines(written: Mapping[str, Any]) -> list[str]:
    """The result in words, one line each."""
    counts = written["counts"]
    lines = ["counted: " + ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in counts.items())]
    if known_prompts := counts["known_prompts"]:
        lines.append(
            f"  {known_prompts} prompts are among the labels of the process stage, so these numbers are too good; "
            "evaluate on other prompts"
        )
    if "first_error" in written:
        return [*lines, first_error_line(written["first_error"], "solutions")]
    for name, value in written["prm_bench"].items():
        e = Estimate.model_validate(value)
        lines.append(
            f"PRM score, {name}: {e.value:.1%} [{e.low:.1%}, {e.high:.1%}] of {e.n} solutions; all steps called right: "
            f"{written['all_right'][name]:.1%}"
        )
    return lines
