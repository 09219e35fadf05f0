"""Text from models and people made safe to look at.

What a model wrote may be an attack on whoever reads it. So everything is escaped first, a small part
of Markdown is rendered, and nothing in it can load, run or lead anywhere: images and raw HTML are
shown as text, links show where they would lead and are no links. Characters that cannot be seen but
change what is seen (control characters, direction overrides) are shown by name.
"""

from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from trimtab.text import visible

LONGEST = 20_000
"""Longer texts are shown as they are, without Markdown: rendering takes time the reader would wait."""


def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "typographer": False, "maxNesting": 20})
    parser.enable("table").disable(["html_block", "html_inline", "reference"])
    parser.add_render_rule("link_open", _link_open)
    parser.add_render_rule("link_close", _link_close)
    parser.add_render_rule("image", _image)
    parser.add_render_rule("fence", _fence)
    return parser


def _link_open(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    return '<span class="link">'


def _link_close(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    depth = 0
    for token in reversed(tokens[:index]):  # the opening token that belongs to this one
        if token.type == "link_close":
            depth += 1
        elif token.type == "link_open":
            if depth == 0:
                return f' <span class="url">({escape(str(token.attrGet("href") or ""))})</span></span>'
            depth -= 1
    return "</span>"


def _image(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    where = escape(str(token.attrGet("src")))
    return f'<span class="link">[{escape(token.content)}] <span class="url">({where})</span></span>'


def _fence(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    return f'<pre tabindex="0"><code>{escape(tokens[index].content)}</code></pre>'


_PARSER = _markdown()
_PARSER.add_render_rule("code_block", _fence)


@lru_cache(maxsize=512)
def render(text: str) -> Markup:
    """A text as safe HTML; see the module for what is rendered and what is shown as it is."""
    text = visible(text)
    if len(text) > LONGEST:
        return Markup('<div class="plain">') + escape(text) + Markup("</div>")
    return Markup(_PARSER.render(text))
