"""The detector of requests: TF-IDF and linear probes, calibrated and averaged.

Legend: N texts, V views of one text, z_k = log-odds of member k. A member's score of a view is the highest over the
view's windows. The detector's score of a view is the calibrated mean of the calibrated z_k. Its score of a text is the
highest over the text's views.

A text is blocked if its score exceeds the threshold. At most a given share of harmless training texts, the budget, may
exceed it. That share is counted on scores by members that were fitted without the text's group.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from trimtab.errors import DataError
from trimtab.guard.activations import POOLINGS
from trimtab.guard.lexical import Lexical
from trimtab.guard.normalise import View, readings, windows
from trimtab.guard.probe import Probe
from trimtab.guard.scores import auroc, folds_of, platt, threshold_for

FOLDS = 5

Reader = Callable[[Sequence[str]], list[Any]]
"""Pooled states of texts, one ``[1 + W, P, L, H]`` tensor each (:func:`~trimtab.guard.activations.pooled_texts`)."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A text in the form that members read."""

    views: tuple[View, ...]
    """Its readings, the raw text first."""
    states: tuple[np.ndarray, ...] | None = None
    """Pooled states of each view; None: there are no probes."""
    unread: str = ""
    """Why part of the text was not read; empty: all of it was read."""


def prepare(texts: Sequence[str], reader: Reader | None = None) -> list[Prepared]:
    """Views of texts, with their pooled states if there is a reader; equal views are read once."""
    by_text = [readings(text) for text in texts]
    if reader is None:
        return [Prepared(tuple(v), unread=unread) for v, unread in by_text]
    names = list(dict.fromkeys(view.text for v, _ in by_text for view in v))
    states = {name: tensor.numpy() for name, tensor in zip(names, reader(names), strict=True)}
    return [Prepared(tuple(v), tuple(states[view.text] for view in v), unread) for v, unread in by_text]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Which pooled state a probe reads."""

    pooling: int
    """Index in :data:`~trimtab.guard.activations.POOLINGS`."""
    layer: int
    """Index among the layers that are read."""

    def of(self, states: np.ndarray) -> np.ndarray:
        """``[1 + W, P, L, H]`` → ``[1 + W, H]``."""
        return states[:, self.pooling, self.layer]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One detector of the ensemble."""

    name: str
    """``lexical``, or ``probe`` with its pooling."""
    model: Lexical | Probe
    """The classifier; it gives uncalibrated log-odds z."""
    slope: float = 1.0
    """Calibration: log-odds = slope · z + offset."""
    offset: float = 0.0
    """See ``slope``."""
    place: Place | None = None
    """The state that a probe reads; None: the member reads text."""

    def view_logits(self, texts: Sequence[Prepared]) -> list[np.ndarray]:
        """Uncalibrated log-odds of each view of each text, the highest over windows: N arrays ``[V]``."""
        if isinstance(self.model, Lexical):
            pieces = [[[v.text, *(w for w in windows(v.text) if w != v.text)] for v in t.views] for t in texts]
            flat = self.model.logits([piece for text in pieces for view in text for piece in view])
            bounds = np.cumsum([0, *(len(view) for text in pieces for view in text)])
        else:
            assert self.place is not None
            parts = [self.place.of(s) for t in texts for s in _states(t)]
            flat = self.model.logits(np.concatenate(parts))
            bounds = np.cumsum([0, *map(len, parts)])
        highest = np.array([flat[a:b].max() for a, b in pairwise(bounds)])
        ends = np.cumsum([0, *(len(t.views) for t in texts)])
        return [highest[a:b] for a, b in pairwise(ends)]

    def calibrated(self, texts: Sequence[Prepared]) -> list[np.ndarray]:
        """Calibrated log-odds of each view: N arrays ``[V]``."""
        return [self.slope * z + self.offset for z in self.view_logits(texts)]


def _states(text: Prepared) -> tuple[np.ndarray, ...]:
    if text.states is None:
        raise DataError("the guard has probes and was given no states; give it the model that it was trained with")
    return text.states


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A detector's score of one text."""

    value: float
    """Calibrated probability that the text is restricted, for a prior of one half."""
    view: str
    """The view with the highest score."""
    members: dict[str, float]
    """Calibrated log-odds of each member on that view."""


@dataclass(frozen=True, kw_only=True)
class Detector:
    """Members, the calibration of their mean, and the threshold."""

    members: tuple[Member, ...]
    """At least one."""
    slope: float
    """Calibration of the members' mean: log-odds = slope · mean + offset."""
    offset: float
    """See ``slope``."""
    threshold: float
    """A text with a higher score is blocked."""

    def tables(self, texts: Sequence[Prepared]) -> list[np.ndarray]:
        """Calibrated log-odds of each member (K) on each view: N arrays ``[K, V]``."""
        if not texts:
            return []
        by_member = [member.calibrated(texts) for member in self.members]
        return [np.stack([values[i] for values in by_member]) for i in range(len(texts))]

    def log_odds(self, table: np.ndarray) -> np.ndarray:
        """Calibrated log-odds of each view: ``[K, V]`` → ``[V]``."""
        return self.slope * table.mean(axis=0) + self.offset

    def score(self, text: Prepared, table: np.ndarray) -> Score:
        """The score of a text from its table."""
        z = self.log_odds(table)
        best = int(table.mean(axis=0).argmax())
        members = {m.name: float(x) for m, x in zip(self.members, table[:, best], strict=True)}
        return Score(value=sigmoid(float(z[best])), view=text.views[best].name, members=members)

    def scores(self, texts: Sequence[Prepared]) -> list[Score]:
        """The score of each text."""
        return [self.score(text, table) for text, table in zip(texts, self.tables(texts), strict=True)]

    def values(self, texts: Sequence[Prepared]) -> np.ndarray:
        """The score of each text as an array, ``[N]``."""
        return np.array([score.value for score in self.scores(texts)])


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A detector and its figures on training texts, by members fitted without the text's group."""

    detector: Detector
    """Fitted on all texts."""
    out_of_fold: np.ndarray
    """Score of each training text, ``[N]``."""
    view_odds: list[np.ndarray]
    """Calibrated log-odds of each view of each training text, N arrays ``[V]``."""
    member_scores: dict[str, np.ndarray]
    """Calibrated log-odds of each member, the highest over views, ``[N]`` each."""
    layer_scores: dict[str, list[float]]
    """By pooling: AUROC of a probe at each layer that is read."""


