"""Two processes that take turns: lines of JSON over standard input and output. Needs nothing but Python."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Stop(BaseException):
    """The other end has heard enough. Not an ``Exception``, so that no trainer takes it for a failure of its own."""


class ChildFailed(RuntimeError):
    """A process ended, said something else than agreed, or took longer than it may."""


class Channel:
    """A child's end. What else is written to standard output goes to standard error from here on."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, message: dict[str, Any]) -> None:
        """Answer."""
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def wait(self) -> dict[str, Any]:
        """The next request.

        Raises:
            Stop: there will be none.
        """
        line = sys.stdin.readline()
        if not line:
            raise Stop
        return json.loads(line)


class Child:
    """The parent's end: a process that answers every request with one line.

    Args:
        command: what to start.
        environment: its variables.
        seconds: how long one answer may take.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], *, seconds: float) -> None:
        self.seconds = seconds
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            ChildFailed: with the last line the process wrote to standard error.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Timer(self.seconds, self._process.kill)
        late.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            late.cancel()
        if line:
            return json.loads(line)
        code = self._process.wait()
        if code == -9:
            raise ChildFailed(f"killed: most likely out of memory, or an answer took more than {self.seconds:.0f} s")
        self._said.seek(0)
        lines = self._said.read().strip().splitlines() or ["no message"]
        raise ChildFailed(f"exit code {code}: {lines[-1]}")

    def close(self) -> None:
        """End the process; what it held is free again when this returns."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()


def environment() -> dict[str, str]:
    """This process's variables, with this repository on Python's path."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}
