"""Fields of a constitution that a person has filled in."""

import re
from typing import Annotated

from pydantic import AfterValidator

_UNFILLED = re.compile(r"(?i)\b(todo|tbd|fixme|xxx)\b|^\W*$|<[^<>]*>|\{[^{}]*\}|lorem ipsum")


def _filled(text: str) -> str:
    placeholder = _UNFILLED.search(text)
    if placeholder:
        raise ValueError(f"is not filled in yet ({placeholder.group() or 'empty'!r}); write it out in words")
    return " ".join(text.split())


Filled = Annotated[str, AfterValidator(_filled)]
"""Words: neither empty nor a placeholder such as TODO, ``<...>`` or ``{...}``."""
