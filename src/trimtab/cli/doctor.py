"""``trimtab doctor``: is this machine ready?"""

import json
from typing import Annotated

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Check the installation, the machine and the default model; exit 1 if something needed is missing."""
    from rich.console import Console
    from rich.markup import escape

    from trimtab.pipeline.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps(findings, indent=2))
    else:
        console = Console()
        for item in findings:
            mark = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}[item["state"]]
            console.print(f"{mark}  {escape(item['name'])}: {escape(item['text'])}", highlight=False, soft_wrap=True)
    if any(item["state"] == "problem" for item in findings):
        raise typer.Exit(1)
