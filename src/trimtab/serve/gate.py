"""The first checks of every API request: the key, the size of the body, and draining."""

import hashlib
import hmac
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.serve.errors import ApiError

LARGEST = 4_000_000
"""Largest request body, in bytes."""
KEY = "TRIMTAB_API_KEY"
"""Environment variable with the API key."""
SHORTEST_KEY = 16
"""Shortest allowed key, in characters; a shorter key can be guessed."""


def same(sent: str, expected: str) -> bool:
    """Whether two secrets are equal, in a time that does not depend on where they differ."""
    digests = [hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (sent, expected)]
    return hmac.compare_digest(*digests)


class Gate:
    """ASGI middleware that refuses requests without the key, with a large body, or while the server drains.

    Args:
        app: the application to protect.
        key: API key that ``Authorization: Bearer …`` must contain, except on paths that are ``free``.
        free: whether a path needs no key, because it has its own check or reveals nothing.
        draining: whether new requests are refused because the server is about to stop.
    """

    def __init__(self, app: ASGIApp, *, key: str, free: Callable[[str], bool], draining: Callable[[], bool]) -> None:
        self.app, self.key, self.free, self.draining = app, key, free, draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        number = secrets.token_hex(8)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = number
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_with_id)
            return
        received, too_large = 0, False

        async def receive_limited() -> Message:
            nonlocal received, too_large
            message = await receive()
            received += len(message.get("body", b""))
            if received > LARGEST:  # without Content-Length: stop reading, as if the sender had gone
                too_large = True
                return {"type": "http.disconnect"}
            return message

        started = False

        async def send_unless_too_large(message: Message) -> None:
            nonlocal started
            if too_large and not started:
                if message["type"] == "http.response.start":
                    started = True
                    await _too_large()(scope, receive, send_with_id)
                return
            if not too_large:
                started = True
                await send_with_id(message)

        await self.app(scope, receive_limited, send_unless_too_large)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] == "OPTIONS":  # browsers ask without a key; without CORS headers they go no further
            return Response(status_code=204, headers={"Allow": "GET, POST, OPTIONS"})
        stopping = self.draining() and scope["method"] == "POST"
        if self.free(scope["path"]):
            return _stopping() if stopping else None
        kind, _, sent = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not same(sent.strip(), self.key):
            message = "the API key is wrong" if sent else "no API key was sent"
            advice = f"send the header 'Authorization: Bearer KEY' with the key that the server printed, or {KEY}"
            error = ApiError(401, f"{message}; {advice}", code="invalid_api_key")
            return error.response()
        if stopping:
            return _stopping()
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:18]) > LARGEST:
            return _too_large()
        return None


def _too_large() -> Response:
    return ApiError(413, f"the body is larger than {LARGEST:,} bytes; send a shorter conversation").response()


def _stopping() -> Response:
    return ApiError(503, "the server is about to stop; try again later", retry_after=30).response()
