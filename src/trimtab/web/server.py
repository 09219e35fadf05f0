"""Opens a project and serves it with uvicorn."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trimtab.errors import ConfigError, StorageError
from trimtab.storage.database import Database
from trimtab.storage.labels import LabelStore
from trimtab.storage.people import People
from trimtab.web.app import LOCAL, create_app
from trimtab.web.security import FIRST_SEGMENTS, base_path

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI


@dataclass(frozen=True, kw_only=True)
class Project:
    """An open annotation project."""

    store: LabelStore
    """Items and judgements."""
    people: People
    """Accounts."""

    def close(self) -> None:
        """Close the database."""
        self.store.database.close()


def open_project(folder: Path, url: str | None = None, *, create: bool = True) -> Project:
    """Open ``folder/labels.db``, or the database at ``url``.

    Raises:
        StorageError: the database cannot be opened, or there is none and ``create`` is False.
    """
    path = folder / "labels.db"
    if url is None and not create and not path.is_file():
        raise StorageError(f"{folder}: holds no labels.db; name the folder of an annotation project")
    database = Database(url or f"sqlite:///{path}")
    return Project(store=LabelStore(database), people=People(database))


def serve(
    project: Project,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    public_url: str | None = None,
    proxy: str | None = None,
    webhook: str | None = None,
    owner_link: bool = False,
    say: Callable[[str], Any] = print,
) -> None:
    """Serve a project until Ctrl-C; prints one link.

    Args:
        project: the open project.
        host: address to listen on; by default only this machine can connect.
        port: port to listen on; 0: any free one.
        public_url: address for people if it is not ``http://host:port``; may have a path.
        proxy: address of the proxy in front, whose ``X-Forwarded-For`` header is trusted; None: the header is ignored.
        webhook: URL to notify of each stored judgement; None: off. Only the command line can set it.
        owner_link: print a link for a new owner, even if there is an owner.
        say: called with the line that contains the link.

    Raises:
        ConfigError: ``public_url`` or ``webhook`` is not an http(s) URL, the path of ``public_url`` is one of ours, or
            the webhook has no secret.
        StorageError: the port is taken.
    """
    import uvicorn

    from trimtab.web.webhook import Webhook

    for url in (public_url, webhook):
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise ConfigError(f"{url!r} is not a URL; write http://… or https://…")
    if public_url is not None and (urlsplit(public_url).query or urlsplit(public_url).fragment):
        raise ConfigError(f"{public_url!r} has a query or fragment; write host and path only")
    if base_path(public_url).strip("/").split("/")[0] in FIRST_SEGMENTS:
        raise ConfigError(f"{public_url!r}: a page of the app has this path; choose another one, like /labels")
    secret = os.environ.get("TRIMTAB_WEBHOOK_SECRET", "")
    if webhook and not secret:
        raise ConfigError("--webhook needs TRIMTAB_WEBHOOK_SECRET in the environment, to sign what it sends")
    listening = listen(host, port)
    port = listening.getsockname()[1]
    link = public_url.rstrip("/") if public_url else f"http://{f'[{host}]' if ':' in host else host}:{port}"
    hosts = {*LOCAL, host, str(urlsplit(link).hostname)}
    hook = Webhook(webhook, secret) if webhook else None
    app = create_app(
        project.store,
        project.people,
        hosts=hosts,
        public_url=link if public_url else None,
        notify=hook.send if hook else None,
    )
    project.store.set_address(link)
    say(welcome(project, link, owner_link=owner_link))
    try:
        uvicorn.Server(server_config(app, proxy)).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises it again after an orderly shutdown
        pass
    finally:
        listening.close()
        if hook:
            hook.close()


def welcome(project: Project, link: str, *, owner_link: bool = False) -> str:
    """The line with the link: to become an owner if there is none or with ``owner_link``, else to sign in."""
    token = project.people.first_owner()
    if token is None and owner_link:
        token = project.people.invite("owner", by=None, days=1)
    if token is None:
        return f"Sign in at {link}/"
    return f"Open this link to become an owner (it works once, for a day): {link}/join/{token}"


def server_config(app: "FastAPI", proxy: str | None) -> "uvicorn.Config":
    """Configuration of uvicorn. The client is the connecting address, or the one that the proxy reports."""
    import uvicorn

    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # invitation links are secrets
        server_header=False,
        timeout_keep_alive=30,
        proxy_headers=proxy is not None,
        forwarded_allow_ips=proxy,
    )


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0: any free port.

    Raises:
        StorageError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise StorageError(f"cannot listen on {host}:{port} ({error}); choose another --port") from None
    listening.set_inheritable(True)
    return listening
