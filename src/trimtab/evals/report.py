"""The before/after page: one self-contained ``report.html`` with the same numbers in ``report.json``.

The page loads nothing from outside and has no script; its content security policy allows only the
style sheet inside it, by hash. Every text passes through autoescape and
:func:`~trimtab.text.visible`, because answers are written by a model that may be attacked.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from markupsafe import Markup

from trimtab.evals.capability import change_text, value_text
from trimtab.evals.charts import POINTS, Line, Row, interval, line_chart, number, percent, row_chart, strip
from trimtab.evals.page import page_environment, page_style
from trimtab.evals.report_data import Answer, Example, Reading, ReportData, RewardAgainstKL, Series, WinRateRow
from trimtab.evals.reward_model import BASELINES, RewardModelEval
from trimtab.evals.suite_page import table_parts
from trimtab.feedback.intervals import Estimate
from trimtab.files import write_atomic
from trimtab.metrics import PROBES, TRAINING
from trimtab.text import shorten

# Colours have a meaning: a is the model after alignment, b the model before, c a judge, d another judge.
_PANEL_TONES = {"sft_loss": "bacd", "reward_accuracy": "cabd", "gold": "cabd", "reward/heldout": "dabc"}

_CHARTED_METRICS = ("kl", "length", "entropy", "clip_fraction", "value_loss", "explained_variance")

PANELS: dict[str, tuple[str, str]] = {
    "sft_loss": ("Supervised fine-tuning loss", "A held-out loss that turns up again is overfitting."),
    "reward_accuracy": ("Reward model accuracy", "Share of pairs ranked as labelled; 50 % is guessing."),
    "proxy": (TRAINING["reward"].title, TRAINING["reward"].meaning),
    "gold": (TRAINING["gold"].title, TRAINING["gold"].meaning),
    **{key: (TRAINING[key].title, TRAINING[key].meaning) for key in ("reward/heldout", "reward/spread")},
    **{key: (TRAINING[key].title, TRAINING[key].meaning) for key in _CHARTED_METRICS},
}
"""Charts of the section on training, in page order: title and explanation by key."""

_TITLES = {
    "win_rates": "win rates",
    "readings": "blind readings",
    "capability": "capability check",
    "reward_against_kl": "reward against √KL",
    "curves": "training curves",
    "reward_model": "evaluation of a reward model",
    "agreement": "agreement statistics",
    "probes": "text probes",
    "alarms": "monitors",
    "examples": "examples",
}
_HERE = Path(__file__).parent
LEADING_EXAMPLES = 3
"""Number of random examples shown open at the top of the page, below the typical example."""

_ANSWER_LIMITS = {"characters": 2000, "lines": 24}  # how much of an answer the page shows


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A big number."""

    label: str
    value: str
    unit: str = ""
    detail: str
    strip: Markup | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its title and explanation."""

    title: str
    note: str
    chart: Markup | None
    files: tuple[str, ...] = ()


def write_report(data: ReportData, folder: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into a folder, each file atomically.

    Args:
        data: what to show. NaN and infinity become null in the JSON and "–" on the page.
        folder: created if missing; usually the run folder.

    Returns:
        The path of the page.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_atomic(folder / "report.json", data.model_dump_json(indent=2) + "\n")
    page = folder / "report.html"
    write_atomic(page, render(data))
    return page


def render(data: ReportData) -> str:
    """The page as one HTML text."""
    environment = page_environment(_HERE)
    environment.filters["duration"] = duration
    shown = data.examples.shown if data.examples else ()
    hero = next((e for e in shown if e.pick == "typical"), shown[0] if shown else None)
    others = [example for example in shown if example is not hero]
    leading = [example for example in others if example.pick == "random"][:LEADING_EXAMPLES]
    return environment.get_template("report.html.jinja").render(
        data=data,
        percent=percent,
        **page_style(),
        headline=headline(data),
        tiles=tiles(data),
        further=further_verdicts(data),
        hero=hero,
        leading=leading,
        suite_parts=table_parts(data.suites) if data.suites else {},
        examples=[example for example in others if example not in leading],
        arrange=lambda example: _ordered_answers(data, example),
        sensible=_sensible,
        anchors={example.id: f"example-{i}" for i, example in enumerate(shown)},
        win_chart=_win_chart(data),
        kl_figure=_kl_figure(data.against_kl, data.before) if data.against_kl else None,
        panels=list(_panel_figures(data.series)),
        unrecorded=[title for key, (title, _) in PANELS.items() if all(s.panel != key for s in data.series)],
        accuracy_chart=_accuracy_chart(data.reward_model, data.ceiling) if data.reward_model else None,
        calibration_chart=_calibration_chart(data.reward_model) if data.reward_model else None,
        agreement_chart=_agreement_chart(data.agreement),
        undefined=[e for e in data.agreement if not _finite(e.value)],
        probe_rows=_probe_rows(data),
        missing=lambda part: _why_missing(data, part),
        other_missing=[reason for part, reason in data.missing.items() if part not in _TITLES and part != "suites"],
        not_finite=list(_not_finite(data.model_dump())),
        shorten=lambda text: shorten(text, **_ANSWER_LIMITS),
        interval=interval,
        value_text=value_text,
        change_text=change_text,
    )


def headline(data: ReportData) -> str:
    """One sentence that says what happened, and claims no more than the interval allows."""
    row = _main_row(data)
    if row is None:
        last, first = _sentence_name(data, data.after), _sentence_name(data, data.first)
        return f"There is no verdict on {last} against {first}. {_why_missing(data, 'win_rates')}"
    model, against = _sentence_name(data, row.model), _sentence_name(data, row.against)
    if not _finite(row.rate, row.low, row.high):
        return f"There is no verdict on {model} against {against}: their win rate is not a finite number."
    share = f"{percent(row.rate)} {interval(row.low, row.high, percent)} of {row.n} held-out prompts"
    if row.low > 0.5:
        verdict = f"{model}’s answers were preferred over {against}’s on {share}"
    elif row.high < 0.5:
        verdict = f"{model}’s answers lost to {against}’s: they were preferred on only {share}"
    else:
        verdict = f"No clear difference: {model}’s answers were preferred over {against}’s on {share}"
    return f"{verdict[0].upper()}{verdict[1:]}, judged by {row.metric}."


def further_verdicts(data: ReportData) -> list[str]:
    """Comparisons that the headline leaves out: the last model against the others, one line per judge."""
    main = _main_row(data)
    pairs = [(data.after, data.first), (data.after, data.before)]
    by_judge: dict[str, list[str]] = {}
    for row in data.win_rates:
        if row != main and (row.model, row.against) in pairs and _finite(row.rate, row.low, row.high):
            share = f"{percent(row.rate)} {interval(row.low, row.high, percent)}"
            by_judge.setdefault(row.metric, []).append(f"{share} over {_sentence_name(data, row.against)}")
    main_metric = main.metric if main is not None else ""
    return [
        f"{data.after}, {'by the same judge' if metric == main_metric else f'by {metric}'}: {', '.join(shares)}."
        for metric, shares in by_judge.items()
    ]


def _sentence_name(data: ReportData, model: str) -> str:
    """A model's name in a sentence."""
    return data.spoken.get(model, model)


