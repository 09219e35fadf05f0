"""A recipe with every stage that runs in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from trimtab.testing.toys import prompts, save_model, sentences

TOY: dict[str, Any] = {
    "name": "toy",
    "seed": 0,
    "threads": 1,
    "model": {"name": "MODEL", "context": 64},
    "data": {
        "demonstrations": "data/demonstrations.jsonl",
        "prompts": "data/prompts.jsonl",
        "heldout": "data/heldout.jsonl",
    },
    "gold": "trimtab.feedback.gold.friendly_utility",
    "sft": {
        "adapter": {"kind": "lora", "rank": 4, "alpha": 8},
        "optimizer": {"lr": 1e-2},
        "epochs": 4,
        "batch": 8,
    },
    "sample": {"prompts": 24, "answers": 3, "sampler": {"max_new_tokens": 12, "slots": 32}},
    "label": {"source": "simulated", "simulation": {"annotators": 3, "overlap": 2, "noise": 0.2}},
    "reward": {
        "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "top_layers": 2},
        "optimizer": {"lr": 5e-3},
        "epochs": 4,
        "batch": 8,
    },
    "align": {
        "method": "ppo",
        "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "top_layers": 2},
        "steps": 8,
        "prompts": 8,
        "sampler": {"max_new_tokens": 12, "slots": 32},
        "policy": {"lr": 2e-3, "schedule": "constant"},
        "critic": {"lr": 2e-3, "schedule": "constant"},
        "epochs": 2,
    },
    "evaluate": {"sampler": {"max_new_tokens": 12, "slots": 32}, "examples": 4},
    "checkpoint_every": 3,
}
"""Sections of :func:`toy_recipe`: all training stages, on a model of about ten thousand weights."""


def toy_recipe(folder: Path, **sections: Any) -> Path:
    """Write a tiny model, small data files and a recipe into ``folder``; running it takes seconds.

    Args:
        folder: created if missing.
        sections: replacements for top-level sections of :data:`TOY`; None removes a section. The capability check is
            off unless given.

    Returns:
        path of ``recipe.yaml``. Its data paths are relative to it, its model path is absolute.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():  # a second call changes settings only
        save_model(folder / "model")
    questions, answers = sentences(40, words=4), sentences(40, words=5, start=500)
    demonstrations = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in zip(questions, answers, strict=True)
    ]
    _jsonl(folder / "data" / "demonstrations.jsonl", demonstrations)
    _jsonl(folder / "data" / "prompts.jsonl", [{"prompt": p.text} for p in prompts(32)])
    _jsonl(folder / "data" / "heldout.jsonl", [{"prompt": text} for text in sentences(10, words=4, start=2000)])
    values = TOY | {"model": TOY["model"] | {"name": str((folder / "model").resolve())}} | sections
    path = folder / "recipe.yaml"
    values = {k: v for k, v in values.items() if v is not None} | {"capability": sections.get("capability")}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
