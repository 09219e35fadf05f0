"""Estimated cost of each stage of a recipe, from counts and assumed lengths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from trimtab.constitution import DEFAULT, load_constitution
from trimtab.evals import REMOVALS
from trimtab.models import AdapterConfig
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.judging import LocalJudge
from trimtab.records import Demonstration, Preference, Prompt, Rating, load
from trimtab.records.steps import load_steps
from trimtab.trainers import (
    OFFLINE,
    ONLINE,
    DapoConfig,
    KtoConfig,
    OnlineConfig,
    OnlineDpoConfig,
    PairConfig,
    PolicyGradientConfig,
    PpoConfig,
    RejectionConfig,
    RlConfig,
    XpoConfig,
)

TOKENS = 70
"""Assumed tokens of a prompt with its answer."""

ANSWER = TOKENS // 2
"""Assumed tokens of an answer."""

QUESTION = 150
"""Assumed tokens of a question to a judge after the beginning that all questions share."""

CAPABILITY = 12_000
"""Assumed tokens of a capability check of one model with the built-in set."""

STEPS = 3
"""Assumed steps of a solution that rollouts continue."""

FLAT = 0.5
"""Assumed share of groups with equal rewards, which DAPO draws again."""

KEPT_BYTES = 30
"""Bytes that the answers of a step take on disk, per token of prompt and answer."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage works on, and how much work it is."""

    what: str
    """Description of the work, for ``trimtab plan``."""
    updates: int = 0
    """Optimiser steps."""
    tokens: int = 0
    """Tokens read or sampled."""
    flops: float = 0.0
    """Floating point operations."""
    drawn: int = 0
    """Tokens that the recipe's model draws one after another; their operations are part of ``flops``."""
    answers: int = 1
    """Answers requested at a time."""
    slots: int = 1
    """Most answers drawn together."""


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """Counts that the estimates of several stages share."""

    config: RunConfig
    """The recipe, with learning rates and batch sizes filled in."""
    recipe: Path
    """The recipe's file; relative data paths are also looked up in its folder."""
    shape: dict[str, int]
    """Shape of the model; see :func:`~trimtab.pipeline.memory.model_shape`."""
    round: int = 1
    """Number of the round."""

    def records(self, source: str | None, kind: type) -> Sequence[Any]:
        """Records of a data file; empty if the file is not on this machine."""
        path = self.file(source)
        if path is None:
            return ()
        return load(path, kind=kind, format=self.config.data.format, limit=self.config.data.limit).records

    def rows(self, source: str | None, kind: type) -> int:
        """Number of rows in a data file; 0 if the file is not on this machine."""
        return len(self.records(source, kind))

    def file(self, source: str | None) -> Path | None:
        """A data file in the current folder or the recipe's; None: it is in neither."""
        places = () if source is None else (Path(source), self.recipe.parent / source)
        return next((path for path in places if path.is_file()), None)

    @cached_property
    def prompts(self) -> int:
        """Number of prompts to sample and to align on."""
        data = self.config.data
        return self.rows(data.prompts or data.preferences or data.ratings, Prompt)

    @property
    def sampled_prompts(self) -> int:
        """Number of prompts of the ``sample`` stage."""
        sample = self.config.sample
        return 0 if sample is None else min(sample.prompts or self.prompts, self.prompts)

    @cached_property
    def preferences(self) -> tuple[int, int]:
        """Number of preferences, and of answers in each."""
        if self.config.sample and self.config.label:
            return self.sampled_prompts, self.config.sample.answers
        return self.rows(self.config.data.preferences, Preference), 2

    @property
    def forward(self) -> float:
        """FLOPs of a forward pass, per token."""
        return 2.0 * self.shape["active"]

    def training(self, adapter: AdapterConfig, *, head: bool) -> tuple[float, float]:
        """FLOPs per token of a forward pass below the adapters, and of forward and backward above them."""
        shape = self.shape
        top = shape["layers"] if adapter.top_layers is None else adapter.top_layers
        passes = 6 if adapter.kind == "full" else 4
        upper = passes * (shape["active_layer"] * top + (shape["head"] / 2 if head else 0))
        return 2.0 * shape["active_layer"] * (shape["layers"] - top), float(upper)

    def capability_check(self, models: int) -> float:
        """FLOPs of the capability check of this many models."""
        return 0.0 if self.config.capability is None else self.forward * CAPABILITY * models


