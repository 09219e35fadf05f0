"""Decisions about labels: AI judges, simulated annotators, routing, aggregation, agreement."""

from trimtab.feedback.aggregate import AggregateConfig, Aggregated, aggregate, reliability_weights
from trimtab.feedback.agreement import (
    agreement_report,
    describe_left_out,
    interval_alpha,
    krippendorff_alpha,
    left_out,
    nominal_report,
)
from trimtab.feedback.annotators import AnnotatorReport, annotator_reports, speed
from trimtab.feedback.calibration import brier, cross_fitted, fit_isotonic, fit_temperature, reliability
from trimtab.feedback.callables import Utility, load_callable
from trimtab.feedback.ensemble import ensemble
from trimtab.feedback.gold import friendly_parts, friendly_utility
from trimtab.feedback.intervals import (
    Estimate,
    bootstrap_interval,
    clustered_wilson_interval,
    median_interval,
    paired_bootstrap_interval,
    wilson_interval,
)
from trimtab.feedback.judge import FAILURES, Ask, JudgeConfig, Judged, Question, Reply, Verdict, combine, judge
from trimtab.feedback.judge_report import (
    AgainstPeople,
    Biases,
    JudgeRun,
    against_people,
    bias_lines,
    cohen_kappa,
    people_lines,
    report_lines,
    run_facts,
)
from trimtab.feedback.model_wins import ModelWins, Wins, model_wins
from trimtab.feedback.revision import Revised, Revision, RevisionConfig, by_principle, judge_biases, revise
from trimtab.feedback.routing import Hybrid, Queued, label_hybrid
from trimtab.feedback.routing_report import RoutingReport, routing_lines
from trimtab.feedback.simulated import CohortConfig, SimulationConfig, simulate
from trimtab.feedback.thresholds import RouteConfig, Router, Thresholds
from trimtab.feedback.votes import canonical_ranks, pair_votes, settled, usable_judgements

__all__ = [
    "FAILURES",
    "AgainstPeople",
    "AggregateConfig",
    "Aggregated",
    "AnnotatorReport",
    "Ask",
    "Biases",
    "CohortConfig",
    "Estimate",
    "Hybrid",
    "JudgeConfig",
    "JudgeRun",
    "Judged",
    "ModelWins",
    "Question",
    "Queued",
    "Reply",
    "Revised",
    "Revision",
    "RevisionConfig",
    "RouteConfig",
    "Router",
    "RoutingReport",
    "SimulationConfig",
    "Thresholds",
    "Utility",
    "Verdict",
    "Wins",
    "against_people",
    "aggregate",
    "agreement_report",
    "annotator_reports",
    "bias_lines",
    "bootstrap_interval",
    "brier",
    "by_principle",
    "canonical_ranks",
    "clustered_wilson_interval",
    "cohen_kappa",
    "combine",
    "cross_fitted",
    "describe_left_out",
    "ensemble",
    "fit_isotonic",
    "fit_temperature",
    "friendly_parts",
    "friendly_utility",
    "interval_alpha",
    "judge",
    "judge_biases",
    "krippendorff_alpha",
    "label_hybrid",
    "left_out",
    "load_callable",
    "median_interval",
    "model_wins",
    "nominal_report",
    "pair_votes",
    "paired_bootstrap_interval",
    "people_lines",
    "reliability",
    "reliability_weights",
    "report_lines",
    "revise",
    "routing_lines",
    "run_facts",
    "settled",
    "simulate",
    "speed",
    "usable_judgements",
    "wilson_interval",
]
