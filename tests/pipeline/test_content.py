"""What a recipe names by path or dotted name enters the fingerprints by its content: a change runs the stages again."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from trimtab import testing
from trimtab.errors import ModelError
from trimtab.models import ModelConfig, model_identity
from trimtab.pipeline.config import RunConfig, load_recipe
from trimtab.pipeline.run import STAGES, plan_stages
from trimtab.storage import RunFolder

CONSTITUTION = """name: ours
principles:
  - id: kind
    text: The answer is kind.
    critique: Point out what is unkind.
    revision: Rewrite the answer kindly.
    twin: A joke among friends.
    tags: [harmless]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything a recipe can name, beside it."""
    testing.toy_recipe(tmp_path)
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "other")})
    )
    (tmp_path / "template.jinja").write_text(testing.TEMPLATE)
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION)
    (tmp_path / "my_rewards.py").write_text(
        "from my_words import WORDS\n\n\ndef score(rollouts): ...\n\n\ndef gold(p, c): ...\n"
    )
    (tmp_path / "my_words.py").write_text("WORDS = 1\n")
    (tmp_path / "people.jsonl").write_text("{}\n")
    (tmp_path / "redteam.jsonl").write_text('{"prompt": "bad"}\n')
    (tmp_path / "steps.jsonl").write_text('{"prompt": "p", "completions": ["a"], "labels": [true]}\n')
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    (tmp_path / "ratings.jsonl").write_text('{"prompt": "p", "completion": "a", "label": true}\n')
    (tmp_path / "capability.jsonl").write_text(
        '{"text": "A passage of neutral prose."}\n\x1d\n'
    )  # a blank line, before and after
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_rewards", "my_words"):
        sys.modules.pop(name, None)


def fingerprints(folder: Path, **sections: Any) -> dict[str, str]:
    recipe = testing.toy_recipe(folder, **sections)
    run = RunFolder(folder / "runs", create=False)
    return {item.stage.name: item.fingerprint for item in plan_stages(load_recipe(recipe), recipe, run)}


def rewrite(path: Path) -> None:
    """Change a file's content and neither its size nor its times."""
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-2] = raw[-2] ^ 1
    path.write_bytes(bytes(raw))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


