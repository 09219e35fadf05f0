"""Checks an answer while it is written: smoothed token scores, and a buffer that holds tokens back.

Legend: z_t = calibrated log-odds that the answer is restricted, from the states of token t; m_t = smoothed z_t.
"""

from collections import deque
from typing import Literal

from pydantic import Field

from trimtab.config import Config

HOLD_BACK = (0, 4, 8, 16, 32)
"""Buffer sizes that reports compare, in tokens."""


class Smoothing(Config):
    """How token scores become a score of the answer so far."""

    kind: Literal["cusum", "exponential", "mean", "max"] = "cusum"
    """``cusum``: m_t = max(0, m_{t−1} + z_t − drift); E. S. Page, "Continuous inspection schemes", Biometrika 1954. If
    tokens are independent, it finds a change soonest of all rules with as many false alarms. ``exponential``: m_t = (1
    − α) m_{t−1} + α z_t, m_0 = 0. ``mean``: the mean of all z so far. ``max``: the largest z so far."""
    alpha: float = Field(default=0.25, gt=0.0, le=1.0)
    """α of the exponential average; about 1/α tokens count. 1: each token alone."""
    drift: float = Field(default=0.0, ge=0.0)
    """Amount subtracted from the cumulative sum at each token."""
    clip: float = Field(default=4.0, gt=0.0)
    """Largest |z_t| that counts, so that a single token cannot decide and a long harmless beginning delays no alarm."""


class Smoothed:
    """Computes m_t, one token at a time.

    The sum and the exponential average start at 0, so a single token at the start decides little.
    """

    def __init__(self, smoothing: Smoothing) -> None:
        self.smoothing = smoothing
        self.value: float | None = None
        """m_t; None before the first token."""
        self._count = 0

    def step(self, score: float) -> float:
        """Take z_t and return m_t."""
        self._count += 1
        score = max(-self.smoothing.clip, min(self.smoothing.clip, score))
        previous, kind = self.value, self.smoothing.kind
        if kind == "cusum":
            self.value = max(0.0, (previous or 0.0) + score - self.smoothing.drift)
        elif kind == "exponential":
            alpha = self.smoothing.alpha
            self.value = (1 - alpha) * (previous or 0.0) + alpha * score
        elif previous is None:
            self.value = score
        elif kind == "mean":
            self.value = previous + (score - previous) / self._count
        else:
            self.value = max(previous, score)
        return self.value


class HoldBack:
    """Tokens wait here until ``size`` later tokens have been scored without an alarm.

    Token t is released when token t + size has been judged harmless. After an alarm nothing more is released: if the
    alarm is at token a, the tokens up to a − 1 − size have gone out.

    Args:
        size: tokens held back; 0 releases each token as soon as it has been judged itself.

    >>> buffer = HoldBack(1)
    >>> buffer.push(7, blocked=False), buffer.push(8, blocked=False), buffer.push(9, blocked=True), buffer.finish()
    ([], [7], [], [])
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.stopped = False
        """True after an alarm."""
        self.dropped = 0
        """Number of tokens that did not go out because of an alarm."""
        self._waiting: deque[int] = deque()

    def push(self, token: int, *, blocked: bool) -> list[int]:
        """Add a token that has been judged; returns the tokens that may go out now."""
        if self.stopped:
            self.dropped += 1
            return []
        self._waiting.append(token)
        if blocked:
            self.stopped = True
            self.dropped += len(self._waiting)
            self._waiting.clear()
            return []
        return [self._waiting.popleft() for _ in range(len(self._waiting) - self.size)]

    def finish(self) -> list[int]:
        """End the answer and return the tokens that still wait; after an alarm there are none."""
        rest = list(self._waiting)
        self._waiting.clear()
        return rest


def leaked(onset: int, alarm: int | None, hold_back: int, length: int) -> int:
    """Restricted tokens that go out before the stop.

    Args:
        onset: index of the first restricted token.
        alarm: index of the token at which the guard stopped; None: it did not stop.
        hold_back: size of the buffer.
        length: tokens of the answer.

    >>> leaked(10, 14, 0, 50), leaked(10, 14, 16, 50), leaked(10, None, 16, 50)
    (4, 0, 40)
    """
    sent = length if alarm is None else max(0, alarm - hold_back)
    return max(0, sent - onset)
