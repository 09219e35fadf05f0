"""Alignment with samplers and scorers on a Ray cluster of this machine; skipped where Ray is not installed."""

import os
import random
import shutil
import signal
import threading
import time
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
from trimtab.rollout import RayConfig
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

    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray::Host" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


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


@pytest.mark.parametrize("more", [(), ("align.one_step_off=true",)], ids=["newest weights", "one step off"])
def test_a_run_with_a_killed_sampler_ends_where_one_process_ends(begun: Path, more: tuple[str, ...]):
    inline, _ = aligned(begun, f"inline{len(more)}", *more)
    ray, said = aligned(begun, f"ray{len(more)}", "scale.kind=ray", TWO, *more, kill_at=2)
    assert any("was lost during answers with weights of version" in line or "joins" in line for line in said), said
    assert texts(ray) == texts(inline) and texts(ray)
    assert distance(ray, inline) <= 2e-6
    assert (ray.parent / "report.html").exists() and not hosts()


class Slow:
    """Work that takes long enough to be killed in."""

    def square(self, number: int) -> int:
        time.sleep(0.2)
        return number * number


def facts() -> dict[str, str]:
    return {"model": "m"}


def test_twenty_kills_at_random_lose_nothing():
    from trimtab.rollout import Pool

    draw = random.Random(0)
    with connected(RayConfig(samplers=2), deadline=900) as cluster:
        pool = Pool(cluster.workers("sampler", 2, 0, Slow, facts), facts(), deadline=900)
        pool.start()
        stop = threading.Event()

        def kill() -> None:
            while not stop.is_set():
                time.sleep(draw.uniform(0.0, 0.5))
                if pool.losses < 20 and (there := hosts()):
                    os.kill(draw.choice(there).pid, signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        while pool.losses < 20:
            assert pool.map("squares", "square", [(i,) for i in range(10)]) == [i * i for i in range(10)]
        stop.set()
        assert pool.map("squares", "square", [(i,) for i in range(10)]) == [i * i for i in range(10)]


def test_room_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trimtab.rollout.ray.os.cpu_count", lambda: 2)
    with pytest.raises(RankError, match=r"asked for 2 processes with CPU 1, GPU 1 each; the cluster has CPU 2"):
        with connected(RayConfig(samplers=2, gpus=1), deadline=5):
            pass
