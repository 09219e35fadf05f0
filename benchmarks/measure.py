"""One workload in this process: the real trainer or sampler, a clock on its log, and this process's memory.

``python -m benchmarks.measure`` reads a workload and the settings as one line of JSON from standard input and
writes the measurement as JSON to standard output; :mod:`benchmarks.steps` starts it so. With ``batch_file``
among them it writes the batch there and takes one step per further line: :mod:`benchmarks.peers`.

Where a trainer logs a step, the step has ended. The first step pays for allocations and the
optimiser's state; it is not timed. The trainers get the settings of a recipe's defaults.
"""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.channel import Channel, Stop
from benchmarks.machine import peak_mib
from benchmarks.texts import preferences
from benchmarks.workloads import SEED, Kind, Settings, Workload
from trimtab import fast_cpu
from trimtab.errors import TrimtabError
from trimtab.models import AdapterConfig, Backbone, FrozenStates, ModelConfig, Role
from trimtab.models.loading import resolve
from trimtab.records import Message, Preference, Rollout
from trimtab.rollout import LocalSampler, RewardModelScorer, SamplerConfig
from trimtab.trainers import (
    DpoConfig,
    GrpoConfig,
    OptimizerConfig,
    PpoConfig,
    RewardConfig,
    RlooConfig,
    RlRoles,
    Session,
    SftConfig,
    answer_logprobs,
    encode_preferences,
    step_seed,
    train_preference,
    train_reward,
    train_rl,
    train_sft,
)
from trimtab.trainers.reward_heads import init_reward_head

STILL = OptimizerConfig(lr=1e-7, schedule="constant", warmup=0.0)
"""The usual cost, but the policy stays, so that its answers keep their length from step to step."""


@dataclass(kw_only=True)
class Clock:
    """Takes the time whenever a step ends; times are in seconds."""

    setup: float = 0.0
    """From the start until the first step begins."""
    seconds: list[float] = field(default_factory=list)
    """Each step."""
    cpu: list[float] = field(default_factory=list)
    """Seconds of processor time of each step, all threads together; other work on the machine adds little to it."""
    metrics: list[dict[str, float]] = field(default_factory=list)
    """What the trainer logged for each step."""
    gate: Callable[["Clock"], None] = lambda clock: None
    """Called before each step; the time it takes counts for nothing."""
    _last: float = field(default_factory=time.perf_counter)
    _cpu: float = 0.0

    def planned(self, done: int, total: int) -> None:
        """The first step begins now."""
        self.setup = self._lap()
        self._pass()

    def log(self, metrics: dict[str, float]) -> None:
        """A step has ended."""
        self.cpu.append(time.process_time() - self._cpu)
        self.seconds.append(self._lap())
        self.metrics.append(metrics)
        self._pass()

    def _pass(self) -> None:
        self.gate(self)
        self._last, self._cpu = time.perf_counter(), time.process_time()

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
    backbone, pairs = _load(workload, settings)
    loaded: list[float] = []
    clock = Clock(gate=lambda clock: loaded.append(peak_mib()))
    session = Session(log=clock.log, planned=clock.planned)
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


def _load(workload: Workload, settings: Settings) -> tuple[Backbone, list[Preference]]:
    backbone = Backbone.load(ModelConfig(name=settings.model, context=workload.context))
    pairs = preferences(backbone.chat, workload, settings.data)
    return backbone, pairs


# One step at a time, beside another library ----------------------------------------------

ENDLESS = 1_000_000
"""Steps that are planned; the other end of the pipe says when it is enough."""


def serve(workload: Workload, settings: Settings, batch_file: Path, channel: Channel) -> None:
    """Write the batch, say that all is ready, then take a step whenever asked; ends with the channel.

    The first answer has ``model`` (its folder), ``loaded_mib``, ``adapter_seed`` and ``beta`` (the KL coefficient of
    RLOO and GRPO), so that the other side can start from the same numbers. Every further one has ``seconds``,
    ``cpu_seconds``, ``metrics``, ``peak_mib`` and, for the online methods, ``answers``: prompt and answer tokens of
    this step's rollouts.
    """
    backbone, pairs = _load(workload, settings)
    batch_file.write_text(json.dumps(_batch(workload, backbone, pairs)))
    online = workload.kind in ("rloo", "grpo", "ppo")
    if settings.full_length and (online or workload.kind == "decode"):
        backbone.chat.end_tokens = frozenset()  # prompts are encoded without it; no token ends an answer
    first = {
        "ready": True,
        "model": resolve(settings.model),
        "adapter_seed": step_seed(SEED, "policy", 0) if online else SEED,
        "beta": _online(workload, 1).kl.coefficient if online else None,
    }

    def gate(clock: Clock) -> None:
        if not clock.seconds:
            channel.send(first | {"loaded_mib": peak_mib()})
        else:
            metrics = {key: value for key, value in clock.metrics[-1].items() if isinstance(value, int | float)}
            answers = [(r.prompt_tokens, r.tokens) for r in _SCORED]
            took = {"seconds": clock.seconds[-1], "cpu_seconds": clock.cpu[-1]}
            channel.send(took | {"metrics": metrics, "peak_mib": peak_mib(), "answers": answers})
        channel.wait()

    clock = Clock(gate=gate)
    _RUN[workload.kind](workload, backbone, pairs, ENDLESS, Session(log=clock.log, planned=clock.planned))


_SCORED: list[Rollout] = []
"""The rollouts of the last step of an online method."""


