"""``trimtab watch RUN [RUN…]``: the curves of runs while they train, and the answers behind each step."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trimtab.storage.watched import WatchedRun


def watch(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="One to four run folders, for example runs/quickstart.", show_default=False
        ),
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 takes any free one.")] = 0,
    once: Annotated[bool, typer.Option("--once", help="Print the state of each run and its alarms, and stop.")] = False,
    webhook: Annotated[
        str | None,
        typer.Option("--webhook", metavar="URL", help="Send each new alarm to this URL. Default: none."),
    ] = None,
) -> None:
    """Watch runs in the browser: curves, alarms, and the answers of every step, live.

    It only reads, so it can be started and stopped while the run trains, and it shows finished runs as well.

    Example: trimtab watch runs/quickstart
    """
    from trimtab.storage.watched import WatchedRun

    watched = [WatchedRun(path) for path in runs]
    if once:
        for run in watched:
            typer.echo("\n".join(state_lines(run)))
        return
    from trimtab.web.watch_server import serve_watch

    serve_watch(watched, port=port, webhook=webhook, say=typer.echo)


def state_lines(run: "WatchedRun") -> list[str]:
    """A run's stages and alarms in words."""
    lines = [f"{run.name}:"]
    for stage in run.stages():
        steps = f", {stage['steps']} steps" if stage["steps"] else ""
        lines.append(f"  {stage['stage']}: {stage['state']}{steps}")
    if len(lines) == 1:
        lines.append("  no stage has begun yet")
    for alarm in run.alarms():
        lines.append(f"  ALARM ({alarm['level']}) at step {alarm['step']}: {alarm['title']}: {alarm['message']}")
    return lines
