"""Decisions about labels: who would prefer what, what several judgements say together, how far they agree."""

from trimtab.feedback.aggregate import AggregateConfig, Aggregated, aggregate, reliability_weights
from trimtab.feedback.agreement import agreement_report, krippendorff_alpha, nominal_report
from trimtab.feedback.annotators import AnnotatorReport, annotator_reports, speed
from trimtab.feedback.callables import Utility, load_callable
from trimtab.feedback.gold import friendly_parts, friendly_utility
from trimtab.feedback.intervals import (
    Estimate,
    bootstrap_interval,
    clustered_wilson_interval,
    median_interval,
    paired_bootstrap_interval,
    wilson_interval,
)
from trimtab.feedback.simulated import CohortConfig, SimulationConfig, simulate
from trimtab.feedback.votes import canonical_ranks, pair_votes, settled, usable_judgements

__all__ = [
    "AggregateConfig",
    "Aggregated",
    "AnnotatorReport",
    "CohortConfig",
    "Estimate",
    "SimulationConfig",
    "Utility",
    "aggregate",
    "agreement_report",
    "annotator_reports",
    "bootstrap_interval",
    "canonical_ranks",
    "clustered_wilson_interval",
    "friendly_parts",
    "friendly_utility",
    "krippendorff_alpha",
    "load_callable",
    "median_interval",
    "nominal_report",
    "pair_votes",
    "paired_bootstrap_interval",
    "reliability_weights",
    "settled",
    "simulate",
    "speed",
    "usable_judgements",
    "wilson_interval",
]
