"""Ours and TRL side by side: ``python -m benchmarks.peers``.

For each workload a process of ours and one of TRL's, both alive at once, take turns: one step of ours, one of
theirs, again and again, the other waiting without load. Both have the same weights, rows, tokens and threads, in
float32. The first step of each is a warm-up and is not timed; it is where loss and gradient norm are compared, on the
same batch (with the same answers, for RLOO and GRPO). PPO's processes are too large to be alive together and run one
after the other.

TRL runs in environments of its own, made on first use in a folder (``--envs``).
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from benchmarks import floors
from benchmarks.channel import Child, ChildFailed, environment
from benchmarks.machine import cores, machine, versions
from benchmarks.steps import kinds, positive
from benchmarks.workloads import Kind, Settings, Workload
from trimtab.errors import TrimtabError
from trimtab.files import write_atomic, write_json

ROOT = Path(__file__).parents[1]
DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_DATA = "../shared/data/pairwise/hh-harmless-base.jsonl.gz"

NEWER = ("1.14.2", "1.16.0")
"""Versions of TRL for everything but PPO."""
WITH_PPO = "1.12.0"
"""The last version of TRL with a PPO trainer."""

MICRO_BATCH = 8
"""Answers in memory at once in TRL's online trainers; with all 32 of a step it needs more than 24 GB."""


def _pair(**fields: Any) -> list[Workload]:
    return [Workload(adapter="full", **fields), Workload(adapter="lora", **fields)]


WORKLOADS: tuple[Workload, ...] = (
    *_pair(kind="sft", batch=8),
    *_pair(kind="reward", batch=8),
    *_pair(kind="dpo", batch=8, cached=False),
    *_pair(kind="dpo", batch=8),
    *_pair(kind="rloo", batch=8, group=4),
    *_pair(kind="grpo", batch=8, group=4),
    *_pair(kind="ppo", batch=32, epochs=4),
    Workload(kind="ppo", adapter="full", batch=32, epochs=4, shared_critic=True),
    Workload(kind="ppo", adapter="lora", top_layers=10, batch=32, epochs=4, shared_critic=True),
    *_pair(kind="decode", batch=8),
    *_pair(kind="decode", batch=32),
    *_pair(kind="decode", batch=64),
)

TARGETS = {
    "sft 8, full": 1.5,
    "reward 8, full": 1.5,
    "dpo 8, full, reference in the step": 2.8,
    "dpo 8, full": 3.5,
    "rloo 8×4, full": 4.0,
    "grpo 8×4, full": 4.0,
    "ppo 32, full": 3.5,
    "ppo 32, full, shared critic": 3.5,
    "ppo 32, lora top 10, shared critic": 7.0,
    "decode 32, full": 4.0,
}
"""The multiple of TRL's speed that each is meant to reach; PPO's with adapters is against TRL's full step."""


# Measuring --------------------------------------------------------------------------------


def environment_of(version: str, folder: Path) -> Path:
    """Python of an environment with this version of TRL, made if it is missing (some minutes, 1.5 GB)."""
    python = folder / f"trl-{version}" / "bin" / "python"
    done = folder / f"trl-{version}" / ".ready"
    if not done.exists():
        Console(stderr=True).print(f"making an environment with TRL {version} …", highlight=False)
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        limits = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([*install, *limits, "torch==2.13.0", "numpy"], check=True)
        subprocess.run([*install, *limits, f"trl=={version}", "peft", "transformers", "datasets"], check=True)
        done.touch()
    return python


