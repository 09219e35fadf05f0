"""``trimtab init``: a few questions, and a recipe for your data."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from trimtab.cli.data import Format
from trimtab.errors import ConfigError, TrimtabError

if TYPE_CHECKING:
    from trimtab.pipeline.starter_facts import Data, Machine

T = TypeVar("T")

Use = Literal["preferences", "ratings", "demonstrations", "prompts"]
"""What a data file is used for."""
On = Literal["cpu", "gpu"]
"""Where the run will take place."""


def init(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The file to write.")] = Path("recipe.yaml"),
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="FILE", help="Your data: CSV, JSON lines, JSON or parquet, or a hub data set owner/name."
        ),
    ] = None,
    behaviour: Annotated[
        str | None,
        typer.Option(
            "--behaviour",
            metavar="TEXT",
            help="What the model should do, in words; an AI judge compares answers by it.",
        ),
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(
            "--verifier",
            metavar="PATH",
            help="A function that scores answers: package.module.function, for example "
            "trimtab.feedback.verifiers.arithmetic.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The model to start from: smollm2-135m-instruct, a folder or a hub id."),
    ] = None,
    machine: Annotated[
        On | None, typer.Option("--machine", help="Where the run will take place. Default: here.")
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option("--memory-gb", min=0.5, help="Memory that the run may take. Default: this machine's."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run. Default: from the data file.")] = None,
    use: Annotated[
        Use | None,
        typer.Option("--use", help="What to use the data for. Default: the first of these that the file allows."),
    ] = None,
    format: Format = "auto",
    chat_template: Annotated[
        str | None,
        typer.Option("--chat-template", metavar="FILE", help="Jinja chat template, for a model without one."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
) -> None:
    """Write a commented recipe for your model, data and machine.

    On a terminal, it asks for what the options leave out. The data decides what the recipe does: fine-tuning and DPO
    for preferences, fine-tuning for demonstrations, KTO for ratings, GRPO for prompts with a verifier, an AI judge and
    DPO for a behaviour in words.

    Example: trimtab init --data preferences.csv
    """
    from trimtab.pipeline.starter import write_starter
    from trimtab.pipeline.starter_facts import Answers
    from trimtab.pipeline.starter_text import run_name

    asking = sys.stdin.isatty() and sys.stderr.isatty()
    if data is None and behaviour is None and not asking:
        raise ConfigError(
            "this is not a terminal, so nothing can be asked; give --data FILE (your preferences, demonstrations, "
            "ratings or prompts) or --behaviour TEXT (what the model should do)"
        )
    model = _model(model, chat_template, asking)
    loaded = _data(data, format, use, asking=asking and behaviour is None)
    for line in loaded.lines if loaded else []:
        typer.echo(line, err=True)
    if asking:
        behaviour, verifier = _goal(loaded, behaviour, verifier)
    answers = Answers(
        name=name or run_name(Path(loaded.source).name.split(".")[0] if loaded else behaviour or ""),
        model=model,
        machine=_machine(machine, memory_gb, asking),
        data=loaded,
        behaviour=behaviour,
        verifier=verifier,
        chat_template=chat_template,
    )
    if asking and recipe.exists() and not force:
        force = typer.confirm(f"{recipe} exists. Overwrite it?", default=False, err=True)
    for file in write_starter(answers, recipe, overwrite=force):
        typer.echo(f"wrote {file}", err=True)
    typer.echo(f"next: trimtab plan {recipe}, then trimtab run {recipe}", err=True)


def _model(model: str | None, chat_template: str | None, asking: bool) -> str:
    """A model with a usable chat template."""
    from trimtab.models import ModelConfig
    from trimtab.models.embedded import NAME
    from trimtab.models.loading import load_chat

    def check(text: str) -> str:
        load_chat(ModelConfig(name=text, chat_template=chat_template))
        return text

    if model is None and asking:
        return _ask("Which model (name, folder or hub id)?", NAME, check)
    return check(model or NAME)


def _data(source: str | None, format: str, use: Use | None, *, asking: bool) -> "Data | None":
    """What the data file holds; None without one."""
    from trimtab.pipeline.starter import look_at

    def check(text: str) -> "Data | None":
        return look_at(text, format=format, use=use) if text else None

    if source is None and asking:
        return _ask("Your data file (Enter if you have none)", "", check)
    return check(source or "")


def _goal(data: "Data | None", behaviour: str | None, verifier: str | None) -> tuple[str | None, str | None]:
    """The behaviour in words and the verifier, asked for where the data does not say which answers are good."""
    if behaviour is not None or (data is not None and (data.kind != "prompts" or verifier is not None)):
        return behaviour, verifier
    if data is not None:
        question = "A function that scores answers (package.module.function; Enter if none)"
        verifier = _ask(question, "", _function) or None
        if verifier is not None:
            return behaviour, verifier
    return _ask("What should the model do? Say it in a sentence", None, str), verifier


def _machine(kind: On | None, memory_gb: float | None, asking: bool) -> "Machine":
    from trimtab.pipeline.starter_facts import Machine

    here = Machine.here()
    if kind is None and asking:
        kind = _ask(f"Where will it run: cpu or gpu? (here: {here})", here.kind, _place)
    chosen = here if kind is None or kind == here.kind else Machine(kind=kind, memory_gb=None)
    return chosen if memory_gb is None else Machine(kind=chosen.kind, memory_gb=memory_gb)


def _place(text: str) -> On:
    if text == "cpu" or text == "gpu":
        return text
    raise ConfigError(f"{text!r} is neither cpu nor gpu")


def _function(text: str) -> str:
    from trimtab.feedback import load_callable

    if text:
        load_callable(text)
    return text


def _ask(question: str, default: str | None, check: Callable[[str], T]) -> T:
    """Ask until the answer is one that works."""
    while True:
        text = typer.prompt(question, default=default, show_default=bool(default), err=True)
        try:
            return check(text.strip())
        except TrimtabError as error:
            typer.echo(f"  {error}", err=True)
