"""Where the time of a PPO step goes: ``python -m benchmarks.phases --out profile.md``.

For each phase of a step the seconds measured, the least that the counted operations and bytes allow on this machine
(``benchmarks/floors.py``), and what the processor did in it. Times are medians of steps without a profiler; the shares
come from one further step, with it. The machine's peaks are measured before the first and after every timed step.
"""

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import floors, measure
from benchmarks.machine import cores, machine, versions
from benchmarks.workloads import Settings, Workload
from trimtab.files import write_atomic
from trimtab.models.loading import resolve
from trimtab.trainers import Session, rl

WORKLOADS = (
    Workload(kind="ppo", adapter="full", batch=32, epochs=4, shared_critic=True),
    Workload(kind="ppo", adapter="lora", top_layers=10, batch=32, epochs=4, shared_critic=True),
)

PARTS = {
    "sample": (("sample",), ("sample",)),
    "score and infer": (("score", "infer"), ("reference, reward model",)),
    "update": (("update",), ("update", "optimiser")),
}
"""By row of the table: the trainer's phases, and the floor's."""

KINDS = {
    "attention": ("scaled_dot_product", "aten::bmm", "aten::baddbmm"),
    "matrix products": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise", "aten::linear"),
}
"""What an operation's name begins with or contains; all else is the rest."""


