"""Soft labels from one model of all judgements, which includes each annotator's skill, tie threshold and position bias.

Judgements become votes on pairs of answers. An answer is identified by its text and prompt, so items that share answers
inform each other. A ranking of K answers gives K(K−1)/2 votes of weight 2/K; together they count as K − 1 votes. A
judgement with a probability gives each answer its share of a vote.

This module imports NumPy, so it is imported where it is used and not with the package.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import NormalDist
from typing import Literal

import numpy as np

from trimtab.feedback.comparison_fit import HABITS, ComparisonFit, Habit, fit_comparisons
from trimtab.feedback.comparison_model import (
    FIRST,
    SECOND,
    TIE,
    Floats,
    Ints,
    Parameters,
    TieModel,
    Votes,
    vote_probabilities,
)
from trimtab.feedback.dawid_skene import SHRINKAGE, DawidSkene, dawid_skene
from trimtab.feedback.intervals import Estimate, wilson_interval
from trimtab.feedback.votes import votes_on_pair
from trimtab.records import Comparison, Judgement, Record

Method = Literal["dawid_skene", "davidson", "rao_kupper"]
Z = NormalDist().inv_cdf(0.975)
TIE_TOLERANCE = 1e-3
"""Answers whose log-odds differ by less are tied in the ranks."""
UNDECIDED_MARGIN = 0.05
"""If all soft labels are within this distance of one half, the judgements together say nothing."""


class Habits(Record):
    """One annotator's habits, as estimated by the model; intervals are 95 %."""

    annotator: str
    """Pseudonym."""
    votes: int
    """Judgements of pairs of answers; a ranking of K answers counts K(K−1)/2."""
    skill: Estimate
    """Davidson and Rao–Kupper: how strongly a difference between answers affects their votes: 1 for the average
    annotator, 0 for a coin, below 0 for contrary votes. Dawid–Skene: how often they name the true label, without an
    interval."""
    ties: Estimate
    """P(tie) between equal answers; with Dawid–Skene, over all pairs."""
    position: Estimate
    """P(the answer shown earlier wins, given a winner) between equal answers; ½: no bias."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """The model's label of one item."""

    ranks: tuple[int, ...]
    """By score; 0 = best, equal = tie."""
    probability: float | None
    """For two answers: P(the first wins, given a winner) for the average annotator; None for more."""
    weight: float
    """Share of the prior variance of its pairs' score differences that the votes removed, from 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelLabels:
    """Labels of all items with votes."""

    labels: dict[str, Label]
    """By item id."""
    habits: tuple[Habits, ...]
    """By annotator, the most skilled first."""
    notes: tuple[str, ...]
    """Remarks on the fit that a reader has to know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """Votes and the records they came from."""

    votes: Votes
    share: Floats
    """``[N]``, each vote's share of the judgement of its pair; 1 unless the judgement has a probability."""
    names: list[str]
    """Annotators."""
    item_of: list[str]
    """Item id of each pair."""
    pair_of: list[int]
    """Index of each vote's pair in ``item_of``."""
    pairs: list[tuple[int, int]]
    """Answers of each pair."""


def label_by_model(
    items: Mapping[str, Comparison],
    usable: Mapping[str, Sequence[Judgement]],
    *,
    method: Method,
    habits: tuple[Habit, ...] = HABITS,
    weights: Mapping[str, float] | None = None,
) -> ModelLabels:
    """Fit a model to the judgements and label the items.

    Args:
        items: by id.
        usable: judgements by item id, as :func:`~trimtab.feedback.votes.usable_judgements` gives them.
        method: ``davidson`` or ``rao_kupper`` (:mod:`trimtab.feedback.comparison_model`), or ``dawid_skene``.
        habits: what may differ between annotators; Dawid–Skene has confusion matrices instead.
        weights: of annotators' votes, above 0; 1 where missing.

    For Davidson and Rao–Kupper, the soft label is the probability that the average annotator prefers the first answer,
    given a preference: E P(i) / (E P(i) + E P(j)) under the model's likelihood, with E over the uncertainty of
    x_i − x_j. With Dawid–Skene it is P(first) + ½ P(tie), and each pair is used in both orders, because the order of an
    item's answers has no meaning.
    """
    table = _table(items, usable, weights or {})
    if method == "dawid_skene":
        return _label_by_dawid_skene(items, table)
    return _label_by_scores(items, table, method, habits if len(table.names) > 1 else ())


