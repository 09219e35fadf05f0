"""The golden values worked out again, in plain Python from the papers' formulas; and none is missing."""

import math
import statistics
import sys
from math import exp, log

import pytest

from trimtab import algos
from trimtab.conformance import GOLDENS, expected_gradient, hold


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


W, L = exp(1.2), exp(0.4)  # strengths of two answers with rewards 1.2 and 0.4
A, B, C = W, L, exp(-0.3)
MIDDLE = 0.5 * math.sqrt(W * L)
ALL = W + L + MIDDLE
P = [exp(x) / sum(map(exp, (0.5, -0.2, 1.0))) for x in (0.5, -0.2, 1.0)]
Q = [exp(x) / sum(map(exp, (0.0, 0.3, -0.4))) for x in (0.0, 0.3, -0.4)]


def along_scores(weights: list[float]) -> tuple[float, ...]:
    """Σ_a w_a·∇log π_a with respect to the logits: w_i − π_i·Σw."""
    return tuple(w - p * sum(weights) for w, p in zip(weights, P, strict=True))


def clipped(ratio: float, advantage: float, high: float = 1.2, dual: float = math.inf) -> float:
    loss = max(-advantage * ratio, -advantage * min(max(ratio, 0.8), high))
    return min(loss, -dual * advantage) if advantage < 0 else loss


def best_of_four(eps: float) -> float:
    missed = (1 - eps) ** 4
    return missed * (log(4) + 3 * log(1 - eps) - 3 / 4) + (1 - missed) * log((1 - missed) / eps)


def critic(value: float) -> float:
    """½·max of both errors, old value ½, range 0.2, return 1."""
    return max((value - 1) ** 2, (min(max(value, 0.3), 0.7) - 1) ** 2) / 2


RHO = 1 / math.sqrt(14 / 3 * 2)
"""Correlation of 1, 2, 4 with 3, 5, 4: Σ s̃ñ = 1, Σ s̃² = 14/3, Σ ñ² = 2."""
Q_W = sigmoid(0.1 * 1.5)
TO_COME = [1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4.0, 0.0]
POINTS = [(1.0, 2), (1.1, 2), (1.5, 2), (0.5, 2), (1.5, -2), (0.5, -2), (5.0, -2)]

