"""Offline alignment on rankings: a policy learns from pairs of judged answers, without sampling.

L = (1/N) Σ_rankings w · mean over its strict pairs of ℓ(pair),  N = Σ w of the optimiser step

ℓ is a function of log π(answer) summed over response tokens and, for methods with a reference, of log ref(answer);
the method's row in :mod:`trimtab.trainers.methods` names the function. A method may have a loss of the whole ranking
instead of the mean over its pairs. Each answer of a ranking is run once, however many pairs it is in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.algos import masked_sum
from trimtab.errors import ConfigError, DataError
from trimtab.models import FrozenStates, Role
from trimtab.trainers.group import ALONE, Group
from trimtab.trainers.learner import Metrics, Norms
from trimtab.trainers.methods import OFFLINE, methods_with
from trimtab.trainers.offline import added_up, fit
from trimtab.trainers.offline_config import DpoConfig, PairConfig
from trimtab.trainers.pairs import Pairs
from trimtab.trainers.progress import Session
from trimtab.trainers.rankings import PairTable, Ranking, RankingBatch, check_ties, learnable, ranking_batches
from trimtab.trainers.reference import answer_logprobs, moving_reference
from trimtab.trainers.reward import prepared_states

Reference = Sequence[Sequence[float]]
"""Log ref of every answer of every ranking, nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A micro-batch."""

    batch: RankingBatch
    reference: Tensor | None
    """``[answers]``, log ref, nats; None: the method has no reference."""
    mean_chosen_length: float
    """Mean over the whole step, see :class:`Pairs`."""
    mean_ratio: float = 0.0
    """Mean over the whole step, see :class:`Pairs`."""


def train_preference(
    policy: Role,
    rankings: Sequence[Ranking],
    config: PairConfig,
    *,
    reference: Reference | None,
    seed: int,
    session: Session | None = None,
    start: Role | None = None,
) -> None:
    """Train ``policy`` in place on rankings.

    Args:
        policy: starts at the reference's weights.
        rankings: from :func:`~trimtab.trainers.encode_preferences`; margins belong to reward models and are not used.
        config: the method and its settings.
        reference: log ref of every answer of every ranking, nats, from :func:`answer_logprobs`; None for the methods
            that have no reference. With ``config.reference_update`` they are recomputed in each step and not stored.
        seed: order of the rankings and dropout.
        session: logging, checkpoints, stopping; None: logs and saves nothing.
        start: the reference's model; needed with ``config.reference_update``. It is sharded if the session's group
            shards.

    Raises:
        ConfigError: the method's formula does not allow soft labels; or ``reference_update`` is set for a method
            without a reference, without ``start``, or beyond the last step.
        DataError: no ranking has a better and a worse answer, or too many answers tie for a loss of whole rankings.
        NonFiniteError: the loss became NaN or infinite.
    """
    usable, known = _usable(rankings, config, reference)
    moving = _moving(policy, start, config)
    group = ALONE if session is None else session.group
    if group.shards and start is not None:
        start.shard()
    states = prepared_states(
        policy,
        usable,
        passes=config.epochs,
        cache_mb=config.cache_mb,
        micro_batch_tokens=config.micro_batch_tokens,
    )

    def parts(places: list[int]) -> list[tuple[list[str], _Part]]:
        chosen = [usable[i] for i in places]
        reference = None if known is None else [known[i] for i in places]
        if moving is not None:
            with moving.gathered():
                reference = answer_logprobs(moving, chosen, micro_batch_tokens=config.micro_batch_tokens)
        parts = _parts(policy, chosen, reference, config.micro_batch_tokens)
        return [(part.batch.ids, part) for part in _with_mean_ratio(policy, parts, config, states, group)]

    def loss(part: _Part, norms: Norms) -> tuple[Tensor, Metrics]:
        return _pair_loss(policy, part, norms, config, states)

    fit(
        policy,
        range(len(usable)),
        config,
        weight=lambda i: usable[i].weight,
        parts=parts,
        loss=loss,
        seed=seed,
        session=session,
        reference=moving,
    )


def _moving(policy: Role, start: Role | None, config: PairConfig) -> Any:
    """The reference that follows the policy, if there is one."""
    if config.reference_update is None:
        return None
    if not OFFLINE[config.method].reference:
        raise ConfigError(
            f"reference_update is set and align.method {config.method!r} has no reference; leave it out, or use "
            "align.method dpo"
        )
    if start is None:
        raise ConfigError("reference_update is set; give train_preference the reference's model as start")
    return moving_reference(start, policy, config.reference_update)


@torch.no_grad()
def evaluate_preference(
    policy: Role, rankings: Sequence[Ranking], config: PairConfig, *, reference: Reference | None
) -> Metrics:
    """The training objective and its metrics on rankings that were not trained on; empty if none has a strict pair."""
    try:
        usable, known = _usable(rankings, config, reference)
    except DataError:
        return {}
    norms = Norms(tokens=0, sequences=sum(r.weight for r in usable))
    parts = _with_mean_ratio(policy, _parts(policy, usable, known, config.micro_batch_tokens), config)
    return added_up(_pair_loss(policy, part, norms, config) for part in parts)


def _usable(
    rankings: Sequence[Ranking], config: PairConfig, reference: Reference | None
) -> tuple[list[Ranking], list[Sequence[float]] | None]:
    """Check all rankings; return those with a strict pair, and their reference log-probabilities."""
    method = OFFLINE[config.method]
    if (reference is not None) != method.reference:
        problem = "takes no reference log-probabilities" if reference is not None else "needs them (answer_logprobs)"
        raise ConfigError(f"align.method {config.method!r} {problem}")
    soft = [r.id for r in rankings if r.probability is not None]
    if soft and not method.soft_labels:
        raise ConfigError(
            f"{len(soft)} of {len(rankings)} preferences carry soft labels (first: {soft[0]}), which {config.method!r} "
            f"has no formula for; use align.method {' or '.join(methods_with(soft_labels=True))}, or set "
            "label.aggregate.labels: hard"
        )
    if soft and isinstance(config, DpoConfig) and config.label_smoothing:
        raise ConfigError(
            "align.label_smoothing and soft labels both say how sure a label is; set label_smoothing: 0, or "
            "label.aggregate.labels: hard"
        )
    if soft and isinstance(config, DpoConfig) and config.nll:
        raise ConfigError(
            f"align.nll imitates the better answer, and {len(soft)} of {len(rankings)} preferences carry soft labels "
            f"(first: {soft[0]}), which leave open which one that is; set nll: 0, or label.aggregate.labels: hard"
        )
    if method.listwise:
        check_ties(rankings, f"align.method {config.method!r}", "align.method dpo, which learns from pairs")
    usable = learnable(rankings)
    if not usable:
        raise DataError(
            f"none of the {len(rankings)} preferences has a better and a different, worse answer, so there is nothing "
            "to learn; check the labels with `trimtab data check`"
        )
    return [rankings[i] for i in usable], None if reference is None else [reference[i] for i in usable]


def _ranked(ratios: Tensor, rankings: Sequence[Ranking]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-ratios ``[answers]`` as ``[N, K]``, the mask of filled places, and the ranks."""
    rows, ranks, start = [], [], 0
    for ranking in rankings:
        places = ranking.best_first()
        rows.append([start + place for place in places])
        ranks.append([ranking.ranks[place] for place in places])
        start += len(ranking.sequences)
    width = max(map(len, rows))

    def table(values: list[list[int]]) -> Tensor:
        return torch.tensor([row + [0] * (width - len(row)) for row in values], device=ratios.device)

    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return ratios[table(rows)], mask.to(ratios.device), table(ranks)


