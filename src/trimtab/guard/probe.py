"""Linear probes on activations: logistic regression on standardised states."""

from typing import Any, Self

import numpy as np
from sklearn.linear_model import LogisticRegression

STRENGTH = 0.01
"""Inverse L2 penalty C; with hundreds of dimensions and hundreds of texts a probe needs a strong penalty."""


class Probe:
    """z(h) = w·h + b; the standardisation from fitting is folded into w and b.

    Args:
        weights: ``[H]`` float32.
        bias: b.
    """

    def __init__(self, weights: np.ndarray, bias: float) -> None:
        self.weights, self.bias = weights, bias

    @classmethod
    def fit(cls, states: np.ndarray, labels: np.ndarray, *, strength: float = STRENGTH) -> Self:
        """Fit a probe; both labels get the same total weight.

        Args:
            states: ``[N, H]``.
            labels: ``[N]``, 1: restricted, 0: not.
            strength: inverse L2 penalty C.
        """
        states = np.asarray(states, dtype=np.float32)
        mean, scale = states.mean(axis=0), states.std(axis=0) + 1e-6
        model: Any = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
        model.fit((states - mean) / scale, labels)
        weights = (model.coef_[0] / scale).astype(np.float32)
        return cls(weights, float(model.intercept_[0] - weights @ mean))

    def logits(self, states: np.ndarray) -> np.ndarray:
        """Log-odds, not calibrated: ``[…, H]`` → ``[…]``."""
        return np.asarray(states, dtype=np.float32) @ self.weights + self.bias
