"""Refused rows are counted and listed up to a limit, unread columns named once; masked turns are not trained."""

from pathlib import Path

import pytest

from trimtab import testing
from trimtab.models import Chat
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.context import LISTED, Context
from trimtab.pipeline.ui import Ui
from trimtab.records import Demonstration
from trimtab.storage import RunFolder


class Listening(Ui):
    """A console that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    recipe = testing.toy_recipe(tmp_path)
    return Context(config=load_recipe(recipe), recipe=recipe, run=RunFolder(tmp_path / "run"), ui=Listening())


def test_refused_rows_are_counted_and_the_first_named(context: Context, tmp_path: Path):
    rows = [
        f'{{"messages": [{{"role": "user", "content": "{i}"}}, {{"role": "assistant", "content": "a"}}]}}'
        for i in range(28)
    ]
    (tmp_path / "many.jsonl").write_text("\n".join([*rows, *["junk"] * (LISTED + 3)]))
    loaded = context.load("many.jsonl", Demonstration)
    assert len(loaded.records) == 28
    printed = context.ui.lines  # type: ignore[attr-defined]
    assert f"{LISTED + 3} of {28 + LISTED + 3} rows refused" in printed[0]
    assert [line for line in printed if "not JSON" in line] == [
        f"    line {29 + i}: not JSON (Expecting value, character 1)" for i in range(LISTED)
    ]


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_masked_turns_count_in_no_loss(system: str | None):
    chat = Chat(testing.tokenizer(), context=128, system=system)
    turns = [*testing.chat_messages("a book", "a red boat"), *testing.chat_messages("the sea", "the calm lake")]
    full = chat.conversation(turns)
    second = chat.conversation(turns, untrained=(1,))
    first = chat.conversation(turns, untrained=(3,))
    assert second.tokens == full.tokens
    length = len(first.response_mask)
    assert first.tokens == full.tokens[:length]  # what follows the last trained turn teaches nothing
    masks = zip(full.response_mask[:length], first.response_mask, second.response_mask[:length], strict=True)
    assert all(whole == (one or other) and not (one and other) for whole, one, other in masks)
    text = chat.tokenizer.decode([t for t, counts in zip(second.tokens, second.response_mask, strict=True) if counts])
    assert "calm lake" in text and "red boat" not in text
