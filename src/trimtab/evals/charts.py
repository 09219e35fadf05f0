"""Charts as inline SVG text: lines with bands, whiskers and direct labels, and rows of intervals.

Pure functions from numbers to :class:`markupsafe.Markup`. Colours are CSS classes (``tone-…``),
so the same chart works on light and dark pages; there are no style attributes and no scripts. Charts
are 340 or 400 units wide and meant to be shown at about as many pixels, so that their text stays
readable on a phone. Numbers that are not finite leave a gap.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from trimtab.text import visible

_LETTER_WIDTH = 6.3  # mean width of a letter at the charts' text size, in SVG units
_BOLD_WIDTH = 7.0  # the same in bold
_PERCENT = "\u202f%"

POINTS = 200
"""Largest number of points drawn per line; if there are more, equal runs of neighbours are averaged."""

Show = Callable[[float | None], str]
"""Writes a number as text."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart."""

    name: str
    """Label at the end of the line; empty: no label."""
    x: Sequence[float]
    """Positions, in the order in which they are joined."""
    y: Sequence[float]
    """Values."""
    low: Sequence[float] | None = None
    """Lower ends of intervals."""
    high: Sequence[float] | None = None
    """Upper ends of intervals."""
    tone: str = "a"
    """Colour: a, b, c, d, or ``quiet`` for a reference line (dashed, no tooltips)."""
    whiskers: bool = False
    """True: intervals are drawn as whiskers (separate measurements); False: as a band (a curve)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One interval of a row chart."""

    name: str
    """Label above the interval."""
    value: float
    """Estimate, finite."""
    low: float | None = None
    """Lower end; None: only the estimate is drawn."""
    high: float | None = None
    """Upper end."""
    note: str = ""
    """Text after the label, in a quieter style."""
    tone: str = "a"
    """Colour, as in :class:`Line`."""


def number(value: float | None) -> str:
    """A number with two or three significant digits for reading; ``–`` if it is not finite.

    >>> number(0.12345), number(-48.26), number(12345.6), number(float("nan"))
    ('0.12', '−48.3', '12\u202f346', '–')
    """
    if value is None or not _finite(value):
        return "–"
    size = abs(value)
    if 0 < size < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif size >= 1000:
        text = f"{value:,.0f}".replace(",", "\u202f")
    else:
        digits = 3 if size < 0.0995 else 2 if size < 9.995 else 1 if size < 99.95 else 0
        text = f"{value:.{digits}f}"
    return ("0" if size == 0 else text).replace("-", "−")


def percent(value: float | None) -> str:
    """A share as a percentage; ``–`` if it is not finite.

    >>> percent(0.784), percent(0.004), percent(None)
    ('78\u202f%', '0.4\u202f%', '–')
    """
    if value is None or not _finite(value):
        return "–"
    percentage = 100 * value
    near_end = 0 < abs(percentage) < 1 or 99 < abs(percentage) < 100
    return f"{percentage:.{1 if near_end else 0}f}{_PERCENT}".replace("-", "−")


