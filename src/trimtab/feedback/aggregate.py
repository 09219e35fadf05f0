"""Combines several annotators' judgements of an item into one training preference, which keeps their ids.

Answers are ordered by weighted Borda score: for each judgement, the share of the other answers
that an answer beat (a tie counts half), averaged over judgements by annotator weight. For two
answers that is the weighted majority. For more it is the order of the mean rank, which, unlike the
pairwise majority, has no cycles. Other methods fit a model of all judgements together
(:mod:`trimtab.feedback.model_labels`).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.errors import ConfigError, install_hint
from trimtab.feedback.votes import (
    canonical_ranks,
    counting_judgements,
    leave_one_out,
    pair_votes,
    signed_strength,
    usable_judgements,
)
from trimtab.records import Comparison, Judgement, Preference
from trimtab.records.types import Source

if TYPE_CHECKING:
    from trimtab.feedback.model_labels import Habits, Label, ModelLabels

MIN_WEIGHT = 0.01
"""Smallest weight of a preference, for which the votes carry no information; weights must be above 0."""

_LEAST_TRUSTED_FIRST: tuple[Source, ...] = ("simulated", "ai", "imported", "human")


class AggregateConfig(Config):
    """How judgements become preferences."""

    criterion: str = "overall"
    """Criterion whose judgements are used; the others are counted as dropped."""
    method: Literal["majority", "dawid_skene", "davidson", "rao_kupper"] = "majority"
    """``majority``: the weighted votes of each item separately. The others fit all judgements together. ``dawid_skene``
    estimates a true label for each pair and each annotator's errors; ``davidson`` and ``rao_kupper`` estimate a score
    for each answer and each annotator's habits, with ties as a third outcome."""
    habits: tuple[Literal["tie", "skill", "position"], ...] = ("tie", "skill", "position")
    """For ``davidson`` and ``rao_kupper``: what differs between annotators: how easily they see a tie, how strongly a
    difference affects them, how much they favour the answer shown first. []: all annotators are alike."""
    weighting: Literal["equal", "agreement"] = "equal"
    """For ``majority``. ``equal``: every annotator has weight 1; ``agreement``: weights by
    :func:`reliability_weights`."""
    smoothing: float = Field(default=0.0, ge=0.0)
    """For ``majority``: votes added to the soft label of a pair, half to each answer; with 1, one vote gives .75, with
    0 it gives 1."""
    margin: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Margin of the strongest preference, in reward units. A pair's ``margin`` is this times its mean strength; the
    reward model learns to rate the better answer higher by the margin. 0: no margins."""
    keep_tied: bool = False
    """True: keep items whose answers all tie, with equal ranks; False: drop and count them, unless they have a soft
    label other than one half."""
    labels: Literal["soft", "hard"] = "soft"
    """``soft``: a preference between two answers has the probability that the first is better. ``hard``: it has only
    ranks, for methods that take no soft labels, and for reward models that learn from ties (with ``keep_tied``)."""

    @model_validator(mode="after")
    def _settings_of_the_method(self) -> Self:
        if self.method != "majority" and (self.weighting != "equal" or self.smoothing):
            raise ValueError(
                f"weighting and smoothing are for method 'majority'; {self.method!r} estimates both, so leave them out"
            )
        fitted = self.method in ("davidson", "rao_kupper")
        if not fitted and self.habits != type(self).model_fields["habits"].default:
            raise ValueError(
                f"habits is {list(self.habits)} and method {self.method!r}, which does not use it; leave habits out, "
                "or set method: davidson or rao_kupper"
            )
        if self.labels == "hard" and self.smoothing:
            raise ValueError(
                f"smoothing is {self.smoothing:g} and labels 'hard': smoothing changes soft labels only; leave one out"
            )
        if len(set(self.habits)) != len(self.habits):
            raise ValueError(f"habits {list(self.habits)}: each can be named once")
        return self


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """Preferences, and counts of everything that was dropped."""

    preferences: tuple[Preference, ...]
    """One preference for each usable item, in the order of the items."""
    dropped: dict[str, int]
    """Number of items without a preference, by reason; together with the preferences, all items."""
    dropped_judgements: dict[str, int]
    """Number of judgements used for no preference, by reason; together with the used ones, all judgements."""
    weights: dict[str, float]
    """The weight each annotator of a usable judgement had."""
    habits: "tuple[Habits, ...]" = ()
    """Each annotator's habits in the fitted model; empty for ``majority``."""
    notes: tuple[str, ...] = ()
    """Notes for readers about the fitted model."""


