"""The comparison on a finished run's task: two cells on the toy run, continued, and every method's settings."""

import json
from pathlib import Path

import pytest

from benchmarks.method_curves import main
from benchmarks.methods import sections
from benchmarks.real_task import AlarmMonitor, interval, online_config, table
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.records import Prompt, Rollout
from trimtab.testing import toy_recipe
from trimtab.trainers import METHODS, ONLINE, OnlineMethod, check_rl

ALIGN = {
    "method": "rloo", "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "top_layers": 2}, "steps": 2, "prompts": 4,
    "group": 2, "sampler": {"max_new_tokens": 12, "slots": 32}, "policy": {"lr": 1e-3},
}  # fmt: skip


def test_cells_are_written_one_by_one_and_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = toy_recipe(tmp_path, align=ALIGN)
    options = ["--run", str(tmp_path / "runs" / "toy"), "--recipe", str(recipe), "--json", str(tmp_path / "c.json")]
    size = ["--answers", "8", "--prompts", "4", "--seeds", "1"]
    assert main([*options, *size]) == 2 and "no trained reward model" in capsys.readouterr().err
    run_recipe(load_recipe(recipe), recipe, runs=tmp_path / "runs", ui=Silent())
    assert main([*options, *size, "--only", "xpo"]) == 0
    first = json.loads((tmp_path / "c.json").read_text())["cells"]
    assert [c["method"] for c in first] == ["start", "xpo"] and first[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert main([*options, *size, "--only", "xpo", "dpo"]) == 0
    cells = json.loads((tmp_path / "c.json").read_text())["cells"]
    assert cells[:2] == first and [c["method"] for c in cells] == ["start", "xpo", "dpo"]
    assert all({"proxy", "gold", "kl", "tokens", "seconds"} <= c.keys() for c in cells)
    assert cells[1]["alarms"] == [] and "alarms" not in cells[2]  # only online methods are watched
    assert "| `dpo` |" in capsys.readouterr().out
    assert main([*options, "--answers", "16", "--prompts", "4"]) == 2
    assert "give another --json" in capsys.readouterr().err


def test_every_online_method_gets_the_same_number_of_answers(tmp_path: Path):
    align = load_recipe(toy_recipe(tmp_path, align=ALIGN)).align
    for row in ONLINE.values():
        config = online_config(align, row, 384)  # type: ignore[arg-type]
        check_rl(config, 100)
        drawn = config.steps * config.prompts * config.group * (1 if row.opponent is None else 2)
        assert drawn == 384, config.method


def test_an_alarm_is_listed_with_its_step():
    """From the eighth step on all answers are cut."""

    def answers(step: int) -> list[Rollout]:
        return [
            Rollout(
                id=f"{step}-{i}", prompt=Prompt.from_text(f"Say {i}."), prompt_tokens=[1], tokens=[2, 3], text="So.",
                logprobs=[-1.0, -1.0], finish_reason="length" if step > 7 else "stop", weight_version=step,
            )
            for i in range(32)
        ]  # fmt: skip

    monitor = AlarmMonitor(12, 16)
    for step in range(1, 13):
        assert monitor(step, answers(step)) == {}
        assert (step > 7) or monitor.raised == []
    assert monitor.raised[0].startswith("cut (") and "at step" in monitor.raised[0]


def test_gains_are_over_the_start():
    cells = [
        {"method": m, "seed": s, "proxy": p, "gold": g, "kl": k}
        for m, s, p, g, k in (
            ("start", 0, 1.0, 5.0, 0.0),
            ("dpo", 0, 2.0, 6.0, 3.0),
            ("dpo", 1, 2.0, 8.0, 5.0),
        )
    ]
    out = table([*cells, {"method": "plackett_luce", "seed": 0, "refused": "ties"}])
    assert "| `dpo` | 1.00 ± 0.00 | 2.00 ± 12.71 | 4.00 ± 12.71 | 2 |" in out  # t with one degree of freedom: 12.706
    assert "| `plackett_luce` | refused: ties" in out
    assert interval([3.0]) == "3.00"


def test_every_method_has_a_recipe():
    by_name = sections(1, 0.1)
    assert set(METHODS) <= set(by_name)
    for name, section in by_name.items():
        row = METHODS[section["method"]]
        config = row.config(**section)
        if isinstance(row, OnlineMethod):
            check_rl(config, 100)  # type: ignore[arg-type]
        assert name.split(",")[0] == config.method  # type: ignore[attr-defined]
