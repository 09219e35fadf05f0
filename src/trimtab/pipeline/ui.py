"""Console output of a run: a progress bar per stage with the time left, and the main metrics.

On a terminal the bar moves; if output goes to a file, a plain line is written from time to time.
"""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from trimtab.metrics import live_line


class Bar:
    """Progress of one stage; use as a context manager."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[live]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=None, live="")
        self._printed = time.monotonic()
        self.live = ""

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, done: int, total: int) -> None:
        """Set the total, and how much is already done."""
        self._progress.reset(self._task, total=total, completed=done, live="")

    def update(self, done: int, total: int | None = None, metrics: Mapping[str, float] | None = None) -> None:
        """Move the bar."""
        if metrics is not None:
            self.live = live_line(metrics)
        self._progress.update(self._task, completed=done, total=total, live=self.live)
        if not self._console.is_terminal and time.monotonic() - self._printed > 15:
            self._printed = time.monotonic()
            count = f"{done}/{total}" if total else str(done)
            self._console.print(f"  {self._title}: {count}  {self.live}", markup=False, highlight=False)


class Ui:
    """The console of a run."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def say(self, text: str) -> None:
        """Print one line; its text is never interpreted as markup."""
        self.console.print(escape(text), highlight=False)

    def bar(self, title: str) -> Bar:
        """A progress bar."""
        return Bar(self.console, title)


class Silent(Ui):
    """A console without output; for tests and scripts."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
