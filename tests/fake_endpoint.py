"""An OpenAI-compatible endpoint on this machine that behaves well or badly, as a test asks.

A behaviour takes what was asked and the number of the request (from 0) and returns an :class:`Answer`. The fake
judge prefers the answer that says "good"; what stands between the marks it reads as material, as a careful judge would.
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


@dataclass
class Answer:
    """What the endpoint sends back."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    body: bytes | None = None
    model: str = MODEL
    top: dict[str, float] | None = None
    usage: bool = True
    finish: str = "stop"


Behaviour = Callable[[dict[str, Any], int], Answer]


def material(text: str) -> list[str]:
    """What stands between the marks: request, answers."""
    return re.findall(r"<<<\n(.*?)\n>>>", text, flags=re.S)


def outside(text: str) -> str:
    """What does not."""
    return re.sub(r"<<<\n.*?\n>>>", "", text, flags=re.S)


def letter(asked: dict[str, Any]) -> str:
    """A if answer A says "good" and B does not, B the other way round, else the first shown."""
    _, a, b = material(asked["messages"][-1]["content"])[-3:]
    return "B" if "good" in b and "good" not in a else "A"


def fair(asked: dict[str, Any], number: int) -> Answer:
    """Right and 90 % sure."""
    best = letter(asked)
    other = "AB".replace(best, "")
    return Answer(best, top={best: 0.9, other: 0.08, "The": 0.01})


def wordy(asked: dict[str, Any], number: int) -> Answer:
    """Thinks aloud; without log-probabilities."""
    return Answer(f"Answer A says this. Answer B says that.\nAnswer: {letter(asked)}")


def saying(text: str, **more: Any) -> Behaviour:
    """Always the same."""
    return lambda asked, number: Answer(text, **more)


def first(count: int, bad: Answer, then: Behaviour = fair) -> Behaviour:
    """Badly ``count`` times, then otherwise."""
    return lambda asked, number: bad if number < count else then(asked, number)


def gullible(asked: dict[str, Any], number: int) -> Answer:
    """Does what it is told anywhere outside the marks."""
    told = re.findall(r"Answer: ([AB])\b|choose ([AB])\b", outside(asked["messages"][-1]["content"]))
    said = next((a or b for a, b in told), None)
    return Answer(said) if said else fair(asked, number)


class FakeEndpoint:
    """Use as a context manager; ``url`` is its base, ``requests`` what it was asked."""

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
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(fake.requests)
                    fake.requests.append(asked)
                    fake.times.append(time.monotonic())
                    fake.keys.append(self.headers.get("Authorization"))
                    fake.at_once += 1
                    fake.most_at_once = max(fake.most_at_once, fake.at_once)
                try:
                    answer = fake.behaviour(asked, number)
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

            def log_message(self, *_: Any) -> None:
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
    """The protocol's form of an answer."""
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
    """Log-probabilities of a whole text: ``top`` wherever a token is the first of it, certainty elsewhere."""
    best, found = next(iter(top)), []
    for word in re.findall(r"\s*(?:\w+|[^\w\s])|\s+$", text):
        listed = top if word.strip() == best.strip() else {word: 1.0}
        entries = [{"token": word if t == best else t, "logprob": math.log(p)} for t, p in listed.items()]
        found.append({**entries[0], "top_logprobs": entries})
    return found
