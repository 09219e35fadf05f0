"""Checkpoints on suites: from the command line to the page, with a judge that fails, and a task of lm-eval."""

import importlib.util
import json

import pytest
import torch

from tests.evals.toy import toy_report
from trimtab.cli.app import run_app
from trimtab.errors import ConfigError
from trimtab.evals.report import render
from trimtab.evals.suite_page import write_suites
from trimtab.evals.suite_results import compare_suites
from trimtab.evals.suites import Outcome, Suite, SuiteItem, load_suite
from trimtab.models import Role
from trimtab.pipeline.lm_eval_tasks import measure_tasks
from trimtab.pipeline.suites import fingerprint, measure_suite, suites_of
from trimtab.storage import RunFolder
from trimtab.testing import save_model, tiny_backbone, tiny_model


def half(rollouts):
    """A judge that fails on every second prompt."""
    number = int(rollouts[0].prompt.text.split()[-1])
    if number % 2:
        raise RuntimeError("no reply")
    return [float(number)]


@pytest.fixture(scope="module")
def role():
    return Role(tiny_backbone(context=512))


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_margins_are_differences_of_log_probabilities(role, tmp_path):
    """The same numbers as a forward pass of transformers on the rendered conversation."""
    suite = load_suite(
        f"x={jsonl(tmp_path / 'x.jsonl', [{'question': 'Is tea wet?', 'right': 'Yes.', 'wrong': 'No.'}])}"
    )
    (outcome,) = measure_suite(role, suite, max_new_tokens=4).values()

    def logprob(answer):
        tokenizer, model = role.backbone.chat.tokenizer, role.backbone.model
        turns = [{"role": "user", "content": "Is tea wet?"}]
        start = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        prompt, both = (
            tokenizer.encode(text, add_special_tokens=False) for text in (start, f"{start}{answer}<|im_end|>")
        )
        with torch.no_grad():
            scores = model(torch.tensor([both])).logits[0].log_softmax(-1)
        return sum(float(scores[i - 1, both[i]]) for i in range(len(prompt), len(both)))

    assert outcome.value == pytest.approx(logprob("Yes.") - logprob("No."), abs=1e-3)


def test_a_judge_that_fails_for_half_gives_partial_results(role, tmp_path):
    suite = load_suite(f"judged={jsonl(tmp_path / 'j.jsonl', [{'prompt': f'Say {i}'} for i in range(6)])}")
    outcomes = list(measure_suite(role, suite, max_new_tokens=2, judge=half).values())
    assert [o.value for o in outcomes] == [0.0, None, 2.0, None, 4.0, None]
    assert outcomes[1].reason == "the judge raised RuntimeError" and outcomes[1].text is not None
    requests = []

    def broken(rollouts):
        requests.append(rollouts)
        return [float("nan")]

    outcomes = list(measure_suite(role, suite, max_new_tokens=2, judge=broken).values())
    assert len(requests) == 3 and all(o.value is None for o in outcomes)
    assert outcomes[-1].reason == "the judge failed on every answer before"
    with pytest.raises(ConfigError, match="is scored by a judge; give one with --judge"):
        measure_suite(role, suite, max_new_tokens=2)


def test_what_does_not_fit_is_counted(role, tmp_path):
    rows = [{"prompt": "tea " * 600, "harmful": True}, {"prompt": "tea", "harmful": True}]
    suite = load_suite(f"x={jsonl(tmp_path / 'x.jsonl', rows)}")
    first, second = measure_suite(role, suite, max_new_tokens=2).values()
    assert first.value is None and "model.context is 512" in first.reason and second.value == 0.0


def test_from_the_command_line_to_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 0), ("b", 1)):
        save_model(tmp_path / name, tiny_model(context=512, seed=seed))
    own = jsonl(
        tmp_path / "own.jsonl", [{"question": f"Is {w} wet?", "right": "Yes.", "wrong": "No."} for w in ("tea", "sea")]
    )
    command = [
        "eval",
        "a",
        "b",
        "--suite",
        f"own={own}",
        "--suite",
        "refusals",
        "--prompts",
        "3",
        "--max-new-tokens",
        "4",
    ]
    assert run_app(command) == 0
    assert "change from a to b" in capsys.readouterr().out
    results = json.loads((tmp_path / "suites" / "suites.json").read_text())
    assert results["models"] == ["a", "b"] and {row["suite"] for row in results["rows"]} == {"own", "refusals"}
    page = (tmp_path / "suites" / "suites.html").read_text()
    assert "True answers" in page and "own.jsonl" in page and "<script" not in page
    assert len(json.loads((tmp_path / "suites" / "outcomes.json").read_text())["b"]["own"]) == 2
    for wrong, message in (
        (["a", "a"], "named twice"),
        (["a", "b", "--set", "x=1"], "for a recipe, not for suites"),
        (["a", "--judge", "x.y"], "are for suites"),
        (["a", "--suite", "own"], "no such suite"),
    ):
        assert run_app(["eval", *wrong]) != 0
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="NOT TESTED: lm-eval is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_local_task_of_lm_eval(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    rows = [
        {"q": f"Is {w} wet?", "choices": ["Yes.", "No."], "gold": i % 2} for i, w in enumerate(("tea", "sand", "sea"))
    ]
    (tmp_path / "local.yaml").write_text(
        "task: trimtab_local\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
        f"{jsonl(tmp_path / 'rows.json', rows)}\n"
        'output_type: multiple_choice\ntest_split: test\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\n'
        "doc_to_target: gold\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    role = Role(tiny_backbone(context=512))
    suites, outcomes = measure_tasks(role, ["trimtab_local"], folder=tmp_path)
    assert [suite.name for suite in suites] == ["lm-eval trimtab_local"] and len(suites[0].items) == 3
    assert all(outcome.value in (0.0, 1.0) for outcome in outcomes["lm-eval trimtab_local"].values())
    with pytest.raises(ConfigError, match="knows no such task"):
        measure_tasks(role, ["nothing_of_that_name"], folder=tmp_path)


def test_a_runs_page_shows_its_suites_until_a_model_is_trained_again(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert suites_of(run) == (None, "")
    run.begin("align", "first")
    row = Outcome(value=1.0)
    suite = Suite(name="s", source="", items=(SuiteItem(id="1", cluster="1", kind="choice", prompt="q"),))
    results = compare_suites([suite], {"run:base": {"s": {"1": row}}, "run": {"s": {"1": row}}})
    marks = {name: (which, fingerprint(run, which)) for name, which in (("run:base", "base"), ("run", "policy"))}
    assert marks == {"run:base": ("base", ""), "run": ("policy", "first")}
    write_suites(results.model_copy(update={"checkpoints": marks}), run.path / "suites", created_at="x", made={})
    result, _ = suites_of(run)
    assert result is not None and result.rows[0].values[0].value == 1.0
    page = render(toy_report().model_copy(update={"suites": result}))
    assert '<section id="suites">' in page and "True answers" in page and "are they the same checkpoint?" in page
    run.begin("align", "second")
    result, why = suites_of(run)
    assert result is None and "were trained again" in why
    assert why in render(toy_report().model_copy(update={"missing": {"suites": why}}))
