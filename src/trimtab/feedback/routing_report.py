"""What hybrid labelling reports: counts, errors and costs, as data and in words."""

from collections.abc import Mapping, Sequence, Set
from typing import get_args

from trimtab.feedback.calibration import cross_fitted, reliability
from trimtab.feedback.intervals import Estimate
from trimtab.feedback.thresholds import Audit, Route, RouteConfig, Router, Thresholds, error_estimate
from trimtab.records import Comparison, Judgement, Record


class RoutingReport(Record):
    """What hybrid labelling reports. Shares and errors of the AI are estimated from the audited items."""

    items: int
    """Items that were routed."""
    routes: dict[Route, int]
    """Items by route."""
    coverage: float
    """Share of the items that the AI labels alone."""
    thresholds: Thresholds
    """Thresholds in force at the end."""
    audited: int
    """Items drawn for audit that have a person's label."""
    drawn_for_audit: int
    """Items drawn for audit."""
    labels_of_people: int
    """Labels by people that were needed."""
    labels_not_needed: int | None = None
    """Labels by people beyond those needed; None, here and in other fields: the report is by an early version."""
    waiting: int
    """Items without a judgement that counts."""
    labels_saved: int
    """Labels that people did not have to give, compared with one per item; negative: they gave more than one."""
    seconds_per_label: float
    """Mean time of a person's label, measured if known, else ``seconds_per_label`` of the settings."""
    hours_saved: float
    """Time that the labels saved would have taken, in hours."""
    cost_of_people: float
    """Cost of all labels by people, at ``cost_per_hour`` of the settings."""
    cost_saved: float
    """What the labels saved would have cost."""
    calibration_error: dict[str, float] | None = None
    """Expected calibration error of the judge on audited items: ``as said``, and calibrated by the settings' method."""
    error_of_ai: Estimate
    """Share of all items on which the AI is wrong."""
    error_by_route: dict[Route, Estimate]
    """The same by route."""
    error_by_principle: dict[str, Estimate]
    """The same by principle of the judge."""
    speak_to_judge: int | None = None
    """Items with an answer that seems to address the judge; they go to people."""
    skipped: int | None = None
    """Items skipped by everyone asked so far; still queued."""
    cost_of_ai: float | None = None
    """Cost of the judge."""
    reopened: tuple[int, ...]
    """Each time thresholds were set anew: the number of audits before it."""


def routing_report(
    items: Sequence[Comparison],
    by_ai: Mapping[str, Judgement],
    routes: Mapping[str, Route],
    labels: Mapping[tuple[str, int], Judgement],
    audits: Sequence[Audit],
    router: Router,
    config: RouteConfig,
    *,
    waiting: Set[str],
    drawn: int,
    not_needed: int,
    speak_to_judge: int,
    skipped: int,
    ai_cost: float,
    reopened: Sequence[int],
) -> RoutingReport:
    """Cost, coverage, error by route and principle, hours saved.

    Args:
        items: the items that were routed.
        by_ai: the judge's judgement of each item.
        routes: the route of each item.
        labels: people's labels, by item and number of the person.
        audits: every audited item.
        router: thresholds in force at the end.
        config: method of calibration, seed, times and costs.
        waiting: ids of items without a judgement that counts.
        drawn: items drawn for audit.
        not_needed: labels by people that no item needed.
        speak_to_judge: items with an answer that seems to address the judge.
        skipped: items skipped by everyone asked so far.
        ai_cost: what the judge cost.
        reopened: the number of audits before each time that thresholds were set anew.
    """
    counts: dict[Route, int] = {route: list(routes.values()).count(route) for route in get_args(Route)}
    probabilities, weights = {"as said": [a.probability for a in audits]}, [1 / a.inclusion for a in audits]
    if len({a.prompt for a in audits}) > 1 and config.calibration != "none":
        probabilities[f"{config.calibration}, cross-fitted"] = cross_fitted(
            config.calibration,
            probabilities["as said"],
            [a.label for a in audits],
            [a.prompt for a in audits],
            weights=weights,
            seed=config.seed,
        )
    times = [j.seconds for j in labels.values() if j.seconds is not None]
    seconds = sum(times) / len(times) if times else config.seconds_per_label
    labels_saved = len(items) - len(labels) - sum((name, 0) not in labels for name in waiting)
    by_route: dict[Route, list[Audit]] = {route: [] for route in counts}
    principles: dict[str, list[Audit]] = {}
    for audit in audits:
        by_route[routes[audit.item]].append(audit)
        ai_judgement = by_ai.get(audit.item)
        for name in (ai_judgement.principle or "").split(",") if ai_judgement is not None else []:
            if name:
                principles.setdefault(name, []).append(audit)
    return RoutingReport(
        items=len(items),
        routes=counts,
        coverage=counts["ai"] / len(items) if items else 0.0,
        thresholds=router.thresholds,
        audited=len(audits),
        drawn_for_audit=drawn,
        labels_of_people=len(labels),
        labels_not_needed=not_needed,
        waiting=len(waiting),
        labels_saved=labels_saved,
        seconds_per_label=seconds,
        hours_saved=labels_saved * seconds / 3600,
        cost_of_people=(len(labels) + not_needed) * seconds / 3600 * config.cost_per_hour,
        cost_saved=labels_saved * seconds / 3600 * config.cost_per_hour,
        calibration_error={
            name: reliability(values, [a.label for a in audits], weights)[1] for name, values in probabilities.items()
        },
        error_of_ai=error_estimate(audits),
        error_by_route={route: error_estimate(group) for route, group in by_route.items()},
        error_by_principle={name: error_estimate(group) for name, group in sorted(principles.items())},
        speak_to_judge=speak_to_judge,
        skipped=skipped,
        cost_of_ai=ai_cost,
        reopened=tuple(reopened),
    )


