"""The app in a real browser: Debian's chromium, driven by Playwright, against a server on a port of its own."""

import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from .kit import PASSWORD, World

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SHOTS = os.environ.get("TRIMTAB_SCREENSHOTS")
"""A folder for screenshots to be looked at; none are taken without it."""


class Server:
    """An app on a free port of 127.0.0.1; can be stopped and started like a connection that comes and goes.

    Each start serves a new app, as a new process would.
    """

    def __init__(self, make_app: Callable[[], FastAPI]) -> None:
        self.make_app = make_app
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        app = self.make_app()
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="critical", access_log=False)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)

    def stop(self) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join()


@pytest.fixture(scope="module")  # a running Playwright leaves an event loop in this thread
def chromium() -> Iterator[Any]:
    """A running browser."""
    api = pytest.importorskip("playwright.sync_api", reason="NOT TESTED: the pages in a browser; no playwright")
    if CHROMIUM is None:
        pytest.skip("NOT TESTED: the pages in a browser; install Debian's chromium")
    api.expect.set_options(timeout=15_000)
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def server(here: World) -> Iterator[Server]:
    """The app, by the real clock."""
    here.clock = time.time  # pyright: ignore
    here.store.clock = here.people.clock = time.time
    made = Server(here.app)
    yield made
    made.stop()


@pytest.fixture
def page(chromium: Any, server: Server) -> Iterator[Any]:
    """A tab. The test fails on errors in scripts and on breaches of the Content Security Policy."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, base_url=server.url)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console", lambda m: problems.append(m.text) if "Content Security" in m.text or "Refused" in m.text else None
    )
    page.problems = problems
    yield page
    context.close()
    assert problems == []


def shot(page: Any, name: str) -> None:
    """Take a screenshot, where a folder for them is named."""
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def join(page: Any, world: World, role: str = "annotator", name: str = "Robin") -> None:
    """Use an invitation and confirm the instructions, where there are any."""
    page.goto(f"/join/{world.people.invite(role, by=None)}")  # pyright: ignore
    page.get_by_label("Your name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/(work|manage)$"))
    if page.locator("form[action$='/work/start']").count():
        page.get_by_role("button", name="Start").click()
        page.wait_for_selector("#work")
