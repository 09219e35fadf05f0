"""What to label next: arms choose items, each with a known propensity.

π_i = min(1, c · Σ_a s_a w_a(i)) with Σ_i π_i = n: the arms a have shares s_a of the n labels and weights w_a(i) that
sum to 1. Items are drawn with exactly these inclusion probabilities (Madow's systematic sampling in random order,
Annals of Mathematical Statistics 20 (1949), 333–354). The random arm has its own share, so every item can be chosen and
estimates from the labels can be corrected with 1/π (:func:`corrected_share`). A hash assigns prompts to the test set
before any arm reads them; items of the test set are drawn at random.

This module imports NumPy and SciPy, so it is imported where it is used and not with the package.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from trimtab.config import Config
from trimtab.errors import ConfigError, DataError
from trimtab.feedback.comparison_model import Floats, Ints
from trimtab.feedback.intervals import Estimate, weighted_share, wilson_interval
from trimtab.records import Comparison, Record

Arm = Literal["random", "margin", "variance", "design"]
"""``random``: all items equally; ``margin``: items with the smallest gap between the two best answers first;
``variance``: items on whose gap the members of an ensemble differ most first; ``design``: a D-optimal design for the
last layer."""

ARMS: tuple[Arm, ...] = ("random", "margin", "variance", "design")
TEST = "test"
"""Name of the test set's arm."""


class AcquisitionConfig(Config):
    """How many items are labelled next, and which arms choose them."""

    count: int = Field(ge=1)
    """Labels to ask for."""
    test: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Share of the prompts that belong to the test set, and share of the labels that it gets. It is always drawn at
    random, and no label of it is trained on."""
    arms: dict[Arm, float] = Field(default={"random": 1.0}, min_length=1)
    """Share of each arm in the other labels."""

    @model_validator(mode="after")
    def _every_item_has_a_chance(self) -> Self:
        if any(not share > 0 for share in self.arms.values()) or not math.isclose(sum(self.arms.values()), 1.0):
            shares = ", ".join(f"{arm} {share:g}" for arm, share in self.arms.items())
            raise ValueError(f"the shares of the arms are {shares}; they must be above 0 and add up to 1")
        if "random" not in self.arms:
            raise ValueError(
                "the arm random has no share: items that no other arm chooses would have no chance, and nothing that "
                "is estimated from the labels could be corrected; give it a share, for example random=0.25"
            )
        return self


class ItemScores(Record):
    """Scores of an item's answers by one or more reward models."""

    id: str
    """Id of the item."""
    scores: tuple[tuple[float | None, ...], ...] = Field(min_length=1)
    """``scores[m][k]``: reward of answer k by model m, in log-odds of winning; null is a score that is NaN."""
    features: tuple[tuple[float | None, ...], ...] | None = None
    """``features[k]``: input of the last layer for answer k, for the arm ``design``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """An item chosen for labelling."""

    index: int
    """Its place among the items."""
    arm: str
    """The arm that chose it, or ``test``."""
    propensity: float
    """Probability with which it was chosen, among the items of the test set or among all others."""


def read_scores(path: Path, items: Sequence[Comparison]) -> tuple[list[ItemScores | None], Counter[str]]:
    """The scores of each item from JSON lines of :class:`ItemScores`, and counts of unusable rows by reason.

    Raises:
        DataError: the file cannot be read, a line is invalid, or no row matches an item.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); name a file of scores") from None
    answer_counts = {item.id: len(item.completions) for item in items}
    by_id: dict[str, ItemScores] = {}
    dropped: Counter[str] = Counter()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = ItemScores.model_validate(json.loads(line))
        except (ValueError, ValidationError) as error:
            detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "not JSON"
            raise DataError(
                f'{path}:{number}: {detail}; a row is {{"id": item, "scores": [[reward of each answer], …]}}, one list '
                "for each model"
            ) from None
        reason = _unusable(row, answer_counts.get(row.id))
        if reason is None and row.id in by_id:
            reason = "the item has scores already"
        if reason is not None:
            dropped[reason] += 1
        else:
            by_id[row.id] = row
    if not by_id:
        raise DataError(f"{path}: no row has usable scores of one of the {len(items)} items: {dict(dropped)}")
    return [by_id.get(item.id) for item in items], dropped


def _unusable(row: ItemScores, answer_count: int | None) -> str | None:
    """Why scores cannot be used; None: they can be used."""
    if answer_count is None:
        return "no such item"
    if any(len(member) != answer_count for member in row.scores) or (
        row.features and len(row.features) != answer_count
    ):
        return "another number of answers than the item"
    cells = [x for member in (*row.scores, *(row.features or ())) for x in member]
    if any(x is None or not math.isfinite(x) for x in cells):
        return "a score is NaN or infinite"
    return None


