"""The second stage of a guard: which texts the first stage escalates to it, and how both decide about them.

Legend: s = score of the first stage (a probability), z_1 = its log-odds for a view of a text, z_2 = calibrated log-odds
of the adapter on the last layer (:mod:`trimtab.guard.last_layer`) for that view.

- s ≤ low or s > high: the first stage decides; the second does not run.
- low < s ≤ high, the *band*: the text is escalated. Views whose own score is above low are read again; the text's score
  is σ(a · (z_1 + z_2) / 2 + b), the highest over those views, and decides at a threshold of its own.

low is exceeded by at most the share ``escalate`` of ordinary training requests; high is the highest score of a harmless
one; the second threshold keeps the budget of the whole guard. All are counted on scores by members and adapters that
were fitted without the text's group.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import DataError
from trimtab.guard.detector import Fitted, Prepared, sigmoid
from trimtab.guard.last_layer import Inputs, LastLayer, fit_last_layer, last_inputs, states_of
from trimtab.guard.scores import auroc, folds_of, platt, threshold_for
from trimtab.models import Backbone

FOLDS = 3
"""Of the cross-fitting; each fold trains an adapter."""

EVEN = 0.5
"""Threshold where the budget would let every escalated harmless text be blocked."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """Which scores of the first stage are escalated, and what share of ordinary requests that was in training."""

    low: float
    """A score up to this one is left to the first stage."""
    high: float
    """So is a score above this one."""
    share: float
    """Share of the counted harmless training requests in the band, by members that did not see them."""
    counted: int
    """How many were counted."""
    on: str
    """Which: ``ordinary`` requests, or ``harmless``: all of them, twins too, because there are too few ordinary
    ones."""

    def holds(self, score: float) -> bool:
        """True: a text with this score is escalated."""
        return self.low < score <= self.high


def band_of(scores: np.ndarray, labels: np.ndarray, ordinary: np.ndarray, escalate: float) -> Band:
    """The widest band with at most the share ``escalate`` of ordinary requests in it.

    Args:
        scores: of the first stage, out of fold, ``[N]``.
        labels: ``[N]``, 1: restricted, 0: not.
        ordinary: ``[N]`` bool, True: an ordinary request. With fewer than 1 / ``escalate`` of them all harmless texts
            are counted; twins resemble restricted texts, so the share of ordinary ones is then expected to be smaller.
        escalate: largest share.

    Raises:
        DataError: fewer than 1 / ``escalate`` harmless texts.
    """
    enough = int(escalate * ordinary.sum() + 1e-9) >= 1
    counted = scores[ordinary] if enough else scores[labels == 0]
    low = threshold_for(counted.tolist(), escalate)
    high = float(scores[labels == 0].max())
    share = float(((counted > low) & (counted <= high)).mean())
    return Band(low=low, high=high, share=share, counted=len(counted), on="ordinary" if enough else "harmless")


def second_threshold(first: np.ndarray, second: np.ndarray, band: Band, threshold: float, budget: float) -> float:
    """The lowest threshold of the second stage at which both stages block at most the budget of harmless texts.

    Args:
        first: scores of all harmless texts in the first stage, ``[N]``.
        second: scores of the escalated ones in both; what stands in the other places is not read.
        band: which are escalated.
        threshold: of the first stage.
        budget: largest share of the N texts that may be blocked.

    Returns:
        a threshold; :data:`EVEN` if no more harmless texts are escalated than may be blocked.

    >>> band = Band(low=0.3, high=0.8, share=0.0, counted=0, on="harmless")
    >>> first, second = np.array([0.1, 0.2, 0.4, 0.5, 0.6]), np.array([0, 0, 0.1, 0.9, 0.2])
    >>> second_threshold(first, second, band, 0.55, 0.2), second_threshold(first, second, band, 0.55, 0.6)
    (0.2, 0.5)
    """
    escalated = (first > band.low) & (first <= band.high)
    allowed = int(budget * len(first) + 1e-9) - int((~escalated & (first > threshold)).sum())
    highest = sorted(second[escalated].tolist(), reverse=True)
    return highest[allowed] if 0 <= allowed < len(highest) else EVEN


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """From log-odds of the adapter to those of both stages."""

    slope: float
    """z_2 = slope · log-odds + offset."""
    offset: float
    """As above."""
    mean_slope: float
    """a of the score."""
    mean_offset: float
    """b of the score."""

    def adapter(self, logits: np.ndarray) -> np.ndarray:
        """z_2, ``[V]`` → ``[V]``."""
        return self.slope * logits + self.offset

    def both(self, z1: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Log-odds of both stages, a · (z_1 + z_2) / 2 + b, ``[V]``; −∞ where ``logits`` is NaN: a view not read."""
        both = self.mean_slope * (z1 + self.adapter(logits)) / 2 + self.mean_offset
        return np.where(np.isnan(logits), -np.inf, both)


