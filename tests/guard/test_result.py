"""``report.json`` and ``guard.json`` of a guard: their format is that of earlier versions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.guard.detector import Detector, Member, Place
from trimtab.guard.lexical import Lexical, Rules
from trimtab.guard.output import OutputProbe
from trimtab.guard.probe import Probe
from trimtab.guard.report import report_lines
from trimtab.guard.result import GuardResult
from trimtab.guard.settings import GuardedModel, OutputTraining, TrainingFacts
from trimtab.guard.storage import save_guard
from trimtab.guard.stream import Smoothing

SHARE = {"value": 0.75, "low": 0.25, "high": 1.0, "n": 4}
SUBJECTS = SHARE | {"groups": 2}
ALONE = {"blocked": SUBJECTS, "refused": SUBJECTS}
PLAIN = ALONE | {"held_out": False, "below_plain": 0.0}
REQUESTS = {
    "escalated": None,
    "auroc": 0.9,
    "calibration": {"ece": 0.1, "bins": [{"low": 0.5, "high": 0.6, "confidence": 0.55, "accuracy": 1.0, "n": 4}]},
    "rules": SUBJECTS | {"value": None, "low": None, "high": None, "n": 0},
    "families": {"plain": PLAIN, "hex": ALONE | {"held_out": True, "below_plain": 0.25}},
    "succeeds": None,
    "unread": 0,
}
COST = {"request": 1.5, "step": None, "output_bytes": 0, "second": None, "second_bytes": 0}
TEXT = {
    "version": "0123456789ab",
    "data": [],
    "constitution": "default",
    "guard_version": "ba9876543210",
    "budget": 0.01,
    "threshold": 0.5,
    "second": None,
    "requests": REQUESTS,
    "answers": {"reason": "the guard does not check answers"},
    "cost": COST,
}
TRAINING = {"auroc": {name: 0.75 for name in ("first stage", "last layer", "adapter", "both")}}
WHOLE = TEXT | {
    "data": ["own.jsonl"],
    "second": {
        "band": {"low": 0.25, "high": 0.75, "share": 0.1, "counted": 40, "on": "ordinary"},
        "escalate": 0.1,
        "threshold": 0.5,
        "training": TRAINING | {"blocked": {"first stage": 0.25, "both": 0.5}},
    },
    "requests": REQUESTS
    | {
        "escalated": {kind: SUBJECTS for kind in ("ordinary", "harmless", "restricted")},
        "families": {"plain": ALONE | {"held_out": False, "first_stage": ALONE, "below_plain": 0.0}},
        "succeeds": {"family": "hex", "text": "6f", "score": 0.25, "threshold": 0.5, "passes": 1.0},
    },
    "answers": {
        "planted": 4,
        "harmless": 4,
        "delay": 3,
        "early": SHARE,
        "false_alarms": SHARE,
        "missed": SHARE,
        "hold_back": [{"size": 4, "leaks": SHARE, "tokens": 2.5}],
        "sentences": 8,
    },
    "cost": COST | {"step": 0.25, "output_bytes": 128, "second": 2.5, "second_bytes": 1024},
}


@pytest.mark.parametrize("value", [TEXT, WHOLE, WHOLE | {"answers": WHOLE["answers"] | {"delay": 2.5}}])
def test_a_report_of_an_earlier_version_is_read_and_written_unchanged(value: dict[str, Any]):
    result = GuardResult.model_validate(value)
    assert json.dumps(result.as_json()) == json.dumps(value)
    lines = "\n".join(report_lines(result))
    assert ("second stage: Escalated here: 75" in lines) == (value["second"] is not None)
    assert ("answers: the guard does not check answers" in lines) == (value is TEXT)


def test_settings_have_the_format_of_earlier_versions(tmp_path: Path):
    lexical = Lexical.fit(["red tea", "red cup", "blue tea", "blue cup"], [1, 1, 0, 0])
    detector = Detector(
        members=(
            Member(name="lexical", model=lexical, slope=0.5),
            Member(name="probe mean", model=Probe(np.ones(4, np.float32), 0.25), place=Place(pooling=0, layer=0)),
        ),
        slope=1.5, offset=-0.5, threshold=0.75,
    )  # fmt: skip
    output = OutputProbe(
        layer=2, probe=Probe(np.zeros(4, np.float32), 0.5), smoothing=Smoothing(kind="mean"), threshold=1.0
    )
    facts = TrainingFacts(
        constitution="default", guard_version="ba9876543210", config={"budget": 0.01}, counts={"requests": 4},
        layers=(1, 2), layer_scores={"mean": (0.5, 0.75)},
        output=OutputTraining(layer_scores=(0.5, 0.75), delays={"mean": 1.0}),
    )  # fmt: skip
    version = save_guard(
        tmp_path / "guard", detector, second=None, output=output, facts=facts, layer=1,
        rules=Rules.fit(lexical, ["red tea", "red cup"], ["tea", "cup"]), reasons={"tea": "No tea."},
        model=GuardedModel(name="tiny", identity={"name": "tiny"}, width=4, layers=3),
    )  # fmt: skip
    assert (tmp_path / "guard" / "guard.json").read_text() == json.dumps(
        {
            "format": 2,
            "members": [
                {"name": "lexical", "slope": 0.5, "offset": 0.0},
                {"name": "probe mean", "slope": 1.0, "offset": 0.0, "pooling": 0},
            ],
            "slope": 1.5,
            "offset": -0.5,
            "threshold": 0.75,
            "layer": 1,
            "model": {"name": "tiny", "identity": {"name": "tiny"}, "width": 4, "layers": 3},
            "rules": {"cup": "", "tea": "No tea."},
            "second": None,
            "output": {
                "layer": 2,
                "smoothing": {"kind": "mean", "alpha": 0.25, "drift": 0.0, "clip": 4.0},
                "threshold": 1.0,
            },
            "facts": {
                "constitution": "default",
                "guard_version": "ba9876543210",
                "config": {"budget": 0.01},
                "counts": {"requests": 4},
                "layers": [1, 2],
                "layer_scores": {"mean": [0.5, 0.75]},
                "output": {"layer_scores": [0.5, 0.75], "delays": {"mean": 1.0}},
            },
            "version": version,
        },
        indent=2,
    ) + "\n"  # fmt: skip