def routing_lines(report: RoutingReport) -> list[str]:
    """The report in words, one line each."""
    thresholds, routes = report.thresholds, report.routes
    lines = [
        f"{report.items} items: AI alone {routes['ai']} ({report.coverage:.0%}), both {routes['both']}, "
        f"people {routes['person']}; {report.audited} audited, {report.waiting} wait for a person",
        f"{report.labels_of_people} labels by people, {abs(report.labels_saved)} "
        f"{'fewer' if report.labels_saved >= 0 else 'MORE'} than one per item: "
        f"{abs(report.hours_saved):.1f} h at {report.seconds_per_label:.0f} s",
    ]
    if report.speak_to_judge:
        lines.append(f"{report.speak_to_judge} have an answer that seems to address the judge; they go to people")
    if report.skipped:
        lines.append(f"{report.skipped} items were skipped by everyone asked so far; still queued")
    if report.labels_not_needed:
        lines.append(f"{report.labels_not_needed} labels by people were not needed")
    if report.cost_of_ai:
        lines.append(f"the AI cost {report.cost_of_ai:.2f}")
    if report.cost_of_people:
        lines.append(
            f"people cost {report.cost_of_people:.2f}; the labels saved would have cost {report.cost_saved:.2f}"
        )
    if thresholds.high is not None and thresholds.error.value is not None:
        low, high = thresholds.error.low or 0.0, thresholds.error.high or 0.0
        lines.append(
            f"AI alone from confidence {thresholds.high:.2f}: error {thresholds.error.value:.1%} "
            f"[{low:.1%}, {high:.1%}] on {thresholds.error.n} audited items"
        )
    if thresholds.reason:
        lines.append(thresholds.reason)
    if report.calibration_error is not None:
        errors = ", ".join(f"{name} {value:.3f}" for name, value in report.calibration_error.items())
        lines.append(f"calibration error of the judge on audited items (weighted): {errors}")
    for name, error in report.error_by_route.items():
        if error.value is not None:
            lines.append(
                f"  AI's error where the route is {name}: {error.value:.1%} [{error.low:.1%}, {error.high:.1%}]"
            )
    estimated = {name: e for name, e in report.error_by_principle.items() if e.value is not None}
    if estimated:
        principle_errors = (f"{name} {e.value:.0%} [{e.low:.0%}, {e.high:.0%}]" for name, e in estimated.items())
        lines.append(f"  by principle: {', '.join(principle_errors)}")
    if report.reopened:
        lines.append(f"the audit drifted; thresholds were set anew after {list(report.reopened)} audits")
    return lines
