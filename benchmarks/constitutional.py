"""The whole constitutional recipe on its real model: ``python -m benchmarks.constitutional``.

Runs ``recipes/constitutional.yaml`` (a second call continues where the first was stopped, and a finished run is only
read) and writes what revision kept, what the judge was like, the KL per answer, and harmlessness, helpfulness and
preachiness before and after. ``--set`` makes it smaller.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import machine, versions
from benchmarks.tables import replace_table
from trimtab.evals import Measure
from trimtab.feedback import Estimate
from trimtab.feedback.judge_report import shown
from trimtab.files import write_json
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.stages import STAGES
from trimtab.pipeline.ui import Ui
from trimtab.storage import RunFolder, read_json


def change(measure: Measure) -> str:
    """A row: before, after, and the difference with its interval."""
    before, after, result = measure.before, measure.after, measure.change
    if before.value is None or after.value is None or result.value is None:
        return f"| {measure.name} | {measure.how} | | | {result.reason} |"
    bounds = "" if None in (result.low, result.high) else f" [{100 * result.low:+.1f}, {100 * result.high:+.1f}]"
    return (
        f"| {measure.name} | {measure.how} | {before.value:.1%} | {after.value:.1%} | "
        f"{100 * result.value:+.1f}{bounds} of {result.n} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/constitutional.yaml"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/constitutional.json"))
    parser.add_argument("--docs", type=Path, help="page with the marks <!-- constitutional --> whose table is replaced")
    options = parser.parse_args(arguments)
    before = machine()
    config = load_recipe(options.recipe, options.changes)
    run_recipe(config, options.recipe, runs=options.runs, ui=Ui())
    run = RunFolder(options.runs / config.name, create=False)
    seconds = {s.name: status.seconds for s in STAGES if (status := run.status(s.name)) is not None}
    revise = read_json(run.stage("revise") / "revise.json")
    judges = read_json(run.stage("label") / "judge" / "judge.json")["judges"]
    (judge,) = judges.values()
    kl = read_json(run.stage("evaluate") / "evaluation.json")["kl"]
    measures = [Measure.model_validate(m) for m in read_json(run.stage("balance") / "balance.json")["measures"]]
    facts = {key: Estimate(**judge["run"][key]) for key in ("position_bias", "flip_rate", "longer_wins")}
    outcomes = ", ".join(f"{count} {name}" for name, count in revise["counts"].items())
    lines = [
        f"{sum(seconds.values()) / 60:.0f} minutes in all ("
        + ", ".join(f"{name} {s / 60:.1f}" for name, s in seconds.items())
        + f"). Revisions: {outcomes}. The judge of the preferences: shown first wins {shown(facts['position_bias'])}, "
        f"orders contradict {shown(facts['flip_rate'])}, longer wins {shown(facts['longer_wins'])}. "
        f"KL per answer {kl['value']:.3f} [{kl['low']:.3f}, {kl['high']:.3f}] nats.",
        "",
        "| property | measured by | before | after | change in points |",
        "|---|---|---|---|---|",
        *map(change, measures),
    ]
    print(*lines, sep="\n")
    result = {"seconds": seconds, "revise": revise, "judge": judge, "kl": kl}
    result["measures"] = [m.model_dump(mode="json") for m in measures]
    write_json(options.out, {"machine": before, "versions": versions(), "changes": options.changes} | result)
    if options.docs is not None:
        replace_table(options.docs, "constitutional", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
