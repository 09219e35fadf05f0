"""What each part of ``trimtab.fast_cpu`` buys: ``python -m benchmarks.fast_parts``.

Every workload runs in fresh processes, with all parts, without one of them, and without any, in turn and again and
again, so that other work on the machine falls on all alike. Printed are the medians, relative to all parts.
"""

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import cores, machine, versions
from benchmarks.steps import DEFAULT_MODEL, run_python
from benchmarks.workloads import Settings, Workload

WORKLOADS = (
    Workload(kind="sft", adapter="full", batch=8),
    Workload(kind="sft", adapter="lora", batch=8),
    Workload(kind="rloo", adapter="lora", top_layers=10, batch=8, group=4),
    Workload(kind="decode", adapter="full", batch=64),
)

PARTS = ("allocation", "lora", "gradients", "packed", "decoder")
"""The modules of ``trimtab.fast_cpu``. Without ``packed`` there is no decoder either, which packs its own weights."""


def without(part: str) -> Callable[[], None]:
    """A function that switches one part off in this process; ``none`` leaves all on, ``all`` leaves all off."""

    def switch_off() -> None:
        from trimtab import fast_cpu
        from trimtab.fast_cpu import allocation

        stand_ins: dict[str, dict[str, Any]] = {
            "allocation": {"keep_freed_memory": lambda: False, "release_freed_memory": lambda: None},
            "lora": {"use_lora_linear": lambda model: None},
            "gradients": {"gradients_in_one_block": lambda model: nullcontext()},
            "packed": {"packed": lambda model: nullcontext(), "can_decode": lambda backbone: False},
            "decoder": {"can_decode": lambda backbone: False},
            "all": {"install": lambda: None},
            "none": {},
        }
        for name, stand_in in stand_ins[part].items():
            setattr(fast_cpu, name, stand_in)
        if part == "allocation":
            allocation.keep_freed_memory = lambda: False

    return switch_off


def child(part: str) -> int:
    """Measure the workload on standard input without a part."""
    from benchmarks import measure

    without(part)()
    return measure.main()


def compare(workloads: Sequence[Workload], settings: Settings, rounds: int) -> dict[str, Any]:
    """Seconds and memory of each workload by what is switched off, one entry a round."""
    results: dict[str, Any] = {w.name: {part: [] for part in ("none", *PARTS, "all")} for w in workloads}
    for round_ in range(rounds):
        for workload in workloads:
            for part, entries in results[workload.name].items():
                given = json.dumps({"workload": asdict(workload), "settings": asdict(settings)})
                done = run_python(["-m", "benchmarks.fast_parts", "--child", part], given)
                if done.returncode:
                    raise SystemExit(f"{workload.name} without {part}: {done.stderr.strip().splitlines()[-1]}")
                measured = json.loads(done.stdout)
                entries.append({"seconds": measured["median"], "peak_mib": measured["peak_mib"]})
                print(
                    f"round {round_ + 1}: {workload.name} without {part}: {measured['median']:.3g} s", file=sys.stderr
                )
    return results


def rows(results: dict[str, Any]) -> list[str]:
    """One line of a Markdown table per workload: seconds and MiB with all parts, then the factors without."""
    lines = [f"| workload | with all | {' | '.join(f'without {p}' for p in PARTS)} | without any |"]
    lines.append("|---" * (len(PARTS) + 3) + "|")
    for name, parts in results.items():
        seconds = {p: statistics.median(e["seconds"] for e in entries) for p, entries in parts.items()}
        memory = {p: statistics.median(e["peak_mib"] for e in entries) for p, entries in parts.items()}
        cells = [f"{seconds['none']:.3g} s, {memory['none']:.0f} MiB"]
        cells += [
            f"× {seconds[p] / seconds['none']:.2f}, {memory[p] - memory['none']:+.0f} MiB" for p in (*PARTS, "all")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fast_parts", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="fresh processes per cell (3)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed steps per process (3)")
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="as model.name in a recipe")
    parser.add_argument("--threads", type=int, default=cores(), metavar="N", help="CPU threads (all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--child", choices=("none", *PARTS, "all"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        return child(options.child)
    settings = Settings(model=options.model, repeats=options.repeats, threads=options.threads)
    with contextlib.suppress(KeyboardInterrupt):
        results = compare(WORKLOADS, settings, options.rounds)
        print("\n".join(rows(results)))
        if options.json is not None:
            options.json.write_text(
                json.dumps({"machine": machine(), "versions": versions(), "results": results}, indent=1)
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
