"""Every row format by hand-made rows: what becomes of it, and what is refused with which reason."""

import datetime
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.records import Comparison, Demonstration, Judgement, Preference, Prompt, Rating, Record
from trimtab.records.formats import FORMATS, RowError, read_row
from trimtab.records.importers import convert
from trimtab.records.trl import trl_rows
from trimtab.records.types import strict_pairs

SECRET = "the answer nobody may see in a message"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(row: dict[str, Any], name: str | None = None) -> list[Record]:
    """Read a row as the format it is detected as, which must be ``name`` where given."""
    result = next(n for n, form in FORMATS.items() if form.matches(row))
    assert name in (None, result)
    return read_row(FORMATS[result], row)


def turns(record: Any) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in record.messages]


def refusal(row: dict[str, Any], name: str) -> str:
    with pytest.raises(RowError) as caught:
        read_row(FORMATS[name], row)
    assert SECRET not in str(caught.value)
    return str(caught.value)


PAIR_ROWS = {
    "plain": ({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, "trl-preference"),
    "messages": (
        {"prompt": [user("2+2?")], "chosen": [assistant("4")], "rejected": [assistant("5")]},
        "trl-preference",
    ),
    "implicit": (
        {"chosen": [user("2+2?"), assistant("4")], "rejected": [user("2+2?"), assistant("5")]},
        "trl-preference",
    ),
    "text prompt beside whole conversations": (
        {"prompt": "2+2?", "chosen": [user("2+2?"), assistant("4")], "rejected": [user("2+2?"), assistant("5")]},
        "trl-preference",
    ),
    "prompt repeated in whole conversations": (
        {
            "prompt": [user("2+2?")],
            "chosen": [user("2+2?"), assistant("4")],
            "rejected": [user("2+2?"), assistant("5")],
        },
        "trl-preference",
    ),
    "axolotl": ({"input": "2+2?", "chosen": "4", "rejected": "5"}, "trl-preference"),
    "hh": (
        {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
        "hh",
    ),
    "ultrafeedback binarized": (
        {
            "prompt": "2+2?",
            "prompt_id": "p",
            "messages": [user("2+2?"), assistant("4")],
            "chosen": [user("2+2?"), assistant("4")],
            "rejected": [user("2+2?"), assistant("5")],
            "score_chosen": 8.0,
            "score_rejected": 3.5,
        },
        "ultrafeedback",
    ),
}


@pytest.mark.parametrize("case", PAIR_ROWS)
def test_every_spelling_of_a_pair_gives_the_same_pair(case: str) -> None:
    row, name = PAIR_ROWS[case]
    [pair] = read(row, name)
    assert isinstance(pair, Preference)
    assert pair.prompt.id == Prompt.from_text("2+2?").id
    assert turns(pair.prompt) == [("user", "2+2?")]
    assert [c.text for c in pair.completions] == ["4", "5"]
    assert pair.ranks == (0, 1)
    assert pair.source == "imported"
    assert pair.margin is None


TWO_ANSWERS: list[tuple[dict[str, Any], str, list[tuple[Any, float]]]] = [
    # columns of the question and the answers, column of the verdict, and what its values mean: P(the first is better)
    (
        {"instruction": "2+2?", "output_1": "4", "output_2": "5"},
        "preference",
        [(1, 1.0), (2, 0.0), ("2.0", 0.0), (1.5, 0.5), (0, 0.5), (1.25, 0.75)],
    ),
    ({"instruction": "2+2?", "input": "", "output_1": "4", "output_2": "5"}, "preference", [(1, 1.0), (2, 0.0)]),
    ({"input": "2+2?", "output_1": "4", "output_2": "5"}, "label", [(1, 1.0), (2, 0.0)]),
    ({"prompt": "2+2?", "response_1": "4", "response_2": "5"}, "preference_strength", [(-3, 1.0), (0, 0.5), (1, 0.0)]),
    ({"context": [user("2+2?")], "response1": "4", "response2": "5"}, "overall_preference", [(-1, 1.0), (2, 0.0)]),
    ({"prompt": "2+2?", "response_0": "4", "response_1": "5"}, "better_response_id", [(0, 1.0), (1, 0.0)]),
    ({"history": "2+2?", "human_ref_A": "4", "human_ref_B": "5"}, "labels", [(1, 1.0), (0, 0.0)]),
    (
        {"question": {"full_text": "2+2?", "dataset": "x"}, "answer_0": "4", "answer_1": "5", "score_0": 0.5},
        "score_1",
        [(-0.5, 1.0), (0.5, 0.5), (1.0, 0.0)],
    ),
]


@pytest.mark.parametrize(("row", "verdict", "values"), TWO_ANSWERS, ids=lambda value: str(value)[:20])
def test_two_answers_and_which_is_better(row: dict[str, Any], verdict: str, values: list[tuple[Any, float]]) -> None:
    for value, first in values:
        [pair] = read(row | {verdict: value}, "two-answers")
        assert isinstance(pair, Preference)
        assert [m.content for m in pair.prompt.messages] == ["2+2?"]
        assert [c.text for c in pair.completions] == ["4", "5"]
        assert pair.ranks == {1.0: (0, 1), 0.5: (0, 0), 0.0: (1, 0)}.get(first, (0, 1))
        assert pair.probability == (None if first in (0.0, 0.5, 1.0) else first)
        assert pair.prompt.metadata == {}
    assert len({read(row | {verdict: value})[0].id for value, _ in values}) >= len({first for _, first in values})  # type: ignore[attr-defined]
    assert refusal(row | {verdict: "maybe"}, "two-answers").startswith(f"'{verdict}' is text")
    if verdict not in ("preference_strength", "overall_preference", "score_1"):
        assert "expected" in refusal(row | {verdict: 7}, "two-answers")
    for name in [name for name in row if row[name] in ("4", "5")]:
        assert refusal(row | {verdict: values[0][0], name: " "}, "two-answers") == f"{name!r}: the answer is empty"


def test_a_pair_of_openai_fine_tuning() -> None:
    row = {
        "input": {"messages": [{"role": "developer", "content": "S"}, user("2+2?")], "tools": []},
        "preferred_output": [assistant("4")],
        "non_preferred_output": [assistant("5")],
    }
    [pair] = read(row, "openai-preference")
    assert isinstance(pair, Preference)
    assert [(m.role, m.content) for m in pair.prompt.messages] == [("system", "S"), ("user", "2+2?")]
    assert ([c.text for c in pair.completions], pair.ranks) == (["4", "5"], (0, 1))
    tools = row | {"input": row["input"] | {"tools": [{"name": "f"}]}}  # type: ignore[operator]
    assert "has 'tools'" in refusal(tools, "openai-preference")
    assert "expected an object" in refusal(row | {"input": "2+2?"}, "openai-preference")


def test_conversations_split_at_the_last_shared_turn() -> None:
    shared = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello"), user("2+2?")]
    [pair] = read({"chosen": [*shared, assistant("4")], "rejected": [*shared, assistant("5")]}, "trl-preference")
    assert isinstance(pair, Preference)
    assert turns(pair.prompt) == [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?")]


def test_hh_transcript_keeps_earlier_turns_and_inner_line_breaks() -> None:
    head = "\n\nHuman: Hi\n\nAssistant: Hello,\nyou.\n\nNice day.\n\nHuman: 2+2?"
    [pair] = read({"chosen": f"{head}\n\nAssistant: 4", "rejected": f"{head}\n\nAssistant: five: 5"}, "hh")
    assert isinstance(pair, Preference)
    assert turns(pair.prompt) == [("user", "Hi"), ("assistant", "Hello,\nyou.\n\nNice day."), ("user", "2+2?")]
    assert [c.text for c in pair.completions] == ["4", "five: 5"]


def test_identical_answers_are_still_a_pair() -> None:
    [pair] = read({"chosen": [user("Hi"), assistant("Yo")], "rejected": [user("Hi"), assistant("Yo")]})
    assert isinstance(pair, Preference)
    assert [c.text for c in pair.completions] == ["Yo", "Yo"]
    assert turns(pair.prompt) == [("user", "Hi")]


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ("\n\nHuman: 2+2?\n\nAssistant:", "'chosen': the answer is empty"),
        ("\n\nHuman: 2+2?\n\nAssistant:  \n", "'chosen': the answer is empty"),
        ("\n\nHuman: 2+2?\n\nAssistant: a\n\nHuman: b\n\nAssistant: c", "differ before the last turn"),
        ("\n\nHuman: 2+2?\n\nAssistant: a\n\nAssistant: c", "differ before the last turn"),
        ("\n\nHuman: other\n\nAssistant: a", "differ before the last turn"),
        ("\n\nHuman: 2+2?\n\nHuman: b", "not the assistant's"),
        (SECRET, "does not begin with a 'Human:' turn"),
        (f"{SECRET}\n\nHuman: 2+2?\n\nAssistant: 4", "does not begin with a 'Human:' turn"),
        ("", "does not begin with a 'Human:' turn"),
        (None, "'chosen' is null"),
        (7, "'chosen' is a number, expected text"),
    ],
)
def test_hh_refusals(chosen: Any, reason: str) -> None:
    assert reason in refusal({"chosen": chosen, "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"}, "hh")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": SECRET, "chosen": "a"}, "'rejected' is missing"),
        ({"prompt": SECRET, "chosen": None, "rejected": "b"}, "'chosen' is null"),
        ({"prompt": "  ", "chosen": "a", "rejected": "b"}, "the prompt's last turn is empty"),
        ({"prompt": SECRET, "chosen": " ", "rejected": "b"}, "'chosen': the answer is empty"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "'prompt' is missing"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "'prompt' is empty"),
        ({"prompt": [assistant("a")], "chosen": "b", "rejected": "c"}, "must not end with an assistant turn"),
        ({"prompt": [user("a")], "chosen": [user("b"), assistant("c")], "rejected": "d"}, "do not begin with 'prompt'"),
        ({"prompt": "p", "chosen": [], "rejected": "d"}, "'chosen' is empty"),
        ({"prompt": "p", "chosen": [1], "rejected": "d"}, "chosen[0] is a number, expected an object"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "big"}, "'margin' is text, expected a finite"),
        (
            {"prompt": "p", "chosen": [assistant("a"), user("b"), assistant("c")], "rejected": "d"},
            "differ before the last turn",
        ),
    ],
)
def test_trl_preference_refusals(row: dict[str, Any], reason: str) -> None:
    assert reason in refusal(row, "trl-preference")


