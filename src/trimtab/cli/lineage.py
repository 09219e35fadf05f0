"""``trimtab lineage RUN ID``: from a judgement to the weights and figures it is in, and back."""

from json import dumps
from typing import Annotated

import typer

from trimtab.cli.round import Run


def lineage(
    run: Run,
    name: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Id of a vote, judgement or pair; the beginning of a checkpoint's SHA-256; or a figure: win_rate, kl, "
            "reward_accuracy.",
        ),
    ],
    round: Annotated[int | None, typer.Option("--round", min=1, help="Round of a figure. Default: the newest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Trace a judgement to its pair, reward model, update steps, policy and figures, or one of these to judgements.

    Example: trimtab lineage runs/quickstart win_rate
    """
    from trimtab.pipeline.lineage import lines, trace
    from trimtab.pipeline.rounds import open_run

    traced = trace(open_run(run), name, round=round)
    if as_json:
        typer.echo(dumps(traced.model_dump(mode="json", exclude_unset=True), indent=2))
        return
    for line in lines(traced):
        typer.echo(line)
