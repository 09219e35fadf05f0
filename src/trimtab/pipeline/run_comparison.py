"""``trimtab report RUN RUN…``: compares several runs on one page, finished or not.

Curves come from each run's metrics and everything else from its ``report.json``, so an unfinished run has only curves.
If two runs have the same gold utility and answered the same held-out prompts, their last models are compared on these
prompts, paired by prompt. No model is run, and no run is changed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from pydantic import ValidationError

from trimtab.errors import ConfigError, DataError
from trimtab.evals import ReportData, WinRate, win_rate
from trimtab.evals.charts import Line, interval, line_chart, number, percent
from trimtab.evals.page import page_environment, page_style
from trimtab.evals.report import duration
from trimtab.feedback.intervals import Estimate, paired_bootstrap_interval
from trimtab.files import write_atomic
from trimtab.metrics import TRAINING
from trimtab.records import Rollout, read_records
from trimtab.storage import RunFolder
from trimtab.storage.watched import ALIGN, WatchedRun

MAX_RUNS = 4
"""Most runs on one page: the number of colours."""

CURVES = ("reward", "gold", "reward/heldout", "kl", "length", "entropy", "loss", "accuracy", "alarms")
"""Metrics of alignment that are drawn if a run has them."""

TONES = "acbd"
"""Colour of each run's lines."""

SMOOTH = 5
"""Number of consecutive steps that a point of the chart over √KL averages."""


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """Data of a run for the page."""

    name: str
    """Name of the run; its folder if two runs have the same name."""
    state: str
    """Finished stages, in words."""
    report: ReportData | None
    """Report of the run; None: the run is not finished, or another version of trimtab wrote the report."""
    metrics: list[dict[str, Any]]
    """Metrics of its alignment."""
    settings: dict[str, Any]
    """Settings of its recipe, with dotted names."""
    answers: dict[str, Rollout]
    """Held-out answers of its last model, by prompt."""


@dataclass(frozen=True, kw_only=True)
class AgainstFirst:
    """A later run's last model against the first run's, by gold, on the prompts that both answered."""

    run: str
    """Name of the later run."""
    n: int
    """Number of these prompts."""
    reason: str
    """Why the models cannot be compared; empty: they can."""
    win: WinRate | None
    """How often the later run's answer has a higher gold score."""
    gain: Estimate | None
    """Mean gold of the later run's answers minus the first's."""


class Figure(NamedTuple):
    """A chart of the page."""

    title: str
    """Heading of the chart."""
    note: str
    """What the chart shows."""
    chart: Markup
    """The drawing."""


def write_comparison(paths: Sequence[Path], out: Path) -> Path:
    """Write the page.

    Raises:
        ConfigError: there are more runs than :data:`MAX_RUNS`, or a run is named twice.
        DataError: a folder is no run.
    """
    if len(paths) > MAX_RUNS:
        raise ConfigError(f"{len(paths)} runs; a page shows at most {MAX_RUNS}: choose some of them")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("a run is named twice; name different runs")
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        runs = [ComparedRun(**{**vars(run), "name": str(path)}) for run, path in zip(runs, paths, strict=True)]
    write_atomic(out, render_comparison(runs))
    return out


