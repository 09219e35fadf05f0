"""Server-sent events for clients that may be slow or disconnect."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trimtab.serve.errors import ApiError
from trimtab.serve.replies import event

_log = logging.getLogger(__name__)

CLOSED_REQUEST = 499
"""Status in the log of a request whose client has disconnected; it is never sent."""
HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # else proxies would buffer the events
}
PATIENCE = 30.0
"""Seconds that a client may take to read what was sent before the stream is closed."""


async def gone(receive: Receive) -> None:
    """Wait until the client has disconnected; the request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Response]) -> Response:
    """The response of ``work``, which is cancelled if the client disconnects first."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=CLOSED_REQUEST)
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class EventStream(Response):
    """Sends events until they end, the client disconnects, or it reads nothing for :data:`PATIENCE` seconds.

    If the events raise an exception, it is logged and the client gets an event that says so.

    Args:
        events: encoded events.
        on_leave: called when the stream ends before the events do.
    """

    def __init__(self, events: AsyncGenerator[bytes], on_leave: Callable[[], None]) -> None:
        super().__init__(media_type="text/event-stream", headers=HEADERS)
        del self.headers["content-length"]
        self.events, self.on_leave = events, on_leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            error = None if sending.cancelled() else sending.exception()
            if sending.cancelled() or error is not None:
                self.on_leave()
            if error is not None and not isinstance(error, OSError):  # OSError: the client left or timed out
                _log.error("a stream failed", exc_info=error)

    async def _send(self, send: Send) -> None:
        async def body(content: bytes, *, more: bool) -> None:
            await asyncio.wait_for(
                send({"type": "http.response.body", "body": content, "more_body": more}), timeout=PATIENCE
            )

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._events()) as contents:
            async for content in contents:
                await body(content, more=True)
        await body(b"", more=False)

    async def _events(self) -> AsyncGenerator[bytes]:
        async with aclosing(self.events):
            try:
                async for content in self.events:
                    yield content
            except Exception:
                _log.exception("the events of a stream failed")
                self.on_leave()
                yield event(ApiError(500, "the server failed; its log says why").body)
