"""The process stage in a recipe: labels from a file and from rollouts, RL with both rewards, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import on_ranks
from trimtab.cli.app import run_app
from trimtab.errors import ConfigError, DataError
from trimtab.models import load_tensors
from trimtab.pipeline.config import check_recipe, load_recipe
from trimtab.pipeline.plan import make_plan
from trimtab.pipeline.process import label_by_rollouts
from trimtab.pipeline.process_evaluation import none_scored
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.records import Rollout, read_records
from trimtab.records.annotation import StepLabel
from trimtab.rollout import SamplerConfig
from trimtab.storage import read_metrics
from trimtab.testing import prompts, sentences, tiny_backbone
from trimtab.testing.recipe import TOY, toy_recipe

HERE = "tests.pipeline.test_process"
ADAPTER = {"kind": "lora", "rank": 4, "alpha": 8, "top_layers": 2}
ROLLOUTS = {"verifier": f"{HERE}.has_an_e", "prompts": 4, "answers": 2, "tries": 2, "least": 0.01}


def has_an_e(rollouts: Sequence[Rollout]) -> list[float]:
    return [float("e" in r.text) for r in rollouts]


def never(rollouts: Sequence[Rollout]) -> list[float]:
    return [0.0 for _ in rollouts]


def recipe(folder: Path, **sections: Any) -> Path:
    align = {k: v for k, v in TOY["align"].items()} | {"steps": 2, "prompts": 4}
    rewards = {
        "process": {"kind": "process", "weight": 0.5},
        "weakest": {"kind": "process", "score": "minimum"},
        "outcome": {"kind": "function", "path": f"{HERE}.has_an_e"},
    }
    values: dict[str, Any] = {
        "sft": None, "sample": None, "label": None, "reward": None, "evaluate": None, "align": align, "gold": None,
        "data": {"prompts": "data/prompts.jsonl", "steps": "data/steps.jsonl"},
        "process": {"adapter": ADAPTER, "optimizer": {"lr": 5e-3}, "batch": 8, "holdout": 0.3,
                    "rollouts": ROLLOUTS | {"sampler": {"max_new_tokens": 8}}},
        "rewards": rewards,
    }  # fmt: skip
    path = toy_recipe(folder, **values | sections)
    rows = [
        {
            "prompt": text,
            "steps": ["green tea", "cold soup" if n % 2 else "green tea"],
            "first_wrong": 1 if n % 2 else None,
        }
        for n, text in enumerate(sentences(20, words=3, start=4000))
    ]
    rows.append({"prompt": "beyond", "steps": ["a"], "first_wrong": 3})
    (folder / "data" / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_with_process_and_outcome_rewards(tmp_path):
    path = recipe(tmp_path)
    run = run_recipe(load_recipe(path), path, runs=tmp_path / "runs", ui=Silent())
    folder = run.stage("process")
    counts = json.loads((folder / "status.json").read_text())["counts"]
    assert counts["refused"] == 1 and counts["held_out"] > 0 and counts["judged_steps"] > 10
    labels = read_records(folder / "labels.jsonl", StepLabel)
    drawn = [label for label in labels if label.source == "ai"]
    assert 1 <= len(drawn) <= 8 and all(label.shares and label.shares[-1] in (0.0, 1.0) for label in drawn)
    facts = json.loads((folder / "process.json").read_text())
    assert facts["first_error_f1"] is not None or "F1 needs solutions" in facts["reason"]
    rows = read_metrics(run.stage("align") / "metrics.jsonl")
    assert {"reward/process", "reward/weakest", "reward/outcome"} <= rows[-1].keys()
    answers = read_records(run.stage("align") / "samples" / "step-000000.jsonl", Rollout)
    assert all(set(r.step_rewards) == {"process"} for r in answers if r.tokens)
    assert rows[0]["reward"] == pytest.approx(
        0.5 * rows[0]["reward/process"] + rows[0]["reward/weakest"] + rows[0]["reward/outcome"], abs=1e-5
    )
    plan = make_plan(load_recipe(path), path, tmp_path / "runs")
    assert next(row for row in plan["stages"] if row["stage"] == "process")["state"] == "done"
    other = load_recipe(path, [f"process.rollouts.verifier={HERE}.never"])
    states = {row["stage"]: row["state"] for row in make_plan(other, path, tmp_path / "runs")["stages"]}
    assert states["process"] == "run"


def train(recipe: str, runs: str, *overrides: str) -> bool:
    run_recipe(load_recipe(Path(recipe), list(overrides)), Path(recipe), runs=Path(runs), ui=Silent())
    return True


FULL = ("scale.shard=true", "process.adapter={kind: full}", "process.optimizer.lr=1e-4")


@pytest.mark.parametrize(
    ("changes", "within"),
    [((), 2e-6), pytest.param(FULL, 1e-5, marks=pytest.mark.slow)],
    ids=["adapters", "sharded"],
)
def test_two_ranks_label_and_train_what_one_does(tmp_path, changes: tuple[str, ...], within: float):
    path = str(recipe(tmp_path, align=None, rewards=None))
    several = ("scale.kind=torchrun", "scale.processes=2", "scale.deadline=60")
    train(path, str(tmp_path / "one"), *changes[1:])
    assert on_ranks(2, train, path, str(tmp_path / "two"), *several, *changes, joined=False) == [True, True]
    one, two = (tmp_path / runs / "toy" / "stages" / "process" for runs in ("one", "two"))
    labels = (one / "labels.jsonl").read_text()
    assert '"ai"' in labels and labels == (two / "labels.jsonl").read_text()
    a, b = (load_tensors(folder / "weights.safetensors") for folder in (one, two))
    assert a.keys() == b.keys() and max(float((a[key] - b[key]).abs().max()) for key in a) <= within
    assert json.loads((one / "process.json").read_text()) == json.loads((two / "process.json").read_text())


def test_rollouts_are_refused_where_the_model_solves_nothing(tmp_path):
    path = recipe(tmp_path)
    config = load_recipe(path, [f"process.rollouts.verifier={HERE}.never"]).process
    assert config is not None and config.rollouts is not None
    with pytest.raises(DataError, match=r"the model solves 0\.0% of \d+ solutions and process\.rollouts\.least is 1%"):
        label_by_rollouts(tiny_backbone(), prompts(4), config.rollouts, "\n", seed=0)


def test_shares_of_rollouts_are_those_of_the_verifier(tmp_path):
    path = recipe(tmp_path)
    config = load_recipe(path, ["process.rollouts.tries=4"]).process
    assert config is not None and config.rollouts is not None
    rollouts = config.rollouts.model_copy(update={"sampler": SamplerConfig(max_new_tokens=12)})
    soft = label_by_rollouts(tiny_backbone(), prompts(6), rollouts, " ", seed=0)
    hard = label_by_rollouts(tiny_backbone(), prompts(6), rollouts.model_copy(update={"labels": "hard"}), " ", seed=0)
    shares = [share for label in soft.labels for share in label.shares or ()]
    assert {4 * share for share in shares} <= {0.0, 1.0, 2.0, 3.0, 4.0} and soft.tries > 0
    for a, b in zip(soft.labels, hard.labels, strict=True):
        assert b.shares == tuple(float(share > 0) for share in a.shares or ())
        seen = ["e" in " ".join(a.steps[: i + 1]) for i in range(len(a.steps))]
        assert all(share == 1 for share, has in zip(a.shares or (), seen, strict=True) if has)  # it keeps its e


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"process": None, "data": {"prompts": "data/prompts.jsonl"}},
            "rewards.process is the process reward model and",
        ),
        ({"process": None}, "data.steps is for the process reward model"),
        ({"process": {}, "data": {"prompts": "data/prompts.jsonl"}}, "process needs solutions with judged steps"),
        ({"align": {"method": "grpo", "steps": 2}}, "rewards.process places rewards at steps"),
    ],
)
def test_contradictions(tmp_path, change, message):
    path = recipe(tmp_path)
    import yaml

    values = yaml.safe_load(path.read_text()) | change
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(ConfigError, match=message):
        check_recipe(load_recipe(path))


BENCH = {
    "original_question": "Which tea?",
    "modified_question": "Which tea?",
    "original_process": ["green tea"],
    "modified_process": ["Step 1. green tea", "2. cold soup", "cold soup"],
    "modified_steps": [2],
    "error_steps": [2, 3, 9],
    "idx": "0",
    "classification": "circular",
}


def test_a_process_model_is_measured_on_files_of_judged_steps(tmp_path, capsys):
    path = recipe(tmp_path, align=None, rewards=None)
    overrides = ["process.rollouts=null"]
    bench, first = tmp_path / "bench.jsonl", tmp_path / "first.jsonl"
    rows = [BENCH, BENCH, BENCH | {"idx": "1", "error_steps": ["a"]}, BENCH | {"idx": "2", "original_question": "?"}]
    bench.write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = sentences(1, words=3, start=4000)[0]
    solutions = [
        {"problem": known, "steps": ["green tea"], "label": -1},
        {"problem": "Which soup?", "steps": ["green tea", "cold soup"], "label": 1},
    ]
    first.write_text("".join(json.dumps(row) + "\n" for row in solutions))
    options = [str(path), "--runs", str(tmp_path / "runs"), "--set", *overrides]
    assert run_app(["reward", *options, "--evaluate", str(bench)]) == 0
    printed = capsys.readouterr()
    assert "PRM score, circular" in printed.out and "error steps beyond 2" in printed.out
    assert "refused" in printed.err and "whole numbers from 1" in " ".join(printed.err.split())
    folder = tmp_path / "runs" / load_recipe(path).name / "reward-evaluation"
    written = json.loads((folder / "bench.jsonl.json").read_text())
    assert written["counts"] == {
        "solutions": 2, "refused": 1, "too_long": 0, "unrendered": 0, "known_prompts": 0, "repeated": 1,
        "error_steps_beyond": 2,
    }  # fmt: skip
    assert written["prm_bench"]["overall"]["n"] == 2 and set(written["prm_bench"]) == {"overall", "circular"}
    assert written["all_right"]["overall"] == 0.25  # 2 TP and 4 FP: F1 = 4/8, none called wrong
    assert run_app(["reward", *options, "--evaluate", str(first), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["counts"]["solutions"] == 2 and written["counts"]["known_prompts"] == 1
    assert written["first_error"]["first_error_f1"]["n"] == 2 and written["first_error"]["modal"] == 1
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps(s | {"problem": "tea " * 999}) + "\n" for s in solutions))
    assert run_app(["reward", *options, "--evaluate", str(long)]) != 0
    refusals = " ".join(capsys.readouterr().err.split())
    assert "no solution can be scored: 2 do not fit model.context; raise model.context" in refusals
    assert run_app(["reward", *options, "--evaluate", str(first), "--by", "topic"]) != 0
    without = ["--set", "process=null", "--set", "data.steps=null"]
    assert run_app(["reward", str(path), *without, "--evaluate", str(bench)]) != 0
    refusals = " ".join(capsys.readouterr().err.split())
    assert "leave --by out" in refusals and "no process section" in refusals


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            (0, 3, 2),
            "3 cannot be written with the model's chat template, 2 are in rows that were refused; correct the file",
        ),
        (
            (4, 1, 0),
            "4 do not fit model.context, 1 cannot be written with the model's chat template; raise model.context",
        ),
        ((0, 0, 0), "the file has none; correct the file, or name another one"),
    ],
)
def test_why_no_solution_can_be_scored(counts: tuple[int, int, int], message: str):
    text = none_scored({"solutions": 0, **dict(zip(("too_long", "unrendered", "refused"), counts, strict=True))})
    assert text.startswith(f"no solution can be scored: {message}") and ("raise" in text) == (counts[0] > 0)
