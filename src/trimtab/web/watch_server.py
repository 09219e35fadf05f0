"""Serves the page of ``trimtab watch`` on this machine until Ctrl-C."""

import os
import secrets
import threading
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import uvicorn

from trimtab.errors import ConfigError
from trimtab.storage.watched import WatchedRun
from trimtab.web.server import listen
from trimtab.web.watch import POLL, create_watch_app, send_new_alarms
from trimtab.web.webhook import Webhook


def serve_watch(runs: Sequence[WatchedRun], *, port: int, webhook: str | None, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; prints one link with the access token.

    Args:
        runs: the runs to show.
        port: port on 127.0.0.1; 0: any free one.
        webhook: URL to notify of each new alarm; None: off.
        say: called with the line that contains the link.

    Raises:
        ConfigError: more than four runs, or ``webhook`` is not an http(s) URL or has no secret.
        StorageError: the port is taken.
    """
    hook = None
    if webhook is not None:
        secret = os.environ.get("TRIMTAB_WEBHOOK_SECRET", "")
        if urlsplit(webhook).scheme not in ("http", "https") or not urlsplit(webhook).hostname:
            raise ConfigError(f"{webhook!r} is not a URL; write http://… or https://…")
        if not secret:
            raise ConfigError("--webhook needs TRIMTAB_WEBHOOK_SECRET in the environment, to sign what it sends")
        hook = Webhook(webhook, secret)
    token = secrets.token_urlsafe(24)
    app = create_watch_app(runs, token, notify=hook.send if hook else None)
    listening = listen("127.0.0.1", port)
    say(f"Open http://127.0.0.1:{listening.getsockname()[1]}/?token={token}  (Ctrl-C ends)")
    stopping = threading.Event()

    def look_for_alarms() -> None:
        while not stopping.wait(POLL):
            send_new_alarms(app)

    if hook:
        threading.Thread(target=look_for_alarms, daemon=True).start()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # the link is a secret
        server_header=False,
        timeout_graceful_shutdown=1,  # pages keep a connection open for events
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises it again after an orderly shutdown
        pass
    finally:
        stopping.set()
        listening.close()
        if hook:
            hook.close()
