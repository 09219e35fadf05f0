"""What a run would do, from counts and a measured matrix-product rate. Estimates, and called so."""

import time
from pathlib import Path
from typing import Any

import torch

from trimtab.constitution import DEFAULT, load_constitution
from trimtab.models import AdapterConfig
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.judging import LocalJudge
from trimtab.pipeline.memory import fit_memory, model_shape, run_gb
from trimtab.pipeline.rates import fill_rates, rate_lines, rate_warnings
from trimtab.pipeline.run import plan_stages
from trimtab.records import Demonstration, Preference, Prompt, Rating, load
from trimtab.storage import RunFolder
from trimtab.trainers import (
    METHODS,
    OFFLINE,
    DapoConfig,
    KtoConfig,
    OfflineConfig,
    OnlineConfig,
    OnlineDpoConfig,
    PairConfig,
    PolicyGradientConfig,
    PpoConfig,
    RejectionConfig,
    RlConfig,
)

EFFICIENCY = 0.5
"""Share of the measured matrix-product rate that whole steps reach on two CPU cores."""

TOKENS = 70
"""Assumed tokens of a prompt with its answer where nothing has been tokenised yet."""

QUESTION = 150
"""Assumed tokens of a question to a judge beyond what all questions begin with."""

CAPABILITY = 12_000
"""Assumed tokens of a capability check of one model with the built-in set."""

FLAT = 0.5
"""Assumed share of groups without spread, which DAPO draws again."""


def make_plan(config: RunConfig, recipe: Path, runs: Path) -> dict[str, Any]:
    """Stages with their state, sizes and costs, and the objective as a formula.

    Args:
        config: the recipe; contradictions were refused when it was loaded.
        recipe: where it came from.
        runs: folder of all runs; only read.
    """
    config = fit_memory(fill_rates(config))
    planned = plan_stages(config, recipe, RunFolder(runs / config.name, create=False))
    rate = matmul_rate()
    shape = model_shape(config.model)
    rows = []
    for item in planned:
        what, updates, tokens, flops = _cost(item.stage.name, config, recipe, shape)
        if item.stage.name in ("sft", "align") and config.capability is not None:
            measured = 1 if item.stage.name == "align" and config.sft else 2
            flops += 2.0 * shape["parameters"] * CAPABILITY * measured
        seconds = 0.0 if item.state == "done" else flops / (rate * EFFICIENCY)
        rows.append(
            {
                "stage": item.stage.name,
                "state": item.state,
                "fingerprint": item.fingerprint,
                "what": what,
                "updates": updates,
                "tokens": tokens,
                "seconds": seconds,
            }
        )
    total = sum(row["seconds"] for row in rows)
    memory = run_gb(config)
    return {
        "name": config.name,
        "stages": rows,
        "objective": objective(config) + rate_lines(config),
        "estimate": f"Estimates: {total / 60:.0f} min and {memory:.1f} GB here (matrix products measured at "
        f"{rate / 1e9:.0f} GFLOP/s, {EFFICIENCY:.0%} of it assumed; {shape['parameters'] / 1e6:.0f} M parameters).",
        "seconds": total,
        "memory_gb": memory,
        "warnings": warnings(config) + rate_warnings(config),
    }


def objective(config: RunConfig) -> list[str]:
    """The objectives with the recipe's own numbers."""
    lines = []
    if config.sft:
        lines.append("SFT: min −(1/N) Σ log π(y_t | x, y_<t) over the assistant's tokens")
    if config.reward:
        lines.append("Reward: min −mean over pairs log σ(r_w − r_l)" + _centring(config.reward.centring))
    if isinstance(config.align, OfflineConfig):
        lines.append(_method_objective(config.align))
    if isinstance(config.align, OnlineConfig):
        a = config.align
        lines.append(_method_objective(a))
        clip = ""
        if isinstance(a, PolicyGradientConfig):
            clip = f"clip −{a.eps:g} +{a.eps_high or a.eps:g}, "
        if isinstance(a, PpoConfig):
            clip += f"GAE γ = {a.gamma:g}, λ = {a.lam:g}, "
            if a.shared_critic:
                clip += f"critic: a head on the policy's states, {a.value_coefficient:g} of its loss moves the policy, "
        lines.append(
            f"     {clip}{a.epochs} epoch(s) × {a.minibatches} minibatch(es)"
            f" on {a.prompts} × {a.group} answers a step, {a.steps} steps"
            + (f", an update stops above {a.kl.stop:g} nats per token" if a.kl.stop is not None else "")
        )
    return lines


