"""The process reward model of a run: labels of steps from a file or from rollouts, training, and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from trimtab.errors import DataError
from trimtab.evals.first_error import First, first_error_f1, first_wrong, modal_first
from trimtab.feedback import load_callable
from trimtab.files import write_json
from trimtab.models import PASS_TOKENS, Backbone, FrozenStates, Role, load_tensors
from trimtab.pipeline.config import ProcessStageConfig, RolloutLabelsConfig
from trimtab.pipeline.context import Context, Counts
from trimtab.records import Prompt, Rollout, write_records
from trimtab.records.annotation import StepLabel
from trimtab.records.steps import load_steps
from trimtab.records.types import content_id
from trimtab.rollout import make_sampler, split_steps
from trimtab.rollout.continuing import continuations
from trimtab.rollout.process import ProcessScorer
from trimtab.rollout.rewards import call, numbers
from trimtab.trainers import ALONE, Group, split_holdout
from trimtab.trainers.process import Solution, encode_solutions, score_solutions, train_process
from trimtab.trainers.shares import drawn_by_share


def run_process(context: Context) -> tuple[Counts, list[str]]:
    """Train the process reward model, and measure on held-out prompts how often it finds the first wrong step."""
    config, folder = context.config.process, context.folder("process")
    assert config is not None
    backbone = context.trunk()
    labels, counts = _labels(context, config, backbone)
    solutions, used, left_out = encode_solutions(backbone.chat, labels, config.separator)
    counts |= context.left_out(left_out, len(labels), "solutions")
    if left_out["separated"]:
        counts["steps_with_separator"] = left_out["separated"]
        context.ui.say(f"  {left_out['separated']} steps hold the separator; at use each would be several steps")
    train, held = split_holdout([label.prompt.id for label in used], config.holdout, context.seed("process"))
    role = process_role(context, backbone)
    with context.training("process", "process reward model") as session:
        train_process(role, [solutions[i] for i in train], config, seed=context.seed("process"), session=session)
    role.save(folder / "weights.safetensors")
    facts = measured(role, [solutions[i] for i in held], [used[i] for i in held])
    write_json(folder / "process.json", facts)
    context.ui.say(f"  {first_error_line(facts, 'held-out solutions')}")
    judged = sum(target is not None for i in train for target in solutions[i].targets)
    counts |= {"solutions": len(train), "held_out": len(held), "judged_steps": judged}
    return counts, ["weights.safetensors", "process.json", "labels.jsonl"]


def _labels(context: Context, config: ProcessStageConfig, backbone: Backbone) -> tuple[list[StepLabel], Counts]:
    """All labels of steps, labels of the file first, without prompts that are set aside for the evaluation."""
    labels: list[StepLabel] = []
    counts: Counts = {}
    data = context.config.data
    if data.steps is not None:
        loaded = load_steps(context.data_path(data.steps), limit=data.limit)
        counts["refused"] = len(loaded.refused)
        for refusal in loaded.refused[:5]:
            context.ui.say(f"  {data.steps}: line {refusal.line} refused: {refusal.reason}")
        heldout_ids = context.set_aside()
        labels = [label for label in loaded.records if Prompt.of(label.prompt.messages).id not in heldout_ids]
        counts["set_aside"] = len(loaded.records) - len(labels)
    if config.rollouts is not None:
        prompts, prompt_counts = context.prompts(backbone.chat, 2 * config.rollouts.sampler.max_new_tokens)
        drawn = label_by_rollouts(
            backbone,
            prompts[: config.rollouts.prompts],
            config.rollouts,
            config.separator,
            seed=context.seed("rollouts"),
            group=context.group,
        )
        context.ui.say(
            f"  {drawn.rate:.1%} of {drawn.answers} solutions are right; {len(drawn.labels)} different ones are "
            f"labelled from {drawn.tries} rollouts"
        )
        labels += drawn.labels
        counts |= prompt_counts | {"solutions_right": round(drawn.rate * drawn.answers), "rollouts": drawn.tries}
    write_records(context.folder("process") / "labels.jsonl", labels)
    return labels, counts


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutLabels:
    """Labels of steps from rollouts."""

    labels: list[StepLabel]
    """One label for each different solution."""
    rate: float
    """Share of the solutions that are right."""
    answers: int
    """Number of solutions drawn."""
    tries: int
    """Number of rollouts drawn from their steps."""


def label_by_rollouts(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    config: RolloutLabelsConfig,
    separator: str,
    *,
    seed: int,
    group: Group = ALONE,
) -> RolloutLabels:
    """Draw solutions, and label each step by how often the model's continuations from it end right.

    y_t = (1/N) Σ_n 1[try n from step t ends right], or with ``hard`` labels max_n; y_T of the last step is whether the
    solution is right. Source: Wang et al. 2023 (Math-Shepherd, arXiv 2312.08935), section 3.3.

    Args:
        backbone: the model.
        prompts: prompts to solve, the same on every rank.
        config: number of solutions and rollouts, and their verifier.
        separator: what separates the steps of a solution.
        seed: seed of the solutions; the rollouts use the next seed.
        group: the ranks; each draws its share of solutions and rollouts, and verifies its share.

    Raises:
        DataError: the share of right solutions is below ``least``.
    """
    draw = partial(make_sampler(backbone, config.sampler).generate, adapter=None, seed=seed, group=config.answers)
    drawn = drawn_by_share(group, "solutions of process", prompts, draw, answers=config.answers)
    answers = [r for r in drawn if r.tokens and r.text]
    correct = group.spread("verified solutions of process", answers, partial(_verified, config.verifier))
    rate = fmean(correct) if correct else 0.0
    if rate < config.least:
        raise DataError(
            f"the model solves {rate:.1%} of {len(answers)} solutions and process.rollouts.least is {config.least:.0%}"
            ": rollouts would label nearly every step wrong. Fine-tune it until it solves more, use easier prompts "
            "(`trimtab data generate`), or give data.steps"
        )
    distinct = {(r.prompt.id, r.text): (r, ok) for r, ok in zip(answers, correct, strict=True)}
    starts: list[tuple[Prompt, str]] = []
    for rollout, _ in distinct.values():
        steps = split_steps(rollout.text, separator)
        starts += [(rollout.prompt, separator.join(steps[: i + 1]) + separator) for i in range(len(steps) - 1)]
    continued: list[list[Rollout]] = []
    if starts:
        divide = partial(drawn_by_share, group, "rollouts of process", answers=config.tries)
        continued = continuations(backbone, config.sampler, starts, tries=config.tries, seed=seed + 1, divide=divide)
    shares = iter(
        group.spread(
            "verified rollouts of process",
            continued,
            lambda part: [_share_right(_verified(config.verifier, rollouts), config) for rollouts in part],
        )
    )
    labels: list[StepLabel] = []
    for rollout, ok in distinct.values():
        steps = split_steps(rollout.text, separator)
        values = [*(next(shares) for _ in steps[:-1]), float(ok)]
        labels.append(
            StepLabel(
                id=content_id(rollout.prompt.id, steps),
                prompt=rollout.prompt,
                steps=tuple(steps),
                first_wrong=next((i for i, share in enumerate(values) if share == 0), None),
                shares=tuple(values),
                source="ai",
            )
        )
    return RolloutLabels(labels=labels, rate=rate, answers=len(answers), tries=len(starts) * config.tries)


def _verified(verifier: str, rollouts: Sequence[Rollout]) -> list[bool]:
    if not rollouts:
        return []
    name = "process.rollouts.verifier"
    return [x > 0.5 for x in numbers(name, call(name, load_callable(verifier), rollouts, None), rollouts)]


def _share_right(correct: Sequence[bool], config: RolloutLabelsConfig) -> float:
    return float(any(correct)) if config.labels == "hard" else fmean(correct)


def measured(role: Role, solutions: Sequence[Solution], labels: Sequence[StepLabel]) -> dict[str, Any]:
    """How well the first wrong step is found, compared with always naming the most frequent one."""
    truth: list[First] = [label.first_wrong for label in labels]
    try:
        predicted = [first_wrong(row) for row in score_solutions(role, solutions)]
        f1 = first_error_f1("F1 of the first wrong step", predicted, truth, [label.prompt.id for label in labels])
        modal = modal_first(truth)
    except DataError as error:
        return {"first_error_f1": None, "reason": str(error)}
    with_error = [(guess, first) for guess, first in zip(predicted, truth, strict=True) if first is not None]
    return {
        "first_error_f1": f1.model_dump(mode="json"),
        "found": fmean(guess == first for guess, first in with_error),
        "modal": modal,
        "modal_found": fmean(first == modal for _, first in with_error),
    }


def first_error_line(facts: Mapping[str, Any], solutions: str) -> str:
    """The result of :func:`measured` in words; ``solutions`` describes the solutions."""
    if facts["first_error_f1"] is None:
        return f"the first wrong step is not measured: {facts['reason']}"
    f1 = facts["first_error_f1"]
    return (
        f"first wrong step on {f1['n']} {solutions}: F1 {f1['value']:.1%} [{f1['low']:.1%}, {f1['high']:.1%}]; of "
        f"those with a wrong step it is found in {facts['found']:.1%}, and the most frequent one, step "
        f"{facts['modal'] + 1}, is right in {facts['modal_found']:.1%}"
    )


def process_role(context: Context, backbone: Backbone) -> Role:
    """The process reward model's role, weights not yet loaded."""
    config = context.config.process
    assert config is not None
    return Role.trainable(backbone, "process", config.adapter, seed=context.seed("process"), scalar_head=True)


def load_process_scorer(
    context: Context, trunk: Backbone, micro_batch_tokens: int = PASS_TOKENS, states: FrozenStates | None = None
) -> ProcessScorer:
    """The trained process reward model."""
    config = context.config.process
    assert config is not None
    role = process_role(context, trunk)
    role.load_state(load_tensors(context.folder("process") / "weights.safetensors"))
    return ProcessScorer(role, config.separator, micro_batch_tokens=micro_batch_tokens, states=states)