def choose_items(
    items: Sequence[Comparison],
    scored: Sequence[ItemScores | None],
    config: AcquisitionConfig,
    *,
    seed: int,
) -> list[Chosen]:
    """Draw the items to label next, in random order, so an annotator who stops early has labelled a random subset.

    Only the random arm and the test set can draw items without scores. If there are too few items, all are chosen.

    Args:
        items: items that can be labelled.
        scored: the scores of each item; None: no scores.
        config: number of labels, and the arms.
        seed: seed of the draw and of the choice of test prompts; rounds with equal seeds share a test set.

    Raises:
        ConfigError: an arm has no scores or features to work with.
    """
    rng = np.random.default_rng(seed)
    in_test = np.array([in_test_set(item.prompt.id, config.test, seed) for item in items], dtype=bool)
    reserve, pool = np.flatnonzero(in_test), np.flatnonzero(~in_test)
    test_count = min(len(reserve), round(config.test * config.count))
    chosen = [
        Chosen(index=int(i), arm=TEST, propensity=test_count / len(reserve))
        for i in (rng.choice(reserve, test_count, replace=False) if test_count else ())
    ]
    count = min(len(pool), config.count - test_count)
    if count:
        pool_scores = [scored[i] for i in pool.tolist()]
        shares = np.array(list(config.arms.values()))
        by_arm = np.array([_weights(arm, pool_scores, max(1, round(s * count))) for arm, s in config.arms.items()])
        mixture = shares[:, None] * by_arm
        propensity = inclusion_probabilities(mixture.sum(0), count)
        for place in systematic_sample(propensity, rng).tolist():
            arm_probabilities = mixture[:, place] / mixture[:, place].sum()
            arm = list(config.arms)[int(rng.choice(len(arm_probabilities), p=arm_probabilities))]
            chosen.append(Chosen(index=int(pool[place]), arm=arm, propensity=float(propensity[place])))
    return [chosen[i] for i in rng.permutation(len(chosen)).tolist()]


