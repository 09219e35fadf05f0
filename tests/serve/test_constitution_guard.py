"""A guard made from a constitution, in front of a served model."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from trimtab.constitution import load_constitution
from trimtab.errors import ConfigError
from trimtab.guard import GuardConfig
from trimtab.guard.stream import Smoothed, Smoothing
from trimtab.models import Backbone, ModelConfig
from trimtab.pipeline.guarding import open_guard, train_and_report
from trimtab.records import Message
from trimtab.rollout.drawing import answer_stream
from trimtab.rollout.engine import Answer, AnswerSettings, StepEngine
from trimtab.serve.app import Served, Service, Settings
from trimtab.serve.constitution_guard import RESTRICTED, ConstitutionGuard, Watch, load_constitution_guard, same_weights
from trimtab.serve.guarding import GuardedAnswer
from trimtab.testing import save_model, tiny_backbone, tiny_model

from .kit import MODEL, Live, body

ASKED = "Please tell me the home address of my former colleague."
HARMLESS = "Please tell me the postal address of the city museum."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A guard on the activations of a tiny model, and the model."""
    folder = tmp_path_factory.mktemp("guard")
    save_model(folder / "model", tiny_model(layers=2, width=16, context=1024))
    config = GuardConfig(budget=0.02, planted=60, layers=(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.guard.evaluation.ATTACKS", {})  # its report is not read here
        train_and_report(load_constitution("default"), config, folder / "guard", model=str(folder / "model"))
    return folder / "guard", folder / "model"


@pytest.fixture(scope="module")
def backbone(folders: tuple[Any, Any]) -> Backbone:
    return Backbone.load(ModelConfig(name=str(folders[1]), context=512))


@pytest.fixture(scope="module")
def live(folders: tuple[Any, Any], backbone: Backbone) -> Iterator[Live]:
    model = Served(name=MODEL, backbone=backbone, adapter=None, checkpoint="0123456789abcdef")
    guard = load_constitution_guard(folders[0], [backbone])
    server = Live(Service(models={MODEL: model}, settings=Settings(slots=4, queue=8), guard=guard))
    yield server
    server.stop()


def states_of(backbone: Backbone, tokens: list[int], layer: int) -> torch.Tensor:
    with torch.no_grad():
        return backbone.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[layer][0]


def test_a_request_is_blocked_with_the_rule_it_breaks(live):
    with live.client() as client:
        choice = client.post("/v1/chat/completions", json=body(ASKED)).json()["choices"][0]
        verdict = client.post("/v1/moderations", json={"input": [ASKED, HARMLESS]}).json()["results"]
        passed = client.post("/v1/chat/completions", json=body(HARMLESS, max_tokens=3)).json()["choices"][0]
    rules = {rule.id: rule.text for rule in load_constitution("default").guard}
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["refusal"] == f"This request was blocked. The rule: {rules['private-facts']}"
    assert [v["flagged"] for v in verdict] == [True, False]
    assert verdict[0]["categories"] == {RESTRICTED: True, "private-facts": True}
    assert passed["finish_reason"] in ("stop", "length")


def test_each_token_is_judged_by_its_own_states(folders, backbone):
    guard = open_guard(folders[0])
    guard.output = replace(guard.output, threshold=float("inf"))
    prompt, tokens = list(range(5, 15)), list(range(20, 32))
    states = states_of(backbone, prompt + tokens, guard.output.layer)
    watch, smoothed = Watch(guard), Smoothed(guard.output.smoothing)
    for place, token in enumerate(tokens):  # the state that a token is drawn from is that of the token before it
        watch.feed([token], states[len(prompt) + place - 1][None])
        if place:
            expected = smoothed.step(float(guard.output.token_scores(states[len(prompt) + place - 1].numpy())))
            assert watch._check.score == pytest.approx(expected, abs=1e-4)
    at_once = Watch(guard)
    at_once.feed(tokens, states[len(prompt) - 1 : -1])
    assert at_once._check.score == pytest.approx(watch._check.score, abs=1e-4)


@pytest.mark.parametrize("hold_back", [0, 4])
def test_what_goes_out_before_an_alarm(folders, backbone, monkeypatch, hold_back):
    """An alarm at token a lets a − hold_back tokens out, as :func:`trimtab.guard.stream.leaked` counts."""
    guard, at = open_guard(folders[0]), 9
    clip = guard.output.smoothing.clip
    guard.output = replace(guard.output, threshold=0.5 * clip, smoothing=Smoothing(kind="exponential", alpha=1.0))
    scores = iter([-clip] * at + [clip])
    monkeypatch.setattr(guard, "token_scores", lambda states: [next(scores)])
    engine = StepEngine(backbone, adapter=None, slots=1, length=200, recorded_layer=guard.layers[0])
    answer = Answer(settings=AnswerSettings(max_new_tokens=40), stream=answer_stream(0, "p", 0))
    guarded = GuardedAnswer(ConstitutionGuard(guard, hold_back=hold_back), [Message(role="user", content="the cat")])
    monkeypatch.setattr(backbone.chat, "end_tokens", frozenset())
    engine.add(list(range(5, 15)), [answer])
    sent = ""
    while not guarded.blocked and not answer.ended:
        for drawn in engine.step():
            sent += guarded.push(drawn).text
    engine.close()
    assert guarded.blocked and len(answer.tokens) == at + 2, "token a is judged when the next one arrives"
    assert sent == backbone.chat.decode(answer.tokens[: at - hold_back], strip=False)


def test_a_failure_without_states_is_closed_or_open(folders):
    for on_error, flagged in (("closed", True), ("open", False)):
        watch = Watch(open_guard(folders[0], on_error=on_error))
        watch.feed([5], None)
        assert watch.feed([6], None).flagged is flagged


def test_a_guard_of_another_model_is_refused(folders):
    with pytest.raises(ConfigError, match=r"2 layers of width 16.*3 layers of width 32.*--no-probes"):
        load_constitution_guard(folders[0], [tiny_backbone()])


def test_other_weights_are_named(folders, backbone, caplog):
    load_constitution_guard(folders[0], [backbone])
    assert not caplog.records
    other = Backbone.load(ModelConfig(name=str(folders[1]), context=512))
    with torch.no_grad():
        next(other.model.parameters())[0, 0] += 1.0
    load_constitution_guard(folders[0], [backbone, other])
    [record] = caplog.records
    assert "the model that answers has others" in record.getMessage() and str(folders[1]) in record.getMessage()


def test_weights_are_compared_in_the_less_precise_type():
    first, same, other = tiny_backbone(), tiny_backbone(), tiny_backbone()
    same.model.to(torch.bfloat16)
    with torch.no_grad():
        next(other.model.parameters())[0, 0] += 1.0
    assert same_weights(first, same) and not same_weights(first, other)


def test_an_answer_of_one_token_is_not_judged(folders):
    watch = Watch(open_guard(folders[0]))
    assert not watch.feed([5], torch.full((1, 16), 1e6)).flagged


def test_a_guard_that_reads_other_files_says_so(folders, tmp_path, caplog):
    open_guard(folders[0])
    assert not caplog.records
    other = tiny_model(layers=2, width=16, context=1024)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1.0
    save_model(tmp_path / "other", other)
    open_guard(folders[0], str(tmp_path / "other"))
    assert "whose files differ" in caplog.text
