"""Experiments whose optimum is known, and the values any loss function can be held against."""

from trimtab.conformance.experiments import FAST, LONG, conformance
from trimtab.conformance.goldens import GOLDENS, Golden, Held, expected_gradient, hold, score_coefficients
from trimtab.conformance.rows import Row

__all__ = [
    "FAST",
    "GOLDENS",
    "LONG",
    "Golden",
    "Held",
    "Row",
    "conformance",
    "expected_gradient",
    "hold",
    "score_coefficients",
]
