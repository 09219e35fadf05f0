"""The table for choosing has every method, the command prints it, and the plan names what uses more of the data."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trimtab.cli.app import app
from trimtab.errors import ConfigError
from trimtab.pipeline.better_fit import JudgedData, better_fit, judged_data
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.costs import Sizing, evaluate_cost
from trimtab.pipeline.memory import model_shape
from trimtab.pipeline.plan import warnings
from trimtab.pipeline.rates import fill_rates
from trimtab.records import Completion, Preference, Prompt, Rating, write_records
from trimtab.testing import toy_recipe
from trimtab.trainers import METHODS
from trimtab.trainers.choosing import ORDER, choices

LORA = {"kind": "lora", "rank": 2, "alpha": 4}
REWARD = {"kind": "function", "path": "tests.pipeline.test_methods.vowels"}


def test_every_method_is_in_the_table_once_and_each_kind_of_data_has_a_start():
    rows = choices()
    assert sorted(c.method for c in rows) == sorted(METHODS)
    assert [c.data for c in rows] == sorted((c.data for c in rows), key=ORDER.index)
    assert all(c.cost and c.flaw and not c.flaw.endswith(".") for c in rows)
    started = {c.data for c in rows if c.start}
    assert started >= {"pairs", "thumbs", "prompts and rewards"}
    kinds = {c.method: c.data for c in rows}
    assert (kinds["dpo"], kinds["kto"], kinds["plackett_luce"]) == ("pairs", "thumbs", "rankings")
    assert (kinds["ppo"], kinds["gdpo"]) == ("prompts and rewards", "prompts and several rewards")
    costs = {c.method: c.cost for c in rows}
    assert costs["ppo"].endswith("a critic") and costs["simpo"] == "nothing" and "one more pass" in costs["bco"]


def test_the_command_prints_the_table():
    runner = CliRunner()
    shown = runner.invoke(app, ["methods"]).output
    assert all(name in shown for name in METHODS)
    rows = json.loads(runner.invoke(app, ["methods", "--data", "prompts", "--json"]).output)
    assert {row["data"] for row in rows} == {"prompts and rewards", "prompts and several rewards"}
    wrong = runner.invoke(app, ["methods", "--data", "votes"])
    assert isinstance(wrong.exception, ConfigError) and "'votes'; the methods learn from pairs" in str(wrong.exception)


@pytest.mark.parametrize(
    ("method", "answers", "rewards", "hint"),
    [
        ("dpo", 4, 0, "preferences rank 4 answers; align.method plackett_luce learns from their whole order, dpo from"),
        ("dpo", 2, 0, None),
        ("plackett_luce", 4, 0, None),
        ("plackett_luce", 2, 0, "for which plackett_luce is dpo"),
        ("simpo", 4, 0, None),  # without a reference there is no list-wise one
        (
            "kto",
            2,
            0,
            "kto keeps only which answers won more than they lost; align.method dpo learns",
        ),
        ("grpo", 2, 2, "2 rewards are added before grpo divides by their deviation"),
        ("grpo", 2, 1, None),
        ("rloo", 2, 2, None),
        ("gdpo", 2, 1, "gdpo is for several rewards and there is one"),
        ("gdpo", 2, 2, None),
    ],
)
def test_the_plan_names_a_method_that_uses_more_of_the_data(tmp_path: Path, method, answers, rewards, hint):
    section = {"method": method, "adapter": LORA}
    if rewards:
        section |= {"steps": 2, "prompts": 4, "group": 2, "sampler": {"max_new_tokens": 8}, "missing_eos": None}
        more = {"rewards": {f"r{i}": REWARD for i in range(rewards)}, "reward": None}
    else:
        more = {}
    lines = better_fit(load_recipe(toy_recipe(tmp_path, align=section, **more)), JudgedData(answers=answers))
    assert (hint is None and lines == []) or (len(lines) == 1 and hint in lines[0])


def pair(i: int, ranks=(0, 1), probability=None, better="word " * 4, worse="word " * 4) -> Preference:
    texts = [f"{better}{i}", f"{worse}{i} no"]
    return ranking(i, ranks, texts, probability)


def ranking(i: int, ranks, texts=None, probability=None) -> Preference:
    texts = texts or [f"answer {i} {place}" for place in range(len(ranks))]
    answers = tuple(Completion(text=text) for text in texts)
    prompt = Prompt.from_text(f"question {i}")
    return Preference(id=f"p{i}", prompt=prompt, completions=answers, ranks=ranks, probability=probability)


def thumbs(up: int, down: int) -> list[Rating]:
    return [
        Rating(id=f"r{i}", prompt=Prompt.from_text(f"q {i}"), completion=Completion(text=f"a {i}"), good=i < up)
        for i in range(up + down)
    ]


PAIRS = [pair(i) for i in range(120)]
WITH_TIES = [pair(i, ranks=(0, 0) if i % 4 == 0 else (0, 1)) for i in range(120)]
RANKINGS = [ranking(i, (0, 1, 2, 3)) for i in range(120)]
ONLINE = {"steps": 2, "prompts": 4, "group": 2, "sampler": {"max_new_tokens": 8}}


SHAPES: dict[str, tuple[list[Any], dict[str, Any], list[str]]] = {
    "pairs": (PAIRS, {"method": "dpo"}, []),
    "ties": (WITH_TIES, {"method": "dpo"}, ["30 of 120 preferences are ties, from which dpo learns nothing"]),
    "rankings": (
        RANKINGS,
        {"method": "dpo"},
        ["rank 4 answers; align.method plackett_luce learns from their whole order"],
    ),
    "rankings for plackett_luce": (RANKINGS, {"method": "plackett_luce"}, []),
    "rankings with ties above": (
        [ranking(i, (0, 0, 1, 2)) for i in range(120)],
        {"method": "plackett_luce"},
        [],
    ),
    "the same for dpo": (
        [ranking(i, (0, 0, 1, 2)) for i in range(120)],
        {"method": "dpo"},
        ["rank 4 answers; align.method plackett_luce learns from their whole order"],
    ),
    "pairs for plackett_luce": (
        PAIRS,
        {"method": "plackett_luce"},
        ["preferences rank 2 answers, for which plackett_luce is dpo"],
    ),
    "soft labels": (
        [pair(i, probability=0.8) for i in range(120)],
        {"method": "simpo"},
        [
            "120 of 120 preferences carry soft labels, which simpo has no formula for, so the run will stop; use "
            "align.method dpo, ipo, sppo"
        ],
    ),
    "soft labels for sppo": ([pair(i, probability=0.8) for i in range(120)], {"method": "sppo"}, []),
    "few pairs": (PAIRS[:40], {"method": "dpo"}, ["40 preferences are few, and dpo pushes certain labels without end"]),
    "few pairs for ipo": (PAIRS[:40], {"method": "ipo"}, []),
    "longer answers win": (
        [pair(i, better="word " * 9) for i in range(120)],
        {"method": "dpo"},
        [
            "in 100% of pairs the better answer is the longer one, and dpo learns length with the rest, because it "
            "sums over tokens; to compare per token, set align.normalise: true"
        ],
    ),
    "longer answers win, per token": (
        [pair(i, better="word " * 9) for i in range(120)],
        {"method": "dpo", "normalise": True, "beta": 5.0},
        [],
    ),
    "longer answers win, for exo": (
        [pair(i, better="word " * 9) for i in range(120)],
        {"method": "exo"},
        ["to compare per token, align.method dpo with normalise: true, or simpo"],
    ),
    "thumbs": (thumbs(60, 60), {"method": "kto"}, []),
    "more thumbs up": (
        thumbs(80, 20),
        {"method": "kto"},
        ["80 thumbs up and 20 down", "set align.weight_undesirable: 4"],
    ),
    "more thumbs down": (thumbs(20, 80), {"method": "kto"}, ["set align.weight_desirable: 4"]),
    "only thumbs up": (thumbs(50, 0), {"method": "kto"}, ["all 50 thumbs are up", "sft imitates the liked answers"]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_plan_reads_the_data(tmp_path: Path, shape: str):
    """Every hint is about these data, and data that fit get none."""
    records, section, hints = SHAPES[shape]
    write_records(tmp_path / "judged.jsonl", records)
    name = "ratings" if isinstance(records[0], Rating) else "preferences"
    recipe = toy_recipe(
        tmp_path, align=section | {"adapter": LORA}, sample=None, label=None, reward=None, rewards=None,
        data={name: "judged.jsonl", "heldout": "data/heldout.jsonl", "demonstrations": "data/demonstrations.jsonl"},
    )  # fmt: skip
    lines = " | ".join(hints_of(recipe))
    assert all(hint in lines for hint in hints) and bool(lines) == bool(hints), lines


def hints_of(recipe: Path) -> list[str]:
    config = load_recipe(recipe)
    return better_fit(config, judged_data(Sizing(config=config, recipe=recipe, shape={})))


def test_the_plan_reads_the_data_of_a_reward_model(tmp_path: Path):
    write_records(tmp_path / "judged.jsonl", WITH_TIES[:60])
    more = {"data": {"preferences": "judged.jsonl"}, "sample": None, "label": None, "sft": None, "evaluate": None}
    lines = hints_of(toy_recipe(tmp_path, align={"method": "rloo", "adapter": LORA} | ONLINE, **more))
    assert len(lines) == 2 and "15 of 60 preferences are ties, which reward.loss bradley_terry leaves out" in lines[0]
    assert "60 preferences are few for a reward model" in lines[1]


@pytest.mark.parametrize("constraint", [None, {"reward": "harm", "limit": 0.1}])
def test_a_cost_with_a_fixed_weight_gets_a_limit(tmp_path: Path, constraint):
    section = {"method": "rloo", "adapter": LORA, "constraint": constraint} | ONLINE
    harm = REWARD if constraint else REWARD | {"weight": -2.0}
    lines = hints_of(toy_recipe(tmp_path, align=section, rewards={"good": REWARD, "harm": harm}, reward=None))
    assert (lines == []) if constraint else "rewards.harm has the fixed weight -2" in lines[0]


@pytest.mark.parametrize(
    ("rewards", "limit", "message"),
    [
        ({"a": REWARD, "harm": REWARD}, "cost", r"align\.constraint\.reward is 'cost' and rewards has a, harm"),
        ({"harm": REWARD}, "harm", "the only reward: nothing is left to maximise"),
        (
            {"a": REWARD, "harm": REWARD | {"weight": -2.0}},
            "harm",
            r"rewards\.harm\.weight is -2 and align",
        ),
    ],
)
def test_a_limit_needs_a_cost_beside_a_reward(tmp_path: Path, rewards, limit, message):
    section = {
        "method": "rloo", "adapter": LORA, "steps": 2, "prompts": 4, "sampler": {"max_new_tokens": 8},
        "constraint": {"reward": limit, "limit": 0.1},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        load_recipe(toy_recipe(tmp_path, align=section, rewards=rewards, reward=None))


@pytest.mark.parametrize(
    ("section", "hint"),
    [
        ({"method": "dpo", "normalise": True}, "align.normalise is true and align.beta 0.1"),
        ({"method": "dpo", "normalise": True, "beta": 5.0}, None),
        ({"method": "dpo"}, None),
        ({"method": "rloo", "steps": 2}, "align.steps is 2 and alarms.baseline 5: no step is left to compare"),
        ({"method": "rloo", "steps": 6}, None),
    ],
)
def test_the_plan_warns_of_settings_that_are_probably_mistakes(tmp_path: Path, section, hint):
    more = {"sampler": {"max_new_tokens": 8}} if section["method"] == "rloo" else {}
    lines = warnings(load_recipe(toy_recipe(tmp_path, align=section | more, evaluate=None)))
    assert (hint is None and lines == []) or (len(lines) == 1 and hint in lines[0])


def test_the_plan_counts_the_edited_answers_of_the_evaluation(tmp_path: Path):
    """Ten held-out prompts, two models, seven edits."""
    recipe = toy_recipe(tmp_path)
    costs = []
    for setting in ("evaluate.gain=true", "evaluate.gain=false"):
        config = fill_rates(load_recipe(recipe, [setting]))
        costs.append(evaluate_cost(Sizing(config=config, recipe=recipe, shape=model_shape(config.model))))
    counted, without = costs
    assert counted.what == f"{without.what}, up to 140 edited ones scored again (evaluate.gain)"
    assert counted.flops > without.flops
