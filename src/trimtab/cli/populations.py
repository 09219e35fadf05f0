"""``trimtab populations``: results by cohort of annotators, and under other weightings of the cohorts."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.cli.annotate import DatabaseUrl


def populations(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PROJECT",
            help="An annotation project, a folder with comparisons.jsonl and judgements.jsonl, or a run's folder with "
            "blind readings.",
            show_default=False,
        ),
    ],
    by: Annotated[
        str | None,
        typer.Option(
            "--by", metavar="PART", help="Part of the cohort to compare by, for example language. Default: all."
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight", metavar="COHORT=SHARE", help="Share of a cohort in another population; can be repeated."
        ),
    ] = None,
    models: Annotated[
        tuple[str, str] | None,
        typer.Option("--models", metavar="A B", help="How often A is preferred to B. Default: those compared most."),
    ] = None,
    least: Annotated[
        int,
        typer.Option(
            "--least",
            min=2,
            help="Fewest people of a cohort that is shown separately; at least the project's min_cell.",
        ),
    ] = 5,
    criterion: Annotated[str, typer.Option("--criterion", help="Which criterion.")] = "overall",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    database: DatabaseUrl = None,
) -> None:
    """Show who prefers which model: win rates by cohort, where cohorts disagree, and other weightings.

    Example: trimtab populations my-project --by language --weight de=0.7 --weight fr=0.3
    """
    from trimtab.feedback.populations import population

    items, judgements, fewest = _read(source, database)
    result = population(
        items, judgements, by=by, models=models, weights=_weights(weight), least=max(least, fewest), criterion=criterion
    )
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
        return
    _print(result, simulated=sum(j.source == "simulated" for j in judgements), total=len(judgements))


FEWEST = 2
"""Fewest people of a cohort that is shown as one, where no project says more."""


def _read(source: Path, database: str | None) -> Any:
    """Items, judgements, and the fewest people of a cohort that may be shown as one."""
    from trimtab.errors import DataError
    from trimtab.records import Comparison, Judgement, read_records

    if database is None and (source / "judgements.jsonl").is_file():
        items = read_records(source / "comparisons.jsonl", Comparison)
        return items, read_records(source / "judgements.jsonl", Judgement), FEWEST
    if database is None and (source / "config.yaml").is_file():
        from trimtab.pipeline.cohorts import blind_judgements
        from trimtab.storage import RunFolder

        items, judgements = blind_judgements(RunFolder(source, create=False))
        if not judgements:
            raise DataError(
                f"{source}: no one has read this run's answers blind; ask people with `trimtab eval RECIPE --annotate`"
            )
        return items, judgements, FEWEST
    from trimtab.storage.snapshot import comparisons_and_judgements, take_snapshot
    from trimtab.web.server import open_project

    with closing(open_project(source, database, create=False)) as project:
        snapshot = take_snapshot(project.store)
    return *comparisons_and_judgements(snapshot), snapshot.config.min_cell


def _weights(given: list[str] | None) -> Mapping[str, float] | None:
    from trimtab.errors import ConfigError

    if not given:
        return None
    weights: dict[str, float] = {}
    for text in given:
        name, _, share = text.rpartition("=")
        try:
            weights[name] = float(share)
        except ValueError:
            name = ""
        if not name:
            raise ConfigError(f"--weight {text}: expected COHORT=SHARE, for example de=0.7")
    return weights


def _print(result: Any, *, simulated: int, total: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False)
    if simulated:
        console.print(f"{simulated} of {total} judgements are SIMULATED.")
    preferred = f"{result.model} over {result.rival}" if result.model else "win rate"
    table = Table("cohort", "people", "judgements", preferred, "agrees with the others")
    for c in result.cohorts:
        table.add_row(c.name, str(c.people), str(c.judgements), _shown(c.rate), _shown(c.agreement))
    console.print(table)
    console.print(f"cohorts disagree on {_shown(result.disagreement)}")
    for name, rate in result.weightings.items():
        console.print(f"{preferred}, {name}: {_shown(rate)}")
    for note in result.notes:
        console.print(note)


def _shown(estimate: Any) -> str:
    if estimate.value is None:
        return f"– ({estimate.reason})"
    ends = "" if estimate.low is None else f" [{estimate.low:.0%}, {estimate.high:.0%}]"
    return f"{estimate.value:.0%}{ends} of {estimate.n}"