def _method_objective(config: RlConfig | PairConfig | KtoConfig) -> str:
    method = METHODS[config.method]
    return f"{method.label}: {method.objective(config)}"


def warnings(config: RunConfig) -> list[str]:
    """Settings that work and are probably not meant."""
    found = []
    if isinstance(config.align, PolicyGradientConfig) and config.align.kl.coefficient == 0:
        found.append("align.kl.coefficient is 0: nothing holds the policy near its reference")
    kl = config.align.kl if isinstance(config.align, PolicyGradientConfig) else None
    if kl is not None and kl.place == "loss" and kl.estimator == "k1":
        found.append("align.kl: k1 in the loss has no gradient in expectation; use k2, or place: reward")
    if (
        isinstance(config.align, PolicyGradientConfig)
        and config.align.sampler.engine == "vllm"
        and config.align.importance_cap is None
    ):
        found.append("align.sampler.engine is vllm without align.importance_cap: its log-probabilities differ a little")
    if isinstance(config.align, OnlineConfig) and config.evaluate:
        ours, theirs = config.align.sampler.temperature, config.evaluate.sampler.temperature
        if ours != theirs:
            found.append(f"the policy is trained at temperature {ours:g} and evaluated at {theirs:g}")
    return found


def matmul_rate() -> float:
    """Floating point operations per second of a 1024² product, measured for a moment."""
    a, best = torch.randn(1024, 1024), 1e9
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def _centring(value: float) -> str:
    return f" + {value:g}·(r_w + r_l)²" if value else ""


def _rows(source: str | None, kind: Any, config: RunConfig, recipe: Path) -> int | None:
    """Rows in a data file; None where it is not here to be counted."""
    if source is None:
        return None
    path = next((p for p in (Path(source), recipe.parent / source) if p.is_file()), None)
    if path is None:
        return None
    return len(load(path, kind=kind, format=config.data.format, limit=config.data.limit).records)


def _training(shape: dict[str, int], adapter: AdapterConfig, *, head: bool) -> tuple[float, float]:
    """FLOPs per token of one forward pass below the adapters, and of forward and backward above them."""
    top = shape["layers"] if adapter.top_layers is None else adapter.top_layers
    passes = 6 if adapter.kind == "full" else 4
    upper = passes * (shape["layer"] * top + (shape["head"] / 2 if head else 0))
    return 2.0 * shape["layer"] * (shape["layers"] - top), float(upper)


