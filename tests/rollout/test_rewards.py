"""Named rewards: plain, async, slow, broken; and an endpoint that answers, fails, or answers nonsense."""

import asyncio
import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from trimtab.errors import NonFiniteError, ScoringError
from trimtab.records import Prompt, Rollout
from trimtab.rollout import (
    FunctionReward,
    HttpReward,
    ModelReward,
    NamedRewards,
    http_reward,
    split_steps,
)


def rollouts(*texts: str) -> list[Rollout]:
    return [
        Rollout(
            id=f"p/0/{i}", prompt=Prompt.from_text("Q", reference="72"), prompt_tokens=[1], tokens=[2], logprobs=[0.0],
            text=text, finish_reason="stop", weight_version=0,
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip


def named(function, **settings) -> NamedRewards:
    return NamedRewards({"it": FunctionReward(path="a.b", **settings)}, {"it": function})


def test_components_are_normalised_clipped_and_weighted():
    sources = {
        "length": FunctionReward(path="a.b", mean=2.0, std=2.0, clip=1.0, weight=3.0),
        "model": ModelReward(weight=-0.5),
    }
    functions = {
        "length": lambda rs: [len(r.text) for r in rs],
        "model": lambda rs: [4.0] * len(rs),
    }
    rewards, some = NamedRewards(sources, functions), rollouts("abc", "a", "abcdefgh")
    assert rewards(some) == {"length": [0.5, -0.5, 1.0], "model": [4.0, 4.0, 4.0]}
    assert rewards.weights == {"length": 3.0, "model": -0.5}
    assert [rewards.total(whole) for whole in rewards.whole(some)] == [3 * 0.5 - 2, 3 * -0.5 - 2, 3 * 1.0 - 2]
    assert rewards([]) == {"length": [], "model": []}


def test_async_functions_are_awaited():
    async def slow(rs):
        await asyncio.sleep(0.01)
        return [1.0 for _ in rs]

    assert named(slow)(rollouts("a", "b")) == {"it": [1.0, 1.0]}


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_function_that_hangs(kind):
    async def forever(_):
        await asyncio.sleep(30)

    function = forever if kind == "async" else lambda _: time.sleep(30)
    start = time.monotonic()
    with pytest.raises(ScoringError, match=r"'it' took longer than 0\.1 s for 1 answers; raise rewards\.it\.timeout"):
        named(function, timeout=0.1)(rollouts("a"))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([1.0], ScoringError, "has 1 values for 2 answers"),
        (["x", 1], ScoringError, "expected one number per answer"),
        (None, ScoringError, r"returned None \(NoneType\)"),
        ([1.0, math.nan], NonFiniteError, "is nan for sample p/0/1"),
        ([math.inf, 1.0], NonFiniteError, "is inf for sample p/0/0"),
    ],
)
def test_wrong_results(values, error, message):
    with pytest.raises(error, match=message):
        named(lambda _: values)(rollouts("a", "b"))


def test_a_function_that_raises():
    def broken(_):
        raise KeyError("gone")

    with pytest.raises(ScoringError, match="reward 'it' raised KeyError: 'gone'"):
        named(broken)(rollouts("a"))


class Endpoint(BaseHTTPRequestHandler):
    replies: ClassVar[list[tuple[int, bytes]]] = []
    seen: ClassVar[list[dict]] = []

    def do_POST(self) -> None:
        self.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, body = self.replies.pop(0)
        if not status:  # what a broken endpoint sends, as it is, a byte at a time
            for byte in body:
                self.wfile.write(bytes([byte]))
                threading.Event().wait(0.05)
            return
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        return None


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("trimtab.http.time.sleep", lambda _: None)
    Endpoint.replies, Endpoint.seen = [], []
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/score"
    server.shutdown()
    server.server_close()


def post(url: str):
    source = HttpReward(url=url, timeout=5)
    return NamedRewards({"it": source}, {"it": http_reward(source)})(rollouts("a", "b"))


def test_endpoint(url: str):
    Endpoint.replies = [(500, b""), (200, b'{"rewards": [1, 0.5]}')]  # tried again after a failure
    assert post(url) == {"it": [1.0, 0.5]}
    assert Endpoint.seen[1] == {
        "prompts": [[{"role": "user", "content": "Q"}]] * 2,
        "completions": ["a", "b"],
        "finish_reasons": ["stop", "stop"],
        "metadata": [{"reference": "72"}] * 2,
    }