def fit_detector(
    texts: Sequence[Prepared],
    labels: Sequence[int],
    groups: Sequence[Hashable],
    *,
    budget: float,
    poolings: Sequence[str] = ("mean", "max"),
    folds: int = FOLDS,
    layer: int | None = None,
    seed: int = 0,
) -> Fitted:
    """Fit members, choose the layer of the probes, calibrate and set the threshold.

    Args:
        texts: training texts; probes are fitted if they have states.
        labels: 1: restricted, 0: not.
        groups: group of each text; all texts of a group are in the same fold.
        budget: largest share of harmless texts whose score may exceed the threshold.
        poolings: poolings of the probes, names in :data:`~trimtab.guard.activations.POOLINGS`.
        folds: number of folds of the cross-fitting.
        layer: index of the probes' layer; None: the one with the highest AUROC out of fold.
        seed: seed of the folds.

    Raises:
        DataError: one label is missing in a fold, or there are too few harmless texts for the budget.
    """
    y = np.asarray(labels)
    fold = folds_of(groups, min(folds, len(set(groups))), seed)
    parts = [(fold != f, fold == f) for f in range(fold.max() + 1)]
    if len(parts) < 2 or any(len(set(y[train])) < 2 for train, _ in parts):
        raise DataError(
            f"a guard needs restricted and harmless texts in at least two groups each; there are {int(y.sum())} "
            f"restricted and {int((1 - y).sum())} harmless texts in {len(set(groups))} groups; give more"
        )
    places, layer_scores = _places(texts, y, parts, poolings, layer)
    kinds: list[tuple[str, Place | None]] = [("lexical", None)]
    kinds += [(f"probe {POOLINGS[p.pooling]}", p) for p in places]
    members, held_out = [], []
    for name, place in kinds:
        raw: list[np.ndarray] = [np.zeros(0)] * len(texts)
        for train, test in parts:
            member = _fit_member(name, place, [t for t, keep in zip(texts, train, strict=True) if keep], y[train])
            rows = np.flatnonzero(test).tolist()
            for i, z in zip(rows, member.view_logits([texts[i] for i in rows]), strict=True):
                raw[i] = z
        slope, offset = platt(np.array([z[0] for z in raw]), y)  # fitted on raw texts; other views exist for disguises
        fitted = _fit_member(name, place, texts, y)
        members.append(Member(name=name, model=fitted.model, slope=slope, offset=offset, place=place))
        held_out.append([slope * z + offset for z in raw])
    means = [np.mean([of_member[i] for of_member in held_out], axis=0) for i in range(len(texts))]
    slope, offset = platt(np.array([z.max() for z in means]), y)
    view_odds = [slope * z + offset for z in means]
    out_of_fold = np.array([sigmoid(float(z.max())) for z in view_odds])
    threshold = threshold_for(
        out_of_fold[y == 0].tolist(), budget,
        subjects=len({group for group, label in zip(groups, labels, strict=True) if not label}),
    )  # fmt: skip
    return Fitted(
        detector=Detector(members=tuple(members), slope=slope, offset=offset, threshold=threshold),
        out_of_fold=out_of_fold,
        view_odds=view_odds,
        member_scores={
            m.name: np.array([z.max() for z in z_of]) for m, z_of in zip(members, held_out, strict=True)
        },
        layer_scores=layer_scores,
    )  # fmt: skip


def _fit_member(name: str, place: Place | None, texts: Sequence[Prepared], y: np.ndarray) -> Member:
    if place is None:
        return Member(name=name, model=Lexical.fit([t.views[0].text for t in texts], y.tolist()))
    states = np.stack([place.of(_states(t)[0])[0] for t in texts])
    return Member(name=name, model=Probe.fit(states, y), place=place)


def _places(
    texts: Sequence[Prepared],
    y: np.ndarray,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    poolings: Sequence[str],
    layer: int | None,
) -> tuple[list[Place], dict[str, list[float]]]:
    """The probes' places: one layer for all poolings, with the highest mean AUROC out of fold."""
    if texts[0].states is None:
        return [], {}
    raw = np.stack([_states(t)[0][0] for t in texts]).astype(np.float32)  # [N, P, L, H]
    indices = [POOLINGS.index(name) for name in poolings]
    table: dict[str, list[float]] = {}
    if layer is None:
        for p in indices:
            table[POOLINGS[p]] = []
            for n in range(raw.shape[2]):
                z = np.zeros(len(y))
                for train, test in parts:
                    z[test] = Probe.fit(raw[train, p, n], y[train]).logits(raw[test, p, n])
                table[POOLINGS[p]].append(auroc(z.tolist(), y.tolist()))
        layer = int(np.mean(list(table.values()), axis=0).argmax())
    return [Place(pooling=p, layer=layer) for p in indices], table


def sigmoid(x: float) -> float:
    """1 / (1 + e^−x) without overflow."""
    return float(1 / (1 + np.exp(-x))) if x >= 0 else float(np.exp(x) / (1 + np.exp(x)))
