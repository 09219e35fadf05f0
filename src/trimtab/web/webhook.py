"""Notifies one URL, named on the command line, of each stored judgement or each alarm. Off by default.

The URL cannot be set from the web or the API, so users of these cannot make this server fetch anything. Messages about
judgements contain only ids, no texts. The header ``X-Trimtab-Signature`` has the HMAC-SHA256 of the body, with
``TRIMTAB_WEBHOOK_SECRET`` as the key. After three failed attempts a message is dropped; ``GET /api/v1/judgements``
still returns all judgements.
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
    """Sends messages from a separate thread.

    Args:
        url: the URL to send to.
        secret: key of the signature.
        timeout: seconds for one attempt.
    """

    def __init__(self, url: str, secret: str, *, timeout: float = 5.0) -> None:
        self.url, self._secret, self._timeout = url, secret.encode(), timeout
        self.dropped = 0
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(maxsize=1000)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message without waiting. If a thousand messages wait already, it is dropped and counted."""
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self.dropped += 1
            _log.warning("webhook: %d messages dropped, %s is too slow", self.dropped, self.url)

    def close(self) -> None:
        """Deliver waiting messages for at most one timeout, then stop."""
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
            except Exception:  # whatever fails, the next message is sent
                self.dropped += 1
                _log.warning("webhook: %s did not take a message (%d dropped so far)", self.url, self.dropped)
