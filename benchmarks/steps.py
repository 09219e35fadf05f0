"""Time and memory of each trainer's step: ``python -m benchmarks.steps``.

Every workload of :mod:`benchmarks.workloads` runs in a fresh process, one after the other, so that
its peak memory is its own. A workload that fails (out of memory, for example) is reported as such
and the others still run.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from benchmarks.machine import cores, machine, versions
from benchmarks.workloads import WORKLOADS, Adapter, Kind, Settings, Workload
from trimtab.errors import TrimtabError
from trimtab.files import write_atomic, write_json

DEFAULT_MODEL = "smollm2-135m-instruct"

COLUMNS = ("workload", "step s", "min–max s", "tokens", "tokens/s", "before s", "loaded MiB", "peak MiB")
PHASES = ("sample", "score", "infer", "update")

_NOTES = """\
- `step s`: median seconds of one step; the warm-up step before the timed ones is dropped. `before s`: what happens
  once before the first step (adapters, copies of the weights, and for the reward model on upper layers what the frozen
  layers give for every text).
- `tokens`: of one step. `sft`, `reward` and `dpo` count every token of the batch, prompts included; the others count
  the tokens of the answers.
- `loaded` and `peak`: the most memory the workload's own process ever held, up to its first step and in all.
- `full`: all weights are trained; `lora`: adapters on all layers; `top 10`: adapters on the upper 10 layers, what the
  frozen layers give is shared.
"""


def run(workloads: Sequence[Workload], settings: Settings, *, command: str, json_file: Path | None) -> dict[str, Any]:
    """Measure each workload in a process of its own.

    Args:
        workloads: what to measure, in this order.
        settings: how.
        command: the command line, kept with the results.
        json_file: written anew after each workload, so that an interrupted run keeps what it has; None: nowhere.

    Returns:
        ``command``, ``date``, ``machine``, ``versions``, ``settings``, and in ``results`` for each workload its
        ``name``, ``workload`` (its fields), ``error`` (None, or why it failed) and what
        :func:`benchmarks.measure.measure` returned, if it did.
    """
    report: dict[str, Any] = {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "settings": asdict(settings),
        "results": [],
    }
    console = Console(stderr=True)
    for number, workload in enumerate(workloads, 1):
        console.print(f"{number}/{len(workloads)} {workload.name} …", highlight=False)
        result = measure_apart(workload, settings)
        report["results"].append({"name": workload.name, "workload": asdict(workload), "error": None, **result})
        if json_file is not None:
            write_json(json_file, report)
    return report


def measure_apart(workload: Workload, settings: Settings) -> dict[str, Any]:
    """Measure one workload in a fresh process; ``{"error": why}`` if it fails."""
    request = {"workload": asdict(workload), "settings": asdict(settings)}
    child = run_python(["-m", "benchmarks.measure"], json.dumps(request))
    if child.returncode == 0:
        return json.loads(child.stdout)
    if child.returncode < 0:
        return {"error": f"killed by signal {-child.returncode} (9: most likely out of memory)"}
    lines = child.stderr.strip().splitlines() or ["no message"]
    return {"error": f"exit code {child.returncode}: {lines[-1]}"}


def run_python(arguments: list[str], given: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python with this repository on its path, in this folder (so that relative paths stay right)."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's cells, one row per workload, under :data:`COLUMNS`."""
    table = []
    for result in report["results"]:
        if result["error"] is not None:
            table.append((result["name"], "failed", *["–"] * (len(COLUMNS) - 2)))
            continue
        table.append(
            (
                result["name"],
                f"{result['median']:.3g}",
                f"{result['min']:.3g}–{result['max']:.3g}",
                f"{result['tokens_per_step']:.0f}",
                f"{result['tokens_per_second']:.0f}",
                f"{result['setup_seconds']:.3g}",
                f"{result['loaded_mib']:.0f}",
                f"{result['peak_mib']:.0f}",
            )
        )
    return table


