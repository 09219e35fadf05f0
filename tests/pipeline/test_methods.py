"""Every method of alignment from a recipe, to the page. Stages before it are shared, as they are for a user."""

import json
from pathlib import Path

import pytest
import yaml

from trimtab.errors import ConfigError, DataError
from trimtab.pipeline import learning
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.costs import TOKENS, Sizing, align_cost, evaluate_cost
from trimtab.pipeline.memory import model_shape, stage_gb
from trimtab.pipeline.plan import make_plan
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.rollout import split_steps
from trimtab.storage import read_metrics
from trimtab.testing import toy_recipe
from trimtab.trainers import methods

ADAPTER = {"kind": "lora", "rank": 4, "alpha": 8, "top_layers": 2}
ONLINE = [
    "ppo", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "gdpo", "reinforce_pp", "reinforce_pp_baseline",
    "online_dpo", "nash_md", "xpo", "rejection",
]  # fmt: skip
OFFLINE = [
    "dpo", "ipo", "hinge", "kto", "orpo", "simpo", "cpo", "plackett_luce", "apo_zero", "apo_down", "bco", "sppo", "exo",
    "nca",
]  # fmt: skip


def align(method: str) -> dict:
    if method in OFFLINE:
        return {"method": method, "adapter": ADAPTER, "batch": 4, "optimizer": {"lr": 1e-3}, "holdout": 0.2}
    group = {"group": 1} if method in ("ppo", "reinforce_pp", "nash_md", "xpo") else {"group": 3}
    sampler = {"max_new_tokens": 12, "slots": 32}
    return {"method": method, "adapter": ADAPTER, "steps": 2, "prompts": 4, "sampler": sampler} | group


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.mark.parametrize("method", [*ONLINE, *OFFLINE])
def test_aligns_from_a_recipe(folder: Path, method: str):
    recipe = toy_recipe(folder, align=align(method))
    config = load_recipe(recipe)
    plan = make_plan(config, recipe, folder / "runs")
    label = {**methods.ONLINE, **methods.OFFLINE}[method].label
    assert any(line.startswith(f"{label}:") for line in plan["objective"]), plan["objective"]
    run_recipe(config, recipe, runs=folder / "runs", until="align", ui=Silent())
    stages = folder / "runs" / "toy" / "stages"
    rows = read_metrics(stages / "align" / "metrics.jsonl")
    assert rows and (stages / "align" / "weights.safetensors").exists()
    if method in OFFLINE:
        facts = json.loads((stages / "align" / "align.json").read_text())
        assert facts["heldout_before"]["loss"] > 0
    else:
        assert {"reward", "kl", "policy_loss", "mismatch"} <= rows[0].keys()
        assert ("value_loss" in rows[0]) == (method == "ppo")


ON_A_PAGE = ["ppo", "grpo", "rejection", "dpo", "kto", "plackett_luce"]
"""Each kind of method: with a critic, with groups, imitating, from pairs, from thumbs, from rankings."""


@pytest.mark.parametrize(
    "method", [m if m in ON_A_PAGE else pytest.param(m, marks=pytest.mark.slow) for m in (*ONLINE, *OFFLINE)]
)
def test_its_page_names_the_method_and_how_it_learns(folder: Path, method: str):
    recipe = toy_recipe(folder, align=align(method))
    run_recipe(load_recipe(recipe), recipe, runs=folder / "runs", ui=Silent())
    page = (folder / "runs" / "toy" / "report.html").read_text()
    label = {**methods.ONLINE, **methods.OFFLINE}[method].label
    assert f"{label} over SFT" in page
    assert ("learns from judged answers; no reward is climbed" in page) == (method in OFFLINE)