def _table(
    items: Mapping[str, Comparison], usable: Mapping[str, Sequence[Judgement]], weights: Mapping[str, float]
) -> _Table:
    answers: dict[tuple[str, str], int] = {}
    annotators: dict[str, int] = {}
    rows: list[tuple[int, int, int, int, float, float, float]] = []
    item_of: list[str] = []
    pair_of: list[int] = []
    pairs: list[tuple[int, int]] = []
    for uid, judgements in usable.items():
        item = items[uid]
        nodes = [answers.setdefault((item.prompt.id, c.text), len(answers)) for c in item.completions]
        count = len(nodes)
        for i, j in combinations(range(count), 2):
            pairs.append((nodes[i], nodes[j]))
            item_of.append(uid)
            for judgement in judgements:
                annotator_index = annotators.setdefault(judgement.annotator, len(annotators))
                weight = weights.get(judgement.annotator, 1.0) * 2 / count
                for outcome, shown, share in votes_on_pair(judgement, i, j):
                    rows.append((nodes[i], nodes[j], outcome, annotator_index, shown, weight * share, share))
                    pair_of.append(len(pairs) - 1)
    columns = list(zip(*rows, strict=True)) if rows else [()] * 7
    first, second, outcome, annotator = (np.array(c, dtype=np.int64) for c in columns[:4])
    shown, weight, shares = (np.array(c, dtype=np.float64) for c in columns[4:])
    votes = Votes(
        first=first,
        second=second,
        outcome=outcome,
        annotator=annotator,
        shown=shown,
        weight=weight,
        answers=len(answers),
        annotators=len(annotators),
    )
    return _Table(votes=votes, share=shares, names=list(annotators), item_of=item_of, pair_of=pair_of, pairs=pairs)


def _label_by_scores(
    items: Mapping[str, Comparison], table: _Table, model: TieModel, habits: tuple[Habit, ...]
) -> ModelLabels:
    first, second = np.array(table.pairs, dtype=np.int64).T
    fit = fit_comparisons(table.votes, model=model, habits=habits, pairs=(first, second))
    mean = fit.parameters.score[first] - fit.parameters.score[second]
    soft_labels = _first_preferred(fit, first, second)
    label_weights = np.clip(1 - fit.pair_variance / (2 * fit.deviations["score"] ** 2), 0, 1)
    labels: dict[str, Label] = {}
    for pair_indices in _pairs_by_item(table.item_of):
        item = items[table.item_of[pair_indices[0]]]
        count = len(item.completions)
        # each later answer's difference from the first; pairs (0, 1) … (0, K − 1) come first
        scores = [0.0, *(-float(mean[p]) for p in pair_indices[: count - 1])]
        labels[item.id] = Label(
            ranks=_ranks(scores, TIE_TOLERANCE),
            probability=float(soft_labels[pair_indices[0]]) if count == 2 else None,
            weight=float(label_weights[pair_indices].mean()),
        )
    return ModelLabels(labels=labels, habits=_habits(table, fit), notes=_notes(table, soft_labels, len(table.names)))


def _first_preferred(fit: ComparisonFit, first: Ints, second: Ints) -> Floats:
    """P(the first answer wins, given a winner) of pairs for the average annotator, without position bias."""
    parameters = Parameters(
        score=fit.parameters.score, skill=np.ones(1), tie=np.array([fit.common_tie]), position=np.zeros(1)
    )
    return _given_winner(
        vote_probabilities(
            fit.model, _single_votes(first, second, len(fit.parameters.score)), parameters, fit.pair_variance
        )
    )


def _earlier_preferred(model: TieModel, tau: float, position: float) -> float:
    """P(the answer shown earlier wins, given a winner) between equal answers."""
    parameters = Parameters(score=np.zeros(2), skill=np.ones(1), tie=np.array([tau]), position=np.array([position]))
    pair = _single_votes(np.array([0]), np.array([1]), 2)
    return float(_given_winner(vote_probabilities(model, pair, parameters))[0])


def _single_votes(first: Ints, second: Ints, answers: int) -> Votes:
    """A vote on each pair by one annotator, who is shown the first answer earlier; the outcomes are placeholders."""
    zeros = np.zeros(len(first), dtype=np.int64)
    ones = np.ones(len(first))
    return Votes(
        first=first,
        second=second,
        outcome=zeros,
        annotator=zeros,
        shown=ones,
        weight=ones,
        answers=answers,
        annotators=1,
    )


def _given_winner(outcomes: Floats) -> Floats:
    return outcomes[:, FIRST] / (outcomes[:, FIRST] + outcomes[:, SECOND])


def _pairs_by_item(item_of: Sequence[str]) -> list[list[int]]:
    """Indices of each item's pairs; the pairs of one item follow each other."""
    groups: dict[str, list[int]] = {}
    for place, uid in enumerate(item_of):
        groups.setdefault(uid, []).append(place)
    return list(groups.values())


