"""Reward model: Bradley–Terry over all pairs of a ranking, one ranking one batch element.

L = (1/N) Σ_prompts w · mean over its strict pairs of [−log σ(r_w − r_l)] (InstructGPT: all C(K,2)
pairs of a prompt belong to one element, shuffled pairs overfit within a pass). Ties make no pair, except with the
likelihoods that have them as an outcome (Davidson, Rao–Kupper). Plackett–Luce takes a ranking as a whole.
"""

import math
from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import softplus

from trimtab.algos import (
    bradley_terry_loss,
    davidson_loss,
    fit_ridge_bradley_terry,
    plackett_luce_loss,
    rao_kupper_loss,
)
from trimtab.config import Config
from trimtab.errors import DataError
from trimtab.models import PASS_TOKENS, AdapterConfig, FrozenStates, Role
from trimtab.trainers.checkpoint import seed_step
from trimtab.trainers.defaults import with_lr
from trimtab.trainers.learner import Learner, Metrics, Norms, OptimizerConfig
from trimtab.trainers.progress import Session
from trimtab.trainers.rankings import (
    PairTable,
    Ranking,
    RankingBatch,
    by_ranking,
    learnable,
    ranking_batches,
    tokens_of_rankings,
)
from trimtab.trainers.sft import step_indices


class RewardConfig(Config):
    """Reward model training."""

    adapter: AdapterConfig = AdapterConfig()
    """What is trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it is trained."""
    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the preferences."""
    batch: int = Field(default=16, ge=1)
    """Prompts (rankings) per optimiser step."""
    loss: Literal["bradley_terry", "davidson", "rao_kupper", "plackett_luce"] = "bradley_terry"
    """Likelihood of the labels. ``bradley_terry``: all pairs with a winner; ``davidson``, ``rao_kupper``: pairs of
    equal rank too, as ties; ``plackett_luce``: a ranking without ties as choices of the best, then the next best."""
    tie: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """How often equals are called a tie: ν for ``davidson``, P(tie) = ν/(2 + ν); η = log θ for ``rao_kupper``,
    P(tie) = tanh(η/2)."""
    head_init: Literal["random", "probe"] = "random"
    """``random``: as published; ``probe``: the best head for the untrained features, fitted before training. With a few
    hundred preferences it keeps the first steps from moving the features in a random direction."""
    centring: float = Field(default=0.0, ge=0.0)
    """Weight of (r_w + r_l)², which keeps rewards around zero."""
    holdout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of prompts kept out of training, to measure accuracy and calibration."""
    micro_batch_tokens: int = Field(default=512, ge=1)
    """Padded tokens of one forward and backward pass, one ranking at least; changes memory and speed only."""
    cache_mb: float = Field(default=1024.0, ge=0.0)
    """Megabytes for the states of frozen layers, so that these layers run once and not once per pass."""

    @property
    def ties(self) -> bool:
        """True: tied answers are learned from."""
        return self.loss in ("davidson", "rao_kupper")

    @model_validator(mode="after")
    def _tie_of_the_loss(self) -> Self:
        if not self.ties and self.tie != type(self).model_fields["tie"].default:
            raise ValueError(
                f"tie is {self.tie:g} and loss {self.loss!r}, which knows no ties; leave tie out, or set loss: "
                "davidson or rao_kupper"
            )
        return self


