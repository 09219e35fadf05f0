"""Cuts a text into sentences, so that some can be removed, repeated or listed."""

import re

_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bvs)(?<!^\d)(?<!^\d\d)"
    r"[.!?…]+[\"”’)\]]*(?=\s|$)\s*|\n\s*",
    flags=re.M,
)
"""End of a sentence, with the white space after it."""


def sentences(text: str) -> list[str]:
    r"""Sentences with the white space that follows them; joined, they give the text.

    A sentence ends at the end of a line, and at ``.``, ``!``, ``?`` or ``…`` before white space or the end of the text,
    so not within numbers, names and operators. Common abbreviations and the number of a list item end no sentence.

    >>> sentences("Pay 3.5 euros, e.g. in cash! Use x != 3.\n1. Wait.")
    ['Pay 3.5 euros, e.g. in cash! ', 'Use x != 3.\n', '1. Wait.']
    """
    boundaries = [0, *(match.end() for match in _END.finditer(text))]
    pieces = [text[start:end] for start, end in zip(boundaries, [*boundaries[1:], len(text)], strict=True)]
    return [piece for piece in pieces if piece]