def tiles(data: ReportData) -> list[Tile]:
    """The big numbers of the first screen; numbers that the run does not have are left out."""
    numbers = []
    row = _main_row(data)
    if row is not None:
        label = f"{row.name}, judged by {row.metric}"
        interval_text = interval(row.low, row.high, percent)
        chart = None
        if _finite(row.rate, row.low, row.high):
            chart = strip(
                row.rate, row.low, row.high, reference=0.5, title=f"{label}: {percent(row.rate)} {interval_text}"
            )
        detail = f"{interval_text} of {row.n} prompts; the mark is 50\u202f%"
        numbers.append(Tile(label=label, value=percent(row.rate), detail=detail, strip=chart))
    if data.kl is not None:
        detail = f"{interval(data.kl.low, data.kl.high)} per answer, n = {data.kl.n}".lstrip()
        numbers.append(Tile(label=f"KL from {data.before}", value=number(data.kl.value), unit="nats", detail=detail))
    columns = {column.model: column.values for column in data.probes}
    first_values, last_values = columns.get(data.first, {}), columns.get(data.after, {})
    length = "tokens" if "tokens" in last_values else "words"
    for key, label, unit, show in (
        (length, "Mean length", length, number),
        ("ended_rate", "Ended by itself", "", percent),
        ("distinct_answers", "Different answers", "", percent),
    ):
        if key in last_values:
            detail = f"{data.first}: {show(first_values[key])}" if key in first_values else ""
            numbers.append(Tile(label=label, value=show(last_values[key]), unit=unit, detail=detail))
    return numbers


