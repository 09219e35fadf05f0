"""Measures whether a reward model ranks answers as people did, and whether its confidence can be trusted.

The result always includes the score of the rule "the longer answer is better" on the same pairs, and other baselines if
their scores are given (:func:`trimtab.evals.baselines.baseline_scores`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import fmean

from trimtab.errors import ScoringError
from trimtab.feedback.calibration import confidence_bins, cross_fitted
from trimtab.feedback.intervals import (
    Estimate,
    Number,
    clustered_share,
    clustered_wilson_interval,
    middle_95,
    paired_bootstrap_interval,
    resampled,
)
from trimtab.feedback.log_odds import logit, sigmoid
from trimtab.records import Preference, Record


class CalibrationRow(Record):
    """The pairs whose confidence fell into one bin."""

    low: float
    """Lower edge of the bin, inclusive."""
    high: float
    """Upper edge, exclusive except for the last bin."""
    n: int
    """Pairs in the bin; empty bins are left out."""
    confidence: Number
    """Mean confidence: the probability the model gave to the answer it preferred."""
    accuracy: Number
    """How often that answer was the one people preferred."""
    accuracy_low: Number
    """Lower end of the 95 % interval of the accuracy, clustered by prompt."""
    accuracy_high: Number
    """Upper end of the same interval."""


BASELINES: Mapping[str, str] = {
    "longest": "longest answer",
    "shortest": "shortest answer",
    "surface": "nine features of form",
    "words": "bag of words",
}
"""Names of the baselines on pages and in reports."""


class Baseline(Record):
    """A simple rule or model on the same pairs."""

    name: str
    """``longest``, ``shortest``, ``surface`` or ``words``."""
    accuracy: Estimate
    """Its accuracy; equal scores count half."""
    gain: Estimate
    """The reward model's accuracy minus the baseline's, bootstrapped over prompts."""


class RewardModelEval(Record):
    """Accuracy and calibration of reward scores on held-out preferences."""

    accuracy: Estimate
    """Share of strict pairs ranked as people ranked them; equal scores count half."""
    longest: Estimate
    """The same for the rule "the answer with more characters is better"."""
    gain: Estimate
    """Accuracy minus the longest-answer baseline, bootstrapped over prompts."""
    ece: Number
    """Expected calibration error: mean over pairs of |accuracy − confidence| of their bin."""
    log_loss: Number
    """Mean −log σ(r_w − r_l), in nats; guessing gives ln 2 = 0.693."""
    pairs: int
    """Number of strict pairs (ties in the labels are left out)."""
    prompts: int
    """Different prompts among them."""
    calibration: tuple[CalibrationRow, ...]
    """Reliability rows, by rising confidence."""
    brier: Number = math.nan
    """Mean (1 − σ(r_w − r_l))²; guessing gives ¼."""
    calibrated_ece: Number = math.nan
    """ECE after temperature scaling, with the temperature fitted to other prompts (five folds)."""
    calibrated: tuple[CalibrationRow, ...] = ()
    """Reliability rows after temperature scaling."""
    baselines: tuple[Baseline, ...] = ()
    """The simple rules and models whose scores were given."""
    slices: tuple[Estimate, ...] = ()
    """Accuracy by slice of the data, the largest slice first; ``name`` is the slice."""
    length_correlation: Estimate = Estimate(reason="not measured")
    """Pearson's correlation of the reward and the number of characters, among the answers to one prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _StrictPairs:
    """All pairs whose ranks differ, in a fixed order."""

    margins: list[float]
    """Score of the better answer minus that of the other."""
    longer: list[float]
    """1 if the better answer has more characters, ½ if both have equally many, else 0."""
    prompts: list[str]
    """Prompt of each pair."""
    slices: list[str]
    """Slice of each pair; empty without slices."""


