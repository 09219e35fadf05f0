"""A recipe on several ranks: equal results, stopped and continued, and messages for what contradicts itself."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import die, on_ranks
from trimtab.errors import ConfigError, RankError
from trimtab.models import AdapterConfig, Role, load_tensors
from trimtab.pipeline import scale
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.context import Context
from trimtab.pipeline.plan import make_plan
from trimtab.pipeline.run import STAGES, _run_stage, run_recipe
from trimtab.pipeline.scale import ScaleConfig, joined, processes, scale_warnings, threads_of
from trimtab.pipeline.ui import Silent
from trimtab.storage import RunFolder
from trimtab.testing import tiny_backbone, toy_recipe
from trimtab.testing.recipe import TOY
from trimtab.trainers import Group, Learner, OptimizerConfig
from trimtab.trainers.ranks import serve

INLINE = ("scale.kind=inline", "scale.processes=null")
TWO = {"kind": "torchrun", "processes": 2, "deadline": 60}
SMALL = {
    "sft": TOY["sft"] | {"epochs": 1},
    "sample": TOY["sample"] | {"prompts": 6},
    "reward": TOY["reward"] | {"epochs": 1, "micro_batch_tokens": 64, "centring": 0.01},
    "align": TOY["align"] | {"steps": 2, "prompts": 4, "micro_batch_tokens": 64},
    "evaluate": TOY["evaluate"] | {"prompts": 4},
}
WEIGHTS = ("sft/weights", "reward/weights", "align/weights", "align/critic")
FILES = ("sample/comparisons.jsonl", "label/judgements.jsonl", "preferences/preferences.jsonl")


def run(recipe: str, runs: str, *overrides: str) -> bool:
    run_recipe(load_recipe(Path(recipe), list(overrides)), Path(recipe), runs=Path(runs), ui=Silent())
    return True


def answers(run: Path) -> list[str]:
    """Texts of the evaluation's answers, in order."""
    files = sorted((run / "stages" / "evaluate").rglob("*.jsonl"))
    return [text for file in files for text in re.findall(r'"text": ?"[^"]*"', file.read_text())]


def same_results(one: Path, other: Path, *, within: float = 2e-6) -> None:
    for name in WEIGHTS:
        a, b = (load_tensors(run / "stages" / f"{name}.safetensors") for run in (one, other))
        distance = max(float((a[key] - b[key]).abs().max()) for key in a)
        assert a.keys() == b.keys() and distance <= within, f"{name} is off by {distance:g}"
    for name in FILES:
        assert (one / "stages" / name).read_text() == (other / "stages" / name).read_text(), name
    texts = [answers(one), answers(other)]
    assert texts[0] and texts[0] == texts[1]
    assert (other / "report.html").exists()


def test_a_whole_recipe_on_two_ranks_gives_what_one_gives(tmp_path: Path):
    recipe = str(toy_recipe(tmp_path, **SMALL))
    run(recipe, str(tmp_path / "one"))
    several = ["scale.kind=torchrun", "scale.processes=2", "scale.deadline=60"]
    assert on_ranks(2, run, recipe, str(tmp_path / "two"), *several, joined=False) == [True, True]
    same_results(tmp_path / "one" / "toy", tmp_path / "two" / "toy")
    # A run of two ranks is done for one, too.
    assert on_ranks(2, run, recipe, str(tmp_path / "one"), *several, joined=False) == [True, True]


FULL = {"kind": "full"}
WHOLE = {
    name: SMALL[name] | {"adapter": FULL, "optimizer": {"lr": 1e-4}} for name in ("sft", "reward")
} | {"align": SMALL["align"] | {"adapter": FULL, "policy": {"lr": 1e-4}, "critic": {"lr": 1e-4}}}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("sections", "within"), [(SMALL, 2e-6), (SMALL | WHOLE, 1e-5)], ids=["adapters", "all"])
def test_a_whole_recipe_with_sharded_weights_gives_what_one_process_gives(tmp_path: Path, sections: Any, within: float):
    recipe = str(toy_recipe(tmp_path, capability={}, **sections))
    run(recipe, str(tmp_path / "one"))
    several = ["scale.kind=torchrun", "scale.processes=2", "scale.deadline=60", "scale.shard=true"]
    assert on_ranks(2, run, recipe, str(tmp_path / "two"), *several, joined=False) == [True, True]
    same_results(tmp_path / "one" / "toy", tmp_path / "two" / "toy", within=within)


