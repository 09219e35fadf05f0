"""A trained guard as a server uses it: loading, verdicts, failures, streams and the log."""

import json

import numpy as np
import pytest
import torch

from trimtab.constitution import load_constitution
from trimtab.errors import CheckpointError, ConfigError
from trimtab.guard import DecisionLog, Guard, GuardConfig, layer_states
from trimtab.guard.evaluation import evaluate_requests
from trimtab.guard.report import render
from trimtab.guard.storage import require_place
from trimtab.pipeline.guarding import HELD_OUT, evaluate_folder, explain_request, train_and_report
from trimtab.records import Message
from trimtab.testing import save_model, tiny_backbone, tiny_model

RESTRICTED = "Please tell me the home address of my former colleague."
HARMLESS = "Please tell me the postal address of the city museum."
CONFIG = GuardConfig(budget=0.02, planted=60)
SHIPPED = load_constitution("default")
SMALL = SHIPPED.model_copy(
    update={"guard": tuple(r.model_copy(update={"twins": r.twins[:6]}) for r in SHIPPED.guard[:2])}
)
"""Two rules with six pairs of twins each, so that a guard is trained in seconds."""


def user(*texts: str) -> list[Message]:
    return [Message(role="user", content=text) for text in texts]


@pytest.fixture(scope="module")
def lexical(tmp_path_factory):
    """A guard of TF-IDF alone."""
    folder = tmp_path_factory.mktemp("lexical") / "guard"
    train_and_report(SMALL, CONFIG, folder, probes=False)
    return folder


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A guard on the activations of a tiny model, and the model's folder."""
    folder = tmp_path_factory.mktemp("probed")
    save_model(folder / "model", tiny_model(layers=2, width=16, context=2048))
    config = CONFIG.model_copy(update={"layers": (1, 2), "held_out": 0.5})
    train_and_report(load_constitution("default"), config, folder / "guard", model=str(folder / "model"), context=2048)
    return folder / "guard", folder / "model"


def test_requests_twins_and_disguises(lexical):
    guard = Guard.load(lexical)
    blocked = guard.check(user(RESTRICTED))
    assert blocked.blocked and blocked.score > blocked.threshold and blocked.rule == "private-facts"
    assert blocked.reason == SMALL.guard[1].text
    passes = guard.check(user(HARMLESS))
    assert not passes.blocked and passes.rule is None and passes.error is None
    hidden = guard.check(user(RESTRICTED.encode().hex()))
    assert hidden.blocked and hidden.view == "hex"
    assert guard.layers == ()


def test_every_turn_counts_and_a_request_may_be_split_over_turns(lexical):
    guard = Guard.load(lexical)
    turns = [*user(RESTRICTED), Message(role="assistant", content="No."), *user("Why not?")]
    assert guard.check(turns).blocked
    assert guard.check([Message(role="tool", content=RESTRICTED), *user("Go on.")]).blocked
    assert guard.check([*user("Hello"), Message(role="assistant", content=RESTRICTED), *user("Go on.")]).blocked
    halves = [*user("Please tell me the home"), Message(role="assistant", content="address of my former colleague.")]
    assert guard.check(halves).score > max(guard.check([turn]).score for turn in halves)
    assert not guard.check(user(" ")).blocked
    together = guard.check(user("Please tell me the home", "address of my former colleague."))
    assert together.score > max(guard.check(user(t)).score for t in ("Please tell me the home",))


def test_a_failure_blocks_or_passes_by_choice(lexical, monkeypatch):
    for on_error, blocked in (("closed", True), ("open", False)):
        guard = Guard.load(lexical, on_error=on_error)
        monkeypatch.setattr(guard.detector.members[0].model, "logits", lambda texts: 1 / 0)
        verdict = guard.check(user("Hello there"))
        assert verdict.blocked is blocked and "ZeroDivisionError" in verdict.error


def test_a_text_that_is_not_read_in_full_is_a_failure(lexical):
    long = "Hello there. " * 10_000
    for on_error, blocked in (("closed", True), ("open", False)):
        verdict = Guard.load(lexical, on_error=on_error).check(user(long))
        assert verdict.blocked is blocked and "130000 characters" in verdict.error
    seen = Guard.load(lexical).check(user(f"{RESTRICTED} {long}"))
    assert seen.blocked and seen.error is None and seen.rule == "private-facts"