def duration(seconds: float | None) -> str:
    """Seconds in readable form.

    >>> duration(4.24), duration(754), duration(7325)
    ('4.2 s', '12 min 34 s', '2 h 02 min')
    """
    if seconds is None or not _finite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _main_row(data: ReportData) -> WinRateRow | None:
    main = [row for row in data.win_rates if (row.model, row.against) == (data.after, data.first)]
    return next(iter(main or data.win_rates), None)


def _why_missing(data: ReportData, part: str) -> str:
    return data.missing.get(part) or f"This run has no {_TITLES[part]}."


def _ordered_answers(data: ReportData, example: Example) -> list[Answer]:
    """The answers to compare side by side: of the first and the last model, then of the models between them."""
    first_and_last = [answer for name in (data.first, data.after) for answer in example.answers if answer.model == name]
    return first_and_last + [answer for answer in example.answers if answer not in first_and_last]


def _sensible(reading: Reading) -> str:
    """The number of answers of each model that a reader called sensible, in words."""
    return ", ".join(f"{model} {sensible} of {n}" for model, (sensible, n) in reading.sensible.items())


def _win_chart(data: ReportData) -> Markup | None:
    tones = {data.after: "a", data.first: "b"}
    rows = [
        Row(
            name=row.name,
            note=row.metric,
            value=row.rate,
            low=row.low,
            high=row.high,
            tone=tones.get(row.model, "quiet"),
        )
        for row in data.win_rates
        if _finite(row.rate, row.low, row.high)
    ]
    return row_chart(rows, title="Win rates", reference=0.5, reference_label="no preference")


def _kl_figure(points: RewardAgainstKL, before: str) -> Figure:
    lines, scales, raw_changes = [], [], []
    for tone, score in zip(cycle("acdb"), points.scores, strict=False):
        finite_scores = [y for y in score.y if _finite(y)]
        if not finite_scores or not _finite(score.spread) or score.spread <= 0:
            scales.append(f"{score.name} has no spread to measure it by and is not drawn")
            continue
        x = [math.sqrt(max(0.0, kl)) if _finite(kl) else math.nan for kl in points.kl]
        lines.append(Line(name=score.name, x=x, y=[(y - finite_scores[0]) / score.spread for y in score.y], tone=tone))
        scales.append(f"{score.name}: 1 SD = {number(score.spread)}")
        raw_changes.append(f"{score.name} went from {number(finite_scores[0])} to {number(finite_scores[-1])}")
    origin = "the moving reference" if points.moving else before
    chart = line_chart(
        lines,
        title="Reward against the square root of KL",
        x_label=f"√KL from {origin} (√nats)",
        y_label=f"gain in SD of the {before} answers",
        height=280,
    )
    note = f"One scale for all: gain over the first point, in standard deviations of that reward over the {before} "
    note += f"answers ({'; '.join(scales)})."
    if raw_changes:
        note += f" In their own units {', '.join(raw_changes)}."
    if points.moving:
        note += " The reference moved along (align.reference_update): √KL is the distance from where it was at each "
        note += f"step, so it can shrink while the policy moves away from {before}."
    return Figure(title="Reward against √KL", note=note, chart=chart)


