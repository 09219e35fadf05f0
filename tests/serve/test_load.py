"""Many at once, too many, slow readers, and the end. Loads are bounded in count and time, and stay on this machine."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI

from trimtab.rollout.drawing import answer_stream
from trimtab.rollout.engine import Answer, AnswerSettings
from trimtab.serve.app import Service, Settings
from trimtab.serve.errors import ApiError
from trimtab.serve.metrics import Metrics
from trimtab.serve.worker import BUFFER, Job
from trimtab.testing import prompts, save_model, sentences

from .kit import KEY, MODEL, Live, body, expected_text, run, served


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_200_streams_are_the_text_of_one_after_the_other():
    texts = sentences(200, words=3)
    service = Service(models={MODEL: served(context=160)}, settings=Settings(slots=64, queue=200))
    expected = [expected_text(service, text, seed=i, tokens=12) for i, text in enumerate(texts)]
    live = Live(service)

    async def everybody() -> list[str]:
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key=KEY, timeout=600, max_retries=0) as client:

            async def one(number: int, text: str) -> str:
                stream = await client.chat.completions.create(**body(text, seed=number, max_tokens=12), stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*(one(i, text) for i, text in enumerate(texts)))

    try:
        assert run(everybody()) == expected
    finally:
        live.stop()


def test_with_a_full_queue_requests_are_refused_at_once_and_the_others_answered():
    service = Service(models={MODEL: served(ends=0.0, context=600)}, settings=Settings(slots=2, queue=4))
    live = Live(service)

    async def load() -> list[tuple[int, float, httpx.Headers]]:
        async with httpx.AsyncClient(
            base_url=live.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120,
            limits=httpx.Limits(max_connections=40),
        ) as client:  # fmt: skip

            async def one() -> tuple[int, float, httpx.Headers]:
                began = time.monotonic()
                answer = await client.post("/v1/chat/completions", json=body(max_tokens=60))
                return answer.status_code, time.monotonic() - began, answer.headers

            return await asyncio.gather(*(one() for _ in range(24)))

    try:
        results = run(load())
        statuses = [status for status, *_ in results]
        assert set(statuses) == {200, 429} and 4 <= statuses.count(200) <= 20
        assert all(1 <= int(headers["retry-after"]) <= 60 for status, _, headers in results if status == 429)
        refused = sorted(seconds for status, seconds, _ in results if status == 429)
        accepted = sorted(seconds for status, seconds, _ in results if status == 200)
        assert refused[0] < accepted[0], "a refusal does not wait for an answer"
        assert service.worker.idle
    finally:
        live.stop()


def test_a_slow_reader_is_given_up():
    service = Service(models={MODEL: served(ends=0.0)}, settings=Settings(slots=1, queue=4))

    async def nobody_reads() -> Job:
        prompt = prompts(1)[0]
        answer = Answer(settings=AnswerSettings(max_new_tokens=400), stream=answer_stream(0, prompt.id, 0))
        tokens = service.models[MODEL].backbone.chat.prompt(prompt.messages)
        job = Job(model=MODEL, messages=prompt.messages, prompt_tokens=tokens, answers=[answer])
        job.unsent = BUFFER + 1
        service.worker.submit(job)
        with pytest.raises(ApiError, match="behind"):
            while await job.next():
                job.unsent = BUFFER + 1
        return job

    job = run(nobody_reads())
    assert len(job.answers[0].tokens) < 400
    until = time.monotonic() + 20
    while not service.worker.idle and time.monotonic() < until:  # its slot is free a step later
        time.sleep(0.01)
    assert service.worker.idle
    service.worker.stop()


def test_a_model_that_fails_answers_with_an_error_and_goes_on(monkeypatch):
    service = Service(models={MODEL: served()}, settings=Settings(slots=2, queue=4))
    live = Live(service)
    engine = service.worker.engines[MODEL]
    whole = engine.step
    try:
        with live.client() as client:
            monkeypatch.setattr(engine, "step", lambda: 1 / 0)
            answer = client.post("/v1/chat/completions", json=body(max_tokens=3))
            assert answer.status_code == 500 and "log" in answer.json()["error"]["message"]
            stream = client.post("/v1/chat/completions", json=body(max_tokens=3, stream=True)).text
            assert "error" in json.loads(stream.strip().split("\n\n")[-1].removeprefix("data: "))
            monkeypatch.setattr(engine, "step", whole)
            assert client.post("/v1/chat/completions", json=body(max_tokens=3)).status_code == 200
    finally:
        live.stop()


def test_metrics_exist_before_the_first_request():
    assert b"vllm:num_requests_running" in Metrics().text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_answers_what_runs_and_refuses_what_comes(tmp_path: Path):
    """The command itself: it prints a key, its model's folder is removed, it drains at SIGTERM."""
    from .kit import toy

    backbone = toy(ends=0.0, context=2048)
    folder = save_model(tmp_path / "model", backbone.model)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRIMTAB_API_KEY": ""}
    command = [sys.executable, "-m", "trimtab", "serve", str(folder), "--port", "0", "--slots", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split(" at ")[1].strip()
            key = server.stdout.readline().split()[2]
            shutil.rmtree(folder)
            with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=120) as client:
                until = time.monotonic() + 60
                while True:
                    try:
                        assert client.get(address.removesuffix("/v1") + "/health").status_code == 200
                        break
                    except httpx.ConnectError:
                        assert time.monotonic() < until
                        time.sleep(0.1)
                requests = body(max_tokens=150) | {"model": "model"}
                refused = []
                with client.stream("POST", "/chat/completions", json=requests | {"stream": True}) as stream:
                    lines = stream.iter_lines()
                    next(lines)
                    server.send_signal(signal.SIGTERM)
                    with httpx.Client(base_url=address, headers=client.headers, timeout=60) as other:
                        for _ in range(200):
                            refused.append(
                                other.post("/chat/completions", json=requests | {"max_tokens": 1}).status_code
                            )
                            if refused[-1] == 503:
                                break
                    rest = list(lines)
            assert refused[-1] == 503 and [line for line in rest if line][-1] == "data: [DONE]"
            assert server.wait(timeout=60) in (0, -signal.SIGTERM)
        finally:
            server.kill()
