"""A process that runs recipes in children which kill themselves at a named moment; a script, not a test.

It imports trimtab once and forks for every line it reads on standard input, a JSON object::

    {"recipe": "…/recipe.yaml", "runs": "…/runs", "moment": ["after line", "sft/metrics.jsonl", 3]}

``moment`` is None or one of

    ["after line", file, n]      the n-th line was just written to that metrics file
    ["before rename", file, n]   everything is written aside, and the n-th rename to that name is about to happen
    ["half written", file, 1]    half of that safetensors file's bytes are on the disk

For each it writes one line: the child's exit status, negative for the signal that ended it.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import safetensors.torch

import trimtab.models.tensors
from trimtab import files
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.run import run_recipe
from trimtab.pipeline.ui import Silent
from trimtab.storage import MetricsLog


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kind: str, name: str, count: int) -> None:
    """Make this process kill itself at a moment."""
    seen = 0

    def here(path: Any) -> bool:
        nonlocal seen
        seen += f"/{path}".endswith(f"/{name}")
        return f"/{path}".endswith(f"/{name}") and seen == count

    if kind == "after line":
        write = MetricsLog.__call__

        def logged(self: MetricsLog, metrics: Any) -> None:
            write(self, metrics)
            if here(self.path):
                kill()

        MetricsLog.__call__ = logged
    elif kind == "before rename":
        replace = os.replace

        def renamed(source: Any, target: Any) -> None:
            if here(target):
                kill()
            replace(source, target)

        files.os.replace = renamed
    elif kind == "half written":

        def saved(tensors: Any, path: Path, metadata: Any = None) -> None:
            safetensors.torch.save_file(tensors, path, metadata)
            if here(path):
                with open(path, "rb+") as file:
                    file.truncate(path.stat().st_size // 2)
                kill()

        trimtab.models.tensors.save_file = saved
    else:
        raise ValueError(kind)


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            sys.stdin.close()
            status = 1
            try:
                if order["moment"] is not None:
                    arm(*order["moment"])
                recipe = Path(order["recipe"])
                run_recipe(load_recipe(recipe), recipe, runs=Path(order["runs"]), ui=Silent())
                status = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