def test_margin_is_kept_and_other_columns_describe_the_prompt() -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2, "topic": "sums", "empty": None}
    [pair] = read(row)
    assert isinstance(pair, Preference)
    assert pair.margin == 2.0
    assert pair.prompt.metadata == {"topic": "sums"}


def completion(text: str, score: Any, name: str = "overall_score") -> dict[str, Any]:
    return {"response": text, name: score, "model": "m"}


def test_ultrafeedback_ranks_by_score_with_ties() -> None:
    given = [completion("a", 6.0), completion("b", 9), completion("c", 6), completion("d", 1.5)]
    [ranking] = read({"instruction": "Do it", "completions": given, "source": "made up"}, "ultrafeedback")
    assert isinstance(ranking, Preference)
    assert ranking.ranks == (1, 0, 1, 2)
    assert ranking.metadata == {"scores": [6.0, 9.0, 6.0, 1.5]}
    assert ranking.completions[1].model == "m"
    assert ranking.prompt.metadata == {"source": "made up"}


def test_ultrafeedback_uses_the_fine_grained_score_where_an_overall_score_is_missing() -> None:
    one = {"response": "a", "overall_score": None, "fine-grained_score": 4.0}
    two = {"response": "b", "overall_score": 1.0, "fine-grained_score": 4.5}
    [ranking] = read({"instruction": "Do it", "completions": [one, two]})
    assert isinstance(ranking, Preference)
    assert ranking.ranks == (1, 0)


