"""``trimtab model``: take a trained model out of its run."""

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Export trained models.", no_args_is_help=True, rich_markup_mode="markdown")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, for example runs/NAME.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write; it must be missing or empty.")],
    stage: Annotated[
        Literal["sft", "policy", "reward"], typer.Option("--stage", help="Which model of the run.")
    ] = "policy",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write one LoRA adapter on the pretrained model, not merged weights.")
    ] = False,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Also write model.gguf, with llama.cpp's converter where it is installed.")
    ] = False,
) -> None:
    """Write a run's model in the Hugging Face layout: weights, tokenizer, chat template, model card.

    The folder loads in transformers, peft (with --adapter) and vLLM. The reward model becomes a sequence classifier.

    Example: trimtab model export runs/quickstart my-model
    """
    from trimtab.pipeline.export import export_model

    export_model(run, folder, stage=stage, adapter=adapter, gguf=gguf)
    for file in sorted(folder.iterdir()):
        typer.echo(f"{file}: {file.stat().st_size / 1e6:,.1f} MB", err=True)
    typer.echo(folder)
