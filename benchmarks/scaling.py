"""What a step costs when it grows: ``python -m benchmarks.scaling``.

Our own steps on a small random model, each at one, two, four and eight times the tokens of a sequence, the answers
per prompt and the words of the vocabulary; everything else stays. Each point runs in a fresh process. Time and memory
should grow no faster than the work does, and memory should stop growing where micro-batches set its limit.
"""

import argparse
import contextlib
import json
import math
import random
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.channel import environment
from benchmarks.machine import cores, machine, peak_mib, versions
from benchmarks.workloads import SEED

Step = Literal["sft", "reward", "dpo", "rloo", "ppo"]
Axis = Literal["tokens", "answers", "vocabulary"]

TIMES = (1, 2, 4, 8)

AXES: dict[Step, tuple[Axis, ...]] = {
    "sft": ("tokens", "vocabulary"),
    "reward": ("tokens", "answers", "vocabulary"),
    "dpo": ("tokens", "answers", "vocabulary"),
    "rloo": ("tokens", "answers", "vocabulary"),
    "ppo": ("tokens", "vocabulary"),
}
"""What grows in which step. SFT and PPO have one answer to a prompt."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One step at one size."""

    step: Step
    """What is done."""
    prompts: int = 8
    """Sequences (sft) or prompts of a step."""
    tokens: int = 64
    """Of a sequence; half is the prompt."""
    answers: int = 2
    """Per prompt; sft and ppo have one."""
    vocabulary: int = 4096
    """Words."""
    layers: int = 4
    """Of the model."""
    width: int = 256
    """Of the model."""

    def grown(self, axis: Axis, times: int) -> "Point":
        """The same with one size multiplied."""
        return replace(self, **{axis: getattr(self, axis) * times})


def points(steps: Sequence[Step], base: dict[str, int]) -> list[tuple[Step, Axis | None, int, Point]]:
    """All that is measured: step, axis (None: the start they share), factor, sizes."""
    result: list[tuple[Step, Axis | None, int, Point]] = []
    for step in steps:
        start = Point(step=step, **base)
        result.append((step, None, 1, start))
        result += [(step, axis, times, start.grown(axis, times)) for axis in AXES[step] for times in TIMES[1:]]
    return result


# One point, in a process of its own -------------------------------------------------------


def measure(point: Point, repeats: int) -> dict[str, Any]:
    """Seconds of a step (median after a warm-up) and MiB that the steps added to the loaded model."""
    from benchmarks.measure import Clock
    from trimtab.trainers import Session

    loaded: list[float] = []
    clock = Clock(gate=lambda clock: loaded.append(peak_mib()))
    backbone = _backbone(point)
    rng = random.Random(SEED)
    _RUN[point.step](point, backbone, rng, repeats + 1, Session(log=clock.log, planned=clock.planned))
    seconds = clock.seconds[1:]
    return {
        "seconds": seconds,
        "median": statistics.median(seconds),
        "loaded_mib": loaded[0],
        "step_mib": peak_mib() - loaded[0],
    }


class _Numbers:
    """Stands in for a tokenizer and its chat template: a message is its tokens, written as numbers. Nothing ends."""

    end_tokens: frozenset[int] = frozenset()

    def __init__(self, context: int) -> None:
        self.context = context

    def prompt(self, messages: Sequence[Any]) -> list[int]:
        return [int(word) for word in messages[-1].content.split()]

    def decode(self, tokens: Sequence[int], *, strip: bool = True) -> str:
        return " ".join(map(str, tokens))


def _backbone(point: Point) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from trimtab import fast_cpu
    from trimtab.models import Backbone

    fast_cpu.install()
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=point.vocabulary,
        hidden_size=point.width,
        intermediate_size=2 * point.width,
        num_hidden_layers=point.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2 * point.tokens,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    chat: Any = _Numbers(2 * point.tokens)
    return Backbone(model.eval(), chat)


def _text(point: Point, rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(point.vocabulary) for _ in range(count)]


def _role(backbone: Any, *, scalar_head: bool = False) -> Any:
    from trimtab.models import Role

    return Role(backbone, full=True, scalar_head=scalar_head)


