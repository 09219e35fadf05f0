"""``trimtab judge``: AI labels under a constitution, with the report that goes with them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.data import Format, Limit


class Mode(StrEnum):
    """How a judge is asked."""

    direct = "direct"
    reason = "reason"
    rubric = "rubric"


def judge(
    items: Annotated[str, typer.Argument(metavar="ITEMS", help="Comparisons or preferences, in any format.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for judgements, replies and the report.")],
    constitution: Annotated[str, typer.Option("--constitution", help="YAML file, or default.")] = "default",
    judges: Annotated[Path | None, typer.Option("--judges", help="YAML file of judges; default: local model.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name or folder of the local judge's model.")] = None,
    mode: Annotated[Mode, typer.Option("--mode", help="Letter, chain of thought, or scores.")] = Mode.direct,
    principles: Annotated[int, typer.Option("--principles", min=0, help="Drawn for each item; 0: all.")] = 1,
    objectives: Annotated[
        str | None, typer.Option("--objectives", help="For rubric: tags, with commas between; default: all.")
    ] = None,
    people: Annotated[Path | None, typer.Option("--people", help="Judgements of people, to compare with.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the drawing of principles.")] = 0,
    context: Annotated[int, typer.Option("--context", min=64, help="Longest question, in the model's tokens.")] = 2048,
    format: Format = "auto",
    limit: Limit = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Judge answers with an AI under a constitution; run again to continue where it stopped.

    Labels in ITEMS (a preference's ranks) or --people are what the judge is compared with; they are written to
    people.jsonl. Texts are never printed.
    """
    from trimtab.constitution import load_constitution
    from trimtab.feedback import JudgeConfig
    from trimtab.feedback.principles import principle_lines
    from trimtab.models import ModelConfig
    from trimtab.models.embedded import NAME
    from trimtab.pipeline.ai_labels import people_only
    from trimtab.pipeline.impact import write_principles
    from trimtab.pipeline.judging import LocalJudge, judge_items, read_items, read_judges
    from trimtab.pipeline.ui import Ui
    from trimtab.records import Judgement, read_records, write_records

    ui = Ui()
    written = load_constitution(constitution)
    found, labels, said = read_items(items, format=format, limit=limit)
    for line in said:
        ui.say(line)
    if people is not None:
        labels = read_records(people, Judgement)
    labels, said = people_only(found, labels)
    for line in said:
        ui.say(line)
    asked = read_judges(judges) if judges else {"local": LocalJudge()}
    wanted = tuple(objectives.replace(",", " ").split()) if objectives else None
    config = JudgeConfig(mode=mode.value, principles=principles or None, objectives=wanted, seed=seed)
    judge_items(
        found, written, asked, config, out,
        default=ModelConfig(name=model or NAME, context=context), ui=ui, people=labels, seed=seed,
    )  # fmt: skip
    write_records(out / "people.jsonl", labels)
    for name, report in write_principles(out, written, labels).items():
        ui.say(f"  principles, by judge {name}:")
        for line in principle_lines(report):
            ui.say(f"    {line}")
    if as_json:
        typer.echo((out / "judge.json").read_text())
    else:
        ui.say(f"judgements: {out / 'judgements.jsonl'}, reports: {out / 'judge.json'}, {out / 'principles.json'}")
