"""``trimtab chat``: talk to a model in the terminal."""

from pathlib import Path
from typing import Annotated, Any

import typer


def chat(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A run's folder (runs/NAME), a recipe, a model folder or a hub id.")
    ],
    model: Annotated[
        str, typer.Option("--model", help="Which model of a run: base, sft, policy (of the newest round) or round-N.")
    ] = "policy",
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the most likely token.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 96,
    once: Annotated[str | None, typer.Option("--once", help="Answer this message and exit.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
) -> None:
    """Talk to a model in the terminal. /reset starts over, /quit or Ctrl-D exits.

    Example: trimtab chat runs/quickstart --model sft
    """
    from trimtab.pipeline.talk import Talk

    talk = Talk.open(target, which=model, runs=runs, temperature=temperature, max_new_tokens=max_new_tokens)
    if once is not None:
        _say(talk.answer(once))
        return
    typer.echo("/reset starts over, /quit or Ctrl-D exits.", err=True)
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
        typer.echo(f"({result.forgotten} oldest turns dropped: the conversation no longer fits the context)", err=True)
    if result.raised:
        typer.echo(f"(a thought was cut; --max-new-tokens is {result.limit} from now on)", err=True)
    typer.echo(result.text)
    if result.unfinished:
        end = f"was cut at {result.limit} tokens, half the context" if result.cut else "has no end"
        typer.echo(f"(the thought {end}: no answer; this message is not part of the conversation)", err=True)
    elif result.cut:
        typer.echo("(cut at --max-new-tokens)", err=True)