def read_run(path: Path) -> ComparedRun:
    """Read a run's files; missing files are skipped.

    Raises:
        DataError: the folder is no run.
    """
    watched = WatchedRun(path)
    stages = watched.stages()
    newest = RunFolder(path, create=False).newest()
    try:
        report = ReportData.model_validate_json((path / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        report = None
    try:
        answers = {r.prompt.id: r for r in read_records(newest.stage("evaluate") / "answers-policy.jsonl", Rollout)}
    except DataError:
        answers = {}
    state = ", ".join(f"{s['stage']} {s['state']}" for s in stages if s["state"] != "done")
    return ComparedRun(
        name=watched.name,
        state=state or ("all stages are done" if stages else "no stage has begun"),
        report=report,
        metrics=WatchedRun(newest.path).metrics(ALIGN),
        settings=_flat(watched.config()),
        answers=answers,
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def differing(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Settings that differ between runs, except the name; a missing setting is a dash."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values_by_key = {key: [str(run.settings[key]) if key in run.settings else "–" for run in runs] for key in keys}
    return {key: values for key, values in values_by_key.items() if key != "name" and len(set(values)) > 1}


def against_first(runs: Sequence[ComparedRun]) -> list[AgainstFirst]:
    """Each later run against the first."""
    first, *later = runs
    rows = []
    for run in later:
        common = [key for key in first.answers if key in run.answers]
        scores = [[r.answers[key].rewards.get("gold", math.nan) for key in common] for r in (first, run)]
        reason, win, gain = "", None, None
        if first.settings.get("gold") is None or first.settings.get("gold") != run.settings.get("gold"):
            reason = "the runs have no gold utility in common, so no judge compares their answers"
        elif not common:
            reason = "the runs answered no held-out prompt in common"
        elif not all(math.isfinite(x) for part in scores for x in part):
            reason = "not all answers have a score by gold"
        else:
            before, after = scores
            low, high = paired_bootstrap_interval(after, before)
            value = sum(after) / len(after) - sum(before) / len(before)
            gain = Estimate(value=value, low=low, high=high, n=len(common))
            win = win_rate(after, before)
        rows.append(AgainstFirst(run=run.name, n=len(common), reason=reason, win=win, gain=gain))
    return rows


def render_comparison(runs: Sequence[ComparedRun]) -> str:
    """The page as one HTML text."""
    environment = page_environment(Path(__file__).parent)
    environment.filters["duration"] = duration
    return environment.get_template("run_comparison.html.jinja").render(
        runs=runs,
        against=against_first(runs),
        settings=differing(runs),
        figures=[figure for key in CURVES if (figure := _figure(runs, key)) is not None],
        over_kl=_over_kl(runs),
        percent=percent,
        interval=interval,
        **page_style(),
    )


def _figure(runs: Sequence[ComparedRun], key: str) -> Figure | None:
    """A metric of all runs over their steps."""
    lines = [
        Line(name=run.name, x=[row["step"] for row in rows], y=[_finite(row[key]) for row in rows], tone=tone)
        for run, tone in zip(runs, TONES, strict=False)
        if (rows := [row for row in run.metrics if key in row and "step" in row])
    ]
    metric = TRAINING[key]
    chart = line_chart(
        lines, title=metric.title, x_label="step", y_label="" if metric.unit == "share" else metric.unit, width=340,
        height=230, show=percent if metric.unit == "share" else number,
    )  # fmt: skip
    return None if chart is None else Figure(metric.title, metric.meaning, chart)


def _over_kl(runs: Sequence[ComparedRun]) -> Figure | None:
    """Gold, or the reward if no run has gold, over √KL; a point is the mean of :data:`SMOOTH` consecutive steps."""
    key = "gold" if any("gold" in row for run in runs for row in run.metrics) else "reward"
    lines = [
        Line(
            name=run.name,
            x=[math.sqrt(max(0.0, kl)) for kl in _means([_finite(row["kl"]) for row in rows])],
            y=_means([_finite(row[key]) for row in rows]),
            tone=tone,
        )
        for run, tone in zip(runs, TONES, strict=False)
        if (rows := [row for row in run.metrics if key in row and "kl" in row])
    ]
    title = f"{TRAINING[key].title} over √KL"
    chart = line_chart(
        lines, title=title, x_label="√KL (√nats)", y_label=TRAINING[key].title, width=340, height=230
    )  # fmt: skip
    return None if chart is None else Figure(title, f"Means over {SMOOTH} steps in a row.", chart)


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _means(values: Sequence[float]) -> list[float]:
    """Means of :data:`SMOOTH` consecutive values; of all values if there are fewer."""
    count = min(SMOOTH, len(values))
    return [sum(values[end - count : end]) / count for end in range(count, len(values) + 1)] if count else []
