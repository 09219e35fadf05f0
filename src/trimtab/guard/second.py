"""The second stage of a guard: which texts the first stage escalates to it, and how both decide about them.

Legend: s = score of the first stage (a probability), z_1 = its log-odds for a view of a text, z_2 = calibrated log-odds
of the adapter on the last layer (:mod:`trimtab.guard.last_layer`) for that view.

- s ≤ low or s > high: the first stage decides; the second does not run.
- low < s ≤ high, the *band*: the text is escalated. The second stage reads the views whose own score is above low. The
  text's score is σ(a · (z_1 + z_2) / 2 + b), the highest over those views, and has a separate threshold.

At most the share ``escalate`` of ordinary training requests exceeds low; high is the highest score of a harmless one.
The second threshold keeps the whole guard within its budget. All three are determined from scores by members and
adapters that were fitted without the text's group.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import DataError
from trimtab.guard.detector import Fitted, Prepared, sigmoid
from trimtab.guard.last_layer import Inputs, LastLayer, adapted_names, fit_last_layer, last_inputs, states_of
from trimtab.guard.scores import auroc, folds_of, platt, threshold_for
from trimtab.models import Backbone

FOLDS = 3
"""Folds of the cross-fitting; each trains an adapter."""

EVEN_ODDS = 0.5
"""Threshold if the budget would allow every escalated harmless text to be blocked."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """The range of first-stage scores that are escalated, and the share of training requests in it."""

    low: float
    """The first stage decides about scores up to this one."""
    high: float
    """The first stage decides about scores above this one."""
    share: float
    """Share of the counted harmless training requests in the band, scored by members that did not see them."""
    counted: int
    """Number of requests counted."""
    on: str
    """``ordinary``: ordinary requests were counted. ``harmless``: all harmless requests, twins too, because there are
    too few ordinary ones."""

    def holds(self, score: float) -> bool:
        """True: a text with this score is escalated."""
        return self.low < score <= self.high


def band_of(scores: np.ndarray, labels: np.ndarray, ordinary: np.ndarray, escalate: float) -> Band:
    """The widest band with at most the share ``escalate`` of ordinary requests in it.

    Args:
        scores: scores of the first stage, out of fold, ``[N]``.
        labels: ``[N]``, 1: restricted, 0: not.
        ordinary: ``[N]`` bool, True: an ordinary request. If there are fewer than 1 / ``escalate`` of them, all
            harmless texts are counted. Twins resemble restricted texts, so the share of ordinary requests is then
            expected to be smaller.
        escalate: largest share of ordinary requests in the band.

    Raises:
        DataError: fewer than 1 / ``escalate`` harmless texts.
    """
    harmless = int((labels == 0).sum())
    if int(escalate * harmless + 1e-9) < 1:
        raise DataError(
            f"a second stage that reads at most {escalate:.1%} of ordinary requests needs {math.ceil(1 / escalate)} "
            f"harmless texts or more and there are {harmless}; give more ordinary requests (--data), raise --escalate "
            "(at most 0.1), or leave it out"
        )
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
        second: scores of the escalated texts by both stages, ``[N]``; other entries are ignored.
        band: the band of escalated scores.
        threshold: threshold of the first stage.
        budget: largest share of the N texts that may be blocked.

    Returns:
        the threshold; :data:`EVEN_ODDS` if no more harmless texts are escalated than may be blocked. If the first stage
        alone blocks more than the budget, the highest score, so that the second stage blocks no more harmless texts.

    >>> band = Band(low=0.3, high=0.8, share=0.0, counted=0, on="harmless")
    >>> first, second = np.array([0.1, 0.2, 0.4, 0.5, 0.6]), np.array([0, 0, 0.1, 0.9, 0.2])
    >>> second_threshold(first, second, band, 0.55, 0.2), second_threshold(first, second, band, 0.55, 0.6)
    (0.2, 0.5)
    """
    escalated = (first > band.low) & (first <= band.high)
    allowed = max(0, int(budget * len(first) + 1e-9) - int((~escalated & (first > threshold)).sum()))
    highest = sorted(second[escalated].tolist(), reverse=True)
    return highest[allowed] if allowed < len(highest) else EVEN_ODDS


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Turns log-odds of the adapter into log-odds of both stages."""

    slope: float
    """z_2 = slope · log-odds + offset."""
    offset: float
    """See ``slope``."""
    mean_slope: float
    """a in the score of both stages."""
    mean_offset: float
    """b in the score of both stages."""

    def adapter(self, logits: np.ndarray) -> np.ndarray:
        """z_2, ``[V]`` → ``[V]``."""
        return self.slope * logits + self.offset

    def both(self, z1: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Log-odds of both stages, a · (z_1 + z_2) / 2 + b, ``[V]``; −∞ where ``logits`` is NaN (view not read)."""
        both = self.mean_slope * (z1 + self.adapter(logits)) / 2 + self.mean_offset
        return np.where(np.isnan(logits), -np.inf, both)


