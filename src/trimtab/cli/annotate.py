"""``trimtab annotate PROJECT``: the annotation app."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

Project = Annotated[
    Path, typer.Argument(metavar="PROJECT", help="Folder of the annotation project.", show_default=False)
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="TRIMTAB_DATABASE",
        help="PostgreSQL database instead of SQLite in PROJECT: postgresql+psycopg://user@host/name.",
    ),
]


def annotate(
    project: Project,
    items: Annotated[
        list[str] | None,
        typer.Option("--items", metavar="FILE", help="Add the items of this JSON lines file first; can be repeated."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes any free one.")
    ] = 8765,
    public_url: Annotated[
        str | None,
        typer.Option(
            "--public-url",
            help="Address that annotators use, if the app is behind a proxy: https://example.org/labels.",
        ),
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            "--proxy", metavar="ADDRESS", help="Address of the proxy whose X-Forwarded-For header is trusted."
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option("--webhook", metavar="URL", help="Send each judgement to this URL. Default: none."),
    ] = None,
    owner_link: Annotated[
        bool, typer.Option("--owner-link", help="Print a link that creates an owner account, for a lost password.")
    ] = False,
    database: DatabaseUrl = None,
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Start the app, or only add the items.")] = True,
) -> None:
    """Collect people's preferences in the browser.

    The first start prints a link; open it to create the owner account.

    Example: trimtab annotate my-project --items pairs.jsonl
    """
    from trimtab.records.annotation import Task
    from trimtab.web.items_file import read_items
    from trimtab.web.server import open_project, welcome
    from trimtab.web.server import serve as run

    with closing(open_project(project, database)) as opened:
        for file in items or []:
            tasks = list(read_items(file))
            added, refused = opened.store.add(tasks)
            typer.echo(f"{file}: {added} items added, {len(refused)} refused")
            overlaps = {task.overlap for task in tasks if isinstance(task, Task) and task.overlap} if refused else set()
            for overlap in sorted(overlaps):  # an item that exists may now need more annotators
                same = [task.id for task in tasks if isinstance(task, Task) and task.overlap == overlap]
                if raised := opened.store.raise_overlap(same, overlap):
                    typer.echo(f"  {raised} existing items now go to {overlap} annotators each")
            for r in refused[:10]:
                typer.echo(f"  row {r.index + 1}: {r.reason}")
            if len(refused) > 10:
                typer.echo(f"  … and {len(refused) - 10} more")
        if serve:
            options = {"public_url": public_url, "proxy": proxy, "webhook": webhook, "owner_link": owner_link}
            run(opened, host=host, port=port, say=typer.echo, **options)
        elif owner_link:
            link = public_url or opened.store.address or f"http://{host}:{port}"
            typer.echo(welcome(opened, link.rstrip("/"), owner_link=True))
