"""Smoothing and the hold-back buffer, against hand calculation and a brute-force replay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.guard.output import alarm
from trimtab.guard.stream import HoldBack, Smoothed, Smoothing, leaked


@pytest.mark.parametrize(
    ("smoothing", "expected"),
    [
        (Smoothing(kind="cusum"), [1.0, 0.0, 2.0, 5.0]),
        (Smoothing(kind="cusum", drift=0.5), [0.5, 0.0, 1.5, 4.0]),
        (Smoothing(kind="exponential", alpha=0.5), [0.5, -0.75, 0.625, 1.8125]),
        (Smoothing(kind="mean"), [1.0, -0.5, 1 / 3, 1.0]),
        (Smoothing(kind="max"), [1.0, 1.0, 2.0, 3.0]),
    ],
)
def test_smoothed_scores_by_hand(smoothing, expected):
    smoothed = Smoothed(smoothing)
    assert [smoothed.step(z) for z in (1.0, -2.0, 2.0, 3.0)] == pytest.approx(expected)


def test_one_token_counts_at_most_the_clip():
    assert Smoothed(Smoothing(kind="cusum", clip=2.0)).step(100.0) == 2.0


def test_alarm_is_the_first_token_above_the_threshold():
    sums = Smoothing(kind="cusum")
    assert alarm([1, 1, 1, 1], sums, 2.5) == 2
    assert alarm([1, 1, -3, 1], sums, 2.5) is None


@given(st.integers(0, 40), st.integers(1, 60), st.data())
def test_what_is_sent_is_what_was_generated(size, length, data):
    stop = data.draw(st.none() | st.integers(0, length - 1))
    buffer, sent = HoldBack(size), []
    for token in range(length):
        sent += buffer.push(token, blocked=token == stop)
        assert len(sent) <= max(0, token + 1 - size)  # never earlier than promised
    sent += buffer.finish()
    expected = length if stop is None else max(0, stop - size)
    assert sent == list(range(expected))
    assert buffer.dropped == length - expected
    onset = data.draw(st.integers(0, length))
    assert leaked(onset, stop, size, length) == sum(token >= onset for token in sent)
