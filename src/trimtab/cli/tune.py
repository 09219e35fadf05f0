"""``trimtab tune RUN``: one person tunes a run's policy by comparing its answers."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.run import Set


def tune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, for example runs/NAME.")],
    every: Annotated[
        int, typer.Option(min=4, max=200, help="Comparisons with a winner after which the model is trained again.")
    ] = 24,
    votes: Annotated[
        Path | None,
        typer.Option("--votes", metavar="PROJECT", help="Where comparisons are stored. Default: RUN/tune."),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes any free one.")
    ] = 8000,
    set: Set = None,
) -> None:
    """Tune a run's policy by comparing its answers on a page of this machine.

    The model is trained in the background after every few dozen comparisons, as a further round of the run. The page
    says whether it has learned your taste. Ctrl-C stops; the same command continues.

    Example: trimtab tune runs/quickstart
    """
    from trimtab.serve.tune import tune as serve

    typer.echo(f"loading {run} …", err=True)
    serve(run, votes, every=every, overrides=set or (), port=port, say=typer.echo)
