"""Runs work on several ranks: processes forked from one that has imported trimtab."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any

DEADLINE = 60.0

PRELOADED = [
    "tests.ranks", "tests.trainers.ranked", "trimtab.pipeline.run", "trimtab.testing", "transformers", "peft",
]  # fmt: skip
"""Modules that ranks find imported."""


def on_ranks(
    size: int,
    work: Callable[..., Any],
    *arguments: Any,
    deadline: float = DEADLINE,
    joined: bool = True,
    shards: bool = False,
) -> list[Any]:
    """What ``work(group, *arguments)`` returns on each rank; an error of a rank is returned in place of its value.

    Args:
        size: number of ranks.
        work: a function at the top of a module.
        arguments: further ones.
        deadline: of the group, seconds.
        shards: of the group.
        joined: False: call ``work(*arguments)``, which finds its place in the environment, as under torchrun.
    """
    from trimtab.trainers.ranks import report_end, serve

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store, port = serve()
    started: list[tuple[Any, Any]] = []
    for rank in range(size):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_rank, args=(rank, size, port, deadline if joined else None, shards, theirs, work, arguments)
        )
        process.start()
        theirs.close()
        started.append((process, ours))
    results: list[Any] = [None] * size
    for rank, (process, pipe) in enumerate(started):
        try:
            results[rank] = pickle.loads(pipe.recv_bytes())
        except EOFError:
            process.join()
            results[rank] = f"exit {process.exitcode}"
            report_end(store, rank, f"its process ended with code {process.exitcode}")
        process.join()
    return results


def _rank(
    rank: int,
    size: int,
    port: int,
    deadline: float | None,
    shards: bool,
    pipe: Any,
    work: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    import torch

    from trimtab.errors import TrimtabError
    from trimtab.trainers import Place, Ranks

    torch.set_num_threads(1)
    if deadline is None:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }  # fmt: skip
        try:
            _send(pipe, work(*arguments))
        except (TrimtabError, SystemExit) as error:
            _send(pipe, error)
        return
    place = Place(
        rank=rank, size=size, local_rank=rank, local_size=size, host="127.0.0.1", port=port, serves=False, attempt="0"
    )
    try:
        group = Ranks(place, deadline=deadline, shards=shards)
    except TrimtabError as error:
        _send(pipe, error)
        return
    try:
        _send(pipe, work(group, *arguments))
        group.leave()
    except TrimtabError as error:
        group.leave(error)
        _send(pipe, error)
    except Exception as error:
        group.leave(error)
        _send(pipe, RuntimeError(traceback.format_exc()))


def _send(pipe: Any, value: Any) -> None:
    pipe.send_bytes(pickle.dumps(value))  # by value: a tensor would be sent as a place in this process's memory


def die() -> None:
    """End this process as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
