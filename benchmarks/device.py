"""What one accelerator does with trimtab: ``python -m benchmarks.device --out device.md``.

Random weights at the shapes of Qwen2.5 (as Llama models, without its biases), random tokens: nothing is downloaded.
Cells come in the order of their value, and the page is written after each. A cell that cannot run says why; when the
time budget is spent, the remaining cells are listed as skipped. The first cell measures the peaks that the others are
shares of. On a CPU ``--toy`` runs every cell with a tiny model: a test that the cells work, and no measurement.
"""

import argparse
import gc
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import device_parts as parts
from benchmarks.device_model import SIZES, Setup, peak_gb, synchronize
from benchmarks.machine import machine, versions
from trimtab.errors import TrimtabError
from trimtab.files import write_atomic

Cell = tuple[str, Callable[[Setup], str]]


def cells(toy: bool) -> list[Cell]:
    """Name and measurement of each cell, the most valuable first."""
    small, middle, large = ("toy", "toy", "toy") if toy else tuple(SIZES)[:3]
    made: list[Cell] = [("peaks", parts.peaks)]

    def update(size: str, adapter: str, frozen: str, *, checkpointing: bool = False) -> None:
        name = f"step {size}, {adapter}, frozen weights {frozen}" + (", checkpointing" if checkpointing else "")
        made.append((name, lambda s: parts.update(s, size, adapter, frozen, checkpointing=checkpointing)))

    def sampling(size: str, batch: int) -> None:
        made.append((f"draw {size}, batch {batch}", lambda s: parts.sampling(s, size, batch)))

    for size in (small, middle, large):
        update(size, "lora", "bfloat16", checkpointing=size == large)
    update(middle, "lora", "float32")
    update(middle, "full", "float32")
    for batch in (4, 6) if toy else (32, 256):
        sampling(middle, batch)
    made.append((f"sampler against trainer, {middle}", lambda s: parts.mismatch(s, middle)))
    made.append(("attention: varlen against a dense mask", parts.attention))
    made.append(("head: in chunks against alternatives", parts.head))
    made.append((f"decoding step in a CUDA graph, {middle}", lambda s: parts.graph(s, middle)))
    update(middle, "lora", "bfloat16", checkpointing=True)
    update(small, "full", "float32")
    update(small, "lora", "float32")
    update(large, "lora", "float32", checkpointing=True)
    update(large, "full", "float32", checkpointing=True)
    made.append((f"resume, {small}", lambda s: parts.resume(s, small)))
    made.append((f"one rank, {small}", lambda s: parts.one_rank(s, small)))
    return list(dict(made).items())  # at toy size some are the same


def attempt(run: Callable[[Setup], str], setup: Setup) -> str:
    """A cell's result, or why it has none. What it held is freed."""
    try:
        return run(setup)
    except torch.OutOfMemoryError:
        return f"out of memory, {peak_gb(setup.device):.0f} GB held at most"
    except (
        TrimtabError,
        RuntimeError,
        NotImplementedError,
        ImportError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:
        return f"cannot run: {type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:160]}"
    finally:
        if setup.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def page(
    rows: Sequence[tuple[str, str, float]], left: Sequence[str], setup: Setup, command: str, seconds: float
) -> str:
    """The page of what was measured so far."""
    here = machine()
    on = torch.cuda.get_device_name() if setup.device.type == "cuda" else f"{here['processor']}, no accelerator"
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        "# One accelerator",
        "",
        f"Written on {datetime.now(UTC):%Y-%m-%d} by `{command}` on {on}; {made}. Random weights, random tokens.",
        "",
        *(["**Toy size: shows that the cells run, measures nothing.**", ""] if setup.toy else []),
        "| cell | result | seconds in all |",
        "|---|---|---:|",
        *(f"| {name} | {result.replace('|', '/')} | {spent:.1f} |" for name, result, spent in rows),
        *(f"| {name} | skipped: the budget of {seconds:.0f} seconds is spent | |" for name in left),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells within the time budget; print and write the page."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--toy", action="store_true", help="a tiny model in every cell; runs on a CPU")
    parser.add_argument("--seconds", type=float, default=420.0, help="no cell starts after so many seconds (420)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page here after every cell")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.toy:
        parser.error("torch sees no accelerator; add --toy to try the cells on a CPU")
    command = shlex.join(["python", "-m", "benchmarks.device", *arguments])
    rows: list[tuple[str, str, float]] = []
    with TemporaryDirectory() as folder:
        setup = Setup(device=device, toy=options.toy, folder=Path(folder))
        todo = cells(options.toy)
        while todo and time.perf_counter() - started <= options.seconds:
            name, run = todo.pop(0)
            before = time.perf_counter()
            result = attempt(run, setup)
            synchronize(device)
            rows.append((name, result, time.perf_counter() - before))
            print(f"{name}: {result}", flush=True)
            if options.out is not None:
                write_atomic(options.out, page(rows, [n for n, _ in todo], setup, command, options.seconds))
        text = page(rows, [name for name, _ in todo], setup, command, options.seconds)
    for name, _ in todo:
        print(f"{name}: skipped, the budget of {options.seconds:.0f} seconds is spent", flush=True)
    if options.out is not None:
        write_atomic(options.out, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
