"""Process reward model: cross-entropy of "this step is right" at the end of every judged step.

L = (1/N) Σ −y log σ(z) − (1 − y) log σ(−z)

The sum is over the N judged steps of an optimiser step's solutions; z is the scalar head at the last token of a judged
step. Source: Lightman et al. 2023 (arXiv 2305.20050), section 2.6; shares of rollouts as soft y: Wang et al. 2023
(arXiv 2312.08935). Nothing is known about steps after the first wrong one, so they have no loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from trimtab.algos import process_reward_loss
from trimtab.config import Config
from trimtab.errors import DataError, NonFiniteError
from trimtab.models import PASS_TOKENS, AdapterConfig, Batch, Chat, Role, collate, leave_out
from trimtab.records.annotation import StepLabel
from trimtab.rollout.process import step_logits
from trimtab.rollout.rewards import ends_of
from trimtab.trainers.checkpoint import seed_step
from trimtab.trainers.defaults import with_lr
from trimtab.trainers.learner import Learner, Metrics, Norms, OptimizerConfig
from trimtab.trainers.progress import Session
from trimtab.trainers.sft import step_indices


class ProcessConfig(Config):
    """Process reward model training."""

    adapter: AdapterConfig = AdapterConfig()
    """What is trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it is trained."""
    epochs: float = Field(default=1.0, gt=0.0, le=1_000_000.0)
    """Passes over the solutions."""
    batch: int = Field(default=16, ge=1)
    """Solutions per optimiser step."""
    separator: str = Field(default="\n", min_length=1)
    """What separates the steps of an answer, in training and when answers of the policy are scored."""
    holdout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of prompts kept out of training, to measure how well the first wrong step is found."""
    micro_batch_tokens: int = Field(default=512, ge=1)
    """Padded tokens of one forward and backward pass, one solution at least; changes memory and speed only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A solution whose steps were judged, encoded."""

    id: str
    """Id of the label."""
    tokens: list[int]
    """Prompt and answer."""
    ends: list[int]
    """Place in ``tokens`` of the last token of each step."""
    targets: list[float | None]
    """For each step 1 (right), 0 (wrong) or a value between; None: not known."""


def encode_solutions(
    chat: Chat, labels: Sequence[StepLabel], separator: str
) -> tuple[list[Solution], list[StepLabel], dict[str, Any]]:
    """Solutions as tokens, their labels, and the number left out, by reason.

    ``too_long``: does not fit the context. ``unrendered``: why the chat template cannot render a label, by id.
    ``separated``: number of steps that contain the separator. They are trained on only at their end, but would be read
    as several steps when the model is used.
    """
    solutions, used = [], []
    left_out: dict[str, Any] = {"too_long": 0, "unrendered": {}, "separated": 0}
    for label in labels:
        messages, text = label.prompt.messages, separator.join(label.steps)
        try:
            head = chat.prompt(messages)
            tokens = chat.answer(messages, text).tokens
            body = tokens[len(head) :]
            ends = ends_of(body, text, label.steps, chat.decode)
        except DataError as error:
            leave_out(left_out, label.id, error)
            continue
        left_out["separated"] += sum(separator in step.strip() for step in label.steps)
        ends = [len(head) + min(end, len(body) - 1) for end in ends]
        solutions.append(Solution(id=label.id, tokens=tokens, ends=ends, targets=label.targets()))
        used.append(label)
    return solutions, used, left_out


def train_process(
    role: Role, solutions: Sequence[Solution], config: ProcessConfig, *, seed: int, session: Session | None = None
) -> None:
    """Train ``role``, which has a scalar head, in place.

    Args:
        role: the process reward model.
        solutions: what it learns from.
        config: settings.
        seed: seed of the order of the solutions and of dropout.
        session: logging, checkpoints, stopping; None: logs and saves nothing.

    Raises:
        DataError: no step is judged, or all judged steps have one label.
        NonFiniteError: the loss became NaN or infinite.
    """
    session = session or Session()
    judged = [target for s in solutions for target in s.targets if target is not None]
    if len(set(judged)) < 2:
        what = "none is judged" if not judged else f"all {len(judged)} judged ones have the label {judged[0]:g}"
        raise DataError(
            f"the steps of {len(solutions)} solutions teach nothing: {what}; a process reward model needs right and "
            "wrong steps, so add solutions with a wrong step (or without one)"
        )
    total = max(1, round(-(-len(solutions) // config.batch) * config.epochs))
    learner = Learner(role, with_lr(config.optimizer, "reward", role), total, group=session.group)
    done = session.checkpoints.restore({"process": learner})[0] if session.checkpoints else 0
    session.planned(done, total)
    for step in range(done, total):
        seed_step(seed, "process", step)
        chosen = [solutions[i] for i in step_indices(len(solutions), config.batch, step, seed)]
        count = sum(target is not None for s in chosen for target in s.targets)
        norms = Norms(tokens=max(1, count), sequences=len(chosen))
        batch = _collate(chosen, role)
        parts: list[tuple[list[str], tuple[list[Solution], Batch]]] = []
        for index, part in batch.micro_batches(config.micro_batch_tokens):
            own = [chosen[i] for i in index.tolist()]
            parts.append(([s.id for s in own], (own, part)))
        metrics = learner.step(parts, lambda part, norms: _loss(role, part[0], part[1], norms), norms)
        session.log({"step": step + 1, **metrics, "judged_steps": count})
        session.after_step(step + 1, total, lambda to, finished: to.save(finished, {"process": learner}))


def _collate(solutions: Sequence[Solution], role: Role) -> Batch:
    tokens = [s.tokens for s in solutions]
    return collate(tokens, [[False] * len(t) for t in tokens], role.backbone.device)


def _loss(role: Role, solutions: Sequence[Solution], part: Batch, norms: Norms) -> tuple[Tensor, Metrics]:
    """The part's share of the loss and of the accuracy: the share of judged steps on the right side of one half."""
    logits = step_logits(role, part)
    labels, mask = torch.zeros(logits.shape), torch.zeros(logits.shape, dtype=torch.bool)
    for row, solution in enumerate(solutions):
        for end, target in zip(solution.ends, solution.targets, strict=True):
            if target is not None:
                labels[row, end], mask[row, end] = target, True
    labels, mask = labels.to(logits.device), mask.to(logits.device)
    loss = process_reward_loss(logits, labels, mask).sum() / norms.tokens
    with torch.no_grad():
        right = ((logits > 0) == (labels > 0.5)) & mask
    return loss, {"step_accuracy": float(right.sum()) / norms.tokens}


@torch.no_grad()
def score_solutions(
    role: Role, solutions: Sequence[Solution], *, micro_batch_tokens: int = PASS_TOKENS
) -> list[list[float]]:
    """Logit of P(right) of every step of every solution.

    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    if not solutions:
        return []
    scores: list[list[float]] = [[] for _ in solutions]
    for index, part in _collate(solutions, role).micro_batches(micro_batch_tokens):
        logits = step_logits(role, part).cpu()
        for row, number in enumerate(index.tolist()):
            scores[number] = logits[row, solutions[number].ends].tolist()
    bad = [s.id for s, row in zip(solutions, scores, strict=True) if not bool(torch.tensor(row).isfinite().all())]
    if bad:
        raise NonFiniteError(
            f"the process reward model gives NaN or infinite scores for {len(bad)} of {len(solutions)} solutions, the "
            f"first {bad[0]}; lower process.optimizer.lr and train it again"
        )
    return scores