def in_test_set(prompt: str, share: float, seed: int) -> bool:
    """True: the prompt is in the test set, by a hash of seed and prompt, whatever the list of items."""
    digest = hashlib.sha256(f"{seed}|test|{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _weights(arm: Arm, scored: Sequence[ItemScores | None], count: int) -> Floats:
    """w_a, ``[N]``, sums to 1; 0 for items without scores, except for ``random``."""
    if arm == "random":
        return arm_weights(arm, np.zeros((len(scored), 1)), count=count)
    scored_indices = [i for i, row in enumerate(scored) if row is not None]
    rows = [row for row in scored if row is not None]
    if not rows:
        raise ConfigError(f"the arm {arm!r} needs the scores of a reward model, and no item has any; give --scores")
    if arm == "variance" and any(len(row.scores) < 2 for row in rows):
        raise ConfigError(
            "the arm 'variance' needs the scores of two models or more; give an ensemble's, or use margin"
        )
    if arm == "design" and any(row.features is None for row in rows):
        raise ConfigError("the arm 'design' needs features beside the scores: what the last layer sees of each answer")
    best_pairs = [_two_best(row) for row in rows]
    gaps = [
        [member[i] - member[j] for member in np.array(r.scores, dtype=float)]
        for r, (i, j) in zip(rows, best_pairs, strict=True)
    ]
    features = None
    if arm == "design":
        features = np.array(
            [np.array(r.features, dtype=float)[[i, j]] for r, (i, j) in zip(rows, best_pairs, strict=True)]
        )
        features = features[:, 0] - features[:, 1]
    weights = np.zeros(len(scored))
    weights[scored_indices] = arm_weights(arm, np.array(gaps), features, count=count)
    return weights


def arm_weights(arm: Arm, gaps: Floats, features: Floats | None = None, *, count: int) -> Floats:
    """w_a, ``[N]``, sums to 1: how an arm divides its labels among items.

    ``margin`` and ``variance`` weight an item by exp(−rank/n), with the rank from 0 and n the arm's number of labels,
    so most of the arm's labels go to the first items, and the scale of the scores does not matter. ``design`` is
    :func:`d_optimal_design`.

    Args:
        arm: the arm.
        gaps: ``[N, M]``, score of the first answer minus that of the second by each model, in log-odds.
        features: ``[N, D]``, difference of the last layer's inputs; for ``design``.
        count: n, the arm's number of labels.
    """
    if arm == "random":
        return np.full(len(gaps), 1 / len(gaps))
    mean = gaps.mean(axis=1)
    if arm == "design":
        assert features is not None
        win_probability = 1 / (1 + np.exp(-np.clip(mean, -30, 30)))
        return d_optimal_design(features, win_probability * (1 - win_probability), count=count)
    stats: Any = import_module("scipy.stats")
    raw = np.exp(-(stats.rankdata(np.abs(mean) if arm == "margin" else -gaps.var(axis=1)) - 1) / count)
    return raw / raw.sum()


def _two_best(row: ItemScores) -> tuple[int, int]:
    """Places of the two answers with the highest mean score."""
    means = np.mean(np.array(row.scores, dtype=float), axis=0)
    first, second = np.argsort(-means, kind="stable")[:2]
    return int(first), int(second)


def d_optimal_design(gaps: Floats, information: Floats, *, count: int, rounds: int = 200) -> Floats:
    """Weights w that maximise log det(I/n + Σ_i w_i v_i x_i x_iᵀ), with Σ w = 1: the D-optimal design of a last layer.

    The Fisher information of a pair whose features differ by x is v x xᵀ with v = p(1 − p). I/n is a standard normal
    prior divided over n labels. Solved by the multiplicative algorithm w_i ← w_i d_i / Σ_j w_j d_j with
    d_i = v_i x_iᵀ M⁻¹ x_i (Silvey, Titterington and Torsney, Communications in Statistics A 7 (1978), 1379–1389).

    Args:
        gaps: ``[N, D]``, x; columns are scaled to spread 1 here.
        information: ``[N]``, v.
        count: n, number of labels.
        rounds: iterations of the algorithm.

    Returns:
        ``[N]``.
    """
    scale: Floats = np.sqrt((gaps**2).mean(axis=0))
    rows = gaps / np.where(scale > 0, scale, 1.0) * np.sqrt(information)[:, None]
    weights = np.full(len(rows), 1 / len(rows))
    prior = np.eye(rows.shape[1]) / count
    for _ in range(rounds):
        inverse = np.linalg.inv(prior + rows.T @ (weights[:, None] * rows))
        gradient = ((rows @ inverse) * rows).sum(axis=1)
        total = float(weights @ gradient)
        if not total > 0:  # no item differs in its features
            return weights
        weights = weights * gradient / total
    return weights / weights.sum()


def inclusion_probabilities(weights: Floats, count: int) -> Floats:
    """π_i = min(1, c·w_i) with Σ π = n, ``[N]``.

    Args:
        weights: ``[N]``, 0 or more.
        count: n, at most the number of weights above 0.

    Raises:
        ConfigError: fewer weights are above 0 than ``count``.
    """
    if int((weights > 0).sum()) < count:
        raise ConfigError(f"{count} labels are to be drawn from {int((weights > 0).sum())} items with a weight above 0")
    certain = np.zeros(len(weights), dtype=bool)
    while True:
        remaining_weight = weights[~certain].sum()
        scaled = np.where(
            certain, 1.0, (count - certain.sum()) * weights / remaining_weight if remaining_weight > 0 else 0.0
        )
        above_one = (scaled > 1) & ~certain
        if not above_one.any():
            return scaled
        certain |= above_one


def systematic_sample(propensity: Floats, rng: np.random.Generator) -> Ints:
    """Places of Σ π items, drawn with exactly these inclusion probabilities (Madow 1949)."""
    order = rng.permutation(len(propensity))
    cumulative: Floats = np.cumsum(propensity[order])
    count = round(float(cumulative[-1]))
    points = (rng.random() + np.arange(count)) * (cumulative[-1] / count)
    places = np.asarray(np.searchsorted(cumulative, points, side="right"), dtype=np.int64)
    return order[np.minimum(places, len(order) - 1)]


def corrected_share(
    name: str, outcomes: Sequence[float], propensities: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """A share of all items, estimated from items that were chosen with unequal probabilities.

    Hájek's Σ x/π / Σ 1/π with a Wilson interval for the effective number of items
    (:func:`~trimtab.feedback.intervals.weighted_share`). Without the correction, an arm that prefers close
    pairs would overstate the share of ties and the errors of the reward model.

    Args:
        name: name of the estimate.
        outcomes: 0 … 1 for each labelled item.
        propensities: π of each.
        clusters: the group of each (its prompt); None: every item is its own group.

    Raises:
        DataError: no outcome, or a propensity that is not in (0, 1].
    """
    if not outcomes or len(outcomes) != len(propensities):
        raise DataError(
            f"{name}: {len(outcomes)} outcomes and {len(propensities)} propensities; give one for each label"
        )
    for propensity in propensities:
        if not 0 < propensity <= 1:
            raise DataError(f"{name}: a propensity is {propensity:g}; expected above 0 and at most 1")
    groups = list(range(len(outcomes))) if clusters is None else clusters
    share, effective = weighted_share(outcomes, groups, [1 / p for p in propensities])
    low, high = wilson_interval(share * effective, effective)
    return Estimate(name=name, value=share, low=low, high=high, n=len(outcomes), reason=f"worth {effective:.1f} items")


def arm_counts(chosen: Sequence[Chosen]) -> Mapping[str, int]:
    """Number of items that each arm chose."""
    return Counter(c.arm for c in chosen)