def compare(
    workload: Workload, settings: Settings, pythons: dict[str, Path], *, minutes: float, answer_seconds: float
) -> dict[str, Any]:
    """Run one workload on all sides, in turn.

    Args:
        workload: what is done.
        settings: how; ``repeats`` are the timed steps of each side.
        pythons: by name of the side, the Python that has it; ours has no place here.
        minutes: no further repeat begins after so many; one is always taken.
        answer_seconds: a step or a start that takes longer counts as failed.

    Returns:
        ``sides``: by name, ``seconds`` and ``cpu_seconds`` of each timed step, ``median`` and ``cpu_median`` of them,
        ``loaded_mib``, ``peak_mib``, ``first`` (the metrics of the first step, all on the same batch) and ``error``;
        ``phases``: the floor's; ``update_operations``, with what all prompts begin with counted in each, as it is
        computed there; ``measured_peaks``: this machine's before, between and after the timed steps, all
        sides waiting; ``peaks``: their medians.
    """
    result: dict[str, Any] = {"sides": {}, "measured_peaks": []}

    def peak() -> None:
        result["measured_peaks"].append(json.loads(_run(["-m", "benchmarks.floors", str(settings.threads)])))

    started = time.monotonic()
    together = workload.kind != "ppo"
    running: dict[str, _Side] = {}
    with tempfile.TemporaryDirectory() as scratch:
        batch_file = Path(scratch) / "batch.json"
        ours = _Side("ours", result)
        request = {"workload": asdict(workload), "settings": asdict(settings), "batch_file": str(batch_file)}
        ours.start([sys.executable, "-m", "benchmarks.measure"], request, answer_seconds)
        job: dict[str, Any] = {
            "workload": asdict(workload),
            "threads": settings.threads,
            "full_length": settings.full_length,
            "batch_file": str(batch_file),
            "scratch": scratch,
            "micro_batch": min(MICRO_BATCH, workload.batch * workload.group),
            **{key: ours.ready[key] for key in ("model", "adapter_seed", "beta") if key in ours.ready},
        }
        if ours.alive:
            shape = floors.Shape.of(json.loads((Path(ours.ready["model"]) / "config.json").read_text()))
            batch = json.loads(batch_file.read_text())
            result["phases"] = [asdict(phase) for phase in floors.count(workload, batch, shape)]
            done = [p.operations for p in floors.count(workload, batch, shape, common=False) if p.name == "update"]
            result["update_operations"] = sum(done)
            running["ours"] = ours
            ours.step({}, timed=False)
        answers = ours.last.get("answers") or []
        if not together:
            _repeat(running, settings.repeats, started, minutes, peak)
            ours.close()
        for name, python in pythons.items():
            side = _Side(name, result)
            if "model" in job:
                side.start([str(python), "-m", "benchmarks.trl_side"], job, answer_seconds)
            if side.alive:
                running[name] = side
                side.step({"answers": answers} if workload.group > 1 else {}, timed=not together)
            if not together:
                side.close()
        if together:
            _repeat(running, settings.repeats, started, minutes, peak)
        for side in running.values():
            side.close()
    for side in result["sides"].values():
        if side["seconds"]:
            side["median"] = statistics.median(side["seconds"])
            side["cpu_median"] = statistics.median(side["cpu_seconds"])
    measured = result["measured_peaks"]
    result["peaks"] = {key: statistics.median(peaks[key] for peaks in measured) for key in ("operations", "bytes")}
    return result


def _repeat(
    running: dict[str, "_Side"], repeats: int, started: float, minutes: float, peak: Callable[[], None]
) -> None:
    """Steps of all sides in turn; the machine's peak before, between and after them."""
    peak()
    for number in range(repeats):
        if number and time.monotonic() - started > 60 * minutes:
            return
        for side in running.values():
            side.step({}, timed=True)
        peak()


