import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.evals.charts import Line, Row, line_chart, number, percent, row_chart, strip, ticks
from trimtab.text import shorten, visible

FINITE = st.floats(-1e12, 1e12)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (105, 543, [100, 200, 300, 400, 500, 600]),  # the example of Heckbert's article
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.35, 0.35, [-0.4, -0.2, 0, 0.2, 0.4]),
        (5, 5, [2, 3, 4, 5, 6, 7, 8]),
        (0, 0, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
        (1e-5, 3e-5, [1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5]),
    ],
)
def test_ticks_known(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@given(FINITE, FINITE)
def test_ticks_cover_with_round_even_steps(a, b):
    low, high = min(a, b), max(a, b)
    marks = ticks(low, high)
    slack = 1e-6 * max(abs(mark) for mark in marks)
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack
    assert 3 <= len(marks) <= 9
    steps = [after - before for before, after in pairwise(marks)]
    assert max(steps) - min(steps) <= slack
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
    assert min(abs(mantissa - nice) for nice in (1, 2, 5, 10)) < 1e-3


@pytest.mark.parametrize(("low", "high"), [(1, 0), (math.nan, 1), (0, math.inf)])
def test_ticks_refuse(low, high):
    with pytest.raises(ValueError, match="finite"):
        ticks(low, high)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-0.0, "0"), (0.05, "0.050"), (-1.5, "−1.50"), (99.96, "100"), (1e-7, "1.0e−7"), (-math.inf, "–")],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0\u202f%"), (1, "100\u202f%"), (0.996, "99.6\u202f%")])
def test_percent(value, text):
    assert percent(value) == text


def drawn(chart):
    assert "nan" not in chart.replace("nance", "").lower()
    assert "inf " not in chart.lower()
    assert "style=" not in chart
    root = ET.fromstring(str(chart))
    assert root.get("role") == "img"
    assert root.get("aria-label")
    return root


def line(**fields: Any) -> Line:
    return Line(**({"name": "a", "x": [0, 1, 2], "y": [1, 3, 2]} | fields))


def chart(*lines: Line):
    return line_chart(lines, title="t", x_label="step", y_label="nats")


def test_line_reaches_the_right_places():
    root = drawn(chart(line(name="")))
    (path,) = (p.get("d") or "" for p in root.iter("path") if p.get("class") == "line")
    points = [tuple(map(float, point.split())) for point in path[1:].split("L")]
    assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2, abs=0.1)  # x evenly spaced
    assert points[2][1] == pytest.approx((points[0][1] + points[1][1]) / 2, abs=0.1)  # 2 lies between 1 and 3
    assert points[1][1] < points[2][1] < points[0][1]  # up is more
    titles = [t.text for t in root.iter("title")]
    assert titles == ["at 0: 1.00", "at 1: 3.00", "at 2: 2.00"]


def test_gaps_for_what_is_not_finite():
    root = drawn(
        chart(line(x=[0, 1, 2, 3, 4], y=[1, 2, math.nan, math.inf, 5], low=[0.5] * 5, high=[math.nan, 3, 3, 3, 6]))
    )
    assert len([p for p in root.iter("path") if p.get("class") == "line"]) == 2
    assert len([c for c in root.iter("circle")]) == 3


def test_nothing_finite_draws_nothing():
    assert chart(line(y=[math.nan] * 3)) is None
    assert chart() is None
    assert row_chart([], title="t") is None


@pytest.mark.parametrize("y", [[0, 0, 0], [1e200, -1e200, 0], [1e-300, 2e-300, 0], [7, 7, math.nan]])
def test_odd_ranges(y):
    root = drawn(chart(line(y=y)))
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    points = [(float(c.get("cx") or -1), float(c.get("cy") or -1)) for c in root.iter("circle")]
    assert len(points) == sum(map(math.isfinite, y))
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_single_point_and_long_line():
    drawn(chart(line(x=[3], y=[2])))
    root = drawn(chart(line(x=list(range(5000)), y=[v % 7 for v in range(5000)])))
    assert len([c for c in root.iter("circle")]) == 200


def test_averaging_keeps_the_mean():
    root = drawn(chart(line(name="", x=list(range(400)), y=[0, 10] * 200)))
    assert {t.text.split(": ")[1] for t in root.iter("title") if t.text} == {"5.00"}


def test_end_labels_do_not_overlap():
    root = drawn(chart(*(line(name=f"line {i}", y=[1, 3, 2 + i / 100]) for i in range(5))))
    tops = sorted(float(t[0].get("y") or 0) for t in root.iter("text") if "label" in (t.get("class") or "").split())
    assert len(tops) == 5
    assert all(b - a >= 13 for a, b in pairwise(tops))


def test_names_are_escaped_and_made_visible():
    text = str(chart(line(name='<b>"x"\u202e')))
    assert "<b>" not in text
    assert "\u202e" not in text
    assert "⟦RLO⟧" in text


def test_rows_and_strip():
    rows = [Row(name="PPO over SFT", note="gold", value=0.78, low=0.71, high=0.84), Row(name="b" * 200, value=2.0)]
    root = drawn(row_chart(rows, title="t", reference=0.5, reference_label="no preference"))
    assert "78\u202f% [71, 84]" in [t.text for t in root.iter("text")]
    places = [float(c.get("cx") or 0) for c in root.iter("circle")]
    assert places == pytest.approx([8 + 0.78 * 384, 392], abs=0.1)  # a value off the axis sits at its end
    drawn(strip(0.8, 0.7, 0.9, reference=0.5, title="t"))


def test_visible():
    hidden = "\x00\x1b\x7f\x85\u200b\u200e\u2066\ufeff\U000e0041\u00ad"
    assert not set(hidden) & set(visible(hidden))
    text = "tab\tline\nعربي עברית 👩\u200d👧 e\u0301 汉"
    assert visible(text) == text
    assert visible("a\r\nb\rc\u2028d") == "a\nb\nc⟦LSEP⟧d"
    assert re.fullmatch(r"(⟦(U\+[0-9A-F]{4,}|[A-Z]+)⟧)+", visible(hidden))


def test_shorten():
    assert shorten("abc", characters=3, lines=1) == ("abc", 0)
    assert shorten("a\nb\nc", characters=9, lines=2) == ("a\nb", 2)
    assert shorten("x" * 100_000, characters=10, lines=2) == ("x" * 10, 99_990)