@dataclass(frozen=True, kw_only=True)
class SecondScore:
    """The score of an escalated text by both stages."""

    value: float
    """Calibrated probability that the text is restricted."""
    view: int
    """Index of the view with the highest score."""
    adapter: float
    """z_2 of that view."""


@dataclass(frozen=True, kw_only=True)
class SecondStage:
    """A last layer with its calibration, the band and the threshold."""

    model: LastLayer
    """The classifier; it gives uncalibrated log-odds."""
    calibration: Calibration
    """Calibration of its log-odds, and of their mean with those of the first stage."""
    band: Band
    """The first-stage scores of texts that it reads."""
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
            texts: the escalated texts.
            view_odds: z_1 of each view of each text, arrays ``[V]``.
            backbone: the model.
            adapter: the policy's adapter; None: the trunk.

        Raises:
            DataError: the model gave NaN or infinity.
        """
        by_text = view_logits(self.model, texts, view_odds, self.band, backbone, adapter)
        result = []
        for z1, logits in zip(view_odds, by_text, strict=True):
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
    """Uncalibrated log-odds of each view by the adapter, N arrays ``[V]``; NaN for views that are not read."""
    read = [[sigmoid(float(z)) > band.low for z in odds] for odds in view_odds]
    views = [v.text for t, keep in zip(texts, read, strict=True) for v, k in zip(t.views, keep, strict=True) if k]
    views = list(dict.fromkeys(views))
    logits = dict(zip(views, model.logits(backbone, views, adapter=adapter).tolist(), strict=True))
    if not np.isfinite(list(logits.values())).all():
        raise DataError("the second stage of the guard computed NaN or infinity; train the guard again on this model")
    return [
        np.array([logits[v.text] if k else np.nan for v, k in zip(t.views, keep, strict=True)])
        for t, keep in zip(texts, read, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class FittedSecond:
    """A second stage and its figures on training texts, out of fold."""

    stage: SecondStage
    """Fitted on all texts."""
    auroc: dict[str, float]
    """AUROC of ``first stage``, ``last layer`` (a linear probe after it, without an adapter), ``adapter`` and ``both``;
    on the raw text of all training texts."""
    blocked: dict[str, float]
    """Share of restricted training texts that are blocked, by ``first stage`` and by ``both``, within the same
    budget."""


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
        groups: group of each text; all texts of a group are in the same fold.
        first: the first stage.
        ordinary: True: an ordinary request, see :func:`trimtab.guard.dataset.ordinary`.
        budget: largest share of harmless texts that may be blocked.
        escalate: largest share of ordinary requests that may be escalated.
        adapter: the policy's adapter; None: the trunk.
        seed: seed of folds and training.

    Raises:
        DataError: too few harmless texts, or one label is missing in a fold.
        ConfigError: the last layer takes no adapter.
    """
    y, odds = np.asarray(labels), first.view_odds
    band = band_of(first.out_of_fold, y, np.asarray(ordinary), escalate)
    inputs = last_inputs(backbone, [t.views[0].text for t in texts], adapter=adapter)
    escalated = [i for i, score in enumerate(first.out_of_fold) if band.holds(score)]
    names = adapted_names(backbone)
    held_out = _out_of_fold(backbone, inputs, names, texts, y, groups, odds, escalated, band, adapter, seed)
    slope, offset = platt(held_out.adapter, y)
    z1 = np.array([z[0] for z in odds])
    mean = (z1 + slope * held_out.adapter + offset) / 2
    mean_slope, mean_offset = platt(mean, y)
    calibration = Calibration(slope=slope, offset=offset, mean_slope=mean_slope, mean_offset=mean_offset)
    second = np.zeros(len(y))
    for i, logits in held_out.escalated.items():
        second[i] = sigmoid(float(calibration.both(odds[i], logits).max()))
    limit = first.detector.threshold
    threshold = second_threshold(first.out_of_fold[y == 0], second[y == 0], band, limit, budget)
    blocked_alone = first.out_of_fold > limit
    blocked = np.where(np.isin(np.arange(len(y)), escalated), second > threshold, blocked_alone)
    model = fit_last_layer(backbone, inputs, y, np.ones(len(y), bool), names, adapter=adapter, seed=seed)
    stage = SecondStage(model=model, calibration=calibration, band=band, threshold=threshold)
    scores = {"first stage": z1, "last layer": held_out.probe, "adapter": held_out.adapter, "both": mean}
    return FittedSecond(
        stage=stage,
        auroc={name: auroc(z.tolist(), y.tolist()) for name, z in scores.items()},
        blocked={"first stage": float(blocked_alone[y == 1].mean()), "both": float(blocked[y == 1].mean())},
    )