def phase_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Median seconds of each phase of an online step."""
    done = [r for r in report["results"] if r.get("phases")]
    return [(r["name"], *(f"{r['phases'][phase]:.3g}" for phase in PHASES)) for r in done]


def markdown(report: dict[str, Any]) -> str:
    """The report as a page that says how and on what it was made."""
    here, settings = report["machine"], report["settings"]
    devices = sorted({r["device"] for r in report["results"] if r["error"] is None and r["device"] != "cpu"})
    made = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    texts = "made-up sentences" if settings["data"] is None else f"`{Path(settings['data']).name}`"
    failed = [f"- {r['name']}: {r['error']}" for r in report["results"] if r["error"] is not None]
    phases = phase_rows(report)
    blocks = [
        "# Benchmarks: time and memory of a step",
        f"Written by this command on {report['date'][:10]}; run it to get the numbers of your machine:",
        f"```\n{report['command']}\n```",
        f"Machine: {', '.join([here['processor'], *devices])}, {here['cores']} cores ({settings['threads']} threads "
        f"used), {here['memory_gib']} GiB memory, {here['system']}; load average before the start "
        f"{here['load_before']}. **The machine is shared with other work and noisy: read the spread with the median, "
        "and compare within this page only.**",
        f"Model: `{settings['model']}`. Texts: {texts}. {settings['repeats']} timed steps each. Versions: {made}.",
        _markdown_table(COLUMNS, rows(report)),
        _NOTES.strip(),
    ]
    if phases:
        blocks += ["Seconds of an online step by phase (medians):", _markdown_table(("workload", *PHASES), phases)]
    if failed:
        blocks += ["Failed:", "\n".join(failed)]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, rule, *cells])


def _show(console: Console, title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number < 3)
    for row in cells:
        table.add_row(*row)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print tables, write files. Returns 1 if a workload failed."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    settings = Settings(model=options.model, repeats=options.repeats, threads=options.threads, data=options.data)
    chosen = [w for w in WORKLOADS if w.kind in options.only and options.adapter in (None, w.adapter)]
    if options.model == DEFAULT_MODEL:  # unpacked on its first use, which must not count as the first workload's memory
        run_python(
            ["-c", "import sys; from trimtab.models.loading import resolve; resolve(sys.argv[1])", options.model]
        )
    command = shlex.join(["python", "-m", "benchmarks.steps", *arguments])
    try:
        report = run(chosen, settings, command=command, json_file=options.json)
        if options.out is not None:
            write_atomic(options.out, markdown(report))
    except TrimtabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    console = Console(width=max(Console().width, 100))  # narrower, and headings lose letters
    _show(console, "Time and memory of a step", COLUMNS, rows(report))
    if phases := phase_rows(report):
        _show(console, "Seconds of an online step by phase", ("workload", *PHASES), phases)
    failed = [r for r in report["results"] if r["error"] is not None]
    for result in failed:
        print(f"{result['name']}: {result['error']}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a Markdown page here")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="timed steps per workload (3)")
    parser.add_argument(
        "--only", type=kinds, default=get_args(Kind), metavar="KINDS", help=f"from {','.join(get_args(Kind))}"
    )
    parser.add_argument("--adapter", choices=get_args(Adapter), help="only full fine-tuning, or only LoRA")
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="as model.name in a recipe")
    parser.add_argument("--threads", type=positive, default=cores(), metavar="N", help="CPU threads (all cores)")
    parser.add_argument("--data", metavar="FILE", help="take texts from this preference file, not made-up ones")
    return parser


def positive(text: str) -> int:
    """A whole number from 1 on, as an option of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def kinds(text: str) -> tuple[str, ...]:
    """Kinds of workload, separated by commas."""
    names = tuple(text.split(","))
    if unknown := [k for k in names if k not in get_args(Kind)]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no workload; use some of {','.join(get_args(Kind))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
