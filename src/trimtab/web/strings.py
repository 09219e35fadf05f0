"""Texts of the interface: one catalogue per language, ``strings/*.json``; English if a translation is missing."""

import json
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "strings"


@cache
def catalogues() -> dict[str, dict[str, str]]:
    """All catalogues by language."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def choose(chosen: str | None, accept: str = "") -> str:
    """The language to use: the one chosen, or the first of the browser's (Accept-Language) that has a catalogue."""
    available = catalogues()
    for part in [chosen or "", *accept.split(",")]:
        language = part.split(";")[0].strip().lower().split("-")[0]
        if language in available:
            return language
    return "en"


@cache
def _errors() -> dict[str, str]:
    return {phrase: key for key, phrase in catalogues()["en"].items() if key.startswith("error.")}


def translate_error(language: str, text: str) -> str:
    """An error message in a language, if the catalogue has it (``error.…``, found by its English text)."""
    key = _errors().get(text)
    return text if key is None else translate(language, key)


def translate(language: str, key: str, **values: object) -> str:
    """A phrase in a language, with values filled in."""
    available = catalogues()
    phrase = available.get(language, {}).get(key) or available["en"].get(key)
    if phrase is None:
        raise KeyError(f"no phrase {key!r} in strings/en.json")
    return phrase.format(**values) if values else phrase
