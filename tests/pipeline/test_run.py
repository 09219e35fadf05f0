"""Whole runs of the toy recipe: what runs, what is skipped, what is set aside and taken back."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trimtab.errors import ConfigError, DataError, Interrupted, ModelError, StorageError
from trimtab.pipeline import run as pipeline
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.run import plan_stages, run_recipe
from trimtab.records import Comparison, Judgement, Preference, Rollout, read_records
from trimtab.storage import MetricsLog, RunFolder, read_metrics
from trimtab.testing import sentences, toy_recipe

from .console import Remembering

STAGES = ["sft", "sample", "label", "preferences", "reward", "align", "evaluate", "report"]


class Listening(Remembering):
    """Tells the stages apart."""

    def stages(self, about: str) -> list[str]:
        """Stages of which it was said."""
        return [line.split("] ")[1].split(":")[0] for line in self.lines if line.startswith("[") and about in line]


def go(recipe: Path, *overrides: str, until: str | None = None) -> Listening:
    ui = Listening()
    run_recipe(load_recipe(recipe, list(overrides)), recipe, runs=recipe.parent / "runs", until=until, ui=ui)
    return ui


def states(recipe: Path, *overrides: str) -> dict[str, str]:
    config = load_recipe(recipe, list(overrides))
    run = RunFolder(recipe.parent / "runs" / config.name)
    return {p.stage.name: p.state for p in plan_stages(config, recipe, run)}


def weights(recipe: Path) -> dict[str, str]:
    """SHA-256 of what each training stage made."""
    files = sorted((recipe.parent / "runs" / "toy" / "stages").glob("*/*.safetensors"))
    return {f"{f.parent.name}/{f.name}": hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Listening]:
    recipe = toy_recipe(tmp_path_factory.mktemp("finished"))
    return recipe, go(recipe)


@pytest.fixture
def finished(finished_once: tuple[Path, Listening], tmp_path: Path) -> Path:
    """A finished run to do things to. Its model stays where it was, so that its fingerprint stays."""
    source = finished_once[0]
    return (
        Path(shutil.copytree(source.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("model"))) / "recipe.yaml"
    )


def test_whole_run_leaves_everything_behind(finished_once: tuple[Path, Listening]):
    recipe, ui = finished_once
    run = RunFolder(recipe.parent / "runs" / "toy")
    for stage in STAGES:
        status = run.status(stage)
        assert status is not None and status.state == "done", stage
        for file, digest in (status.outputs or {}).items():
            assert hashlib.sha256((run.stage(stage) / file).read_bytes()).hexdigest() == digest
        assert not (run.stage(stage) / "checkpoints").exists()
    assert load_recipe(run.path / "config.yaml") == load_recipe(recipe)
    steps = {name: len(read_metrics(run.stage(name) / "metrics.jsonl")) for name in ("sft", "reward", "align")}
    assert steps == {"sft": 20, "reward": 12, "align": 8}
    items = read_records(run.stage("sample") / "comparisons.jsonl", Comparison)
    judgements = read_records(run.stage("label") / "judgements.jsonl", Judgement)
    preferences = read_records(run.stage("preferences") / "preferences.jsonl", Preference)
    assert {j.source for j in judgements} == {"simulated"} and all(
        j.annotator.startswith("simulated") for j in judgements
    )
    assert {j.item for j in judgements} <= {i.id for i in items}
    made = {j.id for j in judgements}
    assert preferences and all(p.judgements and set(p.judgements) <= made for p in preferences)  # back to the clicks
    for name in ("base", "sft", "policy"):
        answers = read_records(run.stage("evaluate") / f"answers-{name}.jsonl", Rollout)
        assert len(answers) == 10 and all(set(r.rewards) == {"gold", "proxy"} for r in answers)
    evaluation = json.loads((run.stage("evaluate") / "evaluation.json").read_text())
    pairs = [(row["model"], row["against"]) for row in evaluation["win_rates"]]
    assert pairs == [pair for pair in (("policy", "base"), ("policy", "sft"), ("sft", "base")) for _ in range(2)]
    means = evaluation["means"]
    assert evaluation["gain"]["gain"]["value"] == pytest.approx(means["policy"]["proxy"] - means["sft"]["proxy"])
    logged = read_metrics(run.stage("align") / "metrics.jsonl")
    assert all("probe/flattery" in row and row["alarms"] == 0 for row in logged)
    assert len(read_metrics(run.stage("align") / "probes.jsonl")) == 8
    assert evaluation["likelihood"].keys() == {"base", "sft", "policy"}
    page = (run.path / "report.html").read_text()
    assert "simulated" in page and "toy" in page
    assert any("SIMULATED annotators" in line for line in ui.lines)
    learnt = [r["loss"] for r in read_metrics(run.stage("sft") / "metrics.jsonl")]
    assert sum(learnt[-3:]) < sum(learnt[:3]) - 0.5


def test_held_out_prompts_are_kept_out_of_everything_else(finished_once: tuple[Path, Listening]):
    run = RunFolder(finished_once[0].parent / "runs" / "toy")
    held = {r.prompt.text for r in read_records(run.stage("evaluate") / "answers-policy.jsonl", Rollout)}
    assert held == set(sentences(10, words=4, start=2000))
    seen = {r.prompt.text for f in run.stage("align").glob("samples/*.jsonl") for r in read_records(f, Rollout)}
    seen |= {i.prompt.text for i in read_records(run.stage("sample") / "comparisons.jsonl", Comparison)}
    assert seen and not seen & held


def test_second_run_does_nothing(finished: Path):
    before = {f: f.stat().st_mtime_ns for f in (finished.parent / "runs").rglob("*") if f.is_file()}
    ui = go(finished)
    assert ui.stages("done before, skipped") == STAGES
    after = {f: f.stat().st_mtime_ns for f in (finished.parent / "runs").rglob("*") if f.is_file()}
    assert {f.name for f in before if before[f] != after[f]} == {"config.yaml", "recipe.json", ".lock"}


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("seed=1", STAGES),
        ("threads=2", STAGES),
        ("model.context=60", STAGES),
        ("sft.optimizer.lr=2e-3", STAGES),
        ("sample.answers=4", STAGES[1:]),
        ("label.simulation.noise=0.5", STAGES[2:]),
        ("label.aggregate.smoothing=2.0", STAGES[3:]),
        ("reward.centring=0.1", ["reward", "align", "evaluate", "report"]),
        ("align.kl.coefficient=0.1", ["align", "evaluate", "report"]),
        ("evaluate.examples=3", ["evaluate", "report"]),
        ("evaluate.pretrained=false", ["evaluate", "report"]),
        ("about=Say it.", ["report"]),
        ("checkpoint_every=5", []),
    ],
)
def test_changed_setting_runs_its_stage_and_what_follows(finished_once, override: str, again: list[str]):
    result = states(finished_once[0], override)
    assert [name for name, state in result.items() if state != "done"] == again


@pytest.mark.parametrize(
    ("file", "again"),
    [
        ("demonstrations", STAGES),
        ("prompts", STAGES[1:]),
        ("heldout", STAGES[1:]),
    ],
)
def test_changed_data_runs_the_stages_that_read_it(finished: Path, file: str, again: list[str]):
    path = finished.parent / "data" / f"{file}.jsonl"
    path.write_text(path.read_text().replace(".", " too.", 1))
    assert [name for name, state in states(finished).items() if state != "done"] == again


def test_old_settings_take_the_old_results_back(finished: Path):
    run = finished.parent / "runs" / "toy"
    first, page = weights(finished), json.loads((run / "report.json").read_text())
    ui = go(finished, "align.policy.lr=1e-4")
    assert ui.stages("skipped") == STAGES[:5]
    assert weights(finished)["align/weights.safetensors"] != first["align/weights.safetensors"]
    assert {p.name.split("-")[0] for p in (run / "superseded").iterdir()} == {"align", "evaluate", "report"}
    ui = go(finished)
    assert sum("taken back" in line for line in ui.lines) == 3  # align, evaluate and report
    assert weights(finished) == first
    again = json.loads((run / "report.json").read_text())
    assert again["win_rates"] == page["win_rates"] and again["series"] == page["series"]
    assert states(finished) == dict.fromkeys(STAGES, "done")


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_damaged_output_is_made_again(finished: Path, damage: str):
    first = weights(finished)
    path = finished.parent / "runs" / "toy" / "stages" / "reward" / "weights.safetensors"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    ui = go(finished)
    assert ui.stages("skipped") == [s for s in STAGES if s != "reward"]
    assert weights(finished) == first


def test_until_stops_there_and_the_rest_follows_later(tmp_path: Path):
    recipe = toy_recipe(tmp_path, sft=None, reward=None, align=None)
    go(recipe, until="label")
    assert sorted(p.name for p in (tmp_path / "runs" / "toy" / "stages").iterdir()) == ["label", "sample"]
    assert go(recipe).stages("skipped") == ["sample", "label"]
    with pytest.raises(ConfigError, match=r"no stage 'sft'; it has sample, label, preferences, evaluate, report"):
        go(recipe, until="sft")


def test_recipe_without_stages(tmp_path: Path):
    sections = dict.fromkeys(("sft", "sample", "label", "reward", "align", "evaluate"))
    with pytest.raises(ConfigError, match="the recipe has no stage"):
        go(toy_recipe(tmp_path, **sections))


# Ctrl-C -------------------------------------------------------------------------------------


def ctrl_c(monkeypatch: pytest.MonkeyPatch, when: Callable[[Path, dict], bool]) -> None:
    """Send this process SIGINT when a step is logged for which ``when`` (folder, metrics) holds."""
    write = MetricsLog.__call__

    def logged(self: MetricsLog, metrics: dict) -> None:
        write(self, metrics)
        if self.path.name == "metrics.jsonl" and when(self.path.parent, metrics):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsLog, "__call__", logged)


@pytest.mark.parametrize(("stage", "step"), [("sft", 4), ("sft", 20), ("align", 2)])
def test_ctrl_c_leaves_a_run_that_continues(finished_once, tmp_path: Path, monkeypatch, capsys, stage: str, step: int):
    recipe, handler = toy_recipe(tmp_path), signal.getsignal(signal.SIGINT)
    if stage == "align":
        recipe = copy_without(finished_once[0], tmp_path / "copy", "align", "evaluate", "report")
    with monkeypatch.context() as patch:
        ctrl_c(patch, lambda folder, metrics: folder.name == stage and metrics["step"] == step)
        where = "after stage sft" if step == 20 else f"after step {step} of"
        with pytest.raises(Interrupted, match=rf"stopped {where}.*the same command continues"):
            go(recipe)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "Ctrl-C again" in capsys.readouterr().err
    assert states(recipe)[stage] == ("done" if step == 20 else "continue")
    go(recipe, until=stage)
    rows = read_metrics(recipe.parent / "runs" / "toy" / "stages" / stage / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, (20 if stage == "sft" else 8) + 1))
    wanted = weights(finished_once[0])
    assert {k: v for k, v in weights(recipe).items() if k.startswith(stage)} == {
        k: v for k, v in wanted.items() if k.startswith(stage)
    }


def copy_without(recipe: Path, target: Path, *stages: str) -> Path:
    shutil.copytree(recipe.parent, target, ignore=shutil.ignore_patterns("model"))
    for stage in stages:
        shutil.rmtree(target / "runs" / "toy" / "stages" / stage)
    return target / "recipe.yaml"


def test_second_ctrl_c_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = toy_recipe(tmp_path)
    with monkeypatch.context() as patch:
        ctrl_c(patch, lambda folder, metrics: (os.kill(os.getpid(), signal.SIGINT), True)[1])
        with pytest.raises(KeyboardInterrupt):
            go(recipe)
    assert states(recipe)["sft"] == "continue"


# Other shapes of recipe ---------------------------------------------------------------------


def test_ready_made_preferences_without_sft_or_gold(tmp_path: Path):
    rows = [
        {"prompt": [{"role": "user", "content": q}], "chosen": [{"role": "assistant", "content": a}],
         "rejected": [{"role": "assistant", "content": b}]}
        for q, a, b in zip(
            sentences(30, words=4), sentences(30, words=5, start=100), sentences(30, words=5, start=300), strict=True
        )
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = toy_recipe(tmp_path, sft=None, sample=None, label=None, gold=None, data={"preferences": "pairs.jsonl"})
    ui = go(recipe, "align.steps=2", "data.heldout_share=0.2")
    assert ui.stages("] ") == ["preferences", "reward", "align", "evaluate", "report"]
    evaluation = json.loads((tmp_path / "runs" / "toy" / "stages" / "evaluate" / "evaluation.json").read_text())
    assert (evaluation["models"], evaluation["judges"]) == (["base", "policy"], ["proxy"])


def test_every_weight_trained_and_the_critic_from_the_reward_model(tmp_path: Path):
    full = "adapter={kind: full}"
    recipe = toy_recipe(tmp_path)
    settings = [f"sft.{full}", f"reward.{full}", f"align.{full}", "align.critic_init=reward_model", "align.steps=2"]
    go(recipe, *settings, until="align")
    stages = tmp_path / "runs" / "toy" / "stages"
    sft, policy = (load_file(stages / s / "weights.safetensors") for s in ("sft", "align"))
    assert sft.keys() == policy.keys()
    assert not any(torch.equal(sft[n], policy[n]) for n in sft if "layernorm" not in n and "norm" not in n)


def test_a_critic_on_the_policys_states(finished: Path):
    go(finished, "align.shared_critic=true", "align.steps=2")
    saved = load_file(finished.parent / "runs" / "toy" / "stages" / "align" / "critic.safetensors")
    assert set(saved) == {"head.weight", "head.bias"}


def test_reward_model_of_its_own(tmp_path: Path):
    recipe = toy_recipe(tmp_path / "a")
    other = toy_recipe(tmp_path / "b").parent / "model"
    go(recipe, f"reward.model={{name: {other}, context: 64}}", "sft=null", "align.steps=2")
    evaluation = json.loads((tmp_path / "a" / "runs" / "toy" / "stages" / "evaluate" / "evaluation.json").read_text())
    assert evaluation["judges"] == ["gold", "proxy"]


# Mistakes -----------------------------------------------------------------------------------


def test_data_that_is_missing_or_unusable(tmp_path: Path):
    recipe = toy_recipe(tmp_path)
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        go(recipe, "data.demonstrations=nowhere.jsonl")
    with pytest.raises(DataError, match=r"demonstrations\.jsonl: none of 40 rows is a usable demonstration"):
        go(recipe, "model.context=8", "align=null", "reward=null", "label=null", "sample=null", "evaluate=null")
    status = RunFolder(tmp_path / "runs" / "toy").status("sft")
    assert status is not None and status.state == "running"


def test_model_that_is_not_there(tmp_path: Path):
    with pytest.raises(ModelError, match="is not a folder here and not a hub id"):
        go(toy_recipe(tmp_path), "model.name=./nowhere")


def test_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, gigabytes: float) -> None:
        raise StorageError("0.00 GB free")

    monkeypatch.setattr(pipeline, "require_space", full)
    with pytest.raises(StorageError, match="free"):
        go(toy_recipe(tmp_path))
