"""A whole run whose alignment falls apart: it stops, or goes on with the last good weights."""

from pathlib import Path

import pytest
import torch

from trimtab.errors import CollapseError
from trimtab.models import load_tensors
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.context import Context
from trimtab.pipeline.reporting import training_alarms
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.testing import toy_recipe
from trimtab.trainers.guard import Guard


class Lines(Silent):
    """A console that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_run_that_falls_apart_stops_or_goes_on_with_the_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every step is healthy in the guard's eyes, and yet on the fifth it is made to say that the run fell."""
    judge = Guard.check

    def made_to_fall(self: Guard, metrics: dict[str, float]) -> str | None:
        assert judge(self, metrics) is None
        return "it was made to" if len(self.state_dict()) == 5 else None

    monkeypatch.setattr(Guard, "check", made_to_fall)
    recipe, runs = toy_recipe(tmp_path), tmp_path / "runs"
    small = ["align.prompts=16", "sft.epochs=1", "reward.epochs=1", "align.guard.kl=null", "checkpoint_every=2"]
    with pytest.raises(
        CollapseError, match=r"noticed at step 5: it was made to\. Last good checkpoint: .*step-000004\."
    ):
        run_recipe(load_recipe(recipe, small), recipe, runs=runs, until="align", ui=Lines())
    checkpoint = load_tensors(runs / "toy/stages/align/checkpoints/step-000004/policy.safetensors")
    ui, keep = Lines(), load_recipe(recipe, [*small, "align.guard.on_fall=keep"])
    run = run_recipe(keep, recipe, runs=runs, until="align", ui=ui)
    status = run.status("align")
    assert status is not None and (status.counts["steps"], status.counts["fell_apart_at_step"]) == (4, 5)
    [line] = [line for line in ui.lines if "ALIGNMENT FELL APART" in line]
    assert "noticed at step 5: it was made to" in line and "those after 4 of 8 steps" in line
    [alarm] = [a for a in training_alarms(Context(config=keep, recipe=recipe, run=run, ui=ui)) if "apart" in a.name]
    assert alarm.name == "Alignment fell apart at step 5" and "those after 4 steps" in alarm.message
    weights = load_tensors(run.stage("align") / "weights.safetensors")
    assert all(torch.equal(weights[name], checkpoint[name]) for name in checkpoint)
