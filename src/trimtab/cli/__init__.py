"""The command line: one file per command, heavy imports inside functions."""

import sys


def main() -> None:
    """Entry point of ``trimtab``: run the command; errors become a message and an exit code."""
    from trimtab.cli.app import run_app

    sys.exit(run_app(sys.argv[1:]))
