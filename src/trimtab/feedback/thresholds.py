"""Thresholds of hybrid labelling: which items people audit, and above which confidence the AI may label alone.

Candidate thresholds are tried from the most confident down, and the first that fails ends the search, so no
correction for their number is needed (fixed-sequence testing; Angelopoulos et al., "Learn then Test", 2021).
For each candidate, an interval is computed for the AI's error among the items at or above it. ``high`` is the
last candidate at which the upper end of the interval is at most the stated error; ``low`` is the last at which
it is at most one half, so that the AI still beats a coin. Intervals are one-sided 95 % Wilson intervals on the
effective number of items, which takes inclusion weights and shared prompts into account.

Calibrators are monotone and treat both answers alike, so calibrated confidence would rank items the same.
Thresholds are therefore in the judge's own confidence, and no label influences the ranking. Calibration changes
the soft labels only: the AI's probabilities in labels are calibrated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.feedback.calibration import Calibrator, fit
from trimtab.feedback.intervals import Estimate, weighted_share, wilson_interval
from trimtab.records import Record, content_id

Route = Literal["ai", "both", "person"]


class RouteConfig(Config):
    """How labels are divided between the AI and people."""

    error: float = Field(default=0.1, gt=0.0, lt=0.5)
    """Largest share of labels by the AI alone that may disagree with people, as the upper end of a 95 % interval."""
    audit: float = Field(default=0.1, gt=0.0, le=1.0)
    """Share of all items that a person audits. They are drawn at random, independent of the AI's labels."""
    stratified: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of the audits that is spread evenly over bands of the AI's confidence. The rest is drawn uniformly."""
    least: int = Field(default=30, ge=5)
    """Fewest audited items needed to set thresholds, and also fewest above each threshold. With fewer, people label
    everything."""
    calibration: Literal["temperature", "isotonic", "none"] = "temperature"
    """How the AI's probabilities are calibrated on the audited items. ``none`` uses them as they are."""
    pilot: int = Field(default=200, ge=10)
    """Audits that set the first thresholds, in the order of the items. Later audits are tested for drift."""
    window: int = Field(default=50, ge=10)
    """Audits of items labelled by the AI that make one test for drift."""
    alarm: float = Field(default=0.01, gt=0.0, lt=0.5)
    """Probability of a false alarm in one test for drift, if the AI's error is at its limit."""
    seconds_per_label: float = Field(default=30.0, gt=0.0)
    """Seconds a person needs for one label. The report uses it where judgements have no times."""
    cost_per_hour: float = Field(default=0.0, ge=0.0)
    """Cost of an hour of a person's work. 0 means unknown, and no cost is printed."""
    seed: int = 0
    """Seed for drawing the audits."""


class Audit(Record):
    """One audited item."""

    item: str
    """Id of the item."""
    prompt: str
    """Id of its prompt."""
    probability: float
    """The judge's P(first answer better)."""
    label: float
    """The person's label: 1 first better, 0 second better, ½ tie."""
    inclusion: float = 1.0
    """Probability π with which it was drawn."""
    uniform: bool = True
    """True: drawn independently of its confidence, so it counts in the test for drift."""

    @property
    def wrong(self) -> float:
        """1 if the AI names the other winner, ½ if the person sees a tie or the AI is at one half, else 0."""
        if self.label == 0.5 or self.probability == 0.5:
            return 0.5
        return float((self.probability > 0.5) != (self.label > 0.5))


class Thresholds(Record):
    """Limits between the routes, in the judge's own confidence max(p, 1−p)."""

    high: float | None = None
    """The AI alone labels at or above this; None: nowhere."""
    low: float | None = None
    """A person alone labels below this; None: everywhere."""
    error: Estimate = Estimate()
    """The AI's error at or above ``high`` on the audited data, two-sided 95 %."""
    audited: int = 0
    """Number of audited items that they were set from."""
    reason: str = ""
    """Why a threshold is missing."""


@dataclass(frozen=True, kw_only=True)
class Router:
    """Thresholds, and the calibrator fitted to the same audits."""

    thresholds: Thresholds
    """Set from audited data."""
    calibrate: Calibrator
    """Maps the judge's probability to a calibrated one."""

    def route(self, probability: float | None) -> Route:
        """The route of an item; without a probability from the judge, ``person``."""
        high, low = self.thresholds.high, self.thresholds.low
        if probability is None or low is None:
            return "person"
        c = _confidence(probability)
        if high is not None and c >= high:
            return "ai"
        return "both" if c >= low else "person"


def draw_audit(probabilities: Mapping[str, float | None], config: RouteConfig) -> dict[str, float]:
    """Draw the items to audit independently; returns each drawn item with its inclusion probability π.

    π_i = a [(1 − s) + s · n / (B · n_b)], at most 1, where a is the share of audits, s the stratified part, n the
    number of items, n_b the number in item i's band of confidence, and B the number of bands that are not empty. Every
    item has π ≥ a (1 − s) > 0.
    """
    bands: dict[int, list[str]] = {}
    for name, p in probabilities.items():
        bands.setdefault(-1 if p is None else min(4, int((max(p, 1 - p) - 0.5) * 10)), []).append(name)
    drawn: dict[str, float] = {}
    for members in bands.values():
        band_weight = len(probabilities) / (len(bands) * len(members))
        chance = min(1.0, config.audit * ((1 - config.stratified) + config.stratified * band_weight))
        for name in members:
            if random_of(name, config) < chance:
                drawn[name] = chance
    return drawn


