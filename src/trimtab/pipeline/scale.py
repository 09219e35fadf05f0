"""One process or several: the ``scale`` section, how a run's processes start, and how each joins the others.

Ranks train together. ``trimtab run`` starts them and is not a rank itself: it hosts the store through which ranks find
each other, passes Ctrl-C on once, and notices immediately when a rank dies. Under torchrun, each process is a rank
already. With Ray, one process trains, and others draw and score its answers (:mod:`trimtab.pipeline.remote`).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from trimtab.config import Config
from trimtab.errors import ConfigError, RankError
from trimtab.rollout import RayConfig
from trimtab.rollout.ray import check_ray
from trimtab.trainers import ALONE, Group, Place, Ranks
from trimtab.trainers.ranks import report_end, serve

GRACE = 15.0
"""Seconds that the other ranks have to report what is missing after one has stopped."""


class ScaleConfig(Config):
    """How many processes share the work. Results do not depend on it, so a run can continue with another number."""

    kind: Literal["inline", "torchrun", "ray"] = "inline"
    """``inline``: one process. ``torchrun``: several, which divide answers, rewards and micro-batches; ``trimtab run``
    starts them, or torchrun does. ``ray``: one process trains, and processes on a Ray cluster draw and score its
    answers."""
    ray: RayConfig | None = None
    """With ``kind: ray``: the cluster and what runs on it; None: the defaults."""
    processes: int | None = Field(default=None, ge=1)
    """How many processes ``trimtab run`` starts; None: one for each accelerator of this machine. Under torchrun, which
    starts the processes itself: None or the same number."""
    shard: bool = False
    """True, with ``kind: torchrun``: while a model is trained, each process holds only a part of its weights, and of
    the reference's (FSDP2). With ``adapter.kind: full`` the gradients and the optimiser are divided too; adapters stay
    whole. Reward models that score answers stay whole, unless they are adapters on the policy's trunk."""
    deadline: float = Field(default=600.0, gt=0.0)
    """Seconds that a process may be late before the others stop with a message that names it. With Ray: longest wait in
    seconds for room for all processes, and for the next finished chunk."""

    @property
    def cluster(self) -> RayConfig:
        """Settings of Ray."""
        return self.ray or RayConfig()


def check_scale(config: ScaleConfig) -> Iterator[str]:
    """Contradictions in the section."""
    if config.kind == "inline" and config.processes not in (None, 1):
        yield f"scale.processes is {config.processes} and scale.kind 'inline', which is one process; set kind: torchrun"
    if config.kind == "ray" and config.processes is not None:
        yield f"scale.processes is {config.processes} and scale.kind 'ray'; set scale.ray.samplers and scorers instead"
    if config.shard and config.kind != "torchrun":
        yield f"scale.shard is true and scale.kind is {config.kind!r}, of which one process trains; set kind: torchrun"
    if config.shard and config.kind == "torchrun" and config.processes == 1:
        yield "scale.shard is true and scale.processes 1: there is no process to share weights with; raise processes"
    if config.kind != "ray" and config.ray is not None:
        yield f"scale.ray is set and scale.kind is {config.kind!r}; set kind: ray, or leave scale.ray out"


def processes(config: ScaleConfig) -> int:
    """Number of processes of a run.

    Raises:
        ConfigError: the number is not given and this machine has no accelerator.
    """
    if config.kind != "torchrun":
        return 1
    if config.processes is not None:
        return config.processes
    place = Place.from_environment()
    count = torch.cuda.device_count() if place is None else place.size
    if count == 0:
        raise ConfigError(
            "scale.kind is 'torchrun' and this machine has no accelerator to count; set scale.processes, for example 2"
        )
    return count


def parts_of_weights(config: ScaleConfig) -> int:
    """Number of processes among which the weights of a model are divided while it is trained."""
    return processes(config) if config.shard else 1


def starts_ranks(config: ScaleConfig) -> bool:
    """True: this process must start the ranks and is not one itself."""
    return processes(config) > 1 and Place.from_environment() is None


def require_one_process(command: str) -> None:
    """Refuse to be one of several processes, each of which would do the whole work of ``command``.

    Raises:
        ConfigError: torchrun or ``trimtab run`` started this process as one of several.
    """
    place = Place.from_environment()
    if place is not None:
        raise ConfigError(
            f"this is one of {place.size} processes, and `{command}` runs in one; start it without torchrun, or "
            "unset RANK and WORLD_SIZE"
        )


@contextmanager
def joined(config: ScaleConfig) -> Iterator[Group]:
    """The group of this run; the process leaves it at the end.

    Raises:
        ConfigError: the section contradicts the way in which this process was started.
        RankError: a rank is missing.
        SystemExit: this rank stops with an error that the first one reports.
    """
    place = Place.from_environment()
    count = processes(config)
    if place is None:
        if count > 1:
            raise ConfigError(
                f"scale.processes is {count} and this is one process; start the recipe with `trimtab run`, or with "
                f"torchrun --nproc-per-node {count} -m trimtab run"
            )
        if config.shard:
            raise ConfigError(
                "scale.shard is true and this is the only process (one accelerator was counted, or torchrun started "
                "one); set scale.processes to 2 or more, or scale.shard: false"
            )
        if config.kind == "ray":
            check_ray(config.cluster)
        yield ALONE
        return
    if config.kind != "torchrun":
        raise ConfigError(
            f"this is one of {place.size} processes and scale.kind is {config.kind!r}: each would run the whole "
            "recipe; set scale.kind: torchrun"
        )
    if count != place.size:
        raise ConfigError(
            f"scale.processes is {count} and {place.size} processes were started; make them equal, or leave "
            "scale.processes out under torchrun"
        )
    group = Ranks(place, deadline=config.deadline, shards=config.shard)
    try:
        with group.explained():
            yield group
    except BaseException as error:
        if group.leave(error):
            raise SystemExit(getattr(error, "exit_code", 1)) from None
        raise
    group.leave()


