"""Checks of every request (host, origin, size, rate), and the security headers of every answer."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_SAFE = ("GET", "HEAD", "OPTIONS")
SMALL, LARGE = 4_000_000, 64_000_000
"""Largest requests in bytes; the large limit is for uploads of items."""
FIRST_SEGMENTS = (
    "adjudicate",
    "api",
    "guidelines",
    "healthz",
    "history",
    "join",
    "manage",
    "profile",
    "signin",
    "signout",
)
FIRST_SEGMENTS += ("static", "work")
"""First parts of our own paths. A base path must not start with one, or it is unclear whether the proxy removed it."""
_LARGE_PATHS = ("/manage/items", "/api/v1/items")
_TRIES = {"/signin": (10, 300.0), "/join": (20, 300.0)}
"""Most failures of one address, and in how many seconds, at pages that check a secret."""


class Guard:
    """ASGI middleware; see the module.

    Args:
        app: the application to guard.
        hosts: names that this server answers to; others are refused (DNS rebinding). None: any name, for a proxy that
            may send any. Sessions stay safe, because browsers send their cookies to the public name only.
        public: the address that people use, which a proxy may hide from us. Its path, if any, is removed from requests
            that have it, and prepended to redirects.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, public: str = "") -> None:
        self.app = app
        self.public = urlsplit(public).netloc.lower()
        self.base = base_path(public)
        self.hosts = None if hosts is None else frozenset(h.lower() for h in hosts)
        self.tries = Tries()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request, pass it on, add the headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = _without(scope, self.base)
        headers = Headers(scope=scope)
        key, *limit = self._limit(scope)
        problem = self._problem(scope, headers)
        if problem is None and limit and not self.tries.allow(key, *limit):
            key, problem = "", (429, "Too many tries; wait a few minutes.")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] < 400:
                    self.tries.forgive(key)
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer[name] = value
                if not scope["path"].startswith("/static/"):
                    answer["Cache-Control"] = "no-store"
                if answer.get("location", "").startswith("/"):
                    answer["Location"] = self.base + answer["location"]
            await send(message)

        if problem is not None:
            status, text = problem
            await PlainTextResponse(text + "\n", status_code=status)(scope, receive, send_with_headers)
            return
        limit = LARGE if scope["path"].startswith(_LARGE_PATHS) else SMALL
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:  # no Content-Length: stop reading, as if the sender had disconnected
                return {"type": "http.disconnect"}
            return message

        await self.app(scope, receive_limited, send_with_headers)

    def _problem(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.hosts is not None and _hostname(host) not in self.hosts:
            return 400, "This server does not answer to that host name; start it with --public-url."
        path, method = scope["path"], scope["method"]
        length = headers.get("content-length", "0")
        limit = LARGE if path.startswith(_LARGE_PATHS) else SMALL
        if not length.isdecimal() or int(length[:18]) > limit:
            return 413, f"The request is larger than {limit} bytes; send it in parts."
        if method not in _SAFE:
            if "authorization" not in headers and not _same_origin(headers, {host.lower(), self.public}):
                return 403, "This request came from another site, and was refused."
        return None

    def _limit(self, scope: Scope) -> tuple[Any, ...]:
        """Key of the client and page, number of tries and seconds; an empty key if tries are not limited."""
        for start, limit in _TRIES.items():
            if scope["method"] not in _SAFE and scope["path"].startswith(start):
                return (f"{start} {(scope.get('client') or ['?'])[0]}", *limit)
        return ("",)


class Tries:
    """Counts tries in a sliding window; remembers the latest ten thousand clients.

    A try counts from its start, so that simultaneous tries cannot exceed the limit. A successful try is forgiven.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock=time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def allow(self, key: str, count: int, seconds: float) -> bool:
        """Count one try; False if there were too many."""
        now = self._clock()
        with self._lock:
            times = self._seen.setdefault(key, deque())
            self._seen.move_to_end(key)
            if len(self._seen) > 10_000:
                self._seen.popitem(last=False)
            while times and times[0] <= now - seconds:
                times.popleft()
            if len(times) >= count:
                return False
            times.append(now)
            return True

    def forgive(self, key: str) -> None:
        """Do not count the latest try, because it was right."""
        with self._lock:
            if self._seen.get(key):
                self._seen[key].pop()


def base_path(url: str | None) -> str:
    """The path of a URL without a slash at its end: ``/labels`` of ``https://example.org/labels/``."""
    return urlsplit(url or "").path.rstrip("/")


def _without(scope: Scope, base: str) -> Scope:
    """The request without the base path, which some proxies remove and others do not."""
    path = scope["path"]
    if not base or not (path == base or path.startswith(base + "/")):
        return scope
    raw = scope.get("raw_path") or path.encode()
    return {**scope, "path": path[len(base) :] or "/", "raw_path": raw.removeprefix(base.encode()) or b"/"}


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _same_origin(headers: Headers, hosts: set[str]) -> bool:
    """True if the browser says that the request comes from one of our pages, or says nothing, as other programs do."""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True  # the CSRF token is still checked
    try:
        return urlsplit(origin).netloc.lower() in hosts - {""}
    except ValueError:
        return False