MODEL = testing.TOY["model"]
REWARD = testing.TOY["reward"]
LABEL = {"source": "ai"}
PROCESS = {"process": {"rollouts": {"verifier": "my_rewards.score"}}}
REVISE = {"data": testing.TOY["data"] | {"redteam": "redteam.jsonl"}, "revise": {}}
NAMED: dict[str, tuple[dict[str, Any], str, str]] = {
    "model": ({}, "model/model.safetensors", "sft"),
    "tokenizer": ({}, "model/tokenizer.json", "sft"),
    "generation config": ({}, "model/generation_config.json", "sft"),
    "template": (
        {"model": {"name": "model", "context": 64, "chat_template": "template.jinja"}},
        "template.jinja",
        "sft",
    ),
    "base of an adapter": ({"model": {"name": "adapter", "context": 64}}, "other/model.safetensors", "sft"),
    "reward model": ({"reward": REWARD | {"model": {"name": "other"}}}, "other/model.safetensors", "reward"),
    "template of the reward model": (
        {"reward": REWARD | {"model": {"name": "other", "chat_template": "template.jinja"}}},
        "template.jinja",
        "reward",
    ),
    "judge": (
        {"label": LABEL | {"judges": {"j": {"kind": "local", "model": {"name": "other"}}}}},
        "other/model.safetensors",
        "label",
    ),
    "constitution of the judge": ({"label": LABEL, "constitution": "constitution.yaml"}, "constitution.yaml", "label"),
    "gold": ({"gold": "my_rewards.gold"}, "my_rewards.py", "label"),
    "what gold imports": ({"gold": "my_rewards.gold"}, "my_words.py", "label"),
    "reward function": (
        {"rewards": {"f": {"kind": "function", "path": "my_rewards.score"}, "m": {"kind": "model"}}},
        "my_rewards.py",
        "align",
    ),
    "what a reward function imports": (
        {"rewards": {"f": {"kind": "function", "path": "my_rewards.score"}, "m": {"kind": "model"}}},
        "my_words.py",
        "align",
    ),
    "parts of a cohort's utility": (
        {"label": {"source": "simulated", "simulation": {"parts": "my_rewards.gold"}}},
        "my_words.py",
        "label",
    ),
    "people of a hybrid": (
        {"label": {"source": "hybrid", "people": "people.jsonl"}, "sample": testing.TOY["sample"] | {"answers": 2}},
        "people.jsonl",
        "label",
    ),
    "verifier of rollouts": (PROCESS, "my_words.py", "process"),
    "labels of steps": (
        {"data": testing.TOY["data"] | {"steps": "steps.jsonl"}, "process": {}},
        "steps.jsonl",
        "process",
    ),
    "constitution of the revision": (REVISE | {"constitution": "constitution.yaml"}, "constitution.yaml", "revise"),
    "red-team prompts": (REVISE, "redteam.jsonl", "revise"),
    "judge of the revision": (
        REVISE | {"revise": {"judge": {"kind": "local", "model": {"name": "other"}}}},
        "other/model.safetensors",
        "revise",
    ),
    "judge of the balance": (
        {
            "data": testing.TOY["data"] | {"redteam_heldout": "redteam.jsonl"},
            "balance": {"judge": {"kind": "local", "model": {"name": "other"}}},
        },
        "other/model.safetensors",
        "balance",
    ),
    "capability set": ({"capability": {"file": "capability.jsonl"}}, "capability.jsonl", "sft"),
    "ready preferences": (
        {"data": testing.TOY["data"] | {"preferences": "pairs.jsonl"}, "sample": None, "label": None},
        "pairs.jsonl",
        "preferences",
    ),
    "ratings": (
        {
            "data": testing.TOY["data"] | {"ratings": "ratings.jsonl"},
            **dict.fromkeys(("sample", "label", "reward")),
            "align": {"method": "kto"},
        },
        "ratings.jsonl",
        "align",
    ),
    "prompts kept out": (
        {"data": testing.TOY["data"] | {"redteam_heldout": "redteam.jsonl"}},
        "redteam.jsonl",
        "sample",
    ),
    "conversations of PPO-ptx": (
        {"align": testing.TOY["align"] | {"ptx": {"data": "redteam.jsonl"}}},
        "redteam.jsonl",
        "align",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_change_of_what_a_recipe_names_is_seen(folder: Path, name: str):
    sections, file, first = NAMED[name]
    before = fingerprints(folder, **sections)
    assert fingerprints(folder, **sections) == before
    rewrite(folder / file)
    after = fingerprints(folder, **sections)
    stages = list(before)
    changed = [stage for stage in stages if before[stage] != after[stage]]
    assert changed[0] == first
    assert stages[-1] in changed


NO_CONTENT = {
    *("name", "about", "model.system", "data.format", "sampler.stop", "judge.url", "judge.model", "judge.key_env"),
    *("cohorts.name", "cohorts.weights", "human.project", "human.database", "votes.project", "votes.database"),
    *(
        "judges.url",
        "judges.model",
        "judges.key_env",
        "judge.objectives",
        "label.without",
        "aggregate.criterion",
        "reward.objectives",
        "process.separator",
    ),
    *("rewards.objective", "rewards.steps", "rewards.url", "constraint.reward", "alarms.queue", "ray.address"),
}
"""Settings of text that name nothing whose content a stage reads: they count as they are written, or are collected from
while the stage runs."""

CONTENT = {
    *("model.name", "model.chat_template", "gold", "constitution", "simulation.parts", "rollouts.verifier"),
    *("data.demonstrations", "data.preferences", "data.steps", "data.ratings", "data.prompts", "data.heldout"),
    *("data.redteam", "data.redteam_heldout", "label.judges", "label.people", "rewards", "rewards.path", "ptx.data"),
    "capability.file",
}
"""Settings that name files, folders and functions; each has an entry in :data:`NAMED`, or the toy data in test_run."""


def texts(model: type[BaseModel], section: str = "") -> Iterator[str]:
    """Every setting that may be text, as ``section.name``."""
    for name, field in model.model_fields.items():
        if _holds(field.annotation, str):
            yield f"{section}.{name}".removeprefix(".")
        for inner in _sections(field.annotation):
            yield from texts(inner, name)


def _holds(annotation: Any, kind: type) -> bool:
    if get_origin(annotation) is Literal:
        return False
    return annotation is kind or any(_holds(part, kind) for part in get_args(annotation))


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def test_every_setting_of_text_is_known_to_name_content_or_not():
    assert set(texts(RunConfig)) == NO_CONTENT | CONTENT


def test_a_folder_that_was_only_touched_or_moved_is_the_same_model(folder: Path):
    before = fingerprints(folder)
    for file in (folder / "model").iterdir():
        os.utime(file)
    (folder / "model").rename(folder / "moved")
    moved = {"model": MODEL | {"name": "moved"}}
    shutil.copytree(folder / "moved", folder / "model")
    assert fingerprints(folder, **moved) == before


def test_replies_of_a_judge_are_of_its_template(folder: Path):
    config = ModelConfig(name="hub/model", chat_template=str(folder / "template.jinja"))
    before = model_identity(config)
    rewrite(folder / "template.jinja")
    assert model_identity(config) != before
    assert model_identity(ModelConfig(name="hub/model")) == {"name": "hub/model"}
    with pytest.raises(ModelError, match="neither a file nor a Jinja template"):
        model_identity(ModelConfig(chat_template="nowhere.jinja"))


Change = Callable[[Path], dict[str, Any]]


@pytest.mark.parametrize(
    "section",
    [
        lambda m: {"model": m},
        lambda m: {"reward": REWARD | {"model": m}},
        lambda m: {"label": LABEL | {"judges": {"j": {"kind": "local", "model": m}}}},
    ],
    ids=["model", "reward.model", "label.judges"],
)
@pytest.mark.parametrize("place", ["beside", "home", "here", "absolute"])
def test_models_and_templates_are_found_as_data_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: Callable[[Any], dict[str, Any]], place: str
):
    target, here = tmp_path / "target", tmp_path / "here"
    here.mkdir()
    recipe = testing.toy_recipe(tmp_path / "recipe")
    testing.save_model(target / "m")
    (target / "t.jinja").write_text(testing.TEMPLATE)
    if place == "beside":
        shutil.copytree(target, recipe.parent, dirs_exist_ok=True)
    monkeypatch.chdir(target if place == "here" else here)
    monkeypatch.setenv("HOME", str(target if place == "home" else here))
    prefix = {"beside": "", "home": "~/", "here": "", "absolute": f"{target}/"}[place]
    model = {"name": f"{prefix}m", "context": 64, "chat_template": f"{prefix}t.jinja"}
    config = load_recipe(testing.toy_recipe(tmp_path / "recipe", **section(model)))
    result = config.model
    if config.reward is not None and config.reward.model is not None:
        result = config.reward.model
    if config.label is not None and config.label.judges is not None:
        result = config.label.judges["j"].model  # type: ignore[union-attr]
    assert result is not None and result.chat_template is not None
    expected = recipe.parent if place == "beside" else target
    assert Path(result.name).resolve() == (expected / "m").resolve()
    assert Path(result.chat_template).resolve() == (expected / "t.jinja").resolve()


@pytest.mark.parametrize("name", ["owner/name", "smollm2-135m-instruct"])
def test_other_names_stay(name: str):
    assert ModelConfig(name=name).name == name
    assert ModelConfig(chat_template="{{ messages }}").chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("stage", "optimizer"), [("sft", "optimizer"), ("reward", "optimizer"), ("align", "policy"), ("align", "critic")]
)
def test_a_recipe_without_a_precision_of_moments_keeps_its_fingerprint(tmp_path: Path, stage: str, optimizer: str):
    """What enters it are the settings of the time before there was ``state``."""
    recipe = testing.toy_recipe(tmp_path)
    settings = next(one.settings for one in STAGES if one.name == stage)

    def entered(*overrides: str) -> dict[str, Any]:
        return settings(load_recipe(recipe, list(overrides)))[stage]

    before = ["lr", "schedule", "warmup", "weight_decay", "betas", "max_grad_norm"]
    assert sorted(entered()[optimizer]) == sorted(before)
    assert entered(f"{stage}.{optimizer}.state=32bit") == entered()
    eight = entered(f"{stage}.{optimizer}.state=8bit")
    assert eight == entered() | {optimizer: entered()[optimizer] | {"state": "8bit"}}
