r"""Makes text from models and people safe to display, and shows it as it was written.

A model's text may be an attack on its reader. Therefore everything is escaped, only a small part of Markdown is
rendered, and nothing can load, run or lead anywhere. Images and raw HTML are shown as text. Links show their target as
text and cannot be clicked. Invisible characters that change what is seen (control characters, direction overrides) are
shown by name.

People judge what they read, so rendering must not change what a text says. Departures from CommonMark:

- A line break is a line break, and runs of spaces keep their width (poems, addresses, tables of blanks).
- ``*`` and ``**`` between letters or digits are asterisks: ``2*3*4``, ``x**2``. So are the underscores of ``__init__``.
- A backslash is shown (``\(x\)``, ``C:\.git``); what follows it is no markup. Entities are shown as typed.
- Numbered items keep their own numbers and their parenthesis.
- A line of ``---`` or ``===`` under a text makes no heading; ``<http://…>`` keeps its brackets.
- A fence names its language.
- A table with a row that has more cells than its head is not rendered, because its last cells would not be shown.

A text is shown plain if something of it would still be missing (quotes within twenty quotes), or if rendering would
take long (hundreds of brackets in a paragraph). Each paragraph, and each line of it, has its own direction. Code runs
from left to right.
"""

import html
import re
import string
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block.table import escapedSplit, table
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter
from markupsafe import Markup, escape

from trimtab.text import visible

LONGEST = 50_000
"""Characters. If one text is longer, all texts of an item are shown plain, because rendering takes seconds."""

MOST_BRACKETS = 500
"""Most opening brackets in a paragraph; the parser's time grows with their square."""

# Markdown -------------------------------------------------------------------------------------

_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Japanese, Chinese
    "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]"  # Korean
)
"""Letters of scripts that do not put spaces around a marked word."""
_DUNDER = re.compile(r"__[a-z0-9]+(?:_[a-z0-9]+)*__(?!\w)")
_CODE = re.compile(r"`[^`]*`")
_NBSP = "\u00a0"


def _joins(character: str, brackets: str) -> bool:
    """True if this character belongs to the same word or formula as a marker next to it."""
    return character in brackets or (character.isalnum() and not _SPACELESS.match(character))


def _emphasis(state: StateInline, silent: bool) -> bool:
    """The markers ``*`` and ``_``: the parser's own rule, except that a marker inside a word or formula is text."""
    start, marker = state.pos, state.src[state.pos]
    if silent or marker not in "*_":
        return False
    if marker == "_" and (name := _DUNDER.match(state.src, start)):
        state.pending += name[0]
        state.pos = name.end()
        return True
    scanned = state.scanDelims(start, marker == "*")
    end = start + scanned.length
    before = state.src[start - 1] if start else " "
    after = state.src[end] if end < state.posMax else " "
    for _ in range(scanned.length):
        state.push("text", "", 0).content = marker
        state.delimiters.append(
            Delimiter(
                marker=ord(marker),
                length=scanned.length,
                token=len(state.tokens) - 1,
                end=-1,
                open=scanned.can_open and not _joins(before, ")]}"),
                close=scanned.can_close and not _joins(after, "([{"),
            )
        )
    state.pos = end
    return True


def _backslash(state: StateInline, silent: bool) -> bool:
    """A backslash and the punctuation after it: both are shown, neither is markup."""
    if state.src[state.pos] != "\\":
        return False
    length = 2 if state.pos + 1 < state.posMax and state.src[state.pos + 1] in string.punctuation else 1
    if not silent:
        state.pending += state.src[state.pos : state.pos + length]
    state.pos += length
    return True


def _newline(state: StateInline, silent: bool) -> bool:
    """A line break; spaces at the start of the next line are kept."""
    if state.src[state.pos] != "\n":
        return False
    if not silent:
        state.pending = state.pending.rstrip(" ")
        state.push("hardbreak", "br", 0)
    state.pos += 1
    start = state.pos
    while state.pos < state.posMax and state.src[state.pos] in " \t":
        state.pos += 1
    if not silent:
        state.pending += _NBSP * len(state.src[start : state.pos].expandtabs(4))
    return True


def _table(state: Any, start: int, end: int, silent: bool) -> bool:
    """A table, if no row has more cells than there are columns."""
    tokens, parent = len(state.tokens), state.parentType
    if not table(state, start, end, silent):
        return False
    columns = sum(token.type == "th_open" for token in state.tokens[tokens:])
    for line in range(start + 2, state.line) if not silent else ():
        cells = escapedSplit(state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].strip())
        if len(cells) - (not cells[0]) - (not cells[-1] and len(cells) > 1) > columns:
            del state.tokens[tokens:]
            state.line, state.parentType = start, parent
            return False
    return True


