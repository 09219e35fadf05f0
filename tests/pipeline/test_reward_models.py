"""Several reward models in a recipe: the parts they learn from, a whole run with them, and what is refused."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.errors import ConfigError, DataError, Interrupted
from trimtab.models import load_tensors
from trimtab.pipeline import reward_training
from trimtab.pipeline.config import RewardStageConfig, RunConfig, load_recipe
from trimtab.pipeline.export import export_model
from trimtab.pipeline.learned import Learned
from trimtab.pipeline.lineage import lines, trace
from trimtab.pipeline.plan import make_plan
from trimtab.pipeline.recipe_checks import check_recipe
from trimtab.pipeline.reward_evaluation import evaluate_reward
from trimtab.pipeline.reward_models import reward_parts
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.records import Rollout, read_records
from trimtab.records.weights import reward_weights
from trimtab.storage import RunFolder, read_metrics
from trimtab.testing.recipe import TOY, toy_recipe

SEVERAL = {"split": True, "ensemble": {"members": 2, "words": True, "score": "penalised"}, "holdout": 0.2}
MODELS = ("reward", "member_2", "words", "heldout")


def section(**settings: Any) -> RewardStageConfig:
    return RewardStageConfig.model_validate(settings)


def test_halves_are_divided_by_prompt_and_disjoint():
    prompts = [f"p{i // 2}" for i in range(80)]  # two preferences for each of 40 prompts
    config = section(split=True, ensemble={"members": 3, "halves": True, "words": True})
    parts = {part.name: part for part in reward_parts(config, prompts, range(80), seed=0)}
    assert list(parts) == ["reward", "member_2", "member_3", "words", "heldout"]
    questions = {name: {prompts[i] for i in part.places} for name, part in parts.items()}
    assert len(questions["heldout"]) == 20 and not questions["heldout"] & questions["words"]
    assert questions["reward"] == questions["member_3"] and not questions["reward"] & questions["member_2"]
    assert questions["reward"] | questions["member_2"] == questions["words"] and len(questions["reward"]) == 10
    assert [part.judges for part in parts.values()] == [False] * 4 + [True]
    assert [part.file for part in parts.values()][::3] == ["weights.safetensors", "weights-words.json"]


def test_one_model_learns_from_everything():
    [part] = reward_parts(section(), ["a", "b"], [0, 1], seed=0)
    assert (part.name, part.places) == ("reward", [0, 1])


def test_halves_that_are_too_small():
    with pytest.raises(DataError, match=r"'reward' would learn from 7 of 14 prompts; at least 8 are needed"):
        reward_parts(section(split=True), [str(i) for i in range(14)], range(14), seed=0)


def several(folder: Path) -> Path:
    """A recipe with two language models and a bag of words, a held-out model, and a choice by it."""
    align = TOY["align"] | {"method": "rloo", "select": "heldout", "steps": 12, "prompts": 4, "group": 4, "epochs": 1}
    del align["critic"]
    return toy_recipe(
        folder,
        sft=None,
        sample=TOY["sample"] | {"prompts": 32, "answers": 2},
        reward=TOY["reward"] | SEVERAL | {"epochs": 1},
        align=align,
        evaluate=TOY["evaluate"] | {"gain": False},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of that recipe."""
    folder = tmp_path_factory.mktemp("several")
    recipe = several(folder)
    return run_recipe(load_recipe(recipe), recipe, runs=folder / "runs", ui=Silent()).path


def test_each_model_is_stored_with_its_scale_and_the_errors_are_compared(finished: Path):
    facts = json.loads((finished / "stages" / "reward" / "reward.json").read_text())
    names = [model["name"] for model in facts["models"]]
    assert names == ["reward", "member_2", "words", "heldout"]
    assert all(
        model["std"] > 0 and (finished / "stages" / "reward" / model["file"]).exists() for model in facts["models"]
    )
    assert facts["mean"] < 0  # of the penalised score, whose members have mean 0
    assert facts["errors"]["names"] == names and facts["evaluation"]["pairs"] == facts["errors"]["correlation"]["n"]


