"""``trimtab route``: which of a judge's labels can stand alone, and which items need a person."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.options import settings_of
from trimtab.feedback import RouteConfig


@settings_of(RouteConfig)
def route(
    judged: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder made by `trimtab judge`.")],
    people: Annotated[
        list[Path] | None, typer.Option("--people", help="File of people's judgements so far; can be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    *,
    settings: RouteConfig,
) -> None:
    """Divide labels between AI judges and people; run it again as people's judgements come in.

    Writes into FOLDER: labels.jsonl (the labels that count), queue.jsonl (items that wait for a person; import it into
    the annotation app), audits.jsonl and routing.json. An item that people flagged and nobody ranked is left out.

    Example: trimtab route judged --people judged/people.jsonl --error 0.1
    """
    from trimtab.feedback import routing_lines
    from trimtab.pipeline.ai_labels import ROUTING, route_folder
    from trimtab.pipeline.ui import Ui

    ui = Ui()
    report = route_folder(judged, people or [], settings, ui)
    if as_json:
        typer.echo((judged / ROUTING).read_text())
        return
    for line in routing_lines(report):
        ui.say(line)
    ui.say(f"labels: {judged / 'labels.jsonl'}, waiting for people: {judged / 'queue.jsonl'}")
