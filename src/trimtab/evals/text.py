"""Untrusted text made safe to look at: invisible characters become visible, long text is shortened.

HTML escaping is the template's work (autoescape); this is about what escaping leaves in place:
control characters, direction overrides that make text read otherwise than it is, invisible tags.
"""

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, except tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction marks, overrides and isolates
    "\u00ad\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # invisible
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"  # not characters at all
    "\U000e0000-\U000e0fff]"  # tag characters: a hidden copy of ASCII
)


def visible(text: str) -> str:
    """Replace each hidden or direction-changing character by its code point in angle brackets.

    Line ends become newlines. Letters of right-to-left scripts and joiners stay as they are.

    >>> visible("safe" + chr(0x202E) + "txt.exe")
    'safe⟨U+202E⟩txt.exe'
    """
    text = text.replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def shorten(text: str, *, characters: int, lines: int) -> tuple[str, int]:
    """The beginning of a text, and how many characters were left out.

    >>> shorten("one two three", characters=7, lines=9)
    ('one two', 6)
    """
    kept = "\n".join(text[:characters].split("\n", lines)[:lines])
    return kept, len(text) - len(kept)