def aggregate(
    items: Sequence[Comparison],
    judgements: Sequence[Judgement],
    *,
    config: AggregateConfig | None = None,
    weights: Mapping[str, float] | None = None,
) -> Aggregated:
    """Combine all judgements of each item into one preference.

    A preference has its item's id; its ``source`` is that of the least trusted of its judgements,
    in the order simulated, ai, imported, human: it is "human" only if every label was.
    Equal scores are ties. For two answers ``probability`` is the weighted share that prefers the
    first, ties counting half: p = (W₁ + s/2) / (W + s) with the smoothing s. A judgement with a
    probability (an AI judge's) counts as that share of a vote. If its ranks are tied nevertheless
    (its two orders contradict each other), it is a tie in the ranks here too, and the share counts only
    in ``probability``.

    With a ``method`` other than ``majority``, ranks and probability are the model's
    (:func:`trimtab.feedback.model_labels.label_by_model`), and ``weight`` is the share of the prior variance that the
    votes removed: a pair with one vote of a careless annotator counts less than a pair with five votes.

    For two answers with a winner, ``margin`` is η · max(0, Σ w v / Σ w) over the judgements with a strength of
    preference: v is the strength, negative for the loser, 0 for a tie, and η is ``config.margin``. An adjudicator's
    judgement of an item replaces those of the annotators.

    Args:
        items: the judged items.
        judgements: any number, of any items, in any order.
        config: defaults to ``AggregateConfig()``.
        weights: weight by annotator, 1 if missing, 0 to leave one out; replaces ``config.weighting``.

    Raises:
        ConfigError: a weight is negative or not finite, all rankings are by other criteria, or the method needs a
            package that is not installed.
    """
    config = config or AggregateConfig()
    usable, refused = counting_judgements(items, judgements, config.criterion)
    by_annotator = _annotator_weights(usable, config, weights)
    counted = {uid: [j for j in js if by_annotator[j.annotator] > 0] for uid, js in usable.items()}
    counted = {uid: js for uid, js in counted.items() if js}
    fitted = _fit(items, counted, by_annotator, config) if config.method != "majority" and counted else None
    preferences: dict[str, Preference] = {}
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            dropped["item id already taken"] += 1
            continue
        seen.add(item.id)
        judgements_of_item = counted.get(item.id, [])
        refused["annotator has weight 0"] += len(usable.get(item.id, [])) - len(judgements_of_item)
        if not judgements_of_item:
            dropped["no usable judgement"] += 1
            continue
        item_weights = [by_annotator[j.annotator] for j in judgements_of_item]
        label = None if fitted is None else fitted.labels[item.id]
        preference = _combine(item, judgements_of_item, item_weights, config, label)
        if config.keep_tied or _prefers_one(preference):
            preferences[item.id] = preference
        else:
            dropped["all answers tied"] += 1
            refused["item dropped: all answers tied"] += len(judgements_of_item)
    return Aggregated(
        preferences=tuple(preferences.values()),
        dropped=dict(dropped),
        dropped_judgements=dict(+refused),
        weights=by_annotator,
        habits=() if fitted is None else fitted.habits,
        notes=() if fitted is None else fitted.notes,
    )


def _annotator_weights(
    usable: Mapping[str, Sequence[Judgement]], config: AggregateConfig, weights: Mapping[str, float] | None
) -> dict[str, float]:
    """The weight of each annotator of a usable judgement: given, by agreement, or 1.

    Raises:
        ConfigError: a weight is negative or not finite.
    """
    if weights is None:
        weights = _agreement_weights(usable) if config.weighting == "agreement" else {}
    annotators = sorted({j.annotator for judgements_of_item in usable.values() for j in judgements_of_item})
    by_annotator = {annotator: weights.get(annotator, 1.0) for annotator in annotators}
    for annotator, weight in by_annotator.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"weight {weight!r} of annotator {annotator!r}: must be a number, 0 or more")
    return by_annotator


def _prefers_one(preference: Preference) -> bool:
    """True: the ranks or the probability put one answer above another."""
    p = preference.probability
    return max(preference.ranks) > 0 or (p is not None and not math.isclose(p, 0.5, abs_tol=1e-9))


def _fit(
    items: Sequence[Comparison],
    usable: Mapping[str, Sequence[Judgement]],
    weights: Mapping[str, float],
    config: AggregateConfig,
) -> "ModelLabels":
    """Labels from the model that the configuration names."""
    assert config.method != "majority"
    try:
        from trimtab.feedback.model_labels import label_by_model
    except ImportError as error:
        raise ConfigError(
            f"label.aggregate.method {config.method!r} needs {error.name}, which is not installed; "
            f"{install_hint('web')}"
        ) from error
    items_by_id: dict[str, Comparison] = {}
    for item in items:
        items_by_id.setdefault(item.id, item)
    return label_by_model(items_by_id, usable, method=config.method, habits=config.habits, weights=weights)


