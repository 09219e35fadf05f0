"""``trimtab chat``: talk to a model in the terminal."""

from pathlib import Path
from typing import Annotated, Any

import typer


def chat(
    target: Annotated[str, typer.Argument(help="A run folder (runs/NAME), a recipe, a model folder or a hub id.")],
    model: Annotated[str, typer.Option("--model", help="For a run: base, sft or policy.")] = "policy",
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 96,
    once: Annotated[str | None, typer.Option("--once", help="Answer this and leave.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder that holds all runs.")] = Path("runs"),
) -> None:
    """Chat with a run's model, or any model. /reset forgets, /quit or Ctrl-D leaves."""
    from trimtab.pipeline.talk import Talk

    talk = Talk.open(target, which=model, runs=runs, temperature=temperature, max_new_tokens=max_new_tokens)
    if once is not None:
        _say(talk.answer(once))
        return
    typer.echo("/reset forgets the conversation, /quit or Ctrl-D leaves.", err=True)
    while True:
        try:
            text = input("you: ").strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text == "/reset":
            talk.reset()
        elif text:
            _say(talk.answer(text))


def _say(result: Any) -> None:
    if result.forgotten:
        typer.echo(f"({result.forgotten} oldest turns no longer fit the context and were forgotten)", err=True)
    typer.echo(result.text)
    if result.cut:
        typer.echo("(cut at --max-new-tokens)", err=True)
