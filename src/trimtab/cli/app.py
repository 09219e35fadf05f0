"""All commands in one application, and what becomes of errors.

Exit codes: those of :mod:`trimtab.errors`; 70 for a bug of ours. A traceback appears only with
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
from trimtab.cli import agreement, annotate, chat, constitution, data, doctor, judge, plan, route, run
from trimtab.errors import StorageError, TrimtabError, install_hint

_WEB = ("fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "argon2", "multipart", "psycopg")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Align a language model with human feedback: SFT, preferences, reward model, PPO, and a page that shows it.",
)
app.command()(run.run)
app.command()(plan.plan)
for _name, _command in run.SINGLE.items():
    app.command(_name)(_command)
app.command()(annotate.annotate)
app.command()(agreement.agreement)
app.command()(chat.chat)
app.command()(doctor.doctor)
app.command()(judge.judge)
app.command()(route.route)
app.add_typer(constitution.app, name="constitution")
app.add_typer(data.app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
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
        return _fail(error, "stopped; what was finished is kept, the same command continues", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "trimtab":
            return _fail(error, f"{error}; this is a bug in trimtab", 70)
        package = (error.name or "").split(".")[0]
        extra = "web" if package in _WEB else "train"
        return _fail(error, f"the package {error.name!r} is not installed; {install_hint(extra)}", 1)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail(error, f"the disk is full ({error.filename}); free some space and run the same command", 8)
        return _fail(error, f"{type(error).__name__}: {error}", StorageError.exit_code)
    except Exception as error:
        text = f"{type(error).__name__}: {error}\nThis is a bug in trimtab; run again with --debug and report it"
        return _fail(error, text, 70)
    return 0


def _fail(error: BaseException, text: str, code: int) -> int:
    if os.environ.get("TRIMTAB_DEBUG"):
        traceback.print_exception(error)
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(text)}", highlight=False)
    return code
