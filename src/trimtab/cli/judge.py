"""``trimtab judge``: AI labels under a constitution, with the report that goes with them."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.data import Format, Limit
from trimtab.cli.options import settings_of
from trimtab.feedback import JudgeConfig


@settings_of(JudgeConfig)
def judge(
    items: Annotated[str, typer.Argument(metavar="ITEMS", help="Comparisons or preferences, in any format.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write judgements, replies and the report to.")],
    constitution: Annotated[
        str, typer.Option("--constitution", help="YAML file, or default for the one that ships.")
    ] = "default",
    judges: Annotated[
        Path | None, typer.Option("--judges", help="YAML file of judges. Default: the local model alone.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Model of a local judge: a name, a folder or a hub id.")
    ] = None,
    context: Annotated[int, typer.Option("--context", min=64, help="Longest question, in the model's tokens.")] = 2048,
    people: Annotated[
        Path | None, typer.Option("--people", help="People's judgements to compare the judges with (JSON lines).")
    ] = None,
    format: Format = "auto",
    limit: Limit = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    *,
    settings: JudgeConfig,
) -> None:
    """Judge answers with an AI under a constitution; the same command continues an interrupted one.

    The judges are compared with the labels in ITEMS (a preference's ranks), or with those of --people, and these labels
    are written to people.jsonl. No text of an item is printed.

    Example: trimtab judge pairs.jsonl --out judged --mode reason --principles 2
    """
    from trimtab.constitution import load_constitution
    from trimtab.feedback.principles import principle_lines
    from trimtab.models import ModelConfig
    from trimtab.models.embedded import NAME
    from trimtab.pipeline.ai_labels import people_only
    from trimtab.pipeline.impact import write_principles
    from trimtab.pipeline.judge_result import FILE
    from trimtab.pipeline.judging import LocalJudge, judge_items, read_items, read_judges
    from trimtab.pipeline.ui import Ui
    from trimtab.records import Judgement, read_records, write_records

    ui = Ui()
    rules = load_constitution(constitution)
    comparisons, labels, notes = read_items(items, format=format, limit=limit)
    for line in notes:
        ui.say(line)
    if people is not None:
        labels = read_records(people, Judgement)
    labels, notes = people_only(comparisons, labels)
    for line in notes:
        ui.say(line)
    sources = read_judges(judges) if judges else {"local": LocalJudge()}
    judge_items(
        comparisons, rules, sources, settings, out,
        default=ModelConfig(name=model or NAME, context=context), ui=ui, people=labels, seed=settings.seed,
    )  # fmt: skip
    write_records(out / "people.jsonl", labels)
    for name, report in write_principles(out, rules, labels).items():
        ui.say(f"  principles, by judge {name}:")
        for line in principle_lines(report):
            ui.say(f"    {line}")
    if as_json:
        typer.echo((out / FILE).read_text())
    else:
        ui.say(f"judgements: {out / 'judgements.jsonl'}, reports: {out / FILE}, {out / 'principles.json'}")
