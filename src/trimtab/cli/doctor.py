"""``trimtab doctor``: check the machine, and the algorithms against known optima."""

import json
from pathlib import Path
from typing import Annotated

import typer

from trimtab.errors import ConfigError


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    conformance: Annotated[
        bool, typer.Option("--conformance", help="Run seven experiments with a known optimum.")
    ] = False,
    long: Annotated[
        bool, typer.Option("--long", help="With --conformance: also the sampled experiments, about half an hour.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="With --conformance: number of seeds (5); the worst result is shown.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="With --conformance: also write the table to this file, as Markdown (.md) or JSON."),
    ] = None,
) -> None:
    """Check the installation, the machine and the default model; exit code 1 if something is missing."""
    if conformance:
        _conformance(as_json, long, seeds or 5, out)
        return
    stray = [flag for flag, given in {"--long": long, "--seeds": seeds, "--out": out}.items() if given]
    if stray:
        raise ConfigError(
            f"{' and '.join(stray)}: only with --conformance, which is not given; add it, or remove the other options"
        )
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


def _conformance(as_json: bool, long: bool, seeds: int, out: Path | None) -> None:
    """The table of known optima; exit 1 if a row fails."""
    from rich.console import Console
    from rich.markup import escape

    from trimtab.conformance import Row
    from trimtab.conformance import conformance as rows_of
    from trimtab.files import write_atomic, write_json

    def tolerance(row: Row) -> str:
        if row.low == float("-inf"):
            return f"≤ {row.high:.3g}"
        return f"≥ {row.low:.3g}" if row.high == float("inf") else f"{row.low:.3g} … {row.high:.3g}"

    console, rows = Console(), []
    for row in rows_of(range(seeds), long=long):
        if not as_json:
            if not rows or rows[-1].experiment != row.experiment:
                console.print(f"\n[bold]{escape(row.experiment)}[/]")
            mark = "[green]pass[/]" if row.passed else "[red]FAIL[/]"
            console.print(
                f"{mark}  {escape(row.algorithm)}: {escape(row.measure)}: {row.value:.3g}  ({tolerance(row)}; "
                f"{row.seeds} seed{'s' if row.seeds > 1 else ''})",
                highlight=False,
                soft_wrap=True,
            )
        rows.append(row)
    table = [row.as_json() for row in rows]
    if out is not None and out.suffix == ".md":
        lines = ["| experiment | algorithm | measure | value | tolerance | passes |", "|---|---|---|---|---|---|"]
        for row in rows:
            cells = (row.experiment, row.algorithm, row.measure, f"{row.value:.3g}", tolerance(row))
            lines.append(f"| {' | '.join(c.replace('|', '∣') for c in cells)} | {'yes' if row.passed else '**no**'} |")
        write_atomic(out, "\n".join(lines) + "\n")
    elif out is not None:
        write_json(out, {"seeds": seeds, "long": long, "rows": table})
    if as_json:
        typer.echo(json.dumps(table, indent=2))
    else:
        failed = sum(not row.passed for row in rows)
        console.print(f"\n{len(rows) - failed} of {len(rows)} rows pass", highlight=False)
        if not long:
            console.print("the sampled experiments (bandit, token MDP, reward model) run with --long", highlight=False)
    if not all(row.passed for row in rows):
        raise typer.Exit(1)
