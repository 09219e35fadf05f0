"""The loop that all offline methods share: shuffled passes, one optimiser step per batch of items."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from torch import Tensor

from trimtab.models import Role
from trimtab.trainers.checkpoint import seed_step
from trimtab.trainers.defaults import with_lr
from trimtab.trainers.learner import Learner, Metrics, Norms
from trimtab.trainers.offline_config import OfflineConfig
from trimtab.trainers.progress import Session
from trimtab.trainers.reference import MovingWeights, check_reference_update
from trimtab.trainers.sft import step_indices

Item = TypeVar("Item")
Part = TypeVar("Part")


def fit(
    policy: Role,
    items: Sequence[Item],
    config: OfflineConfig,
    *,
    weight: Callable[[Item], float],
    parts: Callable[[list[Item]], list[tuple[list[str], Part]]],
    loss: Callable[[Part, Norms], tuple[Tensor, Metrics]],
    seed: int,
    session: Session | None,
    reference: MovingWeights | None = None,
) -> None:
    """Train ``policy`` in place.

    Args:
        policy: what is trained.
        items: rankings or answers.
        config: the method's settings.
        weight: item → its weight in the loss.
        parts: an optimiser step's items → its micro-batches, each with its ids.
        loss: a micro-batch → its share of the step's loss and metrics.
        seed: order of the items and dropout.
        session: logging, checkpoints, stopping; None: logs and saves nothing.
        reference: moving reference, updated as ``config.reference_update`` says; None: there is none.

    Raises:
        ConfigError: the reference would first be updated after the last step.
    """
    session = session or Session()
    total = max(1, round(-(-len(items) // config.batch) * config.epochs))
    check_reference_update(config.reference_update, total)
    learner = Learner(policy, with_lr(config.optimizer, "preference", policy), total, group=session.group)
    moving = {} if reference is None else {"reference": reference}
    done = session.checkpoints.restore({"policy": learner}, untrained=moving)[0] if session.checkpoints else 0
    session.planned(done, total)
    for step in range(done, total):
        seed_step(seed, "align", step)
        chosen = [items[i] for i in step_indices(len(items), config.batch, step, seed)]
        norms = Norms(tokens=0, sequences=sum(weight(item) for item in chosen))
        metrics = learner.step(parts(chosen), loss, norms)
        session.log({"step": step + 1, **metrics})
        if reference is not None and config.reference_update and config.reference_update.due(step + 1):
            reference.update(config.reference_update.alpha)
        session.after_step(
            step + 1, total, lambda to, finished: to.save(finished, {"policy": learner}, untrained=moving)
        )


def added_up(shares: Iterable[tuple[Tensor, Metrics]]) -> Metrics:
    """Sum the shares of micro-batches into the objective and its metrics."""
    total: Metrics = {"loss": 0.0}
    for loss, metrics in shares:
        for name, share in {"loss": float(loss), **metrics}.items():
            total[name] = total.get(name, 0.0) + share
    return total
