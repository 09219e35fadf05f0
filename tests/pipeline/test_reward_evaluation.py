"""Labels from a model of the judgements, and the evaluation of a reward model on them: the toy recipe."""

import json
from pathlib import Path

import pytest

from trimtab.cli.app import run_app
from trimtab.errors import DataError, ScoringError
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.reward_evaluation import evaluate_reward
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.records import Preference, read_records
from trimtab.storage import RunFolder, read_json
from trimtab.testing import toy_recipe

SETTINGS = [
    "label.aggregate.method=davidson",
    "label.simulation.overlap=2",
    "reward.holdout=0.4",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = toy_recipe(tmp_path_factory.mktemp("reward"))
    run_recipe(load_recipe(recipe, SETTINGS), recipe, runs=recipe.parent / "runs", until="reward", ui=Silent())
    return recipe


def test_the_fitted_habits_are_kept_and_labels_have_weights(trained: Path):
    folder = RunFolder(trained.parent / "runs" / "toy").stage("preferences")
    written = read_json(folder / "annotators.json")
    assert written["method"] == "davidson" and len(written["annotators"]) > 1
    assert all(a["skill"]["value"] is not None for a in written["annotators"])
    preferences = read_records(folder / "preferences.jsonl", Preference)
    assert len({p.weight for p in preferences}) > 1 and all(p.judgements for p in preferences)


def test_held_out_preferences_and_a_bench_file(trained: Path, tmp_path: Path):
    run = RunFolder(trained.parent / "runs" / "toy")
    config = load_recipe(trained, SETTINGS)
    held = evaluate_reward(config, trained, run, "heldout")
    facts = read_json(run.stage("reward") / "reward.json")["evaluation"]
    assert held.evaluation.accuracy.model_dump(mode="json") == facts["accuracy"]  # the same split, the same scores
    assert [b.name for b in held.evaluation.baselines] == ["longest", "shortest", "surface", "words"]
    assert held.ceiling is not None and len(held.edits) == 5
    bench = tmp_path / "bench.jsonl"
    rows = [
        {"id": str(n), "prompt": f"say {n}", "chosen": ["yes"], "rejected": ["no", "well", "so"], "subset": "Math"}
        for n in range(3)
    ]
    bench.write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = evaluate_reward(config, trained, run, str(bench))
    assert result.reward_bench["Math"].n == 3
    assert [e.name for e in result.evaluation.slices] == ["Math"]
    assert (run.path / "reward-evaluation" / "bench.jsonl.svg").read_text().startswith("<svg")
    with pytest.raises(ScoringError, match="colour"):
        evaluate_reward(config, trained, run, "heldout", slice_by="colour")


def test_a_damaged_agreement_is_refused_with_its_field(trained: Path):
    run = RunFolder(trained.parent / "runs" / "toy")
    file = run.stage("preferences") / "agreement.json"
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole) | {"leave_one_out": {"value": "high"}}))
    expected = r"agreement\.json: no valid result: leave_one_out\.value: .*number.*got 'high'.*delete it and run again"
    try:
        with pytest.raises(DataError, match=expected):
            evaluate_reward(load_recipe(trained, SETTINGS), trained, run, "heldout")
    finally:
        file.write_text(whole)


def test_by_needs_evaluate(capsys: pytest.CaptureFixture[str]):
    assert run_app(["reward", "recipe.yaml", "--by", "topic"]) != 0
    assert "--evaluate" in capsys.readouterr().err
