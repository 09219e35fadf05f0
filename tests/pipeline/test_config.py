"""Recipes: what is read, what is refused, and how it is said."""

from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import ValidationError

from trimtab.config import _models, load_yaml, parse_config
from trimtab.errors import ConfigError
from trimtab.pipeline.config import RunConfig, dump_config, load_recipe
from trimtab.pipeline.plan import make_plan
from trimtab.pipeline.recipe_checks import check_recipe
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
        ({"reward": None}, r"needs reward, or rewards that are not a model: nothing says which answers are good"),
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
        ({"alarms": {"baseline": 100}}, r"alarms\.baseline is 100 of \d+ steps: no step is left"),
        (
            {"align": {"method": "hinge"}, "sample.answers": 2, "label.aggregate": {"method": "davidson"}},
            r"label\.aggregate\.method is 'davidson' and sample\.answers 2, which gives soft labels, and align\.method "
            r"'hinge' has no formula for them; set label\.aggregate\.labels: hard, or use dpo",
        ),
        (
            {"align": {"method": "orpo"}, "sample.answers": 2, "label.source": "ai"},
            "label.source is 'ai', whose judges give probabilities and sample.answers 2",
        ),
        (
            {"align": {"method": "dpo", "nll": 1.0}, "sample.answers": 2, "label.aggregate": {"smoothing": 1.0}},
            r"smoothing is 1 and sample\.answers 2.*align\.nll is for certain ones",
        ),
        (
            {"sample.answers": 2, "reward.loss": "davidson", "label.aggregate": {"keep_tied": True}},
            r"reward\.loss 'davidson' learns from ties, and no preference of two answers will be one",
        ),
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
    "changes",
    [
        {"align": {"method": "hinge"}, "label.aggregate": {"method": "davidson", "labels": "hard"}},
        {"align": {"method": "dpo"}, "label.aggregate": {"method": "davidson"}},
        {"align": {"method": "hinge"}},  # the votes of three people may all agree
        {"reward.loss": "davidson", "label.aggregate": {"keep_tied": True, "labels": "hard"}},
    ],
)
def test_labels_that_a_method_can_take(changes: dict):
    values = yaml.safe_load(yaml.safe_dump(TOY)) | ({"align": changes["align"]} if "align" in changes else {})
    values["sample"]["answers"] = 2
    for path, value in changes.items():
        if "." in path:
            section, key = path.split(".")
            values[section][key] = value
    check_recipe(RunConfig.model_validate(values))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"reward": {"tie": 3.0}}, "tie is 3 and loss 'bradley_terry', which knows no ties"),
        ({"reward": {"loss": "plackett_luce", "tie": 3.0}}, "loss 'plackett_luce', which knows no ties"),
        ({"label": {"aggregate": {"habits": ["skill"]}}}, "method 'majority', which does not use it"),
        ({"label": {"aggregate": {"method": "dawid_skene", "habits": []}}}, "'dawid_skene', which does not use it"),
        ({"label": {"aggregate": {"labels": "hard", "smoothing": 1.0}}}, "smoothing changes soft labels only"),
    ],
)
def test_settings_without_effect_are_refused(section: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate({"name": "toy"} | section)


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


NO_SETTING = [
    *((f"{where}.{key}", value) for where in ("sft.adapter", "align.adapter", "reward.adapter") for key, value in (
        ("alpha", 0), ("alpha", -8), ("rank", 0), ("rank", -1), ("dropout", 1.5), ("dropout", 1), ("dropout", -0.1),
        ("top_layers", 0), ("top_layers", -2),
    )),
    *((f"{where}.betas", value) for where in ("sft.optimizer", "align.policy", "align.critic") for value in (
        [0.9, 1.0], [1.0, 0.9], [-0.1, 0.9], [0.9], [0.9, 0.99, 0.999], [2, 3],
    )),
    ("model.context", -5), ("model.context", 0), ("model.context", 1), ("model.name", ""),
    *((key, value) for value in (1e300, -1e300, 1e31, 1e-300) for key in (
        "align.missing_eos.value", "rewards.f.weight", "rewards.f.mean", "rewards.f.std", "rewards.f.clip",
        "align.score_clip", "align.policy.lr", "align.kl.coefficient", "sft.optimizer.weight_decay", "reward.centring",
        "label.simulation.length_bias", "align.sampler.temperature",
    )),
    *((key, value) for value in (True, False) for key in (
        "seed", "model.context", "sft.adapter.rank", "sft.optimizer.lr", "align.steps", "rewards.f.weight", "rounds",
    )),
    ("sft.optimizer.betas", [True, 0.9]), ("threads", 10**9), ("sft.epochs", 1e14), ("reward.epochs", 1e7),
    ("seed", 10**30), ("align.steps", 10**30), ("label.simulation.seed", 10**400),
]  # fmt: skip


def test_seeds_that_are_only_hashed_may_be_negative(tmp_path: Path):
    recipe = toy_recipe(tmp_path)
    assert load_recipe(recipe, ["label.simulation.seed=-1"]).label.simulation.seed == -1


@pytest.mark.parametrize(("key", "value"), NO_SETTING, ids=lambda x: str(x)[:40])
def test_numbers_that_cannot_be_meant(key: str, value):
    values = yaml.safe_load(yaml.safe_dump(TOY))
    values["rewards"] = {"f": {"kind": "function", "path": "json.dumps"}}
    *parents, last = key.split(".")
    section = values
    for name in parents:
        section = section.setdefault(name, {})
    section[last] = value
    with pytest.raises(ConfigError) as caught:
        parse_config(RunConfig, values, where="r.yaml")
    assert last in str(caught.value)
    assert len(str(caught.value)) < 500


def test_every_number_of_a_recipe_is_bounded():
    """No setting takes a number that float32 cannot hold, wherever it is in the tree."""
    kinds, waiting = set(), [RunConfig]
    while waiting:
        kind = waiting.pop()
        if kind not in kinds:
            kinds.add(kind)
            waiting += [inner for field in kind.model_fields.values() for inner in _models(field.annotation)]
    assert len(kinds) > 30
    free = []
    for kind in kinds:
        for name, field in kind.model_fields.items():
            if float in (field.annotation, *get_args(field.annotation)):
                try:
                    kind.model_validate({name: 1e300})
                except ValidationError as error:
                    if any(e["loc"][:1] == (name,) or f"{name} is 1e+300" in e["msg"] for e in error.errors()):
                        continue
                    required = [n for n, f in kind.model_fields.items() if f.is_required()]
                    needed = {n: "http://x" if n == "url" else "x" for n in required}
                    needed |= {n: 0.5 for n in required if kind.model_fields[n].annotation is float}
                    with pytest.raises(ValidationError, match=rf"{name}"):
                        kind.model_validate(needed | {name: 1e300})
                    continue
                free.append(f"{kind.__name__}.{name}")
    assert free == []


@pytest.mark.parametrize(
    "text",
    [
        "name: a\nname: b\n",
        "name: a\nsft:\n  epochs: 1\n  epochs: 2\n",
        "name: a\nsft:\n  optimizer:\n    lr: 1\n    lr: 2\n",
        "name: a\nsft: {epochs: 1, epochs: 2}\n",
        'name: a\n"sft": {}\nsft: {}\n',
        "name: a\nlabel:\n  judges:\n    j: {kind: local, kind: local}\n",
        "name: a\nlist:\n  - {a: 1, a: 1}\n",
        '{"name": "a", "data": {"limit": 1, "limit": 2}}',
        "name: a\nbase: &b {x: 1, x: 2}\nsft: *b\n",
    ],
)
def test_a_key_given_twice(tmp_path: Path, text: str):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"the key '\w+' is given 2 times; keep one"):
        load_recipe(tmp_path / "r.yaml")


def test_a_key_given_twice_on_the_command_line(tmp_path: Path):
    with pytest.raises(ConfigError, match="is not a YAML value"):
        load_recipe(toy_recipe(tmp_path), ["align.kl={target: 4, target: 5}"])


def test_an_anchor_may_be_overridden(tmp_path: Path):
    assert load_yaml("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")["b"] == {"x": 3, "y": 2}
