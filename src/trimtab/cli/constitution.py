"""``trimtab constitution``: check, show and compare constitutions."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Check, show and compare constitutions, the rules of AI judges.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Source = Annotated[str, typer.Argument(metavar="FILE", help="YAML file, or default for the constitution that ships.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@app.command()
def check(file: Source = "default", as_json: Json = False) -> None:
    """Check ids, fields and weights and print the version; exit code 2 if there is a mistake."""
    from trimtab.constitution import load_constitution

    written = load_constitution(file)
    if as_json:
        versions = {p.id: p.version for p in written.principles}
        rules = {r.id: r.version for r in written.guard}
        values = {"name": written.name, "version": written.version, "principles": versions, "guard": rules}
        typer.echo(json.dumps(values, indent=2))
        return
    count = len(written.principles)
    typer.echo(f"{written.name}: {count} principle{'' if count == 1 else 's'}, version {written.version}")
    for tag in written.tags:
        typer.echo(f"  {tag}: {', '.join(p.id for p in written.tagged(tag))}")
    if written.guard:
        typer.echo(f"  guard, version {written.guard_version}: {', '.join(r.id for r in written.guard)}")


@app.command()
def show(
    file: Source = "default",
    principle: Annotated[str | None, typer.Option("--principle", help="Print only the principle with this id.")] = None,
) -> None:
    """Print a constitution as YAML; a starting point for your own."""
    import yaml

    from trimtab.constitution import load_constitution

    written = load_constitution(file)
    shown = [written[principle]] if principle else written.principles
    typer.echo(f"# version {written.version}")
    values = {"name": written.name, "principles": [p.model_dump(mode="json") for p in shown]}
    if written.guard and not principle:
        values["guard"] = [r.model_dump(mode="json") for r in written.guard]
    typer.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110), nl=False)


@app.command()
def diff(
    before: Source,
    after: Annotated[str, typer.Argument(metavar="FILE", help="The newer constitution.")],
    judged: Annotated[
        Path | None,
        typer.Option(
            "--judged", help="Folder written by `trimtab judge`: count the questions that would be asked again."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what changed between two constitutions; exit code 1 if they differ."""
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
            typer.echo(f"  judge {name}: {counts['again']} of {counts['questions']} questions would be sent again")
    if changes:
        raise typer.Exit(1)
