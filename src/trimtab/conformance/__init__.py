"""Proof that the trainers reach optima that are known, and the values any loss function can be held against."""

from trimtab.conformance.experiments import FAST, LONG, Row, conformance
from trimtab.conformance.goldens import GOLDENS, Golden, Held, hold

__all__ = ["FAST", "GOLDENS", "LONG", "Golden", "Held", "Row", "conformance", "hold"]
