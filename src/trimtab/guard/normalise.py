"""Text as a guard reads it: disguises removed, encodings decoded, long texts split into windows.

A guard scores several *views* of a text and takes the highest score. The views are the raw text, the normalised text,
and the text encoded in base64, hexadecimal, percent signs, rot13 or invisible characters. The raw text is always among
the views, so a disguise can raise the score but never lower it. All payloads of one encoding share a view, so harmless
payloads displace nothing.

Time is linear in the length of the text. :func:`readings` reports texts and encodings beyond the limits.
"""

import base64
import binascii
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import unquote

WINDOW = 600
"""Characters per window; windows overlap by half."""

LONGEST = 100_000
"""A guard reads at most this many characters of a text."""

LEVELS = 4
"""Nested encodings are decoded up to this depth."""

MARKS = 30
"""At most this many consecutive combining marks are read (UAX #15, stream-safe format); sorting them is quadratic."""

LOOKALIKES = {
    "a": "аɑαａ", "b": "ЬƄ", "c": "сϲⅽ", "d": "ԁⅾ", "e": "еεҽ℮", "g": "ɡց", "h": "һհ", "i": "іıιӏɩ",
    "j": "јϳ", "k": "кκ", "l": "ⅼ", "m": "ⅿ", "n": "ոη", "o": "оοօσ", "p": "рρ", "q": "ԛզ",
    "r": "гᴦ", "s": "ѕꜱ", "t": "τᴛ", "u": "υս", "v": "ѵν", "w": "ԝѡω", "x": "хχ", "y": "уγү",
    "z": "ᴢ", "A": "АΑ", "B": "ВΒ", "C": "СϹ", "E": "ЕΕ", "F": "Ϝ", "G": "Ԍ", "H": "НΗ", "I": "ІΙӀ",
    "J": "Ј", "K": "КΚ", "M": "МΜ", "N": "Ν", "O": "ОΟՕ", "P": "РΡ", "Q": "Ԛ", "S": "ЅՏ", "T": "ТΤ",
    "U": "Ս", "V": "Ѵ", "W": "Ԝ", "X": "ХΧ", "Y": "УΥҮ", "Z": "Ζ",
}  # fmt: skip
"""Latin letters, and letters of other scripts and alphabets that look like them."""

_TO_LATIN = {ord(sign): latin for latin, signs in LOOKALIKES.items() for sign in signs}

_FILLERS = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
"""Invisible characters that Unicode's categories do not mark as invisible."""

_WORD = re.compile(r"[^\W\d_]+")
_SPELLED = re.compile(r"(?<!\w)\w(?:([ .\-_*|/+])\w(?:\1\w)+)(?!\w)")
"""Single letters with one sign between them: ``w-o-r-d``, ``w o r d``; at least three."""
_INNER_SEPARATOR = re.compile(r"(?<=[^\W\d_])[\-_*|]++(?=[^\W\d_])")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_\-])[A-Za-z0-9+/_\-]{12,}+={0,2}")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:(?:0x|\\x)?[0-9A-Fa-f]{2}[\s,:]*){6,}(?![0-9A-Za-z])")
_URL = re.compile(r"[\w.\-~+%]++")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_SENTENCE = re.compile(r"[^.!?:\n\"]+")
_ROT13 = str.maketrans(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", "NOPQRSTUVWXYZABCDEFGHIJKLMnopqrstuvwxyzabcdefghijklm"
)
_COMMON_WORDS = frozenset(
    "the be to of and a in that have i it for not on with he as you do at this but his by from they we say "
    "her she or an will my one all would there their what so up out if about who get which go me when make "
    "can like time no just him know take into your good some could them see other than then now look only "
    "come its over think also how our work well way even new want because any these give is are was were has "
    "had am please tell explain write list".split()
)


@dataclass(frozen=True, slots=True)
class View:
    """One reading of a text."""

    name: str
    """``raw``, ``normalised``, or the encoding that was undone: ``base64``, ``hex``, ``percent``, ``rot13``,
    ``hidden``."""
    text: str
    """The text of this reading."""


def normalise(text: str) -> str:
    """The text a reader sees, in plain letters.

    NFKC; invisible characters removed; letters of other scripts that look Latin replaced in words that are otherwise
    Latin or made of nothing else; accents on Latin letters removed; ``w-o-r-d`` and ``wo-rd`` joined; white space
    collapsed. Applying it twice changes nothing.

    >>> normalise("Ｔһe p-l-a-n,\u200b  so\u200bon")
    'The plan, soon'
    """
    previous = None
    while text != previous:  # joining may uncover another disguise; each step shortens or maps to fixed letters
        previous, text = text, _normalise_once(text)
    return text


def _normalise_once(text: str) -> str:
    text = unicodedata.normalize("NFKC", _stream_safe(text))
    text = "".join(c for c in text if not _ignorable(c))
    text = _WORD.sub(lambda match: _latin(match[0]), _without_accents(text))
    text = _SPELLED.sub(lambda match: match[0].replace(match[1], ""), text)
    text = _INNER_SEPARATOR.sub("", text)
    return " ".join(text.split())


def _stream_safe(text: str) -> str:
    """The text with at most :data:`MARKS` combining marks in a row."""
    if text.isascii():
        return text
    out: list[str] = []
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= MARKS:
            out.append(character)
    return "".join(out)


def _ignorable(character: str) -> bool:
    """Whether a character is invisible: format characters, variation selectors, tags, fillers, and controls."""
    code = ord(character)
    if character in "\n\t\r":
        return False
    return (
        unicodedata.category(character) in ("Cf", "Cc", "Cs", "Co")
        or code in _FILLERS
        or 0xFE00 <= code <= 0xFE0F
        or 0x180B <= code <= 0x180F
        or 0xE0000 <= code <= 0xE0FFF
    )


