"""``trimtab data``: check and convert data files, move annotation projects, and take a person's judgements out."""

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trimtab.cli.annotate import DatabaseUrl
from trimtab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from trimtab.records.check import CheckReport, FileCheck, Lengths
    from trimtab.records.readers import Refusal

app = typer.Typer(
    help="Check and convert data files; export, import and back up annotation projects; withdraw judgements.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_SHOWN = 20
_SOURCE = "A file, or a hub data set: owner/name, owner/name#part, owner/name@split, owner/name#part@split."

Kind = Literal["prompt", "demonstration", "preference", "rating", "judgement", "comparison"]
"""The kinds of record a data file can hold."""
To = Literal["records", "trl"]
"""What ``convert`` writes."""
Format = Annotated[str, typer.Option("--format", help="Format of the rows; auto recognises it by the columns.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Read at most this many rows of each source.")]


@app.command()
def check(
    sources: Annotated[list[str], typer.Argument(metavar="FILE...", help=_SOURCE)],
    format: Format = "auto",
    limit: Limit = None,
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="Convert every row to this kind. Default: no conversion.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if any row is refused.")] = False,
) -> None:
    """Report counts, lengths, duplicates, refused rows, and prompts that several files share.

    Exit codes: 0 usable, 1 a row was refused and --strict is given, 3 a file has no usable row.

    Example: trimtab data check train.jsonl test.jsonl
    """
    from dataclasses import asdict
    from json import dumps

    from trimtab.records.check import check as run
    from trimtab.records.importers import KINDS
    from trimtab.records.types import Record

    report = run(sources, format=format, limit=limit, kind=KINDS[kind] if kind else Record)
    if json:
        typer.echo(dumps(asdict(report), indent=2))
    else:
        _show(report)
    for file in report.files:
        if not file.records:
            raise DataError(f"{file.source}: none of {file.rows} rows is usable; the reasons are in the report")
    if strict and any(file.refused for file in report.files):
        raise typer.Exit(1)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help=_SOURCE)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The JSON lines file to write.")],
    kind: Annotated[Kind, typer.Option("--kind", help="The kind of record to write.")],
    to: Annotated[To, typer.Option("--to", help="trimtab's own records, or the rows TRL reads.")] = "records",
    format: Format = "auto",
    limit: Limit = None,
) -> None:
    """Convert a data file to records or to TRL's rows, and list the refused rows.

    Example: trimtab data convert pairs.csv pairs.jsonl --kind preference
    """
    from trimtab.records.importers import KINDS, load
    from trimtab.records.jsonl import write_records
    from trimtab.records.trl import write_trl

    if out.exists() and out.resolve() == Path(source).resolve():
        raise ConfigError(f"{out}: is the input file; give another name for the output")
    loaded = load(source, kind=KINDS[kind], format=format, limit=limit)
    write = write_trl if to == "trl" else write_records
    rows = write(out, loaded.records)
    console = _console()
    console.print(
        f"{out}: {rows} rows from {len(loaded.records)} {kind} records; read {loaded.rows} rows as {loaded.format}, "
        f"refused {len(loaded.refused)}, dropped {loaded.duplicates} equal prompts"
    )
    if loaded.unread:
        console.print(f"further columns and keys, kept as metadata: {_counts(loaded.unread)}")
    for why, count in loaded.doubts.items():
        console.print(f"{count} rows: {why}")
    _show_refused(console, source, loaded.refused)