def threads_of(threads: int | None) -> int | None:
    """CPU threads of this process; None: torch decides. Without a setting, ranks on one machine share its cores."""
    place = Place.from_environment()
    if threads is not None or place is None:
        return threads
    return max(1, (os.cpu_count() or 1) // place.local_size)


def launch(config: ScaleConfig, arguments: Sequence[str]) -> int:
    """Run ``trimtab`` with these arguments as several ranks on this machine; returns the exit code.

    If a rank stops with an error, the others have :data:`GRACE` seconds to stop by themselves.
    """
    count = processes(config)
    store, port = serve()
    ranks = [_start(rank, count, port, arguments) for rank in range(count)]
    with _forwarding_signals(ranks):
        code = _wait(ranks, store)
    return code


def _start(rank: int, count: int, port: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is in this process, not in rank 0
    }
    command = [sys.executable, "-m", "trimtab", *arguments]
    # A separate session: Ctrl-C in the terminal reaches only this process, which passes it on.
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], store: Any) -> int:
    """Wait until all ranks have ended; returns the exit code of the first that failed with its own error."""
    codes: list[int] = []
    failed = None
    running = dict(enumerate(ranks))
    while running:
        for rank, process in list(running.items()):
            ended = process.poll()
            if ended is None:
                continue
            del running[rank]
            reason = f"signal {-ended} ended its process" if ended < 0 else f"its process ended with code {ended}"
            report_end(store, rank, reason)
            if ended < 0:
                print(f"rank {rank} of {len(ranks)}: {reason}", file=sys.stderr)
            if ended != 0:
                codes.append(ended if ended > 0 else RankError.exit_code)
                failed = failed or time.monotonic()
        if failed is not None and time.monotonic() - failed > GRACE:
            for process in running.values():
                process.kill()
        time.sleep(0.05)
    return next((code for code in codes if code != RankError.exit_code), codes[0] if codes else 0)


@contextmanager
def _forwarding_signals(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass Ctrl-C and termination signals on to the ranks; if this process fails, end them too."""

    def send(number: int, _: Any) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    signals = (signal.SIGINT, signal.SIGTERM)
    previous_handlers = [signal.signal(number, send) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, previous_handlers, strict=True):
            signal.signal(number, handler)
        for process in ranks:
            if process.poll() is None:
                process.kill()


def scale_lines(config: ScaleConfig) -> list[str]:
    """Lines of a plan about several processes."""
    if config.kind == "ray":
        return [_ray_line(config.cluster)]
    count = processes(config)
    if count == 1:
        return []
    lines = [
        f"Processes: {count}, which divide answers, rewards, passes and micro-batches; label, evaluate, balance and "
        "report run on the first alone. Times are for one process, memory is that of each"
    ]
    if config.shard:
        lines.append(
            f"While a model is trained, each process holds 1/{count} of its weights, and of their gradients and "
            "moments where all are trained. It holds all weights when it loads them, draws answers or makes passes by "
            "itself. The times leave out exchanging them"
        )
    return lines


def _ray_line(ray: RayConfig) -> str:
    cluster = "a Ray cluster of this machine alone" if ray.address is None else f"the Ray cluster at {ray.address}"
    extra = f", up to {ray.extra_samplers} more samplers when there is room" if ray.extra_samplers else ""
    scored = f"{ray.scorers} compute its rewards" if ray.scorers else "this process computes the rewards"
    needs = ", ".join(f"{name} {value:g}" for name, value in ray.needs.items())
    return (
        f"Processes: this one trains; on {cluster} {ray.samplers} draw the answers of align in chunks of {ray.chunk} "
        f"prompts, and {scored} ({needs} each{extra}). All other stages run here. Times and memory are those of one "
        "process; each of the others holds a model of its own"
    )


def scale_warnings(config: ScaleConfig, threads: int | None) -> list[str]:
    """Settings that work but make several processes slower than they could be."""
    count, cores = processes(config), os.cpu_count() or 1
    if count > 1 and threads is not None and not torch.cuda.is_available() and count * threads > cores:
        return [
            f"scale.processes {count} × threads {threads} are more than the {cores} cores here: the processes wait for "
            f"each other; set threads: {max(1, cores // count)}"
        ]
    return []


def run_arguments(recipe: Path, overrides: Sequence[str], runs: Path, until: str | None) -> list[str]:
    """The command line of a rank."""
    sets = [part for item in overrides for part in ("--set", item)]
    return ["run", str(recipe), "--runs", str(runs), *sets, *([] if until is None else ["--until", until])]
