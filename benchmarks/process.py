"""Process reward models: ``python -m benchmarks.process``.

- ``best-of-n``: a model is fine-tuned on generated tasks until it solves at least 20 % of them; a process model and an
  outcome model of the same size learn from the same of its solutions; then the best of n answers is taken by each. The
  process model's labels come from the rule, or from rollouts. Without ``--model`` the model is a tiny one that is
  trained from random weights.
- ``bbmistake``: the first wrong step of BIG-Bench Mistake's traces, five folds. The model sees 12 numbers about a step
  (its place, its length, how much of it is new) and its words; no language model. Beside it the index that is most
  often the first wrong one.

Texts are not printed.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.machine import machine, versions
from benchmarks.reward_models import rows_of
from trimtab.evals.baselines import fit_ridge
from trimtab.evals.first_error import first_error_f1, first_wrong, modal_first
from trimtab.feedback.generated_tasks import ANSWER, TASKS, GeneratedTask, first_wrong_step, generate_tasks, solved
from trimtab.feedback.intervals import paired_bootstrap_interval, wilson_interval
from trimtab.feedback.words import WORD
from trimtab.models import AdapterConfig, Backbone, ModelConfig, Role
from trimtab.pipeline.config import RolloutLabelsConfig
from trimtab.pipeline.process import label_by_rollouts
from trimtab.records import Message, Prompt, Rollout
from trimtab.records.annotation import StepLabel
from trimtab.records.steps import step_label
from trimtab.rollout import LocalSampler, ProcessScorer, SamplerConfig, split_steps
from trimtab.rollout.process import solution_scores
from trimtab.testing import tiny_backbone
from trimtab.trainers import OptimizerConfig, ProcessConfig, SftConfig, encode_solutions, train_process, train_sft

ENOUGH = 0.2
"""Share of the tasks that the fine-tuned model has to solve."""
SETS = ("tracking_shuffled_objects", "word_sorting", "logical_deduction")
FOLDS = 5
BUCKETS = 512
"""Columns that the words of a step are hashed into."""


def prompt_of(task: GeneratedTask) -> Prompt:
    """The question, with the solution for the checker."""
    return Prompt.from_text(task.question, solution=list(task.steps))


def fine_tuned(options: argparse.Namespace, tasks: Sequence[GeneratedTask]) -> Backbone:
    """The model after SFT on these tasks, as a trunk."""
    tiny = options.model is None
    backbone = tiny_backbone(layers=3, width=64) if tiny else Backbone.load(ModelConfig(name=options.model))
    turns = [
        [Message(role="user", content=t.question), Message(role="assistant", content="\n".join(t.steps))] for t in tasks
    ]
    examples = [e for messages in turns for e in backbone.chat.examples(messages)]
    adapter = AdapterConfig(kind="full" if tiny else "lora")
    rate = OptimizerConfig(lr=options.lr or (2e-3 if tiny else 3e-4))
    role = Role(backbone, full=True) if tiny else Role.trainable(backbone, "sft", adapter, seed=0)
    config = SftConfig(adapter=adapter, optimizer=rate, epochs=options.epochs, batch=32, micro_batch_tokens=2048)
    train_sft(role, examples, config, seed=0)
    if tiny:
        backbone.freeze()
    else:
        backbone.merge("sft")
    return backbone


def trained(backbone: Backbone, name: str, labels: Sequence[StepLabel], rate: float, outcome: bool) -> Role:
    """A model of steps, or of endings: it then learns from the label of the last step alone."""
    adapter = AdapterConfig(rank=8, alpha=16)
    role = Role.trainable(backbone, name, adapter, seed=0, scalar_head=True)
    solutions, _, _ = encode_solutions(backbone.chat, labels, "\n")
    if outcome:
        for solution in solutions:
            solution.targets[:-1] = [None] * (len(solution.targets) - 1)
    config = ProcessConfig(adapter=adapter, optimizer=OptimizerConfig(lr=rate), epochs=2, micro_batch_tokens=2048)
    train_process(role, solutions, config, seed=0)
    return role


def best_of_n(options: argparse.Namespace) -> dict[str, Any]:
    """Share of right answers among the best of n, by how they are chosen."""
    count = options.prompts + options.train_prompts + options.demonstrations
    tasks = generate_tasks(options.task, count, seed=0, size=options.size, largest=options.largest)
    if len(tasks) < count:
        raise SystemExit(
            f"{len(tasks)} of {count} tasks of this size exist; raise --size or --largest, or ask for fewer"
        )
    test, rest = tasks[: options.prompts], tasks[options.prompts :]
    train, demonstrations = rest[: options.train_prompts], rest[options.train_prompts :]
    backbone = fine_tuned(options, demonstrations)
    sampler = LocalSampler(backbone, SamplerConfig(max_new_tokens=options.tokens))
    drawn = sampler.generate([prompt_of(t) for t in train], adapter=None, seed=1, group=8)
    drawn = [r for r in drawn if r.text]
    right = solved(drawn)
    rate = fmean(right)
    print(f"solves {rate:.1%} after SFT", flush=True)
    if rate < ENOUGH:
        raise SystemExit(
            f"the model solves {rate:.1%}, and {ENOUGH:.0%} are needed; raise --epochs or --demonstrations"
        )
    by_rule: list[StepLabel] = []
    endings: list[StepLabel] = []
    for rollout, ok in zip(drawn, right, strict=True):
        steps = tuple(split_steps(rollout.text, "\n"))
        wrong = first_wrong_step(rollout.prompt.metadata["solution"], steps)
        base = {"id": rollout.id, "prompt": rollout.prompt, "steps": steps}
        by_rule.append(StepLabel(first_wrong=wrong, **base))
        endings.append(StepLabel(first_wrong=None, shares=(1.0,) * (len(steps) - 1) + (ok,), **base))
    labels = by_rule
    if options.labels == "rollouts":
        settings = RolloutLabelsConfig(
            verifier="trimtab.feedback.generated_tasks.solved", answers=8, tries=4, sampler=sampler.config
        )
        labels = label_by_rollouts(backbone, [prompt_of(t) for t in train], settings, "\n", seed=1).labels
    head = 3e-3 if options.model is None else 3e-4
    process = trained(backbone, "process", labels, head, outcome=False)
    outcome = trained(backbone, "outcome", endings, head, outcome=True)
    answers = sampler.generate([prompt_of(t) for t in test], adapter=None, seed=2, group=options.n)
    return {
        "solved after SFT": round(rate, 4),
        "solutions trained on": len(labels),
        "prompts": len(test),
        "n": options.n,
        "best of n": choices(answers, options.n, ProcessScorer(process, "\n"), ProcessScorer(outcome, "\n")),
    }


def choices(answers: Sequence[Rollout], n: int, process: ProcessScorer, outcome: ProcessScorer) -> dict[str, Any]:
    """Share right of the answers that each rule chooses, and the process model minus the outcome model."""
    right = np.array(solved(answers)).reshape(-1, n)
    rows = np.arange(len(right))
    by_step = [[z for _, z in row] for row in process.steps(answers)]
    ends = [row[-1][1] for row in outcome.steps(answers)]
    chosen: dict[str, Any] = {"outcome": np.array(ends).reshape(-1, n).argmax(1)}
    for how in ("product", "minimum", "last", "mean"):
        chosen[f"process, {how}"] = np.array(solution_scores(by_step, how)).reshape(-1, n).argmax(1)
    given = np.array([r.text.rpartition(ANSWER)[2].strip() for r in answers]).reshape(-1, n)
    chosen["majority"] = np.array([row.tolist().index(Counter(row.tolist()).most_common(1)[0][0]) for row in given])
    result: dict[str, Any] = {
        "mean of all": round(float(right.mean()), 4),
        "oracle": round(float(right.max(1).mean()), 4),
    }
    base = right[rows, chosen["outcome"]]
    for name, places in chosen.items():
        hits = right[rows, places]
        low, high = wilson_interval(float(hits.sum()), len(hits))
        result[name] = {"right": round(float(hits.mean()), 4), "interval": [round(low, 4), round(high, 4)]}
        if name != "outcome":
            ends_of = paired_bootstrap_interval(hits.tolist(), base.tolist())
            result[name]["minus outcome"] = [round(float((hits - base).mean()), 4), *(round(x, 4) for x in ends_of)]
            result[name]["verdict"] = "beats the outcome model" if ends_of[0] > 0 else "does not beat the outcome model"
    return result


def bbmistake(folder: Path, sets: Sequence[str]) -> dict[str, Any]:
    """F1 of the first wrong step of each set, and of all, by models of the other folds."""
    results: dict[str, Any] = {}
    said_of_all: list[int | None] = []
    truth_of_all: list[int | None] = []
    for name in sets:
        labels = [step_label(row) for row in rows_of(folder / f"bbmistake-{name}.jsonl.gz")]
        predicted = cross_fitted(labels)
        truth = [label.first_wrong for label in labels]
        results[name] = described(name, predicted, truth)
        said_of_all += predicted
        truth_of_all += truth
    if len(sets) > 1:
        results["all"] = described("all", said_of_all, truth_of_all)
    return results


def described(name: str, said: Sequence[int | None], truth: Sequence[int | None]) -> dict[str, Any]:
    """F1 with its interval, its two parts, and what the most frequent index reaches."""
    f1 = first_error_f1(name, said, truth)
    modal = modal_first(truth)
    wrong = [(s, t) for s, t in zip(said, truth, strict=True) if t is not None]
    assert f1.value is not None and f1.low is not None and f1.high is not None
    return {
        "traces": len(truth),
        "without a wrong step": sum(t is None for t in truth),
        "F1": [round(f1.value, 4), round(f1.low, 4), round(f1.high, 4)],
        "found where there is one": round(fmean(s == t for s, t in wrong), 4),
        "silent where there is none": round(fmean(s is None for s, t in zip(said, truth, strict=True) if t is None), 4),
        "modal index": modal,
        "modal index, found where there is one": round(fmean(t == modal for _, t in wrong), 4),
        "modal index, F1": 0.0,  # it is never silent
    }


def cross_fitted(labels: Sequence[StepLabel]) -> list[int | None]:
    """First wrong steps by logistic models of the other folds, whose threshold is that of the best F1 there."""
    tables = [step_features(label) for label in labels]
    fold = np.random.default_rng(0).integers(0, FOLDS, len(labels))
    predicted: list[int | None] = [None] * len(labels)
    for number in range(FOLDS):
        train = [i for i in range(len(labels)) if fold[i] != number]
        inner = {i: k % 2 for k, i in enumerate(train)}
        logits: dict[int, Any] = {}
        for half in (0, 1):  # the threshold is chosen on traces that the model has not seen
            weights = _fitted(
                [tables[i] for i in train if inner[i] != half], [labels[i] for i in train if inner[i] != half]
            )
            logits |= {i: tables[i] @ weights for i in train if inner[i] == half}
        every = np.concatenate(list(logits.values()))
        truth = [labels[i].first_wrong for i in logits]

        def f1(threshold: float, logits: Any = logits, truth: Any = truth) -> float:
            predicted = [first_wrong(row.tolist(), threshold) for row in logits.values()]
            right = [s == t for s, t in zip(predicted, truth, strict=True) if t is None]
            wrong = [s == t for s, t in zip(predicted, truth, strict=True) if t is not None]
            a, b = fmean(right) if right else 0.0, fmean(wrong) if wrong else 0.0
            return 2 * a * b / (a + b) if a + b else 0.0

        best = max(np.quantile(every, np.linspace(0.01, 0.9, 60)).tolist(), key=f1)
        weights = _fitted([tables[i] for i in train], [labels[i] for i in train])
        for i in np.flatnonzero(fold == number).tolist():
            predicted[i] = first_wrong((tables[i] @ weights).tolist(), best)
    return predicted


def _fitted(tables: Sequence[Any], labels: Sequence[StepLabel]) -> Any:
    targets = [t for label in labels for t in label.targets()]
    known = np.array([t is not None for t in targets])
    values = np.array([0.0 if t is None else t for t in targets])
    rows = np.concatenate(tables)
    return fit_ridge(rows[known], values[known], np.ones(int(known.sum())), 30.0)


def step_features(label: StepLabel) -> Any:
    """Numbers about each step, ``[steps, 12 + BUCKETS]``; the words are hashed."""
    questions = set(WORD.findall(label.prompt.text.lower()))
    before: set[str] = set()
    last: set[str] = set()
    count, rows = len(label.steps), []
    for place, step in enumerate(label.steps):
        words = [w.lower() for w in WORD.findall(step)]
        own, total = set(words), max(1, len(words))
        row = np.zeros(12 + BUCKETS)
        row[:12] = (
            1.0, place / 10, (place / 10) ** 2, place / count, place == 0, place == count - 1, math.log1p(count),
            math.log1p(len(step)) / 5, len(own & questions) / total, len(own & before) / total, len(own & last) / total,
            len(own) / total,
        )  # fmt: skip
        for word in own:
            row[12 + sum(map(ord, word)) * 31 % BUCKETS] += 0.3
        rows.append(row)
        before |= own
        last = own
    return np.array(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["best-of-n", "bbmistake"])
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data/process"), help="bbmistake: folder of the files"
    )
    parser.add_argument("--set", choices=SETS, action="append", help="bbmistake: only this set")
    parser.add_argument("--model", help="best-of-n: name or folder of a model; default: a tiny one")
    parser.add_argument("--task", choices=TASKS, default="sums")
    parser.add_argument("--size", type=int, default=4)
    parser.add_argument("--largest", type=int, default=9)
    parser.add_argument("--demonstrations", type=int, default=3000)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--train-prompts", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=48, help="best-of-n: longest answer")
    parser.add_argument("--labels", choices=["rule", "rollouts"], default="rule")
    parser.add_argument("-n", type=int, default=16)
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": machine(), "versions": versions()}
    chosen = options.set or list(SETS)
    results[options.what] = best_of_n(options) if options.what == "best-of-n" else bbmistake(options.data, chosen)
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