def reliability_weights(
    items: Sequence[Comparison], judgements: Sequence[Judgement], *, criterion: str = "overall"
) -> dict[str, float]:
    """Weight annotators by how often they agree with the others; the mean weight is 1.

    An annotator right with probability p agrees with a reference right with probability q at the
    rate a = pq + (1−p)(1−q), so 2a − 1 = (2p − 1)(2q − 1): over a shared reference, 2a − 1 is in
    proportion to 2p − 1, the small-signal form of the optimal log-odds weight. The reference is
    the net vote of the others (leave one out); a is shrunk to the common rate as by ten votes,
    so few votes give a weight near 1. The weight is at least .05 before scaling.
    Without overlap, or with no agreement beyond chance, all weights are 1.
    """
    return _agreement_weights(usable_judgements(items, judgements, criterion)[0])


def _agreement_weights(usable: Mapping[str, Sequence[Judgement]]) -> dict[str, float]:
    hits: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for _, _, _, votes in pair_votes(usable):
        for annotator, hit in leave_one_out(votes).items():
            hits[annotator] += hit
            counts[annotator] += 1
    annotators = sorted({j.annotator for judgements in usable.values() for j in judgements})
    common_rate = sum(hits.values()) / max(1, sum(counts.values()))
    if common_rate <= 0.5:
        return dict.fromkeys(annotators, 1.0)
    rates = {a: (hits[a] + 10 * common_rate) / (counts[a] + 10) for a in annotators}
    raw = {a: max(0.05, 2 * rate - 1) for a, rate in rates.items()}
    mean = sum(raw.values()) / len(raw)
    return {a: w / mean for a, w in raw.items()}


def _combine(
    item: Comparison,
    judgements: Sequence[Judgement],
    weights: Sequence[float],
    config: AggregateConfig,
    label: "Label | None",
) -> Preference:
    """One preference, with the model's label or, if there is none, the label of the item's votes."""
    if label is None:
        ranks, soft = _majority(item, judgements, weights, config)
    else:
        ranks, soft = label.ranks, label.probability
    if config.labels == "hard":
        soft = None
    return Preference(
        id=item.id,
        prompt=item.prompt,
        completions=item.completions,
        ranks=ranks,
        criterion=config.criterion,
        probability=soft,
        margin=_margin(ranks, judgements, weights, config.margin),
        weight=1.0 if label is None else max(label.weight, MIN_WEIGHT),
        metadata=item.metadata,
        judgements=tuple(j.id for j in judgements),
        source=next(source for source in _LEAST_TRUSTED_FIRST if any(j.source == source for j in judgements)),
    )


def _majority(
    item: Comparison, judgements: Sequence[Judgement], weights: Sequence[float], config: AggregateConfig
) -> tuple[tuple[int, ...], float | None]:
    """Ranks by weighted Borda score, and the soft label of two answers."""
    total = math.fsum(weights)
    count = len(item.completions)

    def weighted_sums(shares: Sequence[Sequence[float]]) -> list[float]:
        return [math.fsum(w * b[i] for w, b in zip(weights, shares, strict=True)) for i in range(count)]

    rank_shares = [_borda_shares(canonical_ranks(j)) for j in judgements]
    soft_shares = [
        b if j.probability is None else _win_probabilities(j) for j, b in zip(judgements, rank_shares, strict=True)
    ]
    scores = weighted_sums(
        [b if set(j.ranks or ()) == {0} else s for j, b, s in zip(judgements, rank_shares, soft_shares, strict=True)]
    )
    levels = sorted({round(s / total, 9) for s in scores}, reverse=True)
    soft = (weighted_sums(soft_shares)[0] + config.smoothing / 2) / (total + config.smoothing) if count == 2 else None
    return tuple(levels.index(round(s / total, 9)) for s in scores), soft


def _margin(
    ranks: Sequence[int], judgements: Sequence[Judgement], weights: Sequence[float], scale: float
) -> float | None:
    """The mean strength in favour of the winner of two answers, in reward units; None: no strength was given."""
    if len(ranks) != 2 or ranks[0] == ranks[1] or not scale or all(j.strength is None for j in judgements):
        return None
    strengths = [(w, v) for w, j in zip(weights, judgements, strict=True) if (v := signed_strength(j)) is not None]
    total = math.fsum(w for w, _ in strengths)
    if not total:
        return None
    net = math.fsum(w * v for w, v in strengths) / total
    return round(scale * max(0.0, net if ranks[0] < ranks[1] else -net), 6)


def _win_probabilities(judgement: Judgement) -> list[float]:
    """P(better) of each of two answers, from a judgement with a probability."""
    assert judgement.probability is not None
    by_place = (judgement.probability, 1 - judgement.probability)
    return [by_place[judgement.shown_order.index(i)] for i in (0, 1)]


def _borda_shares(ranks: Sequence[int]) -> list[float]:
    """For each answer, the share of the others that it beats; a tie counts half."""
    others = len(ranks) - 1
    return [(sum(r < s for s in ranks) + (sum(r == s for s in ranks) - 1) / 2) / others for r in ranks]
