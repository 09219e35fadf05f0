"""Tells one URL, named on the command line, about each stored judgement. Off by default.

The URL cannot be set from the web or the API, so nobody who only has those can make this server
fetch anything. The message has ids only, no texts. It is signed with HMAC-SHA256 over the body, with
``TRIMTAB_WEBHOOK_SECRET`` as the key, in ``X-Trimtab-Signature``. After three failed attempts a message is
dropped; ``GET /api/v1/judgements`` still has everything.
"""

import hashlib
import hmac
import json
import logging
import queue
import threading
from typing import Any

from trimtab import http

_log = logging.getLogger(__name__)


_RETRIES = http.Retries(attempts=3, backoff=0.0)


class Webhook:
    """Sends messages from a thread of its own.

    Args:
        url: where to.
        secret: for the signature.
        timeout: seconds for one try.
    """

    def __init__(self, url: str, secret: str, *, timeout: float = 5.0) -> None:
        self.url, self._secret, self._timeout = url, secret.encode(), timeout
        self.dropped = 0
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(maxsize=1000)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message; never waits. With a thousand waiting, it is dropped and counted."""
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self.dropped += 1
            _log.warning("webhook: %d messages dropped, %s is too slow", self.dropped, self.url)

    def close(self) -> None:
        """Deliver what waits, for at most one timeout, and stop."""
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(self._timeout)

    def _run(self) -> None:
        while (message := self._waiting.get()) is not None:
            body = json.dumps(message).encode()
            signature = hmac.new(self._secret, body, hashlib.sha256).hexdigest()
            headers = {"Content-Type": "application/json", "X-Trimtab-Signature": f"sha256={signature}"}
            try:
                http.post(
                    self.url, body, headers=headers, timeout=self._timeout, retries=_RETRIES,
                    retry_status=lambda _: True, use_proxies=False,
                )  # fmt: skip
            except Exception:  # whatever the other side sends, the next message is tried
                self.dropped += 1
                _log.warning("webhook: %s did not take a message (%d dropped so far)", self.url, self.dropped)