def _cost(stage: str, config: RunConfig, recipe: Path, shape: dict[str, int]) -> tuple[str, int, int, float]:
    """What a stage works on, its optimiser steps, tokens and floating point operations."""
    data = config.data
    forward = 2.0 * shape["parameters"]
    prompts = _rows(data.prompts or data.preferences or data.ratings, Prompt, config, recipe) or 0
    if stage == "sft" and config.sft:
        source = data.demonstrations or data.preferences
        count = round((_rows(source, Demonstration, config, recipe) or 0) * (1 - config.sft.holdout))
        lower, upper = _training(shape, config.sft.adapter, head=True)
        tokens = round(count * TOKENS * config.sft.epochs)
        updates = round(-(-count // config.sft.batch) * config.sft.epochs)
        return f"{count} demonstrations, {config.sft.batch} a step", updates, tokens, tokens * (lower + upper)
    if stage == "sample" and config.sample:
        count = min(config.sample.prompts or prompts, prompts) * config.sample.answers
        return f"{count} answers", 0, count * TOKENS // 2, count * TOKENS * forward
    if stage == "revise" and config.revise:
        count = min(config.revise.prompts or 10**9, _rows(data.redteam, Prompt, config, recipe) or 0)
        tokens = count * TOKENS * (1 + 4 * config.revise.rounds)
        return f"{count} prompts, {config.revise.rounds} rounds", 0, tokens, tokens * forward
    if stage == "label" and config.label and config.label.by_ai:
        items = min(config.sample.prompts or prompts, prompts) if config.sample else 0
        asked, thought = items * _questions(config, recipe), 0
        if config.label.judge.mode == "reason":
            thought = max((s.reason_tokens for s in (config.label.judges or {"": LocalJudge()}).values()), default=0)
        tokens = asked * (QUESTION + thought)
        what = f"{asked} questions to each AI judge"
        if config.label.source == "hybrid":
            what += f"; audits and what it is not sure of to people ({config.people_of_hybrid})"
        return what, 0, tokens, tokens * forward
    if stage == "balance" and config.balance:
        count = min(config.balance.prompts or 10**9, _rows(data.redteam_heldout, Prompt, config, recipe) or 0)
        return f"{2 * count} answers", 0, count * TOKENS, 4 * count * TOKENS * forward
    if stage == "label" and config.label:
        if config.label.source == "human":
            return f"people in the annotation app, {config.label.human.overlap} an item", 0, 0, 0.0
        return f"simulated annotators, {config.label.simulation.overlap} a prompt", 0, 0, 0.0
    count, answers = _rows(data.preferences, Preference, config, recipe) or 0, 2
    if config.sample and config.label:
        count, answers = min(config.sample.prompts or prompts, prompts), config.sample.answers
    if stage in ("preferences", "reward"):
        if stage == "preferences" or config.reward is None:
            return f"{count} preferences", 0, 0, 0.0
        kept = round(count * (1 - config.reward.holdout))
        lower, upper = _training(shape, config.reward.adapter, head=False)
        tokens = kept * answers * TOKENS
        updates = round(-(-kept // config.reward.batch) * config.reward.epochs)
        flops = tokens * (lower + upper * config.reward.epochs)
        return f"{kept} rankings of {answers}, {config.reward.batch} a step", updates, tokens, flops
    if stage == "align" and isinstance(config.align, OfflineConfig):
        o = config.align
        what = f"rankings of {answers}"
        if data.ratings:
            count, answers, what = _rows(data.ratings, Rating, config, recipe) or 0, 1, "ratings"
        kept = round(count * (1 - o.holdout))
        lower, upper = _training(shape, o.adapter, head=True)
        tokens = kept * answers * TOKENS
        reference = 0.0 if not OFFLINE[o.method].reference else upper / 2
        flops = tokens * (lower + upper * o.epochs + reference)
        if o.method == "kto":  # the reference runs in every step, and both models on mismatched pairs
            flops = tokens * o.epochs * (2 * lower + upper + 3 * upper / 2)
        items = kept * answers if o.method == "kto" else kept
        return f"{kept} {what}, {o.batch} a step", round(-(-items // o.batch) * o.epochs), tokens, flops
    if stage == "align" and isinstance(config.align, OnlineConfig):
        a = config.align
        size = a.prompts * a.group
        lower, upper = _training(shape, a.adapter, head=True)
        updates = a.steps * a.epochs * a.minibatches
        drawn = a.steps * size * TOKENS
        again = sum(FLAT**k for k in range(1, a.resample + 1)) if isinstance(a, DapoConfig) else 0.0
        trained = 2.0 if isinstance(a, PpoConfig) and not a.shared_critic else 1.0
        if isinstance(a, OnlineDpoConfig | RejectionConfig):
            trained = (2 if isinstance(a, OnlineDpoConfig) else a.keep) / a.group
        # Reward model and drawing for all that is drawn; reference and updates for what stays. Our own sampler keeps
        # what the frozen layers give.
        below = lower if a.sampler.engine == "vllm" else 0.0
        flops = drawn * ((1 + again) * (forward / 2 + below + upper / 2) + upper + trained * a.epochs * upper)
        what = f"{prompts} prompts, {size} answers a step"
        if again:
            what += f" (and {again:.0%} drawn again if {FLAT:.0%} of groups are flat)"
        ptx = a.ptx if isinstance(a, PolicyGradientConfig) else None
        if ptx is not None:
            flops += updates * ptx.batch * TOKENS * (lower + upper)
            what += f", {ptx.batch} conversations an update"
        return what, updates, round(drawn * (1 + again)), flops
    if stage == "evaluate" and config.evaluate:
        held = _rows(data.heldout, Prompt, config, recipe) or round(prompts * data.heldout_share)
        models = 1 + (config.sft is not None) + (config.align is not None) + (config.evaluate.best_of or 0)
        count = min(config.evaluate.prompts or held, held) * models
        return f"{count} answers", 0, count * TOKENS // 2, count * TOKENS * forward * 2
    return "", 0, 0, 0.0


def _questions(config: RunConfig, recipe: Path) -> int:
    """Questions to a judge about one item."""
    assert config.label is not None and config.sample is not None
    how, answers = config.label.judge, config.sample.answers
    found = config.constitution
    if found != DEFAULT and not Path(found).exists():
        found = str(recipe.parent / found)
    rules = load_constitution(found)
    if how.mode == "rubric":
        return answers * len(how.objectives or rules.tags)
    return answers * (answers - 1) * min(how.principles or len(rules.principles), len(rules.principles))
