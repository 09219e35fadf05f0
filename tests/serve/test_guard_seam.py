"""The seam for a guard, with a guard that flags a word."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from openai import OpenAI

from trimtab.records import Message
from trimtab.serve.app import Service, Settings

from .kit import KEY, MODEL, Live, WordGuard, body, expected_text, served


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Live, WordGuard]]:
    model = served(ends=0.0)
    guard = WordGuard(chat=model.backbone.chat, layer=2)
    live = Live(Service(models={MODEL: model}, settings=Settings(slots=4, queue=8), guard=guard))
    yield live, guard
    live.stop()


@pytest.fixture
def guard(guarded: tuple[Live, WordGuard]) -> Iterator[WordGuard]:
    made = guarded[1]
    yield made
    made.word, made.hold_back, made.broken, made.fail_open = "bomb", 3, False, False
    made.seen.clear()
    made.prompts.clear()
    guarded[0].service.settings.blocked = "answer"


def ask(live: Live, text: str, **more: Any) -> Any:
    with live.client() as client:
        return client.post("/v1/chat/completions", json=body(text, **more))


def streamed(live: Live, text: str, **more: Any) -> tuple[str, list[Any]]:
    lines = ask(live, text, stream=True, **more).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]
    shown = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    return shown, [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]


def test_a_blocked_prompt_is_told_or_refused(guarded, guard):
    live = guarded[0]
    choice = ask(live, "a bomb").json()["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["content"] == choice["message"]["refusal"] == "Weapons are not talked about."
    assert streamed(live, "a bomb") == ("Weapons are not talked about.", [None, None, "content_filter"])
    live.service.settings.blocked = "error"
    error = ask(live, "a bomb").json()["error"]
    assert (error["code"], error["param"]) == ("content_filter", "messages")
    assert ask(live, "a boat", max_tokens=3).status_code == 200
    assert not guard.seen or guard.prompts, "answers are watched, blocked prompts are not answered"


def test_an_answer_stops_before_what_is_flagged_is_sent(guarded, guard):
    live = guarded[0]
    whole = expected_text(live.service, "the cat", seed=8, tokens=60)
    assert len(whole) > 12
    guard.word = whole[9:12]
    first = whole.find(guard.word)
    for hold_back in (0, 4, 8):
        guard.hold_back = hold_back
        shown, reasons = streamed(live, "the cat", seed=8, max_tokens=60)
        assert reasons[-1] == "content_filter" and whole.startswith(shown)
        assert guard.word not in shown
        assert len(shown) <= first + len(guard.word)
        if hold_back >= len(guard.word):  # a token has one character at least
            assert len(shown) <= first, "nothing of the flagged word went out"
    reply = ask(live, "the cat", seed=8, max_tokens=60).json()["choices"][0]
    assert reply["finish_reason"] == "content_filter" and reply["message"]["content"] == shown


def test_held_text_arrives_when_nothing_is_flagged(guarded, guard):
    live = guarded[0]
    for hold_back in (0, 5, 1000):
        guard.hold_back = hold_back
        shown, reasons = streamed(live, "the cat", seed=8, max_tokens=20, logprobs=True)
        assert shown == expected_text(live.service, "the cat", seed=8, tokens=20) and reasons[-1] in ("stop", "length")


def test_the_guard_sees_tokens_and_states(guarded, guard):
    live = guarded[0]
    ask(live, "the cat", seed=8, max_tokens=6)
    backbone = live.service.models[MODEL].backbone
    prompt = backbone.chat.prompt([Message(role="user", content="the cat")])
    tokens = [token for part, _ in guard.seen for token in part]
    with torch.no_grad():
        states = backbone.model(torch.tensor([prompt + tokens]), output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(guard.prompts[0], states[: len(prompt)], rtol=1e-4, atol=1e-4)
    given = torch.cat([part for _, part in guard.seen])
    torch.testing.assert_close(given, states[len(prompt) - 1 : -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fail_open", [False, True])
def test_a_guard_that_raises(guarded, guard, fail_open):
    guard.broken, guard.fail_open = True, fail_open
    choice = ask(guarded[0], "the cat", max_tokens=3).json()["choices"][0]
    assert (choice["finish_reason"] == "content_filter") is not fail_open


def test_verdicts_in_the_shape_of_the_official_client(guarded, guard):
    live = guarded[0]
    with OpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0) as client:
        verdicts = client.moderations.create(input=["a boat", "a bomb"])
        assert [r.flagged for r in verdicts.results] == [False, True] and verdicts.model == "words-1"
        request = body("a boat", max_tokens=3) | {
            "moderation": {"model": "words-1", "policy": {"input": {"mode": "score"}}}
        }
        whole = client.chat.completions.create(**request)
        assert whole.moderation.input.results[0].category_scores == {"weapons": 0.1}
        assert whole.moderation.output.type == "moderation_results"
        chunks = [c.moderation for c in client.chat.completions.create(**request, stream=True) if c.moderation]
        assert len(chunks) == 1 and not chunks[0].input.results[0].flagged
        blocked = client.chat.completions.create(**(request | {"messages": [{"role": "user", "content": "bomb"}]}))
        assert blocked.moderation.input.results[0].flagged and blocked.moderation.input.results[0].categories["weapons"]