def interval(low: float | None, high: float | None, show: Show = number) -> str:
    """An interval in brackets, without a percent sign; empty if there is none.

    >>> interval(0.712, 0.84, percent), interval(None, None)
    ('[71, 84]', '')
    """
    if low is None or high is None:
        return ""
    return f"[{show(low).removesuffix(_PERCENT)}, {show(high).removesuffix(_PERCENT)}]"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from at or below ``low`` to at or above ``high``.

    Steps are 1, 2 or 5 times a power of ten, after P. S. Heckbert, "Nice Numbers for Graph
    Labels", Graphics Gems (1990). Equal ends are moved apart first.

    >>> ticks(0, 97)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    if low > high or not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(f"ticks need finite low <= high, got {low} and {high}")
    low, high = _distinct_ends(low, high)
    span = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(span))
    ratio = span / power
    step = power * (1 if ratio < 1.5 else 2 if ratio < 3 else 5 if ratio < 7 else 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)) + 1)
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    show: Show = number,
    show_x: Show = number,
    width: int = 400,
    height: int = 250,
) -> Markup | None:
    """Lines over a common pair of axes, each labelled at its end; None if there is nothing to draw.

    Args:
        lines: what to draw, the first one on top.
        title: what the chart shows, for screen readers.
        x_label: name and unit under the axis.
        y_label: name and unit above the axis.
        show: writes a y value.
        show_x: writes an x value.
        width: in SVG units.
        height: in SVG units.
    """
    xs = [x for line in lines for x, y in zip(line.x, line.y, strict=True) if _finite(x, y)]
    if not xs:
        return None
    lines = [_downsampled(line) for line in lines]
    ys = [v for line in lines for side in (line.y, line.low, line.high) for v in side or () if _finite(v)]
    (x_low, x_high), (y_low, y_high) = _distinct_ends(min(xs), max(xs)), _padded(min(ys), max(ys))
    x_marks, y_marks = _ticks_within(x_low, x_high), _ticks_within(y_low, y_high)
    if all(float(x).is_integer() for x in xs):
        x_marks = [mark for mark in x_marks if mark.is_integer()]

    def x_text(x: float | None) -> str:
        return f"{x:.0f}" if x is not None and float(x).is_integer() and show_x is number else show_x(x)

    y_texts = _tick_texts(y_marks, show)
    labels = [_wrapped(line.name) for line in lines]
    left = 10 + _LETTER_WIDTH * max(map(len, y_texts))
    right = 12 + _BOLD_WIDTH * max((len(part) for label in labels for part in label), default=0)
    top, bottom = 24 if y_label else 8, 36
    sx = _scale(x_low, x_high, left, width - right)
    sy = _scale(y_low, y_high, height - bottom, top)

    parts = [f'<text class="axis-title" x="0" y="12">{_text(y_label)}</text>']
    for mark, text in zip(y_marks, y_texts, strict=True):
        parts.append(f'<path class="grid" d="M{left:.1f} {sy(mark):.1f}H{width - right:.1f}"/>')
        parts.append(f'<text class="tick end" x="{left - 6:.1f}" y="{sy(mark) + 4:.1f}">{text}</text>')
    parts.append(f'<path class="axis" d="M{left:.1f} {height - bottom}H{width - right:.1f}"/>')
    for mark, text in zip(x_marks, _tick_texts(x_marks, show_x), strict=True):
        parts.append(f'<text class="tick middle" x="{sx(mark):.1f}" y="{height - bottom + 16}">{text}</text>')
    parts.append(f'<text class="axis-title end" x="{width - right:.1f}" y="{height - 3}">{_text(x_label)}</text>')
    for line in reversed(lines):
        parts.append(_line_svg(line, sx, sy, x_text, show))
    parts.extend(_end_labels(lines, labels, sy, width - right + 7, top, height - bottom))
    return _svg(parts, title, _description(lines, x_label, x_text, show), width=width, height=height)


def row_chart(
    rows: Sequence[Row],
    *,
    title: str,
    show: Show = percent,
    domain: tuple[float, float] = (0.0, 1.0),
    reference: float | None = None,
    reference_label: str = "",
) -> Markup | None:
    """Estimates with intervals, one under the other (a forest plot); None if there are no rows.

    Args:
        rows: what to draw, from top to bottom.
        title: what the chart shows, for screen readers.
        show: writes a value.
        domain: ends of the axis; values outside are drawn at its ends.
        reference: the value of "no effect", marked by a dashed line.
        reference_label: meaning of that line.
    """
    if not rows:
        return None
    width, pitch, margin = 400, 44, 8
    axis_y = pitch * len(rows)
    linear = _scale(*domain, margin, width - margin)

    def sx(value: float) -> float:
        return linear(min(max(value, domain[0]), domain[1]))

    parts = []
    marks = _ticks_within(*domain)
    for mark, text in zip(marks, _tick_texts(marks, show), strict=True):
        anchor = "start" if mark == domain[0] else "end" if mark == domain[1] else "middle"
        x = {"start": 0.0, "end": float(width)}.get(anchor, sx(mark))
        parts.append(f'<text class="tick {anchor}" x="{x:.1f}" y="{axis_y + 12}">{text}</text>')
    if reference is not None:
        parts.append(
            f'<text class="tick middle" x="{sx(reference):.1f}" y="{axis_y + 27}">{_text(reference_label)}</text>'
        )
    for index, row in enumerate(rows):
        y = pitch * index
        value = _with_interval(row.value, row.low, row.high, show)
        room = int((width - _LETTER_WIDTH * (len(value) + 2) - _BOLD_WIDTH * len(row.name)) / _LETTER_WIDTH)
        name, note = (
            _truncated(row.name, int((width - _LETTER_WIDTH * len(value)) / _BOLD_WIDTH) - 2),
            _truncated(row.note, room - 1),
        )
        rails = "".join(f"M{sx(mark):.1f} {y + 23}v14" for mark in marks)
        parts.append(
            f'<path class="grid" d="M{margin} {y + 30}H{width - margin}{rails}"/>'
            f'<g class="tone-{row.tone}"><title>{_text(f"{row.name} {row.note}: {value}")}</title>'
            f'<rect class="hit" x="0" y="{y}" width="{width}" height="{pitch}"/>'
            f'<text class="row-name" x="0" y="{y + 14}">{_text(name)}'
            f'<tspan class="row-note" dx="6">{_text(note)}</tspan></text>'
            f'<text class="row-value end" x="{width}" y="{y + 14}">{_text(value)}</text>'
        )
        if reference is not None:
            parts.append(f'<path class="reference" d="M{sx(reference):.1f} {y + 21}v18"/>')
        if row.low is not None and row.high is not None:
            parts.append(f'<path class="interval" d="M{sx(row.low):.1f} {y + 30}H{sx(row.high):.1f}"/>')
        parts.append(f'<circle class="dot" cx="{sx(row.value):.1f}" cy="{y + 30}" r="5"/></g>')
    description = "; ".join(
        f"{row.name} {row.note} {_with_interval(row.value, row.low, row.high, show)}" for row in rows
    )
    height = axis_y + (34 if reference_label else 18)
    return _svg(parts, title, description, width=width, height=height)


