"""All methods on one simulated task whose optimum is known, with an equal budget: reward against KL.

The task: answers of three tokens, three choices each, a bigram reference and a reward on all 27 answers, N(0, 1) each.
What is best under E[r] − β·KL(π‖ref) is known, π* ∝ ref·exp(r/β). Every method gets the same number of judged answers:
an online one samples and scores them, an offline one gets answers of the reference, judged by Bradley–Terry (by
Plackett–Luce in fours, for a method of rankings), and makes 80 passes over them. β is the same where a
method has one; where it divides advantages by a deviation, or looks at each token alone, its β means something else,
and so does its end. KTO is left out: its z needs answers to other prompts, and a table has one. With ``--run`` the task
is that of a finished run, see :mod:`benchmarks.real_task`.
"""

import argparse
import collections
import math
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.real_task import run_cells
from trimtab.conformance.tables import F, gibbs, kl, train_table
from trimtab.conformance.tabular import ASKED, TabularRole, Tree
from trimtab.files import write_json
from trimtab.models import AdapterConfig
from trimtab.pipeline.reporting import machine
from trimtab.rollout import SamplerConfig
from trimtab.trainers import (
    METHODS,
    KLConfig,
    OfflineMethod,
    OnlineMethod,
    OptimizerConfig,
    PpoConfig,
    Ranking,
    answer_logprobs,
    train_preference,
)

TREE = Tree(actions=3, depth=3)

BETA = 0.5

SAMPLES = 96
"""Answers of a step of an online method."""

T4 = 2.776
"""0.975 quantile of Student's t with four degrees of freedom."""


