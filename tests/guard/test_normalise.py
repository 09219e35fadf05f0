"""Disguises are removed, encodings opened, and nothing is hidden by reading a text more than one way."""

import base64
import codecs
import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.guard.attacks import ATTACKS
from trimtab.guard.normalise import LEVELS, LONGEST, normalise, readings, views, windows

KEPT_WORDS = {"role play", "many-shot", "splitting"}
"""Families that leave the request readable."""

NEVER_UNDONE = {"no vowels", "reversed"}
"""Families that no view undoes."""

REQUEST = "Please tell me about the opening hours of the public library in Springfield."


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("ｌｉｂｒａｒｙ", "library"),  # full width
        ("li\u200bbra\u200dry", "library"),  # zero width
        ("lіbrаry", "library"),  # Cyrillic і and а among Latin letters
        ("l-i-b-r-a-r-y", "library"),
        ("l i b r a r y", "library"),
        ("lib-rary", "library"),
        ("ĺíb́rárý", "library"),  # accents, one of them a combining mark
        ("библиотека", "библиотека"),  # a Russian word stays Russian
        ("one  two\n three", "one two three"),
        ("3.5 km", "3.5 km"),
    ],
)
def test_disguises_are_removed(text, plain):
    assert normalise(text) == plain


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80))
def test_normalising_twice_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="abcdefgh XYZ", min_size=1, max_size=40), st.integers(0, 1000))
def test_invisible_characters_and_lookalikes_leave_no_trace(text, seed):
    for family in ("zero-width", "homoglyphs"):
        assert normalise(ATTACKS[family](text, Random(seed))) == normalise(text)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_the_raw_text_is_always_read_and_no_view_twice(text):
    result = views(text)
    assert result[0].name == "raw" and result[0].text == text
    assert len({view.text for view in result}) == len(result)


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz ", min_size=16, max_size=80).filter(lambda t: len(t.split()) > 2))
def test_base64_and_hex_are_opened(text):
    for name, encoded in (("base64", base64.b64encode(text.encode()).decode()), ("hex", text.encode().hex())):
        assert normalise(text) in [normalise(v.text) for v in views(f"Read: {encoded}")], name


@pytest.mark.parametrize("family", [f for f in ATTACKS if f not in KEPT_WORDS | NEVER_UNDONE])
def test_each_encoding_gives_the_request_back(family):
    disguised = ATTACKS[family](REQUEST, Random(0))
    assert any(normalise(REQUEST).rstrip(".") in view.text for view in views(disguised))


def test_encodings_inside_encodings_are_opened():
    inner = codecs.encode(REQUEST, "rot13")
    disguised = base64.b64encode(base64.b64encode(inner.encode())).decode()
    assert any("opening hours of the public library" in view.text for view in views(disguised))


def test_text_hidden_in_an_emoji_is_read():
    hidden = "".join(chr(0xFE00 + b) if b < 16 else chr(0xE0100 + b - 16) for b in REQUEST.encode())
    tags = "".join(chr(0xE0000 + ord(c)) for c in REQUEST)
    for text in (f"Nice \U0001f600{hidden}", f"Nice{tags}"):
        assert REQUEST in [view.text for view in views(text)]


def test_ordinary_text_has_one_view():
    for text in (REQUEST, "What is 12*3, and why? See https://example.org/a/b.html", "Écris « bonjour » à Zoë."):
        assert {view.name for view in views(text)} <= {"raw", "normalised"}
    assert len(views(REQUEST)) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="abcde", min_size=1, max_size=12), min_size=1, max_size=200), st.integers(40, 200))
def test_windows_cover_the_text(words, size):
    text = " ".join(f"{i}{word}" for i, word in enumerate(words))
    pieces = windows(text, size)
    assert all(len(piece) <= size and piece in text for piece in pieces)
    place = 0
    for piece in pieces:  # each begins where the text is already covered
        start = text.index(piece, max(0, place - size))
        assert start <= place
        place = max(place, start + len(piece))
    assert place == len(text)


def test_a_phrase_at_a_border_is_whole_in_a_window():
    text = " ".join(f"word{i}" for i in range(300))
    for i in range(295):
        assert any(f"word{i} word{i + 1} word{i + 2}" in piece for piece in windows(text))


@pytest.mark.parametrize(
    "unit",
    ["a", "-", "%", "=", "_", ".", "+", "a-", "a_", "a ", "a a-", "-a", "41", "41 ", "41,,", "4z", "0x",
     "\\x", "%4", "%41", "%41a", "QUJD ", "a\u0300\u0316", "\u0300\u0316", "\u200b", "\ufe00", "\U000e0041", "gur ",
     "\ufdfa", "\n"],
)  # fmt: skip
def test_time_grows_with_the_length_and_not_with_its_square(unit):
    """Four times the text takes 16 times as long where a pattern backtracks; here at most 9, and a floor for noise."""

    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit)) + "g!"
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            views(text)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(16_000) < max(9 * seconds(4_000), 0.2)


def test_harmless_payloads_hide_nothing():
    decoys = [base64.b64encode(f"A harmless sentence, number {n}.".encode()).decode() for n in range(40)]
    hidden = base64.b64encode(REQUEST.encode()).decode()
    result, unread = readings(" ".join([*decoys, hidden]))
    assert any(REQUEST in view.text for view in result) and not unread
    assert [view.name for view in result].count("base64") <= 2


def test_what_is_not_read_is_said():
    deep = REQUEST
    for level in range(LEVELS + 1):
        assert readings(deep)[1] == "" and any(REQUEST in v.text for v in views(deep)), level
        deep = base64.b64encode(deep.encode()).decode()
    assert f"more than {LEVELS} levels" in readings(deep)[1]
    long = "word " * (LONGEST // 5)
    assert readings(long)[1] == ""
    assert (
        readings(long + "x")[1]
        == f"the text has {LONGEST + 1} characters and the guard reads {LONGEST}; send a shorter one"
    )
