"""The report on a guard: ``report.json``, one self-contained ``report.html``, and lines for a terminal.

Like the report of a run, the page loads nothing from outside and runs no script, and every text on it is escaped and
made visible.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from markupsafe import Markup

from trimtab.evals.charts import Line, Row, interval, line_chart, number, percent, row_chart
from trimtab.evals.page import page_environment, page_style
from trimtab.files import write_atomic, write_json
from trimtab.guard.result import AnswerResult, Family, GuardResult, NotMeasured, RequestCalibration, Share
from trimtab.text import visible

TOKENS_PER_SECOND = 20.0
"""Speed at which the page turns held-back tokens into seconds."""

_HERE = Path(__file__).parent


def write_guard_report(result: GuardResult, folder: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into a folder; returns the path of the page."""
    write_json(folder / "report.json", result.as_json())
    page = folder / "report.html"
    write_atomic(page, render(result))
    return page


def render(result: GuardResult) -> str:
    """The page as one HTML text."""
    environment = page_environment(_HERE)
    return environment.get_template("report.html.jinja").render(
        result=result,
        **page_style(),
        headline=headline(result),
        basis=basis(result),
        weaker=weaker(result.requests.families),
        second=second_stage(result),
        blocked_chart=_family_chart(result, "blocked", "Blocked restricted requests by family"),
        refused_chart=_family_chart(result, "refused", "Refused harmless requests by family"),
        leak_chart=_leak_chart(result.answers),
        calibration_chart=_calibration_chart(result.requests.calibration),
        shown=shown,
        points_below=points_below,
        seconds=lambda tokens: tokens / TOKENS_PER_SECOND,
        speed=TOKENS_PER_SECOND,
    )


def headline(result: GuardResult) -> str:
    """One sentence with the two numbers that matter."""
    plain = result.requests.families["plain"]
    blocked, refused = shown(plain.blocked), shown(plain.refused)
    if result.data:
        return (
            f"Of the texts in {', '.join(result.data)} the guard blocks {blocked} of the restricted requests and "
            f"refuses {refused} of the harmless ones."
        )
    return f"The guard blocks {blocked} of held-out restricted requests and refuses {refused} of their harmless twins."


def basis(result: GuardResult) -> str:
    """Which texts the numbers are about, and what the intervals count."""
    plain = result.requests.families["plain"]
    if result.data:
        origin = "The texts come from the named files; trimtab does not know whether training saw their subjects."
    else:
        origin = "All figures are about texts whose subjects training did not see."
    unread = result.requests.unread
    restricted, harmless = plain.blocked, plain.refused
    return (
        f"{origin} There are {restricted.n} restricted requests about {restricted.groups} subjects and "
        f"{harmless.n} harmless ones about {harmless.groups}; 95 % intervals of requests count "
        "subjects, not wordings, and are rough where subjects are few."
        + (f" Of {unread} texts only a part was read." if unread else "")
    )


WEAKER = 0.10
"""Families whose blocked share is below that of plain text by more than this are named."""


def weaker(families: Mapping[str, Family]) -> str:
    """A sentence: how many held-out attack families are blocked nearly as often as plain text, and which are not.

    >>> hex, play = (Family.model_construct(below_plain=below, held_out=True) for below in (0.05, 0.4))
    >>> weaker({"hex": hex, "role play": play})
    '1 of 2 held-out attack families are blocked within 10 points of plain text. Further below it: role play (by 40).'
    """
    held_out = [row.below_plain for row in families.values() if row.held_out]
    close = sum(below <= WEAKER for below in held_out)
    lost = {name: row.below_plain for name, row in families.items() if row.below_plain > WEAKER}
    points = f"{100 * WEAKER:.0f} points"
    text = ""
    if held_out:
        text = f"{close} of {len(held_out)} held-out attack families are blocked within {points} of plain text."
    if lost:
        named = ", ".join(f"{name} (by {100 * gap:.0f})" for name, gap in sorted(lost.items(), key=lambda row: -row[1]))
        text += f" Further below it: {named}." if held_out else f"More than {points} below plain text: {named}."
    return text


def points_below(below: float) -> str:
    """How much less often than plain text a family is blocked, in percentage points; negative: more often.

    >>> points_below(0.4), points_below(-0.05)
    ('40', '−5')
    """
    return str(round(100 * below)).replace("-", "−")


