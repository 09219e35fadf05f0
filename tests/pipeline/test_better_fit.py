"""The table for choosing has every method, the command prints it, and the plan names what uses more of the data."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trimtab.cli.app import app
from trimtab.errors import ConfigError
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.costs import Sizing, evaluate_cost
from trimtab.pipeline.memory import model_shape
from trimtab.pipeline.plan import better_fit, warnings
from trimtab.pipeline.rates import fill_rates
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
    lines = better_fit(load_recipe(toy_recipe(tmp_path, align=section, **more)), answers)
    assert (hint is None and lines == []) or (len(lines) == 1 and hint in lines[0])


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