@app.command()
def generate(
    task: Annotated[str, typer.Argument(metavar="TASK", help="sums, sorting or tracking.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The JSON lines file to write.")],
    count: Annotated[int, typer.Option("--count", min=1, help="How many tasks.")] = 1000,
    size: Annotated[int, typer.Option("--size", min=2, max=5, help="Numbers, words or people in each task.")] = 3,
    largest: Annotated[int, typer.Option("--largest", min=2, help="Largest number in sums.")] = 99,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw.")] = 0,
    skip: Annotated[
        int, typer.Option("--skip", min=0, help="Leave out this many tasks at the start, to make a separate file.")
    ] = 0,
) -> None:
    """Write small tasks with solutions in steps, for models that solve no real problems yet.

    The file serves as demonstrations and as prompts; trimtab.feedback.generated_tasks.solved checks answers to it.

    Example: trimtab data generate sums sums.jsonl --count 500
    """
    from json import dumps

    from trimtab.feedback.generated_tasks import TASKS, TaskName, generate_tasks
    from trimtab.files import write_atomic

    name: TaskName | None = next((known for known in TASKS if known == task), None)
    if name is None:
        raise ConfigError(f"TASK {task!r}: use one of {', '.join(TASKS)}")
    tasks = generate_tasks(name, skip + count, seed=seed, size=size, largest=largest)[skip:]
    write_atomic(out, "".join(dumps(made.row()) + "\n" for made in tasks))
    typer.echo(f"{out}: {len(tasks)} tasks")
    if len(tasks) < count:
        typer.echo(f"  {count - len(tasks)} fewer than requested: there are no more of --size {size}; raise it")


@app.command("export")
def export_project(
    project: Annotated[Path, typer.Argument(metavar="PROJECT", help="Folder of the annotation project.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder to write.")],
    format: Annotated[
        str,
        typer.Option("--format", help="One of trimtab, judgements, trl, ranking, unpaired, steps, rewrites, csv."),
    ] = "trimtab",
    database: DatabaseUrl = None,
) -> None:
    """Write an annotation project as files, with a manifest of hashes, counts and reasons for what was left out."""
    from trimtab.web.exchange import FORMATS, export_folder
    from trimtab.web.server import open_project

    if format not in FORMATS:
        raise ConfigError(f"--format {format!r}: not one of {', '.join(FORMATS)}")
    with closing(open_project(project, database, create=False)) as opened:
        manifest = export_folder(opened.store, format, out)
    for name, file in manifest["files"].items():
        typer.echo(f"{out / name}: {file['rows']} rows")
    typer.echo(f"{manifest['used']} of {manifest['judgements']} judgements used")
    for reason, count in manifest["dropped"].items():
        typer.echo(f"  left out: {count} {reason}")
    for reason, count in manifest.get("dropped_items", {}).items():
        typer.echo(f"  items without a row: {count} {reason}")
    for criterion, count in manifest.get("other_criteria", {}).items():
        typer.echo(f"  answers about another criterion, {criterion}: {count}")


@app.command("import")
def import_project(
    source: Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder written by `trimtab data export`.")],
    project: Annotated[Path, typer.Argument(metavar="PROJECT", help="New annotation project.")],
    database: DatabaseUrl = None,
) -> None:
    """Create an annotation project from an export; exporting it again gives the same files."""
    from trimtab.web.exchange import import_folder
    from trimtab.web.server import open_project

    with closing(open_project(project, database)) as opened:
        counts = import_folder(opened.store, source)
    typer.echo(f"{project}: {counts['tasks']} tasks, {counts['submissions']} submissions")


@app.command("backup")
def backup_project(
    project: Annotated[Path, typer.Argument(metavar="PROJECT", help="Folder of the annotation project.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The copy to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE if it exists.")] = False,
    database: DatabaseUrl = None,
) -> None:
    """Copy the database of an annotation project, even while it is in use, and check the copy.

    Asks before it overwrites a file; without a terminal it refuses unless --force is given.
    """
    from trimtab.web.server import open_project

    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; name the file to write, as {out / 'labels.db'}")
    if out.exists() and not force:
        if not sys.stdin.isatty():
            raise ConfigError(f"{out}: exists; name another file, or overwrite it with --force")
        if not typer.confirm(f"{out} exists. Overwrite it?", default=False, err=True):
            raise typer.Exit(1)
    with closing(open_project(project, database, create=False)) as opened:
        opened.store.database.backup(out)
    typer.echo(
        f"{out}: {out.stat().st_size} bytes, checked; to restore, remove labels.db-wal and put it in place of labels.db"
    )