@dataclass(frozen=True, kw_only=True)
class SecondScore:
    """What both stages say of an escalated text."""

    value: float
    """Calibrated probability that it is restricted."""
    view: int
    """Index of the view with the highest score."""
    adapter: float
    """z_2 of that view."""


@dataclass(frozen=True, kw_only=True)
class SecondStage:
    """A last layer with its calibration, the band and the threshold."""

    model: LastLayer
    """Gives log-odds, not calibrated."""
    calibration: Calibration
    """Of its log-odds, and of their mean with the first stage's."""
    band: Band
    """Which texts it reads."""
    threshold: float
    """An escalated text with a higher score is blocked."""

    def scores(
        self,
        texts: Sequence[Prepared],
        view_odds: Sequence[np.ndarray],
        backbone: Backbone,
        *,
        adapter: str | None = None,
    ) -> list[SecondScore]:
        """Scores of escalated texts.

        Args:
            texts: escalated ones.
            view_odds: z_1 of each view of each, ``[V]``.
            backbone: the model.
            adapter: the policy's adapter; None: the trunk.

        Raises:
            DataError: the model gave no finite number.
        """
        raw = view_logits(self.model, texts, view_odds, self.band, backbone, adapter)
        result = []
        for z1, logits in zip(view_odds, raw, strict=True):
            both = self.calibration.both(z1, logits)
            best = int(both.argmax())
            z2 = float(self.calibration.adapter(logits)[best])
            result.append(SecondScore(value=sigmoid(float(both[best])), view=best, adapter=z2))
        return result


