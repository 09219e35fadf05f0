"""Cells of CSV, JSON lines and parquet: lists and numbers written as text, gaps, and values that JSON cannot hold."""

import csv
import datetime
import io
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.records.row_samples import ROWS, assistant, rows_of, turns, user
from trimtab.records import Demonstration, Message, Preference, Prompt, load
from trimtab.records.cells import RowError
from trimtab.records.literals import parse
from trimtab.records.readers import Refusal, read_rows


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
    ("value", "metadata_value"),
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
def test_an_unused_column_never_refuses_a_row(name: str, value: Any, metadata_value: Any) -> None:
    [record] = rows_of(ROWS[name] | {"extra": value})
    metadata = record.metadata if isinstance(record, Demonstration | Prompt) else record.prompt.metadata  # type: ignore[attr-defined]
    assert metadata.get("extra") == metadata_value


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
