"""All commands in one application, grouped by task, and how errors become messages and exit codes.

Exit codes: those of :mod:`trimtab.errors`; 70 for a bug in trimtab. A traceback appears only with
``--debug`` (or ``TRIMTAB_DEBUG=1``).
"""

import errno
import os
import sys
import traceback
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from trimtab import __version__
from trimtab.cli import (
    agreement,
    annotate,
    chat,
    constitution,
    data,
    doctor,
    evaluate,
    guard,
    init,
    judge,
    lineage,
    methods,
    model,
    plan,
    populations,
    queue,
    report,
    reward,
    round,
    route,
    run,
    serve,
    tune,
    watch,
)
from trimtab.errors import StorageError, TrimtabError, install_hint

_WEB = ("fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "argon2", "multipart", "psycopg")
_SMALLER = (
    "lower micro_batch_tokens, the adapter's rank or model.context, or set model.gradient_checkpointing: true; the "
    "same command continues"
)
_SERVE = ("prometheus_client",)  # and packages of web and train
_GUARD = ("sklearn",)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Align a language model with human feedback: fine-tuning, preferences, reward model, reinforcement learning, "
    "evaluation. Start with `trimtab init`, which writes a recipe for your data; `trimtab run` runs it.",
)

START, RUN, LABELS, DATA, MODELS = "Start here", "Run a recipe", "Collect and check labels", "Data", "Use a model"

for _panel, _commands in {
    START: {"init": init.init, "methods": methods.methods, "plan": plan.plan, "doctor": doctor.doctor},
    RUN: {
        "run": run.run,
        "round": round.next_round,
        "watch": watch.watch,
        "sft": run.up_to("sft", "Run a recipe up to supervised fine-tuning (SFT)."),
        "sample": run.up_to("sample", "Run a recipe up to the sampled answers."),
        "label": run.up_to(
            "label", "Run a recipe up to the labels, by simulated annotators, people, AI judges, or judges and people."
        ),
        "reward": reward.reward,
        "align": run.up_to("align", "Run a recipe up to the aligned policy, by the method that align.method names."),
        "eval": evaluate.evaluate,
        "report": report.report,
    },
    LABELS: {
        "annotate": annotate.annotate,
        "agreement": agreement.agreement,
        "queue": queue.queue,
        "curve": queue.curve,
        "populations": populations.populations,
        "judge": judge.judge,
        "route": route.route,
        "lineage": lineage.lineage,
    },
    MODELS: {"chat": chat.chat, "serve": serve.serve, "tune": tune.tune},
}.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(constitution.app, name="constitution", rich_help_panel=LABELS)
app.add_typer(data.app, name="data", rich_help_panel=DATA)
app.add_typer(guard.app, name="guard", rich_help_panel=MODELS)
app.add_typer(model.app, name="model", rich_help_panel=MODELS)


def _version(print_it: bool) -> None:
    if print_it:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if debug:
        os.environ["TRIMTAB_DEBUG"] = "1"


def run_app(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    if "--debug" in arguments:  # accepted anywhere on the line
        os.environ["TRIMTAB_DEBUG"] = "1"
        arguments = [a for a in arguments if a != "--debug"]
    try:
        app(args=arguments)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 1
    except TrimtabError as error:
        return _fail(error, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        return _fail(error, "stopped; finished work is kept and the same command continues", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "trimtab":
            return _fail(error, f"{error}; this is a bug in trimtab", 70)
        package = (error.name or "").split(".")[0]
        extras = {"serve": _SERVE, "web": _WEB, "guard": _GUARD}
        extra = next((name for name, packages in extras.items() if package in packages), "train")
        return _fail(error, f"the package {error.name!r} is not installed; {install_hint(extra)}", 1)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail(error, f"the disk is full ({error.filename}); free some space and run the same command", 8)
        return _fail(error, f"{type(error).__name__}: {error}", StorageError.exit_code)
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
            return _fail(error, f"out of memory ({(str(error) or 'MemoryError').splitlines()[0]}); {_SMALLER}", 1)
        text = f"{type(error).__name__}: {error}\nThis is a bug in trimtab; run again with --debug and report it"
        return _fail(error, text, 70)
    return 0


def _fail(error: BaseException, text: str, code: int) -> int:
    if os.environ.get("TRIMTAB_DEBUG"):
        traceback.print_exception(error)
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(text)}", highlight=False)
    return code
