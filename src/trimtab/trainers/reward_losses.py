"""The loss of a micro-batch of rankings, by the likelihood of the labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.algos import bradley_terry_loss, davidson_loss, plackett_luce_loss, rao_kupper_loss
from trimtab.models import FrozenStates, Role
from trimtab.trainers.annotators import Annotators, VoteTable
from trimtab.trainers.learner import Metrics, Norms
from trimtab.trainers.length_head import LengthTerms
from trimtab.trainers.rankings import PairTable, Ranking, RankingBatch
from trimtab.trainers.reward_config import RewardConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTerms:
    """Terms of the whole optimiser step that a micro-batch's loss needs."""

    strict: float
    """Weight of the step's rankings with a winner."""
    length: LengthTerms | None
    """Correlations over the step; None: there is no length head."""
    annotators: Annotators | None
    """The annotators' habits; None: votes are not modelled one by one."""
    votes: float
    """Number of votes in all training rankings, for the prior of the habits."""


def reward_loss(
    role: Role, part: RankingBatch, norms: Norms, config: RewardConfig, terms: StepTerms, states: FrozenStates | None
) -> tuple[Tensor, Metrics]:
    """The part's share of the loss and of its metrics."""
    numbers = role.head_scores(part.tokens, states=states)
    scores = rewards_of(numbers, part.rankings)
    explained = scores if config.length is None else numbers.sum(dim=1)
    if terms.annotators is not None:
        loss = _vote_losses(explained, part.rankings, config, terms)
    elif config.loss == "plackett_luce":
        loss = _ranking_losses(explained, part.rankings, config.centring)
    else:
        loss = _pair_losses(explained, PairTable.of(part.rankings, ties=config.ties), config)
    loss = loss / norms.sequences
    metrics: Metrics = {}
    if config.length is not None:
        assert terms.length is not None
        loss = loss + terms.length.loss(role, part, numbers, config.length)
        share = len(part.rankings) / terms.length.rankings
        metrics["length_correlation"] = share * terms.length.of_quality
        metrics["length_head_correlation"] = share * terms.length.of_length
    with torch.no_grad():
        table = PairTable.of(part.rankings)
        winner, loser = scores[table.better.to(scores.device)], scores[table.worse.to(scores.device)]
        probability = scores.new_tensor(table.probabilities)
        right = torch.where(probability < 0.5, winner <= loser, winner > loser).to(scores.dtype)
        weight = scores.new_tensor(table.weights) / max(terms.strict, 1e-12)
        accuracy = float((weight * right).sum())
    return loss, metrics | {"accuracy": accuracy, "pairs": len(table.weights)}


def rewards_of(numbers: Tensor, rankings: Sequence[Ranking]) -> Tensor:
    """``[B, heads]`` → ``[B]``: for each answer, the output of the head that its ranking trains."""
    heads = [r.head for r in rankings for _ in r.sequences]
    if not any(heads):
        return numbers[:, 0]
    return numbers.gather(1, torch.tensor(heads, device=numbers.device)[:, None])[:, 0]


def _vote_losses(scores: Tensor, rankings: Sequence[Ranking], config: RewardConfig, terms: StepTerms) -> Tensor:
    """Weighted sum over votes of the negative log-likelihood, and the part's share of the habits' prior, a scalar."""
    assert terms.annotators is not None and config.loss in ("davidson", "rao_kupper")
    votes = VoteTable.of(rankings, scores.device)
    loss = terms.annotators.loss(scores, votes, config.loss)
    if config.centring:
        both = scores[votes.first] + scores[votes.second]
        loss = loss + config.centring * (votes.weight * both.square()).sum()
    # the prior belongs to all votes: a step, and in it a part, has a share in proportion to its votes
    return loss + votes.weight.sum() / terms.votes * terms.annotators.penalty()


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
    # a margin applies to the answer that is more likely the better one; there is none at one half
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
    """Weighted sum over rankings of Plackett and Luce's loss per choice, a scalar; a soft label has both orders."""
    total, start = scores.new_zeros(()), 0
    for ranking in rankings:
        own = scores[start : start + len(ranking.sequences)]
        start += len(ranking.sequences)
        soft = ranking.probability
        best_first = own[torch.tensor(ranking.best_first(), device=own.device)]
        ranks = [ranking.ranks[i] for i in ranking.best_first()] if soft is None else [0, 1]
        choices = sum(rank < ranks[-1] for rank in ranks)
        if ranking.margin and len(ranks) == 2:
            ahead = 1.0 if soft is None else float((soft > 0.5) - (soft < 0.5))
            best_first = best_first - ahead * own.new_tensor([ranking.margin, 0.0])
        loss = plackett_luce_loss(best_first[None], ranks=own.new_tensor([ranks]))
        if soft is not None:
            loss = soft * loss + (1 - soft) * plackett_luce_loss(best_first.flip(0)[None])
        pairs = ranking.pairs().to(own.device)
        total = total + ranking.weight * (
            loss[0] / choices + centring * (own[pairs[:, 0]] + own[pairs[:, 1]]).square().mean()
        )
    return total
