"""One optimiser step over any number of micro-batches, and the state needed to resume.

The loss of a step is a sum over its micro-batches. Each loss function receives the step's
:class:`Norms` (how many tokens and sequences the *whole* step has) and divides by them, so how a
step is cut into micro-batches never changes the objective.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from trimtab.config import Config
from trimtab.errors import CheckpointError, ConfigError, NonFiniteError
from trimtab.models import Role
from trimtab.models.sharded import is_sharded, part, part_like, whole
from trimtab.trainers.eight_bits import AdamW8bit, quantised
from trimtab.trainers.group import ALONE, Group

P = TypeVar("P")

Metrics = dict[str, float]
"""Metrics of one step, by name."""

Log = Callable[[Metrics], None]
"""Receives the metrics of each step."""


Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
"""Decay of a running mean per step."""


class OptimizerConfig(Config):
    """AdamW and its schedule."""

    lr: float | None = Field(default=None, gt=0.0)
    """Peak learning rate; None: a default that depends on the stage, the adapter and the model's width (see the guide's
    section on learning rates)."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """What happens after warm-up: stay, or fall to zero over the planned steps."""
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the planned steps in which the rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled weight decay."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the first and second moment."""
    max_grad_norm: float | None = Field(default=1.0, gt=0.0)
    """Gradients are scaled down to this norm; None: never."""
    state: Literal["32bit", "8bit"] = "32bit"
    """Precision of both moments. ``8bit``: one byte for each value, scaled by blocks. A weight with its gradient and
    its moments then takes 10 bytes instead of 16; steps take longer, and results differ slightly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Norms:
    """Sizes of one whole optimiser step, over all micro-batches and ranks."""

    tokens: float
    """Response tokens that count."""
    sequences: float
    """Sequences (or weighted examples) that count."""


def scheduled_lr(config: OptimizerConfig, step: int, total: int) -> float:
    """Learning rate of step ``step`` (0-based) of ``total``.

    Raises:
        ConfigError: ``config`` names no learning rate.
    """
    if config.lr is None:
        raise ConfigError("lr is None, and only the trainers know a default for it; set lr")
    warm = config.warmup * total
    if step < warm:
        return config.lr * (step + 1) / (warm + 1)
    left = 1.0 - (step - warm) / max(total - warm, 1.0)
    if config.schedule == "linear":
        return config.lr * left
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
    return config.lr


class Learner:
    """A role, its optimiser and how many steps it has taken.

    Args:
        role: what is trained.
        config: optimiser settings.
        total_steps: planned optimiser steps, for the schedule.
        group: the processes that divide the micro-batches of a step; each has an identical learner. If the group
            shards, the constructor divides the weights of the role's model among the processes.
    """

    def __init__(self, role: Role, config: OptimizerConfig, total_steps: int, *, group: Group = ALONE) -> None:
        self.role, self.config, self.total_steps, self.group = role, config, total_steps, group
        self.steps = 0
        if group.shards and isinstance(role, Role):
            role.shard()
        self.parameters = role.parameters()
        sharded, replicated = [], []  # no optimiser kernel takes both at once
        for parameter in self.parameters.values():
            (sharded if is_sharded(parameter) else replicated).append(parameter)
        self.sharded = bool(sharded)
        """True: each rank has a part of the trained weights."""
        adamw = AdamW8bit if config.state == "8bit" else partial(torch.optim.AdamW, fused=True)
        self.optimizer = adamw(
            [{"params": parameters} for parameters in (sharded, replicated) if parameters],
            lr=scheduled_lr(config, 0, total_steps),
            betas=config.betas,
            weight_decay=config.weight_decay,
        )

    def step(
        self,
        parts: Iterable[tuple[Sequence[str], P]],
        loss: Callable[[P, Norms], tuple[Tensor, Metrics]],
        norms: Norms,
        *,
        also: Sequence["Learner"] = (),
        skip: Callable[[Metrics], bool] = lambda metrics: False,
    ) -> Metrics:
        """Accumulate gradients over all parts, then take one optimiser step, unless ``skip`` says not to.

        Each rank of the group runs its share of the parts. Dropout has a seed for each part, so it does not depend on
        the rank. With a sharded model, every rank makes as many passes as the first one; passes beyond its share have
        weight 0.

        Args:
            parts: micro-batches, each with the ids of its samples; the same on every rank.
            loss: returns a part's share of the loss (already divided by ``norms``) and of each metric.
            norms: sizes of the whole step.
            also: other learners whose weights this loss trains; each takes a step with its own settings. Dropout is
                on only in this learner's role.
            skip: receives the metrics summed over all parts; if it returns True, no weight changes and no step is
                counted.

        Returns:
            metrics summed over parts, with ``loss`` and, if the step was taken, this learner's ``grad_norm`` and
            ``lr``.

        Raises:
            NonFiniteError: the loss or a gradient is not finite; names the samples. No weight has changed.
        """
        everyone = [self, *also]
        for learner in everyone:
            learner.optimizer.zero_grad(set_to_none=True)
        batches = list(parts)
        names = [ids for ids, _ in batches]
        *seeds, after = torch.randint(2**62, (len(batches) + 1,)).tolist()

        results = self.group.spread(
            f"micro-batches of optimiser step {self.steps + 1}",
            range(len(batches)),
            partial(self._backward, [part for _, part in batches], loss, norms, seeds),
        )
        torch.manual_seed(after)
        metrics = self._total(results, names)
        if skip(metrics):
            for learner in everyone:
                learner.optimizer.zero_grad(set_to_none=True)
            return metrics
        self._sum_gradients(everyone)
        gradient_norms = [learner._clip([name for ids in names for name in ids]) for learner in everyone]
        rates = [learner._apply() for learner in everyone]
        return metrics | {"grad_norm": gradient_norms[0], "lr": rates[0]}

    def _exchanging(self) -> bool:
        """True: each pass gathers weights from all ranks, so all must make equally many."""
        return isinstance(self.role, Role) and self.role.backbone.shards is not None

    def _backward(
        self,
        parts: Sequence[P],
        loss: Callable[[P, Norms], tuple[Tensor, Metrics]],
        norms: Norms,
        seeds: Sequence[int],
        places: list[int],
    ) -> list[tuple[float, Metrics]]:
        """Accumulate the gradients of this rank's micro-batches; return the loss and the metrics of each."""
        losses: list[Tensor] = []
        metrics: list[Metrics] = []
        self.role.train(True)
        with self.role.accumulating_gradients():
            for place in places:
                torch.manual_seed(seeds[place])
                value, shares = loss(parts[place], norms)
                value.backward()
                losses.append(value.detach())
                metrics.append(shares)
            if self._exchanging():
                for _ in range(len(places), -(-len(parts) // self.group.size)):
                    value, _ = loss(parts[0], norms)
                    (0.0 * value).backward()
        self.role.train(False)
        return list(zip(torch.stack(losses).tolist() if losses else [], metrics, strict=True))

    def _total(self, results: Sequence[tuple[float, Metrics]], names: Sequence[Sequence[str]]) -> Metrics:
        """Sum the loss and metrics of the step's micro-batches.

        Raises:
            NonFiniteError: a loss is not finite; names the samples of those micro-batches.
        """
        values = [value for value, _ in results]
        total = sum(values)
        if not math.isfinite(total):
            bad = [name for ids, value in zip(names, values, strict=True) if not math.isfinite(value) for name in ids]
            raise NonFiniteError(
                f"the loss became {total} at optimiser step {self.steps}; samples involved: "
                f"{', '.join(bad[:8])}{' …' if len(bad) > 8 else ''}. No weight was changed. Lower the learning rate "
                "or look at these samples, then run the same command to continue from the last checkpoint"
            )
        metrics = {"loss": total}
        for _, shares in results:
            for key, share in shares.items():
                metrics[key] = metrics.get(key, 0.0) + share
        return metrics

    def _sum_gradients(self, learners: Sequence["Learner"]) -> None:
        """Sum the gradients over all ranks. The gradient of a weight that no micro-batch reached stays None."""
        if self.group.size == 1:
            return
        phase = f"gradients of optimiser step {self.steps + 1}"
        # Gradients of sharded weights were summed in each backward pass.
        parameters = [p for learner in learners for p in learner.parameters.values() if not is_sharded(p)]
        reached = self.group.gather(phase, lambda: [p.grad is not None for p in parameters])
        trained = [p for p, *ranks in zip(parameters, *reached, strict=True) if any(ranks)]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.group.sum_(phase, [p.grad for p in trained if p.grad is not None])

    def _clip(self, names: Sequence[str]) -> float:
        """Scale the gradients down to the largest allowed norm; return their norm before scaling."""
        gradients = [p for p in self.parameters.values() if p.grad is not None]
        limit = self.config.max_grad_norm or math.inf
        norm = self._clip_sharded(limit) if self.sharded else torch.nn.utils.clip_grad_norm_(gradients, limit)
        if not bool(torch.isfinite(norm)):
            raise NonFiniteError(
                f"the gradient norm became {float(norm)} at optimiser step {self.steps} (samples "
                f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}). No weight was changed. Lower the "
                "learning rate, then run the same command to continue from the last checkpoint"
            )
        return float(norm)

    @torch.no_grad()
    def _clip_sharded(self, limit: float) -> Tensor:
        """Clip by one norm over the parts of all ranks and a scalar head, which every rank holds whole."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        parts = [part(gradient) for gradient in gradients if is_sharded(gradient)]
        replicated = [gradient for gradient in gradients if not is_sharded(gradient)]
        square = torch.nn.utils.get_total_norm(parts).square()
        self.group.sum_(f"gradient norm of optimiser step {self.steps + 1}", [square])
        norm = (square + torch.nn.utils.get_total_norm(replicated).to(square).square()).sqrt()
        for gradient in (*parts, *replicated):
            gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))  # as torch.nn.utils.clip_grad_norm_
        return norm

    def _apply(self) -> float:
        """Take the step and return its learning rate."""
        rate = scheduled_lr(self.config, self.steps, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return rate

    # Resuming -----------------------------------------------------------------------------

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Step count and both moments of every weight, by name; sharded as the weights are, not copied."""
        out: dict[str, Tensor] = {"steps": torch.tensor(self.steps)}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                out[f"{key}/{name}"] = value
        return out

    def optimizer_state(self) -> dict[str, Tensor]:
        """A copy of :meth:`optimizer_tensors`, on the CPU and whole."""
        return {name: whole(tensor) for name, tensor in self.optimizer_tensors().items()}

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`optimizer_state` returned.

        Raises:
            CheckpointError: the precision of its moments differs from ``config.state``.
        """
        for name, parameter in self.parameters.items():
            slots = {}
            for key in ("step", "exp_avg", "exp_avg_sq", "exp_avg_scale", "exp_avg_sq_scale"):
                if f"{key}/{name}" in state:
                    value = state[f"{key}/{name}"].clone()
                    slots[key] = value.to(parameter.device) if key == "step" else part_like(value, parameter)
            if slots and ("exp_avg_scale" in slots) != (self.config.state == "8bit" and quantised(parameter)):
                other = "32bit" if self.config.state == "8bit" else "8bit"
                raise CheckpointError(
                    f"the moments of {name} were saved with state: {other}, and the optimiser has state: "
                    f"{self.config.state}; restore the old setting to continue, or start afresh"
                )
            if slots:
                self.optimizer.state[parameter] = slots
        self.steps = int(state["steps"])
