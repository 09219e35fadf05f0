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
    from trimtab.errors import DataError
    from trimtab.feedback import ensemble, label_hybrid, routing_lines
    from trimtab.files import write_json
    from trimtab.pipeline.ai_labels import FilePeople, flagged, people_named, people_only
    from trimtab.pipeline.judging import plain
    from trimtab.pipeline.ui import Ui
    from trimtab.records import Comparison, Judgement, read_records, write_records
    from trimtab.storage import read_json

    ui = Ui()
    items = read_records(judged / "comparisons.jsonl", Comparison)
    pairs = [i for i in items if len(i.completions) == 2]
    if len(pairs) < len(items):
        ui.say(f"{len(items) - len(pairs)} items have more than two answers; left out, with their judgements")
    ai = read_records(judged / "judgements.jsonl", Judgement)
    larger = {i.id for i in items if len(i.completions) > 2}
    given, notes = people_only(pairs, [j for j in people_named(people or [], items) if j.item not in larger])
    for line in notes:
        ui.say(line)
    left_out = flagged(given)
    if left_out:
        ui.say(f"{len(left_out)} items were flagged and not ranked; left out")
    cost = sum(judge["run"]["cost"] for judge in read_json(judged / "judge.json")["judges"].values())
    result = label_hybrid(
        pairs, ensemble(pairs, ai), FilePeople(given), settings, given=given, left_out=left_out, ai_cost=cost
    )
    before = read_records(judged / "labels.jsonl", Judgement) if (judged / "labels.jsonl").exists() else []
    if before and not result.judgements:
        raise DataError(
            f"{judged / 'labels.jsonl'} holds {len(before)} labels, and with these judgements by people none would be "
            "left. Nothing was written: name all files of judgements with --people, or delete labels.jsonl"
        )
    if len(result.judgements) < len(before):
        ui.say(f"{len(result.judgements)} labels count now, {len(before)} did before")
    write_records(judged / "labels.jsonl", result.judgements)
    write_records(judged / "queue.jsonl", result.queue)
    write_records(judged / "audits.jsonl", result.audits)
    write_json(judged / "routing.json", plain(result.report))
    if as_json:
        typer.echo((judged / "routing.json").read_text())
        return
    for line in routing_lines(result.report):
        ui.say(line)
    ui.say(f"labels: {judged / 'labels.jsonl'}, waiting for people: {judged / 'queue.jsonl'}")