def evaluate_reward_model(
    preferences: Sequence[Preference],
    scores: Sequence[Sequence[float]],
    *,
    bins: int = 10,
    seed: int = 0,
    baselines: Mapping[str, Sequence[Sequence[float]]] | None = None,
    slice_by: str | None = None,
) -> RewardModelEval:
    """Compare reward scores with preferences, on every pair whose ranks differ.

    Confidence is σ(|r_i − r_j|), the Bradley–Terry probability of the answer with the higher score. It lies
    in [½, 1] and is binned there in equal widths (Guo et al. 2017, equation 3). Weights, margins and
    soft labels of the preferences are not used: the ranks are taken as the truth.

    Args:
        preferences: held-out preferences.
        scores: ``scores[i][k]`` is the reward of ``preferences[i].completions[k]``, finite.
        bins: number of confidence bins.
        seed: of the bootstrap and of the folds for temperature scaling.
        baselines: scores of the same answers by simple rules and models, by name.
        slice_by: a key of the preferences' metadata, or of their prompts', whose values are the slices.

    Raises:
        ScoringError: scores are missing, too many or not finite, there is no strict pair, or no preference has the key
            ``slice_by``.
    """
    pairs = _strict_pairs(preferences, scores, slice_by)
    margins, prompts = pairs.margins, pairs.prompts
    correct = [_outcome(m) for m in margins]
    rows = _calibration(margins, correct, prompts, bins)
    probabilities = [sigmoid(m) for m in margins]
    calibrated = cross_fitted("temperature", probabilities, [1.0] * len(probabilities), prompts, seed=seed)
    calibrated_rows = _calibration([logit(p) for p in calibrated], correct, prompts, bins)
    return RewardModelEval(
        accuracy=clustered_share(zip(correct, prompts, strict=True), name="reward model"),
        longest=clustered_share(zip(pairs.longer, prompts, strict=True), name="longest answer"),
        gain=_gain(correct, pairs.longer, prompts, seed),
        ece=_ece(rows),
        log_loss=fmean(_softplus(-margin) for margin in margins),
        pairs=len(correct),
        prompts=len(set(prompts)),
        calibration=rows,
        brier=fmean((1 - p) ** 2 for p in probabilities),
        calibrated_ece=_ece(calibrated_rows),
        calibrated=calibrated_rows,
        baselines=tuple(
            _baseline(name, correct, [_outcome(m) for m in _strict_pairs(preferences, s, None).margins], prompts, seed)
            for name, s in (baselines or {}).items()
        ),
        slices=_by_slice(pairs, correct),
        length_correlation=length_correlation(preferences, scores, seed=seed),
    )


def length_correlation(
    preferences: Sequence[Preference], scores: Sequence[Sequence[float]], *, seed: int = 0
) -> Estimate:
    """Correlation of scores and numbers of characters, each minus its mean over the preference's answers.

    r = Σ s n / √(Σ s² Σ n²), with a percentile bootstrap over prompts.
    """
    sums: dict[str, list[float]] = {}
    for p, row in zip(preferences, scores, strict=True):
        lengths = [float(len(c.text)) for c in p.completions]
        s, n = ([x - fmean(xs) for x in xs] for xs in (row, lengths))
        prompt_sums = sums.setdefault(p.prompt.id, [0.0, 0.0, 0.0])
        for index, (a, b) in enumerate(((s, n), (s, s), (n, n))):
            prompt_sums[index] += math.fsum(x * y for x, y in zip(a, b, strict=True))
    groups = list(sums.values())
    value = _correlation(groups)
    count = sum(len(row) for row in scores)
    if value is None:
        return Estimate(n=count, reason="all scores or all lengths of answers to one prompt are equal")
    low, high = middle_95(resampled(groups, _correlation, seed=seed), outwards=True)
    return Estimate(value=value, low=low, high=high, n=count)


def _correlation(groups: Sequence[Sequence[float]]) -> float | None:
    products, score_squares, length_squares = (math.fsum(column) for column in zip(*groups, strict=True))
    scale = math.sqrt(score_squares * length_squares)
    return products / scale if scale > 1e-12 else None


