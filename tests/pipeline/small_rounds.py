"""A recipe whose rounds take a second or two each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.run import run_recipe
from trimtab.storage import RunFolder
from trimtab.testing import toy_recipe

from .console import Remembering

SAMPLER = {"max_new_tokens": 6, "slots": 32}
ADAPTER = {"kind": "lora", "rank": 2, "alpha": 4, "top_layers": 1}
SMALL: dict[str, Any] = {
    "sft": {"adapter": ADAPTER, "optimizer": {"lr": 1e-2}, "epochs": 1, "batch": 16},
    "sample": {"prompts": 16, "answers": 2, "sampler": SAMPLER},
    "label": {"source": "simulated", "simulation": {"annotators": 3, "overlap": 2, "noise": 0.5}},
    "reward": {"adapter": ADAPTER, "optimizer": {"lr": 5e-3}, "epochs": 2, "batch": 8, "holdout": 0.25},
    "align": {
        "method": "rloo", "adapter": ADAPTER, "steps": 2, "prompts": 4, "group": 2, "sampler": SAMPLER,
        "policy": {"lr": 2e-3, "schedule": "constant"},
    },
    "alarms": None,
    "evaluate": {"sampler": SAMPLER, "examples": 4, "gain": False},
}  # fmt: skip


def small_recipe(folder: Path, **sections: Any) -> Path:
    return toy_recipe(folder, **SMALL | sections)


def go(recipe: Path, *overrides: str, until: str | None = None) -> tuple[RunFolder, Remembering]:
    ui = Remembering()
    config = load_recipe(recipe, list(overrides))
    return run_recipe(config, recipe, runs=recipe.parent / "runs", until=until, ui=ui), ui
