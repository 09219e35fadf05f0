"""A console for tests."""

from trimtab.pipeline.ui import Silent


class Remembering(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)
