"""All methods on one real task at an equal number of judged answers: reward, by proxy and by gold, against KL.

The task is that of a finished run: its model after SFT, its prompts, its rewards and the preferences that its judges
gave. A cell is one method with one seed. An online method samples its answers and has them scored, an opponent's
answers included; an offline method learns from as many answers of the run's rankings, in two passes, which are as many
updates. Adapter, sampler, rewards and learning rate are the recipe's, so is β where an online method has a KL
coefficient; everything else is the method's default. Then each policy, and the start model, answers the same held-out
prompts. The alarms of :mod:`trimtab.evals.run_alarms` watch each online run. The results are written after every cell,
and the same command continues where it was stopped.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from trimtab import fast_cpu
from trimtab.errors import TrimtabError
from trimtab.evals import AlarmConfig, RunAlarms, by_prompt, probe_answers
from trimtab.files import write_json
from trimtab.models import Backbone, FrozenStates, Role
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.context import Context
from trimtab.pipeline.evaluation import add_gold, kl_per_answer
from trimtab.pipeline.learning import load_rewards, usable_rankings
from trimtab.pipeline.reporting import machine
from trimtab.pipeline.ui import Silent
from trimtab.records import Rollout
from trimtab.rollout import LocalSampler, NamedRewards
from trimtab.storage import RunFolder, read_json
from trimtab.trainers import (
    METHODS,
    KLConfig,
    KtoConfig,
    Metrics,
    OfflineMethod,
    OnlineConfig,
    OnlineMethod,
    OptimizerConfig,
    PpoConfig,
    Ranking,
    RlRoles,
    answer_logprobs,
    critic_of,
    judged_from_rankings,
    train_kto,
    train_preference,
    train_rl,
)

START = "start"
"""Name of the cells of the model before alignment."""

STEP = 32
"""Answers that are scored in a step of an online method."""

PASSES = 2
"""Passes of an offline method over its rankings."""

BASELINE = 4
"""Steps with which the alarms compare the later ones."""

MICRO = 2048
"""Padded tokens of a forward and backward pass."""


def open_run(run: Path, recipe: Path) -> Context:
    """A finished run, to train on.

    Raises:
        FileNotFoundError: its reward model is not trained.
    """
    config = load_recipe(recipe)
    if not (run / "stages" / "reward" / "weights.safetensors").exists():
        raise FileNotFoundError(f"{run}: no trained reward model; make it with `trimtab run {recipe}`")
    if not isinstance(config.align, OnlineConfig):
        raise FileNotFoundError(f"{recipe}: align.method is not an online one, whose sampler and rewards are needed")
    return Context(config=config, recipe=recipe, run=RunFolder(run, create=False), ui=Silent())


def cell(
    context: Context, method: str, seed: int, *, answers: int, prompts: int, reference_logprobs: dict[str, list[float]]
) -> dict[str, Any]:
    """Train one policy and measure it on held-out prompts; ``start`` trains nothing.

    ``reference_logprobs``: log ref of the answers of each ranking, by its id; filled as needed.
    """
    started = time.perf_counter()
    trunk = context.trunk()
    policy = None if method == START else _policy(context, trunk, seed)
    states = FrozenStates(trunk)
    rewards, _ = load_rewards(context, trunk, MICRO, states)
    facts: dict[str, Any] = {}
    if policy is not None:
        row = METHODS[method]
        if isinstance(row, OnlineMethod):
            facts["alarms"] = _train_online(context, row, policy, states, rewards, seed, answers)
        else:
            _train_offline(context, row, policy, seed, answers, reference_logprobs)
    states.clear()
    facts |= measured(context, policy or Role(trunk), states, rewards, prompts)
    return facts | {"seconds": time.perf_counter() - started}


class AlarmMonitor:
    """A :data:`~trimtab.trainers.rl.Monitor` that lists the alarms of a run of ``steps`` steps."""

    def __init__(self, steps: int, limit: int) -> None:
        self._alarms, self._limit = RunAlarms(AlarmConfig(baseline=min(BASELINE, max(steps - 1, 1))), steps), limit
        self.raised: list[str] = []

    def __call__(self, step: int, rollouts: Sequence[Rollout]) -> Metrics:
        """Add a step; there are no metrics."""
        means = by_prompt(probe_answers(rollouts, self._limit), rollouts)
        self.raised += [f"{probe} ({level}) at step {step}" for probe, level in self._alarms.add(means)]
        return {}


def _policy(context: Context, trunk: Backbone, seed: int) -> Role:
    assert isinstance(context.config.align, OnlineConfig)
    return Role.trainable(trunk, "policy", context.config.align.adapter, seed=seed)


def _train_online(
    context: Context,
    row: OnlineMethod,
    policy: Role,
    states: FrozenStates,
    rewards: NamedRewards,
    seed: int,
    answers: int,
) -> list[str]:
    """Train in place; the alarms that were raised."""
    align, trunk = context.config.align, states.backbone
    assert isinstance(align, OnlineConfig)
    config: Any = online_config(align, row, answers)
    critic = critic_of(policy, trunk, config.adapter, seed=seed, shared=False) if row.critic else None
    questions, _ = context.prompts(trunk.chat, config.sampler.max_new_tokens)
    roles = RlRoles(policy=policy, reference=Role(trunk), critic=critic)
    monitor = AlarmMonitor(config.steps, config.sampler.max_new_tokens)
    train_rl(roles, questions, rewards, config, seed=seed, monitor=monitor, weights=rewards.weights, states=states)
    return monitor.raised


def online_config(align: OnlineConfig, row: OnlineMethod, answers: int) -> OnlineConfig:
    """The method's settings: as many scored answers as asked for, in steps of :data:`STEP`."""
    fields = row.config.model_fields
    group = 4 if fields["group"].default > 1 else 1
    size = min(STEP, answers) // (1 if row.opponent is None else 2)
    rate = OptimizerConfig(lr=align.policy.lr, schedule="linear")
    settings: dict[str, Any] = {
        "adapter": align.adapter, "sampler": align.sampler, "steps": max(answers // STEP, 1), "group": group,
        "prompts": max(size // group, 1), "policy": rate, "epochs": 1, "minibatches": min(4, max(size // group, 1)),
        "micro_batch_tokens": MICRO, "guard": None,
    }  # fmt: skip
    if isinstance(fields["kl"].default, KLConfig) and isinstance(align.kl, KLConfig):
        settings["kl"] = fields["kl"].default.model_copy(update={"coefficient": align.kl.coefficient})
    if "resample" in fields:
        settings["resample"] = 0  # answers drawn again would be more than the others have
    if row.config is PpoConfig:
        settings["critic"] = rate
    return row.config(**settings)


def _train_offline(
    context: Context,
    row: OfflineMethod,
    policy: Role,
    seed: int,
    answers: int,
    reference_logprobs: dict[str, list[float]],
) -> None:
    align, trunk = context.config.align, policy.backbone
    assert isinstance(align, OnlineConfig)
    rankings = [certain(r) for r in usable_rankings(context, trunk.chat)[0] if r.probability != 0.5]
    random.Random(f"{seed}|rankings").shuffle(rankings)
    chosen, count = [], 0
    for ranking in rankings:
        if count + len(ranking.sequences) <= answers:
            chosen.append(ranking)
            count += len(ranking.sequences)
    base: dict[str, Any] = {
        "adapter": align.adapter, "optimizer": OptimizerConfig(lr=align.policy.lr, schedule="linear"),
        "epochs": PASSES, "holdout": 0.0, "micro_batch_tokens": MICRO,
    }  # fmt: skip
    if row.config is KtoConfig:
        judged, _ = judged_from_rankings(chosen)
        train_kto(policy, Role(trunk), judged, KtoConfig(**base, batch=16), seed=seed)
        return
    config: Any = row.config(**base, batch=4)
    reference = None
    if row.reference:
        new = [ranking for ranking in chosen if ranking.id not in reference_logprobs]
        reference_logprobs |= dict(zip([r.id for r in new], answer_logprobs(Role(trunk), new), strict=True))
        reference = [reference_logprobs[ranking.id] for ranking in chosen]
    train_preference(policy, chosen, config, reference=reference, seed=seed)


def certain(ranking: Ranking) -> Ranking:
    """A soft label as a certain one, because some methods have no formula for soft labels."""
    return ranking if ranking.probability is None else replace(ranking, probability=float(ranking.probability > 0.5))


def measured(context: Context, role: Role, states: FrozenStates, rewards: NamedRewards, prompts: int) -> dict[str, Any]:
    """Means over held-out prompts: total of the rewards trained on, gold if the recipe has one, KL per answer, nats."""
    align, trunk = context.config.align, role.backbone
    assert isinstance(align, OnlineConfig)
    sampler = align.sampler.model_copy(update={"engine": "local"})
    questions, _ = context.heldout(trunk.chat, sampler.max_new_tokens)
    rollouts = LocalSampler(role.backbone, sampler).generate(
        questions[:prompts], adapter=role.adapter, seed=0, states=states
    )
    totals = [rewards.total(whole) for whole in rewards.whole(rollouts)]
    facts = {
        "proxy": sum(totals) / len(totals),
        "kl": sum(kl_per_answer(Role(trunk), rollouts, sampler.temperature, states=states)) / len(rollouts),
        "tokens": sum(len(r.tokens) for r in rollouts) / len(rollouts),
    }
    gold = context.gold()
    if gold is not None:
        rated = add_gold(gold, {"policy": rollouts})["policy"]
        facts["gold"] = sum(r.rewards["gold"] for r in rated) / len(rated)
    return facts


def interval(values: Sequence[float]) -> str:
    """Mean and half of its 95 % interval by Student's t; the mean alone for one seed."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{mean:.2f} ± {student.ppf(0.975, len(values) - 1) * spread / math.sqrt(len(values)):.2f}"


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Gains over the start model, as Markdown; the seeds differ in training alone."""
    start = next(c for c in cells if c["method"] == START)
    lines = ["| method | proxy gained | gold gained | KL, nats | seeds | with an alarm |", "|---|---|---|---|---|---|"]
    for method in dict.fromkeys(c["method"] for c in cells):
        rows = [c for c in cells if c["method"] == method and "refused" not in c]
        if method == START:
            continue
        if not rows:
            lines.append(f"| `{method}` | refused: {next(c['refused'] for c in cells if c['method'] == method)} |||||")
            continue
        gains = [interval([c[key] - start[key] for c in rows]) if key in rows[0] else "–" for key in ("proxy", "gold")]
        alarmed = sum(bool(c["alarms"]) for c in rows) if "alarms" in rows[0] else "–"
        lines.append(
            f"| `{method}` | {' | '.join(gains)} | {interval([c['kl'] for c in rows])} | {len(rows)} | {alarmed} |"
        )
    return "\n".join(lines)


def run_cells(options: argparse.Namespace) -> int:
    """Run the cells that are not in the file yet, write it after each, print the table."""
    fast_cpu.install()
    try:
        context = open_run(options.run, options.recipe)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    settings = {
        "run": options.run.name, "answers": options.answers, "prompts": options.prompts, "step": STEP, "passes": PASSES,
    }  # fmt: skip
    cells: list[dict[str, Any]] = []
    if options.json.exists():
        before = read_json(options.json)
        if before.get("settings") != settings:
            print(
                f"{options.json} was made with {before.get('settings')}, this is {settings}; give another --json",
                file=sys.stderr,
            )
            return 2
        cells = before["cells"]
    done = {(c["method"], c["seed"]) for c in cells}
    reference_logprobs: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        for method in [*([] if seed else [START]), *(options.only or METHODS)]:
            if (method, seed) in done:
                continue
            try:
                facts = cell(
                    context,
                    method,
                    seed,
                    answers=options.answers,
                    prompts=options.prompts,
                    reference_logprobs=reference_logprobs,
                )
            except TrimtabError as error:
                if method == START:
                    raise
                facts = {"refused": str(error)}
            cells.append({"method": method, "seed": seed} | facts)
            print(cells[-1], flush=True)
            write_json(options.json, {"machine": machine(), "settings": settings, "cells": cells})
    print(table(cells))
    return 0
