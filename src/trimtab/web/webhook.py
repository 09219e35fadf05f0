"""Tells one URL, named on the command line, about each stored judgement. Off by default.

The URL cannot be set from the web or the API, so nobody who only has those can make this server
fetch anything. The message has ids only, no texts. It is signed with HMAC-SHA256 over the body by
``TRIMTAB_WEBHOOK_SECRET``, in ``X-Trimtab-Signature``. Delivery is tried three times and then given
up; nothing is lost by that, as ``GET /api/v1/judgements`` has everything.
"""

import hashlib
import hmac
import json
import logging
import queue
import threading
import urllib.request
from typing import Any

_log = logging.getLogger(__name__)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


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
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
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
            for _ in range(3):
                try:
                    request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
                    self._opener.open(request, timeout=self._timeout).close()
                    break
                except Exception:  # whatever the other side sends, the next message is tried
                    continue
            else:
                self.dropped += 1
                _log.warning("webhook: %s did not take a message (%d dropped so far)", self.url, self.dropped)
