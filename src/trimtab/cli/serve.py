"""``trimtab serve TARGET``: an OpenAI-compatible server."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def serve(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A run's folder (runs/NAME), a recipe, a model folder or a hub id.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="Which model of a run: base, sft, policy (default; of the newest round) or round-N; can be repeated.",
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes any free one.")
    ] = 8000,
    slots: Annotated[int, typer.Option(min=1, help="Answers that one model generates at the same time.")] = 16,
    queue: Annotated[
        int, typer.Option(min=1, help="Answers that may wait for a slot; more are refused with 429.")
    ] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer where a request sets no limit.")] = 512,
    guard: Annotated[
        Path | None,
        typer.Option(
            "--guard",
            metavar="GUARD",
            help="Check requests and answers with this guard, a folder written by `trimtab guard train`.",
        ),
    ] = None,
    hold_back: Annotated[
        int,
        typer.Option(min=0, help="Send each token of an answer only after the guard has judged this many later ones."),
    ] = 16,
    guard_fails: Annotated[
        Literal["closed", "open"],
        typer.Option(help="Whether a failure of the guard blocks a request (closed) or lets it pass (open)."),
    ] = "closed",
    guard_log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append each decision of the guard here, without text.")
    ] = None,
    blocked: Annotated[
        Literal["answer", "error"],
        typer.Option(help="What a conversation that a guard blocks gets: an answer that says so, or status 400."),
    ] = "answer",
    chat: Annotated[
        Path | None,
        typer.Option("--chat", metavar="PROJECT", help="Also serve a chat page; votes go to this annotation project."),
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option("--public-url", help="Address that people use for the page, if it is behind a proxy."),
    ] = None,
    licence: Annotated[
        str, typer.Option(help="Licence under which votes are published, as the page's terms say.")
    ] = "not published",
    votes_per_person: Annotated[int, typer.Option(min=1, help="Most votes of one person in a round.")] = 200,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
) -> None:
    """Serve a model to programs that use OpenAI's chat completions, and to people on a chat page.

    The environment variable TRIMTAB_API_KEY sets the API key; without it, a key is made and printed.

    Example: trimtab serve runs/quickstart --model policy --model sft
    """
    from trimtab.serve.app import Service, Settings
    from trimtab.serve.server import api_key, load_models
    from trimtab.serve.server import serve as run

    api_key()  # before minutes of loading
    typer.echo(f"loading {target} …", err=True)
    models = load_models(target, model or ["policy"], runs=runs)
    checks = None
    if guard is not None:
        from trimtab.serve.constitution_guard import load_constitution_guard  # needs scikit-learn

        backbones = [served.backbone for served in models.values()]
        checks = load_constitution_guard(guard, backbones, hold_back=hold_back, on_error=guard_fails, log=guard_log)
    settings = Settings(slots=slots, queue=queue, default_tokens=max_new_tokens, blocked=blocked)
    run(
        Service(models=models, settings=settings, guard=checks),
        host=host,
        port=port,
        chat=chat,
        public_url=public_url,
        licence=licence,
        votes_per_person=votes_per_person,
        say=typer.echo,
    )
