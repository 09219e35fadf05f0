"""Server-sent events for a reader who may be slow, or leave."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # proxies would hold the events back
}
PATIENCE = 30.0
"""Seconds that a reader may take for what was sent before the stream is closed."""


async def gone(receive: Receive) -> None:
    """Returns when the client has left; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends events until they end, the client leaves, or it reads nothing for :data:`PATIENCE` seconds.

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
            if sending.cancelled() or sending.exception() is not None:
                self.on_leave()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self.events):
            async for content in self.events:
                await asyncio.wait_for(
                    send({"type": "http.response.body", "body": content, "more_body": True}), timeout=PATIENCE
                )
        await send({"type": "http.response.body", "body": b"", "more_body": False})
