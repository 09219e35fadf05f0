"""``trimtab round RUN``: the next round of a run, from votes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.annotate import DatabaseUrl
from trimtab.cli.run import Json, Set, summary

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, for example runs/NAME.", show_default=False)]


def next_round(
    run: Run,
    votes: Annotated[
        Path | None,
        typer.Option(
            "--votes",
            metavar="PROJECT",
            help="Project of `trimtab serve --chat` or `trimtab annotate`, or its export in the format judgements. "
            "Default: that of the round that was begun.",
        ),
    ] = None,
    set: Set = None,
    database: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Make the next round of a run from votes on its answers: preferences, reward model, alignment, evaluation.

    The round starts from the policy of the one before. The same command continues a round that was interrupted.

    Example: trimtab round runs/quickstart --votes votes
    """
    from trimtab.pipeline.rounds import next_round as make

    made = make(run, votes, database=database, overrides=set or ())
    if as_json:
        typer.echo(json.dumps(summary(run), indent=2))
        return
    page = run / "report.html"
    typer.echo(
        f"Round {made.number} is done: {page if page.is_file() else made.path}. Compare it with the round before:\n"
        f"  trimtab serve {run} --model policy --model round-{made.number - 1} --chat PROJECT",
        err=True,
    )
