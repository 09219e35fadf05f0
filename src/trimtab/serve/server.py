"""Loads models and serves them with uvicorn until the server is stopped."""

import hashlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch

from trimtab.errors import ConfigError
from trimtab.models import Backbone
from trimtab.pipeline.talk import open_model
from trimtab.serve.app import Served, Service, create_app
from trimtab.serve.chat import ChatPage, add_chat, belongs_to_page, round_of
from trimtab.serve.gate import KEY, SHORTEST_KEY
from trimtab.storage.chat import ChatVotes
from trimtab.web.app import LOCAL
from trimtab.web.security import base_path
from trimtab.web.server import listen, open_project

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

DRAIN = 30.0
"""Seconds that running answers may take after SIGTERM."""


def load_models(target: str, which: Sequence[str], *, runs: Path) -> dict[str, Served]:
    """The models of ``target`` by name: ``NAME-policy`` for the policy of the run NAME.

    Raises:
        ConfigError: the run has no such model.
    """
    path = Path(target)
    is_run = (path / "config.yaml").is_file() or path.is_file()
    served: dict[str, Served] = {}
    for model in dict.fromkeys(which) if is_run else [""]:
        backbone, adapter = open_model(target, which=model, runs=runs)
        name = f"{path.stem if path.is_file() else path.name}-{model}" if is_run else path.name or target
        served[name] = Served(
            name=name, backbone=backbone, adapter=adapter, checkpoint=checkpoint_of(backbone, adapter)
        )
    return served


def checkpoint_of(backbone: Backbone, adapter: str | None) -> str:
    """Hash of the weights that answer: 64 bits of BLAKE2 over names and values."""
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in sorted(backbone.model.named_parameters()):
        if ".lora_" in name and (adapter is None or f".{adapter}." not in name):
            continue
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().cpu().flatten().view(dtype=torch.uint8).numpy().data)
    return digest.hexdigest()


def api_key() -> tuple[str, bool]:
    """The key from the environment, or a new one; True: the key is new and must be shown.

    Raises:
        ConfigError: the key is too short.
    """
    key = os.environ.get(KEY, "")
    if not key:
        return f"sk-{secrets.token_urlsafe(24)}", True
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{KEY} has {len(key)} characters; use {SHORTEST_KEY} or more ASCII characters without spaces, or unset it "
            "and a key is made"
        )
    return key, False


def serve(
    service: Service,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    chat: Path | None = None,
    public_url: str | None = None,
    licence: str = "not published",
    votes_per_person: int = 200,
    say: Callable[[str], Any] = print,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        service: models and settings.
        host: address to listen on; by default only this machine can connect.
        port: port to listen on; 0: any free one.
        chat: annotation project that stores the votes of the chat page; None: no chat page.
        public_url: address of the page for people, if a proxy is in front.
        licence: licence under which votes are published, for the page's terms.
        votes_per_person: most votes that one person may give in a round.
        say: called with lines about the address and a new key.

    Raises:
        ConfigError: the key in the environment is too short, or ``public_url`` cannot be used.
        StorageError: the port is taken, or the project cannot be opened.
    """
    key, new = api_key()
    if public_url is not None and (urlsplit(public_url).scheme not in ("http", "https") or base_path(public_url)):
        raise ConfigError(f"--public-url {public_url!r}: write http://HOST or https://HOST, without a path")
    project = None if chat is None else open_project(chat)
    listening = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    app = create_app(service, key=key, free=belongs_to_page if project else lambda path: False)
    say(f"{', '.join(service.models)} at {address}/v1")
    if new:
        say(f"API key: {key} (until this server stops; set {KEY} to choose one)")
    if project is not None:
        votes = ChatVotes(project.store, round_name=round_of(service), cap=votes_per_person)
        secure = (public_url or "").startswith("https:")
        page = ChatPage(
            service=service, votes=votes, key=secrets.token_urlsafe(24), licence=licence, secure=secure
        )  # fmt: skip
        add_chat(app, page, hosts=None if public_url else {*LOCAL, host}, public=public_url or "")
        say(f"Chat page: {(public_url or address).rstrip('/')}/chat/enter/{page.key} (until this server stops)")
    try:
        draining_server(app, service).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises it again after an orderly shutdown
        pass
    finally:
        listening.close()
        if project is not None:
            project.close()


def draining_server(app: "FastAPI", service: Service) -> "uvicorn.Server":
    """A server that finishes running answers before it stops; a second signal stops it at once.

    After SIGTERM new requests get status 503. The server stops once nothing runs, or after :data:`DRAIN` seconds.
    """
    import uvicorn

    class Draining(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            if sig != signal.SIGTERM or service.draining:
                super().handle_exit(sig, frame)
                return
            service.draining = True
            threading.Thread(target=self._drain, args=(sig,), daemon=True).start()

        def _drain(self, sig: int) -> None:
            until = time.monotonic() + DRAIN
            while time.monotonic() < until and not service.worker.idle:
                time.sleep(0.05)
            super().handle_exit(sig, None)

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=65_536,
    )
    return Draining(config)
