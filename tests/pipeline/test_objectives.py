"""Reward models that use more of a label, in a recipe: objectives, votes with their annotators, a length head."""

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import ConfigError, DataError
from trimtab.pipeline.config import RunConfig, check_recipe, load_recipe
from trimtab.pipeline.export import export_model
from trimtab.pipeline.objectives import of_criteria
from trimtab.pipeline.plan import make_plan
from trimtab.pipeline.reward_evaluation import evaluate_reward, evaluation_lines
from trimtab.records import Comparison, Judgement, Preference, Prompt, Rollout, read_records, write_records
from trimtab.storage import RunFolder, read_json, read_metrics
from trimtab.testing import prompts, sentences
from trimtab.testing.recipe import TOY

from .small_rounds import SMALL, go, small_recipe

OBJECTIVES = ["helpful", "harmless"]
REWARDS = {
    name: {"kind": "model", "objective": name, "weight": w} for name, w in zip(OBJECTIVES, (2.0, 1.0), strict=True)
}
GDPO = {k: v for k, v in SMALL["align"].items()} | {"method": "gdpo", "group": 4}


def recipe_with_votes(folder: Path, **sections: Any) -> Path:
    """A recipe on simulated judgements by three criteria; every third item lacks one of the first two."""
    votes = folder / "votes"
    votes.mkdir(parents=True)
    texts = sentences(80, words=5, start=300)
    items = [Comparison.of(p, [texts[2 * n], texts[2 * n + 1]]) for n, p in enumerate(prompts(32))]
    judgements = [
        Judgement(
            id=f"{item.id}/{criterion}", item=item.id, annotator=f"w{n % 3}", source="simulated",
            shown_order=(0, 1), ranks=(0, 1) if (n + k) % 2 else (1, 0), criterion=criterion,
        )
        for n, item in enumerate(items)
        for k, criterion in enumerate((*OBJECTIVES, "funny"))
        if n % 3 != k
    ]  # fmt: skip
    write_records(votes / "comparisons.jsonl", items)
    write_records(votes / "judgements.jsonl", judgements)
    label = {"source": "votes", "votes": {"project": "votes"}}
    reward = SMALL["reward"] | {"objectives": OBJECTIVES, "augment": {"flattery": 0.5, "neutral": 0.25}}
    given = {"sft": None, "sample": None, "label": label, "reward": reward, "rewards": REWARDS, "align": GDPO}
    return small_recipe(folder, **given | {"evaluate": None} | sections)


def test_a_recipe_of_two_objectives_beside_a_process_reward(tmp_path: Path):
    rewards = REWARDS | {"steps": {"kind": "process", "score": "minimum", "weight": 0.5}}
    process = {"adapter": SMALL["reward"]["adapter"], "optimizer": {"lr": 5e-3}, "batch": 8}
    data = TOY["data"] | {"steps": "data/steps.jsonl"}
    recipe = recipe_with_votes(tmp_path, rewards=rewards, process=process, data=data, evaluate=SMALL["evaluate"])
    solutions = [
        {"prompt": text, "steps": ["green tea", "soup"], "first_wrong": n % 2 or None}
        for n, text in enumerate(sentences(12, words=3, start=4000))
    ]
    (tmp_path / "data" / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in solutions))
    run, ui = go(recipe)
    preferences = read_records(run.stage("preferences") / "preferences.jsonl", Preference)
    by = {name: [p for p in preferences if p.criterion == name] for name in OBJECTIVES}
    assert {name: len(rows) for name, rows in by.items()} == {
        "helpful": 21,
        "harmless": 21,
    }  # rows without one count too
    assert all(p.id.endswith(f"/{p.criterion}") for p in preferences)
    printed = "\n".join(ui.lines)
    assert "not named in reward.objectives and not learned from: funny" in printed
    assert "flattery 1" in printed and "helpful: held-out accuracy" in printed
    facts = read_json(run.stage("reward") / "reward.json")
    assert list(facts["objectives"]) == OBJECTIVES
    own = {name: facts["objectives"][name]["evaluation"] for name in OBJECTIVES}
    assert own["helpful"]["pairs"] + own["harmless"]["pairs"] == facts["evaluation"]["pairs"]
    assert [b["name"] for b in own["harmless"]["baselines"]] == ["longest", "shortest", "surface", "words"]
    rows = read_metrics(run.stage("align") / "metrics.jsonl")
    assert all({"reward/helpful", "reward/harmless", "reward/steps"} <= row.keys() for row in rows)
    answers = read_records(run.stage("align") / "samples" / "step-000000.jsonl", Rollout)
    assert len({a.rewards["helpful"] - a.rewards["harmless"] for a in answers}) > 1  # two heads, not one
    assert sum(row["reward"] for row in rows) == pytest.approx(
        sum(2 * row["reward/helpful"] + row["reward/harmless"] + row["reward/steps"] / 2 for row in rows), abs=1e-4
    )
    page = (run.path / "report.html").read_text()
    assert all(f'<tr><td>{name}</td><td class="n">{own[name]["pairs"]}</td>' in page for name in OBJECTIVES)
    written = evaluate_reward(load_recipe(recipe), recipe, run, "heldout")
    assert written.objectives["helpful"].accuracy.model_dump(mode="json") == own["helpful"]["accuracy"]
    lines = "\n".join(evaluation_lines(written))
    assert "objective helpful: accuracy" in lines and "objective harmless: accuracy" in lines
    with pytest.raises(ConfigError, match="several objectives \\(helpful, harmless\\)"):
        export_model(run.path, tmp_path / "out", stage="reward")
    # other weights are other rewards and no other reward model
    before = (run.stage("reward") / "weights.safetensors").read_bytes()
    other, _ = go(recipe, "rewards.harmless.weight=0", until="align")
    assert (other.stage("reward") / "weights.safetensors").read_bytes() == before
    plan = make_plan(load_recipe(recipe), recipe, tmp_path / "runs")
    assert "one head each for helpful, harmless" in "\n".join(plan["objective"])