def test_models_that_are_done_are_not_trained_again(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Interrupted at the second of three language models, the run ends with the same weights."""
    recipe, trained, original = several(tmp_path), [], reward_training.train_reward

    def train(role: Any, *arguments: Any, **more: Any) -> Any:
        trained.append(role.adapter)
        if len(trained) == 2:
            raise Interrupted("stopped")
        return original(role, *arguments, **more)

    monkeypatch.setattr(reward_training, "train_reward", train)
    for attempt in range(2):
        with pytest.raises(Interrupted) if attempt == 0 else nullcontext():
            run_recipe(load_recipe(recipe), recipe, runs=tmp_path / "runs", until="reward", ui=Silent())
    assert trained == ["reward", "member_2", "member_2", "heldout"]
    for name in ("weights", "weights-member_2", "weights-heldout"):
        ours, theirs = (
            load_tensors(folder / "stages" / "reward" / f"{name}.safetensors")
            for folder in (tmp_path / "runs" / "toy", finished)
        )
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_held_out_score_and_spread_are_logged_and_weigh_nothing(finished: Path):
    rows = read_metrics(finished / "stages" / "align" / "metrics.jsonl")
    assert len(rows) == 12 and all({"reward/heldout", "reward/spread", "gold", "kl"} <= row.keys() for row in rows)
    assert all(row["reward"] == pytest.approx(row["reward/reward_model"]) for row in rows)
    answers = read_records(finished / "stages" / "align" / "samples" / "step-000000.jsonl", Rollout)
    assert {"reward_model", "heldout", "spread"} == answers[0].rewards.keys()
    weights = reward_weights({"reward": {"split": True}})
    assert weights == {"heldout": 0.0, "spread": 0.0} and reward_weights({"reward": {"split": False}}) == {}


def test_the_page_has_turns_forms_and_errors(finished: Path):
    report = json.loads((finished / "report.json").read_text())
    scores = ["proxy", "held-out reward model", "gold (simulated)"]
    assert [turn["score"] for turn in report["turns"]] == scores
    assert [score["name"] for score in report["against_kl"]["scores"]] == scores
    assert report["model_errors"]["names"][-1] == "heldout"
    page = (finished / "report.html").read_text()
    assert "Turned at step" in page and "Reward models together" in page and "Held-out reward" in page


def test_the_evaluation_scores_with_the_ensemble(finished: Path):
    recipe = finished.parents[1] / "recipe.yaml"
    written = evaluate_reward(load_recipe(recipe), recipe, RunFolder(finished), "heldout")
    stored = json.loads((finished / "stages" / "reward" / "reward.json").read_text())["evaluation"]
    assert written.evaluation.accuracy.value == stored["accuracy"]["value"]
    assert written.evaluation.log_loss == pytest.approx(stored["log_loss"], abs=1e-5)


def test_the_lineage_names_each_model_that_learned_from_a_pair(finished: Path):
    run = RunFolder(finished)
    learned = read_records(run.stage("reward") / "learned.jsonl", Learned)
    by_model = {name: {x.preference for x in learned if x.model == name and x.part == "train"} for name in MODELS}
    assert by_model["reward"] == by_model["member_2"] == by_model["words"] and all(by_model.values())
    assert not by_model["reward"] & by_model["heldout"]
    assert all(bool(x.steps) == (x.model != "words") for x in learned if x.part == "train")
    told = {}
    for name in ("reward", "heldout"):
        told[name] = "\n".join(lines(trace(run, min(by_model[name]))))
    assert "reward model member_2 of round 1: in " in told["reward"] and "a bag of words" in told["reward"]
    assert "reward model heldout of round 1: held out" in told["reward"]
    assert "through the reward model" in told["reward"] and "through the reward model" not in told["heldout"]


def test_an_ensemble_is_no_classifier(finished: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="the reward is an ensemble, which no single classifier is"):
        export_model(finished, tmp_path / "out", stage="reward")


def test_the_plan_tells_of_models_and_ending_and_refuses_small_parts(tmp_path: Path):
    recipe = toy_recipe(tmp_path, reward=TOY["reward"] | SEVERAL, align=TOY["align"] | {"select": "heldout"})
    plan = make_plan(load_recipe(recipe, ["sample.prompts=32"]), recipe, tmp_path / "runs")
    text = "\n".join(plan["objective"])
    assert "2 models r_m and a bag of words; the reward is r̄ − 1·s" in text and "half of the prompts" in text
    assert "ends with the checkpoint whose heldout score is highest" in text
    assert any("3 reward models on 50%, 50%, 50% of them" in row["what"] for row in plan["stages"])
    assert any("align.select 'heldout' chooses among 4 candidates" in line for line in plan["warnings"])
    with pytest.raises(ConfigError, match="12 preferences leave 5 for a reward model of its own; at least 8"):
        make_plan(load_recipe(recipe, ["sample.prompts=12"]), recipe, tmp_path / "runs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"align": {"method": "rloo", "select": "heldout"}}, "align.select is 'heldout' and there is no held-out"),
        (
            {"reward": {"split": True, "adapter": {"kind": "full"}}},
            "reward.split trains several reward models on one trunk",
        ),
        (
            {"reward": {"split": True}, "rewards": {"rule": {"kind": "function", "path": "a.b"}}},
            "reward.split is for runs that maximise the reward model",
        ),
        (
            {"reward": {"split": True}, "rewards": {"m": {"kind": "model"}, "heldout": {"kind": "http", "url": "http://h"}}},
            "rewards.heldout has the name of a number that reward.split logs",
        ),
        (
            {"reward": {"ensemble": {}}, "align": {"method": "ppo", "critic_init": "reward_model"}},
            "align.critic_init is 'reward_model'",
        ),
    ],
)  # fmt: skip
def test_sections_that_contradict_each_other(changes, message):
    recipe = {
        "name": "toy",
        "data": {"preferences": "p.jsonl", "prompts": "q.jsonl"},
        "reward": {},
        "align": {"method": "rloo"},
    } | changes
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        check_recipe(RunConfig.model_validate(recipe))


def test_a_rule_can_be_the_held_out_judge():
    sources = {"model": {"kind": "model"}, "heldout": {"kind": "function", "path": "a.b", "weight": 0}}
    recipe = {
        "name": "toy",
        "data": {"preferences": "p.jsonl", "prompts": "q.jsonl"},
        "reward": {},
        "rewards": sources,
        "align": {"method": "rloo", "select": "heldout"},
    }
    check_recipe(RunConfig.model_validate(recipe))
