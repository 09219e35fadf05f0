"""``trimtab agreement``: how well annotators agree, and how far length and position explain their choices."""

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.annotate import DatabaseUrl


def agreement(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PROJECT", help="An annotation project, or a folder with comparisons.jsonl and judgements.jsonl."
        ),
    ],
    criterion: Annotated[
        str | None, typer.Option("--criterion", help="Which criterion. Default: the first of the project.")
    ] = None,
    fast: Annotated[
        float | None, typer.Option("--fast", help="Judgements faster than this many seconds count as too fast.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="METHOD",
            help="Fit all judgements together and show each annotator's skill, ties and position bias: davidson, "
            "rao_kupper or dawid_skene.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    database: DatabaseUrl = None,
) -> None:
    """Show how well annotators agree, and their biases, with 95 % intervals.

    Example: trimtab agreement my-project --criterion helpful
    """
    from trimtab.errors import ConfigError
    from trimtab.feedback import agreement_report, annotator_reports, describe_left_out, left_out, nominal_report

    items, judgements, criteria, limit, units, unread = _read(source, database)
    known = sorted({*criteria, *(j.criterion for j in judgements if j.ranks is not None)})
    if criterion is not None and criterion not in known:
        raise ConfigError(f"--criterion {criterion!r}: not one of this project's criteria: {', '.join(known)}")
    criterion, limit = criterion or criteria[0], fast if fast is not None else limit
    report = agreement_report(items, judgements, criterion=criterion)
    nominal = {kind: nominal_report(labels) for kind, labels in units.items() if labels}
    workers = annotator_reports(items, judgements, criterion=criterion, fast_seconds=limit)
    fitted = None if model is None else _fitted(items, judgements, model, criterion)
    reasons = dict(Counter(left_out(items, judgements, criterion=criterion)) + Counter(unread))
    total = len(judgements) + sum(unread.values()) + sum(len(v) for labels in units.values() for _, v in labels)
    simulated = sum(j.source == "simulated" for j in judgements)
    if json:
        facts = {"criterion": criterion, "judgements": total, "left_out": reasons, "simulated": simulated}
        _print_json(facts, report, nominal, workers, model, fitted)
        return
    notes = [f"{simulated} of {len(judgements)} judgements are SIMULATED."] if simulated else []
    if account := describe_left_out(total, reasons):
        notes.append(account)
    _print_tables(criterion, notes, report, nominal, workers, model, fitted)


def _print_json(facts, report, nominal, workers, model: str | None, fitted) -> None:
    """Everything as JSON."""
    from json import dumps

    def plain(estimates):
        return {name: e.model_dump(exclude={"name"}) for name, e in estimates.items()}

    written = {
        **facts,
        "agreement": plain(report),
        **{kind: plain(estimates) for kind, estimates in nominal.items()},
        "annotators": [w.model_dump() for w in workers],
    }
    if fitted is not None:
        habits = [h.model_dump() for h in fitted.habits]
        written["model"] = {"method": model, "notes": fitted.notes, "annotators": habits}
    typer.echo(dumps(written, indent=2))


def _print_tables(criterion: str, notes: list[str], report, nominal, workers, model: str | None, fitted) -> None:
    """Everything as tables, after the notes."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False)
    for note in notes:
        console.print(note)
    table = Table("statistic", "value", "95 % interval", "n", title=f"criterion {criterion!r}", title_justify="left")
    for name, e in report.items():
        table.add_row(name, _number(e.value), _interval(e), str(e.n))
    for kind, estimates in nominal.items():
        for name, e in estimates.items():
            table.add_row(f"{kind}: {name}", _number(e.value), _interval(e), str(e.n))
    console.print(table)
    console.print(_workers(workers))
    if fitted is not None:
        console.print(_habits(model, fitted.habits))
        for note in fitted.notes:
            console.print(note)


def _fitted(items, judgements, model: str, criterion: str):
    """All judgements fitted by one model."""
    from trimtab.config import parse_config
    from trimtab.errors import ConfigError
    from trimtab.feedback import AggregateConfig, aggregate

    if model == "majority":
        raise ConfigError("--model majority fits nothing; choose davidson, rao_kupper or dawid_skene")
    values = {"method": model, "criterion": criterion, "keep_tied": True}
    return aggregate(items, judgements, config=parse_config(AggregateConfig, values, where="--model"))


def _workers(workers):
    """How each annotator works, as a table."""
    from rich.table import Table

    table = Table(
        "annotator", "judged", "agrees with others", "first shown wins", "longest wins", "seconds", "too fast"
    )
    for w in workers:
        estimates = (w.agreement, w.first_shown_wins, w.longest_wins, w.seconds, w.fast)
        table.add_row(w.annotator, str(w.judgements), *map(_cell, estimates))
    return table


def _habits(model, habits):
    """What each annotator does differently by the fitted model, as a table."""
    from rich.table import Table

    table = Table("annotator", "votes", "skill", "ties", "first shown wins", title=model, title_justify="left")
    for h in habits:
        table.add_row(h.annotator, str(h.votes), *map(_cell, (h.skill, h.ties, h.position)))
    return table


def _read(source: Path, database: str | None):
    from trimtab.records import Comparison, Judgement, read_records

    judged = source / "judgements.jsonl"
    if database is None and judged.is_file():
        from trimtab.feedback.annotators import FAST_SECONDS

        return (
            read_records(source / "comparisons.jsonl", Comparison),
            read_records(judged, Judgement),
            ("overall",),
            FAST_SECONDS,
            {},
            {},
        )
    from trimtab.records.annotation import nominal_units
    from trimtab.storage.snapshot import take_snapshot
    from trimtab.web.exchange import comparisons_and_judgements
    from trimtab.web.server import open_project

    with closing(open_project(source, database, create=False)) as project:
        snapshot = take_snapshot(project.store)
    items, judgements = comparisons_and_judgements(snapshot)
    tasks = {t.id: t for t in snapshot.tasks if t.check is None and t.id not in set(snapshot.retired)}
    units = {kind: nominal_units(kind, tasks, snapshot.submissions) for kind in ("thumbs", "steps")}
    criteria = tuple(c.name for c in snapshot.config.criteria)
    return items, judgements, criteria, snapshot.config.fast_seconds, units, _unread(snapshot)


def _unread(snapshot) -> dict[str, int]:
    """Submissions that no statistic uses and that are about no comparison in use, by reason."""
    tasks, retired = {t.id: t for t in snapshot.tasks}, set(snapshot.retired)
    reasons: Counter[str] = Counter()
    for s in snapshot.submissions:
        if tasks[s.task].check is not None:
            reasons["check item"] += 1
        elif s.task in retired:
            reasons["item retired"] += 1
        elif tasks[s.task].kind != "compare" and s.adjudication:
            reasons["adjudication"] += 1
        elif tasks[s.task].kind != "compare" and s.verdict != "judged":
            reasons[f"not judged: {s.verdict}"] += 1
    return dict(reasons)


def _cell(estimate) -> str:
    return f"{_number(estimate.value)} {_interval(estimate)}".strip()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _interval(estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return estimate.reason
    return f"[{estimate.low:.2f}, {estimate.high:.2f}]"
