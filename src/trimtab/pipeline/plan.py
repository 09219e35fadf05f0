"""What a run would do: its stages with estimated sizes and times, its objectives, and warnings."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trimtab.errors import ConfigError
from trimtab.models import ModelConfig
from trimtab.models.loading import compute_dtype
from trimtab.pipeline.better_fit import better_fit, judged_data
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.costs import Sizing
from trimtab.pipeline.machines import Machine, fitting, machine_named, prediction, stage_seconds
from trimtab.pipeline.memory import fit_memory, model_shape
from trimtab.pipeline.rates import fill_rates, rate_lines, rate_warnings
from trimtab.pipeline.reward_models import SMALLEST_PART
from trimtab.pipeline.run import origin, plan_rounds
from trimtab.pipeline.scale import scale_lines, scale_warnings
from trimtab.rollout import ModelReward
from trimtab.storage import RunFolder
from trimtab.trainers import (
    METHODS,
    DpoConfig,
    KtoConfig,
    OfflineConfig,
    OnlineConfig,
    PairConfig,
    PolicyGradientConfig,
    PpoConfig,
    RlConfig,
    StepKLConfig,
    check_reference_update,
)


def make_plan(config: RunConfig, recipe: Path, runs: Path, *, machine: str | None = None) -> dict[str, Any]:
    """The plan: stages with their state, sizes and costs, and the objective as a formula.

    Args:
        config: the recipe; contradictions were refused when it was loaded.
        recipe: file of the recipe.
        runs: folder of all runs; only read.
        machine: row of :data:`~trimtab.pipeline.machines.MACHINES` for which times and memory are predicted; None: they
            are estimated for this machine, whose speed is measured briefly.

    Raises:
        ConfigError: there is no such machine, or a reference that follows the policy would first be updated after the
            last step.
    """
    config, recipe = fit_memory(fill_rates(config)), origin(recipe)
    planned = plan_rounds(config, recipe, RunFolder(runs / config.name, create=False))
    named = here(config.model) if machine is None else machine_named(machine)
    shape = model_shape(config.model)
    rows = []
    sizing = Sizing(config=config, recipe=recipe, shape=shape)
    _check_shares(config, sizing.preferences[0])
    for number, item in ((p.run.number, item) for p in planned for item in p.stages):
        cost = item.stage.cost(replace(sizing, round=number))
        drawing, rest = stage_seconds(named, config.model, shape, cost, divided=item.stage.shared)
        if item.state == "done":
            drawing = rest = 0.0
        rows.append(
            {
                "stage": item.stage.name,
                "round": number,
                "state": item.state,
                "fingerprint": item.fingerprint,
                "what": cost.what,
                "updates": cost.updates,
                "tokens": cost.tokens,
                "seconds": drawing + rest,
                "drawing_seconds": drawing,
            }
        )
        if cost.updates and item.stage.name == "align" and isinstance(config.align, OfflineConfig):
            check_reference_update(config.align.reference_update, cost.updates)
    total, drawing = (sum(row[key] for row in rows) for key in ("seconds", "drawing_seconds"))
    fits = fitting(config, named)
    memory = fits.most
    estimate = (
        f"Estimates: {total / 60:.0f} min and {memory:.1f} GB here (matrix products measured at "
        f"{named.rate(config.model) / named.share / 1e9:.0f} GFLOP/s, {named.share:.0%} of it assumed; "
        f"{shape['parameters'] / 1e6:.0f} M parameters)."
        if machine is None
        else prediction(machine, named, minutes=total / 60, drawing=drawing / 60, gb=memory)
    )
    return {
        "name": config.name,
        "rounds": config.rounds,
        "stages": rows,
        "objective": objective(config) + rate_lines(config) + scale_lines(config.scale),
        "estimate": estimate,
        "seconds": total,
        "memory_gb": memory,
        "machine": machine,
        "memory_of_stages_gb": fits.gb,
        "warnings": fits.lines
        + warnings(config)
        + better_fit(config, judged_data(sizing))
        + rate_warnings(config)
        + scale_warnings(config.scale, config.threads),
    }


def objective(config: RunConfig) -> list[str]:
    """The objectives with the recipe's own numbers."""
    lines = []
    if config.sft:
        lines.append("SFT: min −(1/N) Σ log π(y_t | x, y_<t) over the assistant's tokens")
    if config.reward:
        lines.append("Reward: min −mean over pairs log σ(r_w − r_l)" + _centring(config.reward.centring))
        ensemble = config.reward.ensemble
        if ensemble is not None:
            score = {"mean": "r̄", "worst": "min r_m", "penalised": f"r̄ − {ensemble.penalty:g}·s"}[ensemble.score]
            words = " and a bag of words" if ensemble.words else ""
            lines.append(f"     {ensemble.members} models r_m{words}; the reward is {score}")
        if config.reward.objectives:
            lines.append(f"     one head each for {', '.join(config.reward.objectives)}, on one adapter")
        if config.reward.annotators:
            lines.append(
                f"     every vote by itself, by {config.reward.loss}; annotators may differ in "
                f"{', '.join(config.reward.annotators)}, where held-out votes speak for it"
            )
        if (length := config.reward.length) is not None:
            lines.append(
                f"     + {length.correlation:g}·(|ρ(q, length)| − ρ(l, length)) "
                f"+ {length.orthogonality:g}·|cos(W_q, W_l)|: the reward is q, a second head l takes the length"
            )
        if config.reward.augment is not None:
            kinds = ", ".join(f"{kind} {share:g}" for kind, share in config.reward.augment.shares.items() if share)
            lines.append(f"     copies of training preferences: {kinds or 'none'}")
        if config.reward.split:
            lines.append("     half of the prompts; a held-out model learns from the other half and judges every step")
    if config.process:
        lines.append(
            "Process: min −mean over judged steps of y log σ(z) + (1 − y) log σ(−z), z at the step's last token"
        )
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
        lines += _ending(a)
    return lines


