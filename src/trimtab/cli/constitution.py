"""``trimtab constitution``: check, show and compare constitutions."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Check, show and compare constitutions.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(metavar="FILE", help="YAML file, or default for the one that ships.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@app.command()
def check(file: Source = "default", as_json: Json = False) -> None:
    """Check a constitution: ids, fields, weights; print its version. Exit code 2 if it is not usable."""
    from trimtab.constitution import load_constitution

    found = load_constitution(file)
    if as_json:
        versions = {p.id: p.version for p in found.principles}
        typer.echo(json.dumps({"name": found.name, "version": found.version, "principles": versions}, indent=2))
        return
    count = len(found.principles)
    typer.echo(f"{found.name}: {count} principle{'' if count == 1 else 's'}, version {found.version}")
    for tag in found.tags:
        typer.echo(f"  {tag}: {', '.join(p.id for p in found.tagged(tag))}")


@app.command()
def show(
    file: Source = "default",
    principle: Annotated[str | None, typer.Option("--principle", help="Only this one.")] = None,
) -> None:
    """Print a constitution as YAML, to read or to start one's own from."""
    import yaml

    from trimtab.constitution import load_constitution

    found = load_constitution(file)
    shown = [found[principle]] if principle else found.principles
    typer.echo(f"# version {found.version}")
    values = {"name": found.name, "principles": [p.model_dump(mode="json") for p in shown]}
    typer.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110), nl=False)


@app.command()
def diff(
    before: Source,
    after: Annotated[str, typer.Argument(metavar="FILE", help="The other one.")],
    judged: Annotated[
        Path | None, typer.Option("--judged", help="Folder of `trimtab judge`: count what would be asked again.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what changed between two constitutions; exit code 1 if anything did."""
    from trimtab.constitution import compare, load_constitution

    old, new = load_constitution(before), load_constitution(after)
    changes = compare(old, new)
    again = None
    if judged is not None:
        from trimtab.pipeline.impact import questions_again

        again = questions_again(judged, new)
    if as_json:
        plain = [{"id": c.id, "kind": c.kind, "fields": {k: [a, b] for k, a, b in c.fields}} for c in changes]
        values = {"before": old.version, "after": new.version, "changes": plain, "again": again}
        typer.echo(json.dumps(values, indent=2))
    else:
        typer.echo(f"{old.version} → {new.version}: {len(changes)} change(s)")
        for change in changes:
            typer.echo(f"  {change.kind} {change.id}")
            for field, was, now in change.fields:
                typer.echo(f"    {field}: {was}\n    {' ' * len(field)}→ {now}")
        for name, counts in (again or {}).items():
            typer.echo(f"  judge {name}: {counts['again']} of {counts['questions']} questions would be asked again")
    if changes:
        raise typer.Exit(1)
