"""The server under load, over real HTTP on this machine.

``python -m benchmarks.serving`` starts ``trimtab serve`` in a process of its own and measures:

- ``streams``: so many streaming requests at once: tokens per second of each, and the time to the first token;
- ``full``: as many requests at once as the server has slots and places in its queue;
- ``overload``: four times as many: how soon the others are refused, and how long the accepted ones take.

Loads are bounded by the options, and stay on 127.0.0.1. The result is one JSON object.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import httpx

from benchmarks.machine import machine
from trimtab.testing import sentences

KEY = "sk-benchmark-0123456789"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="smollm2-135m-instruct", help="what `trimtab serve` takes")
    parser.add_argument("--streams", type=int, default=16, help="streams at once, and slots")
    parser.add_argument("--queue", type=int, default=16, help="answers that may wait")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    options = parser.parse_args(arguments)
    command = [sys.executable, "-m", "trimtab", "serve", options.target, "--port", "0"]
    command += ["--slots", str(options.streams), "--queue", str(options.queue)]
    environment = os.environ | {"TRIMTAB_API_KEY": KEY}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            return 1
        model, _, address = line.strip().partition(" at ")
        result = asyncio.run(_measure(model, address, options))
    finally:
        server.terminate()
        server.communicate()
    print(json.dumps(result | {"machine": machine()}, indent=2))
    return 0


async def _measure(model: str, address: str, options: argparse.Namespace) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=600, limits=limits) as client:
        while True:
            try:
                await client.get(address.removesuffix("/v1") + "/health")
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.1)
        capacity = options.streams + options.queue
        await _load(client, model, 2, options.tokens)  # the first steps allocate the cache
        streams = await _load(client, model, options.streams, options.tokens)
        full = await _load(client, model, capacity, options.tokens)
        over = await _load(client, model, 4 * capacity, options.tokens)
    return {"streams": _summary(streams), "full": _summary(full), "overload": _summary(over)}


async def _load(client: httpx.AsyncClient, model: str, count: int, tokens: int) -> list[dict[str, float]]:
    texts = sentences(count, words=12)
    return await asyncio.gather(*(_one(client, model, text, number, tokens) for number, text in enumerate(texts)))


async def _one(client: httpx.AsyncClient, model: str, text: str, seed: int, tokens: int) -> dict[str, float]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "seed": seed, "max_tokens": tokens}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    began = time.perf_counter()
    first, usage = None, {}
    async with client.stream("POST", "/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return {"status": answer.status_code, "seconds": time.perf_counter() - began}
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            usage = chunk.get("usage") or usage
            if first is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
                first = time.perf_counter()
    end = time.perf_counter()
    first = end if first is None else first
    count = usage["completion_tokens"]
    return {"status": 200, "seconds": end - began, "first": first - began, "rate": count / (end - began)}


def _summary(results: list[dict[str, float]]) -> dict[str, float]:
    accepted = [r for r in results if r["status"] == 200]
    refused = [r["seconds"] for r in results if r["status"] == 429]
    made = {
        "requests": len(results),
        "accepted": len(accepted),
        "refused": len(refused),
        "failed": len(results) - len(accepted) - len(refused),
        "tokens_per_second_median": statistics.median(r["rate"] for r in accepted),
        "tokens_per_second_slowest": min(r["rate"] for r in accepted),
        "first_token_p95": _p95([r["first"] for r in accepted]),
        "seconds_p95": _p95([r["seconds"] for r in accepted]),
    }
    return made | ({"refusal_slowest": max(refused)} if refused else {})


def _p95(values: list[float]) -> float:
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


if __name__ == "__main__":
    sys.exit(main())
