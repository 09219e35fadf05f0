"""The detector of answers: a linear probe on each token's states, and smoothing.

Legend: T tokens, H width; z_t = calibrated log-odds of token t; there is an alarm where the smoothed score exceeds the
threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import DataError
from trimtab.guard.probe import Probe
from trimtab.guard.scores import auroc, platt, threshold_for
from trimtab.guard.stream import Smoothed, Smoothing

CANDIDATES = (
    *(Smoothing(kind="cusum", drift=drift) for drift in (0.0, 0.5, 1.0)),
    *(Smoothing(kind="exponential", alpha=alpha) for alpha in (1.0, 0.5, 0.25, 0.125, 0.0625)),
    Smoothing(kind="mean"),
)
"""Smoothings that :func:`fit_output` tries."""


@dataclass(frozen=True, kw_only=True)
class AnswerStates:
    """The states of one answer, and the token at which it turns restricted."""

    states: np.ndarray
    """``[T, L, H]``: the states of each answer token at the layers that are read."""
    onset: int | None
    """Index of the first restricted token; all later ones count as restricted. None: no token is restricted."""
    fold: int
    """The fold of the cross-fitting, 0, 1, …; answers of different folds share no text."""


@dataclass(frozen=True, kw_only=True)
class OutputProbe:
    """Scores the tokens of an answer."""

    layer: int
    """The layer that is read, 1 … number of layers."""
    probe: Probe
    """The probe, with its calibration folded in: z_t = w·h_t + b."""
    smoothing: Smoothing
    """Turns token scores into a score of the answer so far."""
    threshold: float
    """An answer with a higher smoothed score is stopped."""

    def token_scores(self, states: np.ndarray) -> np.ndarray:
        """z_t of states at :attr:`layer`: ``[…, H]`` → ``[…]``. One call scores the newest token of every answer."""
        return self.probe.logits(states)


def alarm(scores: Sequence[float], smoothing: Smoothing, threshold: float) -> int | None:
    """Index of the first token at which the smoothed score exceeds the threshold; None: never."""
    smoothed = Smoothed(smoothing)
    return next((t for t, z in enumerate(scores) if smoothed.step(float(z)) > threshold), None)


def highest(scores: Sequence[float], smoothing: Smoothing) -> float:
    """The largest smoothed score of an answer."""
    smoothed = Smoothed(smoothing)
    return max(smoothed.step(float(z)) for z in scores)


@dataclass(frozen=True, kw_only=True)
class FittedOutput:
    """An output probe, and its figures on training answers, out of fold."""

    probe: OutputProbe
    """Fitted on all answers."""
    layer_scores: list[float]
    """AUROC over tokens of a probe at each layer that is read."""
    delays: dict[str, float]
    """By smoothing: mean tokens from onset to alarm, out of fold; an answer without an alarm counts to its end."""


def fit_output(
    answers: Sequence[AnswerStates],
    layers: Sequence[int],
    *,
    budget: float,
    candidates: Sequence[Smoothing] = CANDIDATES,
) -> FittedOutput:
    """Fit the token probe; choose its layer and smoothing; set the threshold.

    The chosen layer has the highest AUROC over tokens. The chosen smoothing has the shortest mean delay at its own
    threshold, which at most the share ``budget`` of harmless answers may exceed at any token. An answer with an onset
    counts as harmless up to its onset.

    Args:
        answers: answers with and without an onset.
        layers: numbers of the layers in ``states``.
        budget: largest share of harmless answers, or harmless beginnings, with an alarm.
        candidates: smoothings to try.

    Raises:
        DataError: one kind of answer is missing, or there are too few harmless answers for the budget.
    """
    onsets = [a.onset for a in answers]
    fold = np.array([a.fold for a in answers])
    if any(all(a.onset is None for a in answers if a.fold != f) for f in set(fold.tolist())):
        raise DataError(
            "an output guard needs answers with restricted text in two folds at least, so two groups of restricted "
            "sentences and two of harmless ones; give more under `answers` or with --data"
        )
    y = np.concatenate([_labels(a) for a in answers])
    owner = np.concatenate([np.full(len(a.states), i) for i, a in enumerate(answers)])
    held_out = [np.zeros(len(y)) for _ in layers]
    layer_scores = []
    for n in range(len(layers)):
        h = np.concatenate([a.states[:, n] for a in answers]).astype(np.float32)
        for f in sorted(set(fold.tolist())):
            train = fold[owner] != f
            held_out[n][~train] = Probe.fit(h[train], y[train]).logits(h[~train])
        layer_scores.append(auroc(held_out[n].tolist(), y.tolist()))
    best = int(np.argmax(layer_scores))
    slope, offset = platt(held_out[best], y)
    scores = [(slope * held_out[best][owner == i] + offset).tolist() for i in range(len(answers))]
    delays: dict[str, float] = {}
    thresholds: dict[str, tuple[Smoothing, float]] = {}
    for smoothing in candidates:
        harmless = [highest(z[:o], smoothing) for z, o in zip(scores, onsets, strict=True) if o is None or o > 0]
        limit = threshold_for(harmless, budget, remedy="put more answers together (--planted)")
        waits = [_wait(z, o, smoothing, limit) for z, o in zip(scores, onsets, strict=True) if o is not None]
        name = _name(smoothing)
        delays[name], thresholds[name] = float(np.mean(waits)), (smoothing, limit)
    smoothing, limit = thresholds[min(delays, key=lambda name: delays[name])]
    h = np.concatenate([a.states[:, best] for a in answers]).astype(np.float32)
    fitted_on_all = Probe.fit(h, y)
    probe = Probe((slope * fitted_on_all.weights).astype(np.float32), slope * fitted_on_all.bias + offset)
    fitted = OutputProbe(layer=layers[best], probe=probe, smoothing=smoothing, threshold=limit)
    return FittedOutput(probe=fitted, layer_scores=layer_scores, delays=delays)


def _labels(answer: AnswerStates) -> np.ndarray:
    y = np.zeros(len(answer.states), dtype=int)
    if answer.onset is not None:
        y[answer.onset :] = 1
    return y


def _wait(scores: Sequence[float], onset: int, smoothing: Smoothing, threshold: float) -> int:
    """Tokens from onset to the first alarm at or after it; without an alarm, to the end."""
    smoothed = Smoothed(smoothing)
    for t, z in enumerate(scores):
        if smoothed.step(float(z)) > threshold and t >= onset:
            return t - onset
    return len(scores) - onset


def _name(smoothing: Smoothing) -> str:
    value = {"cusum": f" {smoothing.drift:g}", "exponential": f" {smoothing.alpha:g}"}.get(smoothing.kind, "")
    return smoothing.kind + value