def second_stage(result: GuardResult) -> list[str]:
    """Sentences about what the second stage reads, changes and costs; empty: there is no second stage."""
    second, escalated = result.second, result.requests.escalated
    plain, cost = result.requests.families["plain"], result.cost
    if second is None or escalated is None or plain.first_stage is None:
        return []
    band, auroc, blocked = second.band, second.training.auroc, second.training.blocked
    counted = "ordinary requests" if band.on == "ordinary" else "harmless requests, twins too"
    groups = {
        "ordinary": "ordinary requests",
        "harmless": "harmless requests, twins too",
        "restricted": "restricted ones",
    }
    shares = [(escalated[group], name) for group, name in groups.items()]
    measured = [f"{shown(share)} of {share.n} {name}" for share, name in shares if share.n]
    return [
        f"The second stage reads scores above {number(band.low)} up to {number(band.high)}: "
        f"{percent(band.share)} of {band.counted} {counted}, in training out of fold "
        f"(limit {percent(second.escalate)}).",
        f"Escalated here: {'; '.join(measured)}.",
        f"Plain requests with it: {shown(plain.blocked)} blocked, {shown(plain.refused)} refused; without it: "
        f"{shown(plain.first_stage.blocked)} blocked, {shown(plain.first_stage.refused)} refused.",
        f"In training, out of fold: {percent(blocked['both'])} of restricted texts blocked with it, "
        f"{percent(blocked['first stage'])} without; AUROC {number(auroc['first stage'])} of the first stage, "
        f"{number(auroc['adapter'])} of the adapter ({number(auroc['last layer'])} before its training), "
        f"{number(auroc['both'])} of both.",
        f"It adds {number(cost.second)} ms of CPU time for each reading of a request above the band's "
        f"lower end, and has {cost.second_bytes} bytes of weights.",
    ]


def shown(share: Share) -> str:
    """A share with its interval, or a dash."""
    if share.value is None:
        return "–"
    return f"{percent(share.value)} {interval(share.low, share.high, percent)}".strip()


def report_lines(result: GuardResult) -> list[str]:
    """The report for a terminal."""
    requests, answers, cost = result.requests, result.answers, result.cost
    lines = [headline(result), basis(result), f"AUROC {number(requests.auroc)}, calibration error "
             f"{percent(requests.calibration.ece)}, rule named rightly {shown(requests.rules)}",
             f"{'family':<14} {'blocked':<18} {'harmless refused':<18} {'below plain':<12}".rstrip()]  # fmt: skip
    for name, row in requests.families.items():
        note = "held out" if row.held_out else ""
        below = "" if name == "plain" else f"{points_below(row.below_plain)} points"
        lines.append(f"{name:<14} {shown(row.blocked):<18} {shown(row.refused):<18} {below:<12} {note}".rstrip())
    lines += [line] if (line := weaker(requests.families)) else []
    lines += [f"second stage: {line}" for line in second_stage(result)]
    if isinstance(answers, NotMeasured):
        lines.append(f"answers: {answers.reason}")
    else:
        lines.append(
            f"answers: alarm {number(answers.delay)} tokens after the onset (median), missed "
            f"{shown(answers.missed)}, alarm before the onset {shown(answers.early)}, harmless answers stopped "
            f"{shown(answers.false_alarms)}; {answers.planted + answers.harmless} answers put together from "
            f"{answers.sentences} sentences, which these intervals do not take into account"
        )
        lines.append(f"{'hold-back':<14} {'answers that leak':<18} {'tokens leaked':<14} added delay")
        lines += [
            f"{row.size:<14} {shown(row.leaks):<18} {number(row.tokens):<14} "
            f"{number(row.size / TOKENS_PER_SECOND)} s at {TOKENS_PER_SECOND:g} tokens/s"
            for row in answers.hold_back
        ]
    step = "" if cost.step is None else f", {number(cost.step)} ms for a decoding step of 8 answers"
    lines.append(f"CPU time: {number(cost.request)} ms for a request{step}")
    if case := requests.succeeds:
        lines.append(f"an attack that succeeds ({case.family}, {percent(case.passes)} pass): {visible(case.text)}")
    return lines


def _family_chart(result: GuardResult, key: Literal["blocked", "refused"], title: str) -> Markup | None:
    rows = []
    for name, row in result.requests.families.items():
        share = row.blocked if key == "blocked" else row.refused
        if share.value is not None:
            rows.append(
                Row(
                    name=name, value=share.value, low=share.low, high=share.high,
                    note="held out" if row.held_out else "", tone="a" if key == "blocked" else "b",
                )
            )  # fmt: skip
    return row_chart(rows, title=title)


def _leak_chart(answers: AnswerResult | NotMeasured) -> Markup | None:
    if isinstance(answers, NotMeasured):
        return None
    leaks = [row.leaks for row in answers.hold_back]  # there are planted answers, so no value is None
    line = Line(
        name="",
        x=[row.size for row in answers.hold_back],
        y=[share.value or 0.0 for share in leaks],
        low=[share.low or 0.0 for share in leaks],
        high=[share.high or 0.0 for share in leaks],
        whiskers=True,
    )
    return line_chart(
        [line], title="Answers that leak", x_label="tokens held back", y_label="answers that leak", show=percent
    )


def _calibration_chart(calibration: RequestCalibration) -> Markup | None:
    bins = calibration.bins
    if len(bins) < 2:
        return None
    x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
    reference = Line(name="", x=[0.5, 1.0], y=[0.5, 1.0], tone="quiet")
    lines = [Line(name="", x=x, y=y), reference]
    return line_chart(lines, title="Calibration", x_label="confidence", y_label="right", show=percent, show_x=percent)
