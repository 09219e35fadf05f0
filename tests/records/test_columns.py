"""Columns of a row beside its text are rendered, honoured or refused; unused ones are listed once."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.records.row_samples import ROWS, SPOKEN, assistant, rows_of, turns, user
from trimtab.errors import DataError
from trimtab.records import Demonstration, Preference, Prompt, Rating, Record, load
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
from trimtab.records.formats import FORMATS
from trimtab.records.importers import convert, read
from trimtab.records.trl import write_trl

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