def test_offline_methods_need_no_reward_model(tmp_path: Path):
    recipe = toy_recipe(tmp_path, sft=None, reward=None, align=align("dpo"))
    run_recipe(load_recipe(recipe), recipe, runs=tmp_path / "runs", ui=Silent())
    result = json.loads((tmp_path / "runs/toy/stages/evaluate/evaluation.json").read_text())
    assert result["models"] == ["base", "policy"] and result["judges"] == ["gold"] and result["kl"] is not None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"method": "dop"}, r"align\.method: 'dop' is not one of them; valid: ppo, rloo, .*, cpo"),
        ({"steps": 3}, r"align\.method: required and missing; valid"),
        (
            {"method": "simpo", "label_smoothing": 0.1},
            r"align\.label_smoothing: unknown key; valid keys here: .*gamma",
        ),
        ({"method": "dpo", "bta": 0.1}, r"align\.bta: unknown key; did you mean 'beta'"),
        ({"method": "dpo", "beta": 0}, r"align\.beta: 0 is not accepted"),
        ({"method": "grpo", "group": 1}, r"align\.group: 1 is not accepted"),
        (
            {"method": "grpo", "kl": {"coeficient": 1}},
            r"align\.kl\.coeficient: unknown key; did you mean 'coefficient'",
        ),
        ({"method": "dpo", "label_smoothing": 0.5}, r"label_smoothing: 0\.5 is not accepted"),
    ],
)
def test_settings_that_a_method_does_not_have(tmp_path: Path, section: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        load_recipe(toy_recipe(tmp_path, align=section))


def test_offline_methods_need_preferences(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"align\.method 'kto' needs preferences"):
        load_recipe(toy_recipe(tmp_path, label=None, reward=None, align=align("kto")))


def vowels(rollouts) -> list[float]:
    """A reward a person might write."""
    return [sum(c in "aeiou" for c in r.text) / (len(r.text) + 1) for r in rollouts]


def test_rewards_by_name_from_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    function = {"kind": "function", "path": f"{__name__}.vowels"}
    rewards = {"vowels": function | {"weight": 2.0}, "model": {"kind": "model", "weight": 0.5, "clip": 1.0}}
    recipe = toy_recipe(tmp_path, sft=None, align=align("rloo"), rewards=rewards)
    run_recipe(load_recipe(recipe), recipe, runs=tmp_path / "runs", ui=Silent())
    (first, *_) = read_metrics(tmp_path / "runs/toy/stages/align/metrics.jsonl")
    assert first["reward"] == pytest.approx(2 * first["reward/vowels"] + 0.5 * first["reward/model"])
    page = (tmp_path / "runs/toy/report.html").read_text()
    assert "the rewards “vowels” and “model” (proxy, trained against)" in page
    alone = toy_recipe(
        tmp_path, name="alone", sft=None, sample=None, label=None, reward=None, gold=None, align=align("grpo"),
        rewards={"vowels": function},
    )  # fmt: skip
    requests, counted = [], vowels
    monkeypatch.setattr(f"{__name__}.vowels", lambda rollouts: requests.append(len(rollouts)) or counted(rollouts))
    run_recipe(load_recipe(alone), alone, runs=tmp_path / "runs", ui=Silent())
    monkeypatch.undo()
    assert (
        max(requests) == 4 * 3 and sum(requests) == 2 * 4 * 3 + 2 * 10
    )  # the evaluation asks in batches of training's size
    page = (tmp_path / "runs/alone/report.html").read_text()
    assert "the reward “vowels” (proxy, trained against)" in page and "This run has no preferences." in page
    assert "imported" not in page and "the reward model" not in page.lower()
    result = json.loads((tmp_path / "runs/alone/stages/evaluate/evaluation.json").read_text())
    assert result["judges"] == ["proxy"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"reward": None, "rewards": {"m": {"kind": "model"}}}, r"rewards\.m is the reward model and needs reward"),
        ({"rewards": {"m": {"kind": "model"}, "n": {"kind": "model"}}}, "m and n are the same reward model"),
        ({"align": align("dpo"), "rewards": {"m": {"kind": "model"}}}, "rewards are for online methods"),
        (
            {"rewards": {"m": {"kind": "modle"}}},
            r"rewards\.m\.kind: 'modle' is not one of them; valid: model",
        ),
        ({"rewards": {"f": {"kind": "function", "pth": "a.b"}}}, r"rewards\.f\.pth: unknown key; did you mean 'path'"),
        ({"rewards": {"f": {"kind": "http", "url": "ftp://a"}}}, r"rewards\.f\.url: 'ftp://a' is not accepted"),
    ],
)
def test_rewards_that_cannot_be(tmp_path: Path, sections: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        load_recipe(toy_recipe(tmp_path, **sections))


def test_preferences_that_teach_nothing_are_counted(tmp_path: Path):
    """A third of the pairs is tied, a third has one answer twice: neither reward model nor DPO is trained on them."""
    rows = [
        {"id": str(i), "prompt": {"id": f"p{i}", "messages": [{"role": "user", "content": f"say {i}"}]},
         "completions": [{"text": "a nice day"}, {"text": "no" if i % 3 else "a nice day"}],
         "ranks": [0, int(i % 3 < 2)]}
        for i in range(30)
    ]  # fmt: skip
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"preferences": "p.jsonl", "heldout": "data/heldout.jsonl"}
    recipe = toy_recipe(tmp_path, sft=None, sample=None, label=None, gold=None, data=data, align=align("dpo"))
    run = run_recipe(load_recipe(recipe), recipe, runs=tmp_path / "runs", ui=Silent())
    for stage in ("reward", "align"):
        status = run.status(stage)
        assert status is not None and status.counts is not None
        assert status.counts["preferences"] + status.counts["held_out"] == 10
        assert (status.counts["identical"], status.counts["tied"]) == (10, 10)
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::3]))
    with pytest.raises(DataError, match=r"none of 10 preferences can be learnt from \(0 too long, .*0 tied, 10 with"):
        run_recipe(load_recipe(recipe), recipe, runs=tmp_path / "runs", ui=Silent())


