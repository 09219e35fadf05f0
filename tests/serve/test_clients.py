"""Strict clients of others: llm-comply's text tests, and schemathesis with bodies made from the OpenAPI document."""

import json

import pytest
from hypothesis import HealthCheck, given, settings

from trimtab.serve.app import Service, Settings

from .kit import KEY, MODEL, Live, served

TEXT_TESTS = (
    "chat-basic-response,chat-system-prompt,chat-multi-turn,chat-streaming-response,chat-streaming-usage,"
    "chat-error-handling"
)
"""llm-comply's other tests are about tools, images and reasoning."""


@pytest.fixture(scope="module")
def ending():
    """A server whose model soon ends every answer, as these tests want."""
    model = served()
    model.backbone.chat.end_tokens = frozenset(range(0, 320, 8))  # one token of eight ends an answer
    live = Live(Service(models={MODEL: model}, settings=Settings(slots=4, queue=16, default_tokens=400)))
    yield live
    live.stop()


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
def test_llm_comply(ending, capsys, monkeypatch):
    monkeypatch.setattr("trimtab.serve.app.secrets.randbelow", lambda below: 2)  # no answer of these is empty
    cli = pytest.importorskip("llm_comply.cli", reason="NOT TESTED: llm-comply is not installed")
    options = ["--format", "openai-chat", "-u", f"{ending.url}/v1", "-k", KEY, "-m", MODEL, "-f", TEXT_TESTS, "--json"]
    code = cli.main(options)
    results = json.loads(capsys.readouterr().out)
    assert len(results["results"]) == len(TEXT_TESTS.split(","))
    problems = {r["id"]: r.get("errors") for r in results["results"] if r["status"] != "passed"}
    warnings = {r["id"]: r["warnings"] for r in results["results"] if r.get("warnings")}
    assert (problems, warnings, code) == ({}, {}, 0)


@pytest.mark.parametrize(
    "examples", [5, pytest.param(150, marks=[pytest.mark.slow, pytest.mark.timeout(900)], id="many")]
)
def test_schemathesis_finds_nothing(live, examples):
    schemathesis = pytest.importorskip("schemathesis", reason="NOT TESTED: schemathesis is not installed")
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    left_out = [schemathesis.checks.ignored_auth, schemathesis.checks.unsupported_method]
    left_out.append(positive_data_acceptance)  # a schema cannot say that the last turn is the user's
    headers = {"Authorization": f"Bearer {KEY}"}
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json", headers=headers)
    checked = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def run(case):
            if isinstance(case.body, dict) and "messages" in case.body:  # else nearly all ask for an unknown model
                case.body["model"] = MODEL
                case.body.setdefault("max_tokens", 3)
            answer = case.call(base_url=live.url, headers=headers)
            case.validate_response(answer, headers=headers, excluded_checks=left_out)
            assert answer.status_code < 500
            if answer.status_code >= 400:
                assert set(json.loads(answer.text)) == {"error"}

        run()
        checked += 1
    assert checked == 6
