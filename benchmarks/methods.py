"""Every method of alignment for a few steps on the quickstart's model, data and reward model, and what it did.

Every method of the table is run from a recipe of its own, and some in a second form. Stages before ``align`` are taken
from a finished run of the quickstart recipe, as the pipeline takes them. ``--steps 1 --epochs 0.1`` only shows that
each of them runs. Online
methods are judged by the reward of their first and last steps (fresh prompts each), offline methods by their own loss
on preferences that were kept out.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from trimtab.errors import TrimtabError
from trimtab.files import write_json
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.reporting import machine
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.storage import read_metrics
from trimtab.trainers import METHODS, OfflineMethod

ADAPTER = {"kind": "lora", "rank": 16, "alpha": 32, "top_layers": 6}
STEADY = {"lr": 2e-3, "schedule": "constant", "warmup": 0.0}
SAMPLER = {"temperature": 0.7, "max_new_tokens": 48, "slots": 64}
OWN = {"dapo": {"resample": 1}, "kto": {"batch": 32}}
"""Settings of one method, beside those of its kind."""
FORMS = {
    "ppo, ptx": {"ptx": {"coefficient": 0.1, "batch": 8}},
    "dpo, conservative": {"label_smoothing": 0.1},
    "dpo, robust": {"label_smoothing": 0.1, "smoothing": "robust"},
    "dpo, moving reference": {"reference_update": {"every": 1, "alpha": 0.5}},
}
"""Second forms of a method, by its name before the comma."""


def sections(steps: int, epochs: float) -> dict[str, dict[str, Any]]:
    """The ``align`` section of every method."""
    online = {"adapter": ADAPTER, "steps": steps, "sampler": SAMPLER, "policy": STEADY}
    critic = {"critic": {"lr": 1e-3, "schedule": "constant", "warmup": 0.0}, "lam": 1.0, "epochs": 1, "minibatches": 2}
    offline = {"adapter": ADAPTER, "optimizer": {"lr": 5e-4}, "epochs": epochs, "batch": 8, "holdout": 0.1}
    by_method: dict[str, dict[str, Any]] = {}
    for name, row in METHODS.items():
        if isinstance(row, OfflineMethod):
            settings = dict(offline)
        elif row.config.model_fields["group"].default > 1:
            settings = online | {"prompts": 8, "group": 4}
        else:
            settings = online | {"prompts": 32 if row.opponent is None else 16} | (critic if row.critic else {})
        by_method[name] = {"method": name} | settings | OWN.get(name, {})
    return by_method | {name: by_method[name.split(",")[0]] | more for name, more in FORMS.items()}


def recipe_of(values: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a method. Offline methods have no rewards, and certain labels, because some take no soft ones."""
    values = values | {"align": section, "evaluate": None}
    if not isinstance(METHODS[section["method"]], OfflineMethod):
        return values
    aggregate = values["label"].get("aggregate", {}) | {"labels": "hard"}
    return values | {"reward": None, "rewards": None, "label": values["label"] | {"aggregate": aggregate}}


def main() -> int:
    """Run all methods, print a row each, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="a finished run of the quickstart")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.yaml"))
    parser.add_argument("--steps", type=int, default=6, help="rollout batches of the online methods")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes of the offline methods over the preferences")
    parser.add_argument("--only", nargs="*", default=[], help="names; all by default")
    parser.add_argument("--json", type=Path, default=Path("runs/methods.json"))
    options = parser.parse_args()
    if not (options.run / "stages" / "reward").exists():
        print(f"{options.run}: not a finished run; make it with `trimtab run {options.recipe}`", file=sys.stderr)
        return 2
    work = options.run.parent / f"{options.run.name}-methods"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(options.run, work, ignore=shutil.ignore_patterns("align", "evaluate", "report*"))
    values = yaml.safe_load(options.recipe.read_text()) | {"name": work.name}
    rows: list[dict[str, Any]] = []
    for name, section in sections(options.steps, options.epochs).items():
        if options.only and name not in options.only:
            continue
        recipe = options.recipe.with_name(f".{work.name}.yaml")
        recipe.write_text(yaml.safe_dump(recipe_of(values, section)))
        start = time.perf_counter()
        try:
            run_recipe(load_recipe(recipe), recipe, runs=options.run.parent, ui=Silent())
            facts = measured(work / "stages" / "align")
        except TrimtabError as error:
            facts = {"refused": str(error)}
        finally:
            recipe.unlink()
        rows.append({"method": name, "seconds": time.perf_counter() - start} | facts)
        print(json.dumps(rows[-1]), flush=True)
        write_json(options.json, {"machine": machine(), "steps": options.steps, "epochs": options.epochs, "rows": rows})
    refused = [row["method"] for row in rows if "refused" in row]
    if refused:
        print(f"did not run: {', '.join(refused)}", file=sys.stderr)
    return 1 if refused else 0


def measured(stage: Path) -> dict[str, Any]:
    """The objective before and after, and how far the policy went."""
    steps = read_metrics(stage / "metrics.jsonl")
    facts = stage / "align.json"
    if facts.exists():
        held = json.loads(facts.read_text())
        before, after = held["heldout_before"], held["heldout_after"]
        return {"what": "held-out loss", "before": before["loss"], "after": after["loss"], "steps": len(steps)}
    ends = [sum(row["reward"] for row in part) / len(part) for part in (steps[:2], steps[-2:])]
    return {"what": "reward", "before": ends[0], "after": ends[1], "steps": len(steps), "kl": steps[-1]["kl"]}


if __name__ == "__main__":
    sys.exit(main())