def test_equal_scores_of_a_binarized_row_are_a_tie() -> None:
    row = PAIR_ROWS["ultrafeedback binarized"][0] | {"score_rejected": 8.0}
    [pair] = read(row)
    assert isinstance(pair, Preference)
    assert pair.ranks == (0, 0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": SECRET, "completions": []}, "0 answer to rank"),
        ({"instruction": SECRET, "completions": [completion("a", 1)]}, "1 answer to rank"),
        ({"instruction": SECRET, "completions": SECRET}, "'completions' is text, expected a list"),
        ({"instruction": SECRET, "completions": [completion("a", 1), completion("b", "N/A")]}, "is text, expected a"),
        ({"instruction": SECRET, "completions": [completion("a", 1), completion("b", True)]}, "is a boolean"),
        ({"instruction": SECRET, "completions": [completion("a", 1), completion("", 2)]}, "the answer is empty"),
        ({"instruction": SECRET, "completions": [completion("a", 1), {"response": "b"}]}, "'fine-grained_score' is"),
        (PAIR_ROWS["ultrafeedback binarized"][0] | {"score_chosen": 1}, "'score_chosen' is lower"),
        (PAIR_ROWS["ultrafeedback binarized"][0] | {"score_chosen": None}, "'score_chosen' is null"),
    ],
)
def test_ultrafeedback_refusals(row: dict[str, Any], reason: str) -> None:
    assert reason in refusal(row, "ultrafeedback")