def test_kto_from_thumbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = toy_recipe(tmp_path, sft=None, sample=None, label=None, reward=None, align=align("kto"))
    rows = [
        {"prompt": f"say {i}", "completion": text, "label": label}
        for i in range(12)
        for text, label in ((f"a nice day {i}", True), (f"no {i}", False))
    ]
    (tmp_path / "data" / "thumbs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    values = yaml.safe_load(recipe.read_text())
    values["data"] = {"ratings": "data/thumbs.jsonl", "heldout": "data/heldout.jsonl"}
    recipe.write_text(yaml.safe_dump(values))
    prompts_of: dict[str, set[str]] = {}
    for name in ("train_kto", "evaluate_kto"):
        ours = getattr(learning, name)

        def watched(policy, reference, answers, *rest, ours=ours, name=name, **more):
            prompts_of[name] = {str(a.prompt) for a in answers}
            return ours(policy, reference, answers, *rest, **more)

        monkeypatch.setattr(learning, name, watched)
    run_recipe(load_recipe(recipe), recipe, runs=tmp_path / "runs", ui=Silent())
    assert (
        prompts_of["evaluate_kto"] and not prompts_of["train_kto"] & prompts_of["evaluate_kto"]
    )  # a prompt is on one side only
    stages = tmp_path / "runs/toy/stages"
    assert read_metrics(stages / "align" / "metrics.jsonl") and (stages / "align" / "weights.safetensors").exists()
    assert json.loads((stages / "align" / "align.json").read_text())["heldout_before"]["loss"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("data", "method", "message"),
    [
        ({"ratings": "t.jsonl"}, "dpo", r"data\.ratings is for align\.method kto"),
        ({"ratings": "t.jsonl", "preferences": "p.jsonl"}, "kto", "both say what KTO learns from"),
        ({"prompts": "p.jsonl"}, "kto", r"needs preferences: .* \(or data\.ratings\)"),
    ],
)
def test_ratings_that_contradict(tmp_path: Path, data: dict, method: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_recipe(
            toy_recipe(tmp_path, data=data, sft=None, sample=None, label=None, reward=None, align=align(method))
        )


def test_best_of_n_is_compared(folder: Path):
    evaluate = {"sampler": {"max_new_tokens": 12, "slots": 32}, "examples": 4, "best_of": 3}
    recipe = toy_recipe(folder, align=align("rloo"), evaluate=evaluate)
    run_recipe(load_recipe(recipe), recipe, runs=folder / "runs", ui=Silent())
    result = json.loads((folder / "runs/toy/stages/evaluate/evaluation.json").read_text())
    pairs = {(r["model"], r["against"]) for r in result["win_rates"]}
    assert pairs == {("policy", "base"), ("sft", "base"), ("policy", "sft"), ("best_of", "sft"), ("policy", "best_of")}
    assert result["best_of"]["n"] == 3
    assert 0 < result["best_of"]["kl"] <= result["best_of"]["kl_bound"] + 1e-6
    by_proxy = next(r for r in result["win_rates"] if r["model"] == "best_of" and r["judge"] == "proxy")
    assert by_proxy["rate"] > 0.5  # the rewards chose it
    page = (folder / "runs/toy/report.html").read_text()
    assert "Best of 3" in page and "RLOO" in page and "PPO" not in page
    with pytest.raises(ConfigError, match=r"evaluate\.best_of needs reward or rewards"):
        load_recipe(toy_recipe(folder, reward=None, align=align("dpo"), evaluate=evaluate))


def test_ptx_and_steps_from_a_recipe(tmp_path: Path):
    rewards = {"words": {"kind": "function", "path": f"{__name__}.words", "steps": " "}}
    ppo = align("ppo") | {"ptx": {"coefficient": 0.5, "batch": 4}}
    recipe = toy_recipe(tmp_path, sft=None, sample=None, label=None, reward=None, gold=None, align=ppo, rewards=rewards)
    run_recipe(load_recipe(recipe), recipe, runs=tmp_path / "runs", ui=Silent())
    (first, *_) = read_metrics(tmp_path / "runs/toy/stages/align/metrics.jsonl")
    assert first["ptx_nll"] > 0 and first["reward/words"] == pytest.approx(first["reward"])
    problem = r"rewards\.words places rewards at steps, but align\.method 'rloo'"
    with pytest.raises(ConfigError, match=problem):
        load_recipe(toy_recipe(tmp_path, align=align("rloo"), rewards=rewards))
    no_data = {"prompts": "data/prompts.jsonl"}
    with pytest.raises(ConfigError, match=r"align\.ptx needs conversations"):
        load_recipe(toy_recipe(tmp_path, sft=None, data=no_data, align=ppo))


def words(rollouts) -> list[list[float]]:
    """A number per step."""
    return [[float(len(step)) for step in split_steps(r.text, " ")] for r in rollouts]


@pytest.mark.parametrize(
    ("method", "more", "grown"),
    [
        ("dapo", {"resample": 3}, {"resample": 0}),
        ("rloo", {"ptx": {"batch": 4}}, {}),
        ("online_dpo", {"group": 2}, {"group": 4}),  # per answer drawn, four of which share one update
        ("rejection", {"keep": 2}, {"keep": 1}),
        ("ppo", {}, {"shared_critic": True}),
    ],
)
def test_the_plan_counts_what_a_method_does(folder: Path, method: str, more: dict, grown: dict):
    def flops(settings: dict) -> float:
        config = load_recipe(toy_recipe(folder, align=align(method) | settings))
        shape = model_shape(config.model)
        cost = align_cost(Sizing(config=config, recipe=folder / "recipe.yaml", shape=shape))
        assert cost.what and cost.tokens
        return cost.flops / (config.align.prompts * config.align.group)

    assert flops(more) > flops(grown)


def test_the_plan_counts_ratings_and_best_of_n(tmp_path: Path):
    rows = [{"prompt": f"say {i}", "completion": "hi", "label": i % 2 == 0} for i in range(20)]
    recipe = toy_recipe(
        tmp_path, sft=None, sample=None, label=None, reward=None, data={"ratings": "data/t.jsonl"}, align=align("kto")
    )
    (tmp_path / "data" / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_recipe(recipe)
    shape = model_shape(config.model)
    sizing = Sizing(config=config, recipe=recipe, shape=shape)
    cost = align_cost(sizing)
    assert (cost.what, cost.updates, cost.tokens) == ("16 ratings, 4 a step", 4, 16 * TOKENS)
    assert evaluate_cost(sizing).what == "4 answers"  # two held-out prompts, two models
    recipe = toy_recipe(tmp_path, evaluate={"best_of": 3})
    sizing = Sizing(config=load_recipe(recipe), recipe=recipe, shape=shape)
    assert (
        evaluate_cost(sizing).what == "60 answers, up to 140 edited ones scored again (evaluate.gain)"
    )  # ten prompts, three models and 3


def test_a_moving_reference_from_a_recipe(tmp_path: Path):
    update = {"every": 1, "alpha": 0.5}
    recipe = toy_recipe(tmp_path, sft=None, reward=None, align=align("dpo") | {"reference_update": update})
    config = load_recipe(recipe)
    plan = make_plan(config, recipe, tmp_path / "runs")
    assert any(line.endswith("; every 1 step(s) ref ← 0.5·π + 0.5·ref") for line in plan["objective"])
    fixed = load_recipe(toy_recipe(tmp_path, sft=None, reward=None, align=align("dpo")))
    shape = model_shape(config.model)
    assert stage_gb(config, config.align, shape) - stage_gb(fixed, fixed.align, shape) == pytest.approx(
        4 * shape["layer"] * 2 / 1e9
    )
    run_recipe(config, recipe, runs=tmp_path / "runs", ui=Silent())
    assert read_metrics(tmp_path / "runs/toy/stages/align/metrics.jsonl")
    late = toy_recipe(tmp_path, align=align("dpo") | {"reference_update": {"every": 500}})
    with pytest.raises(ConfigError, match=r"every is 500 and training has \d+ steps"):
        make_plan(load_recipe(late), late, tmp_path / "others")
    with pytest.raises(ConfigError, match=r"align\.reference_update is set and align\.method 'orpo' has no reference"):
        load_recipe(toy_recipe(tmp_path, align=align("orpo") | {"reference_update": update}))
    with pytest.raises(ConfigError, match=r"align\.preference is 'given', which is for trimtab\.trainers\.train_rl"):
        load_recipe(toy_recipe(tmp_path, align=align("xpo") | {"preference": "given", "missing_eos": None}))