def test_a_criterion_that_nobody_used_is_named(tmp_path: Path):
    recipe = recipe_with_votes(tmp_path)
    rewards = json.dumps({"honest": {"kind": "model", "objective": "honest"}})
    with pytest.raises(ConfigError, match=r"criterion 'honest': none of 64 judgements.*funny, harmless, helpful"):
        go(recipe, "reward.objectives=[helpful, honest]", f"rewards={rewards}", until="preferences")


def test_ready_made_preferences_by_criterion():
    rows = [
        Preference.pair(Prompt.from_text(f"q{n}"), "a", "b", criterion=criterion)
        for n, criterion in enumerate(["helpful", "harmless", "funny", "helpful"])
    ]
    assert [p.criterion for p in of_criteria(rows, OBJECTIVES, "p.jsonl")] == ["helpful", "harmless", "helpful"]
    with pytest.raises(DataError, match="several criteria \\(funny 1, harmless 1, helpful 2\\)"):
        of_criteria(rows, (), "p.jsonl")
    with pytest.raises(DataError, match="no preference is about the objective 'honest'"):
        of_criteria(rows, ["helpful", "honest"], "p.jsonl")


def test_votes_one_by_one_and_a_length_head(tmp_path: Path):
    """The trainer gets every vote; what it learns of annotators and of length is written down."""
    label = SMALL["label"] | {"aggregate": {"keep_tied": True}}
    settings = {"loss": "davidson", "annotators": ["tie", "position", "taste"], "length": {}, "holdout": 0.4}
    recipe = small_recipe(tmp_path, label=label, reward=SMALL["reward"] | settings, align=None, evaluate=None)
    run, ui = go(recipe, until="reward")
    facts = read_json(run.stage("reward") / "reward.json")["annotators"]
    judgements = [j for j in read_records(run.stage("label") / "judgements.jsonl", Judgement) if j.ranks is not None]
    assert sum(row["votes"] for row in facts["annotators"]) + facts["heldout"]["votes"] == len(judgements)
    assert {row["annotator"] for row in facts["annotators"]} == {j.annotator for j in judgements}
    assert [t["habits"] for t in facts["trials"]][:2] == [[], ["tie"]] and facts["heldout"]["gain"]["value"] is not None
    printed = "\n".join(ui.lines)
    assert set(facts["taste"]) == {"annotators", "without", "trials", "used", "direction"}
    assert facts["taste"]["without"] > 0 and not facts["taste"]["used"]
    assert "  no taste: 0 annotators have 50 votes, and at least two are needed" in ui.lines
    assert "habits that lower it and are used in training" in printed and "margin, which is not used" in printed
    rows = read_metrics(run.stage("reward") / "metrics.jsonl")
    assert all({"length_correlation", "length_head_correlation"} <= row.keys() for row in rows)
    out = tmp_path / "out"
    export_model(run.path, out, stage="reward")  # the length head stays behind
    assert json.loads((out / "config.json").read_text())["architectures"][0].endswith("ForSequenceClassification")