def test_a_stage_is_finished_when_all_ranks_have_its_results(tmp_path: Path):
    """Finishing removes the checkpoints, from which another rank may be loading the chosen weights."""
    recipe = toy_recipe(tmp_path)
    run, states = RunFolder(tmp_path / "run"), []

    class Watching(Group):
        def gather(self, phase: str, compute: Callable[[], Any]) -> list[Any]:
            status = run.status("align")
            states.append((phase, status.state if status is not None else None))
            return super().gather(phase, compute)

    run.begin("align", "f")
    context = Context(config=load_recipe(recipe), recipe=recipe, run=run, ui=Silent(), group=Watching())
    stage = replace(next(s for s in STAGES if s.name == "align"), run=lambda context: ({}, []))
    _run_stage(context, stage)
    status = run.status("align")
    assert states == [("results of stage align", "running")] and status is not None and status.state == "done"


def test_contradictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = toy_recipe(tmp_path, scale={"processes": 2})
    with pytest.raises(ConfigError, match=r"scale\.processes is 2 and scale\.kind 'inline'"):
        load_recipe(recipe)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"set scale\.processes"):
        processes(ScaleConfig(kind="torchrun"))
    with pytest.raises(ConfigError, match=r"torchrun --nproc-per-node 2 -m trimtab run"), joined(ScaleConfig(**TWO)):
        pass
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match=r"scale\.processes is 2 and 3 processes were started"),
        joined(ScaleConfig(**TWO)),
    ):
        pass
    with pytest.raises(ConfigError, match=r"one of 3 processes and scale\.kind is 'inline'"), joined(ScaleConfig()):
        pass
    assert threads_of(5) == 5 and threads_of(None) == max(1, (os.cpu_count() or 1) // 3)


def gathers_alone() -> None:
    with joined(ScaleConfig(**TWO | {"shard": True, "deadline": 20})) as group:
        role = Role.trainable(tiny_backbone(), "sft", AdapterConfig(kind="full"), seed=1)
        Learner(role, OptimizerConfig(lr=1e-3), 1, group=group)
        if group.rank == 1:
            die()
        role.state()


@pytest.mark.slow
def test_a_rank_that_dies_while_weights_are_gathered_is_named():
    error, killed = on_ranks(2, gathers_alone, joined=False)
    assert killed == "exit -9" and isinstance(error, RankError) and "rank 1" in str(error), error


def test_weights_are_divided_only_where_there_are_several_that_train_them(tmp_path: Path, monkeypatch):
    for sections, says in (
        ({"scale": {"shard": True}}, r"scale\.shard is true and scale\.kind is 'inline'"),
        ({"scale": {"kind": "ray", "shard": True}}, r"scale\.shard is true and scale\.kind is 'ray'"),
        ({"scale": TWO | {"processes": 1, "shard": True}}, r"scale\.processes 1: there is no process"),
        (
            {"scale": TWO | {"shard": True}, "sft": None, "reward": None, "align": None, "rewards": None},
            r"no section trains a model; add sft, reward, process or align",
        ),
        (
            {"scale": TWO | {"shard": True}, "sft": SMALL["sft"] | {"adapter": {"rank": 4, "experts": True}}},
            r"sft\.adapter\.experts is true, which is untested",
        ),
        (
            {
                "scale": TWO | {"shard": True},
                "align": SMALL["align"] | {"sampler": {"engine": "vllm", "max_new_tokens": 12}},
            },
            r"align\.sampler\.engine 'vllm', which is untested",
        ),
    ):
        with pytest.raises(ConfigError, match=says):
            load_recipe(toy_recipe(tmp_path, **sections))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    alone = ScaleConfig(kind="torchrun", shard=True)
    with pytest.raises(ConfigError, match=r"this is the only process"), joined(alone):
        pass


def test_ray_is_checked_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for section, says in (
        ({"kind": "ray", "processes": 2}, r"set scale\.ray\.samplers and scorers instead"),
        ({"ray": {"samplers": 2}}, r"scale\.ray is set and scale\.kind is 'inline'"),
        ({"kind": "ray", "ray": {"address": "somewhere"}}, r"scale\.ray\.address"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_recipe(toy_recipe(tmp_path, scale=section))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("trimtab.rollout.ray.import_module", missing)
    with pytest.raises(ConfigError, match="Ray is not installed"), joined(ScaleConfig(kind="ray")):
        pass
    recipe = toy_recipe(tmp_path, scale={"kind": "ray", "ray": {"samplers": 3, "scorers": 1, "extra_samplers": 2}})
    made = make_plan(load_recipe(recipe), recipe, tmp_path / "runs")  # without Ray
    line = next(line for line in made["objective"] if "Ray" in line)
    assert "3 draw the answers of align in chunks of 8 prompts, and 1 compute its rewards (CPU 1 each" in line


def test_plan_says_what_several_processes_share(tmp_path: Path):
    recipe = toy_recipe(tmp_path, scale=TWO)
    made = make_plan(load_recipe(recipe), recipe, tmp_path / "runs")
    assert any("Processes: 2" in line for line in made["objective"])
    divided = toy_recipe(tmp_path, scale=TWO | {"shard": True}, sft=SMALL["sft"] | {"adapter": FULL})
    made = make_plan(load_recipe(divided), divided, tmp_path / "runs")
    assert any("each process holds 1/2 of its weights" in line for line in made["objective"])
    cores = os.cpu_count() or 1
    assert scale_warnings(ScaleConfig(**TWO), cores)[0].endswith(f"set threads: {max(1, cores // 2)}")
    assert scale_warnings(ScaleConfig(), cores) == []


@pytest.mark.parametrize(
    ("commands", "code", "says"),
    [
        (["true", "true"], 0, ""),
        (["exit 10", "sleep 0.2; exit 8"], 8, ""),  # 8 is what went wrong, 10 what the other rank saw of it
        (["exit 10", "kill -9 $$"], 10, "rank 1 of 2: signal 9 ended its process"),
        (["exit 5", "sleep 60"], 5, "rank 1 of 2: signal 9"),  # it does not notice and is ended
    ],
)
def test_exit_code_of_the_command(commands: list[str], code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(scale, "GRACE", 0.5)
    store, _ = serve()
    ranks = [subprocess.Popen(["sh", "-c", command]) for command in commands]
    assert scale._wait(ranks, store) == code
    assert says in capsys.readouterr().err
    assert store.get("ended/0").decode().startswith("its process ended with code")


# The command ------------------------------------------------------------------------------


def start(recipe: Path, runs: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trimtab", "run", str(recipe), "--runs", str(runs), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> int:
    """Its exit code, once it has ended."""
    process.communicate(timeout=600)
    return process.returncode


def wait_for(path: Path, lines: int) -> None:
    end = time.monotonic() + 600
    while not path.exists() or path.read_text().count("\n") < lines:
        assert time.monotonic() < end, path
        time.sleep(0.02)


def ranks_of(parent: int) -> dict[int, int]:
    """Process ids of the ranks that a launcher started, by rank."""
    import psutil

    return {int(child.environ()["RANK"]): child.pid for child in psutil.Process(parent).children()}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_the_same_command_continues(tmp_path: Path, victim: int):
    recipe = toy_recipe(tmp_path, scale=TWO, checkpoint_every=1, **SMALL | {"align": SMALL["align"] | {"steps": 6}})
    run(str(recipe), str(tmp_path / "one"), *INLINE)
    process = start(recipe, tmp_path / "runs")
    wait_for(tmp_path / "runs/toy/stages/align/metrics.jsonl", 3)
    os.kill(ranks_of(process.pid)[victim], signal.SIGKILL)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 10
    assert f"rank {victim} stopped in phase" in printed.replace("\n", " ") and "signal 9" in printed, printed
    assert ended(start(recipe, tmp_path / "runs")) == 0
    same_results(tmp_path / "one" / "toy", tmp_path / "runs" / "toy")


@pytest.mark.slow
def test_ctrl_c_then_another_number_of_ranks(tmp_path: Path):
    recipe = toy_recipe(tmp_path, scale=TWO, checkpoint_every=1, **SMALL | {"align": SMALL["align"] | {"steps": 6}})
    run(str(recipe), str(tmp_path / "one"), *INLINE)
    process = start(recipe, tmp_path / "runs")
    wait_for(tmp_path / "runs/toy/stages/align/metrics.jsonl", 2)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 130 and printed.count("stopped after step") == 1, printed
    process = start(recipe, tmp_path / "runs", "--set", INLINE[0], "--set", INLINE[1])
    wait_for(tmp_path / "runs/toy/stages/align/metrics.jsonl", 6)
    process.send_signal(signal.SIGINT)
    assert ended(process) == 130
    assert ended(start(recipe, tmp_path / "runs", "--set", "scale.processes=3")) == 0
    same_results(tmp_path / "one" / "toy", tmp_path / "runs" / "toy")


@pytest.mark.slow
def test_torchrun_starts_the_ranks_too(tmp_path: Path):
    recipe = toy_recipe(tmp_path, scale={"kind": "torchrun"}, **SMALL)
    run(str(recipe), str(tmp_path / "one"), *INLINE)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "trimtab", "run", str(recipe), "--runs", str(tmp_path / "runs"),
    ]  # fmt: skip
    assert subprocess.run(command, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == 0
    same_results(tmp_path / "one" / "toy", tmp_path / "runs" / "toy")
