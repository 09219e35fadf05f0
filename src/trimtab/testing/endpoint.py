"""An OpenAI-compatible endpoint on this machine, with scripted replies: right, wrong, slow, broken or malicious.

A behaviour is a function of the request body and the number of the request (from 0) that returns an :class:`Answer`.
The built-in ones play a judge of two answers: :func:`fair` prefers the answer that contains "good", reads the texts
between the ``<<<`` and ``>>>`` marks as material and never as instructions::

    with FakeEndpoint(fair) as fake:
        judge = Endpoint(EndpointConfig(url=fake.url, model=MODEL, key_env=None))
        ...
        assert len(fake.requests) == 2
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "fake-1"
"""The model name in replies."""


@dataclass
class Answer:
    """One reply of the endpoint."""

    text: str = ""
    """The message."""
    status: int = 200
    """HTTP status."""
    headers: dict[str, str] = field(default_factory=dict)
    """Extra HTTP headers, such as ``Retry-After``."""
    wait: float = 0.0
    """Seconds before the reply is sent."""
    body: bytes | None = None
    """Raw body in place of a completion, for malformed replies."""
    model: str = MODEL
    """The model the reply claims to come from."""
    top: dict[str, float] | None = None
    """Probabilities of the first token, by token; None: no log-probabilities in the reply."""
    usage: bool = True
    """False: no token counts in the reply."""
    finish: str = "stop"
    """Finish reason."""


Behaviour = Callable[[dict[str, Any], int], Answer]
"""Request body and number of the request → reply."""


def material(text: str) -> list[str]:
    """The texts between the marks: the request and the answers."""
    return re.findall(r"<<<\n(.*?)\n>>>", text, flags=re.S)


def outside(text: str) -> str:
    """The text outside the marks."""
    return re.sub(r"<<<\n.*?\n>>>", "", text, flags=re.S)


def letter(request: dict[str, Any]) -> str:
    """``B`` if only answer B contains "good", otherwise ``A``."""
    _, a, b = material(request["messages"][-1]["content"])[-3:]
    return "B" if "good" in b and "good" not in a else "A"


def fair(request: dict[str, Any], number: int) -> Answer:
    """The better letter with probability 0.9."""
    best = letter(request)
    other = "AB".replace(best, "")
    return Answer(best, top={best: 0.9, other: 0.08, "The": 0.01})


def wordy(request: dict[str, Any], number: int) -> Answer:
    """The better letter after a chain of thought, without log-probabilities."""
    return Answer(f"Answer A says this. Answer B says that.\nAnswer: {letter(request)}")


def saying(text: str, **more: Any) -> Behaviour:
    """The same reply to every request; further arguments are fields of :class:`Answer`."""
    return lambda request, number: Answer(text, **more)


def first(count: int, bad: Answer, then: Behaviour = fair) -> Behaviour:
    """``bad`` for the first ``count`` requests, ``then`` for the others."""
    return lambda request, number: bad if number < count else then(request, number)


def gullible(request: dict[str, Any], number: int) -> Answer:
    """Obeys an instruction such as "choose B" that stands outside the marks; otherwise :func:`fair`."""
    orders = re.findall(r"Answer: ([AB])\b|choose ([AB])\b", outside(request["messages"][-1]["content"]))
    order = next((a or b for a, b in orders), None)
    return Answer(order) if order else fair(request, number)


class FakeEndpoint:
    """A local HTTP server for the duration of a ``with`` block.

    Args:
        behaviour: what it replies.

    Attributes:
        url: base URL to give to a client.
        requests: request bodies in order of arrival; ``times`` and ``keys`` hold the arrival times (seconds, monotonic)
            and the ``Authorization`` headers.
        most_at_once: largest number of requests in progress at the same time.
    """

    def __init__(self, behaviour: Behaviour = fair) -> None:
        self.behaviour = behaviour
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(fake.requests)
                    fake.requests.append(request)
                    fake.times.append(time.monotonic())
                    fake.keys.append(self.headers.get("Authorization"))
                    fake.at_once += 1
                    fake.most_at_once = max(fake.most_at_once, fake.at_once)
                try:
                    answer = fake.behaviour(request, number)
                    fake.stopping.wait(answer.wait)
                    self.reply(answer)
                finally:
                    with lock:
                        fake.at_once -= 1

            def reply(self, answer: Answer) -> None:
                body = json.dumps(completion(answer)).encode() if answer.body is None else answer.body
                try:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # the client has gone

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.stopping = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> FakeEndpoint:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def completion(answer: Answer) -> dict[str, Any]:
    """The body of a chat completion."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text},
        "finish_reason": answer.finish,
    }
    if answer.top is not None:
        choice["logprobs"] = {"content": tokens(answer.text, answer.top)}
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102} if answer.usage else None
    return {"id": "1", "object": "chat.completion", "model": answer.model, "choices": [choice], "usage": usage}


def tokens(text: str, top: dict[str, float]) -> list[dict[str, Any]]:
    """Log-probabilities of each token of a text: ``top`` for the token it starts with, certainty for the others."""
    best, listed_tokens = next(iter(top)), []
    for word in re.findall(r"\s*(?:\w+|[^\w\s])|\s+$", text):
        listed = top if word.strip() == best.strip() else {word: 1.0}
        entries = [{"token": word if t == best else t, "logprob": math.log(p)} for t, p in listed.items()]
        listed_tokens.append({**entries[0], "top_logprobs": entries})
    return listed_tokens
