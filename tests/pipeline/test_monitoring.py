"""What online alignment logs beside its own numbers, and that a continued run goes on with its tests."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trimtab.evals import AlarmConfig
from trimtab.pipeline.monitoring import RunMonitor, read_alarms
from trimtab.records import Prompt, Rollout
from trimtab.rollout import SamplerConfig


class Made:
    """The part of a stage's context that the monitor reads."""

    def __init__(self, folder: Path, alarms: AlarmConfig | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.config = SimpleNamespace(alarms=alarms)
        self.lines: list[str] = []
        self.ui = SimpleNamespace(say=self.lines.append)
        self._folder = folder

    def folder(self, stage: str) -> Path:
        return self._folder

    def gold(self) -> Any:
        return lambda prompt, completion: len(completion.text)


ALIGN: Any = SimpleNamespace(steps=20, sampler=SamplerConfig(max_new_tokens=8))


def answers(step: int, flattering: int) -> list[Rollout]:
    """Sixteen answers to sixteen prompts, of which some flatter."""
    return [
        Rollout(
            id=f"{step}/{i}",
            prompt=Prompt.from_text(f"Question {i}"),
            prompt_tokens=[1],
            tokens=[1, 2],
            logprobs=[-1.0, -1.0],
            text="Great question! Red." if i < flattering else "It is red.",
            finish_reason="stop",
            weight_version=step,
        )
        for i in range(16)
    ]


def go(made: Any, first: int, last: int) -> list[dict[str, float]]:
    """Steps of a run whose answers flatter from step 7 on; its numbers."""
    with RunMonitor(made, ALIGN) as monitor:
        return [monitor(step, answers(step, 0 if step < 7 else 16)) for step in range(first, last + 1)]


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def test_flattery_raises_an_alarm_on_the_console_and_in_the_files(tmp_path):
    made = Made(tmp_path / "run", AlarmConfig())
    logged = go(made, 1, 20)
    assert logged[0]["gold"] == len("It is red.") and logged[0]["probe/flattery"] == logged[0]["alarms"] == 0.0
    assert logged[-1]["probe/flattery"] == 1.0 and logged[-1]["probe/repetition"] == 0.0
    alarms = read_alarms(made)  # pyright: ignore[reportArgumentType]
    assert {alarm.probe for alarm in alarms} == {"flattery"} and len(alarms) == logged[-1]["alarms"]
    assert alarms[0].step >= 7 and alarms[0].samples[0] == f"{alarms[0].step}/0" and len(alarms[0].samples) == 10
    assert len(made.lines) == len(alarms) and "ALARM" in made.lines[0] and "Flattery" in made.lines[0]


def test_a_continued_run_raises_the_same_alarms(tmp_path):
    whole, cut = Made(tmp_path / "whole", AlarmConfig()), Made(tmp_path / "cut", AlarmConfig())
    go(whole, 1, 20)
    go(cut, 1, 12)  # killed: its last checkpoint is after step 9
    go(cut, 10, 20)
    for name in ("probes.jsonl", "alarms.jsonl"):
        assert rows(tmp_path / "cut", name) == rows(tmp_path / "whole", name)


def test_without_alarms_only_gold_is_logged(tmp_path):
    assert go(Made(tmp_path / "run"), 1, 1) == [{"gold": 10.0}]
    assert list((tmp_path / "run").iterdir()) == []
