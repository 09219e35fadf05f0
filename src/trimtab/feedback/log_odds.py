"""Probabilities and their log-odds."""

import math


def sigmoid(x: float) -> float:
    """σ(x) = 1 / (1 + e^−x), without overflow.

    >>> sigmoid(0.0), sigmoid(-1000.0)
    (0.5, 0.0)
    """
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def logit(p: float) -> float:
    """Log-odds log(p / (1 − p)), with p clipped to [10⁻⁶, 1 − 10⁻⁶] so that the result is finite.

    >>> round(logit(0.75), 4), round(logit(1.0), 4)
    (1.0986, 13.8155)
    """
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))