def _batch(workload: Workload, backbone: Backbone, pairs: Sequence[Preference]) -> dict[str, Any]:
    """The workload's rows as tokens, for a library that has a tokenizer but not our records."""
    if workload.kind == "sft":
        examples = [backbone.chat.conversation(_dialogue(pair)) for pair in pairs]
        return {"tokens": [e.tokens for e in examples], "masks": [e.response_mask for e in examples]}
    if workload.kind in ("reward", "dpo"):
        rankings = encode_preferences(backbone.chat, pairs)[0]
        better = [r.ranks.index(min(r.ranks)) for r in rankings]
        return {
            "prompts": [r.sequences[0][: r.prompt_length] for r in rankings],
            "chosen": [r.sequences[b][r.prompt_length :] for r, b in zip(rankings, better, strict=True)],
            "rejected": [r.sequences[1 - b][r.prompt_length :] for r, b in zip(rankings, better, strict=True)],
        }
    return {"prompts": [backbone.chat.prompt(pair.prompt.messages) for pair in pairs]}


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
    examples = [backbone.chat.conversation(_dialogue(pair)) for pair in pairs]
    role = _role(workload, backbone)
    train_sft(role, examples, SftConfig(batch=workload.batch, epochs=steps), seed=SEED, session=session)
    return [sum(len(e.tokens) for e in examples)] * steps


def _dialogue(pair: Preference) -> list[Message]:
    better = pair.completions[pair.ranks.index(min(pair.ranks))]
    return [*pair.prompt.messages, Message(role="assistant", content=better.text)]


def _reward(
    workload: Workload, backbone: Backbone, pairs: Sequence[Preference], steps: int, session: Session
) -> list[int]:
    rankings = encode_preferences(backbone.chat, pairs)[0]
    role = _role(workload, backbone, scalar_head=True)
    train_reward(role, rankings, RewardConfig(batch=workload.batch, epochs=steps), seed=SEED, session=session)
    return [sum(len(s) for r in rankings for s in r.sequences)] * steps


def _dpo(
    workload: Workload, backbone: Backbone, pairs: Sequence[Preference], steps: int, session: Session
) -> list[int]:
    rankings = encode_preferences(backbone.chat, pairs)[0]
    apart = workload.adapter == "full" and not workload.cached  # the trunk itself will move
    reference = Role(backbone.copy() if apart else backbone)
    known = answer_logprobs(reference, rankings)
    role = _role(workload, backbone)
    config = DpoConfig(batch=workload.batch, epochs=steps)
    if not workload.cached:  # as on the first pass over any data: each step has rows that the reference has not seen
        timed = session

        def planned(done: int, total: int) -> None:
            timed.planned(done, total)
            answer_logprobs(reference, rankings)

        def log(metrics: dict[str, float]) -> None:
            timed.log(metrics)
            answer_logprobs(reference, rankings)

        session = replace(session, planned=planned, log=log)
    train_preference(role, rankings, config, reference=known, seed=SEED, session=session)
    return [sum(len(s) for r in rankings for s in r.sequences)] * steps


def _online(workload: Workload, steps: int) -> RlooConfig | GrpoConfig | PpoConfig:
    common: dict[str, Any] = {
        "adapter": _adapter(workload),
        "steps": steps,
        "prompts": workload.batch,
        "sampler": SamplerConfig(max_new_tokens=workload.new_tokens, slots=workload.batch * workload.group),
        "policy": STILL,
    }
    if workload.kind == "ppo":
        return PpoConfig(**common, epochs=workload.epochs, critic=STILL, shared_critic=workload.shared_critic)
    plain: dict[str, Any] = {"group": workload.group, "score_clip": None, "missing_eos": None}
    return RlooConfig(**common, **plain) if workload.kind == "rloo" else GrpoConfig(**common, **plain)


def rule(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    """A reward that costs nothing and differs from answer to answer; the other side has the same."""
    return {"rule": [sum(r.tokens) % 97 / 97 for r in rollouts]}


def _rl(workload: Workload, backbone: Backbone, pairs: Sequence[Preference], steps: int, session: Session) -> list[int]:
    config = _online(workload, steps)
    ppo = workload.kind == "ppo"
    roles = RlRoles.on(backbone, config.adapter, seed=SEED, critic=ppo, shared_critic=workload.shared_critic)
    states = FrozenStates(backbone)
    reward = rule if not ppo else _reward_model(workload, states, config.micro_batch_tokens)
    tokens: list[int] = []

    def score(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        _SCORED[:] = rollouts
        tokens.append(sum(len(r.tokens) for r in rollouts))
        return dict(reward(rollouts))

    train_rl(roles, [pair.prompt for pair in pairs], score, config, seed=SEED, session=session, states=states)
    return tokens


def _reward_model(workload: Workload, states: FrozenStates, micro_batch_tokens: int) -> RewardModelScorer:
    role = Role.trainable(states.backbone, "reward", _adapter(workload), seed=SEED, scalar_head=True)
    init_reward_head(role, SEED)
    return RewardModelScorer(role, micro_batch_tokens=micro_batch_tokens, states=states)


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
        session.log({"step": step + 1, "tokens": tokens[-1]})
    return tokens


_RUN: dict[Kind, Callable[[Workload, Backbone, Sequence[Preference], int, Session], list[int]]] = {
    "sft": _sft,
    "reward": _reward,
    "dpo": _dpo,
    "rloo": _rl,
    "grpo": _rl,
    "ppo": _rl,
    "decode": _decode,
}


def main() -> int:
    """Measure what standard input asks for."""
    fast_cpu.install()
    request = json.loads(sys.stdin.readline())
    workload, settings = Workload(**request["workload"]), Settings(**request["settings"])
    torch.set_num_threads(settings.threads)
    try:
        if "batch_file" in request:
            with contextlib.suppress(Stop):
                serve(workload, settings, Path(request["batch_file"]), Channel())
            return 0
        with contextlib.redirect_stdout(sys.stderr):
            result = measure(workload, settings)
    except TrimtabError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