BY_HAND: dict[str, tuple[float, ...]] = {
    "bradley_terry": (-log(W / (W + L)),),
    "bradley_terry, margin 1 and soft labels": (  # the margin is asked of the likelier winner, of neither at ½
        log(1 + exp(1.8)),
        0.25 * log(1 + exp(-1.8)) + 0.75 * log(1 + exp(1.8)),
        0.5 * log(1 + exp(-0.8)) + 0.5 * log(1 + exp(0.8)),
        0.75 * log(1 + exp(0.2)) + 0.25 * log(1 + exp(-0.2)),
    ),
    "ipo, per token": ((1.0 / 10 + 0.5 / 12 - 5) ** 2,),
    "k3, limited": (10.0, exp(2) - 3, 10.0),
    "k3, share at its limit": (2 / 3,),
    "sequence KL": (0.5, -1.0),
    "sequence KL, coefficients of the scores": (0.5 - 1.0, -1.0),
    "ranking, all pairs": (sum(log(1 + exp(-d)) for d in (0.8, 1.5, 0.7)) / 3,),
    "plackett_luce": (-log(A / (A + B + C) * B / (B + C)),),
    "rao_kupper": (
        -log(W / (W + 1.5 * L)),
        -log((1.5**2 - 1) * W * L / ((W + 1.5 * L) * (1.5 * W + L))),
        -log(L / (L + 1.5 * W)),
    ),
    "davidson": (-log(W / ALL), -log(MIDDLE / ALL), -log(L / ALL)),
    "vote, davidson": (-log(W / ALL), -log(MIDDLE / ALL), -log(L / ALL)),
    "vote, rao_kupper": (
        -log(W / (W + 1.5 * L)),
        -log((1.5**2 - 1) * W * L / ((W + 1.5 * L) * (1.5 * W + L))),
        -log(L / (L + 1.5 * W)),
    ),
    "length correlation": (RHO,),
    "length correlation, slope": tuple(
        n * RHO - RHO * s / (14 / 3) for s, n in zip((-4 / 3, -1 / 3, 5 / 3, 0.0), (-1, 1, 0, 0), strict=True)
    ),
    "process": (-log(0.75), 0.0, -log(0.25), -0.5 * log(0.75) - 0.5 * log(0.25)),
    "process score": (0.75**3,),
    "dpo": (-log(sigmoid(0.1 * 1.5)),),
    "dpo, per token": (-log(sigmoid(0.1 * (1 / 10 + 0.5 / 12))),),
    "likelihood per token": (12 / 10, 15 / 12),
    "plackett_luce, last places tied": (-log(A / (A + B + C)),),
    "apo, zero": (1 - sigmoid(0.1) + sigmoid(-0.05),),
    "apo, down": (sigmoid(0.1) + 1 - sigmoid(0.15),),
    "bco": (-log(sigmoid(0.1 - 0.025)) - log(sigmoid(0.05 + 0.025)),),
    "sppo": ((1 - 5) ** 2 + (-0.5 + 5) ** 2,),
    "sppo, soft label": ((1 - 2.5) ** 2 + (-0.5 + 2.5) ** 2,),
    "exo": (Q_W * log(Q_W / 0.999) + (1 - Q_W) * log((1 - Q_W) / 0.001),),
    "nca": (-log(sigmoid(0.1)) - log(sigmoid(-0.1)) / 2 - log(sigmoid(0.05)) / 2,),
    "kto": (1 - sigmoid(0.1 * (1 - 0.3)), 1 - sigmoid(0.1 * (0.3 + 0.5))),
    "kto, reference point": ((1.0 + 0.5) / 2,),
    "gae across a mask": (0.95 * (1 - 0.5), *[0.0] * 20, 1 - 0.5),
    "whiten": (-1.0, 1.0, 0.0),
    "reinforce++": (*[(x - statistics.mean(TO_COME)) / statistics.pstdev(TO_COME) for x in TO_COME], 0.0, 0.0),
    "reinforce++ with baseline": (math.sqrt(1.5), 0.0, -math.sqrt(1.5), 0.0),
    "missing EOS, replaced": (2.0, -1.0, -3.0),
    "missing EOS, subtracted": (2.0, 1.0, -4.0),
    "overlong": (0.0, -0.25, -0.5, -1.0),
    "clipped policy": tuple(clipped(r, a) for r, a in POINTS),
    "clipped policy, two ends, dual clip": tuple(clipped(r, a, 1.28, 3.0) for r, a in POINTS),
    "clipped value": tuple(map(critic, (0.5, 1.0, 0.0, 0.6, 2.0))),
    "truncated importance weights": (0.5, 1.0, 2.0),
    "truncated importance weights, of answers": (0.5 * 6, 0.5 * 6, 0.0, 3.5, 3.5, 3.5),
    "masked importance weights": (0.0, 0.0, 0.0, 1.0, 3.0, 2.0),
    "masked importance weights, of answers": (0.5 * 6, 0.5 * 6, 0.0, 0.0, 0.0, 0.0),
    "high entropy": (0.0, 1.0, 0.0, 0.0, 1.0, 1.0),
    "gspo, log-ratio": ((0.5 - 1) / 2, (0.5 - 1) / 2, 0.0, *[(0.3 + 0.3 + 0) / 3] * 3),
    "gspo, coefficients of the scores": (*[-2 * exp(-0.25) / 2] * 2, 0.0, 0.0, 0.0, 0.0),  # e^0.2 > 1.2
    "cispo": (-0.5 * 2 * -1, -1 * 2 * -2, -5 * -2 * -3),
    "cispo, coefficients of the scores": (-0.5 * 2, -1 * 2, -5 * -2),
    "bootstrapped rewards": (0.0, 1 + 0.5 * 3, 9.0, 0.0, 0.0, 1.0),
    "gdpo": (
        math.sqrt(2),
        -math.sqrt(0.5),
        -math.sqrt(0.5),
    ),  # z-scores add to (2, −1, −1)/√3
    "win probability": (sigmoid(2.0), 0.5),
    "mixture of logits": (0.75 * 0 + 0.25 * 1, 0.75 * 2),
    "xpo": (-0.75 * log(sigmoid(0.15)) - 0.25 * log(sigmoid(-0.15)) - 0.01 * 15,),
    "ensemble score": ((1 + 3) / 2, 3.0, min(1, 3), 3.0, 2 - 0.5 * statistics.pstdev([1, 3]), 3.0),
    "ensemble spread": (statistics.pstdev([1, 3]), 0.0),
    "running scale": (statistics.pstdev([1, 3]), statistics.pstdev([1, 3, 5, 7])),
    "dual ascent": (0.1 + 0.2 * (1.5 - 0.5), 0.3 - 0.2 * 0.5, 0.2 - 0.2 * 0.5),
    "k1": (0.5, -1.0),
    "k2": (0.5**2 / 2, 1 / 2),
    "k3": (exp(-0.5) - 1 + 0.5, exp(1) - 1 - 1),
    "k1, expected gradient": (0.0, 0.0, 0.0),
    "k2, expected gradient": along_scores([p * log(p / q) for p, q in zip(P, Q, strict=True)]),  # ∇KL(π‖ref)
    "k3, expected gradient": along_scores([-q for q in Q]),  # ∇KL(ref‖π)
    "penalised rewards": (-0.5 * 0.5, 1 + 0.5 * 1.0),
    "best of n, KL": (best_of_four(1 / 2), best_of_four(1 / 10)),
    "best of n, bound": (log(4) - 3 / 4,),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str):
    assert GOLDENS[name].expected == pytest.approx(BY_HAND[name], abs=1e-8)


def test_every_formula_has_a_golden():
    """What the goldens call covers all formulas; the rest counts, reduces, or watches training."""
    called: set[str] = set()
    sys.setprofile(lambda frame, event, _: called.add(frame.f_code.co_name) if event == "call" else None)
    try:
        for name, golden in GOLDENS.items():
            hold(name, golden.ours)
    finally:
        sys.setprofile(None)
    rest = {
        "approx_kl",
        "clip_fraction",
        "explained_variance",
        "fit_ridge_bradley_terry",
        "group_has_spread",
        "masked_mean",
        "masked_sum",
        "ranking_pairs",
        "reduce_sum",
        "scale_gradient",
    }
    assert set(algos.__all__) - called - {"AdaptiveKL", "DualAscent", "RunningScale"} <= rest


def test_where_another_librarys_estimator_pulls():
    def theirs(logits, ref_logits):
        return expected_gradient(lambda new, ref: (ref - new).exp() - 1 - (ref - new), logits, ref_logits)

    assert hold("k3, expected gradient", theirs).passed and not hold("k2, expected gradient", theirs).passed
