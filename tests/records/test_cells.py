"""What a row says beside its text is rendered, honoured or refused; what nobody reads is listed once."""

import csv
import datetime
import io
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import DataError
from trimtab.records import Demonstration, Message, Preference, Prompt, Rating, Record, load
from trimtab.records.cells import (
    BEYOND_TEXT,
    FLAGS,
    HISTORY,
    PASSAGES,
    SYSTEM,
    TIES,
    TRAINED,
    TURN_BEYOND_TEXT,
    UNTRAINED,
    RowError,
)
from trimtab.records.formats import FORMATS, read_row
from trimtab.records.importers import convert, read
from trimtab.records.literals import parse
from trimtab.records.readers import Refusal, read_rows
from trimtab.records.trl import write_trl


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


# Rendered ---------------------------------------------------------------------------------


@pytest.mark.parametrize("column", SYSTEM)
@pytest.mark.parametrize("name", SPOKEN)
def test_a_system_column_becomes_the_system_turn(name: str, column: str) -> None:
    for record in rows_of(ROWS[name] | {column: "Be brief."}):
        assert turns(record)[:2] == [("system", "Be brief."), ("user", "Q")]
    for empty in (None, "", "  "):
        assert turns(rows_of(ROWS[name] | {column: empty})[0])[0] == ("user", "Q")


