"""The HH recipe on real rows, with a tiny model in place of a real one. No row is printed."""

import json
from pathlib import Path

import pytest

from tests.kit import save_model, tiny_model
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.records import Preference, Rollout, read_records

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "pairwise" / "hh-harmless-base.jsonl.gz"


@pytest.mark.skipif(not DATA.exists(), reason=f"SKIPPED LOUDLY: real data is not here ({DATA})")
def test_the_hh_recipe_runs_on_a_subset(tmp_path):
    model = save_model(tmp_path / "model", tiny_model(context=2048))
    recipe = ROOT / "recipes" / "hh-harmless.yaml"
    overrides = [
        f"data.preferences={DATA}",
        "data.limit=24",
        "data.heldout_share=0.2",
        f"model.name={model}",
        "model.context=2048",
        "sft.adapter.top_layers=1",
        "reward.adapter.top_layers=1",
        "reward.holdout=0.3",
        "align.adapter.top_layers=1",
        "align.steps=2",
        "align.prompts=4",
        "align.sampler.max_new_tokens=8",
        "evaluate.sampler.max_new_tokens=8",
        "align.minibatches=2",
    ]
    run = run_recipe(load_recipe(recipe, overrides), recipe, runs=tmp_path / "runs", ui=Silent())
    result = json.loads((run.path / "stages" / "evaluate" / "evaluation.json").read_text())
    assert {row["judge"] for row in result["win_rates"]} == {"proxy"}  # no gold utility, and none is claimed
    counts = json.loads((run.path / "stages" / "preferences" / "status.json").read_text())["counts"]
    assert counts["preferences"] + counts["refused"] + counts["set_aside"] == 24
    assert counts["set_aside"] > 0  # no model is trained on a prompt it is evaluated on
    asked = {r.prompt.id for r in read_records(run.stage("evaluate") / "answers-policy.jsonl", Rollout)}
    learnt = {p.prompt.id for p in read_records(run.stage("preferences") / "preferences.jsonl", Preference)}
    assert asked and not asked & learnt
    sft = json.loads((run.path / "stages" / "sft" / "status.json").read_text())["counts"]
    assert sft["set_aside"] == counts["set_aside"]
    assert "simulated" not in json.loads((run.path / "report.json").read_text())["notice"]