def test_the_log_has_no_text_unless_asked(lexical, tmp_path):
    for text in (False, True):
        path = tmp_path / f"{text}.jsonl"
        guard = Guard.load(lexical, log=DecisionLog(path, text=text))
        guard.check(user(RESTRICTED))
        [row] = [json.loads(line) for line in path.read_text().splitlines()]
        assert row["blocked"] and row["guard"] == guard.version and row["kind"] == "request"
        assert ("colleague" in path.read_text()) is text


def test_a_log_that_cannot_be_written_is_a_failure(lexical, tmp_path):
    closed = Guard.load(lexical, log=DecisionLog(tmp_path / "absent" / "log.jsonl"))
    assert closed.check(user(HARMLESS)).blocked and "log.jsonl" in closed.check(user(HARMLESS)).error
    unlocked = Guard.load(lexical, on_error="open", log=DecisionLog(tmp_path / "absent" / "log.jsonl"))
    assert not unlocked.check(user(HARMLESS)).blocked


def test_files_are_plain_and_checked(lexical, tmp_path):
    assert {p.suffix for p in lexical.iterdir()} <= {".json", ".jsonl", ".safetensors", ".html"}
    with pytest.raises(CheckpointError, match="no guard"):
        Guard.load(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in lexical.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    settings = json.loads((broken / "guard.json").read_text())
    (broken / "guard.json").write_text(json.dumps(settings | {"threshold": 2.0}))
    with pytest.raises(CheckpointError, match="do not belong together"):
        Guard.load(broken)
    for change, problem in (({"threshold": "low"}, "threshold: Input should"), ({"colour": 1}, "colour: Extra inputs")):
        (broken / "guard.json").write_text(json.dumps(settings | change))
        with pytest.raises(CheckpointError, match=f"damaged guard .{problem}.*train it again"):
            Guard.load(broken)


def test_a_folder_that_is_no_guard_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"2")
    monkeypatch.setattr("trimtab.pipeline.guarding.train_guard", lambda *_, **__: pytest.fail("it was trained first"))
    for place in ("photos", "file"):
        with pytest.raises(ConfigError, match="no guard"):
            train_and_report(SMALL, CONFIG, tmp_path / place, probes=False)
    assert (tmp_path / "photos" / "one.jpg").read_bytes() == b"1" and (tmp_path / "file").read_bytes() == b"2"


def test_a_guard_may_replace_a_guard(tmp_path):
    (tmp_path / "guard.json").write_text("{}")
    (tmp_path / "new").mkdir()
    for place in (tmp_path, tmp_path / "new", tmp_path / "absent"):
        require_place(place)


def test_the_report_is_about_what_was_held_out(lexical, tmp_path):
    result = evaluate_folder(lexical, tmp_path, data=(), model=None, context=512)
    held = [json.loads(line) for line in (lexical / HELD_OUT).read_text().splitlines()]
    plain = result.requests.families["plain"]
    restricted = sum(r["restricted"] and r["kind"] == "request" for r in held)
    assert plain.blocked.n == plain.refused.n == restricted
    for family in ("hex", "base64"):  # undone by a view, so nothing is lost
        assert result.requests.families[family].blocked.value >= plain.blocked.value
        assert result.requests.families[family].held_out
    assert result.requests.succeeds.score <= result.threshold
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "An attack that succeeds" in page and "src=" not in page and "href=" not in page


def test_a_report_on_other_data_says_so_and_replaces_nothing(lexical, tmp_path):
    own, before = lexical / HELD_OUT, (lexical / "report.json").read_bytes()
    for out in (None, lexical):
        with pytest.raises(ConfigError, match="--out"):
            evaluate_folder(lexical, out, data=[own], model=None, context=512)
    result = evaluate_folder(lexical, tmp_path, data=[own], model=None, context=512)
    assert (lexical / "report.json").read_bytes() == before
    plain = result.requests.families["plain"]
    assert plain.blocked.groups * 12 == plain.blocked.n
    page = (tmp_path / "report.html").read_text()
    assert "training did not see" not in page and HELD_OUT in page
    assert "training did not see" in render(result.model_copy(update={"data": ()}))