@torch.no_grad()
def _with_mean_ratio(
    policy: Role, parts: list[_Part], config: PairConfig, states: FrozenStates | None = None, group: Group = ALONE
) -> list[_Part]:
    """The parts of a step, with its mean log-ratio if the method needs it; computing it takes an additional pass."""
    if not OFFLINE[config.method].mean_ratio(config):
        return parts

    def weighted(part: _Part) -> tuple[float, float]:
        tokens, table = part.batch.tokens, PairTable.of(part.batch.rankings)
        sums = masked_sum(policy.logprobs(tokens, states=states), tokens.response_mask, dim=1)
        ratios = sums if part.reference is None else sums - part.reference.to(sums)
        weight = sums.new_tensor(table.weights)
        both = ratios[table.better.to(sums.device)] + ratios[table.worse.to(sums.device)]
        return float((weight * both).sum()) / 2, sum(table.weights)

    with policy.gathered():
        sums = group.spread("mean log-ratio", parts, lambda own: [weighted(part) for part in own])
    mean = sum(total for total, _ in sums) / sum(weight for _, weight in sums)
    return [replace(part, mean_ratio=mean) for part in parts]


def _parts(
    policy: Role, rankings: Sequence[Ranking], reference: Reference | None, micro_batch_tokens: int
) -> list[_Part]:
    parts, length = [], _mean_chosen_length(rankings)
    for batch in ranking_batches(rankings, micro_batch_tokens, policy):
        known = None if reference is None else torch.tensor([v for i in batch.places for v in reference[i]])
        parts.append(_Part(batch=batch, reference=known, mean_chosen_length=length))
    return parts