def recipe_with_tastes(folder: Path) -> Path:
    """One annotator prefers the longer of two answers, one the shorter, and one goes by turns; 80 votes each."""
    votes = folder / "votes"
    votes.mkdir(parents=True)
    short, long = sentences(80, words=3, start=300), sentences(80, words=12, start=5000)
    items = [Comparison.of(p, [short[n], long[n]]) for n, p in enumerate(prompts(80))]
    judgements = [
        Judgement(
            id=f"{item.id}/{name}", item=item.id, annotator=name, source="simulated", shown_order=(0, 1),
            ranks=(1, 0) if longer else (0, 1),
        )
        for n, item in enumerate(items)
        for name, longer in (("for long", True), ("for short", False), ("by turns", n % 2 == 0))
    ]  # fmt: skip
    write_records(votes / "comparisons.jsonl", items)
    write_records(votes / "judgements.jsonl", judgements)
    label = {"source": "votes", "votes": {"project": "votes"}, "aggregate": {"keep_tied": True}}
    reward = SMALL["reward"] | {"loss": "davidson", "annotators": ["taste"]}
    return small_recipe(folder, sft=None, sample=None, label=label, reward=reward, align=None, evaluate=None)


def test_a_taste_is_used_in_training_and_explains_held_out_votes(tmp_path: Path):
    run, ui = go(recipe_with_tastes(tmp_path), until="reward")
    facts = read_json(run.stage("reward") / "reward.json")["annotators"]
    taste, heldout = facts["taste"], facts["heldout"]
    assert taste["used"] and taste["annotators"] == 3 and len(taste["direction"]) == 9
    best = min(trial["log_loss"] for trial in taste["trials"])
    assert best < taste["without"] - 0.2
    assert heldout["alike"] - heldout["annotators"] > 0.2
    assert (
        "  a taste of 3 annotators with 50 votes or more: log-loss of a vote that was not fitted "
        f"{taste['without']:.4f} without, {best:.4f} with; used in training"
    ) in ui.lines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, "reward.objectives gives several rewards, and nothing weighs them"),
        ({"rewards": {"m": {"kind": "model"}}}, "rewards.m is a model of several objectives; set objective"),
        ({"rewards": {"m": {"kind": "model", "objective": "funny"}}}, "rewards.m.objective is 'funny'"),
        (
            {"rewards": REWARDS | {"again": {"kind": "model", "objective": "helpful"}}},
            "the objective 'helpful' is named by 2 rewards",
        ),
        ({"reward": {"objectives": OBJECTIVES, "split": True}}, "reward.objectives is for one reward model"),
        ({"rewards": None, "align": {"method": "dpo"}}, "align.method 'dpo' learns from preferences of one"),
        ({"reward": {}}, "rewards.helpful.objective is 'helpful', and reward.objectives names none"),
        (
            {"reward": {"loss": "davidson", "annotators": ["tie"]}, "rewards": None},
            "reward.annotators learns from single votes, and data.preferences has none",
        ),
    ],
)
def test_sections_that_contradict_each_other(changes: dict, message: str):
    recipe = {
        "name": "toy",
        "data": {"preferences": "p.jsonl", "prompts": "q.jsonl"},
        "reward": {"objectives": OBJECTIVES},
        "rewards": REWARDS,
        "align": {"method": "gdpo"},
    } | changes
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        check_recipe(RunConfig.model_validate(recipe))


@pytest.mark.parametrize(
    ("label", "reward", "message"),
    [
        ({}, {"objectives": OBJECTIVES}, "simulated annotators judge one, overall"),
        ({"aggregate": {"criterion": "funny"}}, {"objectives": OBJECTIVES}, "label.aggregate.criterion is 'funny'"),
        ({}, {"loss": "davidson", "annotators": ["tie"]}, "set label.aggregate.keep_tied: true"),
        (
            {"aggregate": {"keep_tied": True, "weighting": "agreement"}},
            {"loss": "davidson", "annotators": ["tie"]},
            "label.aggregate.weighting is 'agreement'",
        ),
        (
            {"aggregate": {"keep_tied": True, "margin": 2.0}},
            {"loss": "davidson", "annotators": ["tie"]},
            "label.aggregate.margin is 2, and reward.annotators explains each vote by itself",
        ),
        ({"aggregate": {"margin": 2.0}, "source": "ai"}, {}, "AI judges give probabilities instead of strengths"),
        (
            {"aggregate": {"keep_tied": True}},
            {"loss": "davidson", "annotators": ["tie"], "ensemble": {}},
            "reward.annotators is for one reward model",
        ),
    ],
)
def test_labels_that_contradict_the_reward_model(label: dict, reward: dict, message: str):
    recipe = {
        "name": "toy",
        "gold": "trimtab.feedback.gold.friendly_utility",
        "data": {"prompts": "q.jsonl"},
        "sample": {"answers": 2},
        "label": label,
        "reward": reward,
    }
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        check_recipe(RunConfig.model_validate(recipe))


def test_an_objective_that_no_reward_names_is_said(tmp_path: Path):
    recipe = recipe_with_votes(tmp_path, rewards={"helpful": REWARDS["helpful"]})
    plan = make_plan(load_recipe(recipe), recipe, tmp_path / "runs")
    assert any("reward.objectives harmless: trained" in line for line in plan["warnings"])
    assert RunFolder(tmp_path / "runs" / "toy").path.name == "toy"
