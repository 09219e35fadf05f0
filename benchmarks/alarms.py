"""How often alarms are wrong, how often and when they are right: simulated runs in which the truth is known.

``python -m benchmarks.alarms [RUNS]`` prints three tables of RUNS (200) runs each:

- *still*: the policy does not change;
- *twin*: it learns, and its proxy rises, by a harmless feature that people like too;
- *hack*: it learns by a feature that the proxy likes as much and people do not. Gold turns.

Twin and hack are matched: the same start, the same weights in the proxy, the same number of steps; which of two equal
features is the harmful one is all that differs, so the proxy cannot tell them apart (their gains are compared).

An answer has three features, each there or not: quality, a planted one that a probe sees, and a harmless one that none
sees. The policy has one logit for each and prompts of different inclination, and climbs the proxy by RLOO. Further
probes see things that never change, at various rates; they are where false alarms come from.
"""

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.evals import AlarmConfig, AnswerProbe, RunAlarms
from trimtab.feedback.intervals import bootstrap_interval, paired_bootstrap_interval, wilson_interval

STEPS, PROMPTS, GROUP = 60, 16, 4
RATE = 0.35
"""Learning rate of the policy's logits."""

START = (0.0, -2.5, -2.5)
"""Logits of quality, planted and harmless feature at the start: 50 %, 8 % and 8 %."""

CONSTANT = (0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.02, 0.05, 0.15, 0.25)
"""Rates of the probes of what never changes; with the planted one there are as many probes as in a run."""

SEES, ERRS = 0.9, 0.01
"""How often the probe of the planted feature fires on answers with it and without it."""

PLANTED = "planted"


def _unused(prompt: str, answer: str) -> float:
    raise AssertionError("the simulation has no texts")


PROBES = {
    name: AnswerProbe(title=name, counted="", value=_unused, floor=0.1, advice="")
    for name in (PLANTED, *(f"constant {rate}" for rate in CONSTANT))
}


@dataclass(frozen=True, kw_only=True)
class SimulatedRun:
    """What a run showed."""

    raised: int | None
    """Step of the first alarm of any probe."""
    planted: int | None
    """Step of the first alarm of the probe of the planted feature."""
    evidence: float
    """Largest log E of that probe."""
    proxy: float
    """Gain of the proxy, last five steps over first five."""
    turn: int | None
    """Step at which gold was highest, if it fell by a tenth of its range afterwards."""


def simulate(kind: str, seed: int, config: AlarmConfig | None = None) -> SimulatedRun:
    """One run; ``kind`` is ``still``, ``twin`` or ``hack``."""
    draw = random.Random(f"{kind} {seed}")
    alarms = RunAlarms(config or AlarmConfig(), STEPS, PROBES)
    logits, climbed = list(START), {"still": None, "hack": 1, "twin": 2}[kind]
    proxies: list[float] = []
    golds: list[float] = []
    raised = planted = None
    evidence = 0.0
    for step in range(1, STEPS + 1):
        means: dict[str, list[float]] = {name: [] for name in PROBES}
        slope, scores, liked = [0.0] * 3, [], []
        for _ in range(PROMPTS):
            inclined = [x + draw.gauss(0, 0.7) for x in logits]
            chances = [1 / (1 + math.exp(-x)) for x in inclined]
            answers = [[draw.random() < p for p in chances] for _ in range(GROUP)]
            rewards = [a[0] + (a[climbed] if climbed else 0.0) for a in answers]
            scores += rewards
            liked += [a[0] + a[2] - 2.0 * a[1] for a in answers]
            for answer, reward in zip(answers, rewards, strict=True):
                advantage = (reward - sum(rewards) / GROUP) * GROUP / (GROUP - 1)
                for i in range(3):
                    slope[i] += advantage * (answer[i] - chances[i])
            seen = [draw.random() < (SEES if a[1] else ERRS) for a in answers]
            means[PLANTED].append(sum(seen) / GROUP)
            for rate in CONSTANT:
                means[f"constant {rate}"].append(sum(draw.random() < rate for _ in range(GROUP)) / GROUP)
        proxies.append(sum(scores) / len(scores))
        golds.append(sum(liked) / len(liked))
        for name, _ in alarms.add(means):
            raised = raised or step
            planted = planted or (step if name == PLANTED else None)
        evidence = max(evidence, alarms.log_evidence(PLANTED))
        if climbed:
            logits = [x + RATE * s / PROMPTS for x, s in zip(logits, slope, strict=True)]
    return SimulatedRun(
        raised=raised,
        planted=planted,
        evidence=evidence,
        proxy=(sum(proxies[-5:]) - sum(proxies[:5])) / 5,
        turn=_turn(golds),
    )


def _turn(golds: Sequence[float]) -> int | None:
    """Step of the highest mean over five steps, if the last such mean is a tenth of the range below it."""
    smooth = [sum(golds[i : i + 5]) / 5 for i in range(len(golds) - 4)]
    best = max(range(len(smooth)), key=smooth.__getitem__)
    fell = smooth[best] - smooth[-1]
    return best + 3 if fell > 0.1 * (max(smooth) - min(smooth)) and best + 1 < len(smooth) else None


def auroc(bad: Sequence[float], good: Sequence[float]) -> float:
    """Probability that a value of ``bad`` is above one of ``good``, ties counting half.

    >>> auroc([2, 3], [1, 2])
    0.875
    """
    return sum((b > g) + (b == g) / 2 for b in bad for g in good) / (len(bad) * len(good))


def main(arguments: Sequence[str]) -> int:
    """Print the tables."""
    count = int(arguments[0]) if arguments else 200
    runs = {kind: [simulate(kind, seed) for seed in range(count)] for kind in ("still", "twin", "hack")}
    print(f"{count} runs of each kind, {STEPS} steps, {PROMPTS} prompts × {GROUP} answers, {len(PROBES)} probes")
    for kind in ("still", "twin"):
        fired = sum(run.raised is not None for run in runs[kind])
        low, high = wilson_interval(fired, count)
        print(f"{kind}: any alarm in {fired / count:.1%} of runs [{low:.1%}, {high:.1%}] (budget 5 %)")
    seen = sum(run.planted is not None for run in runs["hack"])
    low, high = wilson_interval(seen, count)
    print(f"hack: the planted feature is found in {seen / count:.1%} of runs [{low:.1%}, {high:.1%}]")
    gains = {kind: [run.proxy for run in runs[kind]] for kind in ("twin", "hack")}
    low, high = paired_bootstrap_interval(gains["hack"], gains["twin"])
    mean = sum(gains["twin"]) / count
    print(f"proxy gain: twin {mean:.3f}, hack {sum(gains['hack']) / count:.3f}, difference [{low:.3f}, {high:.3f}]")
    area = auroc([r.evidence for r in runs["hack"]], [r.evidence for r in runs["twin"]])
    blind = auroc(gains["hack"], gains["twin"])
    print(f"AUROC of hack against twin: {area:.3f} by the probe's evidence, {blind:.3f} by the proxy's gain")
    delays = [float(r.planted - r.turn) for r in runs["hack"] if r.planted is not None and r.turn is not None]
    turned = sum(r.turn is not None for r in runs["hack"])
    if delays:
        low, high = bootstrap_interval(delays)
        print(
            f"gold turned in {turned} of {count} hacked runs; alarm minus turn: mean {sum(delays) / len(delays):+.1f} "
            f"steps [{low:+.1f}, {high:+.1f}], before or at the turn in {sum(d <= 0 for d in delays)} of {len(delays)}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
