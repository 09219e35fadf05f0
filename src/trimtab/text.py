"""Untrusted text made safe to look at.

Escaping HTML is the template's work; this is about what escaping leaves in place: control characters, direction
overrides that make text read otherwise than it is, and invisible characters.
"""

import re

_NAMES = {
    0x7F: "DEL",
    0x00AD: "SHY",
    0x061C: "ALM",
    0x200B: "ZWSP",
    0x200E: "LRM",
    0x200F: "RLM",
    0x2028: "LSEP",
    0x2029: "PSEP",
    0x202A: "LRE",
    0x202B: "RLE",
    0x202C: "PDF",
    0x202D: "LRO",
    0x202E: "RLO",
    0x2060: "WJ",
    0x2066: "LRI",
    0x2067: "RLI",
    0x2068: "FSI",
    0x2069: "PDI",
    0xFEFF: "BOM",
}
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, except tab and newline
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # separators, direction marks, overrides and isolates
    "\u00ad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # invisible
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"  # not characters at all
    "\U000e0000-\U000e0fff]"  # tag characters: a hidden copy of ASCII
)


def visible(text: str) -> str:
    """Replace each invisible or direction-changing character by its name, as ``⟦RLO⟧``, or its code point.

    Line ends become newlines; tabs, letters of right-to-left scripts and joiners stay as they are.

    >>> visible("safe" + chr(0x202E) + "txt.exe" + chr(0))
    'safe⟦RLO⟧txt.exe⟦U+0000⟧'
    """
    return _INVISIBLE.sub(_name, text.replace("\r\n", "\n").replace("\r", "\n"))


def _name(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"⟦{_NAMES.get(code) or f'U+{code:04X}'}⟧"


def shorten(text: str, *, characters: int, lines: int) -> tuple[str, int]:
    """The beginning of a text, and how many characters were left out.

    >>> shorten("one two three", characters=7, lines=9)
    ('one two', 6)
    """
    start = "\n".join(text[:characters].split("\n", lines)[:lines])
    return start, len(text) - len(start)
