"""Predictions for named machines, against numbers calculated by hand; nothing here ran on an accelerator."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trimtab.cli.app import app
from trimtab.errors import ConfigError
from trimtab.models import ModelConfig
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.costs import Cost
from trimtab.pipeline.machines import MACHINES, Machine, decoding_seconds, fitting, machine_named, stage_seconds
from trimtab.pipeline.memory import model_shape
from trimtab.pipeline.plan import make_plan
from trimtab.testing import toy_recipe

ROUND = Machine(what="round numbers", memory_gb=10, bandwidth=1e12, float32=1e13, bfloat16=1e14)
SHAPE = {"parameters": 10**9, "active": 10**9, "layers": 10, "keys": 256}
NARROW = ModelConfig(name="x/y", precision="bfloat16", frozen_precision="bfloat16")


def test_a_step_of_decoding_waits_for_launches_bytes_or_operations():
    # 10 layers · 0.8 ms = 8 ms. 2 bytes · (10⁹ weights + 1 answer · 70 tokens · 10 layers · 2 · 256) at half of
    # 10¹² B/s are 4.0014 ms, so launching decides.
    assert decoding_seconds(ROUND, NARROW, SHAPE, drawn=35, together=1) == pytest.approx(35 * 8e-3)
    # Of 100 billion weights, 400 ms of bytes.
    large = SHAPE | {"parameters": 10**11}
    assert decoding_seconds(ROUND, NARROW, large, drawn=1, together=1) == pytest.approx(0.4 + 1.43e-6, rel=1e-6)
    # 1,000 answers: 2 · 10⁹ · 1,000 operations at 30 % of 10¹⁴ are 66.7 ms; the cache of 0.717 GB makes 5.4 ms of
    # bytes.
    assert decoding_seconds(ROUND, NARROW, SHAPE, drawn=1000, together=1000) == pytest.approx(2e12 / 3e13)


def test_eight_devices_divide_answers_and_work_but_not_the_steps_of_an_answer():
    cost = Cost(what="", flops=6e15, drawn=64 * 35, answers=64, slots=64)
    eight = Machine(what="", memory_gb=10, bandwidth=1e12, float32=1e13, bfloat16=1e14, devices=8)
    rest = 6e15 - 2e9 * 64 * 35
    alone = stage_seconds(ROUND, NARROW, SHAPE, cost, divided=True)
    assert alone == pytest.approx((35 * 8e-3, rest / 3e13))
    assert stage_seconds(eight, NARROW, SHAPE, cost, divided=True) == pytest.approx((35 * 8e-3, rest / 3e13 / 8))
    assert stage_seconds(eight, NARROW, SHAPE, cost, divided=False) == pytest.approx(alone)
    many = Cost(what="", flops=6e15, drawn=640 * 35, answers=640, slots=64)  # ten rounds of slots: more devices help
    assert stage_seconds(eight, NARROW, SHAPE, many, divided=True)[0] == pytest.approx(10 / 8 * 35 * 8e-3)


def test_precision_decides_the_peak_of_an_accelerator_and_not_that_of_a_processor():
    exact = ModelConfig(name="x/y", precision="float32")
    assert (ROUND.rate(NARROW), ROUND.rate(exact)) == (3e13, 3e12)
    assert MACHINES["cpu"].rate(ModelConfig(name="x/y")) == 7e10


SIZES = {  # hidden, inner, layers, heads, key heads, vocabulary, tied: Qwen2.5's
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
}


def _recipe(folder: Path, size: str, **settings: object) -> tuple[Path, list[str]]:
    hidden, inner, layers, heads, key_heads, vocabulary, tied = SIZES[size]
    model = folder / size
    model.mkdir()
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": key_heads,
        "vocab_size": vocabulary, "tie_word_embeddings": tied,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    recipe = toy_recipe(folder)
    return recipe, [f"model.name={model}", "model.context=512", *(f"{key}={value}" for key, value in settings.items())]


def test_weights_of_a_7b_model_by_hand(tmp_path):
    """28 layers of 2·H² + 2·H·512 + 3·H·I, and two tables of V·H: 7.615 billion, of which 2 bytes each are 15.2 GB."""
    recipe, sets = _recipe(tmp_path, "7B", **{"model.frozen_precision": "bfloat16"})
    parameters = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944) + 2 * 152064 * 3584
    config = load_recipe(recipe, sets)
    assert model_shape(config.model)["parameters"] == parameters == 7_615_283_200
    narrow, wide = (
        fitting(load_recipe(recipe, [*sets, f"model.frozen_precision={p}"]), MACHINES["h200"]).gb["sft"]
        for p in ("bfloat16", "float32")
    )
    assert wide - narrow == pytest.approx(2 * parameters / 1e9)


@pytest.mark.parametrize(
    ("size", "machine", "full", "fits"),
    [
        ("0.5B", "24gb", False, True),
        ("1.5B", "24gb", False, True),
        ("7B", "24gb", False, False),
        ("7B", "80gb", False, True),
        ("1.5B", "80gb", True, True),
        ("7B", "80gb", True, False),
    ],
)
def test_what_fits(tmp_path, size: str, machine: str, full: bool, fits: bool):
    kind = "{kind: full}" if full else "{kind: lora, rank: 16}"
    settings = {
        "model.frozen_precision": "bfloat16",
        "model.gradient_checkpointing": "true",
        "sft.adapter": kind,
        "reward.adapter": "{kind: lora, rank: 16}",
        "align.adapter": kind,
        "align.prompts": 64,
        "align.sampler.slots": 64,
        "sample.sampler.slots": 64,
        "evaluate.sampler.slots": 64,
    }
    recipe, sets = _recipe(tmp_path, size, **settings)
    result = fitting(load_recipe(recipe, sets), MACHINES[machine])
    assert (not result.lines) == fits, result
    if not fits:
        assert "sampler.slots" in " ".join(result.lines) or "adapter.kind: lora" in " ".join(result.lines)


def test_all_weights_of_a_7b_model_fit_eight_devices_when_they_are_sharded(tmp_path):
    full = {f"{stage}.adapter": "{kind: full}" for stage in ("sft", "align")}
    settings = full | {
        "model.frozen_precision": "bfloat16",
        "model.precision": "bfloat16",
        "model.gradient_checkpointing": "true",
        "reward.adapter": "{kind: lora, rank: 16}",
        "align.prompts": 64,
        "align.sampler.slots": 64,
        "scale.kind": "torchrun",
        "scale.processes": 8,
    }
    recipe, sets = _recipe(tmp_path, "7B", **settings)
    replicated, sharded = (
        fitting(load_recipe(recipe, [*sets, f"scale.shard={shard}"]), MACHINES["h200x8"]) for shard in ("false", "true")
    )
    assert round(replicated.gb["align"]) == 264 and "try scale.shard: true" in replicated.lines[0]
    assert round(sharded.gb["align"]) == 77 and not sharded.lines


def test_a_plan_for_a_machine_says_that_it_is_a_prediction(tmp_path):
    recipe = toy_recipe(tmp_path)
    made = make_plan(load_recipe(recipe), recipe, tmp_path / "runs", machine="h200")
    assert "which nobody has measured" in made["estimate"] and "it fits" in made["estimate"]
    align = next(row for row in made["stages"] if row["stage"] == "align")
    assert 0 < align["drawing_seconds"] < align["seconds"]
    shown = CliRunner().invoke(app, ["plan", str(recipe), "--machine", "24gb", "--runs", str(tmp_path / "runs")])
    assert shown.exit_code == 0 and "Prediction for 24gb" in shown.stdout and "drawing" in shown.stdout


def test_an_unknown_machine_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"--machine 'h300' is not known; use cpu, 24gb, 80gb, h200, h200x8"):
        machine_named("h300")