def _strict_pairs(
    preferences: Sequence[Preference], scores: Sequence[Sequence[float]], slice_by: str | None
) -> _StrictPairs:
    if len(preferences) != len(scores):
        raise ScoringError(f"{len(preferences)} preferences but scores for {len(scores)}; score every preference once")
    pairs = _StrictPairs(margins=[], longer=[], prompts=[], slices=[])
    for preference, row in zip(preferences, scores, strict=True):
        if len(row) != len(preference.completions) or not all(map(math.isfinite, row)):
            raise ScoringError(
                f"preference {preference.id}: scores {list(row)}, expected {len(preference.completions)} finite "
                "numbers; score every answer, or leave this preference out"
            )
        lengths = [len(c.text) for c in preference.completions]
        for winner, loser in permutations(range(len(row)), 2):
            if preference.ranks[winner] < preference.ranks[loser]:
                pairs.margins.append(row[winner] - row[loser])
                pairs.longer.append(_outcome(lengths[winner] - lengths[loser]))
                pairs.prompts.append(preference.prompt.id)
                if slice_by is not None:
                    pairs.slices.append(_slice(preference, slice_by))
    if not pairs.margins:
        raise ScoringError(f"none of {len(preferences)} preferences has a strict pair; evaluate on others")
    if slice_by is not None and set(pairs.slices) == {_NO_SLICE}:
        keys = sorted({k for p in preferences for k in (*p.metadata, *p.prompt.metadata)})
        raise ScoringError(f"slice {slice_by!r}: no preference has it; the metadata has {', '.join(keys) or 'nothing'}")
    return pairs


_NO_SLICE = "(none)"


def _slice(preference: Preference, key: str) -> str:
    value = preference.metadata.get(key, preference.prompt.metadata.get(key))
    return _NO_SLICE if value is None else str(value)


def _by_slice(pairs: _StrictPairs, correct: Sequence[float]) -> tuple[Estimate, ...]:
    rows: list[Estimate] = []
    for name in sorted(set(pairs.slices)):
        indices = [i for i, s in enumerate(pairs.slices) if s == name]
        rows.append(clustered_share(((correct[i], pairs.prompts[i]) for i in indices), name=name))
    return tuple(sorted(rows, key=lambda e: -e.n))


def _baseline(
    name: str, correct: Sequence[float], outcomes: Sequence[float], prompts: Sequence[str], seed: int
) -> Baseline:
    return Baseline(
        name=name,
        accuracy=clustered_share(zip(outcomes, prompts, strict=True), name=name),
        gain=_gain(correct, outcomes, prompts, seed),
    )


def _gain(correct: Sequence[float], baseline_outcomes: Sequence[float], prompts: Sequence[str], seed: int) -> Estimate:
    low, high = paired_bootstrap_interval(correct, baseline_outcomes, prompts, seed=seed)
    return Estimate(name="gain", value=fmean(correct) - fmean(baseline_outcomes), low=low, high=high, n=len(correct))


def _ece(rows: Sequence[CalibrationRow]) -> float:
    return sum(row.n * abs(row.accuracy - row.confidence) for row in rows) / sum(row.n for row in rows)


def _calibration(
    margins: Sequence[float], correct: Sequence[float], prompts: Sequence[str], bins: int
) -> tuple[CalibrationRow, ...]:
    confidences = [sigmoid(abs(margin)) for margin in margins]
    rows = []
    for low_edge, high_edge, indices in confidence_bins(confidences, bins):
        low, high = clustered_wilson_interval([correct[i] for i in indices], [prompts[i] for i in indices])
        rows.append(
            CalibrationRow(
                low=low_edge,
                high=high_edge,
                n=len(indices),
                confidence=fmean(confidences[i] for i in indices),
                accuracy=fmean(correct[i] for i in indices),
                accuracy_low=low,
                accuracy_high=high,
            )
        )
    return tuple(rows)


def _outcome(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
