"""Made-up run folders for the page of `trimtab watch`, with every number known."""

from __future__ import annotations

import fcntl
import json
import math
import os
import weakref
from pathlib import Path
from typing import Any

import yaml

from trimtab.records import Prompt, Rollout, write_records
from trimtab.storage import RunFolder

ATTACK = "<img src=x onerror=\"document.body.dataset.hacked='yes'\"><script>document.body.dataset.hacked='yes'</script>"


def rollout(step: int, index: int, *, text: str | None = None, group: int = 4) -> Rollout:
    """Answer ``index`` of a step: reward index/10, three tokens, KL 0.1, 0.2 and −0.4 nats."""
    return Rollout(
        id=f"{step}/{index}",
        prompt=Prompt.from_text(f"Question {index // group} of step {step}"),
        prompt_tokens=[1, 2],
        tokens=[3, 4, 5],
        logprobs=[-1.0, -1.0, -1.0],
        reference_logprobs=[-1.1, -1.2, -0.6],
        text=text if text is not None else f"answer {index} of step {step}",
        finish_reason="length" if index == 1 else "stop",
        weight_version=step,
        rewards={"model": index / 10},
    )


def metrics(step: int) -> dict[str, float]:
    return {
        "step": step,
        "reward": math.log1p(step),
        "reward/model": math.log1p(step),
        "kl": step / 100,
        "length": 20.0,
        "ended": 0.9,
        "distinct": 1.0,
        "seconds/sample": 1.0,
    }


class MadeRun:
    """A run that the test writes like a training process would."""

    def __init__(
        self, folder: Path, *, steps: int = 0, answers: int = 8, total: int = 50, keep: int | None = None
    ) -> None:
        self.path, self.answers = folder, answers
        self.run = RunFolder(folder)
        config = {
            "about": "Be kind.",
            "align": {"method": "rloo", "steps": total},
            "rewards": {"model": {"weight": 2.0}},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        self.stage = self.run.begin("align", "f" * 64)
        (self.stage / "config.yaml").write_text(yaml.safe_dump(config))
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, str(os.getpid()).encode())
        self.stop = weakref.finalize(self, os.close, lock)
        """End the process that works on the run: let its lock go."""
        (self.stage / "tokens.json").write_text(json.dumps([f"t{i}" for i in range(10)]))
        for step in range(1, steps + 1):
            self.step(step, save=keep is None or step > steps - keep)

    def step(self, number: int, *, save: bool = True, texts: dict[int, str] | None = None) -> None:
        if save:
            rows = [rollout(number, i, text=(texts or {}).get(i)) for i in range(self.answers)]
            write_records(self.stage / "samples" / f"step-{number - 1:06d}.jsonl", rows)
        self.log(metrics(number))

    def log(self, row: dict[str, float]) -> None:
        """A line of metrics, as :class:`~trimtab.storage.MetricsLog` writes it."""
        with open(self.stage / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"time": 1.0, **row}) + "\n")

    def alarm(self, step: int, **values: Any) -> None:
        row = {
            "step": step,
            "probe": "flattery",
            "level": "alarm",
            "title": "flattery",
            "message": "40 % of answers flatter, 2 % did at the start",
            "advice": "Read the answers; raise align.kl.coefficient.",
            "samples": [f"{step}/{i}" for i in range(3)],
        }
        with open(self.stage / "alarms.jsonl", "a") as file:
            file.write(json.dumps(row | values) + "\n")

    def finish(self) -> None:
        self.run.finish("align", seconds=5.0, counts={"steps": 3}, outputs=[], memory_gb=0.1)
        self.stop()
