"""Supervised fine-tuning: maximise the log-likelihood of the assistant's tokens.

L = −(1/N) Σ_i Σ_t mask_it · log π(y_it | y_i,<t), N = response tokens of the whole optimiser step.
Conversations are packed into rows without attending across (see :func:`trimtab.models.pack`).
"""

import random
from collections.abc import Sequence

import torch
from pydantic import Field

from trimtab.config import Config
from trimtab.errors import DataError
from trimtab.models import PASS_TOKENS, AdapterConfig, Batch, Encoded, Role, collate, pack
from trimtab.trainers.checkpoint import seed_step
from trimtab.trainers.defaults import with_lr
from trimtab.trainers.learner import Learner, Norms, OptimizerConfig
from trimtab.trainers.progress import Session


class SftConfig(Config):
    """Supervised fine-tuning."""

    adapter: AdapterConfig = AdapterConfig()
    """What is trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it is trained."""
    epochs: float = Field(default=1.0, gt=0.0, le=1_000_000.0)
    """Passes over the demonstrations."""
    batch: int = Field(default=16, ge=1)
    """Conversations per optimiser step."""
    holdout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the demonstrations kept out of training, to measure the loss on unseen ones."""
    packing: bool = True
    """True: pack several conversations into each row. False: pad each conversation to the longest of its micro-batch.
    The results are the same."""
    micro_batch_tokens: int = Field(default=512, ge=1)
    """Padded tokens of one forward and backward pass; changes memory and speed only."""


def train_sft(
    role: Role, examples: Sequence[Encoded], config: SftConfig, *, seed: int, session: Session | None = None
) -> None:
    """Fine-tune ``role`` in place.

    Args:
        role: a trainable role without scalar head.
        examples: encoded conversations; those without a response token are refused.
        config: settings.
        seed: order of the examples and dropout.
        session: logging, checkpoints, stopping; None: logs and saves nothing.

    Raises:
        DataError: there are no examples.
        NonFiniteError: the loss became NaN or infinite.
    """
    session = session or Session()
    if not examples:
        raise DataError("no demonstrations to fine-tune on; check the file with `trimtab data check`")
    per_epoch = -(-len(examples) // config.batch)
    total = max(1, round(per_epoch * config.epochs))
    learner = Learner(role, with_lr(config.optimizer, "sft", role), total, group=session.group)
    done = session.checkpoints.restore({"sft": learner})[0] if session.checkpoints else 0
    session.planned(done, total)
    for step in range(done, total):
        seed_step(seed, "sft", step)
        places = step_indices(len(examples), config.batch, step, seed)
        chosen = [examples[i] for i in places]
        norms = Norms(tokens=sum(sum(e.response_mask) for e in chosen), sequences=len(chosen))
        parts = _micro_batches(chosen, [f"example {i}" for i in places], config, role)
        metrics = learner.step(parts, lambda part, norms: (-role.logprobs(part).sum() / norms.tokens, {}), norms)
        session.log({"step": step + 1, "tokens": norms.tokens, **metrics})
        session.after_step(step + 1, total, lambda to, finished: to.save(finished, {"sft": learner}))


@torch.no_grad()
def mean_nll(role: Role, examples: Sequence[Encoded], *, micro_batch_tokens: int = PASS_TOKENS) -> float:
    """Mean negative log-likelihood per response token over ``examples``, in nats."""
    batch = collate([e.tokens for e in examples], [e.response_mask for e in examples], role.backbone.device)
    total = 0.0
    for _, part in batch.micro_batches(micro_batch_tokens):
        total -= float(role.logprobs(part).sum())
    return total / float(batch.response_mask.sum())


def step_indices(count: int, batch: int, step: int, seed: int) -> list[int]:
    """The examples of optimiser step ``step``; each epoch shuffles all of them anew.

    The last batch of an epoch may be smaller, so that an epoch is exactly one pass.
    """
    epoch, place = divmod(step, -(-count // batch))
    return _order(count, epoch, seed)[place * batch : (place + 1) * batch]


def steps_of_examples(count: int, batch: int, total: int, seed: int) -> list[list[int]]:
    """For each example, the optimiser steps (from 0, of ``total``) that use it; inverse of :func:`step_indices`."""
    per_epoch = -(-count // batch)
    steps: list[list[int]] = [[] for _ in range(count)]
    for epoch in range(-(-total // per_epoch)):
        for place, example in enumerate(_order(count, epoch, seed)):
            if (step := epoch * per_epoch + place // batch) < total:
                steps[example].append(step)
    return steps


def _order(count: int, epoch: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}|order|{epoch}").shuffle(order)
    return order


def _micro_batches(
    chosen: Sequence[Encoded], names: list[str], config: SftConfig, role: Role
) -> list[tuple[list[str], Batch]]:
    device = role.backbone.device
    tokens, masks = [e.tokens for e in chosen], [e.response_mask for e in chosen]
    if not (config.packing and role.backbone.layouts.packed):
        batch = collate(tokens, masks, device)
        parts = batch.micro_batches(config.micro_batch_tokens)
        return [([names[i] for i in index.tolist()], part) for index, part in parts]
    width = max(max(len(t) for t in tokens), min(config.micro_batch_tokens, role.backbone.chat.context))
    batch = pack(tokens, masks, width, device)
    parts = []
    for _, part in batch.micro_batches(config.micro_batch_tokens):
        assert part.segments is not None
        parts.append(([names[i] for i in part.segments.unique().tolist() if i >= 0], part))  # -1: padding
    return parts
