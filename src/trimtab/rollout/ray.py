"""Workers of a :class:`~trimtab.rollout.Pool` as actors of Ray.

All needed actors are in one placement group and end with this process: none is detached. Ray restarts a killed actor.
The pool greets it and sends its job again, so Ray itself retries no call. Additional samplers are not part of the
group; they start when the cluster has room for them.

Written against Ray 2.60; needs 2.50.
"""

import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any

from pydantic import Field

from trimtab.config import Config
from trimtab.errors import ConfigError, RankError, TrimtabError, install_hint
from trimtab.rollout.pool import Facts, Host, WorkerLostError

OLDEST = (2, 50)
"""Oldest supported version of Ray."""

KNOCK = 10.0
"""Seconds within which the head of a cluster must answer."""


class RayConfig(Config):
    """Samplers and scorers on a Ray cluster; the learner is the process that ``trimtab run`` starts."""

    address: str | None = Field(default=None, pattern=r"^(auto|[^:/]+:\d+)$")
    """``host:port`` of a cluster's head, or ``auto`` for the cluster that this machine belongs to. None: a cluster of
    this machine alone, which ends with the run."""
    samplers: int = Field(default=1, ge=1)
    """Processes that draw answers; all of them must be there at the start."""
    extra_samplers: int = Field(default=0, ge=0)
    """Further samplers, which join when the cluster has room for them and may leave with their machine."""
    scorers: int = Field(default=0, ge=0)
    """Processes that compute rewards; 0: the learner does."""
    cpus: int = Field(default=1, ge=1)
    """CPU cores of each of these processes, and its threads unless ``threads`` says otherwise."""
    gpus: float = Field(default=0.0, ge=0.0)
    """GPUs of each of these processes, or a share of one."""
    chunk: int = Field(default=8, ge=1)
    """Prompts sent to a process at a time. Texts do not depend on it; log-probabilities do in their last bits."""

    @property
    def workers(self) -> int:
        """Number of processes that are needed."""
        return self.samplers + self.scorers

    @property
    def needs(self) -> dict[str, float]:
        """Resources of one process, as Ray names them."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def load_ray() -> Any:
    """Import Ray.

    Raises:
        ConfigError: it is not installed, or too old.
    """
    if "ray" not in sys.modules:  # it reads these once
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default, 15, starves workers on a busy machine
    try:
        ray: Any = import_module("ray")  # not `import ray`: a type checker takes that for this file
    except ImportError:
        raise ConfigError(
            f"scale.kind is 'ray' but Ray is not installed; {install_hint('ray')}, or set scale.kind: inline"
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", ray.__version__)[:2]) < OLDEST:
        raise ConfigError(
            f"Ray is {ray.__version__}, expected {'.'.join(map(str, OLDEST))} or newer; {install_hint('ray')}"
        )
    return ray


def check_ray(config: RayConfig) -> None:
    """Refuse settings that cannot work, before anything is trained.

    Raises:
        ConfigError: Ray is not installed, or a cluster of this machine alone lacks cores.
        RankError: the head of the cluster does not answer.
    """
    if load_ray().is_initialized():  # by the program that calls trimtab
        return
    if config.address is None:
        cores = os.cpu_count() or 1
        if config.workers * config.cpus > cores:
            raise ConfigError(
                f"scale.ray asks for {config.samplers} samplers and {config.scorers} scorers with {config.cpus} cores "
                f"each, and this machine has {cores}; lower them, or set scale.ray.address to a cluster"
            )
    elif config.address != "auto":
        host, _, port = config.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=KNOCK).close()
        except OSError as error:
            raise RankError(
                f"scale.ray.address {config.address} does not answer within {KNOCK:g} s (phase 'connect': {error}); "
                "start its head with `ray start --head --port=6379`, and this machine's part with `ray start "
                "--address=HOST:6379`"
            ) from None


class Cluster:
    """A connection to Ray; use :func:`connected`."""

    def __init__(self, ray: Any, config: RayConfig, deadline: float) -> None:
        self.ray, self.config, self.deadline = ray, config, deadline
        self._group: Any = None
        self._actors: list[Any] = []

    def place(self) -> None:
        """Reserve room for all workers that are needed.

        Raises:
            RankError: the cluster does not have it in time.
        """
        util: Any = import_module("ray.util")
        needs, count = self.config.needs, self.config.workers
        self._group = util.placement_group([needs] * count, strategy="PACK")
        total = self.ray.cluster_resources()
        hopeless = self.config.address is None and any(total.get(k, 0) < count * v for k, v in needs.items())
        limit = 0.0 if hopeless else self.deadline
        if not self._group.wait(limit):
            free = self.ray.available_resources()
            has = ", ".join(f"{name} {total.get(name, 0):g}, free {free.get(name, 0):g}" for name in needs)
            wants = ", ".join(f"{name} {value:g}" for name, value in needs.items())
            raise RankError(
                f"Ray has no room after {limit:g} s (scale.deadline) in phase 'placement': asked for {count} processes "
                f"with {wants} each; the cluster has {has}; lower scale.ray.samplers, scorers, cpus or gpus, or add "
                "machines"
            )

    def workers(
        self, name: str, count: int, first: int, build: Callable[[], Any], facts: Callable[[], Facts]
    ) -> list["RayWorker"]:
        """Actors in the placement group, from bundle ``first`` on."""
        strategies: Any = import_module("ray.util.scheduling_strategies")
        return [
            self._actor(
                f"{name} {number}",
                build,
                facts,
                scheduling_strategy=strategies.PlacementGroupSchedulingStrategy(
                    placement_group=self._group, placement_group_bundle_index=first + number
                ),
            )
            for number in range(count)
        ]

    def extra(
        self, name: str, count: int, number: int, build: Callable[[], Any], facts: Callable[[], Facts]
    ) -> list["RayWorker"]:
        """Additional actors, which start when there is room for them; numbered from ``number`` on."""
        return [self._actor(f"{name} {number + i}", build, facts) for i in range(count)]

    def put(self, value: Any) -> Any:
        """A reference to a copy in the object store."""
        return self.ray.put(value)

    def _actor(self, name: str, build: Callable[[], Any], facts: Callable[[], Facts], **options: Any) -> "RayWorker":
        actor = (
            self.ray.remote(Host)
            .options(
                num_cpus=self.config.cpus,
                num_gpus=self.config.gpus,
                max_restarts=-1,  # the pool limits how many workers a job may cost
                max_task_retries=0,
                **options,
            )
            .remote(partial(_in_folder, os.getcwd(), build), facts, _where)
        )
        self._actors.append(actor)
        return RayWorker(name, actor, self.ray.exceptions)

    def close(self) -> None:
        """End all actors and release their resources."""
        for actor in self._actors:
            with suppress(Exception):
                self.ray.kill(actor, no_restart=True)
        if self._group is not None:
            util: Any = import_module("ray.util")
            with suppress(Exception):
                util.remove_placement_group(self._group)


class RayWorker:
    """An actor; a :class:`~trimtab.rollout.Worker`."""

    def __init__(self, name: str, actor: Any, exceptions: Any) -> None:
        self.name = name
        self._actor, self._exceptions = actor, exceptions
        self._going: set[Any] = set()  # Ray forgets a result to which nobody holds a reference

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """As :meth:`Worker.call`."""
        translated: Future[Any] = Future()

        def ended(future: Future[Any]) -> None:
            self._going.discard(future)
            error = future.exception()
            if error is None:
                translated.set_result(future.result())
            else:
                translated.set_exception(self._translated(error))

        future = getattr(self._actor, method).remote(*arguments).future()
        self._going.add(future)
        future.add_done_callback(ended)
        return translated

    def _translated(self, error: BaseException) -> BaseException:
        """A lost worker, the error that our code raised there, or a description of any other."""
        if isinstance(error, self._exceptions.RayTaskError):
            cause: Any = getattr(error, "cause", None)
            if isinstance(cause, TrimtabError):
                return cause
            return RankError(f"{self.name} failed with {type(cause).__name__}: {cause}; the trace is above\n{error}")
        if getattr(error, "_actor_init_failed", False) or not isinstance(error, self._exceptions.RayError):
            return RankError(f"{self.name} cannot start: {error}")
        return WorkerLostError(type(error).__name__)


@contextmanager
def connected(config: RayConfig, *, deadline: float) -> Iterator[Cluster]:
    """A cluster with room for all workers; they end when the context does.

    A cluster of this machine alone is made for the run, with a token of its own. Where this process uses Ray already,
    that connection is used and stays open.

    Raises:
        ConfigError: Ray is not installed, or refuses the token.
        RankError: the cluster does not answer or has no room.
    """
    check_ray(config)
    ray = load_ray()
    with ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(_connection(ray, config))
        cluster = Cluster(ray, config, deadline)
        stack.callback(cluster.close)
        cluster.place()
        yield cluster


@contextmanager
def _connection(ray: Any, config: RayConfig) -> Iterator[None]:
    options: dict[str, Any] = {"address": config.address or "local", "log_to_driver": False, "logging_level": "ERROR"}
    if config.address is None:
        options |= {"include_dashboard": False, "num_cpus": os.cpu_count()}
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(**options)
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"Ray refuses the token of this machine ({str(error).splitlines()[0]}); make one with `ray get-auth-token "
            "--generate`, copy ~/.ray/auth_token to every machine, or set RAY_AUTH_TOKEN"
        ) from None
    except Exception as error:  # Ray raises plain ones too
        raise RankError(
            f"no connection to the Ray cluster at {config.address or 'this machine'} (phase 'connect': {error}); this "
            "machine must be part of it: run `ray start --address=HOST:6379` here, or leave scale.ray.address out"
        ) from None
    finally:
        for number, handler in handlers.items():  # Ray sets its own
            with suppress(ValueError):  # not the main thread
                signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _in_folder(folder: str, build: Callable[[], Any]) -> Any:
    """Build where the learner was started, if that folder is here: paths of a recipe may be relative."""
    with suppress(OSError):
        os.chdir(folder)
    return build()


def _where() -> str:
    return f"{socket.gethostname()} (process {os.getpid()})"
