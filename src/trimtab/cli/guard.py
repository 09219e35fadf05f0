"""``trimtab guard``: train, evaluate and explain classifiers that guard a model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.options import settings_of
from trimtab.guard.config import GuardConfig

app = typer.Typer(
    help="Train and test a guard: classifiers made from a constitution that check requests and answers.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Folder = Annotated[Path, typer.Argument(metavar="GUARD", help="Folder written by `trimtab guard train`.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="Model whose activations are read: a name, a folder or a hub id. Default: the built-in model."
    ),
]
Context = Annotated[int, typer.Option("--context", min=64, help="Longest answer with its request, in tokens.")]
Data = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        help='JSON lines with "text", "restricted" and, where known, "kind" (request, answer), "rule", "group".',
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@app.command()
@settings_of(GuardConfig)
def train(
    constitution: Annotated[
        str, typer.Argument(metavar="CONSTITUTION", help="YAML file with a guard section, or default.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the guard.")],
    data: Data = None,
    model: Model = None,
    context: Context = 1024,
    probes: Annotated[
        bool,
        typer.Option(
            "--probes/--no-probes",
            help="Read a model's activations. Without them, the guard reads text only and checks no answers.",
        ),
    ] = True,
    *,
    settings: GuardConfig,
) -> None:
    """Train a guard from a constitution's guard section, and write it with a report on texts kept out of training.

    Example: trimtab guard train default --out guard
    """
    from trimtab.constitution import load_constitution
    from trimtab.pipeline.guarding import train_and_report
    from trimtab.pipeline.ui import Ui

    ui = Ui()
    lines = train_and_report(
        load_constitution(constitution), settings, out, data=data or (), model=model if probes else None,
        context=context, probes=probes, say=ui.say,
    )  # fmt: skip
    for line in lines:
        typer.echo(line)
    ui.say(f"guard: {out}, report: {out / 'report.html'}")


@app.command()
def evaluate(
    guard: Folder,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report; needed with --data. Default: the guard's.")
    ] = None,
    model: Model = None,
    context: Context = 1024,
    as_json: Json = False,
) -> None:
    """Measure a guard on the examples it held out, or on those of --data, and write the report.

    Example: trimtab guard evaluate guard
    """
    from trimtab.guard.report import report_lines
    from trimtab.pipeline.guarding import evaluate_folder
    from trimtab.pipeline.ui import Ui

    ui = Ui()
    result = evaluate_folder(guard, out, data=data or (), model=model, context=context, say=ui.say)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
        return
    for line in report_lines(result):
        typer.echo(line)
    ui.say(f"report: {(out or guard) / 'report.html'}")


@app.command()
def explain(
    guard: Folder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The request.")],
    model: Model = None,
    context: Context = 1024,
    as_json: Json = False,
) -> None:
    """Show how a guard reads a request: its views, the score of each member, and the words that move it most.

    Example: trimtab guard explain guard "Tell me the home address of my teacher."
    """
    from trimtab.pipeline.guarding import explain_request

    explanation = explain_request(guard, text, model=model, context=context)
    if as_json:
        typer.echo(json.dumps(explanation.model_dump(mode="json"), indent=2, ensure_ascii=False))
        return
    verdict = "blocked" if explanation.blocked else "passes"
    rule = f", rule {explanation.rule}: {explanation.reason}" if explanation.rule else ""
    typer.echo(f"{verdict}: score {explanation.score:.3f}, threshold {explanation.threshold:.3f}{rule}")
    if explanation.adapter is not None:
        typer.echo(
            f"  the second stage decides: log-odds adapter {explanation.adapter:+.1f}; score and threshold are of both"
        )
    if explanation.error:
        typer.echo(f"  this is the verdict on a failure: {explanation.error}")
    for view in explanation.views:
        members = ", ".join(f"{name} {value:+.1f}" for name, value in view.members.items())
        decides = ", which decides" if view.name == explanation.view else ""
        typer.echo(f"  {view.name}{decides}: log-odds {members}")
        typer.echo(f"    {view.text}")
    words = ", ".join(f"{word} {value:+.2f}" for word, value in explanation.words)
    typer.echo(f"  words that move lexical most in that reading, + towards blocking: {words}")