def _ending(config: OnlineConfig) -> list[str]:
    """Lines about the weights that the run ends with, if they need not be the last ones."""
    parts = []
    if config.select != "last":
        parts.append(f"ends with the checkpoint whose {config.select} score is highest")
    if config.patience is not None:
        parts.append(f"stops after {config.patience} steps without a higher one")
    budget = getattr(config, "kl", StepKLConfig()).budget
    if budget is not None:
        parts.append(f"stops above {budget:g} nats per answer")
    return [f"     {', '.join(parts)}"] if parts else []


def _check_shares(config: RunConfig, preferences: int) -> None:
    """If the number of preferences is known, refuse parts that are too small for a reward model."""
    reward = config.reward
    if reward is None or len(reward.shares) < 2 or not preferences:
        return
    smallest = round(preferences * (1 - reward.holdout) * min(reward.shares))
    if smallest < SMALLEST_PART:
        raise ConfigError(
            f"{preferences} preferences leave {smallest} for a reward model of its own; at least {SMALLEST_PART} are "
            "needed: collect more, lower reward.holdout, or set reward.split and reward.ensemble.halves to false"
        )


def _method_objective(config: RlConfig | PairConfig | KtoConfig) -> str:
    method, rule = METHODS[config.method], config.reference_update
    schedule = "" if rule is None else f"; every {rule.every} step(s) ref ← {rule.alpha:g}·π + {1 - rule.alpha:g}·ref"
    return f"{method.label}: {method.objective(config)}{schedule}"


def warnings(config: RunConfig) -> list[str]:
    """Settings that work but are probably a mistake."""
    lines = []
    if config.reward is not None and config.rewards and config.reward.objectives:
        named = {source.objective for source in config.rewards.values() if isinstance(source, ModelReward)}
        if unused := [name for name in config.reward.objectives if name not in named]:
            lines.append(
                f"reward.objectives {', '.join(unused)}: trained, and no reward names it, so it weighs nothing"
            )
    if isinstance(config.align, PolicyGradientConfig) and config.align.kl.coefficient == 0:
        lines.append("align.kl.coefficient is 0: nothing holds the policy near its reference")
    kl = config.align.kl if isinstance(config.align, PolicyGradientConfig) else None
    if kl is not None and kl.place == "loss" and kl.estimator == "k1":
        lines.append("align.kl: k1 in the loss has no gradient in expectation; use sequence, or place: reward")
    if isinstance(config.align, DpoConfig) and config.align.normalise and config.align.beta <= DpoConfig().beta:
        lines.append(
            f"align.normalise is true and align.beta {config.align.beta:g}, a usual value for whole answers: "
            "log-ratios per token are as many times smaller as answers have tokens; Tülu 3 uses beta 5"
        )
    if isinstance(config.align, OnlineConfig) and config.alarms and config.alarms.baseline >= config.align.steps:
        lines.append(
            f"align.steps is {config.align.steps} and alarms.baseline {config.alarms.baseline}: no step is left to "
            "compare with the first ones, so no alarm can be raised"
        )
    if (
        isinstance(config.align, PolicyGradientConfig)
        and config.align.sampler.engine == "vllm"
        and config.align.weight_cap is None
    ):
        lines.append(
            "align.sampler.engine is vllm and align.importance_cap null: its log-probabilities differ a little, and "
            "nothing corrects for it"
        )
    if isinstance(config.align, OnlineConfig) and config.align.select != "last":
        candidates = -(-config.align.steps // config.checkpoint_every) + 1
        if candidates < 6:
            lines.append(
                f"align.select {config.align.select!r} chooses among {candidates} candidates (checkpoint_every is "
                f"{config.checkpoint_every} of {config.align.steps} steps); lower checkpoint_every for a finer choice"
            )
    if isinstance(config.align, OnlineConfig) and config.evaluate:
        trained, evaluated = config.align.sampler.temperature, config.evaluate.sampler.temperature
        if trained != evaluated:
            lines.append(f"the policy is trained at temperature {trained:g} and evaluated at {evaluated:g}")
    return lines


def here(config: ModelConfig) -> Machine:
    """This machine: its matrix products are measured; its memory and bandwidth are not treated as limits."""
    accelerator = config.device != "cpu" and torch.cuda.is_available()
    dtype = compute_dtype(config, torch.device("cuda")) if accelerator else torch.float32
    rate = matmul_rate("cuda" if accelerator else "cpu", dtype)
    return Machine(
        what="this machine",
        memory_gb=math.inf,
        bandwidth=math.inf,
        float32=rate,
        bfloat16=rate,
        accelerator=accelerator,
    )


def matmul_rate(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Floating point operations per second of a square matrix product, measured briefly."""
    size = 1024 if device == "cpu" else 8192
    a, best = torch.randn(size, size, device=device, dtype=dtype), 1e9
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, a)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _centring(value: float) -> str:
    return f" + {value:g}·(r_w + r_l)²" if value else ""