def strip(value: float, low: float, high: float, *, reference: float, title: str) -> Markup:
    """A very small chart of an interval on the axis from 0 to 1, to put under a big number."""
    width, height = 200, 16
    sx = _scale(0, 1, 4, width - 4)

    def clamp(share: float) -> float:
        return sx(min(max(share, 0.0), 1.0))

    parts = [
        f'<path class="rail" d="M{sx(0):.1f} 8H{sx(1):.1f}"/>',
        f'<path class="reference" d="M{clamp(reference):.1f} 1V15"/>',
        f'<g class="tone-a"><path class="interval" d="M{clamp(low):.1f} 8H{clamp(high):.1f}"/>',
        f'<circle class="dot" cx="{clamp(value):.1f}" cy="8" r="5"/></g>',
    ]
    return _svg(parts, title, "", width=width, height=height)


def _line_svg(line: Line, sx: Callable[[float], float], sy: Callable[[float], float], x_text: Show, show: Show) -> str:
    """One line: interval first, then the path with gaps, then points that carry their numbers."""
    n = len(line.x)
    lows, highs = line.low or [math.nan] * n, line.high or [math.nan] * n
    rows = list(zip(line.x, line.y, lows, highs, strict=True))
    parts = [f'<g class="tone-{line.tone}">']
    if line.whiskers:
        for x, _, low, high in rows:
            if _finite(x, low, high):
                parts.append(f'<path class="whisker" d="M{sx(x):.1f} {sy(low):.1f}V{sy(high):.1f}"/>')
    else:
        for run in _runs(rows, lambda row: _finite(row[0], row[2], row[3])):
            outline = [(r[0], r[3]) for r in run] + [(r[0], r[2]) for r in reversed(run)]
            parts.append(f'<path class="band" d="M{"L".join(f"{sx(x):.1f} {sy(y):.1f}" for x, y in outline)}Z"/>')
    for run in _runs(rows, lambda row: _finite(row[0], row[1])):
        parts.append(f'<path class="line" d="M{"L".join(f"{sx(r[0]):.1f} {sy(r[1]):.1f}" for r in run)}"/>')
    if line.tone != "quiet":
        style = "dot" if n <= 20 else "hit"
        for x, y, low, high in rows:
            if _finite(x, y):
                ends = (low, high) if _finite(low, high) else (None, None)
                tip = _text(f"{line.name} at {x_text(x)}: {_with_interval(y, *ends, show)}".strip())
                parts.append(
                    f'<circle class="{style}" cx="{sx(x):.1f}" cy="{sy(y):.1f}" r="3.5"><title>{tip}</title></circle>'
                )
    return "".join(parts) + "</g>"


def _end_labels(
    lines: Sequence[Line],
    labels: Sequence[Sequence[str]],
    sy: Callable[[float], float],
    x: float,
    top: int,
    bottom: int,
) -> Iterable[str]:
    """Names at the ends of the lines, moved apart so that none covers another."""
    placements = []
    for line, label in zip(lines, labels, strict=True):
        last = next((y for y in reversed(line.y) if _finite(y)), None)
        if label and last is not None:
            placements.append((sy(last), 13 * len(label) + 2, line, label))
    placements.sort(key=lambda item: item[0])
    middles: list[float] = []
    for y, size, *_ in placements:
        lowest = middles[-1] + (placements[len(middles) - 1][1] + size) / 2 if middles else top + size / 2
        middles.append(max(y, lowest))
    limit = float(bottom)
    for i in reversed(range(len(middles))):
        middles[i] = min(middles[i], limit - placements[i][1] / 2)
        limit = middles[i] - placements[i][1] / 2
    for middle, (_, _, line, label) in zip(middles, placements, strict=True):
        first = middle + 4 - 6.5 * (len(label) - 1)
        spans = "".join(f'<tspan x="{x:.1f}" y="{first + 13 * i:.1f}">{_text(t)}</tspan>' for i, t in enumerate(label))
        yield f'<text class="label tone-{line.tone}">{spans}</text>'


