"""A toy model served on a free port of 127.0.0.1, and a guard that flags words."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import torch
import uvicorn
from torch import Tensor

from trimtab.records import Message
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.serve.app import Served, Service, Settings, create_app
from trimtab.serve.guarding import Verdict
from trimtab.testing import tiny_backbone, tokenizer

KEY = "sk-test-0123456789abcdef"
MODEL = "toy-policy"


def toy(*, seed: int = 0, ends: float = 6.0, context: int = 512) -> Any:
    """A random model that ends most answers after some ten tokens; with ``ends`` 0, none."""
    backbone = tiny_backbone(seed=seed, context=context)
    with torch.no_grad():
        if ends == 0.0:  # other logits are so far apart that the largest is far above 0
            backbone.head.weight *= 20.0
        backbone.head.weight[tokenizer().eos_token_id] *= ends
    return backbone


def served(name: str = MODEL, **model: Any) -> Served:
    return Served(name=name, backbone=toy(**model), adapter=None, checkpoint="0123456789abcdef")


@dataclass
class WordGuard:
    """Flags prompts and answers that contain a word; counts what it sees."""

    word: str = "bomb"
    chat: Any = None
    layer: int = 0
    hold_back: int = 3
    fail_open: bool = False
    version: str = "words-1"
    broken: bool = False
    seen: list[tuple[list[int], Any]] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)

    def check_prompt(self, messages: Sequence[Message]) -> Verdict:
        if self.broken:
            raise RuntimeError("broken")
        return self._verdict(" ".join(m.content for m in messages))

    def start_answer(self, messages: Sequence[Message], prompt_states: Tensor | None) -> _Watch:
        self.prompts.append(prompt_states)
        return _Watch(self)

    def _verdict(self, text: str) -> Verdict:
        flagged = self.word in text
        return Verdict(
            flagged=flagged,
            scores={"weapons": 0.9 if flagged else 0.1},
            categories={"weapons": flagged},
            reason="Weapons are not talked about." if flagged else "",
        )


class _Watch:
    def __init__(self, guard: WordGuard) -> None:
        self.guard, self.tokens = guard, []

    def feed(self, tokens: Sequence[int], states: Tensor | None) -> Verdict:
        self.tokens += tokens
        self.guard.seen.append((list(tokens), states))
        return self.guard._verdict(self.guard.chat.decode(self.tokens, strip=False) if self.guard.chat else "")


class Live:
    """A server in a thread."""

    def __init__(self, service: Service, app: Any = None) -> None:
        self.service = service
        self.app = app or create_app(service, key=KEY)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(
            uvicorn.Config(self.app, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
        )
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60, **options)

    def wait(self, condition: Any, seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "it did not happen"
            time.sleep(0.01)


def body(text: str = "the cat", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def expected_text(service: Service, text: str, *, seed: int, tokens: int, index: int = 0, **settings: Any) -> str:
    """What the trainers' sampler draws, its white space kept."""
    from trimtab.records import Prompt

    backbone = service.models[MODEL].backbone
    config = SamplerConfig(max_new_tokens=tokens, **settings)
    rollouts = LocalSampler(backbone, config).generate(
        [Prompt.from_text(text)], adapter=None, seed=seed, group=index + 1
    )
    return backbone.chat.decode(rollouts[index].tokens, strip=False)


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


__all__ = ["KEY", "MODEL", "Live", "Settings", "WordGuard", "body", "expected_text", "run", "served", "toy"]