def _sft(point: Point, backbone: Any, rng: random.Random, steps: int, session: Any) -> None:
    from trimtab.models import Encoded
    from trimtab.trainers import SftConfig, train_sft

    half = point.tokens // 2
    mask = [False] * half + [True] * (point.tokens - half)
    examples = [Encoded(tokens=_text(point, rng, point.tokens), response_mask=list(mask)) for _ in range(point.prompts)]
    train_sft(_role(backbone), examples, SftConfig(batch=point.prompts, epochs=steps), seed=SEED, session=session)


def _rankings(point: Point, rng: random.Random) -> list[Any]:
    from trimtab.trainers import Ranking

    half = point.tokens // 2
    result = []
    for number in range(point.prompts):
        prompt = _text(point, rng, half)
        result.append(
            Ranking(
                id=str(number),
                sequences=[prompt + _text(point, rng, point.tokens - half) for _ in range(point.answers)],
                prompt_length=half,
                ranks=tuple(range(point.answers)),
                probability=None,
                margin=None,
                weight=1.0,
            )
        )
    return result


def _reward(point: Point, backbone: Any, rng: random.Random, steps: int, session: Any) -> None:
    from trimtab.trainers import RewardConfig, train_reward

    role, rankings = _role(backbone, scalar_head=True), _rankings(point, rng)
    train_reward(role, rankings, RewardConfig(batch=point.prompts, epochs=steps), seed=SEED, session=session)


def _dpo(point: Point, backbone: Any, rng: random.Random, steps: int, session: Any) -> None:
    from trimtab.trainers import DpoConfig, answer_logprobs, train_preference

    role, rankings = _role(backbone), _rankings(point, rng)
    known = answer_logprobs(role, rankings)
    config = DpoConfig(batch=point.prompts, epochs=steps)
    train_preference(role, rankings, config, reference=known, seed=SEED, session=session)


def _rl(point: Point, backbone: Any, rng: random.Random, steps: int, session: Any) -> None:
    from benchmarks.measure import STILL, rule
    from trimtab.models import AdapterConfig
    from trimtab.records import Prompt
    from trimtab.rollout import SamplerConfig
    from trimtab.trainers import PpoConfig, RlooConfig, RlRoles, train_rl

    half = point.tokens // 2
    prompts = [Prompt.from_text(" ".join(map(str, _text(point, rng, half)))) for _ in range(point.prompts)]
    group = 1 if point.step == "ppo" else point.answers
    common: dict[str, Any] = {
        "adapter": AdapterConfig(kind="full"),
        "steps": steps,
        "prompts": point.prompts,
        "group": group,
        "sampler": SamplerConfig(max_new_tokens=point.tokens - half, slots=point.prompts * group),
        "policy": STILL,
        "missing_eos": None,
    }
    config = PpoConfig(**common, critic=STILL) if point.step == "ppo" else RlooConfig(**common)
    roles = RlRoles.on(backbone, config.adapter, seed=SEED, critic=point.step == "ppo")
    train_rl(roles, prompts, rule, config, seed=SEED, session=session)


_RUN: dict[Step, Callable[[Point, Any, random.Random, int, Any], None]] = {
    "sft": _sft,
    "reward": _reward,
    "dpo": _dpo,
    "rloo": _rl,
    "ppo": _rl,
}


# All of them ------------------------------------------------------------------------------


COLUMNS = ("step", "grows", *(f"{n}×: s" for n in TIMES), "power", *(f"{n}×: MiB" for n in TIMES), "power")


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per step and axis. ``power``: 1 where eight times the size costs eight times as much, 0 where nothing."""
    result = {(r["step"], r["axis"], r["times"]): r for r in report["results"]}
    table = []
    for step, axis in dict.fromkeys((r["step"], r["axis"]) for r in report["results"] if r["axis"] is not None):
        series = [result.get((step, None if times == 1 else axis, times), {}) for times in TIMES]
        cells = [step, axis]
        for key, digits in (("median", 2), ("step_mib", 0)):
            values = [r.get(key) for r in series]
            cells += ["failed" if v is None else f"{v:.{digits}f}" for v in values]
            first, last = values[0], values[-1]
            known = first is not None and last is not None and first > 0 and last > 0
            cells.append(f"{math.log(last / first, TIMES[-1]):.2f}" if known else "–")  # type: ignore[operator]
        table.append(tuple(cells))
    return table


_NOTES = """\
- `power`: p in cost ∝ size^p between the first and the last column: 1 is linear, 0 costs nothing more.
- `tokens` are those of a sequence, half of them prompt: time should be linear in them, and a little more, as
  attention's share of the work grows with their square. Memory should not grow: micro-batches have the same size.