@app.command()
def withdraw(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, for example runs/NAME.")],
    annotator: Annotated[
        list[str],
        typer.Option("--annotator", metavar="NAME", help="Pseudonym of the person who withdraws; can be repeated."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Folder of the new run. Default: next to RUN.")
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train the reward model again, to compare its held-out accuracy.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what changed as JSON.")] = False,
) -> None:
    """Make a new run without a person's judgements, and show what changed and which stages must run again.

    The old run is not changed. The new one has the stages that need no judgements, and the other people's labels.

    Example: trimtab data withdraw runs/quickstart --annotator simulated-03
    """
    from dataclasses import asdict
    from json import dumps

    from trimtab.pipeline.withdraw import lines
    from trimtab.pipeline.withdraw import withdraw as make

    made, changes = make(run, annotator, out, retrain=retrain)
    if json:
        typer.echo(dumps({"run": str(made.path), "rounds": [asdict(change) for change in changes]}, indent=2))
        return
    for line in lines(made, changes):
        typer.echo(line)


def _console() -> "Console":
    """A console without markup: file names and reasons are printed as they are."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


def _show(report: "CheckReport") -> None:
    from rich.table import Table

    console = _console()
    for file in report.files:
        table = Table(title=file.source, title_justify="left", show_header=False)
        for name, value in _lines(file):
            table.add_row(name, value)
        console.print(table)
        _show_refused(console, file.source, file.refused)
    if len(report.files) > 1:
        table = Table("files", "same prompt", "same prompt and answer", title="in two files", title_justify="left")
        for leak in report.leaks:
            table.add_row("\n".join(leak.sources), str(leak.prompts), str(leak.answers))
        console.print(table if report.leaks else "No prompt is in two files.")


def _lines(file: "FileCheck") -> list[tuple[str, str]]:
    lines = [
        ("format", file.format),
        ("rows", str(file.rows)),
        ("refused", str(len(file.refused))),
        ("records", ", ".join(f"{count} {kind}" for kind, count in file.records.items()) or "none"),
        ("prompt, characters", _lengths(file.prompt_characters)),
        ("prompt, words", _lengths(file.prompt_words)),
        ("answer, characters", _lengths(file.answer_characters)),
        ("answer, words", _lengths(file.answer_words)),
        ("duplicates", str(file.duplicates)),
        ("empty answers", str(file.empty_answers)),
        ("not read", _counts(file.unread) or "nothing"),
        *(("odd rows", f"{count}: {why}") for why, count in file.doubts.items()),
    ]
    if file.chosen_longer is not None:
        lines += [
            ("strict pairs", str(file.pairs)),
            ("chosen and rejected identical", str(file.identical_pairs)),
            ("chosen is longer", f"{file.chosen_longer:.1%} (accuracy of always choosing the longer answer)"),
        ]
    return lines


def _counts(names: "Mapping[str, int]") -> str:
    return ", ".join(f"{name[:40]!r} ({count})" for name, count in names.items())


def _lengths(lengths: "Lengths | None") -> str:
    if lengths is None:
        return "none"
    return f"min {lengths.min}, median {lengths.median:g}, 95 % {lengths.p95}, max {lengths.max}"


def _show_refused(console: "Console", source: str, refused: "Sequence[Refusal]") -> None:
    from rich.table import Table

    if not refused:
        return
    table = Table("line", "reason", title=f"{len(refused)} refused rows of {source}", title_justify="left")
    for refusal in refused[:_SHOWN]:
        table.add_row(str(refusal.line), refusal.reason)
    console.print(table)
    if len(refused) > _SHOWN:
        console.print(f"… and {len(refused) - _SHOWN} more: trimtab data check --json lists all")