def _panel_figures(series: Sequence[Series]) -> Iterator[Figure]:
    present = dict.fromkeys(s.panel for s in series)
    for panel in [key for key in PANELS if key in present] + [key for key in present if key not in PANELS]:
        group = [s for s in series if s.panel == panel]
        title, note = PANELS.get(panel, (panel, ""))
        share = group[0].unit == "share"
        chart = line_chart(
            [
                Line(name=s.name if len(group) > 1 else "", x=s.x, y=s.y, low=s.low, high=s.high, tone=tone)
                for s, tone in zip(group, cycle(_PANEL_TONES.get(panel, "abcd")), strict=False)
            ],
            title=title,
            x_label=group[0].x_unit,
            y_label="" if share else group[0].unit,
            show=percent if share else number,
            width=340,
            height=210,
        )
        averaged = math.ceil(max(len(s.y) for s in group) / POINTS)
        if averaged > 1:
            note += f" Each point is the mean of {averaged} logged ones."
        gaps = sum(not _finite(y) for s in group for y in s.y)
        if gaps:
            note += f" {gaps} of {sum(len(s.y) for s in group)} points are not finite and left out."
        yield Figure(title=title, note=note, chart=chart, files=tuple(dict.fromkeys(s.file for s in group if s.file)))


def _accuracy_chart(result: RewardModelEval, ceiling: Estimate | None) -> Markup | None:
    baselines = [
        (b.accuracy.model_copy(update={"name": BASELINES[b.name]}), "quiet")
        for b in result.baselines
        if b.name != "longest"
    ]
    estimates = [(result.accuracy, "a"), (result.longest, "quiet"), *baselines] + ([(ceiling, "c")] if ceiling else [])
    rows = _rows(estimates)
    lowest = min((row.low if row.low is not None else row.value for row in rows), default=0.5)
    domain = (0.4, 1.0) if lowest >= 0.4 else (0.0, 1.0)
    return row_chart(rows, title="Held-out accuracy", domain=domain, reference=0.5, reference_label="guessing")


def _agreement_chart(estimates: Sequence[Estimate]) -> Markup | None:
    rows = _rows([(estimate, "c") for estimate in estimates])
    lowest = min((row.low if row.low is not None else row.value for row in rows), default=0.0)
    return row_chart(rows, title="Agreement", show=number, domain=(-1.0 if lowest < 0 else 0.0, 1.0))


def _rows(estimates: Sequence[tuple[Estimate, str]]) -> list[Row]:
    rows = []
    for estimate, tone in estimates:
        if estimate.value is not None and _finite(estimate.value):
            ends = (estimate.low, estimate.high) if _finite(estimate.low, estimate.high) else (None, None)
            note = " · ".join(filter(None, [f"n = {estimate.n}", estimate.reason]))
            rows.append(Row(name=estimate.name, note=note, value=estimate.value, low=ends[0], high=ends[1], tone=tone))
    return rows


def _calibration_chart(result: RewardModelEval) -> Markup | None:
    rows = result.calibration
    measured = Line(
        name="",
        x=[row.confidence for row in rows],
        y=[row.accuracy for row in rows],
        low=[row.accuracy_low for row in rows],
        high=[row.accuracy_high for row in rows],
        whiskers=True,
    )
    ideal = Line(name="ideal", x=(0.5, 1.0), y=(0.5, 1.0), tone="quiet")
    return line_chart(
        [measured, ideal],
        title="Calibration",
        x_label="confidence of the reward model",
        y_label="how often it was right",
        show=percent,
        show_x=percent,
    )


def _probe_rows(data: ReportData) -> list[tuple[str, list[str]]]:
    keys = dict.fromkeys([*PROBES, *(key for column in data.probes for key in column.values)])
    return [
        (
            PROBES[key].title if key in PROBES else key,
            [
                (percent if key in PROBES and PROBES[key].unit == "share" else number)(c.values.get(key))
                for c in data.probes
            ],
        )
        for key in keys
        if any(key in column.values for column in data.probes)
    ]


def _not_finite(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all numbers that are NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_finite(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{path}.{index}")


def _finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)
