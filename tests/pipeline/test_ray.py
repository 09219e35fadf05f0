"""Alignment with samplers and scorers on a Ray cluster of this machine; skipped where Ray is not installed."""

import contextlib
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import RankError
from trimtab.models import load_tensors
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Ui
from trimtab.records import Rollout, read_records
from trimtab.rollout import Host, Pool, RayConfig
from trimtab.rollout.ray import connected
from trimtab.testing import toy_recipe
from trimtab.testing.recipe import TOY

pytestmark = [
    pytest.mark.skipif(
        find_spec("ray") is None, reason="Ray is not installed: pip install -c constraints.txt -e '.[ray]'"
    ),
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

TWO = "scale.ray={samplers: 2, chunk: 2}"
SMALL: dict[str, Any] = {
    "sft": TOY["sft"] | {"epochs": 1},
    "sample": TOY["sample"] | {"prompts": 6},
    "reward": TOY["reward"] | {"epochs": 1, "micro_batch_tokens": 64, "centring": 0.01},
    "align": TOY["align"] | {"steps": 4, "micro_batch_tokens": 64},
    "evaluate": TOY["evaluate"] | {"prompts": 4},
}


class Saying(Ui):
    """A console whose lines are read."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, and a run that is finished up to the reward model."""
    folder = tmp_path_factory.mktemp("ray")
    recipe = toy_recipe(folder, checkpoint_every=1, **SMALL)
    run_recipe(load_recipe(recipe), recipe, runs=folder / "begun", until="reward")
    return folder


def aligned(begun: Path, name: str, *overrides: str, kill_at: int | None = None) -> tuple[Path, list[str]]:
    """The stages after the reward model; with ``kill_at`` a sampler is killed once so many steps are logged."""
    runs, recipe, ui = begun / name, begun / "recipe.yaml", Saying()
    shutil.copytree(begun / "begun", runs)
    stages = runs / "toy" / "stages"
    if kill_at is not None:
        killer = threading.Thread(target=kill_sampler, args=(stages / "align" / "metrics.jsonl", kill_at), daemon=True)
        killer.start()
    run_recipe(load_recipe(recipe, list(overrides)), recipe, runs=runs, ui=ui)
    return stages, ui.lines


def hosts() -> list[Any]:
    """Processes of actors that this process started."""
    import psutil

    result = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray::Host" in " ".join(process.cmdline()):
                result.append(process)
        except psutil.Error:
            continue
    return result


def kill_sampler(log: Path, lines: int) -> None:
    while not log.exists() or log.read_text().count("\n") < lines:
        time.sleep(0.05)
    random.Random(lines).choice(hosts()).kill()


def distance(one: Path, other: Path) -> float:
    """The largest difference of any weight of policy and critic."""
    pairs = [
        (load_tensors(one / "align" / file), load_tensors(other / "align" / file))
        for file in ("weights.safetensors", "critic.safetensors")
    ]
    return max(float((a[name] - b[name]).abs().max()) for a, b in pairs for name in a)


def texts(stages: Path) -> list[list[Any]]:
    return [
        [(r.id, r.tokens) for r in read_records(file, Rollout)]
        for file in sorted((stages / "align" / "samples").glob("step-*.jsonl"))
    ]


class Direct:
    """A worker in this process."""

    def __init__(self, name: str, host: Host) -> None:
        self.name, self.host = name, host

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(getattr(self.host, method)(*arguments))
        return future


class Here:
    """In place of a cluster: the chunks of one, computed in this process without a loss."""

    def workers(
        self, name: str, count: int, first: int, build: Callable[[], Any], facts: Callable[[], Any]
    ) -> list[Direct]:
        return [Direct(f"{name} {number}", Host(build, facts, lambda: "here")) for number in range(count)]

    def extra(self, *arguments: Any) -> list[Direct]:
        return []

    def put(self, value: Any) -> Any:
        return value


@contextlib.contextmanager
def here(config: RayConfig, *, deadline: float) -> Iterator[Here]:
    yield Here()


def at_once(compute: Callable[[], Any], name: str) -> Callable[[], Any]:
    result = compute()
    return lambda: result


@pytest.mark.parametrize("more", [(), ("align.one_step_off=true",)], ids=["newest weights", "one step off"])
def test_a_run_with_a_killed_sampler_ends_where_one_process_ends(
    begun: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    """Bit for bit where one process draws the same chunks; to float32 where it draws all prompts together."""
    number = len(more)
    ray, printed = aligned(begun, f"ray{number}", "scale.kind=ray", TWO, *more, kill_at=2)
    assert any("was lost during answers with weights of version" in line or "joins" in line for line in printed), (
        printed
    )
    assert (ray.parent / "report.html").exists() and not hosts()
    inline, _ = aligned(begun, f"inline{number}", *more)
    assert texts(ray) == texts(inline) and texts(ray)
    assert distance(ray, inline) <= 1e-5
    monkeypatch.setattr("trimtab.pipeline.remote.connected", here)
    monkeypatch.setattr("trimtab.rollout.remote.finished", at_once)
    chunks, _ = aligned(begun, f"chunks{number}", "scale.kind=ray", TWO, *more)
    assert texts(ray) == texts(chunks)
    assert distance(ray, chunks) == 0.0


def test_a_dead_learner_takes_its_samplers_along_and_the_same_command_continues(begun: Path):
    import psutil

    runs, recipe = begun / "dead", begun / "recipe.yaml"
    shutil.copytree(begun / "begun", runs)
    sets = ("--set", "scale.kind=ray", "--set", TWO)
    command = [sys.executable, "-m", "trimtab", "run", str(recipe), "--runs", str(runs), *sets]
    stages = runs / "toy" / "stages"
    learner, end = subprocess.Popen(command), time.monotonic() + 900
    while not (log := stages / "align" / "metrics.jsonl").exists() or log.read_text().count("\n") < 2:
        assert learner.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    samplers = hosts()
    assert len(samplers) == 2 and learner.poll() is None
    learner.kill()
    learner.wait()
    _, left = psutil.wait_procs(samplers, timeout=300)
    assert not left
    assert subprocess.run(command, timeout=1800).returncode == 0
    inline, _ = aligned(begun, "alive")
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]
    assert texts(stages) == texts(inline) and texts(stages)
    assert distance(stages, inline) <= 1e-5


class Slow:
    """Work that takes long enough to be killed in."""

    def square(self, number: int) -> int:
        time.sleep(0.2)
        return number * number


def facts() -> dict[str, str]:
    return {"model": "m"}


def test_twenty_kills_at_random_lose_nothing():
    """Of samplers that work, wait or start."""
    import psutil

    draw, killed = random.Random(0), set[int]()
    squares = [i * i for i in range(10)]
    with connected(RayConfig(samplers=2), deadline=900) as cluster:
        pool = Pool(cluster.workers("sampler", 2, 0, Slow, facts), facts(), deadline=900)
        pool.start()

        def kill() -> None:
            while len(killed) < 20:
                time.sleep(draw.uniform(0.0, 2.0))
                if running := hosts():
                    process = draw.choice(running)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                        killed.add(process.pid)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        while killer.is_alive():
            assert pool.map("squares", "square", [(i,) for i in range(10)]) == squares
        assert pool.map("squares", "square", [(i,) for i in range(10)]) == squares
        assert len(killed) == 20 and pool.losses


def test_room_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trimtab.rollout.ray.os.cpu_count", lambda: 2)
    with pytest.raises(RankError, match=r"asked for 2 processes with CPU 1, GPU 1 each; the cluster has CPU 2"):
        with connected(RayConfig(samplers=2, gpus=1), deadline=5):
            pass