CUT = b"HTTP/1.0 200 OK\r\nContent-Length: 90\r\n\r\n{"


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([(0, b"no\r\n")] * 3, r"(?s)RemoteProtocolError.*attempt 3 of 3"),
        ([(0, CUT)] * 3, r"RemoteProtocolError: peer closed connection.*attempt 3 of 3"),
        ([(500, b"")] * 3, r"HTTP Error 500.*attempt 3 of 3"),
        ([(404, b"")], r"HTTP Error 404.*attempt 1 of 3"),
        ([(200, b"<html>")], r'expected \{"rewards"'),
        ([(200, b'{"scores": []}')], r'expected \{"rewards"'),
        ([(200, b'{"rewards": [1]}')], "has 1 values for 2 answers"),
        ([(200, b'{"rewards": [1, null]}')], "expected one number per answer"),
    ],
)
def test_endpoints_that_fail(url: str, replies, message):
    Endpoint.replies = list(replies)
    with pytest.raises(ScoringError, match=message):
        post(url)
    assert not Endpoint.replies


def test_an_endpoint_that_trickles(url: str):
    """Every byte comes in time, the answer never does."""
    Endpoint.replies = [(0, b"HTTP/1.0 200 OK\r\n\r\n" + b" " * 30)]
    start = time.monotonic()
    with pytest.raises(ScoringError, match=r"reward 'it' took longer than 0\.6 s for 1 answers; raise rewards\.it\.t"):
        NamedRewards({"it": HttpReward(url=url, timeout=0.2)}, {"it": http_reward(HttpReward(url=url, timeout=0.2))})(
            rollouts("a")
        )
    assert time.monotonic() - start < 3


def test_no_endpoint_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trimtab.http.time.sleep", lambda _: None)
    with pytest.raises(ScoringError, match="check that the endpoint is up"):
        post("http://127.0.0.1:9/score")


# Steps --------------------------------------------------------------------------------------


def spoken(text: str, tokens: list[str]) -> tuple[Rollout, Callable[[Sequence[int]], str]]:
    """An answer whose token i is the i-th of the given pieces, and what decodes it."""
    rollout = dataclasses.replace(rollouts(text)[0], tokens=list(range(len(tokens))))
    return rollout, lambda ids: "".join(tokens[i] for i in ids).strip()


def test_each_number_counts_at_its_steps_last_token():
    rollout, decode = spoken("2+2=4\n\nso 4.", ["2+", "2", "=4", "\n", "\n", "so", " 4.", "<end>"])
    decoded = lambda ids: decode(ids).removesuffix("<end>")  # noqa: E731
    seen = []

    def judge(some):
        seen.extend(split_steps(r.text, "\n") for r in some)
        return [[1.0, 9.0]]

    source = FunctionReward(path="a.b", steps="\n", clip=5.0, weight=2.0)
    rewards = NamedRewards({"it": source}, {"it": judge}, decoded)
    assert rewards([rollout]) == {"it": [[(2, 1.0), (6, 5.0)]]}
    assert seen == [["2+2=4", "so 4."]]
    assert [rewards.total(whole) for whole in rewards.whole([rollout])] == [12.0]


def test_the_same_step_twice_has_two_ends():
    rollout, decode = spoken("a;a;a", ["a", ";", "a;", "a"])
    rewards = NamedRewards({"it": FunctionReward(path="a.b", steps=";")}, {"it": lambda rs: [[1.0, 2.0, 3.0]]}, decode)
    assert rewards([rollout]) == {"it": [[(0, 1.0), (2, 2.0), (3, 3.0)]]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0]], "gave 1 numbers for the 2 steps of sample p/0/0"),
        ([1.0], r"gave 1\.0 \(float\) for the 2 steps of sample p/0/0"),
        (["12"], r"gave '12' \(str\) for the 2 steps"),
        (None, r"returned None \(NoneType\)"),
        ([[1.0, None]], "is None for sample p/0/0"),
        ([], "has 0 values for 1 answers"),
        ([["a", "b"]], "expected one number per answer"),
    ],
)
def test_step_functions_that_return_something_else(values, message):
    rollout, decode = spoken("a\nb", ["a", "\n", "b"])
    rewards = NamedRewards({"it": FunctionReward(path="a.b", steps="\n")}, {"it": lambda rs: values}, decode)
    with pytest.raises(ScoringError, match=message):
        rewards([rollout])
