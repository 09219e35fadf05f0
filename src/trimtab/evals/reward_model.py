"""Does a reward model rank answers as people did, and can its confidence be believed?

Always beside it: what "the longer answer is better" would have scored on the same pairs.
"""

import math
from collections.abc import Sequence
from itertools import permutations
from statistics import fmean

from trimtab.errors import ScoringError
from trimtab.feedback.calibration import confidence_bins
from trimtab.feedback.intervals import Estimate, Number, clustered_wilson_interval, paired_bootstrap_interval
from trimtab.records import Preference, Record


class CalibrationRow(Record):
    """The pairs whose confidence fell into one bin."""

    low: float
    """Lower edge of the bin, inclusive."""
    high: float
    """Upper edge, exclusive except for the last bin."""
    n: int
    """Pairs in the bin; bins without any are left out."""
    confidence: Number
    """Mean confidence: the probability the model gave to the answer it preferred."""
    accuracy: Number
    """How often that answer was the one people preferred."""
    accuracy_low: Number
    """Lower end of the 95 % interval of the accuracy, clustered by prompt."""
    accuracy_high: Number
    """Upper end of the same interval."""


class RewardModelEval(Record):
    """Accuracy and calibration of reward scores on held-out preferences."""

    accuracy: Estimate
    """Share of strict pairs ranked as people did; equal scores count half."""
    longest: Estimate
    """The same for the rule "the answer with more characters is better"."""
    gain: Estimate
    """Accuracy minus the longest-answer baseline, bootstrapped over prompts."""
    ece: Number
    """Expected calibration error: mean over pairs of |accuracy − confidence| of their bin."""
    log_loss: Number
    """Mean −log σ(r_w − r_l), in nats; ln 2 = 0.693 is guessing."""
    pairs: int
    """Strict pairs judged (ties in the labels are left out)."""
    prompts: int
    """Different prompts among them."""
    calibration: tuple[CalibrationRow, ...]
    """Reliability rows, by rising confidence."""


def evaluate_reward_model(
    preferences: Sequence[Preference], scores: Sequence[Sequence[float]], *, bins: int = 10, seed: int = 0
) -> RewardModelEval:
    """Compare reward scores with preferences, on every pair whose ranks differ.

    Confidence is σ(|r_i − r_j|), the Bradley–Terry probability of the answer with the higher score,
    in [½, 1] and binned there in equal widths (Guo et al. 2017, equation 3). Weights, margins and
    soft labels of the preferences are not used: the ranks are the truth here.

    Args:
        preferences: held-out preferences.
        scores: ``scores[i][k]`` is the reward of ``preferences[i].completions[k]``, finite.
        bins: number of confidence bins.
        seed: of the bootstrap for ``gain``.

    Raises:
        ScoringError: scores missing, too many or not finite, or no strict pair at all.
    """
    if len(preferences) != len(scores):
        raise ScoringError(f"{len(preferences)} preferences but scores for {len(scores)}; score every preference once")
    correct: list[float] = []
    longer: list[float] = []
    margins: list[float] = []
    prompts: list[str] = []
    for preference, row in zip(preferences, scores, strict=True):
        if len(row) != len(preference.completions) or not all(map(math.isfinite, row)):
            raise ScoringError(
                f"preference {preference.id}: scores {list(row)}, expected {len(preference.completions)} finite "
                "numbers; score every answer, or leave this preference out"
            )
        lengths = [len(c.text) for c in preference.completions]
        for winner, loser in permutations(range(len(row)), 2):
            if preference.ranks[winner] < preference.ranks[loser]:
                margins.append(row[winner] - row[loser])
                correct.append(_won(margins[-1]))
                longer.append(_won(lengths[winner] - lengths[loser]))
                prompts.append(preference.prompt.id)
    if not correct:
        raise ScoringError(f"none of {len(preferences)} preferences has a strict pair; evaluate on others")

    low, high = paired_bootstrap_interval(correct, longer, prompts, seed=seed)
    gain = Estimate(name="gain", value=fmean(correct) - fmean(longer), low=low, high=high, n=len(correct))
    rows = _calibration(margins, correct, prompts, bins)
    return RewardModelEval(
        accuracy=_share("reward model", correct, prompts),
        longest=_share("longest answer", longer, prompts),
        gain=gain,
        ece=sum(row.n * abs(row.accuracy - row.confidence) for row in rows) / len(correct),
        log_loss=fmean(_softplus(-margin) for margin in margins),
        pairs=len(correct),
        prompts=len(set(prompts)),
        calibration=rows,
    )


def _calibration(
    margins: Sequence[float], correct: Sequence[float], prompts: Sequence[str], bins: int
) -> tuple[CalibrationRow, ...]:
    confidences = [1 / (1 + math.exp(-abs(margin))) for margin in margins]
    rows = []
    for low_edge, high_edge, inside in confidence_bins(confidences, bins):
        low, high = clustered_wilson_interval([correct[i] for i in inside], [prompts[i] for i in inside])
        rows.append(
            CalibrationRow(
                low=low_edge,
                high=high_edge,
                n=len(inside),
                confidence=fmean(confidences[i] for i in inside),
                accuracy=fmean(correct[i] for i in inside),
                accuracy_low=low,
                accuracy_high=high,
            )
        )
    return tuple(rows)


def _share(name: str, outcomes: Sequence[float], prompts: Sequence[str]) -> Estimate:
    low, high = clustered_wilson_interval(outcomes, prompts)
    return Estimate(name=name, value=fmean(outcomes), low=low, high=high, n=len(outcomes))


def _won(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