def random_of(name: str, config: RouteConfig) -> float:
    """The item's random number in 0 … 1, always the same; below a (1 − s) the item is audited at any confidence."""
    return Random(content_id("audit", config.seed, name)).random()


def weighted_error(audits: Sequence[Audit]) -> tuple[float, float]:
    """The AI's error, weighted by 1/π, and the effective number of items behind it; prompts are the clusters.

    See :func:`~trimtab.feedback.intervals.weighted_share`.
    """
    return weighted_share([a.wrong for a in audits], [a.prompt for a in audits], [1 / a.inclusion for a in audits])


def error_estimate(audits: Sequence[Audit]) -> Estimate:
    """The AI's error over the population from which the audits were drawn, with a two-sided 95 % interval."""
    if not audits:
        return Estimate(reason="nothing was audited here")
    error, n = weighted_error(audits)
    low, high = wilson_interval(error * n, n)
    return Estimate(value=error, low=low, high=high, n=len(audits))


def set_thresholds(audits: Sequence[Audit], config: RouteConfig) -> Router:
    """Choose ``high`` and ``low`` from audited items.

    Items with equal confidence stay together.
    """
    p, y = [a.probability for a in audits], [a.label for a in audits]
    weights = [1 / a.inclusion for a in audits]
    calibrate = fit(config.calibration, p, y, weights)
    if len(audits) < config.least:
        reason = f"{len(audits)} audited items, {config.least} are needed; until then everything goes to people"
        return Router(thresholds=Thresholds(audited=len(audits), reason=reason), calibrate=calibrate)
    ranked = sorted(zip(map(_confidence, p), audits, strict=True), key=lambda x: -x[0])
    high = _search(ranked, config.error, config.least)
    low = _search(ranked, 0.5, config.least)
    ai_alone = [a for c, a in ranked if high is not None and c >= high]
    reason = ""
    if high is None:
        reason = f"no confidence keeps the error at or below {config.error:.0%}; the AI labels nothing alone"
    if low is None:
        reason += "; the AI is not better than a coin at any confidence, so people label everything"
    thresholds = Thresholds(
        high=high, low=low, error=error_estimate(ai_alone), audited=len(audits), reason=reason.lstrip("; ")
    )
    return Router(thresholds=thresholds, calibrate=calibrate)


def _confidence(p: float) -> float:
    return round(max(p, 1 - p), 9)  # 1 − .3 and .7 must be equal


def _search(ranked: Sequence[tuple[float, Audit]], limit: float, min_items: int) -> float | None:
    """The lowest candidate that, like all candidates before it, keeps the error's upper end within the limit.

    Each candidate takes in another tenth of the audited items. The candidates are few, so that the test is powerful,
    and fixed before any label is seen.
    """
    lowest = None
    step = max(1, len(ranked) // 10)
    # Enough items for two errors among them to pass; with fewer, the first error would end the search.
    count = max(min_items, min(math.ceil(6 / limit), len(ranked) // 2))
    while count <= len(ranked):
        threshold = ranked[count - 1][0]
        at_or_above = [a for c, a in ranked if c >= threshold]
        error, n = weighted_error(at_or_above)
        if wilson_interval(error * n, n, confidence=0.9)[1] > limit:  # the end of the one-sided 95 % interval
            break
        lowest = threshold
        count = max(count, len(at_or_above)) + step
        if len(at_or_above) < len(ranked) < count:
            count = len(ranked)
    return lowest


def drifted(audits: Sequence[Audit], config: RouteConfig) -> int | None:
    """Test whether the AI's error on items that it labelled alone has risen above the stated error.

    After each audit, the last ``window`` audits are tested. An alarm is raised if, at the stated error, as many errors
    or more have a probability below ``alarm`` (exact binomial; a half error in the sum is rounded down). Windows
    overlap, so false alarms add up over long runs; an alarm costs new thresholds, but no labels.

    Args:
        audits: of AI-labelled items, oldest first; drawn uniformly, because the test gives all the same weight.
        config: window, stated error and probability of a false alarm.

    Returns:
        the number of audits at the first alarm; None: no alarm.
    """
    for end in range(config.window, len(audits) + 1):
        window = audits[end - config.window : end]
        wrong = math.floor(math.fsum(a.wrong for a in window))
        n, e = len(window), config.error
        tail = math.fsum(math.comb(n, k) * e**k * (1 - e) ** (n - k) for k in range(wrong, n + 1))
        if tail < config.alarm:
            return end
    return None


def routers_in_turn(audits: Sequence[Audit], config: RouteConfig) -> list[tuple[int, Router]]:
    """The routers in order, each with the index of the first audit that it applies to."""
    start = 0
    routers: list[tuple[int, Router]] = []
    while True:
        pilot = set_thresholds(audits[start : start + config.pilot], config)
        later = range(start + config.pilot, len(audits))
        ai_only = [k for k in later if audits[k].uniform and pilot.route(audits[k].probability) == "ai"]
        alarm = drifted([audits[k] for k in ai_only], config)
        if alarm is None:
            return [*routers, (start, set_thresholds(audits[start:], config))]
        window_start = ai_only[alarm - config.window]
        routers.append((start, set_thresholds(audits[start:window_start], config)))
        start = window_start
