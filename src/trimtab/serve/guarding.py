"""The protocol of a guard, and holding back text until the guard has seen what follows.

A guard checks the conversation once before it is queued, and watches each answer token by token. It sees the
generated tokens and the hidden states of one layer of the policy, so judging answers needs no further model.
"""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from trimtab.records import Message
from trimtab.rollout.engine import Drawn, TokenLogprobs

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A guard's verdict on a conversation or on an answer so far."""

    flagged: bool
    """True: the conversation is refused, or the answer is stopped."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Score of each category, from 0 (harmless) to 1."""
    categories: Mapping[str, bool] = field(default_factory=dict)
    """Which categories are flagged; the keys are those of ``scores``."""
    reason: str = ""
    """One sentence for the person who asked; empty: the server's default sentence."""


class AnswerWatch(Protocol):
    """Judges one answer while it is generated."""

    def feed(self, tokens: Sequence[int], states: Tensor | None) -> Verdict:
        """Judge the answer with these tokens added.

        Args:
            tokens: the next tokens of the answer, as generated.
            states: ``[len(tokens), H]``, the recorded states that the tokens were drawn from, so the first one is that
                of the prompt's last token; None: the guard names no layer.
        """
        ...


class Guard(Protocol):
    """Checks conversations and answers. Called from several threads, but each watch from one."""

    @property
    def version(self) -> str:
        """Hash that identifies the guard; stored with votes."""
        ...

    @property
    def layer(self) -> int:
        """Number of the policy's layer, from 1, whose output states the watches receive; 0: no states."""
        ...

    @property
    def hold_back(self) -> int:
        """Number of tokens by which an answer is held back."""
        ...

    @property
    def fail_open(self) -> bool:
        """If the guard raises, True lets the answer pass and False blocks it."""
        ...

    def check_prompt(self, messages: Sequence[Message]) -> Verdict:
        """Judge a conversation before it is answered."""
        ...

    def start_answer(self, messages: Sequence[Message], prompt_states: Tensor | None) -> AnswerWatch:
        """Start watching an answer; ``prompt_states``: ``[P, H]``, or None if the guard names no layer."""
        ...


CLOSED = Verdict(flagged=True, reason="The safety check failed, so this request was blocked.")
"""Verdict after a failure of a guard that fails closed."""
OPEN = Verdict(flagged=False)
"""Verdict after a failure of a guard that fails open."""


def check_prompt(guard: Guard, messages: Sequence[Message]) -> Verdict:
    """The guard's verdict; if the guard raises, ``fail_open`` decides."""
    try:
        return guard.check_prompt(messages)
    except Exception:
        return _failed(guard)


def _failed(guard: Guard) -> Verdict:
    _log.exception("the guard failed; %s", "the request continues" if guard.fail_open else "the request is blocked")
    return OPEN if guard.fail_open else CLOSED


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of an answer that can be sent."""

    text: str
    """The text."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Log-probabilities of the tokens; empty if not requested."""


class GuardedAnswer:
    """Releases an answer, ``hold_back`` tokens late, until the guard flags it.

    Args:
        guard: the guard that watches the answer; None: text is sent at once, unchecked.
        messages: the conversation.
    """

    def __init__(self, guard: Guard | None, messages: Sequence[Message]) -> None:
        self._guard, self._messages = guard, messages
        self._watch: AnswerWatch | None = None
        self._held: deque[Piece] = deque()
        self.verdict: Verdict | None = None
        """The latest verdict; None: there is no guard, or no token yet."""

    @property
    def blocked(self) -> bool:
        """True: the guard flagged the answer, and the held text has been discarded."""
        return self.verdict is not None and self.verdict.flagged

    def push(self, drawn: Drawn) -> Piece:
        """Add the result of a step; return the text that can be sent now."""
        piece = Piece(text=drawn.text, logprobs=drawn.logprobs)
        if self._guard is None:
            return piece
        self.verdict = self._judge(self._guard, drawn)
        if self.verdict.flagged:
            self._held.clear()
            return Piece(text="")
        self._held.append(piece)
        keep = 0 if drawn.finish_reason else self._guard.hold_back
        ready = [self._held.popleft() for _ in range(len(self._held) - keep)]
        return Piece(text="".join(p.text for p in ready), logprobs=tuple(n for p in ready for n in p.logprobs))

    def _judge(self, guard: Guard, drawn: Drawn) -> Verdict:
        try:
            if self._watch is None:
                self._watch = guard.start_answer(self._messages, drawn.answer.prompt_states)
                drawn.answer.prompt_states = None
            return self._watch.feed([drawn.token], None if drawn.state is None else drawn.state[None])
        except Exception:
            return _failed(guard)
