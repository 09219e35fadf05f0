"""A sampler and a scorer that delegate to other processes, and the objects that run in those processes.

Work is divided into chunks of a fixed number of prompts. Every worker computes a chunk the same way, so results do not
depend on the number of workers, on which worker has a chunk, or on lost workers.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from trimtab.errors import ConfigError, RankError
from trimtab.models import FrozenStates, Role
from trimtab.records import Prompt, Rollout
from trimtab.rollout.pool import Pool, finished
from trimtab.rollout.protocol import Sampler, ValueHead, by_prompt
from trimtab.rollout.scorer import Scorer


class RemoteSampler:
    """Draws answers with the samplers of a pool.

    Args:
        pool: processes with a :class:`SamplerWorker`.
        role: the policy. Its trained weights are sent once for each weight version.
        put: makes an object available to all workers; they are passed its return value instead of the object.
        chunk: prompts that a sampler gets at a time.
    """

    def __init__(self, pool: Pool, role: Role, put: Callable[[Any], Any], *, chunk: int) -> None:
        self.pool, self.role, self.chunk = pool, role, chunk
        self._put = put
        self._version: int | None = None
        self._weights: Any = None

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        adapter: str | None,
        seed: int,
        group: int = 1,
        weight_version: int = 0,
        states: FrozenStates | None = None,
        value_head: ValueHead | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Rollout]:
        """As :meth:`trimtab.rollout.Sampler.generate`; ``states`` and ``value_head`` are not used.

        Raises:
            RankError: no sampler answers, or one draws with other weights.
        """
        rollouts = self.start(prompts, adapter=adapter, seed=seed, group=group, weight_version=weight_version)()
        if progress is not None:
            progress(len(rollouts), len(rollouts))
        return rollouts

    def start(
        self, prompts: Sequence[Prompt], *, adapter: str | None, seed: int, group: int = 1, weight_version: int = 0
    ) -> Callable[[], list[Rollout]]:
        """As :meth:`trimtab.rollout.BackgroundSampler.start`."""
        if adapter != self.role.adapter:
            raise ConfigError(f"samplers hold the weights of {self.role.adapter!r} and are asked for {adapter!r}")
        if weight_version != self._version:
            self._weights = self._put({name: tensor.numpy() for name, tensor in self.role.state().items()})
            self._version = weight_version
        bundles = by_prompt(prompts)
        chunks = [bundles[i : i + self.chunk] for i in range(0, len(bundles), self.chunk)]
        jobs = [
            (self._weights, weight_version, [prompts[place] for bundle in chunk for place in bundle], seed, group)
            for chunk in chunks
        ]
        phase = f"answers with weights of version {weight_version}"

        def draw() -> list[Rollout]:
            by_place: dict[int, list[Rollout]] = {}
            for chunk, (version, rollouts) in zip(chunks, self.pool.map(phase, "draw", jobs), strict=True):
                if version != weight_version or any(r.weight_version != weight_version for r in rollouts):
                    raise RankError(
                        f"two versions of weights: a sampler drew with version {version} and version {weight_version} "
                        "was asked for; start the run again, it continues from the last checkpoint"
                    )
                places = [place for bundle in chunk for place in bundle]
                by_place |= {place: rollouts[i * group : (i + 1) * group] for i, place in enumerate(places)}
            return [rollout for place in range(len(prompts)) for rollout in by_place[place]]

        return finished(draw, phase)


class RemoteScorer:
    """Scores answers with the scorers of a pool; a :data:`~trimtab.rollout.Scorer`.

    Args:
        pool: processes with a :class:`ScorerWorker`.
        chunk: prompts whose answers a scorer gets at a time.
    """

    def __init__(self, pool: Pool, *, chunk: int) -> None:
        self.pool, self.chunk = pool, chunk

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
        """Rewards by name; consecutive answers to one prompt are scored together."""
        bundles = [list(own) for _, own in groupby(rollouts, key=lambda r: r.prompt.id)]
        chunks = [bundles[i : i + self.chunk] for i in range(0, len(bundles), self.chunk)]
        jobs = [([rollout for bundle in chunk for rollout in bundle],) for chunk in chunks]
        rewards: dict[str, list[Any]] = {}
        for part in self.pool.map("rewards", "score", jobs):
            for name, values in part.items():
                rewards.setdefault(name, []).extend(values)
        return rewards


class SamplerWorker:
    """Runs in a sampler's process: a sampler and the policy's weights.

    Args:
        role: the policy; its weights are replaced by those that come with a call.
        sampler: draws with the role's backbone.
    """

    def __init__(self, role: Role, sampler: Sampler) -> None:
        self.role, self.sampler = role, sampler
        self.version: int | None = None

    def draw(
        self, weights: Mapping[str, Any], version: int, prompts: Sequence[Prompt], seed: int, group: int
    ) -> tuple[int | None, list[Rollout]]:
        """Version of the weights, and ``group`` answers to each prompt.

        Args:
            weights: arrays of the policy's trained weights; loaded if their version differs from the last one.
            version: version of these weights.
            prompts: what to answer.
            seed: seed of the step.
            group: answers per prompt.
        """
        if version != self.version:
            self.version = None  # if loading fails halfway, the weights are of neither version
            self.role.load_state({name: torch.tensor(array) for name, array in weights.items()})
            self.version = version
        with self.role.computing():
            rollouts = self.sampler.generate(
                prompts, adapter=self.role.adapter, seed=seed, group=group, weight_version=version
            )
        return self.version, rollouts


class ScorerWorker:
    """Runs in a scorer's process."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def score(self, rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
        """Rewards by name."""
        return {name: list(values) for name, values in self.scorer(rollouts).items()}
