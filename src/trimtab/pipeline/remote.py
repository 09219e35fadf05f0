"""Samplers and scorers of alignment on a Ray cluster: what each process builds, and when they start and end.

Each process reads the recipe's model and the run's folder itself, so every machine needs both, for example on a shared
file system. While the policy is trained, only the changed adapter is sent to the processes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from trimtab import __version__, fast_cpu
from trimtab.files import sha256_json
from trimtab.models import Role, model_identity
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.context import Context
from trimtab.pipeline.ui import Silent
from trimtab.rollout import (
    Pool,
    RemoteSampler,
    RemoteScorer,
    Sampler,
    SamplerWorker,
    Scorer,
    ScorerWorker,
)
from trimtab.rollout.pool import Facts
from trimtab.rollout.ray import connected
from trimtab.storage import RunFolder

WorkerType = TypeVar("WorkerType")
Build = Callable[[RunConfig, Path, Path], WorkerType]
"""A function at the top of a module: (configuration, recipe, folder of the run) → the worker of a process."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """The parts of alignment that run in other processes."""

    sampler: Sampler | None = None
    """The remote sampler; None: this process draws."""
    scorer: Scorer | None = None
    """The remote scorer; None: this process scores."""


@contextmanager
def remote_workers(
    context: Context, policy: Role, build_sampler: Build[SamplerWorker], build_scorer: Build[ScorerWorker]
) -> Iterator[Remote]:
    """The samplers and scorers that ``scale`` configures, until the context ends; both None unless its kind is ``ray``.

    Args:
        context: context of the stage.
        policy: the policy that draws answers.
        build_sampler: builds the worker of a sampler process.
        build_scorer: builds the worker of a scorer process.

    Raises:
        ConfigError: Ray is not installed.
        RankError: the cluster does not answer or has no room, or a process differs from this one.
    """
    scale = context.config.scale
    if scale.kind != "ray":
        yield Remote()
        return
    ray = scale.cluster
    arguments = context.config, context.recipe.resolve(), context.run.path.resolve()
    facts = partial(facts_of, context.config)
    context.ui.say(f"  Ray: {ray.samplers} samplers, {ray.scorers} scorers")
    with connected(ray, deadline=scale.deadline) as cluster:
        build = partial(build_sampler, *arguments)
        samplers = cluster.workers("sampler", ray.samplers, 0, build, facts)
        samplers += cluster.extra("sampler", ray.extra_samplers, ray.samplers, build, facts)
        scorers = cluster.workers("scorer", ray.scorers, ray.samplers, partial(build_scorer, *arguments), facts)

        def say(text: str) -> None:
            context.ui.say(f"  {text}")

        draws = Pool(samplers, facts(), needed=ray.samplers, deadline=scale.deadline, say=say)
        scores = Pool(scorers, facts(), deadline=scale.deadline, say=say)
        draws.start()
        scores.start()
        yield Remote(
            sampler=RemoteSampler(draws, policy, cluster.put, chunk=ray.chunk),
            scorer=RemoteScorer(scores, chunk=ray.chunk) if scorers else None,
        )


def facts_of(config: RunConfig) -> Facts:
    """Facts that must be equal in all processes of a run."""
    return {
        "trimtab": __version__,
        "torch": torch.__version__,
        "model": sha256_json(model_identity(config.model))[:16],
    }


def reading_context(config: RunConfig, recipe: Path, run: Path) -> Context:
    """The context of a stage in a process that only reads."""
    fast_cpu.install()
    torch.set_num_threads(config.threads or config.scale.cluster.cpus)
    return Context(config=config, recipe=recipe, run=RunFolder(run, create=False), ui=Silent())
