"""One workload in this process: the real trainer or sampler, a clock on its log, and this process's memory.

``python -m benchmarks.measure`` reads a workload and the settings as JSON from standard input and
writes the measurement as JSON to standard output; :mod:`benchmarks.steps` starts it so.

Where a trainer logs a step, the step has ended. The first step pays for allocations and the
optimiser's state; it is not timed. The trainers get the settings of a recipe's defaults.
"""

import contextlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.texts import preferences
from benchmarks.workloads import SEED, Kind, Settings, Workload
from trimtab.errors import TrimtabError
from trimtab.models import AdapterConfig, Backbone, ModelConfig, Role
from trimtab.records import Message, Preference
from trimtab.rollout import LocalSampler, RewardModelScorer, SamplerConfig
from trimtab.trainers import (
    OptimizerConfig,
    PpoConfig,
    RewardConfig,
    RlRoles,
    Session,
    SftConfig,
    encode_preferences,
    train_reward,
    train_rl,
    train_sft,
)
from trimtab.trainers.reward import init_reward_head

_STILL = OptimizerConfig(lr=1e-7, schedule="constant", warmup=0.0)
"""PPO at the usual cost, but the policy stays, so that its answers keep their length from step to step."""


@dataclass(kw_only=True)
class Clock:
    """Takes the time whenever a step ends; times are in seconds."""

    setup: float = 0.0
    """From the start until the first step begins."""
    seconds: list[float] = field(default_factory=list)
    """Each step."""
    metrics: list[dict[str, float]] = field(default_factory=list)
    """What the trainer logged for each step."""
    _last: float = field(default_factory=time.perf_counter)

    def planned(self, done: int, total: int) -> None:
        """The first step begins now."""
        self.setup = self._lap()

    def log(self, metrics: dict[str, float]) -> None:
        """A step has ended."""
        self.seconds.append(self._lap())
        self.metrics.append(metrics)

    def _lap(self) -> float:
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return passed


def measure(workload: Workload, settings: Settings) -> dict[str, Any]:
    """Run a workload's steps in this process.

    Returns:
        ``seconds`` and ``tokens`` of each timed step; their ``median``, ``min`` and ``max`` seconds;
        ``tokens_per_step`` and ``tokens_per_second`` (medians); ``phases`` (median seconds by phase, PPO
        only); ``setup_seconds``; ``loaded_mib`` and ``peak_mib``, the most memory this process ever held, up to
        the first step and in all; ``gpu_peak_mib`` or None; ``device``. SFT and reward count every token of the
        batch, PPO and decoding those of the answers.
    """
    backbone = Backbone.load(ModelConfig(name=settings.model, context=workload.context))
    pairs = preferences(backbone.chat, workload, settings.data)
    loaded: list[float] = []
    clock = Clock()

    def planned(done: int, total: int) -> None:
        loaded.append(peak_mib())
        clock.planned(done, total)

    session = Session(log=clock.log, planned=planned)
    tokens = _RUN[workload.kind](workload, backbone, pairs, settings.repeats + 1, session)
    on_gpu = backbone.device.type == "cuda"
    seconds, tokens, logged = clock.seconds[1:], tokens[1:], clock.metrics[1:]
    phases = [key for key in logged[0] if key.startswith("seconds/")]
    return {
        "seconds": seconds,
        "tokens": tokens,
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "tokens_per_step": statistics.median(tokens),
        "tokens_per_second": statistics.median(t / s for t, s in zip(tokens, seconds, strict=True)),
        "phases": {key.removeprefix("seconds/"): statistics.median(m[key] for m in logged) for key in phases},
        "setup_seconds": clock.setup,
        "loaded_mib": loaded[0],
        "peak_mib": peak_mib(),
        "gpu_peak_mib": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }


def peak_mib() -> float:
    """The most memory this process ever held in RAM, in MiB.

    Linux counts it anew for each program (VmHWM); its ``ru_maxrss`` starts at the parent's peak, so it serves
    elsewhere only.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


# The workloads: each runs so many steps, reports them to the session and returns the tokens of each. ---------


def _adapter(workload: Workload) -> AdapterConfig:
    return AdapterConfig(kind=workload.adapter, top_layers=workload.top_layers)


def _role(workload: Workload, backbone: Backbone, *, scalar_head: bool = False) -> Role:
    """The only trained role: with all weights trained, the trunk itself."""
    if workload.adapter == "full":
        return Role(backbone, full=True, scalar_head=scalar_head)
    return Role.trainable(backbone, "bench", _adapter(workload), seed=SEED, scalar_head=scalar_head)


def _sft(
    workload: Workload, backbone: Backbone, pairs: Sequence[Preference], steps: int, session: Session
) -> list[int]:
    def dialogue(pair: Preference) -> list[Message]:
        better = pair.completions[pair.ranks.index(min(pair.ranks))]
        return [*pair.prompt.messages, Message(role="assistant", content=better.text)]

    examples = [backbone.chat.conversation(dialogue(pair)) for pair in pairs]
    role = _role(workload, backbone)
    train_sft(role, examples, SftConfig(batch=workload.batch, epochs=steps), seed=SEED, session=session)
    return [sum(len(e.tokens) for e in examples)] * steps


def _reward(
    workload: Workload, backbone: Backbone, pairs: Sequence[Preference], steps: int, session: Session
) -> list[int]:
    rankings = encode_preferences(backbone.chat, pairs)[0]
    role = _role(workload, backbone, scalar_head=True)
    train_reward(role, rankings, RewardConfig(batch=workload.batch, epochs=steps), seed=SEED, session=session)
    return [sum(len(s) for r in rankings for s in r.sequences)] * steps


def _ppo(
    workload: Workload, backbone: Backbone, pairs: Sequence[Preference], steps: int, session: Session
) -> list[int]:
    adapter = _adapter(workload)
    roles = RlRoles.on(backbone, adapter, seed=SEED)
    judge = Role.trainable(backbone, "reward", adapter, seed=SEED, scalar_head=True)
    init_reward_head(judge, SEED)
    config = PpoConfig(
        adapter=adapter,
        steps=steps,
        prompts=workload.batch,
        epochs=workload.epochs,
        sampler=SamplerConfig(max_new_tokens=workload.new_tokens, slots=workload.batch),
        policy=_STILL,
        critic=_STILL,
    )
    tokens: list[int] = []

    def score(rollouts: Sequence[Any]) -> dict[str, list[float]]:
        tokens.append(sum(len(r.tokens) for r in rollouts))
        return scorer(rollouts)

    scorer = RewardModelScorer(judge, token_budget=config.micro_batch_tokens)
    train_rl(roles, [pair.prompt for pair in pairs], score, config, seed=SEED, session=session)
    return tokens


def _decode(
    workload: Workload, backbone: Backbone, pairs: Sequence[Preference], steps: int, session: Session
) -> list[int]:
    role = _role(workload, backbone)
    sampler = LocalSampler(backbone, SamplerConfig(max_new_tokens=workload.new_tokens, slots=workload.batch))
    tokens: list[int] = []
    session.planned(0, steps)
    for step in range(steps):
        rollouts = sampler.generate([pair.prompt for pair in pairs], adapter=role.adapter, seed=SEED)
        tokens.append(sum(len(r.tokens) for r in rollouts))
        session.log({"step": step + 1})
    return tokens


_RUN: dict[Kind, Callable[[Workload, Backbone, Sequence[Preference], int, Session], list[int]]] = {
    "sft": _sft,
    "reward": _reward,
    "ppo": _ppo,
    "decode": _decode,
}


def main() -> int:
    """Measure what standard input asks for."""
    asked = json.load(sys.stdin)
    workload, settings = Workload(**asked["workload"]), Settings(**asked["settings"])
    torch.set_num_threads(settings.threads)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = measure(workload, settings)
    except TrimtabError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