def view_logits(
    model: LastLayer,
    texts: Sequence[Prepared],
    view_odds: Sequence[np.ndarray],
    band: Band,
    backbone: Backbone,
    adapter: str | None,
) -> list[np.ndarray]:
    """Log-odds by the adapter of each view, not calibrated, N arrays ``[V]``; NaN for views that are not read."""
    read = [[sigmoid(float(z)) > band.low for z in odds] for odds in view_odds]
    names = [v.text for t, keep in zip(texts, read, strict=True) for v, k in zip(t.views, keep, strict=True) if k]
    names = list(dict.fromkeys(names))
    logits = dict(zip(names, model.logits(backbone, names, adapter=adapter).tolist(), strict=True))
    if not np.isfinite(list(logits.values())).all():
        raise DataError("the second stage of the guard computed NaN or infinity; train the guard again on this model")
    return [
        np.array([logits[v.text] if k else np.nan for v, k in zip(t.views, keep, strict=True)])
        for t, keep in zip(texts, read, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class FittedSecond:
    """A second stage and what its training texts say of it, out of fold."""

    stage: SecondStage
    """Fitted on all texts."""
    auroc: dict[str, float]
    """By ``first stage``, ``last layer`` (a linear probe behind it, without adapter), ``adapter`` and ``both``; of all
    training texts, of their raw reading."""
    blocked: dict[str, float]
    """Share of restricted training texts that is blocked, ``first stage`` and ``both``, within the same budget."""


def fit_second(
    backbone: Backbone,
    texts: Sequence[Prepared],
    labels: Sequence[int],
    groups: Sequence[Hashable],
    first: Fitted,
    *,
    ordinary: Sequence[bool],
    budget: float,
    escalate: float,
    adapter: str | None = None,
    seed: int = 0,
) -> FittedSecond:
    """Choose the band, train the adapter, calibrate it and set its threshold.

    Args:
        backbone: the model; none of its weights changes.
        texts: training texts of the first stage.
        labels: 1: restricted, 0: not.
        groups: what must not be on both sides of a fold.
        first: the first stage.
        ordinary: True: an ordinary request, see :func:`trimtab.guard.dataset.ordinary`.
        budget: largest share of harmless texts that may be blocked.
        escalate: largest share of ordinary requests that may be escalated.
        adapter: the policy's adapter; None: the trunk.
        seed: of folds and training.

    Raises:
        DataError: too few harmless texts, or one label is missing in a fold.
        ConfigError: the last layer takes no adapter.
    """
    y, odds = np.asarray(labels), first.view_odds
    band = band_of(first.out_of_fold, y, np.asarray(ordinary), escalate)
    inputs = last_inputs(backbone, [t.views[0].text for t in texts], adapter=adapter)
    escalated = [i for i, score in enumerate(first.out_of_fold) if band.holds(score)]
    raw, plain, again = _out_of_fold(backbone, inputs, texts, y, groups, odds, escalated, band, adapter, seed)
    slope, offset = platt(raw, y)
    z1 = np.array([z.max() for z in odds])
    mean = (z1 + slope * raw + offset) / 2
    mean_slope, mean_offset = platt(mean, y)
    calibration = Calibration(slope=slope, offset=offset, mean_slope=mean_slope, mean_offset=mean_offset)
    second = np.zeros(len(y))
    for i, logits in again.items():
        second[i] = sigmoid(float(calibration.both(odds[i], logits).max()))
    limit = first.detector.threshold
    threshold = second_threshold(first.out_of_fold[y == 0], second[y == 0], band, limit, budget)
    alone = first.out_of_fold > limit
    blocked = np.where(np.isin(np.arange(len(y)), escalated), second > threshold, alone)
    whole = fit_last_layer(backbone, inputs, y, np.ones(len(y), bool), adapter=adapter, seed=seed)
    stage = SecondStage(model=whole, calibration=calibration, band=band, threshold=threshold)
    of = {"first stage": z1, "last layer": plain, "adapter": raw, "both": mean}
    return FittedSecond(
        stage=stage,
        auroc={name: auroc(z.tolist(), y.tolist()) for name, z in of.items()},
        blocked={"first stage": float(alone[y == 1].mean()), "both": float(blocked[y == 1].mean())},
    )


def _out_of_fold(
    backbone: Backbone,
    inputs: Sequence[Inputs],
    texts: Sequence[Prepared],
    y: np.ndarray,
    groups: Sequence[Hashable],
    odds: Sequence[np.ndarray],
    escalated: Sequence[int],
    band: Band,
    adapter: str | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
    """Log-odds by adapters that did not see the text's group.

    Returns:
        of raw texts; the same by linear probes behind the last layer; of the views of escalated texts, as
        :func:`view_logits`.
    """
    fold = folds_of(groups, min(FOLDS, len(set(groups))), seed)
    raw, plain = np.zeros(len(y)), np.zeros(len(y))
    again: dict[int, np.ndarray] = {}
    for f in sorted(set(fold.tolist())):
        test = fold == f
        if len(set(y[~test])) < 2:
            raise DataError(
                f"the second stage needs restricted and harmless texts in {FOLDS} groups each and without one fold "
                "there is only one kind; give more groups (--data), or leave --escalate out"
            )
        probe = fit_last_layer(backbone, inputs, y, ~test, adapter=adapter, epochs=0)
        model = fit_last_layer(backbone, inputs, y, ~test, adapter=adapter, seed=seed)
        for fitted, z in ((probe, plain), (model, raw)):
            z[test] = fitted.head.logits(states_of(backbone, inputs, fitted.lora, adapter=adapter)[test])
        rows = [i for i in escalated if test[i]]
        logits = view_logits(model, [texts[i] for i in rows], [odds[i] for i in rows], band, backbone, adapter)
        again |= dict(zip(rows, logits, strict=True))
    return raw, plain, again
