"""The results of each round of a run, for the page."""

from trimtab.evals import Evaluation, RoundRow
from trimtab.feedback import Estimate
from trimtab.pipeline.evaluation_result import read_evaluation
from trimtab.storage import RunFolder

JUDGES = ("gold", "proxy")
"""Judges whose win rates describe a round; the first one that the run has is used."""


def round_rows(run: RunFolder) -> tuple[RoundRow, ...]:
    """The rounds up to this one; empty for the first round, which has no earlier round to compare with."""
    if run.number == 1:
        return ()
    return tuple(row for folder in (*run.earlier(), run) if (row := _row(folder)) is not None)


def _row(run: RunFolder) -> RoundRow | None:
    if not run.is_finished("evaluate") or not run.made_from("evaluate", "align"):
        return None
    result = read_evaluation(run.stage("evaluate"))
    start = result.models[-2]
    judge = next((name for name in JUDGES if name in result.judges), None)
    label, preferences = run.status("label"), run.status("preferences")
    labels = {} if label is None else label.counts or {}
    return RoundRow(
        round=run.number,
        labels=labels.get("judgements"),
        label_source=labels.get("source") or "",
        preferences=None if preferences is None else (preferences.counts or {}).get("preferences"),
        judge=judge or "",
        over_pretrained=_rate(result, "base", judge),
        over_before=_rate(result, start, judge),
        kl=None if result.kl is None else result.kl.estimate("KL"),
        means={name: (result.means[start][name], result.means["policy"][name]) for name in result.judges},
    )


def _rate(result: Evaluation, against: str, judge: str | None) -> Estimate | None:
    """The policy's win rate over a model by a judge."""
    for row in result.win_rates:
        if (row.model, row.against, row.judge) == ("policy", against, judge):
            return row.estimate(against)
    return None