def _mean_chosen_length(rankings: Sequence[Ranking]) -> float:
    """Mean number of response tokens of the better answer, over pairs with their weights."""
    table = PairTable.of(rankings)
    lengths = [len(s) - r.prompt_length for r in rankings for s in r.sequences]
    total = sum(w * lengths[i] for w, i in zip(table.weights, table.better.tolist(), strict=True))
    return total / sum(table.weights)


def _pair_loss(
    policy: Role, part: _Part, norms: Norms, config: PairConfig, states: FrozenStates | None = None
) -> tuple[Tensor, Metrics]:
    """The part's share of the loss, and of the metrics of its pairs (weighted like the loss)."""
    method, tokens = OFFLINE[config.method], part.batch.tokens
    sums = masked_sum(policy.logprobs(tokens, states=states), tokens.response_mask, dim=1)
    lengths = tokens.response_mask.sum(dim=1).to(sums.dtype)
    reference = torch.zeros_like(sums) if part.reference is None else part.reference.to(sums)
    table = PairTable.of(part.batch.rankings)
    better, worse = table.better.to(sums.device), table.worse.to(sums.device)
    weight = sums.new_tensor([w / norms.sequences for w in table.weights])
    pairs = Pairs(
        chosen=sums[better],
        rejected=sums[worse],
        ref_chosen=reference[better],
        ref_rejected=reference[worse],
        chosen_lengths=lengths[better],
        rejected_lengths=lengths[worse],
        mean_chosen_length=part.mean_chosen_length,
        probability=sums.new_tensor(table.probabilities),
        certain=all(p == 1.0 for p in table.probabilities),
        mean_ratio=sums.new_tensor(part.mean_ratio),
    )
    if method.ranking_loss is not None:
        losses = method.ranking_loss(config, *_ranked(sums - reference, part.batch.rankings))
        loss = (sums.new_tensor([r.weight / norms.sequences for r in part.batch.rankings]) * losses).sum()
    else:
        assert method.loss is not None
        loss = (weight * method.loss(config, pairs)).sum()
    with torch.no_grad():
        better_ratio, worse_ratio = pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected
        if method.per_token_gap(config):
            gap = better_ratio / pairs.chosen_lengths - worse_ratio / pairs.rejected_lengths
        else:
            gap = better_ratio - worse_ratio
        right = torch.where(pairs.probability < 0.5, gap < 0, gap > 0).to(sums.dtype)
        metrics = {
            "accuracy": float((weight * right).sum()),
            "gap": float((weight * gap).sum()),
            "chosen": float((weight * (pairs.chosen - pairs.ref_chosen)).sum()),
            "rejected": float((weight * (pairs.rejected - pairs.ref_rejected)).sum()),
        }
    return loss, metrics