class _Side:
    """A process that takes steps when asked, and what it has said so far; a failure ends it and is noted."""

    def __init__(self, name: str, found: dict[str, Any]) -> None:
        self.found = found["sides"][name] = {"error": None, "seconds": [], "cpu_seconds": [], "peak_mib": 0.0}
        self.ready: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self.alive = False
        self._child: Child | None = None

    def start(self, command: Sequence[str], job: dict[str, Any], seconds: float) -> None:
        """Start it and wait until it is ready."""
        self._child = Child(command, environment(), seconds=seconds)
        self.alive = True
        self.ready = self._ask(job)
        self.found |= {key: self.ready[key] for key in ("loaded_mib", "versions") if key in self.ready}

    def step(self, order: dict[str, Any], *, timed: bool) -> None:
        """Take one step."""
        if not self.alive:
            return
        self.last = self._ask(order)
        if not self.alive:
            return
        self.found.setdefault("first", self.last["metrics"])
        if timed:
            self.found["seconds"].append(self.last["seconds"])
            self.found["cpu_seconds"].append(self.last["cpu_seconds"])
            self.found["metrics"] = self.last["metrics"]
        else:
            self.found["warm_up_seconds"] = self.last["seconds"]
        self.found["peak_mib"] = max(self.found["peak_mib"], self.last["peak_mib"])

    def close(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.close()
        self.alive, self._child = False, None

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._child is not None
        try:
            return self._child.ask(order)
        except ChildFailed as error:
            self.found["error"] = str(error)
            self.close()
            return {}


def _run(arguments: Sequence[str]) -> str:
    """Our Python with this repository on its path."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment(), check=True, timeout=900
    )
    return done.stdout


# Reporting --------------------------------------------------------------------------------


COLUMNS = ("workload", "ours s", "TRL s", "times", "CPU times", "target", "ours GiB", "TRL GiB", "floor s", "of floor")


def fastest(result: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The faster of the other sides that finished."""
    others = [(n, s) for n, s in result["sides"].items() if n != "ours" and "median" in s and s["error"] is None]
    return min(others, key=lambda pair: pair[1]["median"]) if others else None


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's cells under :data:`COLUMNS`. PPO beside which no TRL ran is held against its full step elsewhere."""
    full_ppo = next((f for r in report["results"] if r["workload"]["kind"] == "ppo" and (f := fastest(r))), None)
    table = []
    for result in report["results"]:
        ours = result["sides"]["ours"]
        name = result["name"]
        against = fastest(result) or (full_ppo if result["workload"]["kind"] == "ppo" else None)
        cells = [name]
        if "median" in ours:
            cells.append(f"{ours['median']:.3g}")
        else:
            cells.append("failed")
        cells.append("–" if against is None else f"{against[1]['median']:.3g} ({against[0].removeprefix('TRL ')})")
        for key in ("median", "cpu_median"):
            known = against is not None and key in ours
            cells.append(f"{against[1][key] / ours[key]:.2f}×" if known and against is not None else "–")
        cells.append(f"{TARGETS[name]:g}×" if name in TARGETS else "")
        cells.append(f"{ours['peak_mib'] / 1024:.1f}" if ours["peak_mib"] else "–")
        cells.append("–" if against is None else f"{against[1]['peak_mib'] / 1024:.1f}")
        floor = floor_seconds(result)
        cells.append("–" if floor is None else f"{floor:.0f}" if floor >= 100 else f"{floor:.2g}")
        cells.append(f"{floor / ours['median']:.0%}" if floor is not None and "median" in ours else "–")
        table.append(tuple(cells))
    return table


def floor_seconds(result: dict[str, Any]) -> float | None:
    """The least time the workload's phases take on the peaks measured around it."""
    if "phases" not in result:
        return None
    peak, bandwidth = result["peaks"]["operations"], result["peaks"]["bytes"]
    return sum(floors.Phase(**phase).seconds(peak, bandwidth) for phase in result["phases"])


def update_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Operations of our update a second, the phase of that name or a step that is nothing else, against the peak."""
    table = []
    for result in report["results"]:
        ours, names = result["sides"]["ours"], {phase["name"] for phase in result.get("phases", ())}
        seconds = ours.get("metrics", {}).get("seconds/update")
        if seconds is None and names == {"update", "optimiser"}:
            seconds = ours.get("median")
        if seconds is None:
            continue
        rate, peak = result["update_operations"] / seconds, result["peaks"]["operations"]
        seen = [peaks["operations"] / 1e9 for peaks in result["measured_peaks"]]
        peaks = f"{peak / 1e9:.0f} ({min(seen):.0f}–{max(seen):.0f})"
        table.append((result["name"], f"{seconds:.3g}", f"{rate / 1e9:.0f}", peaks, f"{rate / peak:.0%}"))
    return table


def equality_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Loss and gradient norm of the first step on every side."""
    table = []
    for result in report["results"]:
        for side, values in result["sides"].items():
            first = values.get("first", {})
            loss = first.get("loss", first.get("policy_loss", first.get("loss/policy_avg")))
            norm = first.get("grad_norm", first.get("policy_grad_norm"))
            if loss is not None:
                shown = "–" if norm is None else f"{norm:.6g}"
                table.append((result["name"], side, f"{loss:.6g}", shown))
    return table


_NOTES = """\
- `times`: TRL's median over ours; of several versions of TRL the faster is named. PPO with adapters, and PPO whose
  critic is a head on the policy's states (`shared critic`), are held against TRL's step, which trains all weights of
  two models: TRL has no shared trunk. `target`: what we want to reach.
- `CPU times`: the same ratio of processor seconds, all threads together. On a busy machine it moves less.
- `GiB`: the most memory the process ever held (its high-water mark, libraries included).
- `floor s`: counted operations over the matrix peak, or bytes over the bandwidth, whichever is longer, phase by phase
  (see `benchmarks/floors.py`); `of floor`: that, as a share of our time.
- TRL draws answers through PEFT's layers, as its trainers do; with merged adapters its `decode` is that of the row
  without. Our processes make the C library keep freed memory (`fast_cpu/allocation.py`); TRL's do not.
- Answers have exactly the length shown on both sides: no token ends them. That spares TRL its unfinished rows, and us
  nothing.
- PPO's processes are too large to be alive together. Ours takes its steps, the first not timed; then TRL takes one,
  its first, and that is timed.
"""

_UPDATE = """\
Ours, in the last timed step, the optimiser's time included. Operations are those the trainers compute on real tokens:
each prompt once, what all of them begin with in each (the floors count it once for all). The best matrix product is
measured before, between and after the timed steps; a wide range says how little one measurement is worth.
"""

_EQUAL = """\
SFT, reward model and DPO are the same function on both sides. RLOO and GRPO are compared on the same answers, those
that ours drew. RLOO's loss *value* differs by definition: TRL has the ratio of whole answers, ours of tokens; at a
ratio of 1 the gradients are the same. GRPO divides by deviation + 1e-4 there and + 1e-6 here. PPO is not the same
function: TRL adds 0.1 × ½ × the value loss to the policy loss, has one optimiser for both models, and means over
micro-batches; ours has two optimisers and means over the whole step. What is run is the same: as many passes, forward
and backward, over as many tokens.
"""


def markdown(report: dict[str, Any], numbers: str | None = None) -> str:
    """The report as a page that says how and on what it was made; ``numbers``: where all of them are, for a link."""
    here, settings = report["machine"], report["settings"]
    made = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    best = [r["peaks"] for r in report["results"]]
    peak, bandwidth = (statistics.median(b[key] for b in best) / 1e9 for key in ("operations", "bytes"))
    texts = "made-up sentences" if settings["data"] is None else f"`{Path(settings['data']).name}`"
    failed = [
        f"- {r['name']}, {side}: {values['error']}"
        for r in report["results"]
        for side, values in r["sides"].items()
        if values["error"] is not None
    ]
    spread = [
        (r["name"], side, str(len(v["seconds"])), f"{min(v['seconds']):.3g}–{max(v['seconds']):.3g}")
        for r in report["results"]
        for side, v in r["sides"].items()
        if v["seconds"]
    ]
    work = [
        (r["name"], p["name"], f"{p['operations'] / 1e12:.3g}", f"{p['bytes'] / 1e9:.3g}")
        for r in report["results"]
        for p in r.get("phases", ())
    ]
    others = sorted({side for r in report["results"] for side in r["sides"] if side != "ours"})
    days = sorted({r["date"][:10] for r in report["results"]})
    blocks = [
        "# Benchmarks: beside TRL",
        f"Measured on {' and '.join(days)} by what follows, in this order; run it to get the numbers of your machine:",
        "```\n" + "\n".join(report["commands"]) + "\n```",
        f"Machine: {here['processor']}, {here['cores']} cores ({settings['threads']} threads used), "
        f"{here['memory_gib']} GiB memory, {here['system']}; load average before the last {here['load_before']}. "
        f"Measured around each workload (medians): matrix product {peak:.0f} GFLOP/s, copying {bandwidth:.1f} GB/s. "
        "**The machine is shared with other work and noisy: read the spread with the median.**",
        f"Model: `{settings['model']}`, float32. Texts: {texts}. Versions: {made}; beside it {', '.join(others)}. TRL "
        f"{WITH_PPO} is its last version with a PPO trainer.",
        table(COLUMNS, rows(report)),
        *([] if numbers is None else [f"Every step's numbers: [{numbers}]({numbers})."]),
        _NOTES.strip(),
        "## The update against the matrix peak",
        _UPDATE.strip(),
        table(("workload", "update s", "GFLOP/s", "peak, median (range)", "of peak"), update_rows(report)),
        "## The same loss and gradient",
        _EQUAL.strip(),
        table(("workload", "side", "loss", "gradient norm"), equality_rows(report)),
        "## Spread",
        table(("workload", "side", "timed steps", "min–max s"), spread),
        "## What a step needs",
        table(("workload", "phase", "TFLOP", "GB moved"), work),
    ]
    if failed:
        blocks += ["## Failed", "\n".join(failed)]
    return "\n\n".join(blocks) + "\n"


def table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others stand to the right."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, rule, *cells])


def merge(report: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """Results of an earlier run, replaced where this one has the same workload, in the order of the list."""
    order = [w.name for w in WORKLOADS]
    by_name = {r["name"]: r for r in earlier["results"]} | {r["name"]: r for r in report["results"]}
    commands = [*earlier["commands"], *report["commands"]]
    return report | {"commands": commands, "results": sorted(by_name.values(), key=lambda r: order.index(r["name"]))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print the table, write files. Returns 1 if a side failed."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    settings = Settings(
        model=options.model,
        repeats=options.repeats,
        threads=options.threads,
        data=options.data,
        full_length=not options.ends,
    )
    chosen = [
        w
        for w in WORKLOADS
        if w.kind in options.only and options.adapter in (None, w.adapter) and options.named in (None, w.name)
    ]
    if not chosen:
        print("error: --only, --adapter and --named together leave no workload; drop one of them", file=sys.stderr)
        return 2
    report: dict[str, Any] = {
        "commands": [shlex.join(["python", "-m", "benchmarks.peers", *arguments])],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "settings": asdict(settings),
        "results": [],
    }
    earlier = json.loads(options.json.read_text()) if options.add and options.json and options.json.exists() else None
    console = Console(stderr=True)
    try:
        if options.model == DEFAULT_MODEL:  # unpacked on first use, which must not count as a workload's memory
            _run(["-c", "import sys; from trimtab.models.loading import resolve; resolve(sys.argv[1])", options.model])
        for number, workload in enumerate(chosen, 1):
            console.print(f"{number}/{len(chosen)} {workload.name} …", highlight=False)
            repeated = workload.shared_critic and options.named is None  # TRL's step is measured in another row
            alone = options.alone or (workload.kind == "ppo" and (workload.adapter == "lora" or repeated))
            wanted = () if alone else (WITH_PPO,) if workload.kind == "ppo" else options.trl
            pythons = {f"TRL {v}": environment_of(v, options.envs) for v in wanted}
            result = compare(workload, settings, pythons, minutes=options.minutes, answer_seconds=options.patience)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            report["results"].append({"name": workload.name, "date": now, "workload": asdict(workload), **result})
            for side, values in result["sides"].items():
                median = values.get("median")
                summary = values["error"] or f"{median or float('nan'):.3g} s, {values['peak_mib'] / 1024:.1f} GiB"
                console.print(f"    {side}: {summary}", highlight=False)
            if options.json is not None:
                write_json(options.json, report if earlier is None else merge(report, earlier))
        whole = report if earlier is None else merge(report, earlier)
        if options.out is not None:
            numbers = None if options.json is None else os.path.relpath(options.json, options.out.parent)
            write_atomic(options.out, markdown(whole, numbers))
    except TrimtabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(COLUMNS, rows(whole)))
    return 1 if any(v["error"] for r in report["results"] for v in r["sides"].values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here, after every workload")
    parser.add_argument("--add", action="store_true", help="keep what FILE already has of other workloads")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a Markdown page here")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="timed steps of each side (5)")
    parser.add_argument("--minutes", type=float, default=8.0, help="no further repeat of a workload after (8)")
    parser.add_argument("--patience", type=float, default=1800.0, metavar="S", help="longest wait for a step (1800)")
    parser.add_argument("--only", type=kinds, default=get_args(Kind), metavar="KINDS", help=",".join(get_args(Kind)))
    parser.add_argument("--adapter", choices=("full", "lora"), help="only full fine-tuning, or only LoRA")
    parser.add_argument(
        "--named", choices=[w.name for w in WORKLOADS], metavar="NAME", help="one workload, as in the table, beside TRL"
    )
    parser.add_argument("--trl", type=_versions, default=NEWER, metavar="VERSIONS", help=f"of {','.join(NEWER)} (both)")
    parser.add_argument("--alone", action="store_true", help="ours only; PPO is then held against TRL in another row")
    parser.add_argument("--envs", type=Path, default=Path(".peers"), metavar="FOLDER", help="TRL's environments")
    parser.add_argument("--ends", action="store_true", help="answers end where the model ends them")
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="as model.name in a recipe")
    parser.add_argument("--threads", type=positive, default=cores(), metavar="N", help="CPU threads (all cores)")
    parser.add_argument("--data", default=_shared(), metavar="FILE", help="preference file (HH harmless, if there)")
    parser.add_argument("--made-up", dest="data", action="store_const", const=None, help="made-up sentences instead")
    return parser


def _shared() -> str | None:
    path = ROOT / DEFAULT_DATA
    return os.path.relpath(path) if path.exists() else None


def _versions(text: str) -> tuple[str, ...]:
    result = tuple(text.split(","))
    if unknown := [v for v in result if v not in NEWER]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not compared with; use some of {','.join(NEWER)}")
    return result


if __name__ == "__main__":
    sys.exit(main())