@pytest.mark.parametrize(
    "history",
    [
        [["q", "a"]],
        [("q", "a")],
        [user("q"), assistant("a")],
        [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        '[["q", "a"]]',
        "[['q', 'a']]",
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize("column", HISTORY)
def test_history_comes_before_the_question(name: str, column: str, history: Any) -> None:
    row = ROWS[name] | {column: history, "system": "S"}
    expected = [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "Q")]
    assert turns(rows_of(row)[0])[:4] == expected


@pytest.mark.parametrize("history", ["earlier talk", [["q"]], [["q", None]], {"q": "a"}, 7])
def test_a_history_that_is_no_conversation(history: Any) -> None:
    with pytest.raises(RowError, match="history"):
        rows_of(ROWS["alpaca"] | {"history": history})
    with pytest.raises(RowError, match="earlier turns in 'history' and in 'chat_history'"):
        rows_of(ROWS["alpaca"] | {"history": [["q", "a"]], "chat_history": [["q", "a"]]})


def test_two_system_messages() -> None:
    row = {"messages": [{"role": "system", "content": "S"}, user("Q"), assistant("A")]}
    assert turns(rows_of(row | {"system": "S"})[0])[0] == ("system", "S")
    with pytest.raises(RowError, match="two different system messages"):
        rows_of(row | {"system": "T"})


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Add", "input": "2, 2", "chosen": "4", "rejected": "5"},
        {"prompt": "Add\n\n2, 2", "input": "2, 2", "chosen": "4", "rejected": "5"},
        {"question": "Add\n\n2, 2", "chosen": "4", "rejected": "5"},
        {
            "conversations": [{"from": "human", "value": "Add\n\n2, 2"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        {"messages": [user("Add\n\n2, 2")], "chosen": [assistant("4")], "rejected": [assistant("5")]},
        {
            "instruction": "Add",
            "input": "2, 2",
            "completions": [{"response": "4", "overall_score": 2}, {"response": "5", "overall_score": 1}],
        },
    ],
)
def test_spellings_of_a_preference_with_input(row: dict[str, Any]) -> None:
    [pair] = rows_of(row)
    assert isinstance(pair, Preference)
    assert turns(pair) == [("user", "Add\n\n2, 2")]
    assert [c.text for c in pair.completions] == ["4", "5"]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("input", "2, 2"),
        ("context", "Once"),
        ("passage", "x"),
        ("article", "It rains."),
        ("document", "雨が降る。"),
        ("choices", ["a", "b"]),
        ("options", {"A": "1"}),
    ],
)
@pytest.mark.parametrize("name", ["trl-prompt-only", "trl-prompt-completion", "question-answer", "trl-preference"])
def test_a_part_of_the_question_that_the_prompt_lacks(name: str, column: str, value: Any) -> None:
    with pytest.raises(RowError, match=f"{column!r} belongs to the question"):
        rows_of(ROWS[name] | {column: value})
    if isinstance(value, str):
        questions = "question" if name == "question-answer" else "prompt"
        assert rows_of(ROWS[name] | {column: value, questions: f"Q: {value}"})


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    [shown] = rows_of({"messages": [user(parts), assistant("4")]})  # type: ignore[arg-type]
    assert turns(shown)[0] == ("user", "2+2?")
    for bad in ([{"type": "image", "url": "x"}], [{"type": "text", "text": "a"}, {"type": "image"}], [], ["a"]):
        with pytest.raises(RowError, match="'content' is a list"):
            rows_of({"messages": [user(bad), assistant("4")]})  # type: ignore[arg-type]


# Honoured ---------------------------------------------------------------------------------

POSITIVE = [flag for flag in FLAGS if flag not in UNTRAINED]
OFF = [(flag, value) for flag in POSITIVE for value in (0, False, 0.0, "0", "false")]
OFF += [(flag, value) for flag in UNTRAINED for value in (True, 1)]
ON = [(flag, value) for flag in POSITIVE for value in (1, True, "true", None)] + [(flag, False) for flag in UNTRAINED]


def masked_rows(flags: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows whose first answer carries flags, in every format with turns."""
    head = [user("a"), assistant("b", **flags)]
    return {
        "messages": {"messages": [*head, user("c"), assistant("d")]},
        "sharegpt": {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b", **flags},
                {"from": "human", "value": "c"},
                {"from": "gpt", "value": "d"},
            ]
        },
        "trl-prompt-completion": {"prompt": [*head, user("c")], "completion": [assistant("d")]},
    }


@pytest.mark.parametrize(("flag", "value"), OFF)
@pytest.mark.parametrize("name", ["messages", "sharegpt", "trl-prompt-completion"])
def test_a_masked_answer_is_not_trained(name: str, flag: str, value: Any) -> None:
    row = masked_rows({flag: value})[name]
    [shown] = rows_of(row)
    assert isinstance(shown, Demonstration)
    assert shown.untrained == (1,)
    [shown] = rows_of(row | {"system": "S"})
    assert isinstance(shown, Demonstration)
    assert shown.untrained == (2,)
    assert shown.messages[2].content == "b"


@pytest.mark.parametrize(("flag", "value"), ON)
def test_a_flag_that_is_on_changes_nothing(flag: str, value: Any) -> None:
    for row in masked_rows({flag: value}).values():
        assert rows_of(row) == rows_of(masked_rows({})[next(f for f in FORMATS if FORMATS[f].matches(row))])


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_is_not_to_be_trained(name: str) -> None:
    plain = rows_of(ROWS[name])
    for column in UNTRAINED:
        with pytest.raises(RowError, match=f"'{column}' is true"):
            rows_of(ROWS[name] | {column: True})
        assert rows_of(ROWS[name] | {column: "false"}) == plain
    for column in TRAINED:
        with pytest.raises(RowError, match=f"'{column}' is false"):
            rows_of(ROWS[name] | {column: 0})
        assert rows_of(ROWS[name] | {column: True}) == plain


@pytest.mark.parametrize("value", ["The [MASK] sat.", 3, [1, 2], 0.5])
@pytest.mark.parametrize("column", ["masked", "skip", "train"])
def test_a_column_named_like_a_flag_that_is_no_boolean_is_metadata(column: str, value: Any) -> None:
    [prompt] = rows_of({"prompt": "Q", column: value, "exclude": "", "deleted": None})
    assert isinstance(prompt, Prompt) and prompt.metadata == {column: value}


def test_columns_beside_an_older_format_leave_it_what_it_is() -> None:
    two = {"output_1": "x", "output_2": "y", "label": True}
    [pair] = rows_of(ROWS["trl-preference"] | two)
    assert isinstance(pair, Preference) and [c.text for c in pair.completions] != ["x", "y"]
    [rating] = rows_of({"prompt": "Q", "completion": "A"} | two)
    assert isinstance(rating, Rating)
    [transcript] = rows_of(ROWS["hh"] | {"input": "an id"})
    assert turns(transcript) == turns(rows_of(ROWS["hh"])[0])


@pytest.mark.parametrize("value", ["doc-17", 17])
@pytest.mark.parametrize("column", PASSAGES)
def test_one_word_beside_a_prompt_is_no_passage(column: str, value: Any) -> None:
    [prompt] = rows_of({"prompt": "Q", column: value})
    assert isinstance(prompt, Prompt) and prompt.metadata == {column: value}


def test_a_user_turn_that_is_not_left_out_asks_for_nothing() -> None:
    turn = user("Q", deleted=False, skip=0, include=True, is_train=1)
    assert rows_of({"messages": [turn, assistant("A")]}) == rows_of(ROWS["messages"])


@pytest.mark.parametrize("name", ["trl-preference", "whole", "orca", "hh"])
@pytest.mark.parametrize("column", TIES)
def test_a_tie(name: str, column: str) -> None:
    [tie] = rows_of(ROWS[name] | {column: True})
    [pair] = rows_of(ROWS[name] | {column: "false"})
    assert isinstance(tie, Preference) and isinstance(pair, Preference)
    assert (tie.ranks, pair.ranks, tie.completions) == ((0, 0), (0, 1), pair.completions)
    [counted] = rows_of(ROWS[name] | {column: 3})  # votes, say
    assert isinstance(counted, Preference)
    assert (counted.ranks, counted.prompt.metadata) == ((0, 1), pair.prompt.metadata | {column: 3})
    if name != "hh":
        with pytest.raises(RowError, match="is a tie and has a margin"):
            rows_of(ROWS[name] | {column: 1, "margin": 2})


@pytest.mark.parametrize("value", [0.5, 2, -1, "half", [], {}])
def test_a_turn_is_trained_or_it_is_not(value: Any) -> None:
    with pytest.raises(RowError, match="expected 0 or 1"):
        rows_of({"messages": [user("a"), assistant("b", weight=value)]})


def test_masks_that_cannot_be_honoured() -> None:
    cases = {
        "no assistant turn is to be trained": {"messages": [user("a"), assistant("b", weight=0)]},
        "only the assistant's turns are trained": {"messages": [user("a", train=True), assistant("b")]},
        "'chosen': the answer is not to be trained": {
            "prompt": "p",
            "chosen": [assistant("a", weight=0)],
            "rejected": [assistant("b")],
        },
        "'completion': the answer is not to be trained": {
            "prompt": "p",
            "completion": [assistant("a", train=False)],
            "label": True,
        },
    }
    for reason, row in cases.items():
        with pytest.raises(RowError, match=reason):
            rows_of(row)


def test_masked_answers_survive_files_and_are_not_given_to_trl(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(masked_rows({"weight": 0})["messages"]))
    [shown] = load(path, kind=Demonstration).records
    assert shown.untrained == (1,)
    again = tmp_path / "records.jsonl"
    from trimtab.records import write_records

    write_records(again, [shown])
    assert load(again, kind=Demonstration).records == (shown,)
    with pytest.raises(DataError, match="TRL trains every turn"):
        write_trl(tmp_path / "trl.jsonl", [shown])
    for places in ((0,), (1, 3), (9,)):
        with pytest.raises(ValueError, match=r"untrained|to be trained"):
            Demonstration(id="x", messages=shown.messages, untrained=places)


@pytest.mark.parametrize("column", ["weight", "sample_weight", "loss_weight"])
@pytest.mark.parametrize("name", SPOKEN)
def test_the_weight_of_a_row(name: str, column: str) -> None:
    row = ROWS[name]
    assert rows_of(row | {column: 1}) == rows_of(row) == rows_of(row | {column: None}) == rows_of(row | {column: "1.0"})
    with pytest.raises(RowError, match="the row counts for nothing"):
        rows_of(row | {column: 0})
    with pytest.raises(RowError, match="is negative"):
        rows_of(row | {column: -1})
    with pytest.raises(RowError, match="expected a finite number"):
        rows_of(row | {column: "heavy"})
    if isinstance(rows_of(row)[0], Preference):
        assert rows_of(row | {column: "0.5"})[0].weight == 0.5  # type: ignore[attr-defined]
    else:
        with pytest.raises(RowError, match="only preferences can be weighted"):
            rows_of(row | {column: 0.5})


@pytest.mark.parametrize("name", ["messages", "sharegpt", "alpaca", "question-answer"])
def test_a_thumb_makes_a_rating(name: str) -> None:
    for thumb in ({"kto_tag": False}, {"kto_tag": "0"}, {"label": False}, {"label": "No"}):
        [rating] = rows_of(ROWS[name] | thumb)
        assert isinstance(rating, Rating)
        assert (turns(rating), rating.completion.text, rating.good) == ([("user", "Q")], "A", False)
        with pytest.raises(RowError, match="thumbs down"):
            convert(rating, Demonstration)
    [liked] = rows_of(ROWS[name] | {"label": True})
    assert turns(convert(liked, Demonstration)[0]) == [("user", "Q"), ("assistant", "A")]
    for other in ("sports", 0, 1, 3):  # a class of the user's own
        [shown] = rows_of(ROWS[name] | {"label": other})
        assert isinstance(shown, Demonstration)
        assert shown.metadata["label"] == other


# Refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("column", BEYOND_TEXT)
@pytest.mark.parametrize("name", ROWS)
def test_columns_that_text_cannot_hold(name: str, column: str) -> None:
    for value in ([{"name": "search"}], "x.png", {"a": 1}, [1]):
        with pytest.raises(RowError, match=f"has {column!r}"):
            rows_of(ROWS[name] | {column: value})
    for empty in (None, [], "", {}, "[]", "null"):
        assert rows_of(ROWS[name] | {column: empty}) == rows_of(ROWS[name])


@pytest.mark.parametrize("key", TURN_BEYOND_TEXT)
@pytest.mark.parametrize("name", ["messages", "trl-prompt-completion", "whole"])
def test_keys_of_turns_that_text_cannot_hold(name: str, key: str) -> None:
    def row(value: Any) -> dict[str, Any]:
        messages = [user("Q"), assistant("A", **{key: value})]
        other = [user("Q"), assistant("B")]
        return {
            "messages": {"messages": messages},
            "trl-prompt-completion": {"prompt": messages[:1], "completion": messages[1:]},
            "whole": {"chosen": messages, "rejected": other},
        }[name]

    for value in ([{"id": 1}], "think", {"a": 1}, True):
        with pytest.raises(RowError, match="a record holds text only"):
            rows_of(row(value))
    for empty in (None, [], "", {}, False):
        assert rows_of(row(empty)) == rows_of(ROWS[name])


def test_the_name_of_a_speaker() -> None:
    with pytest.raises(RowError, match="write the speaker's name into the text"):
        rows_of({"messages": [user("Q", name="Ann"), assistant("A")]})
    assert rows_of({"messages": [user("Q", name="user"), assistant("A", name=None)]}) == rows_of(ROWS["messages"])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("train_on_inputs", True), ("train_on_prompt", "true"), ("mask_history", 1), ("train", False)),
        *(("trainable", 0), ("mask", "Assistant"), ("mask", [0, 1]), ("labels", [-100, 5])),
        *(("train_on_last_turn_only", True), ("last_turn_only", 1)),
    ],
)
def test_switches_that_ask_for_another_loss(column: str, value: Any) -> None:
    with pytest.raises(RowError, match=column):
        rows_of(ROWS["messages"] | {column: value})
    harmless = {"train": True, "trainable": True, "mask": "User", "labels": ["x"]}.get(column, False)
    assert rows_of(ROWS["messages"] | {column: harmless})


# Listed -----------------------------------------------------------------------------------


def test_what_nobody_reads_is_listed_once_with_its_count(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": [assistant("a", mood="x")], "rejected": [assistant("b")]} for i in range(7)]
    for row in rows[:3]:
        row["topic"] = "sums"
    rows[3]["rejected"] = []
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load(path, kind=Preference)
    assert loaded.unread == {"chosen[].mood": 6, "topic": 3}
    assert [r.line for r in loaded.refused] == [4]
    assert loaded.lines == (1, 2, 3, 5, 6, 7)


@pytest.mark.parametrize("name", ROWS)
def test_every_column_is_read_or_listed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[name] | {"zzz": 1, "kwargs": [{}]}))
    assert read(path, kind=Record).unread == {"zzz": 1}


def test_contradicting_scores_are_counted(tmp_path: Path) -> None:
    def row(*scores: tuple[Any, Any]) -> dict[str, Any]:
        answers = [
            {"response": f"a{i}", "overall_score": o, "fine-grained_score": f} for i, (o, f) in enumerate(scores)
        ]
        return {"instruction": "Q", "completions": answers}

    rows = [
        row((10, 2.0), (3, 4.5)),  # the known fault: 10 for what the aspects put at the bottom
        row((5, 3.0), (4, 3.0), (4, 2.0)),
        row((1, 1), (2, 3), (3, 2)),
        row((1, None), (2, 1.0)),
        row(("9", "1.0"), ("2", "4.0")),
    ]
    path = tmp_path / "uf.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    [(reason, count)] = load(path, kind=Preference).doubts.items()
    assert count == 3
    assert "overall_score counts" in reason


@pytest.mark.parametrize(
    ("columns", "count"),
    [
        ({"chosen_score": 1, "rejected_score": 2}, 1),
        ({"chosen_rating": "1", "rejected_rating": "2.5"}, 1),
        ({"chosen-rating": 1, "rejected-rating": 2, "chosen_avg_rating": 1, "rejected_avg_rating": 3}, 2),
        ({"reward_chosen": -3.5, "reward_rejected": -3}, 1),
        ({"chosen_score": 2, "rejected_score": 2}, 0),
        ({"chosen_score": 2, "rejected_score": None}, 0),
        ({"chosen_length": 1, "rejected_length": 2, "chosen_rank": 1, "rejected_rank": 2}, 0),
    ],
)
def test_scores_that_contradict_a_pair_are_counted(columns: dict[str, Any], count: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS["trl-preference"] | columns))
    loaded = load(path, kind=Preference)
    assert len(loaded.doubts) == count
    assert all("'chosen' counts" in doubt for doubt in loaded.doubts)
    assert loaded.records[0].ranks == (0, 1)


# Cells ------------------------------------------------------------------------------------


def as_csv(path: Path, row: dict[str, Any]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row))
    writer.writeheader()
    writer.writerow(row)
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


TALK = [user('He said "it\'s {fine}, [ok]"\n'), assistant("A")]
NUMPY = "[{'content': 'He said \"it\\'s {fine}, [ok]\"\\n', 'role': 'user'}\n {'content': 'A', 'role': 'assistant'}]"


@pytest.mark.parametrize(
    "cell",
    [
        json.dumps(TALK),
        json.dumps(TALK, indent=2),
        repr(TALK),
        NUMPY,
        f"array({NUMPY}, dtype=object)",
    ],
)
@pytest.mark.parametrize("column", ["messages", "conversations", "chosen", "prompt"])
def test_lists_of_turns_in_csv_cells(tmp_path: Path, column: str, cell: str) -> None:
    rejected = json.dumps([TALK[0], assistant("B")])
    row: dict[str, Any] = {column: cell}
    if column == "chosen":
        row["rejected"] = rejected
    if column == "prompt":
        row = {"prompt": cell.replace("assistant", "system"), "completion": "C"}
    path = as_csv(tmp_path / "a.csv", row)
    [record] = load(path, kind=Preference if column == "chosen" else Demonstration).records
    assert turns(record)[0] == ("user", TALK[0]["content"])


def test_csv_texts_that_only_look_like_lists(tmp_path: Path) -> None:
    for text in ("[1, 2, 3]", "{'a': 1}", "[INST] hi", '["a"]', "[]", "{}", "[{'a': 1}]"):
        for row in ({"prompt": text, "chosen": text, "rejected": "b"}, {"instruction": text, "output": text}):
            [record] = load(as_csv(tmp_path / "a.csv", row), kind=Demonstration).records
            assert turns(record) == [("user", text), ("assistant", text)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['a' 'b']", ["a", "b"]),
        ("[1 2 3]", [1, 2, 3]),
        ("[1.5, nan, -2]", [1.5, None, -2]),
        ("[{'a': array([1, 2])}\n {'a': array(['x'], dtype=object)}]", [{"a": [1, 2]}, {"a": ["x"]}]),
        ("{'a': None, 'b': True}", {"a": None, "b": True}),
        ('{"a": null, "b": [1, NaN]}', {"a": None, "b": [1, None]}),
        ("[{'a': np.float64(1.5), 'b': np.True_}]", [{"a": 1.5, "b": True}]),
        (
            "[{'a': datetime.datetime(2024, 5, 1, 12, 30), 'b': datetime.date(2024, 5, 1)}]",
            [{"a": "2024-05-01T12:30:00", "b": "2024-05-01"}],
        ),
        ("[Decimal('1.50') Timestamp('2024-05-01')]", ["1.50", "2024-05-01"]),
        ("[1 2 ... 9]", None),
        ("[os.system('x')]", None),
        ("[print(1)]", None),
        ("[__import__('os')]", None),
        ("[a for a in 'b']", None),
        ("text", None),
        ("[" * 10_000 + "]" * 10_000, None),
        ("", None),
    ],
)
def test_literals(text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize("number", ["1.5", " 1.5 ", "15e-1", "+1.5", 1.5, Decimal("1.5")])
def test_numbers_as_text(number: Any) -> None:
    [pair] = rows_of(ROWS["trl-preference"] | {"margin": number})
    assert isinstance(pair, Preference)
    assert pair.margin == 1.5
    scored = ROWS["binarized"] | {"score_chosen": number, "score_rejected": "-1"}
    assert rows_of(scored)[0].ranks == (0, 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", ["1,5", "1_0", "big", "inf", "1e300", 1e300, True, [1], 10**400])
def test_no_numbers(number: Any) -> None:
    with pytest.raises(RowError, match=r"'margin' is .*expected a finite number below 1e\+15"):
        rows_of(ROWS["trl-preference"] | {"margin": number})


@pytest.mark.parametrize("margin", [-1, "-0.5", -1e-9])
def test_a_margin_below_zero_would_help_the_loser(margin: Any) -> None:
    with pytest.raises(RowError, match="'margin': Input should be greater than or equal to 0"):
        rows_of(ROWS["trl-preference"] | {"margin": margin})


def test_a_percentage_is_a_share() -> None:
    scored = ROWS["binarized"] | {"score_chosen": "85 %", "score_rejected": "0.9"}
    with pytest.raises(RowError, match="'score_chosen' is lower"):
        rows_of(scored)
    assert rows_of(scored | {"score_rejected": "8.5%"})[0].ranks == (0, 1)  # type: ignore[attr-defined]


def test_csv_numbers_labels_and_gaps(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "", "weight": "2", "note": "NaN", "tools": "[]"}
    [pair] = load(as_csv(tmp_path / "a.csv", row), kind=Preference).records
    assert (pair.margin, pair.weight, pair.prompt.metadata) == (None, 2.0, {})
    row = {"prompt": "p", "instruction_id_list": "['x:y']", "kwargs": "[{'n': 1}]", "reference": "[1]"}
    [prompt] = load(as_csv(tmp_path / "a.csv", row), kind=Prompt).records
    assert prompt.metadata == {"instruction_id_list": ["x:y"], "kwargs": [{"n": 1}], "reference": "[1]"}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"\x00", None),
        ({"bytes": b"\x00", "path": "x"}, None),
        (object(), None),
        ("\ud800", None),
        (math.nan, None),
        (math.inf, None),
        (Decimal("NaN"), None),
        (Decimal("1.5"), 1.5),
        ([1.0, math.nan], [1.0, None]),
        ({"a": {"b": math.nan}}, {"a": {"b": None}}),
        (datetime.date(2024, 5, 1), "2024-05-01"),
        (datetime.time(12, 30), "12:30:00"),
        ((1, 2), [1, 2]),
    ],
    ids=lambda value: repr(value).partition(" at 0x")[0],
)
@pytest.mark.parametrize("name", [n for n in ROWS if n not in ("oasst", "trl-unpaired", "ultrafeedback", "binarized")])
def test_an_unused_column_never_refuses_a_row(name: str, value: Any, kept: Any) -> None:
    [record] = rows_of(ROWS[name] | {"extra": value})
    metadata = record.metadata if isinstance(record, Demonstration | Prompt) else record.prompt.metadata  # type: ignore[attr-defined]
    assert metadata.get("extra") == kept


def test_nan_is_null_in_every_format(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": math.nan, "note": math.nan}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "a.json").write_text(json.dumps([row]))
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    as_csv(tmp_path / "a.csv", row)
    loaded = [load(tmp_path / f"a.{kind}", kind=Preference) for kind in ("jsonl", "json", "parquet", "csv")]
    assert [one.records for one in loaded] == [loaded[0].records] * 4
    assert loaded[0].records[0].margin is None
    assert loaded[0].records[0].prompt.metadata == {}


def test_bytes_and_decimals_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": f"p{i}", "picture": b"\xff", "price": Decimal("1.50")} for i in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    loaded = load(tmp_path / "a.parquet", kind=Prompt)
    assert [p.metadata for p in loaded.records] == [{"price": 1.5}] * 3
    assert loaded.unread == {"price": 3, "picture (dropped)": 3}


def test_times_beyond_python_and_maps_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    turn = pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
    table = pyarrow.table(
        {
            "messages": pyarrow.array([[list(user("Q").items()), list(assistant("A").items())]] * 2, type=turn),
            "time": pyarrow.array([9 * 10**18, 0], type=pyarrow.timestamp("us")),
            "facts": pyarrow.array([[("a", "b")]] * 2, type=pyarrow.map_(pyarrow.string(), pyarrow.string())),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    loaded = load(tmp_path / "a.parquet", kind=Demonstration)
    assert [turns(r) for r in loaded.records] == [[("user", "Q"), ("assistant", "A")]] * 2
    assert [r.metadata for r in loaded.records] == [
        {"facts": {"a": "b"}},
        {"facts": {"a": "b"}, "time": "1970-01-01T00:00:00"},
    ]
    assert loaded.unread == {"facts": 2, "time": 1, "time (dropped)": 1}


def test_json_values_that_python_or_unicode_cannot_hold(tmp_path: Path) -> None:
    text = '{"prompt": "p%d", "note": "\\ud800", "big": %s, "deep": {"a": ["\\udfff"]}}'
    (tmp_path / "a.jsonl").write_text("\n".join(text % (i, "1" + "0" * 5000) for i in range(2)))
    (tmp_path / "a.json").write_text(f"[{text % (0, 'NaN')}, {text % (1, '-Infinity')}]")
    for name in ("a.jsonl", "a.json"):
        loaded = load(tmp_path / name, kind=Prompt)
        assert [p.metadata for p in loaded.records] == [{}, {}]
        assert loaded.unread == {"note (dropped)": 2, "deep (dropped)": 2}
        refused = list(read_rows(tmp_path / name))
        assert all(isinstance(row, Refusal) and "'note' is half of a surrogate pair" in row.reason for row in refused)
        assert len(refused) == 2


def test_messages_as_a_message() -> None:
    assert Message(role="user", content="a").model_dump() == {"role": "user", "content": "a"}