StageCost = Callable[[Sizing], Cost]
"""The estimate of one stage; called only if the recipe has the stage."""


def no_cost(sizing: Sizing) -> Cost:
    """A stage without matrix products."""
    return Cost(what="")


def revise_cost(sizing: Sizing) -> Cost:
    """Answers, then a critique, a revision and two questions to the judge for each round."""
    revise = sizing.config.revise
    assert revise is not None
    redteam = sizing.rows(sizing.config.data.redteam, Prompt)
    count = min(revise.prompts or redteam, redteam)
    tokens = count * TOKENS * (1 + 4 * revise.rounds)
    return Cost(
        what=f"{count} prompts, {revise.rounds} rounds",
        tokens=tokens,
        flops=tokens * sizing.forward,
        drawn=count * ANSWER * (1 + 2 * revise.rounds),
        answers=count,
        slots=revise.sampler.slots,
    )


def sft_cost(sizing: Sizing) -> Cost:
    """Forward and backward passes over the demonstrations, and the capability check before and after."""
    sft, data = sizing.config.sft, sizing.config.data
    assert sft is not None
    count = round(sizing.rows(data.demonstrations or data.preferences, Demonstration) * (1 - sft.holdout))
    lower, upper = sizing.training(sft.adapter, head=True)
    tokens = round(count * TOKENS * sft.epochs)
    return Cost(
        what=f"{count} demonstrations, {sft.batch} a step",
        updates=round(-(-count // sft.batch) * sft.epochs),
        tokens=tokens,
        flops=tokens * (lower + upper) + sizing.capability_check(2),
    )


def sample_cost(sizing: Sizing) -> Cost:
    """Sampled answers."""
    sample = sizing.config.sample
    assert sample is not None
    count = sizing.sampled_prompts * sample.answers
    return Cost(
        what=f"{count} answers",
        tokens=count * ANSWER,
        flops=count * TOKENS * sizing.forward,
        drawn=count * ANSWER,
        answers=count,
        slots=max(sample.sampler.slots, sample.answers),
    )


def label_cost(sizing: Sizing) -> Cost:
    """Questions to AI judges; other annotators cost no matrix products."""
    config, label = sizing.config, sizing.config.label
    assert label is not None
    if label.source == "human":
        return Cost(what=f"people in the annotation app, {label.human.overlap} an item")
    if label.source == "votes":
        return Cost(what=f"votes in {'' if label.votes is None else label.votes.project}, as many as there are")
    if label.source == "simulated":
        return Cost(what=f"simulated annotators, {label.simulation.overlap} a prompt")
    questions, reasoning = sizing.sampled_prompts * _questions_per_item(sizing), 0
    if label.judge.mode == "reason":
        reasoning = max((s.reason_tokens for s in (label.judges or {"": LocalJudge()}).values()), default=0)
    what = f"{questions} questions to each AI judge"
    if label.source == "hybrid":
        what += f"; audits and uncertain items to people ({config.people_of_hybrid})"
    tokens = questions * (QUESTION + reasoning)
    return Cost(what=what, tokens=tokens, flops=tokens * sizing.forward)


def _questions_per_item(sizing: Sizing) -> int:
    config = sizing.config
    assert config.label is not None and config.sample is not None
    judge, answers = config.label.judge, config.sample.answers
    file = config.constitution
    if file != DEFAULT and not Path(file).exists():
        file = str(sizing.recipe.parent / file)
    constitution = load_constitution(file)
    if judge.mode == "rubric":
        return answers * len(judge.objectives or constitution.tags)
    principles = len(constitution.principles)
    return answers * (answers - 1) * min(judge.principles or principles, principles)


def preferences_cost(sizing: Sizing) -> Cost:
    """Preferences are counted or read."""
    label = sizing.config.label
    if label is not None and label.source == "votes":
        return Cost(what="a preference for each comparison")
    exclusions = f", without {', '.join(label.without)}" if label is not None and label.without else ""
    return Cost(what=f"{sizing.preferences[0]} preferences{exclusions}")


def reward_cost(sizing: Sizing) -> Cost:
    """Passes over the ranked answers; the frozen layers read each answer once."""
    reward = sizing.config.reward
    assert reward is not None
    preferences, answers = sizing.preferences
    count = round(preferences * sizing.round * (1 - reward.holdout))  # preferences of all rounds so far
    lower, upper = sizing.training(reward.adapter, head=False)
    shares = reward.shares
    what = f"{count} rankings of {answers}{'' if sizing.round == 1 else ' from all rounds'}, {reward.batch} a step"
    if len(shares) > 1:
        what += f"; {len(shares)} reward models on {', '.join(f'{share:.0%}' for share in shares)} of them"
    tokens = count * answers * TOKENS
    return Cost(
        what=what,
        updates=sum(round(-(-round(count * share) // reward.batch) * reward.epochs) for share in shares),
        tokens=tokens,
        flops=tokens * (lower + upper * reward.epochs * sum(shares)),
    )


def process_cost(sizing: Sizing) -> Cost:
    """Passes over the solutions, and drawing solutions and their continuations if rollouts label the steps."""
    process, data = sizing.config.process, sizing.config.data
    assert process is not None
    path = sizing.file(data.steps)
    count = 0 if path is None else len(load_steps(path, limit=data.limit).records)
    drawn, drawing, rollouts = 0, "", process.rollouts
    if rollouts is not None:
        answers = min(rollouts.prompts or sizing.prompts, sizing.prompts) * rollouts.answers
        drawn = answers * (1 + STEPS * rollouts.tries)
        count, drawing = count + answers, f"; {answers} of them drawn, with {rollouts.tries} rollouts from each step"
    count = round(count * (1 - process.holdout))
    lower, upper = sizing.training(process.adapter, head=False)
    tokens = count * TOKENS
    return Cost(
        what=f"{count} solutions, {process.batch} a step{drawing}",
        updates=round(-(-count // process.batch) * process.epochs),
        tokens=tokens + drawn * ANSWER,
        flops=tokens * (lower + upper) * process.epochs + drawn * TOKENS * sizing.forward,
        drawn=drawn * ANSWER,
        answers=drawn or 1,
        slots=1 if rollouts is None else rollouts.sampler.slots,
    )


def align_cost(sizing: Sizing) -> Cost:
    """Alignment on preferences or on sampled answers, and the capability check of the models not checked before."""
    align = sizing.config.align
    cost = _offline_cost(sizing, align) if isinstance(align, PairConfig | KtoConfig) else _online_cost(sizing)
    check = sizing.capability_check(1 if sizing.config.sft or sizing.round > 1 else 2)
    return replace(cost, flops=cost.flops + check)


def _offline_cost(sizing: Sizing, align: PairConfig | KtoConfig) -> Cost:
    (count, answers), what = sizing.preferences, "rankings of {}"
    if sizing.config.data.ratings:
        count, answers, what = sizing.rows(sizing.config.data.ratings, Rating), 1, "ratings"
    count = round(count * (1 - align.holdout))
    lower, upper = sizing.training(align.adapter, head=True)
    tokens = count * answers * TOKENS
    if align.method == "kto":  # the reference runs in every step, and both models on mismatched pairs
        items, flops = count * answers, tokens * align.epochs * (2 * lower + upper + 3 * upper / 2)
    else:
        reference = 0.0 if not OFFLINE[align.method].reference else upper / 2
        reference *= 1 if align.reference_update is None else align.epochs  # in every step, or once
        second_pass = align.epochs * upper / 2 if OFFLINE[align.method].mean_ratio(align) else 0.0
        items, flops = count, tokens * (lower + upper * align.epochs + reference + second_pass)
    return Cost(
        what=f"{count} {what.format(answers)}, {align.batch} a step",
        updates=round(-(-items // align.batch) * align.epochs),
        tokens=tokens,
        flops=flops,
    )


def _online_cost(sizing: Sizing) -> Cost:
    align = sizing.config.align
    assert isinstance(align, OnlineConfig)
    answers = align.prompts * align.group
    lower, upper = sizing.training(align.adapter, head=True)
    updates = align.steps * align.epochs * align.minibatches
    tokens = align.steps * answers * TOKENS
    resampled = sum(FLAT**k for k in range(1, align.resample + 1)) if isinstance(align, DapoConfig) else 0.0
    # The reward model reads all sampled answers; the reference and the updates read only those that are kept. The
    # built-in sampler passes on the states of the frozen layers.
    below = lower if align.sampler.engine == "vllm" else 0.0
    judges = 1 if sizing.config.reward is None else len(sizing.config.reward.shares)
    per_token = (1 + resampled) * (sizing.forward / 2 + below + judges * upper / 2)
    flops = tokens * (per_token + upper + _trained_share(align) * align.epochs * upper)
    what = f"{sizing.prompts} prompts, {answers} answers a step"
    drawn = tokens * (1 + resampled) / 2
    opponent = ONLINE[align.method].opponent
    if opponent is not None:  # drawn, by both models for a mixture, and scored; XPO trains on them too
        share = opponent(align)
        drawing = sizing.forward * (1.0 if 0 < share < 1 else 0.5)
        drawn += tokens / 2
        flops += tokens * (drawing + lower + upper / 2 + (upper if isinstance(align, XpoConfig) else 0.0))
        what += f", as many of {'the reference' if share == 1 else 'the policy' if share == 0 else 'a mixture'}"
    if resampled:
        what += f" (and {resampled:.0%} sampled again if {FLAT:.0%} of groups are flat)"
    what += f", all kept on disk (about {tokens * KEPT_BYTES / 1e6:.0f} MB)"
    ptx = align.ptx if isinstance(align, PolicyGradientConfig) else None
    if ptx is not None:
        flops += updates * ptx.batch * TOKENS * (lower + upper)
        what += f", {ptx.batch} conversations an update"
    return Cost(
        what=what,
        updates=updates,
        tokens=round(tokens * (1 + resampled)),
        flops=flops,
        drawn=round(drawn),
        answers=answers,
        slots=max(align.sampler.slots, align.group),
    )


def _trained_share(align: RlConfig) -> float:
    """Answers that updates read, as a share of the sampled ones; a separate critic reads them a second time."""
    if isinstance(align, OnlineDpoConfig):
        return 2 / align.group
    if isinstance(align, RejectionConfig):
        return align.keep / align.group
    return 2.0 if isinstance(align, PpoConfig) and not align.shared_critic else 1.0


def evaluate_cost(sizing: Sizing) -> Cost:
    """Answers of every model, their scores, and the largest possible number of scores of edited answers."""
    config, evaluate = sizing.config, sizing.config.evaluate
    assert evaluate is not None
    heldout = sizing.rows(config.data.heldout, Prompt) or round(sizing.prompts * config.data.heldout_share)
    start = config.sft is not None or sizing.round > 1
    models = 1 + start + (config.align is not None) + (evaluate.best_of or 0)
    prompts = min(evaluate.prompts or heldout, heldout)
    count, edits, what = prompts * models, 0, ""
    if evaluate.gain and config.align and (config.reward or config.rewards):
        edits = 2 * len(REMOVALS) * prompts  # of the start model and of the policy
        what = f", up to {edits} edited ones scored again (evaluate.gain)"
    flops = (2 * count + edits) * TOKENS * sizing.forward
    return Cost(
        what=f"{count} answers{what}",
        tokens=count * ANSWER,
        flops=flops,
        drawn=count * ANSWER,
        answers=prompts * (evaluate.best_of or 1),
        slots=max(evaluate.sampler.slots, evaluate.best_of or 1),
    )


def balance_cost(sizing: Sizing) -> Cost:
    """Answers of two models to red-team prompts, and the questions that compare them."""
    balance = sizing.config.balance
    assert balance is not None
    redteam = sizing.rows(sizing.config.data.redteam_heldout, Prompt)
    count = min(balance.prompts or redteam, redteam)
    return Cost(
        what=f"{2 * count} answers",
        tokens=count * TOKENS,
        flops=4 * count * TOKENS * sizing.forward,
        drawn=2 * count * ANSWER,
        answers=count,
        slots=sizing.config.evaluate.sampler.slots if sizing.config.evaluate else 1,
    )