class _Watch:
    """Time of each phase of each step, the machine's peaks around it, and in the last step what was done in it."""

    def __init__(self, steps: int, threads: int) -> None:
        self.steps, self.threads, self.done = steps, threads, 0
        self.peaks: list[dict[str, float]] = []
        self.seconds: list[dict[str, float]] = []
        self.shares: dict[str, dict[str, float]] = {}
        self._profile: profile | None = None

    def log(self, metrics: dict[str, Any]) -> None:
        """A step has ended."""
        self.done += 1
        if 1 < self.done < self.steps:
            self.seconds.append({k.removeprefix("seconds/"): v for k, v in metrics.items() if k.startswith("seconds/")})
        self._stop()
        if self.done < self.steps:
            self.peaks.append(floors.peaks(self.threads))
        if self.done == self.steps - 1:
            self._start()

    def lap(self, phase: str) -> None:
        """A phase has ended; the next begins."""
        if self._profile is not None:
            self.shares[phase] = self._stop()
            self._start()

    def _start(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._profile.start()

    def _stop(self) -> dict[str, float]:
        result = dict.fromkeys((*KINDS, "the rest"), 0.0)
        if self._profile is not None:
            self._profile.stop()
            for event in self._profile.key_averages():
                kinds = (kind for kind, names in KINDS.items() if any(name in event.key for name in names))
                result[next(kinds, "the rest")] += event.self_cpu_time_total / 1e6
        self._profile = None
        return result


def phases(workload: Workload, settings: Settings) -> list[dict[str, Any]]:
    """Run a warm-up step, ``settings.repeats`` timed ones and a profiled one.

    Returns:
        for each of :data:`PARTS`: ``name``, ``seconds``; the least that its ``operations`` and its ``bytes`` take, and
        both together (``floor``), on the median of ``peaks``, all that were measured; ``shares`` of the kinds of work.
    """
    backbone, pairs = measure._load(workload, settings)
    batch = measure._batch(workload, backbone, pairs)
    backbone.chat.end_tokens = frozenset()  # answers of exactly the length that is counted
    shape = floors.Shape.of(json.loads((Path(resolve(settings.model)) / "config.json").read_text()))
    watch = _Watch(settings.repeats + 2, settings.threads)

    class Clock(rl.Clock):
        def lap(self, name: str) -> None:
            super().lap(name)
            watch.lap(name)

    before, rl.Clock = rl.Clock, Clock
    try:
        measure._RUN[workload.kind](workload, backbone, pairs, watch.steps, Session(log=watch.log))
    finally:
        rl.Clock = before
    peaks = {key: statistics.median(measured[key] for measured in watch.peaks) for key in ("operations", "bytes")}
    needed = floors.count(workload, batch, shape)
    rows = []
    for name, (ours, counted) in PARTS.items():
        work = {kind: sum(watch.shares[phase][kind] for phase in ours) for kind in (*KINDS, "the rest")}
        rows.append(
            {
                "name": name,
                "seconds": statistics.median(sum(step[phase] for phase in ours) for step in watch.seconds),
                "operations": sum(p.operations for p in needed if p.name in counted) / peaks["operations"],
                "bytes": sum(p.bytes for p in needed if p.name in counted) / peaks["bytes"],
                "floor": sum(p.seconds(peaks["operations"], peaks["bytes"]) for p in needed if p.name in counted),
                "shares": {kind: seconds / sum(work.values()) for kind, seconds in work.items()},
                "peaks": watch.peaks,
            }
        )
    return rows


def markdown(found: dict[str, list[dict[str, Any]]], settings: Settings, command: str, here: dict[str, Any]) -> str:
    """The page."""
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    blocks = [
        "# Where the time of a PPO step goes",
        f"Written on {datetime.now(UTC):%Y-%m-%d} by\n\n```\n{command}\n```",
        f"on {here['processor']}, {here['cores']} cores of a shared cloud machine ({settings.threads} threads used), "
        f"{here['memory_gib']} GiB, load average before the start {here['load_before']}; {made}. `{settings.model}`, "
        "32 prompts, answers of 48 tokens, 4 epochs; policy, critic, reference and reward model.",
        "`operations`: seconds that what the mathematics needs takes with this machine's best matrix product; `bytes`: "
        "what must be moved, with its bandwidth (both the median of measurements around the timed steps); `floor`: the "
        "longer of the two, part by part (`benchmarks/floors.py`); `of floor`: floor over measured. The rest: what the "
        "processor was busy with.",
    ]
    for name, rows in found.items():
        rates = [measured["operations"] / 1e9 for measured in rows[0]["peaks"]]
        copying = statistics.median(measured["bytes"] for measured in rows[0]["peaks"])
        kinds = (*KINDS, "the rest")
        lines = [
            f"## {name}",
            "",
            f"Measured around the timed steps: {', '.join(f'{rate:.0f}' for rate in rates)} GFLOP/s; "
            f"{copying / 1e9:.0f} GB/s.",
            "",
            f"| phase | seconds | operations | bytes | floor | of floor | {' | '.join(kinds)} |",
            f"|---|---:|---:|---:|---:|---:|{'---:|' * len(kinds)}",
        ]
        total = {key: sum(row[key] for row in rows) for key in ("seconds", "operations", "bytes", "floor")}
        for row in [*rows, {"name": "the step", **total, "shares": None}]:
            shares = ["" if row["shares"] is None else f"{row['shares'][kind]:.0%}" for kind in kinds]
            cells = [
                row["name"],
                *(f"{row[key]:.3g}" for key in ("seconds", "operations", "bytes", "floor")),
                f"{row['floor'] / row['seconds']:.0%}",
            ]
            lines.append(f"| {' | '.join([*cells, *shares])} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phases", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="timed steps per workload (2)")
    parser.add_argument("--model", default="smollm2-135m-instruct", metavar="NAME", help="as model.name in a recipe")
    parser.add_argument("--threads", type=int, default=cores(), metavar="N", help="CPU threads (all cores)")
    parser.add_argument("--data", metavar="FILE", help="take texts from this preference file, not made-up ones")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a Markdown page here")
    options = parser.parse_args(arguments)
    here = machine()
    torch.set_num_threads(options.threads)
    settings = Settings(model=options.model, repeats=options.repeats, threads=options.threads, data=options.data)
    result = {workload.name: phases(workload, settings) for workload in WORKLOADS}
    page = markdown(result, settings, shlex.join(["python", "-m", "benchmarks.phases", *arguments]), here)
    print(page)
    if options.out is not None:
        write_atomic(options.out, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