def _ranks(scores: Sequence[float], level: float) -> tuple[int, ...]:
    """Ranks by score; neighbours closer than ``level`` share a rank."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    ranks = [0] * len(scores)
    for before, after in pairwise(order):
        ranks[after] = ranks[before] + (scores[before] - scores[after] > level)
    return tuple(ranks)


def _habits(table: _Table, fit: ComparisonFit) -> tuple[Habits, ...]:
    judgement_counts = _judgement_counts(table)
    parameters = fit.parameters

    def rate(tau: float) -> float:
        return _tie_rate(fit.model, tau)

    rows: list[Habits] = []
    for a, name in enumerate(table.names):
        n = judgement_counts[a]
        tie, tie_half_width = float(parameters.tie[a]), Z * float(fit.tie_deviation[a])
        position, position_half_width = float(parameters.position[a]), Z * float(fit.position_deviation[a])
        skill, skill_half_width = float(parameters.skill[a]), Z * float(fit.skill_deviation[a])
        reason = "the same for all annotators"
        rows.append(
            Habits(
                annotator=name,
                votes=n,
                skill=_estimate(skill, skill - skill_half_width, skill + skill_half_width, n, reason),
                ties=_estimate(rate(tie), rate(tie - tie_half_width), rate(tie + tie_half_width), n, reason),
                position=_estimate(
                    _earlier_preferred(fit.model, tie, position),
                    _earlier_preferred(fit.model, tie, position - position_half_width),
                    _earlier_preferred(fit.model, tie, position + position_half_width),
                    n,
                    reason,
                ),
            )
        )
    return tuple(sorted(rows, key=lambda h: -(h.skill.value or 0.0)))


def _estimate(value: float, low: float, high: float, n: int, reason: str) -> Estimate:
    if low == high:
        return Estimate(value=value, n=n, reason=reason)
    return Estimate(value=value, low=low, high=high, n=n)


def _tie_rate(model: TieModel, tau: float) -> float:
    """P(tie) between equals: ν/(2 + ν), or tanh(η/2)."""
    return math.exp(tau) / (2 + math.exp(tau)) if model == "davidson" else math.tanh(math.exp(tau) / 2)


def _judgement_counts(table: _Table) -> list[int]:
    """Judgements of pairs by annotator; the votes of a judgement with a probability count as one."""
    totals = np.bincount(table.votes.annotator, weights=table.share, minlength=len(table.names))
    return [round(float(total)) for total in totals]


def _notes(table: _Table, soft_labels: Floats, annotators: int) -> tuple[str, ...]:
    notes: list[str] = []
    if annotators == 1:
        notes.append("one annotator: nothing tells their habits from the answers, so they are taken at their word")
    if bool((np.abs(soft_labels - 0.5) < UNDECIDED_MARGIN).all()):
        notes.append(
            f"the judgements contradict each other or are ties: every soft label of {len(table.pairs)} pairs is within "
            f"{UNDECIDED_MARGIN} of one half"
        )
    return tuple(notes)


def _label_by_dawid_skene(items: Mapping[str, Comparison], table: _Table) -> ModelLabels:
    votes, pairs = table.votes, len(table.pairs)
    pair = np.array(table.pair_of, dtype=np.int64)
    swapped = 2 - votes.outcome  # the same votes with the pair's answers in the other order
    fit = dawid_skene(
        np.concatenate([pair, pair + pairs]),
        np.concatenate([votes.annotator, votes.annotator]),
        np.concatenate([votes.outcome, swapped]),
        classes=3,
        weight=np.concatenate([votes.weight, votes.weight]),
        shrinkage=2 * SHRINKAGE,  # each vote is there twice
    )
    p = fit.probability[:pairs]
    soft_labels = p[:, FIRST] + p[:, TIE] / 2
    labels: dict[str, Label] = {}
    for pair_indices in _pairs_by_item(table.item_of):
        item = items[table.item_of[pair_indices[0]]]
        count = len(item.completions)
        borda_scores = [0.0] * count
        for pair_index, (i, j) in zip(pair_indices, combinations(range(count), 2), strict=True):
            borda_scores[i] += float(soft_labels[pair_index])
            borda_scores[j] += 1 - float(soft_labels[pair_index])
        labels[item.id] = Label(
            ranks=_ranks(borda_scores, TIE_TOLERANCE),
            probability=float(soft_labels[pair_indices[0]]) if count == 2 else None,
            weight=1.0,
        )
    notes = _notes(table, soft_labels, len(table.names))
    return ModelLabels(labels=labels, habits=_confusion_habits(table, fit), notes=notes)


def _confusion_habits(table: _Table, fit: DawidSkene) -> tuple[Habits, ...]:
    rows: list[Habits] = []
    votes, judgement_counts = table.votes, _judgement_counts(table)
    for a, name in enumerate(table.names):
        mask, n = votes.annotator == a, judgement_counts[a]
        is_tie = mask & (votes.outcome == TIE)
        earlier_won = mask & ~is_tie & ((votes.outcome == FIRST) == (votes.shown > 0))
        ties = round(float(table.share[is_tie].sum()))
        position = Estimate(reason="no winner was chosen")
        if n > ties:
            position = _share(min(float(table.share[earlier_won].sum()), n - ties), n - ties)
        # Wilson's interval would treat the estimated true labels as known: it covered 82 % instead of 95 %.
        skill = Estimate(value=float(fit.accuracy[a]), n=n, reason="no interval: the true labels are estimated too")
        rows.append(Habits(annotator=name, votes=n, skill=skill, ties=_share(ties, n), position=position))
    return tuple(sorted(rows, key=lambda h: -(h.skill.value or 0.0)))


def _share(successes: float, n: int) -> Estimate:
    low, high = wilson_interval(successes, n)
    return Estimate(value=successes / n, low=low, high=high, n=n)