def _direction(text: str) -> str:
    """``rtl`` or ``ltr``, by the first letter outside code that has a direction; ``auto`` if none has."""
    for character in _CODE.sub("", text):
        kind = unicodedata.bidirectional(character)
        if kind in ("L", "R", "AL"):
            return "ltr" if kind == "L" else "rtl"
    return "auto"


def _indents(state: Any) -> None:
    """Keep the spaces before the first line of a paragraph, which the parser would remove."""
    lines = state.src.split("\n")
    for opening, inline in pairwise(state.tokens):
        if opening.type == "paragraph_open" and opening.level == 0:
            line = lines[opening.map[0]]
            inline.content = _NBSP * (len(line) - len(line.lstrip(" "))) + inline.content


def _directions(state: Any) -> None:
    """Give each block its own direction; a list item's bullet is on the side where its text starts."""
    lines = state.src.split("\n")
    for token in state.tokens:
        if token.type in ("paragraph_open", "heading_open", "th_open", "td_open"):
            token.attrSet("dir", "auto")
        elif token.type in ("bullet_list_open", "ordered_list_open", "list_item_open", "blockquote_open", "table_open"):
            first, last = token.map or (0, 0)
            token.attrSet("dir", _direction("\n".join(lines[first:last])))
        if token.type == "list_item_open" and token.info:
            token.attrSet("value", token.info)
        if token.type == "ordered_list_open" and token.markup == ")":
            token.attrSet("class", "paren")


def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "typographer": False, "maxNesting": 20})
    parser.enable("table").disable(["html_block", "html_inline", "reference", "lheading", "autolink", "entity"])
    parser.block.ruler.at("table", _table, {"alt": ["paragraph", "reference"]})
    parser.inline.ruler.at("emphasis", _emphasis)
    parser.inline.ruler.at("escape", _backslash)
    parser.inline.ruler.at("newline", _newline)
    parser.core.ruler.after("block", "indents", _indents)
    parser.core.ruler.push("directions", _directions)
    parser.normalizeLink = str  # pyright: ignore[reportAttributeAccessIssue] - shown as written
    rules = {
        "link_open": _link_open,
        "link_close": _link_close,
        "image": _image,
        "fence": _fence,
        "code_block": _fence,
        "code_inline": _code,
        "text": _text,
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


def _text(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    return str(escape(_spaces(tokens[index].content)))


def _spaces(text: str) -> str:
    """The text with no-break spaces where a browser would collapse spaces."""
    return text.replace("\t", "    ").replace("  ", f"{_NBSP} ").replace("  ", f" {_NBSP}")


def _link_open(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    return '<span class="link">'


def _link_close(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    depth = 0
    for token in reversed(tokens[:index]):  # find the opening token of this one
        if token.type == "link_close":
            depth += 1
        elif token.type == "link_open":
            if depth == 0:
                return f" {_url(token, 'href')}</span>"
            depth -= 1
    return "</span>"


def _image(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    return f'<span class="link">[{escape(token.content)}] {_url(token, "src")}</span>'


def _url(token: Any, name: str) -> str:
    title = token.attrGet("title")
    target = f"{token.attrGet(name) or ''}{f' {chr(34)}{title}{chr(34)}' if title else ''}"
    return f'<span class="url" dir="ltr">({escape(target)})</span>'


def _code(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    return f'<code dir="ltr">{escape(tokens[index].content)}</code>'


def _fence(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    language = tokens[index].info.strip()
    label = f'<span class="language" dir="ltr">{escape(language)}</span>' if language else ""
    return f'{label}<pre tabindex="0" dir="ltr"><code>{escape(tokens[index].content)}</code></pre>'


_PARSER = _markdown()


_NUMBERED = re.compile(r'<li\b[^>]*\bvalue="(\d+)"[^>]*>')


@lru_cache(maxsize=512)
def _rendered(text: str) -> Markup | None:
    """A text as safe HTML; None: a letter or digit would be missing, or rendering takes long."""
    source = visible(text)
    if any(part.count("[") > MOST_BRACKETS for part in source.split("\n\n")):
        return None
    rendered = _PARSER.render(source)
    words = html.unescape(re.sub(r"<[^>]*>", "", _NUMBERED.sub(r"\1", rendered)))
    return Markup(rendered) if _letters(words) == _letters(source) else None


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def render(text: str) -> Markup:
    """A text as safe HTML; see the module for what is rendered."""
    rendered = _rendered(text)
    return plain(text) if rendered is None else rendered


def plain(text: str) -> Markup:
    """A text as it was typed, without Markdown."""
    return Markup('<div class="plain">') + visible(text) + Markup("</div>")


def render_all(texts: Sequence[str]) -> list[Markup]:
    """Texts that are read side by side: all rendered, or all plain if one is too long or must be plain."""
    all_rendered = all(len(text) <= LONGEST for text in texts) and all(_rendered(text) is not None for text in texts)
    return [render(text) if all_rendered else plain(text) for text in texts]