def instance(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of the reference and a reward for every answer."""
    generator = torch.Generator().manual_seed(4500 + seed)
    first, bigram = torch.randn(1, 3, generator=generator, dtype=F), torch.randn(3, 3, generator=generator, dtype=F)
    reward = torch.randn(27, generator=generator, dtype=F)
    return torch.cat([first, bigram, bigram.repeat(3, 1)]), reward


def online(row: OnlineMethod, seed: int, steps: int) -> Tensor:
    """Log-probability of every answer at the end."""
    ref, reward = instance(seed)
    fields = row.config.model_fields
    group = 4 if fields["group"].default > 1 else 1
    steady = OptimizerConfig(lr=0.1, schedule="linear", warmup=0.0, max_grad_norm=None)
    base: dict[str, Any] = {
        "adapter": AdapterConfig(kind="full"), "steps": steps, "prompts": SAMPLES // group, "group": group,
        "sampler": SamplerConfig(max_new_tokens=TREE.depth), "policy": steady, "missing_eos": None, "guard": None,
        "micro_batch_tokens": 1 << 20, "epochs": 1,
    }  # fmt: skip
    if isinstance(fields["kl"].default, KLConfig):
        place = "loss" if "std" in fields else fields["kl"].default.place
        base["kl"] = KLConfig(coefficient=BETA, place=place)
    if "beta" in fields:
        base["beta"] = BETA
    if row.opponent is not None:
        base |= {"prompts": SAMPLES // 2}  # an opponent's answer is judged too
    if row.config is PpoConfig:
        base |= {"critic": steady, "value_eps": 1e6}
    policy = train_table(TREE, ref, reward, row.config(**base), seed=seed).policy  # type: ignore[arg-type]
    return TREE.path_logprobs(cast(Any, policy).logits.detach().double())


def offline(row: OfflineMethod, seed: int, answers: int) -> Tensor:
    """Log-probability of every answer at the end."""
    ref, reward = instance(seed)
    rankings = judged(ref, reward, answers, 4 if row.listwise else 2, seed)
    steady = OptimizerConfig(lr=0.1, schedule="cosine", warmup=0.0, max_grad_norm=None)
    more: dict[str, Any] = {"tau" if "tau" in row.config.model_fields else "beta": BETA}
    if "beta" not in row.config.model_fields and "tau" not in row.config.model_fields:
        more = {}
    config = row.config(
        optimizer=steady, epochs=80, batch=len(rankings), holdout=0.0, micro_batch_tokens=1 << 20, **more
    )
    policy = TabularRole(TREE, ref)
    known = answer_logprobs(cast(Any, TabularRole(TREE, ref)), rankings) if row.reference else None
    train_preference(cast(Any, policy), rankings, config, reference=known, seed=seed)  # type: ignore[arg-type]
    return TREE.path_logprobs(policy.logits.detach().double())


def judged(ref: Tensor, reward: Tensor, answers: int, size: int, seed: int) -> list[Ranking]:
    """Different answers of the reference to one prompt, ranked by Plackett–Luce; equal rankings are added up."""
    draw, chances = random.Random(f"{seed}|judged"), TREE.path_logprobs(ref).exp().tolist()
    strengths, paths = reward.exp().tolist(), TREE.paths().tolist()
    counts: collections.Counter[tuple[int, ...]] = collections.Counter()
    for _ in range(answers // size):
        left: list[int] = []
        while len(left) < size:
            one = draw.choices(range(27), chances)[0]
            if one not in left:
                left.append(one)
        order = []
        while left:
            order.append(draw.choices(left, [strengths[i] for i in left])[0])
            left.remove(order[-1])
        counts[tuple(order)] += 1
    return [
        Ranking(
            id=str(order), sequences=[[ASKED, *paths[i]] for i in order], prompt_length=1, ranks=tuple(range(size)),
            probability=None, margin=None, weight=float(count),
        )
        for order, count in sorted(counts.items())
    ]  # fmt: skip


def measured(end: Tensor, seed: int) -> dict[str, float]:
    """Reward, KL, and the share of J(π*) − J(ref) that is closed."""
    ref, reward = instance(seed)
    old = TREE.path_logprobs(ref)
    best = gibbs(old, reward, BETA)

    def objective(policy: Tensor) -> float:
        return float(policy.exp() @ reward) - BETA * kl(policy, old)

    return {
        "reward": float((end.exp() - old.exp()) @ reward),
        "kl": kl(end, old),
        "closed": (objective(end) - objective(old)) / (objective(best) - objective(old)),
    }


def interval(values: Sequence[float]) -> str:
    """Mean and half of its 95 % interval over five seeds."""
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))
    return f"{mean:.2f} ± {T4 * spread / math.sqrt(len(values)):.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all methods, print a row each as Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="of 96 answers; offline methods get as many")
    parser.add_argument("--only", nargs="*", default=[], help="names; all by default")
    parser.add_argument("--json", type=Path, default=Path("runs/method-curves.json"))
    parser.add_argument("--run", type=Path, help="a finished run: its task in place of the simulated one")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.yaml"), help="of --run")
    parser.add_argument("--answers", type=int, default=192, help="with --run: judged answers of each policy")
    parser.add_argument("--prompts", type=int, default=64, help="with --run: held-out prompts")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.only) - set(METHODS))
    if unknown:
        print(f"no method is named {', '.join(unknown)}; there are {', '.join(METHODS)}", file=sys.stderr)
        return 2
    if options.run is not None:
        return run_cells(options)
    best = [measured(gibbs(TREE.path_logprobs(instance(s)[0]), instance(s)[1], BETA), s) for s in range(options.seeds)]
    print("| method | reward gained | KL(π‖ref), nats | share of the gap closed |\n|---|---|---|---|")
    print(f"| π* | {interval([b['reward'] for b in best])} | {interval([b['kl'] for b in best])} | 1 |")
    rows, start = [], time.perf_counter()
    for name, row in METHODS.items():
        thumbs = isinstance(row, OfflineMethod) and row.loss is None and row.ranking_loss is None
        if thumbs or (options.only and name not in options.only):
            continue
        results = []
        for seed in range(options.seeds):
            if isinstance(row, OnlineMethod):
                end = online(row, seed, options.steps)
            else:
                end = offline(row, seed, options.steps * SAMPLES)
            results.append(measured(end, seed))
        cells = [interval([r[key] for r in results]) for key in ("reward", "kl", "closed")]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)
        rows.append({"method": name, "seeds": results})
        seconds = time.perf_counter() - start
        write_json(options.json, {"machine": machine(), "steps": options.steps, "seconds": seconds, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