def node(text: str, *replies: dict[str, Any], role: str = "assistant", **fields: Any) -> dict[str, Any]:
    return {"text": text, "role": role, "replies": list(replies), **fields}


TREE = {
    "message_tree_id": "t",
    "tree_state": "ready_for_export",
    "prompt": node(
        "Q",
        node("second", node("unused question", role="prompter"), rank=1),
        node(
            "best",
            node("why?", node("because", rank=0), node("dunno", rank=1), role="prompter"),
            node("thanks", role="prompter"),
            rank=0,
        ),
        node("spam", rank=5, deleted=True),
        node("also second", rank=1),
        role="prompter",
    ),
}


def test_oasst_tree() -> None:
    result = read(TREE, "oasst")
    rankings = [r for r in result if isinstance(r, Preference)]
    paths = [r for r in result if isinstance(r, Demonstration)]
    assert [[c.text for c in r.completions] for r in rankings] == [
        ["second", "best", "also second"],
        ["because", "dunno"],
    ]
    assert [r.ranks for r in rankings] == [(1, 0, 1), (0, 1)]
    assert turns(rankings[1].prompt) == [("user", "Q"), ("assistant", "best"), ("user", "why?")]
    assert [turns(p) for p in paths] == [
        [("user", "Q"), ("assistant", "best"), ("user", "why?"), ("assistant", "because")],
    ]
    assert paths[0].metadata == {"message_tree_id": "t", "tree_state": "ready_for_export"}


def test_oasst_follows_every_unranked_answer_and_cuts_an_unanswered_question() -> None:
    tree = node("Q", node("a"), node("b", node("and?", role="prompter")), role="prompter")
    result = read(tree, "oasst")
    assert [turns(d)[1:] for d in result] == [[("assistant", "a")], [("assistant", "b")]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": node(SECRET, role="prompter")}, "holds no answer"),
        ({"prompt": SECRET}, "'prompt' is text, expected a message with replies"),
        ({"prompt": node(SECRET, role="narrator")}, "'role' is none of"),
        ({"prompt": node(SECRET, node("a", rank="x"), node("b", rank=1), role="prompter")}, "'rank' is text"),
        ({"prompt": node(SECRET, node("", rank=0), node("b", rank=1), role="prompter")}, "the answer is empty"),
        ({"prompt": {"role": "prompter", "text": None}}, "'text' is null"),
    ],
)
def test_oasst_refusals(row: dict[str, Any], reason: str) -> None:
    assert reason in refusal(row, "oasst")


