"""Evaluation without torch: win rates, reward-model accuracy, text probes, and the before/after page."""

from trimtab.evals.alarms import alarms
from trimtab.evals.balance import Measure, declines, measure, preaches, takes_up
from trimtab.evals.probes import LEXICONS, PROBES, copies, probe_table
from trimtab.evals.report import PANELS, write_report
from trimtab.evals.report_data import (
    Alarm,
    Answer,
    Example,
    Examples,
    ProbeColumn,
    Reading,
    ReportData,
    RewardAgainstKL,
    ScoreCurve,
    Series,
    Source,
    Stage,
    WinRateRow,
    choose_examples,
    reward_against_kl,
    series_from_metrics,
)
from trimtab.evals.reward_model import CalibrationRow, RewardModelEval, evaluate_reward_model
from trimtab.evals.winrate import WinRate, win_rate

__all__ = [
    "LEXICONS",
    "PANELS",
    "PROBES",
    "Alarm",
    "Answer",
    "CalibrationRow",
    "Example",
    "Examples",
    "Measure",
    "ProbeColumn",
    "Reading",
    "ReportData",
    "RewardAgainstKL",
    "RewardModelEval",
    "ScoreCurve",
    "Series",
    "Source",
    "Stage",
    "WinRate",
    "WinRateRow",
    "alarms",
    "choose_examples",
    "copies",
    "declines",
    "evaluate_reward_model",
    "measure",
    "preaches",
    "probe_table",
    "reward_against_kl",
    "series_from_metrics",
    "takes_up",
    "win_rate",
    "write_report",
]