def _without_accents(text: str) -> str:
    out: list[str] = []
    for character in unicodedata.normalize("NFD", text):
        if unicodedata.combining(character) and out and (out[-1].isascii() or ord(out[-1]) in _TO_LATIN):
            continue
        out.append(character)
    return unicodedata.normalize("NFC", "".join(out))


def _latin(word: str) -> str:
    mixed = any(c.isascii() for c in word)
    if mixed or all(ord(c) in _TO_LATIN for c in word):
        return word.translate(_TO_LATIN)
    return word


def views(text: str) -> list[View]:
    """All readings of a text without duplicates, the raw one first; see :func:`readings`."""
    return readings(text)[0]


def readings(text: str) -> tuple[list[View], str]:
    """All readings of a text, and a message about any part that was not read.

    Each level of nesting adds one view per encoding, with all its payloads line by line, and the normalised form of it.

    Returns:
        the views without duplicates, the raw text first; a message about what was not read, empty if all was read.
    """
    unread = ""
    if len(text) > LONGEST:
        unread = f"the text has {len(text)} characters and the guard reads {LONGEST}; send a shorter one"
        text = text[:LONGEST]
    result = [View("raw", text)]
    seen = {text}

    def add(name: str, reading: str) -> None:
        if reading.strip() and reading not in seen:
            seen.add(reading)
            result.append(View(name, reading))

    add("normalised", _if_changed(text))
    sources, opened = [view.text for view in result], set(seen)
    for level in range(LEVELS + 1):
        payloads = _payloads(sources, opened)
        if level == LEVELS and payloads:
            unread = unread or f"the text has encodings more than {LEVELS} levels deep; send it in plain words"
            break
        first = len(result)
        for name, parts in payloads.items():
            joined = "\n".join(parts)
            add(name, joined)
            add(name, _if_changed(joined))
        sources = [view.text for view in result[first:]]
    return result, unread


def _payloads(sources: Sequence[str], opened: set[str]) -> dict[str, list[str]]:
    """Decoded payloads of the sources, by encoding, without those in ``opened``; new ones are added to ``opened``."""
    result: dict[str, list[str]] = {}
    for source in sources:
        for name, payload in _decoded(source):
            if payload not in opened:
                opened.add(payload)
                result.setdefault(name, []).append(payload)
    return result


def _if_changed(text: str) -> str:
    """The normalised text; empty if only white space would change."""
    normalised = normalise(text)
    return "" if normalised == " ".join(text.split()) else normalised


def _decoded(text: str) -> Iterator[tuple[str, str]]:
    for match in _BASE64.finditer(text):
        raw = match[0].rstrip("=").translate(str.maketrans("-_", "+/"))
        payload = _printable(_bytes(partial(base64.b64decode, raw + "=" * (-len(raw) % 4))))
        if payload:
            yield "base64", payload
    for match in _HEX.finditer(text):
        digits = re.sub(r"0x|\\x|[\s,:]", "", match[0])
        payload = _printable(_bytes(partial(bytes.fromhex, digits[: len(digits) // 2 * 2])))
        if payload:
            yield "hex", payload
    for match in _URL.finditer(text):
        if len(_ESCAPE.findall(match[0])) < 3:
            continue
        payload = _printable(unquote(match[0].replace("+", " "), errors="ignore").encode())
        if payload:
            yield "percent", payload
    rotated = " ".join(
        segment.translate(_ROT13)
        for segment in _SENTENCE.findall(text)
        if _english(segment.translate(_ROT13)) > _english(segment)
    )
    if rotated:
        yield "rot13", rotated
    hidden_text = _hidden_text(text)
    if hidden_text:
        yield "hidden", hidden_text


def _bytes(decode: Callable[[], bytes]) -> bytes:
    try:
        return decode()
    except (ValueError, binascii.Error):
        return b""


def _printable(raw: bytes) -> str:
    """Decoded bytes as text, or empty if they are not text: UTF-8, nearly all printable, mostly letters and spaces."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return ""
    printable = sum(c.isprintable() or c in "\n\t" for c in text)
    words = sum(c.isalpha() or c.isspace() for c in text)
    return text if len(text) >= 4 and printable >= 0.95 * len(text) and words >= 0.6 * len(text) else ""


def _english(segment: str) -> float:
    """Share of the words that are among the most common English ones; 0 for fewer than three words."""
    words = _WORD.findall(segment.lower())
    return sum(w in _COMMON_WORDS for w in words) / len(words) if len(words) >= 3 else 0.0


def _hidden_text(text: str) -> str:
    """Text in tag characters (a hidden copy of ASCII) or variation selectors (one byte each); empty: there is none."""
    tags = "".join(chr(ord(c) - 0xE0000) for c in text if 0xE0020 <= ord(c) <= 0xE007E)
    selectors = bytes(
        ord(c) - 0xFE00 if ord(c) <= 0xFE0F else ord(c) - 0xE0100 + 16
        for c in text
        if 0xFE00 <= ord(c) <= 0xFE0F or 0xE0100 <= ord(c) <= 0xE01EF
    )
    return tags if len(tags) >= 4 else _printable(selectors)


def windows(text: str, size: int = WINDOW) -> list[str]:
    """Overlapping pieces of a long text, cut at white space where possible; a short text is one window.

    Any ``size // 2`` consecutive characters are together in at least one window.
    """
    if len(text) <= size:
        return [text]
    pieces, start = [], 0
    while start < len(text):
        end = min(len(text), start + size)
        pieces.append(text[start:end])
        if end == len(text):
            break
        start += size // 2
        space = text.rfind(" ", start - size // 8, start)
        start = space + 1 if space > 0 else start
    return pieces
