"""The text of an answer while it is drawn; only final text is released.

A token may end inside a character, and the end of the text may be the beginning of a stop string. Such text is held
back until later tokens decide. The pieces from :meth:`AnswerText.push` and :meth:`AnswerText.end` together are the
answer: whole characters, without a stop string and anything after it.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

from trimtab.models import Chat

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """Decodes one answer token by token.

    Args:
        chat: decodes tokens.
        stop: strings at which the answer ends.
    """

    def __init__(self, chat: Chat, stop: Sequence[str] = ()) -> None:
        self._chat, self._stop = chat, tuple(stop)
        self._tokens: list[int] = []  # those decoded last; their text depends on the ones before
        self._read = 0
        self._held = ""
        self._released = 0
        self._undecoded: list[Any] = []  # notes of tokens whose text is not known yet
        self._notes: deque[tuple[int, Any]] = deque()  # notes of the other tokens, with the place where their text ends
        self.stopped = False
        """True: a stop string is in the text; nothing more will be shown."""

    def push(self, token: int, note: Any = None) -> tuple[str, list[Any]]:
        """Add a token; return the text that can be shown now, and the notes of its tokens.

        Args:
            token: the next token of the answer.
            note: anything about the token, returned once all of its text is shown; None: nothing.
        """
        self._tokens.append(token)
        if note is not None:
            self._undecoded.append(note)
        before = self._decode(self._tokens[: self._read])
        now = self._decode(self._tokens)
        if len(now) > len(before) and not now.endswith(_INCOMPLETE):
            self._hold(now[len(before) :])
            self._tokens = self._tokens[self._read :]
            self._read = len(self._tokens)
        return self._release_to_stop(len(self._held) - self._beginning_of_stop())

    def end(self) -> tuple[str, list[Any]]:
        """The rest of the text, when no token follows. A character that lacks bytes at the very end is left out."""
        if self.stopped:
            return "", []
        before = self._decode(self._tokens[: self._read])
        self._hold(self._decode(self._tokens)[len(before) :].rstrip(_INCOMPLETE))
        return self._release_to_stop(len(self._held))

    def _decode(self, tokens: list[int]) -> str:
        return self._chat.decode(tokens, strip=False) if tokens else ""

    def _hold(self, text: str) -> None:
        self._held += text
        self._notes += [(self._released + len(self._held), note) for note in self._undecoded]
        self._undecoded.clear()

    def _beginning_of_stop(self) -> int:
        """Length of the longest suffix of the held text that is the beginning of a stop string."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._stop), default=0))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._held[-n:]) for s in self._stop)), 0)

    def _release_to_stop(self, length: int) -> tuple[str, list[Any]]:
        """Release ``length`` characters of the held text, or the text before a stop string."""
        place = min((at for stop in self._stop if (at := self._held.find(stop)) >= 0), default=None)
        self.stopped = place is not None
        return self._release(length if place is None else place)

    def _release(self, length: int) -> tuple[str, list[Any]]:
        text, self._held = self._held[:length], self._held[length:]
        self._released += length
        notes: list[Any] = []
        while self._notes and self._notes[0][0] <= self._released:
            notes.append(self._notes.popleft()[1])
        return text, notes