def train_reward(
    role: Role,
    rankings: Sequence[Ranking],
    config: RewardConfig,
    *,
    seed: int,
    session: Session | None = None,
    states: FrozenStates | None = None,
) -> FrozenStates:
    """Train ``role`` (with scalar head) in place.

    Args:
        role: the reward model.
        rankings: what it learns from.
        config: how.
        seed: of its first head, of the order of the rankings and of dropout.
        session: surroundings; None: silent.
        states: states of the backbone's frozen layers for these rankings, from :func:`prepared_states`, for several
            models on one trunk; None: they are computed here.

    Returns:
        the states of frozen layers for the rankings, for scoring them (:func:`score_rankings`).

    Raises:
        DataError: no ranking has two different answers of different rank, or no two of equal rank for a loss that
            learns from ties.
        NonFiniteError: the loss became NaN or infinite.
    """
    session = session or Session()
    usable = [rankings[i] for i in learnable(rankings, ties=config.ties)]
    if not any(len(r.pairs()) for r in usable):
        raise DataError(
            f"none of the {len(rankings)} preferences has a better and a different, worse answer, so there is nothing "
            "to learn; check the labels with `trimtab data check`"
        )
    if config.ties and not any(len(r.tied_pairs()) for r in usable):
        soft = sum(r.probability is not None for r in usable)
        raise DataError(
            f"reward.loss {config.loss!r} learns from ties, and none of the {len(usable)} preferences to train on has "
            f"two different answers of equal rank ({soft} are soft labels, in which a tie is a share); keep ties with "
            "label.aggregate.keep_tied: true and, for two answers, label.aggregate.labels: hard, or use reward.loss: "
            "bradley_terry"
        )
    if config.loss == "plackett_luce" and (tied := sum(_is_tied(r) for r in usable)):
        raise DataError(
            f"{tied} of {len(usable)} rankings have ties, which reward.loss 'plackett_luce' does not know; use "
            "bradley_terry (all pairs with a winner) or davidson (ties too)"
        )
    per_epoch = -(-len(usable) // config.batch)
    total = max(1, round(per_epoch * config.epochs))
    learner = Learner(role, with_lr(config.optimizer, "reward", role), total, group=session.group)
    probed = min(1.0, PROBE_RANKINGS / len(usable)) if config.head_init == "probe" else 0.0
    if states is None:
        states = prepared_states(
            role,
            usable,
            passes=config.epochs + probed,
            cache_mb=config.cache_mb,
            micro_batch_tokens=config.micro_batch_tokens,
        )
    done = session.checkpoints.restore({"reward": learner})[0] if session.checkpoints else 0
    if done == 0 and config.head_init == "probe":
        probe_reward_head(role, usable, states, config.micro_batch_tokens)
    elif done == 0:
        init_reward_head(role, seed)
    session.planned(done, total)
    for step in range(done, total):
        seed_step(seed, "reward", step)
        chosen = [usable[i] for i in step_indices(len(usable), config.batch, step, seed)]
        norms = Norms(tokens=0, sequences=sum(r.weight for r in chosen))
        strict = sum(r.weight for r in chosen if len(r.pairs()))
        parts = [(part.ids, part) for part in ranking_batches(chosen, config.micro_batch_tokens, role)]
        metrics = learner.step(parts, lambda part, norms, s=strict: _loss(role, part, norms, config, s, states), norms)
        session.log({"step": step + 1, **metrics})
        session.after_step(step + 1, total, lambda c, s=step + 1: c.save(s, {"reward": learner}))
    return states


def _is_tied(ranking: Ranking) -> bool:
    """True: two different answers have one rank, which a loss of whole orders has no formula for."""
    ranks = [ranking.ranks[place] for place in ranking.best_first()]
    return ranking.probability is None and len(set(ranks)) < len(ranks)


def prepared_states(
    role: Role, rankings: Sequence[Ranking], *, passes: float, cache_mb: float, micro_batch_tokens: int
) -> FrozenStates:
    """States of frozen layers for every sequence, computed before the first step and always in the same batches.

    The last bits of a matrix product depend on the other rows of its batch. If states were added as training goes, a
    resumed run would compute other bits than an uninterrupted one. Nothing is kept for a single pass.
    """
    states = FrozenStates.within(role.backbone, 0.0 if passes <= 1 else cache_mb)
    if states.limit and states.active:
        batch = tokens_of_rankings(rankings, role.backbone.device)
        states.fill(part for _, part in batch.micro_batches(micro_batch_tokens))
    return states


def init_reward_head(role: Role, seed: int) -> None:
    """Normal weights with standard deviation 1/√(d + 1) (Stiennon et al. 2020), zero bias."""
    assert role.scalar is not None
    generator = torch.Generator().manual_seed(seed)
    width = role.scalar.weight.shape[1]
    with torch.no_grad():
        role.scalar.weight.copy_(torch.randn(1, width, generator=generator) / (width + 1) ** 0.5)
        role.scalar.bias.zero_()


PROBE_RANKINGS = 512
"""Most rankings that the first head is fitted to."""

PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Ridge penalties that cross-validation chooses from, in units of one ranking's loss."""

FOLDS = 4
"""Of the cross-validation."""


@torch.no_grad()
def probe_reward_head(
    role: Role, rankings: Sequence[Ranking], states: FrozenStates, micro_batch_tokens: int = PASS_TOKENS
) -> None:
    """Set the head to a penalised Bradley–Terry fit on the features as they are, before any weight is trained.

    Linear probing, then fine-tuning: Kumar et al. 2022 (arXiv 2202.10054). A random head sends the first steps of
    the adapters in a random direction, which costs features that a small data set cannot teach again. Features are
    standardised; the penalty is chosen by four-fold cross-validation over rankings.
    """
    assert role.scalar is not None
    chosen = [r for r in rankings if len(r.pairs())][:PROBE_RANKINGS]
    batch = tokens_of_rankings(chosen, role.backbone.device)
    features = torch.empty(batch.size, role.backbone.width, dtype=torch.float64)
    for index, part in batch.micro_batches(micro_batch_tokens):
        features[index.cpu()] = role.last_hidden(part, states=states).double().cpu()
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    features = (features - mean) / std
    table = PairTable.of(chosen)
    gaps, fold = features[table.better] - features[table.worse], torch.tensor(table.rankings) % FOLDS
    targets = torch.tensor(table.probabilities, dtype=torch.float64)
    weights = torch.tensor(table.weights, dtype=torch.float64)

    def heldout_loss(penalty: float) -> float:
        total = 0.0
        for number in range(FOLDS):
            out = fold == number
            if bool(out.any()) and bool((~out).any()):
                z = gaps[out] @ fit_ridge_bradley_terry(gaps[~out], targets[~out], weights[~out], penalty=penalty)
                total += float((weights[out] * (softplus(z) - targets[out] * z)).sum())
        return total

    penalty = min(PENALTIES, key=heldout_loss)
    head = fit_ridge_bradley_terry(gaps, targets, weights, penalty=penalty) / std
    role.scalar.weight.copy_(head[None])
    role.scalar.bias.fill_(-float(head @ mean))


@torch.no_grad()
def score_rankings(
    role: Role,
    rankings: Sequence[Ranking],
    *,
    states: FrozenStates | None = None,
    micro_batch_tokens: int = PASS_TOKENS,
) -> list[list[float]]:
    """Raw reward of every answer of every ranking; ``states``: of frozen layers, from :func:`train_reward`."""
    if not rankings:
        return []
    batch = tokens_of_rankings(rankings, role.backbone.device)
    scores = torch.empty(batch.size)
    for index, part in batch.micro_batches(micro_batch_tokens):
        scores[index.cpu()] = role.scores(part, states=states).cpu()
    return by_ranking(scores.tolist(), rankings)


def _loss(
    role: Role,
    part: RankingBatch,
    norms: Norms,
    config: RewardConfig,
    strict: float,
    states: FrozenStates | None = None,
) -> tuple[Tensor, Metrics]:
    """The part's share of the loss and of its metrics; ``strict``: weight of the step's rankings with a winner."""
    scores = role.scores(part.tokens, states=states)
    table = PairTable.of(part.rankings)
    winner, loser = scores[table.better.to(scores.device)], scores[table.worse.to(scores.device)]
    if config.loss == "plackett_luce":
        loss = _ranking_losses(scores, part.rankings, config.centring)
    else:
        loss = _pair_losses(scores, PairTable.of(part.rankings, ties=config.ties), config)
    with torch.no_grad():
        probability = scores.new_tensor(table.probabilities)
        right = torch.where(probability < 0.5, winner <= loser, winner > loser).to(scores.dtype)
        weight = scores.new_tensor(table.weights) / max(strict, 1e-12)
        accuracy = float((weight * right).sum())
    return loss / norms.sequences, {"accuracy": accuracy, "pairs": len(table.weights)}


def _pair_losses(scores: Tensor, table: PairTable, config: RewardConfig) -> Tensor:
    """Weighted sum over pairs of the negative log-likelihood, a scalar."""
    winner, loser = scores[table.better.to(scores.device)], scores[table.worse.to(scores.device)]
    probability = scores.new_tensor(table.probabilities)
    weight, margin = scores.new_tensor(table.weights), scores.new_tensor(table.margins)
    if config.loss == "bradley_terry":
        losses = bradley_terry_loss(
            winner,
            loser,
            margin=margin if any(table.margins) else None,
            probability=probability if any(p != 1.0 for p in table.probabilities) else None,
            centring=config.centring,
        )
        return (weight * losses).sum()
    tied = torch.tensor(table.tied, dtype=torch.bool, device=scores.device)
    # a margin is asked of the answer that is more likely the better one; of equals none is
    ahead = winner - torch.where(tied, 0.0, torch.sign(probability - 0.5) * margin)
    none = torch.zeros_like(tied)
    if config.loss == "davidson":
        first, second = (
            davidson_loss(ahead, loser, tied, nu=config.tie),
            davidson_loss(loser, ahead, none, nu=config.tie),
        )
    else:
        theta = math.exp(config.tie)
        first = rao_kupper_loss(ahead, loser, tied, theta=theta)
        second = rao_kupper_loss(loser, ahead, none, theta=theta)
    losses = torch.where(probability == 1.0, first, probability * first + (1 - probability) * second)
    return (weight * (losses + config.centring * (winner + loser).square())).sum()


def _ranking_losses(scores: Tensor, rankings: Sequence[Ranking], centring: float) -> Tensor:
    """Weighted sum over rankings of Plackett and Luce's loss per choice, a scalar; a soft label has two orders."""
    total, start = scores.new_zeros(()), 0
    for ranking in rankings:
        own = scores[start : start + len(ranking.sequences)]
        start += len(ranking.sequences)
        soft = ranking.probability
        best_first = own[torch.tensor(ranking.best_first(), device=own.device)]
        count = len(best_first)
        if ranking.margin and count == 2:
            ahead = 1.0 if soft is None else float((soft > 0.5) - (soft < 0.5))
            best_first = best_first - ahead * own.new_tensor([ranking.margin, 0.0])
        loss = plackett_luce_loss(best_first[None])
        if soft is not None:
            loss = soft * loss + (1 - soft) * plackett_luce_loss(best_first.flip(0)[None])
        pairs = ranking.pairs().to(own.device)
        total = total + ranking.weight * (
            loss[0] / (count - 1) + centring * (own[pairs[:, 0]] + own[pairs[:, 1]]).square().mean()
        )
    return total