def _downsampled(line: Line) -> Line:
    """Average runs of neighbours so that at most :data:`POINTS` points are drawn."""
    run = math.ceil(len(line.x) / POINTS)
    if run <= 1:
        return line

    def mean(values: Sequence[float] | None) -> list[float] | None:
        if values is None:
            return None
        chunks = [[v for v in values[i : i + run] if _finite(v)] for i in range(0, len(values), run)]
        return [math.fsum(chunk) / len(chunk) if chunk else math.nan for chunk in chunks]

    return Line(
        name=line.name,
        x=mean(line.x) or [],
        y=mean(line.y) or [],
        low=mean(line.low),
        high=mean(line.high),
        tone=line.tone,
        whiskers=line.whiskers,
    )


def _runs(
    rows: Sequence[tuple[float, float, float, float]], is_drawable: Callable[[tuple[float, float, float, float]], bool]
) -> list[list[tuple[float, float, float, float]]]:
    runs: list[list[tuple[float, float, float, float]]] = [[]]
    for row in rows:
        if is_drawable(row):
            runs[-1].append(row)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _description(lines: Sequence[Line], x_label: str, x_text: Show, show: Show) -> str:
    curves = []
    for line in lines:
        rows = [(x, y) for x, y in zip(line.x, line.y, strict=True) if _finite(x, y)]
        if rows and line.tone != "quiet":
            (x0, y0), (x1, y1) = rows[0], rows[-1]
            curves.append(f"{line.name} {show(y0)} at {x_text(x0)}, {show(y1)} at {x_text(x1)}".strip())
    return f"{'; '.join(curves)} ({x_label})"


def _svg(parts: Sequence[str], title: str, description: str, *, width: int, height: int) -> Markup:
    label = _text(f"{title}. {description}" if description else title)
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
    return Markup(f"{head}{''.join(parts)}</svg>")


def _text(text: str) -> str:
    return str(escape(visible(text)))


def _with_interval(value: float, low: float | None, high: float | None, show: Show) -> str:
    return f"{show(value)} {interval(low, high, show)}".rstrip()


def _truncated(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…" if length > 3 else ""


def _wrapped(name: str) -> list[str]:
    """A label in one line, or broken into two lines at the space nearest its middle."""
    name = _truncated(name, 28)
    spaces = [i for i, letter in enumerate(name) if letter == " "]
    if len(name) <= 10 or not spaces:
        return [name] if name else []
    break_at = min(spaces, key=lambda i: abs(i - len(name) / 2))
    return [name[:break_at], name[break_at + 1 :]]


def _tick_texts(marks: Sequence[float], show: Show) -> list[str]:
    """All marks with the decimals that their step needs."""
    if show not in (number, percent) or len(marks) < 2:
        return [show(mark) for mark in marks]
    scale, unit = (100, _PERCENT) if show is percent else (1, "")
    step = scale * min(b - a for a, b in pairwise(marks))
    is_general = scale * max(map(abs, marks)) >= 1e6 or step < 1e-3
    number_format = "g" if is_general else f",.{max(0, -math.floor(math.log10(step) + 1e-9))}f"
    return [f"{scale * mark:{number_format}}{unit}".replace(",", "\u202f").replace("-", "−") for mark in marks]


def _ticks_within(low: float, high: float) -> list[float]:
    return [mark for mark in ticks(low, high) if low <= mark <= high]


def _distinct_ends(low: float, high: float) -> tuple[float, float]:
    """Two ends that differ; a single value gets a margin on both sides."""
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        return low, high
    margin = abs(low) / 2 or 0.5
    return low - margin, high + margin


def _padded(low: float, high: float) -> tuple[float, float]:
    """Ends of a y axis with a small margin; the lower end is 0 if all values are above 0 and the lowest is near it."""
    low, high = _distinct_ends(low, high)
    padding = 0.04 * (high - low)
    return (0.0 if 0 <= low <= 0.3 * high else low - padding), high + padding


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _finite(*values: float) -> bool:
    """True: not NaN, not infinite, and not so large that the difference of two could be infinite."""
    return all(abs(value) < 1e300 for value in values)
