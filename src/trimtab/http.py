"""HTTP requests that are tried again: which failures are worth another attempt, and how long to wait before it.

:func:`post` is the whole loop for callers that only need the body. The judge's endpoint, which counts the cost of each
attempt and sends many requests at a time, has a loop of its own and shares the rules.
"""

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

_TEMPORARY = frozenset({408, 409, 425, 429})


def is_temporary(status: int) -> bool:
    """True if a status says that the same request may succeed later: 408, 409, 425, 429 and 5xx."""
    return status in _TEMPORARY or status >= 500


def retry_after(value: str | None) -> float:
    """Seconds that a ``Retry-After`` header asks for, in seconds or as a date, at most 120; 0 for none.

    >>> retry_after("1.5"), retry_after(None), retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), retry_after("soon")
    (1.5, 0.0, 0.0, 0.0)
    """
    try:
        seconds = float(value or 0)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(str(value)).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(120.0, max(0.0, seconds)) if math.isfinite(seconds) else 0.0


def error_message(body: bytes, *, hide: str = "", characters: int = 300) -> str:
    """The words in the body of a failed request: the message of a JSON error, or the text of a page.

    A chat completion has none.

    Args:
        body: the body, whole or its beginning.
        hide: a secret that the other side may repeat; replaced by ``…``.
        characters: longest message; a longer one ends in ``…``.

    >>> error_message(b'{"error": {"message": "quota exceeded", "code": 429}}')
    'quota exceeded'
    >>> error_message(b"<html><h1>502</h1> Bad Gateway</html>")
    '502 Bad Gateway'
    """
    text = body.decode("utf-8", "replace")
    try:
        value = json.loads(text)
        text = _words(value) or ("" if isinstance(value, dict) and "choices" in value else text)
    except (ValueError, RecursionError):
        text = re.sub(r"(?is)<(script|style)\b.*?</\1>|</?[a-z!][^>]*>", " ", text)
    if hide:
        text = text.replace(hide, "…")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= characters else f"{text[:characters]}…"


def _words(value: Any) -> str:
    """The message in a JSON error of the common shapes."""
    if isinstance(value, list):
        return "; ".join(filter(None, map(_words, value)))
    if isinstance(value, dict):
        keys = ("error", "message", "msg", "detail", "errors")
        return next((words for key in keys if (words := _words(value.get(key)))), "")
    return value if isinstance(value, str) else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retries:
    """How often a request is tried, and the pauses between attempts.

    >>> [Retries(backoff=1.0, factor=2.0).pause(attempt) for attempt in range(3)]
    [1.0, 2.0, 4.0]
    """

    attempts: int = 3
    """Requests in all; at least 1."""
    backoff: float = 0.2
    """Seconds before the second attempt."""
    factor: float = 4.0
    """Each further pause is this many times the one before."""
    longest: float = 60.0
    """Longest pause, in seconds."""

    def pause(self, attempt: int) -> float:
        """Seconds to wait after attempt number ``attempt``, counted from 0."""
        return min(self.longest, self.backoff * self.factor**attempt)


class PostError(Exception):
    """A request failed for good: its last failure, and the number of the attempt."""

    def __init__(self, reason: str, attempt: int) -> None:
        super().__init__(reason)
        self.attempt = attempt


def post(
    url: str,
    content: bytes,
    *,
    headers: Mapping[str, str],
    timeout: float,
    retries: Retries,
    retry_status: Callable[[int], bool] = is_temporary,
    use_proxies: bool = True,
) -> bytes:
    """Post a body and return the body of the reply. Redirects are not followed.

    Args:
        url: where to.
        content: the body.
        headers: beside those of HTTP.
        timeout: seconds without a sign from the other side after which an attempt has failed.
        retries: how often it is tried.
        retry_status: whether a status other than 2xx is worth another attempt; no connection always is.
        use_proxies: False: proxies named in the environment are not used.

    Raises:
        PostError: the last attempt failed, or one failed in a way that another cannot mend.
    """
    for attempt in range(retries.attempts):
        try:
            reply = httpx.post(url, content=content, headers=dict(headers), timeout=timeout, trust_env=use_proxies)
            if reply.is_success:
                return reply.content
            message = error_message(reply.content[:10_000])
            reason = f"HTTP Error {reply.status_code}: {reply.reason_phrase}{': ' if message else ''}{message}"
            again = retry_status(reply.status_code)
        except httpx.InvalidURL as error:
            reason, again = f"InvalidURL: {error}", False
        except httpx.HTTPError as error:
            reason, again = f"{type(error).__name__}: {error}", True
        if not again or attempt + 1 == retries.attempts:
            raise PostError(reason, attempt + 1)
        time.sleep(retries.pause(attempt))
    raise AssertionError("at least one attempt is made")