@dataclass(frozen=True, kw_only=True)
class _OutOfFold:
    """Uncalibrated log-odds of training texts by adapters that did not see the text's group."""

    adapter: np.ndarray
    """Log-odds of the raw texts by the adapters, ``[N]``."""
    probe: np.ndarray
    """Log-odds of the raw texts by linear probes after the last layer, ``[N]``."""
    escalated: dict[int, np.ndarray]
    """Log-odds of the views of escalated texts, by the index of the text; as from :func:`view_logits`."""


def _out_of_fold(
    backbone: Backbone,
    inputs: Sequence[Inputs],
    names: Sequence[str],
    texts: Sequence[Prepared],
    y: np.ndarray,
    groups: Sequence[Hashable],
    odds: Sequence[np.ndarray],
    escalated: Sequence[int],
    band: Band,
    adapter: str | None,
    seed: int,
) -> _OutOfFold:
    """Train a probe and an adapter for each fold and read the fold's texts with them."""
    fold = folds_of(groups, min(FOLDS, len(set(groups))), seed)
    of_adapter, of_probe = np.zeros(len(y)), np.zeros(len(y))
    of_views: dict[int, np.ndarray] = {}
    for f in sorted(set(fold.tolist())):
        test = fold == f
        if len(set(y[~test])) < 2:
            raise DataError(
                f"the second stage needs restricted and harmless texts in {FOLDS} groups each and there are "
                f"{_groups(groups, y == 1)} groups with restricted texts and {_groups(groups, y == 0)} with harmless "
                "ones, so one fold holds all of one kind; give more groups (--data), or leave --escalate out"
            )
        probe = fit_last_layer(backbone, inputs, y, ~test, names, adapter=adapter, epochs=0)
        model = fit_last_layer(backbone, inputs, y, ~test, names, adapter=adapter, seed=seed)
        for fitted, z in ((probe, of_probe), (model, of_adapter)):
            z[test] = fitted.head.logits(states_of(backbone, inputs, fitted.lora, adapter=adapter)[test])
        rows = [i for i in escalated if test[i]]
        logits = view_logits(model, [texts[i] for i in rows], [odds[i] for i in rows], band, backbone, adapter)
        of_views |= dict(zip(rows, logits, strict=True))
    return _OutOfFold(adapter=of_adapter, probe=of_probe, escalated=of_views)


def _groups(groups: Sequence[Hashable], rows: np.ndarray) -> int:
    """Number of groups with at least one of these rows."""
    return len({group for group, row in zip(groups, rows, strict=True) if row})
