"""What stands in front of the engine: room, the guard's threads, clients that leave, and failures that are told."""

import json
import logging
import threading
import time
from typing import Any

import httpx
import pytest

from trimtab.serve.app import Service, Settings
from trimtab.serve.errors import ApiError
from trimtab.serve.stream import EventStream

from .kit import KEY, MODEL, Live, WordGuard, body, run, served


class SlowGuard(WordGuard):
    """Reads a prompt when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may, self.checks = threading.Event(), 0

    def check_prompt(self, messages: Any) -> Any:
        self.checks += 1
        assert self.may.wait(60)
        return super().check_prompt(messages)


def test_a_slow_guard_keeps_only_its_own_requests_waiting():
    guard = SlowGuard()
    service = Service(models={MODEL: served()}, settings=Settings(slots=2, queue=3), guard=guard)
    live, statuses = Live(service), []

    def one() -> None:
        with live.client() as client:
            statuses.append(client.post("/v1/chat/completions", json=body(max_tokens=2)).status_code)

    try:
        threads = [threading.Thread(target=one) for _ in range(50)]
        for thread in threads:
            thread.start()
        live.wait(lambda: len(statuses) == 45)
        assert statuses == [429] * 45, "five have room; the others are refused while the guard is still reading"
        assert not service.worker.idle, "a drain waits for requests that the guard is reading"
        with live.client() as client:
            began = time.monotonic()
            assert client.get("/health").status_code == 200 and time.monotonic() - began < 2
            assert client.post("/v1/moderations", json={"input": "x"}).status_code == 429
        guard.may.set()
        for thread in threads:
            thread.join()
        assert statuses[45:] == [200] * 5
        live.wait(lambda: service.worker.idle)
    finally:
        guard.may.set()
        live.stop()


def test_clients_that_leave_give_back_their_room_before_the_guard_has_read():
    guard = SlowGuard()
    service = Service(models={MODEL: served()}, settings=Settings(slots=1, queue=4), guard=guard)
    live = Live(service)
    try:
        headers = {"Authorization": f"Bearer {KEY}"}
        for number in range(8):  # more than there is room for
            with httpx.Client(base_url=live.url, headers=headers, timeout=0.5) as client:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/chat/completions", json=body(stream=number % 2 == 0))
        live.wait(lambda: service.worker.idle)
        assert guard.checks == 2, "only those that had a thread of the guard"
    finally:
        guard.may.set()
        live.stop()


def test_no_text_longer_than_the_context_reaches_the_guard():
    guard = SlowGuard()
    guard.may.set()
    live = Live(Service(models={MODEL: served()}, settings=Settings(slots=1, queue=4), guard=guard))
    try:
        with live.client() as client:
            for long in ("a" * 3_000_000, "the cat " * 600):
                for path, request in (("moderations", {"input": long}), ("chat/completions", body(long))):
                    answer = client.post(f"/v1/{path}", json=request)
                    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
            assert guard.checks == 0
            assert client.post("/v1/moderations", json={"input": ["a cat", "a bomb"]}).status_code == 200
    finally:
        live.stop()


def test_a_bug_in_a_stream_is_logged_and_told(caplog):
    sent, left = [], []

    async def events():
        yield b"data: 1\n\n"
        raise KeyError("a bug")

    async def receive() -> Any:
        import asyncio

        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    with caplog.at_level(logging.ERROR):
        run(EventStream(events(), lambda: left.append(1))({"type": "http"}, receive, send))
    assert "a bug" in caplog.text and left == [1]
    assert json.loads(sent[-2]["body"].removeprefix(b"data: "))["error"]["type"] == "server_error"
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_a_reader_who_never_takes_the_end_is_given_up(monkeypatch):
    monkeypatch.setattr("trimtab.serve.stream.PATIENCE", 0.1)
    left: list[int] = []

    async def events():
        yield b"data: 1\n\n"

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message["more_body"]:
            await receive()

    async def receive() -> Any:
        import asyncio

        await asyncio.sleep(60)

    began = time.monotonic()
    run(EventStream(events(), lambda: left.append(1))({"type": "http"}, receive, send))
    assert left == [1] and time.monotonic() - began < 20


def test_a_failure_of_the_worker_fails_the_request_and_not_the_thread(monkeypatch):
    service = Service(models={MODEL: served()}, settings=Settings(slots=2, queue=4))
    live, worker = Live(service), service.worker
    try:
        with live.client() as client:
            for part in ("_pass_on", "_add", "_set_gauges"):
                with monkeypatch.context() as patched:
                    patched.setattr(worker, part, lambda *given: 1 / 0)
                    assert client.post("/v1/chat/completions", json=body(max_tokens=3)).status_code == 500, part
                assert client.post("/v1/chat/completions", json=body(max_tokens=3)).status_code == 200, part
        live.wait(lambda: worker.idle)
        with pytest.raises(ApiError), worker.reserve(7):
            pass
        with worker.reserve(6):
            assert not worker.idle
    finally:
        live.stop()


def test_other_threads_never_read_the_engines(monkeypatch):
    """The worker changes their queues while it steps; reading them from another thread can raise."""
    service = Service(models={MODEL: served()}, settings=Settings(slots=2, queue=4))
    monkeypatch.setattr(type(service.worker.engines[MODEL]), "running", property(lambda engine: 1 / 0))
    with service.worker.reserve(2):
        pass
    service.stop()