@pytest.mark.parametrize("prompt", ["2+2?", [user("2+2?")]])
@pytest.mark.parametrize("answer", ["4", [assistant("4")]])
def test_prompt_completion_and_unpaired(prompt: Any, answer: Any) -> None:
    [shown] = read({"prompt": prompt, "completion": answer}, "trl-prompt-completion")
    assert isinstance(shown, Demonstration)
    assert turns(shown) == [("user", "2+2?"), ("assistant", "4")]
    [rating] = read({"prompt": prompt, "completion": answer, "label": False}, "trl-unpaired")
    assert isinstance(rating, Rating)
    assert (turns(rating.prompt), rating.completion.text, rating.good) == ([("user", "2+2?")], "4", False)


@pytest.mark.parametrize(
    ("label", "good"),
    [
        *((label, True) for label in (True, 1, 1.0, "yes", "TRUE", " 1 ", "1.0", "T")),
        *((label, False) for label in (False, 0, 0.0, Decimal(0), "no", "false", "0", "N")),
    ],
)
def test_spellings_of_a_thumb(label: Any, good: bool) -> None:
    [rating] = read({"prompt": "p", "completion": "a", "label": label}, "trl-unpaired")
    assert isinstance(rating, Rating)
    assert rating.good is good


@pytest.mark.parametrize("label", [2, -1, "maybe", "", "10", 0.5, [], {}])
def test_a_label_must_be_a_boolean(label: Any) -> None:
    reason = refusal({"prompt": SECRET, "completion": "a", "label": label}, "trl-unpaired")
    assert reason.startswith("'label' is ")
    assert reason.endswith("expected true or false")


@pytest.mark.parametrize("prompt", ["2+2?", [user("2+2?")]])
def test_prompt_only(prompt: Any) -> None:
    [record] = read({"prompt": prompt, "reference": "4", "kwargs": [{"n": 1}]}, "trl-prompt-only")
    assert isinstance(record, Prompt)
    assert turns(record) == [("user", "2+2?")]
    assert record.metadata == {"reference": "4", "kwargs": [{"n": 1}]}


def test_a_column_named_like_an_argument_is_only_metadata() -> None:
    [record] = read({"prompt": "p", "messages_": 1, "self": 2, "cls": 3, "id": 4})
    assert isinstance(record, Prompt)
    assert record.metadata == {"messages_": 1, "self": 2, "cls": 3, "id": 4}


def test_messages_sharegpt_and_alpaca_agree() -> None:
    messages = [user("2+2?"), assistant("4")]
    told = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
    ids = {
        read(row, name)[0].id  # type: ignore[attr-defined]
        for row, name in [
            ({"messages": messages}, "messages"),
            ({"conversations": told}, "sharegpt"),
            ({"conversations": messages}, "sharegpt"),
            ({"instruction": "2+2?", "output": "4"}, "alpaca"),
            ({"instruction": "2+2?", "input": "", "output": "4"}, "alpaca"),
            ({"instruction": "2+2?", "input": None, "output": "4"}, "alpaca"),
        ]
    }
    assert len(ids) == 1


def test_question_and_answer_keep_the_reference_for_verifiers() -> None:
    row = {"question": "2+2?", "answer": "It is\n#### 4", "idx": 3}
    (record,) = read(row)
    assert isinstance(record, Demonstration)
    assert [(m.role, m.content) for m in record.messages] == [("user", "2+2?"), ("assistant", "It is\n#### 4")]
    assert record.metadata == {"idx": 3, "reference": "It is\n#### 4"}


def test_sharegpt_system_turn_and_alpaca_input() -> None:
    row = {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "h"}]}
    [waiting] = read(row)
    assert isinstance(waiting, Prompt)
    assert turns(waiting) == [("system", "s"), ("user", "h")]
    [shown] = read({"instruction": "Add", "input": "2, 2", "output": "4"})
    assert turns(shown) == [("user", "Add\n\n2, 2"), ("assistant", "4")]