- `answers`: those of a prompt, which a ranking (reward, dpo) or a group (rloo) has: less than linear, as they share it.
- `vocabulary`: less than linear, as only the head's part of the work grows with it.
- `MiB`: what the steps add to the memory of the process with the loaded model in it. A larger vocabulary is also a
  larger model: its weights' gradient and optimiser state grow with it.
- DPO's pass of the reference runs before the steps, in what counts as loaded: its steps add the less.
"""


def markdown(report: dict[str, Any]) -> str:
    """The report as a page that says how and on what it was made."""
    from benchmarks.peers import table

    here, start = report["machine"], report["start"]
    made = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        "\n\n".join(
            [
                "# Benchmarks: cost against size",
                f"Written by this command on {report['date'][:10]}; run it to get the numbers of your machine:",
                f"```\n{report['command']}\n```",
                f"Machine: {here['processor']}, {here['cores']} cores ({report['threads']} threads used), "
                f"{here['memory_gib']} GiB memory, {here['system']}; load average before the start "
                f"{here['load_before']}. **The machine is shared with other work and noisy.**",
                f"A random Llama of {start['layers']} layers and width {start['width']}, all weights trained, float32; "
                f"at 1×: {start['prompts']} prompts, {start['tokens']} tokens a sequence, {start['answers']} answers, "
                f"a vocabulary of {start['vocabulary']}. {report['repeats']} timed steps each, medians. Versions: "
                f"{made}.",
                table(COLUMNS, rows(report)),
                _NOTES.strip(),
            ]
        )
        + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all points, print the table, write files. Returns 1 if a point failed."""
    from trimtab.files import write_atomic, write_json

    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    if options.point is not None:
        import torch

        torch.set_num_threads(options.threads)
        with contextlib.redirect_stdout(sys.stderr):
            result = measure(Point(**json.loads(options.point)), options.repeats)
        print(json.dumps(result))
        return 0
    base = {} if options.width is None else {"width": options.width, "layers": 2}
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.scaling", *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "threads": options.threads,
        "repeats": options.repeats,
        "start": asdict(Point(step="sft", **base)),
        "results": [],
    }
    for step, axis, times, point in points(options.only, base):
        command = [sys.executable, "-m", "benchmarks.scaling", "--point", json.dumps(asdict(point))]
        command += ["--repeats", str(options.repeats), "--threads", str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        printed = (done.stderr.strip().splitlines() or ["no message"])[-1]
        result = (
            json.loads(done.stdout) if done.returncode == 0 else {"error": f"exit code {done.returncode}: {printed}"}
        )
        report["results"].append({"step": step, "axis": axis, "times": times, **result})
        print(f"{step} {axis or 'start'} {times}×: {result.get('error') or result['median']}", file=sys.stderr)
        if options.json is not None:
            write_json(options.json, report)
    if options.out is not None:
        write_atomic(options.out, markdown(report))
    for row in [COLUMNS, *rows(report)]:
        print("  ".join(cell.rjust(9) for cell in row))
    return 1 if any("error" in r for r in report["results"]) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here, after every point")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a Markdown page here")
    parser.add_argument("--only", type=_steps, default=get_args(Step), metavar="STEPS", help=",".join(get_args(Step)))
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed steps of each point (3)")
    parser.add_argument("--threads", type=int, default=cores(), metavar="N", help="CPU threads (all cores)")
    parser.add_argument("--width", type=int, metavar="N", help="a smaller model, of two layers")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser


def _steps(text: str) -> tuple[str, ...]:
    steps = tuple(text.split(","))
    if unknown := [s for s in steps if s not in get_args(Step)]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no step; use some of {','.join(get_args(Step))}")
    return steps


if __name__ == "__main__":
    sys.exit(main())
