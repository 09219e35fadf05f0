"""Rows of every format, and how tests read them."""

from typing import Any

from trimtab.records import Demonstration, Prompt, Record
from trimtab.records.formats import FORMATS, read_row


def user(text: str, **keys: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **keys}


def assistant(text: str, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **keys}


def rows_of(row: dict[str, Any]) -> list[Record]:
    form = next(form for form in FORMATS.values() if form.matches(row))
    return read_row(form, row)


def turns(record: Any) -> list[tuple[str, str]]:
    messages = record.messages if isinstance(record, Demonstration | Prompt) else record.prompt.messages
    return [(m.role, m.content) for m in messages]


ROWS: dict[str, dict[str, Any]] = {
    "oasst": {"prompt": {"text": "Q", "role": "prompter", "replies": [{"text": "A", "role": "assistant"}]}},
    "ultrafeedback": {
        "instruction": "Q",
        "completions": [{"response": "A", "overall_score": 2}, {"response": "B", "overall_score": 1}],
    },
    "binarized": {"prompt": "Q", "chosen": "A", "rejected": "B", "score_chosen": 2, "score_rejected": 1},
    "trl-unpaired": {"prompt": "Q", "completion": "A", "label": True},
    "trl-preference": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "whole": {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]},
    "orca": {"question": "Q", "chosen": "A", "rejected": "B"},
    "hh": {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
    "trl-prompt-completion": {"prompt": "Q", "completion": "A"},
    "messages": {"messages": [user("Q"), assistant("A")]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "alpaca": {"instruction": "Q", "output": "A"},
    "question-answer": {"question": "Q", "answer": "A"},
    "trl-prompt-only": {"prompt": "Q"},
}
"""One row of every format, all with the question Q and the answer A."""

SPOKEN = [name for name in ROWS if name != "oasst"]
