"""The HH recipe on invented dialogues and on real rows, with a tiny model in place of a real one. No row is printed."""

import json
from pathlib import Path

import pytest

from trimtab.pipeline import learning
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.records import Preference, Rollout, read_records
from trimtab.testing import save_model, sentences, tiny_model

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "pairwise" / "hh-harmless-base.jsonl.gz"
REAL = pytest.param(DATA, marks=pytest.mark.skipif(not DATA.exists(), reason=f"SKIPPED LOUDLY: no real data ({DATA})"))


def invented(folder: Path) -> Path:
    """Dialogues of one and of two turns about tea and trees, as the data set writes them."""
    questions, good, bad = sentences(24, words=4), sentences(24, start=300), sentences(24, start=600)
    path = folder / "dialogues.jsonl"
    with path.open("w") as file:
        for i, (question, chosen, rejected) in enumerate(zip(questions, good, bad, strict=True)):
            before = f"\n\nHuman: {questions[i - 1]}\n\nAssistant: {good[i - 2]}" if i % 2 else ""
            head = f"{before}\n\nHuman: {question}\n\nAssistant: "
            file.write(json.dumps({"chosen": head + chosen, "rejected": head + rejected}) + "\n")
    return path


@pytest.mark.parametrize("data", [None, REAL], ids=["invented", "real"])
def test_the_hh_recipe_runs_on_a_subset(tmp_path, data, monkeypatch):
    model = save_model(tmp_path / "model", tiny_model(context=2048))
    recipe = ROOT / "recipes" / "hh-harmless.yaml"
    overrides = [
        f"data.preferences={data or invented(tmp_path)}",
        "data.limit=24",
        "data.heldout_share=0.2",
        f"model.name={model}",
        "model.context=2048",
        "sft.adapter.top_layers=1",  # SFT on the better answers, which the recipe leaves out, may not see held-out ones
        "reward.adapter.top_layers=1",
        "reward.holdout=0.3",
        "align.adapter.top_layers=1",
        "align.steps=2",
        "align.prompts=4",
        "align.sampler.max_new_tokens=8",
        "evaluate.sampler.max_new_tokens=8",
        "align.minibatches=2",
    ]
    started = []
    original = learning.start_critic
    monkeypatch.setattr(learning, "start_critic", lambda *models: started.append(models) or original(*models))
    run = run_recipe(load_recipe(recipe, overrides), recipe, runs=tmp_path / "runs", ui=Silent())
    [(context, critic)] = started  # adapters: the critic begins as the reward model and lives beside it
    assert critic.adapter == "critic" and context.config.reward is not None
    result = json.loads((run.path / "stages" / "evaluate" / "evaluation.json").read_text())
    assert {row["judge"] for row in result["win_rates"]} == {"proxy"}  # no gold utility, and none is claimed
    counts = json.loads((run.path / "stages" / "preferences" / "status.json").read_text())["counts"]
    assert counts["preferences"] + counts["refused"] + counts["set_aside"] == 24
    assert counts["set_aside"] > 0  # no model is trained on a prompt it is evaluated on
    questions = {r.prompt.id for r in read_records(run.stage("evaluate") / "answers-policy.jsonl", Rollout)}
    learnt = {p.prompt.id for p in read_records(run.stage("preferences") / "preferences.jsonl", Preference)}
    assert questions and not questions & learnt
    sft = json.loads((run.path / "stages" / "sft" / "status.json").read_text())["counts"]
    assert sft["set_aside"] == counts["set_aside"]
    notice = json.loads((run.path / "report.json").read_text())["notice"]
    assert notice == "The preferences were imported from a file; see the provenance below."
