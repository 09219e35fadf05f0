"""A run killed with SIGKILL again and again, at the worst moments, ends where the undisturbed one ends."""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.storage import RunFolder, read_metrics
from trimtab.testing import TOY, prompts, toy_recipe

Moment = tuple[str, str, int]

MOMENTS: list[tuple[Moment, str, int]] = [
    # the moment, the stage it falls in, and how many steps of it are safe
    (("after line", "sft/metrics.jsonl", 8), "sft", 6),
    (("before rename", "sft/checkpoints/step-000009", 1), "sft", 6),
    (("half written", "sft/weights.safetensors", 1), "sft", 18),
    (("before rename", "sft/status.json", 1), "sft", 18),
    (("before rename", "sample/samples/answers/prompts-000040.jsonl", 1), "sample", 0),
    (("before rename", "preferences/status.json", 2), "preferences", 0),
    (("after line", "reward/metrics.jsonl", 5), "reward", 3),
    (("before rename", "align/samples/step-000001.jsonl", 2), "align", 0),  # drawn and kept, not yet scored
    (("before rename", "align/samples/step-000001.states.safetensors", 1), "align", 0),
    (("after line", "align/metrics.jsonl", 5), "align", 3),
    (("half written", "align/critic.safetensors", 1), "align", 6),
    (("before rename", "evaluate/samples/policy/prompts-000000.jsonl", 1), "evaluate", 0),
    (("before rename", "report/report.html", 1), "report", 0),
]


class Runner:
    """The forking process."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("killable.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, recipe: Path, runs: Path, moment: Moment | None = None) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        order = {"recipe": str(recipe), "runs": str(runs), "moment": moment}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    one = Runner()
    yield one
    one.close()


def outputs(run: RunFolder) -> dict[str, str]:
    """SHA-256 of every output of every stage, the page apart (it says when it was made)."""
    return {
        f"{stage.name}/{file}": digest
        for stage in sorted((run.path / "stages").iterdir())
        for file, digest in (json.loads((stage / "status.json").read_text())["outputs"] or {}).items()
        if not file.startswith("report.")
    }


def steps(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    rows = read_metrics(run.stage(stage) / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "time" and not k.startswith("seconds/")} for row in rows]


def test_killed_everywhere_and_still_the_same(runner: Runner, tmp_path: Path):
    sampler = {"max_new_tokens": 6, "slots": 32}
    recipe = toy_recipe(
        tmp_path,
        sample={"prompts": 80, "answers": 5, "sampler": sampler},
        reward=TOY["reward"] | {"epochs": 1},
        align=TOY["align"] | {"sampler": sampler},
        evaluate=TOY["evaluate"] | {"sampler": sampler},
    )
    (tmp_path / "data" / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p.text}) + "\n" for p in prompts(90))
    )
    assert runner.run(recipe, tmp_path / "straight") == 0
    straight = RunFolder(tmp_path / "straight" / "toy")

    run = RunFolder(tmp_path / "killed" / "toy")
    for moment, stage, safe in MOMENTS:
        assert runner.run(recipe, tmp_path / "killed", moment) == -signal.SIGKILL, moment
        status = run.status(stage)
        assert status is None or status.state == "running", moment
        saved_steps = [int(p.name.removeprefix("step-")) for p in run.stage(stage).glob("checkpoints/step-*")]
        assert max(saved_steps, default=0) == safe, moment
    assert runner.run(recipe, tmp_path / "killed") == 0

    assert outputs(run) == outputs(straight)
    assert not list(tmp_path.rglob("*.states.safetensors"))  # what frozen layers gave is kept until it was used
    assert len([name for name in outputs(run) if name.endswith(".safetensors")]) == 4
    for stage in ("sft", "reward", "align"):
        assert steps(run, stage) == steps(straight, stage)
    for folder in (run, straight):
        for name, digest in outputs(folder).items():
            assert hashlib.sha256((folder.path / "stages" / name).read_bytes()).hexdigest() == digest
