"""Only the chat template writes control tokens; in messages of people and models, the same characters are text.

A tokenizer turns the characters ``<|im_end|>`` into its end-of-turn token wherever they occur. So a conversation is
rendered with each control token in a message replaced by a placeholder. Every control token in the rendered text is
then the template's own. The text is encoded with a copy of the tokenizer in which the control tokens have names that
nobody can type, and the placeholders are turned back into plain characters. It is encoded as one piece, so that
words, spaces and the "▁" of SentencePiece come out as they do from the tokenizer itself.
"""

import json
import re
import secrets
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

from trimtab.errors import DataError

THOUGHT = re.compile(r"[<\[◁][^\s<>\[\]◁▷]*(?:think|thought|reason)[^\s<>\[\]◁▷]*[>\]▷]", re.IGNORECASE)
"""Matches a mark that opens or closes a thought: ``<think>``, ``[/THINK]``, ``<|END_THINKING|>``. Such marks are part
of the answer, not of the template around it."""


class Thoughts:
    """Thoughts in an answer, recognised by the marks that a chat template writes or looks for.

    Args:
        template: source of the chat template.
    """

    def __init__(self, template: str) -> None:
        self.marks = sorted(set(THOUGHT.findall(template)))
        """For example ``</think>`` and ``<think>``; empty for a template without thoughts."""
        self._any = re.compile("|".join(map(re.escape, self.marks)) or "(?!)")

    def first(self, text: str) -> int | None:
        """Where the first mark begins in ``text``; None: there is none."""
        match = self._any.search(text)
        return None if match is None else match.start()

    def opened(self, text: str) -> str | None:
        """The mark of a thought that ``text`` opens and does not close; None: there is none.

        >>> Thoughts("<think></think>").opened("<think>two and two")
        '<think>'
        >>> Thoughts("<think></think>").opened("<think>two and two</think>4") is None
        True
        """
        marks = self._any.findall(text)
        return marks[-1] if marks and not _closes(marks[-1]) else None

    def closed(self, text: str) -> bool:
        """Whether ``text`` closes a thought."""
        return any(_closes(mark) for mark in self._any.findall(text))

    def ends(self, text: str) -> bool:
        """Whether ``text`` ends with the end of a thought."""
        return any(_closes(mark) and text.rstrip().endswith(mark) for mark in self.marks)


def _closes(mark: str) -> bool:
    return "/" in mark or "end" in mark.lower()


class ControlTokens:
    """Encodes rendered conversations; only the template writes control tokens.

    Args:
        tokenizer: a transformers tokenizer. One without a ``tokenizers`` backend cannot keep control tokens as text, so
            :meth:`encode` refuses messages that contain any.
        contents: the control tokens, as they are written.
    """

    def __init__(self, tokenizer: Any, contents: Iterable[str]) -> None:
        self.contents = sorted({c for c in contents if c and not c.isspace()}, key=lambda c: (-len(c), c))
        self.ids = {c: int(tokenizer.convert_tokens_to_ids(c)) for c in self.contents}
        self._tokenizer = tokenizer
        self._written = re.compile("|".join(map(re.escape, self.contents)) or "(?!)")
        nonce = secrets.randbelow(9 * 10**19) + 10**19  # digits, which no template changes; never part of the tokens
        self._nonce = str(nonce)
        self._placeholders = {c: f"{nonce}{i:05d}{nonce}" for i, c in enumerate(self.contents)}
        self._hidden = re.compile(f"{nonce}([0-9]{{5}}){nonce}")
        self._names = {c: f"<|{nonce}{i:05d}|>" for i, c in enumerate(self.contents)}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._renamed = None if backend is None else _renamed(backend, self._names)

    def hide(self, text: str, *, thoughts: bool) -> str:
        """A message with placeholders for control tokens; with ``thoughts``, the marks of thoughts stay unchanged."""

        def placeholder(match: re.Match[str]) -> str:
            content = match.group()
            return content if thoughts and THOUGHT.fullmatch(content) else self._placeholders[content]

        return self._written.sub(placeholder, text)

    def encode(self, rendered: str) -> list[int]:
        """Token ids of rendered text, with placeholders as plain characters.

        Raises:
            DataError: there is a placeholder and the tokenizer cannot encode a control token as text, or the template
                cut one in two.
        """
        if self._nonce[:12] in self._hidden.sub("", rendered):
            raise DataError(
                "the chat template shortens a message inside a control token that the message contains; take its "
                "characters out of the message"
            )
        if self._renamed is None:
            if (hidden := self._hidden.search(rendered)) is not None:
                raise DataError(
                    f"a message contains {self._content(hidden)!r}, a control token that this tokenizer cannot encode "
                    "as text; use a tokenizer with a tokenizer.json, or take the characters out of the message"
                )
            return self._tokenizer.encode(rendered, add_special_tokens=False)
        named = self._written.sub(lambda match: self._names[match.group()], rendered)
        return self._renamed.encode(self._hidden.sub(self._content, named), add_special_tokens=False).ids

    def written(self, rendered: str) -> list[tuple[int, int]]:
        """The control tokens that the template writes: the character each begins at, and its id."""
        return [(match.start(), self.ids[match.group()]) for match in self._written.finditer(rendered)]

    def letters(self, rendered: str) -> str:
        """Rendered text without the control tokens that the template writes."""
        return self._written.sub("", rendered)

    def plain(self, rendered: str) -> str:
        """Rendered text as it reads, for messages."""
        return self._hidden.sub(self._content, rendered)

    def _content(self, hidden: re.Match[str]) -> str:
        return self.contents[int(hidden.group(1))]


def _renamed(backend: Any, names: dict[str, str]) -> Tokenizer:
    """A copy of a tokenizer whose control tokens have other names, in its vocabulary too, and the same ids."""
    state = json.loads(backend.to_str())
    state |= {"post_processor": None, "truncation": None, "padding": None}
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:  # unigram: pieces with their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:  # a merge that makes a control token out of text
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [[a, b] for a, b in pairs if names.keys().isdisjoint((a, b, a + b))]
    return Tokenizer.from_str(json.dumps(state))
