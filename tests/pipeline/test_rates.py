"""Rates that a recipe leaves out are in the resolved recipe; rates far outside are warned of."""

from pathlib import Path

import pytest

from trimtab.pipeline.config import RunConfig, dump_config, load_recipe
from trimtab.pipeline.plan import make_plan
from trimtab.pipeline.rates import fill_rates, rate_warnings
from trimtab.testing import TOY, save_model, tiny_model, toy_recipe
from trimtab.trainers.defaults import RATES

UNSET = ["sft.optimizer.lr=null", "reward.optimizer.lr=null", "align.policy.lr=null", "align.critic.lr=null"]


def rates(config: RunConfig) -> list[float | None]:
    return [config.sft.optimizer.lr, config.reward.optimizer.lr, config.align.policy.lr, config.align.critic.lr]


def test_rates_left_out_are_filled_in_and_kept(tmp_path: Path):
    recipe = toy_recipe(tmp_path)
    assert fill_rates(load_recipe(recipe)) == load_recipe(recipe)  # the toy recipe names all of its rates
    open_config = load_recipe(recipe, UNSET)
    assert rates(open_config) == [None] * 4
    filled = fill_rates(open_config)
    assert rates(filled) == [RATES[stage]["lora"] for stage in ("sft", "reward", "policy", "critic")]
    (tmp_path / "again.yaml").write_text(dump_config(filled))
    assert fill_rates(load_recipe(tmp_path / "again.yaml")) == filled


def test_by_what_is_trained_and_by_the_stages_own_model(tmp_path: Path):
    wide = save_model(tmp_path / "wide", tiny_model(width=1152, layers=1))
    more = ["sft.adapter.kind=full", f"reward.model.name={wide}", "align.adapter.kind=full"]
    filled = fill_rates(load_recipe(toy_recipe(tmp_path), [*UNSET, *more]))
    assert rates(filled) == pytest.approx(
        [RATES["sft"]["full"], RATES["reward"]["lora"] / 2, RATES["policy"]["full"], RATES["critic"]["full"]]
    )
    head = fill_rates(load_recipe(toy_recipe(tmp_path), [*UNSET, *more, "align.shared_critic=true"]))
    assert head.align.critic.lr == RATES["critic"]["lora"]  # a head alone


def test_an_offline_method_has_one_too(tmp_path: Path):
    align = {"method": "dpo", "adapter": TOY["align"]["adapter"]}
    filled = fill_rates(load_recipe(toy_recipe(tmp_path, align=align)))
    assert filled.align.optimizer.lr == RATES["preference"]["lora"]


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        (
            ["sft.optimizer.lr=3e-3"],
            "sft.optimizer.lr is 0.003, 10 times the default of 0.0003; training may fall apart",
        ),
        (["sft.adapter.kind=full", "sft.optimizer.lr=3e-4"], "0.0003, 10 times the default of 3e-05"),
        (["align.critic.lr=1e-6"], "align.critic.lr is 1e-06, and the default is 0.0004; little will be learnt"),
        (["reward.optimizer.lr=6e-4", "reward.optimizer.warmup=0"], "reward.optimizer.warmup is 0 and its lr 0.0006"),
        (["sft.epochs=6"], "sft.epochs is 6; more than 5 learn the data by heart"),
        (["align.kl.stop=0.3"], "align.kl.stop is 0.3 nats per token and will hardly stop anything"),
        (["align.prompts=8"], "align.guard judges no step: a step has 8 answers and 16 are needed"),
    ],
)
def test_settings_far_outside_are_warned_of(tmp_path: Path, settings, warning):
    usual = [*UNSET, "sft.epochs=1", "reward.epochs=1", "align.prompts=16"]
    recipe = toy_recipe(tmp_path)
    assert rate_warnings(fill_rates(load_recipe(recipe, usual))) == []
    config = load_recipe(recipe, [*usual, *settings])
    [line] = rate_warnings(fill_rates(config))
    assert warning in line
    assert line in make_plan(config, recipe, tmp_path / "runs")["warnings"]


def test_a_plan_shows_every_rate(tmp_path: Path):
    recipe = toy_recipe(tmp_path)
    lines = make_plan(load_recipe(recipe, ["sft.optimizer.lr=null"]), recipe, tmp_path / "runs")["objective"]
    assert "sft.optimizer: AdamW, learning rate 0.0003, linear after 10% warm-up" in lines
    assert "align.policy: AdamW, learning rate 0.002, constant after 10% warm-up" in lines
