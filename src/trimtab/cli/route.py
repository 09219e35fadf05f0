"""``trimtab route``: which of a judge's labels can stand alone, and which items need a person."""

from pathlib import Path
from typing import Annotated

import typer


def route(
    judged: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder made by `trimtab judge`.")],
    people: Annotated[
        list[Path] | None, typer.Option("--people", help="File of people's judgements so far; may be given again.")
    ] = None,
    error: Annotated[float, typer.Option("--error", min=0.001, max=0.499, help="Stated error of AI labels.")] = 0.1,
    audit: Annotated[float, typer.Option("--audit", min=0.001, max=1.0, help="Share audited by people.")] = 0.1,
    calibration: Annotated[str, typer.Option("--calibration", help="temperature, isotonic or none.")] = "temperature",
    seed: Annotated[int, typer.Option("--seed", help="Of the draw of audits.")] = 0,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other routing setting, e.g. cost_per_hour=20."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Divide labels between AI and people; run again as people's judgements come in.

    Writes labels.jsonl (those that count), queue.jsonl (items that wait for a person: import it into the annotation
    app), audits.jsonl and routing.json into FOLDER. A judgement with the verdict `flag` takes out an item that nobody
    ranked. The settings of `--set` are those of `label.route` in a recipe.
    """
    from trimtab.config import parse_config
    from trimtab.feedback import RouteConfig, ensemble, label_hybrid, routing_lines
    from trimtab.files import write_json
    from trimtab.pipeline.ai_labels import FilePeople, flagged, people_only, read_people
    from trimtab.pipeline.config import override
    from trimtab.pipeline.judging import plain
    from trimtab.pipeline.ui import Ui
    from trimtab.records import Comparison, Judgement, read_records, write_records
    from trimtab.storage import read_json

    ui = Ui()
    values = {"error": error, "audit": audit, "calibration": calibration, "seed": seed}
    for item in set or []:
        override(values, item)
    config = parse_config(RouteConfig, values, where="trimtab route")
    items = read_records(judged / "comparisons.jsonl", Comparison)
    pairs = [i for i in items if len(i.completions) == 2]
    if len(pairs) < len(items):
        ui.say(f"{len(items) - len(pairs)} items have more than two answers; left out")
    ai = read_records(judged / "judgements.jsonl", Judgement)
    there, missing = read_people(people or [])
    given, said = people_only(pairs, there)
    for line in [*missing, *said]:
        ui.say(line)
    gone = flagged(given)
    if gone:
        ui.say(f"{len(gone)} items were flagged and ranked by nobody; left out")
    cost = sum(judge["run"]["cost"] for judge in read_json(judged / "judge.json")["judges"].values())
    result = label_hybrid(
        pairs, ensemble(pairs, ai), FilePeople(given), config, given=given, left_out=gone, ai_cost=cost
    )
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
