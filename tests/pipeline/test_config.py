"""Recipes: what is read, what is refused, and how it is said."""

from pathlib import Path

import pytest
import yaml

from trimtab.errors import ConfigError
from trimtab.pipeline.config import RunConfig, check_recipe, dump_config, load_recipe
from trimtab.pipeline.plan import make_plan
from trimtab.pipeline.run import run_recipe
from trimtab.testing import TOY, toy_recipe

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_are_valid(path: Path):
    assert load_recipe(path).name


def test_resolved_recipe_reads_back_as_itself(tmp_path: Path):
    config = load_recipe(toy_recipe(tmp_path))
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_recipe(tmp_path / "again.yaml") == config


def test_overrides(tmp_path: Path):
    recipe = toy_recipe(tmp_path)
    config = load_recipe(
        recipe,
        ["align.steps=3", "sft.optimizer.lr=1e-3", "evaluate=null", "model.system=Be kind.", "align.kl.target=4"],
    )
    assert config.align is not None and config.sft is not None
    assert (config.align.steps, config.sft.optimizer.lr, config.evaluate) == (3, 1e-3, None)
    assert (config.model.system, config.align.kl.target) == ("Be kind.", 4.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("align.step=3", r"align\.step: unknown key; did you mean 'steps'\?"),
        ("aline.steps=3", r"aline: unknown key; did you mean 'align'\?"),
        ("align.policy.lr=fast", r"align\.policy\.lr: 'fast' is not accepted"),
        ("align.steps=0", r"align\.steps: 0 is not accepted"),
        ("name=../up", r"name: '\.\./up' is not accepted"),
        ("label.source=people", r"label\.source: 'people' is not accepted"),
        ("align.steps", r"--set 'align\.steps': expected key\.path=value"),
        ("=3", r"expected key\.path=value"),
        ("seed.x=3", r"'seed' is a value, not a section"),
        ("align.steps=[", r"'\[' is not a YAML value"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_recipe(toy_recipe(tmp_path), [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n", "a recipe is a mapping of sections, got list"),
        (b"a: [", "not valid YAML"),
        (b"\xff\xfe", "not valid"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_missing_recipe(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.demonstrations": None}, r"sft needs data\.demonstrations"),
        ({"sample": None}, r"label needs sample"),
        ({"data.prompts": None}, r"sample needs data\.prompts"),
        ({"gold": None}, r"label\.source is 'simulated' and needs gold"),
        ({"data.preferences": "p.jsonl"}, r"label and data\.preferences both say where preferences come from"),
        ({"label": None}, r"reward needs preferences"),
        ({"reward": None}, r"align needs reward"),
        ({"sft": None, "sample": None, "label": None, "reward": None, "align": None, "data": {}}, r"evaluate needs"),
        ({"align.sampler.top_p": 0.9}, r"align: sampler\.top_p is 0\.9"),
        ({"align.sampler.max_new_tokens": 64}, r"leaves no room for a prompt in model\.context \(64\)"),
        ({"align.critic_init": "reward_model", "reward.adapter.rank": 2}, r"same adapter settings"),
        ({"align.critic_init": "reward_model", "reward.model": {"name": "x"}}, r"no reward\.model"),
        (
            {"rewards": {"f": {"kind": "function", "path": "a.b", "weight": 0}, "m": {"kind": "model", "weight": 0}}},
            "the weight of all rewards is 0: there is nothing to maximise",
        ),
        ({"align": {"method": "dpo", "smoothing": "robust"}}, "'robust' and align.label_smoothing 0"),
        ({"align.kl": {"estimator": "k3"}}, "align: kl.estimator is 'k3' and kl.place is 'reward'"),
        ({"align.missing_eos": {"mode": "subtract", "value": 0}}, "align: missing_eos.mode is 'subtract'"),
    ],
)
def test_contradictions_are_refused_before_anything_runs(changes: dict, message: str):
    values = yaml.safe_load(yaml.safe_dump(TOY))
    for path, value in changes.items():
        *parents, last = path.split(".")
        section = values
        for name in parents:
            section = section[name]
        section[last] = value
    with pytest.raises(ConfigError, match=message):
        check_recipe(RunConfig.model_validate(values))


@pytest.mark.parametrize(
    ("rewards", "given", "limit"),
    [
        (None, {}, 5.0),
        ({"m": {"kind": "model"}}, {}, 5.0),
        ({"m": {"kind": "model", "weight": 2.0}}, {}, 5.0),
        ({"f": {"kind": "function", "path": "a.b"}}, {}, None),
        ({"f": {"kind": "function", "path": "a.b"}, "m": {"kind": "model"}}, {}, None),
        (None, {"score_clip": None}, None),
        (None, {"score_clip": 2.0}, 2.0),
        ({"f": {"kind": "function", "path": "a.b"}}, {"score_clip": 2.0}, 2.0),
    ],
)
def test_only_a_reward_model_alone_is_limited_unasked(tmp_path: Path, rewards, given, limit):
    config = load_recipe(toy_recipe(tmp_path, rewards=rewards, align=TOY["align"] | given))
    assert config.align.score_clip == limit
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_recipe(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("key", ["gold", "rewards.f.path"])
def test_functions_that_cannot_be_imported_are_found_before_anything_runs(tmp_path: Path, key: str):
    rewards = {"f": {"kind": "function", "path": "json.dumps"}}
    recipe = toy_recipe(tmp_path, rewards=rewards)
    config = load_recipe(recipe, [f"{key}=no_such_module.f"])  # a copied run can be read without its functions
    for act in (make_plan, run_recipe):
        with pytest.raises(ConfigError, match=rf"{key}: 'no_such_module\.f': module 'no_such_module' cannot be"):
            act(config, recipe, runs=tmp_path / "runs")
    assert not (tmp_path / "runs" / "toy" / "stages").exists()