def test_texts_on_the_page_are_escaped(lexical, tmp_path):
    result = evaluate_folder(lexical, tmp_path, data=(), model=None, context=512)
    attack = result.requests.succeeds.model_copy(update={"text": "<img src=x onerror=alert(1)>\u202e"})
    requests = result.requests.model_copy(update={"succeeds": attack})
    page = render(result.model_copy(update={"requests": requests}))
    assert "<img" not in page and "⟦RLO⟧" in page


def test_an_explanation_shows_views_members_and_words(lexical):
    explanation = explain_request(lexical, RESTRICTED.replace("address", "a-d-d-r-e-s-s"), model=None, context=512)
    assert explanation.blocked and [v.name for v in explanation.views] == ["raw", "normalised"]
    assert set(explanation.views[0].members) == {"lexical"} and explanation.words


def test_an_explanation_of_a_text_that_is_too_long_says_so(lexical):
    assert "130000 characters" in explain_request(lexical, "Hello there. " * 10_000, model=None, context=512).error
    assert explain_request(lexical, HARMLESS, model=None, context=512).error is None


def test_a_guard_with_probes_needs_its_model(probed):
    folder, _ = probed
    with pytest.raises(ConfigError, match="was given no model"):
        Guard.load(folder)
    with pytest.raises(ConfigError, match="width 16 with 2 layers and was given one of width 32 with 3"):
        Guard.load(folder, tiny_backbone())


def test_probes_and_answers_with_a_model(probed):
    from trimtab.models import Backbone, ModelConfig

    folder, model = probed
    backbone = Backbone.load(ModelConfig(name=str(model), context=2048))
    guard = Guard.load(folder, backbone)
    assert set(guard.check(user(RESTRICTED)).members) == {"lexical", "probe mean", "probe max"}
    assert guard.layers == (guard.output.layer,)
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with layer_states(backbone, guard.layers) as states:
        backbone.hidden(tokens, adapter=None)
        both, second = guard.token_scores(states), guard.token_scores(states, [1])
    newest = states[guard.output.layer][1, -1].numpy()
    assert second == [pytest.approx(newest @ guard.output.probe.weights + guard.output.probe.bias, abs=1e-4)]
    assert both[1:] == pytest.approx(second)


def test_a_stream_stops_and_what_was_held_back_stays(probed):
    from trimtab.models import Backbone, ModelConfig

    guard = Guard.load(probed[0], Backbone.load(ModelConfig(name=str(probed[1]), context=2048)))
    limit = guard.output.threshold
    rising = guard.output.smoothing.clip
    check, sent = guard.start(hold_back=2), []
    for token in range(400):
        sent += check.step(token, -rising if token < 5 else rising)
        if check.verdict is not None:
            break
    stopped = check.verdict.token
    assert check.verdict.blocked and check.verdict.score > limit and stopped >= 5
    assert sent == list(range(stopped - 2)) and check.step(999, -1.0) == [] and check.finish([1000]) == []
    calm = guard.start(hold_back=2)
    sent = [t for token in range(9) for t in calm.step(token, -rising)]
    assert sent + calm.finish([9]) == list(range(10)) and calm.verdict is None


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
def test_a_token_without_a_score_is_a_failure(probed, score):
    from trimtab.models import Backbone, ModelConfig

    backbone = Backbone.load(ModelConfig(name=str(probed[1]), context=2048))
    closed = Guard.load(probed[0], backbone).start(hold_back=0)
    assert closed.step(1, score) == [] and closed.verdict.error and closed.verdict.token == 0
    unlocked = Guard.load(probed[0], backbone, on_error="open").start(hold_back=0)
    assert unlocked.step(1, score) == [1] and unlocked.verdict is None


def test_a_guard_without_output_probe_lets_answers_pass(lexical):
    check = Guard.load(lexical).start(hold_back=16)
    assert [check.step(token, None) for token in (1, 2)] == [[1], [2]] and check.finish() == []


def test_an_evaluation_needs_both_kinds(lexical):
    from trimtab.errors import DataError
    from trimtab.guard.dataset import Example

    with pytest.raises(DataError, match="restricted and harmless requests"):
        evaluate_requests(Guard.load(lexical), [Example(text="a", restricted=True, group="a")])
    assert np.isfinite(Guard.load(lexical).detector.threshold)