def test_self_instruct_rows_give_one_demonstration_for_each_instance() -> None:
    row = {"instruction": "Add", "instances": [{"input": "1, 1", "output": "2"}, {"input": "2, 2", "output": "4"}]}
    assert [turns(r)[1][1] for r in read(row, "alpaca")] == ["2", "4"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (user(None), "messages[0]: 'content' is null"),  # type: ignore[arg-type]
        ({"role": "user"}, "messages[0]: 'content' is missing"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0]: 'content' is a list, expected text"),
        ({"role": SECRET, "content": "x"}, "messages[0]: 'role' is none of system, user,"),
        ({"role": ["user"], "content": "x"}, "messages[0]: 'role' is a list"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0]: calls a tool"),
        (assistant(" "), "an assistant turn is empty"),
        (SECRET, "messages[0] is text, expected an object"),
    ],
)
def test_message_refusals(message: Any, reason: str) -> None:
    assert reason in refusal({"messages": [message]}, "messages")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": SECRET}, "'output' is missing"),
        ({"instruction": SECRET, "output": ""}, "an assistant turn is empty"),
        ({"instruction": "", "output": SECRET}, "the prompt's last turn is empty"),
        ({"instruction": SECRET, "output": 4}, "'output' is a number"),
        ({"instruction": SECRET, "instances": []}, "holds no answer"),
        ({"instruction": SECRET, "instances": None}, "'instances' is null"),
    ],
)
def test_alpaca_refusals(row: dict[str, Any], reason: str) -> None:
    assert reason in refusal(row, "alpaca")


def test_columns_of_parquet_that_json_does_not_know() -> None:
    [record] = read({"prompt": "p", "at": datetime.datetime(2024, 5, 1, 12, 30), "day": datetime.date(2024, 5, 1)})
    assert isinstance(record, Prompt)
    assert record.metadata == {"at": "2024-05-01T12:30:00", "day": "2024-05-01"}


def test_very_long_answers_and_deep_trees() -> None:
    [pair] = read({"prompt": "p", "chosen": "a" * 100_000, "rejected": "b"})
    assert isinstance(pair, Preference)
    assert len(pair.completions[0].text) == 100_000
    tree: dict[str, Any] = node("end")
    for _ in range(3000):
        tree = node("more", tree)
    assert refusal({"prompt": tree}, "oasst") == "nested too deeply"


