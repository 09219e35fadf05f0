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
from trimtab.files import write_atomic, write_json

_COLUMNS = ("workload", "step, s", "min to max", "tokens/step", "tokens/s", "before, s", "loaded, MiB", "peak, MiB")
_PHASES = ("sample", "score", "infer", "update")

_NOTES = """\
- `step, s`: median seconds of one step; the warm-up step before them is dropped. `before, s`: what happens once
  before the first step (adapters, and for the reward model on upper layers the frozen lower layers of every text).
- `tokens/step`: `sft` and `reward` count every token of the batch, prompts included; `ppo` and `decode` count the
  tokens of the answers.
- `loaded` and `peak`: the most memory the workload's own process ever held, up to its first step and in all.
- `full`: all weights are trained; `lora`: adapters on all layers; `top 10`: adapters on the upper 10 layers, what the
  layers below give is shared by all roles."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write files. Returns 1 if a workload failed."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    asked = _parser().parse_args(arguments)
    settings = Settings(model=asked.model, repeats=asked.repeats, threads=asked.threads, data=asked.data)
    chosen = [w for w in WORKLOADS if w.kind in asked.only and w.adapter in (asked.adapter, w.adapter)[:1]]
    return run(chosen, settings, command=shlex.join(["python", "-m", "benchmarks.steps", *arguments]))


if __name__ == "__main__":
    sys.exit(main())