def test_foreign_rows_with_an_id_are_not_taken_for_records() -> None:
    own = {"id": "x", "messages": [user("hi"), assistant("yo")]}
    [record] = read(own, "records")
    assert record.id == "x" and turns(record) == [("user", "hi"), ("assistant", "yo")]
    for foreign in (
        own | {"messages": [user("hi"), assistant("yo") | {"name": "bot"}]},
        own | {"id": 7},
        own | {"source": "web"},
    ):
        [record] = read(foreign, "messages")
        assert record.id != "x" and turns(record) == [("user", "hi"), ("assistant", "yo")]
    [record] = read({"id": "x", "prompt": "p", "chosen": "a", "rejected": "b"}, "trl-preference")
    assert isinstance(record, Preference) and record.id != "x"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "x"}, "has the columns of no record"),
        ({"id": "x", "messages": [user("hi")], SECRET: 1}, "'the answer nobody may see in a message'"),
        ({"id": "x", "messages": []}, "'messages'"),
        ({"id": "x", "prompt": {}, "completions": [], "ranks": []}, "'prompt.id'"),
    ],
)
def test_record_refusals(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        read_row(FORMATS["records"], row)
    assert reason in str(caught.value)


PAIR = Preference.pair(Prompt.from_text("Q", topic="t"), "good", "bad")


def test_conversions_of_a_pair() -> None:
    assert convert(PAIR, Prompt) == [PAIR.prompt]
    [shown] = convert(PAIR, Demonstration)
    assert turns(shown) == [("user", "Q"), ("assistant", "good")]
    assert shown.metadata == {"topic": "t"}
    [item] = convert(PAIR, Comparison)
    assert item == Comparison.of(PAIR.prompt, ["good", "bad"])
    assert [(r.completion.text, r.good) for r in convert(PAIR, Rating)] == [("good", True), ("bad", False)]


def test_the_best_of_a_ranking_and_a_ranking_without_best() -> None:
    given = [completion("a", 6.0), completion("b", 9), completion("c", 9)]
    [ranking] = read({"instruction": "Q", "completions": given})
    assert turns(convert(ranking, Demonstration)[0])[-1] == ("assistant", "b")
    with pytest.raises(RowError, match="two answers"):
        convert(ranking, Rating)
    tied = PAIR.model_copy(update={"ranks": (0, 0)})
    with pytest.raises(RowError, match="no answer is better"):
        convert(tied, Demonstration)


def test_a_demonstration_gives_its_question() -> None:
    [shown] = read({"messages": [user("a"), assistant("b"), user("c"), assistant("d"), assistant("e")]})
    assert turns(convert(shown, Prompt)[0]) == [("user", "a"), ("assistant", "b"), ("user", "c")]
    [alone] = read({"messages": [assistant("b")]})
    with pytest.raises(RowError, match="no prompt"):
        convert(alone, Prompt)
    with pytest.raises(RowError, match="holds a Demonstration, which cannot become a Preference"):
        convert(alone, Preference)


def test_trl_rows() -> None:
    given = [completion("a", 6.0), completion("b", 9), completion("c", 6)]
    [ranking] = read({"instruction": "Q", "completions": given})
    assert trl_rows(ranking) == [
        {"prompt": [user("Q")], "chosen": [assistant("b")], "rejected": [assistant("a")]},
        {"prompt": [user("Q")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
    ]
    assert trl_rows(PAIR.model_copy(update={"margin": 0.5}))[0]["margin"] == 0.5
    with pytest.raises(RowError, match="TRL has no row for a Comparison"):
        trl_rows(convert(PAIR, Comparison)[0])


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6))
def test_strict_pairs_are_all_and_only_those_of_different_rank(ranks: list[int]) -> None:
    texts = [f"answer {i}" for i in range(len(ranks))]
    base = Comparison.of(Prompt.from_text("Q"), texts)
    record = Preference(id="x", prompt=base.prompt, completions=base.completions, ranks=tuple(ranks))
    expected = set()
    for i in range(len(ranks)):
        for j in range(i):
            if ranks[i] != ranks[j]:
                expected.add((texts[i], texts[j]) if ranks[i] < ranks[j] else (texts[j], texts[i]))
    result = [(better.text, worse.text) for better, worse in strict_pairs(record)]
    assert len(result) == len(expected)
    assert set(result) == expected


NAMES = [
    *("prompt", "chosen", "rejected", "completion", "completions", "label", "messages", "conversations", "instruction"),
    *("input", "output", "instances", "response", "overall_score", "score_chosen", "score_rejected", "margin", "rank"),
    *("role", "content", "from", "value", "text", "replies", "id", "ranks", "good", "annotator", "item", "shown_order"),
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
WORDS = st.sampled_from(["user", "assistant", "human", "gpt", "prompter", "\n\nHuman: a\n\nAssistant: b", "", "x"])
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
TURNS = st.lists(st.fixed_dictionaries({"role": WORDS, "content": WORDS | SCALARS}), max_size=3)
ROWS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), VALUES | TURNS, max_size=7)
KINDS = (Prompt, Demonstration, Preference, Rating, Judgement, Comparison)


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_any_row_gives_records_or_a_reason(row: dict[str, Any]) -> None:
    for form in FORMATS.values():
        form.matches(row)
        try:
            result = read_row(form, row)
        except RowError as error:
            assert str(error)
            continue
        assert result
        for record in result:
            json.dumps(record.model_dump(mode="json"), allow_nan=False)
            for kind in KINDS:
                try:
                    assert all(isinstance(made, kind) for made in convert(record, kind))
                except RowError as error:
                    assert str(error)
