"""Files and the (faked) hub to records: every file type, every kind of damage, and the way back."""

import csv
import gzip
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.records import (
    Comparison,
    Completion,
    Demonstration,
    Judgement,
    Message,
    Preference,
    Prompt,
    Rating,
    Record,
    write_records,
)
from trimtab.records.importers import load, read
from trimtab.records.readers import Refusal, Row, read_rows
from trimtab.records.trl import write_trl

PROMPTS = [{"prompt": "one"}, {"prompt": "two", "topic": "naïve \u2028 lines"}]


def save(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def texts(source: Any, **options: Any) -> list[str]:
    return [p.text for p in load(source, kind=Prompt, **options).records]


def as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(PROMPTS).encode()),
        ("A.JSONL", lines(PROMPTS).encode()),
        ("a.jsonl.gz", gzip.compress(lines(PROMPTS).encode(), mtime=0)),
        ("packed.jsonl", gzip.compress(lines(PROMPTS).encode(), mtime=0)),
        ("bom.jsonl", b"\xef\xbb\xbf" + lines(PROMPTS).encode()),
        ("crlf.jsonl", lines(PROMPTS).replace("\n", "\r\n\r\n").encode()),
        ("no-last-newline.jsonl", lines(PROMPTS).strip().encode()),
        ("a.json", json.dumps(PROMPTS, indent=2).encode()),
        ("object.json", json.dumps({"version": 1, "data": PROMPTS}).encode()),
        ("lines.json", lines(PROMPTS).encode()),
        ("a.json.gz", gzip.compress(json.dumps(PROMPTS).encode(), mtime=0)),
        ("a.csv", as_csv(PROMPTS).encode()),
        ("a.csv.gz", gzip.compress(as_csv(PROMPTS).encode(), mtime=0)),
        ("bom.csv", b"\xef\xbb\xbf" + as_csv(PROMPTS).encode()),
    ],
)
def test_every_text_file_type(tmp_path: Path, name: str, content: bytes) -> None:
    loaded = load(save(tmp_path / name, content), kind=Prompt)
    assert [p.text for p in loaded.records] == ["one", "two"]
    assert (loaded.format, loaded.rows, loaded.refused) == ("trl-prompt-only", 2, ())
    assert loaded.records[1].metadata == {"topic": "naïve \u2028 lines"}


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "n": 1}] * 3
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    loaded = load(path, kind=Demonstration, limit=2)
    assert loaded.rows == len(loaded.records) == 2
    assert loaded.records[0].metadata == {"n": 1}
    with pytest.raises(DataError, match="not a readable parquet file"):
        load(save(tmp_path / "junk.parquet", "junk"), kind=Demonstration)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install -c constraints.txt -e '\.\[data\]'"):
        load(save(tmp_path / "a.parquet", "x"), kind=Prompt)


def test_damaged_lines_are_refused_with_their_line_number(tmp_path: Path) -> None:
    content = b"\n".join(
        [
            b'{"prompt": "good"}',
            b"",
            b'{"prompt": "cut',
            b"[1, 2]",
            b'"text"',
            b'{"prompt": "\xff\xfe"}',
            b'{"prompt": "\\ud83d"}',
            b"[" * 100_000,
            b'{"prompt": ' + b"9" * 5000 + b"}",
            b'{"prompt": NaN}',
            b'{"other": 1}',
            b'{"prompt": "also good", "score": NaN}',
            b'{"prompt": "\\ud83d\\ude00"}',
        ]
    )
    loaded = load(save(tmp_path / "a.jsonl", content), kind=Prompt)
    assert [p.text for p in loaded.records] == ["good", "also good", "😀"]
    assert loaded.records[1].metadata == {}
    assert loaded.rows == 12
    reasons = {r.line: r.reason for r in loaded.refused}
    assert sorted(reasons) == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert reasons[3].startswith("not JSON (Unterminated string")
    assert reasons[4] == "a row must be an object, not a list"
    assert reasons[5] == "a row must be an object, not text"
    assert reasons[6] == "not UTF-8 text (invalid start byte at byte 13)"
    assert "surrogate" in reasons[7]
    assert "nested too deeply" in reasons[8]
    assert reasons[9] == "'prompt' is null"
    assert reasons[10] == "'prompt' is null"
    assert reasons[11] == "'prompt' is missing"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b"\n \n", "holds no rows"),
        ("a.json", b"", "holds no rows"),
        ("a.csv", b"", "holds no rows"),
        ("a.csv", b"prompt\n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.jsonl", bytes(range(256)) * 9, "no row can be read: not "),
        ("a.jsonl", json.dumps(PROMPTS).encode(), r"an object, not a list \(1 rows\)"),
        ("a.jsonl", lines(PROMPTS).encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("a.jsonl.gz", gzip.compress(b"x" * 100, mtime=0)[:-9], "damaged gzip"),
        ("a.jsonl.gz", b"\x1f\x8bjunk and more junk", "damaged gzip"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b'{"a": [], "b": []}', "an object with 2 lists in it"),
        ("a.json", b'{"a": 1}', "an object with 0 lists in it"),
        ("a.json", b"3", "holds a number"),
        ("a.csv", b"prompt\n\xff\xfe\xfd", "not UTF-8"),
        ("a.csv.gz", gzip.compress(b"prompt,label\na\nb\n", mtime=0), "1 cells for 2 columns .*a line of column names"),
        ("a.csv", b'prompt\na\n"unclosed\n', "not a CSV file after row 1"),
        ("a.csv", b"prompt,prompt\na,b\n", "two columns have the same name"),
        ("a.txt", b"hello", "unknown file type; expected .jsonl, .json, .csv, .tsv, .parquet"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(save(tmp_path / name, content), kind=Prompt)


def test_missing_files_folders_and_unreadable_names(tmp_path: Path) -> None:
    for source in [tmp_path / "no.jsonl", tmp_path / "no", str(tmp_path / "no.jsonl"), "data/no.jsonl", "no", "a\0b"]:
        with pytest.raises(DataError, match="no such file"):
            load(source, kind=Prompt)
    with pytest.raises(DataError, match="no such file"):
        load("x" * 5000, kind=Prompt)
    with pytest.raises(DataError, match="is a folder"):
        load(tmp_path, kind=Prompt)


def test_csv_cells_and_labels(tmp_path: Path) -> None:
    content = 'prompt,completion,label\n"a, ""b""\nc",d,TRUE\ne,f,false\ng,h,1\ni,j\nk,l,true,m\n\nn,true,true\n'
    loaded = load(save(tmp_path / "a.csv", content), kind=Rating)
    assert [(r.prompt.text, r.completion.text, r.good) for r in loaded.records] == [
        ('a, "b"\nc', "d", True),
        ("e", "f", False),
        ("g", "h", True),
        ("n", "true", True),
    ]
    assert loaded.refused == (
        Refusal(line=4, reason="2 cells for 3 columns"),
        Refusal(line=5, reason="4 cells for 3 columns"),
    )


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t"), ("a.tsv.gz", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_of_spreadsheets(tmp_path: Path, name: str, separator: str, end: str) -> None:
    lines = ["prompt;completion;label", '"a, b";"c;d";1', "e;f;0", ""]
    content = "\ufeff" + end.join(lines).replace("c;d", "c\u2028d").replace(";", separator)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    loaded = load(str(path), kind=Rating)
    rows = [(r.prompt.text, r.completion.text, r.good) for r in loaded.records]
    assert rows == [("a, b", "c\u2028d", True), ("e", "f", False)] and loaded.refused == ()


@pytest.mark.parametrize(
    "content",
    [
        'prompt;"a,b";completion;label\nQ;1,5;A;1\n',
        "sep=;\nprompt;completion;label\nQ;A;1,0\n",
        '"sep=|"\nprompt|completion|label\nQ|A|1\n',
        "prompt|completion|label\nQ|A|1\n",
        "prompt, completion , label\nQ,A,1\n",
        "\ufeffprompt;completion;label;score, all\nQ;A;1;2,5\n",
        'prompt,"completion",label,"x;y\nz;a;b;c"\nQ,A,1,\n',
    ],
)
def test_headers_of_spreadsheets(tmp_path: Path, content: str) -> None:
    [rating] = load(save(tmp_path / "a.csv", content.encode()), kind=Rating).records
    assert (rating.prompt.text, rating.completion.text, rating.good) == ("Q", "A", True)


def test_decimal_commas_beside_semicolons(tmp_path: Path) -> None:
    content = "prompt;chosen;rejected;margin;weight\n3,5;1,5;2,5;0,75; 1,5\n"
    [pair] = load(save(tmp_path / "a.csv", content.encode()), kind=Preference).records
    assert (pair.margin, pair.weight) == (0.75, 1.5)
    assert (pair.prompt.text, *(c.text for c in pair.completions)) == ("3,5", "1,5", "2,5")


def test_a_csv_answer_longer_than_the_default_limit(tmp_path: Path) -> None:
    assert texts(save(tmp_path / "a.csv", "prompt\n" + "x" * 200_000 + "\n")) == ["x" * 200_000]


def test_unknown_format_names_columns_and_formats(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", lines([{"question": "q", "\x1b[31mred": 1}, {"answer": "a" * 99}]))
    with pytest.raises(DataError) as caught:
        load(path, kind=Prompt)
    message = str(caught.value)
    assert "columns seen: 'question', '\\x1b[31mred', 'answer'" in message
    assert "trl-preference: prompt (or instruction, question, conversations), chosen, rejected" in message
    assert "aaa" not in message


def test_a_format_given_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", lines([{"prompt": "p", "completion": "c"}]))
    assert load(path, kind=Demonstration).format == "trl-prompt-completion"
    assert load(path, kind=Prompt, format="trl-prompt-only").records[0].metadata == {"completion": "c"}
    with pytest.raises(DataError, match="did you mean 'messages'"):
        load(path, kind=Prompt, format="mesages")
    with pytest.raises(DataError, match=r"none of 1 rows is usable as Demonstration.*'messages' is missing \(1 rows\)"):
        load(path, kind=Demonstration, format="messages")


def test_the_format_is_that_of_most_rows(tmp_path: Path) -> None:
    odd = [{"prompt": "a bare question"}]
    rows = [{"prompt": "p", "chosen": "a", "rejected": f"b{i}"} for i in range(5)]
    loaded = load(save(tmp_path / "a.jsonl", lines(odd + rows)), kind=Preference)
    assert loaded.format == "trl-preference"
    assert loaded.refused == (Refusal(line=1, reason="'chosen' is missing"),)


def test_nothing_usable_gives_the_commonest_reasons(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "", "rejected": "b"}] * 3 + [{"prompt": "p", "chosen": None, "rejected": "b"}]
    with pytest.raises(DataError, match=r"none of 4 rows .*the answer is empty \(3 rows\); 'chosen' is null \(1 rows"):
        load(save(tmp_path / "a.jsonl", lines(rows)), kind=Preference)


def test_a_kind_the_rows_cannot_become(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a Prompt, which cannot become a Preference"):
        load(save(tmp_path / "a.jsonl", lines(PROMPTS)), kind=Preference)


def test_equal_prompts_are_kept_once_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in ("x", "y", "x", "x")]
    path = save(tmp_path / "a.jsonl", lines(rows))
    loaded = load(path, kind=Prompt)
    assert [p.text for p in loaded.records] == ["x", "y"]
    assert (loaded.duplicates, loaded.rows, loaded.refused) == (2, 4, ())
    assert load(path, kind=Preference).duplicates == 0
    assert len(load(path, kind=Preference).records) == 4


def test_one_id_for_two_prompts_is_refused(tmp_path: Path) -> None:
    prompts = [Prompt(id="x", messages=(Message(role="user", content=text),)) for text in "abb"]
    write_records(tmp_path / "a.jsonl", prompts)
    loaded = load(tmp_path / "a.jsonl", kind=Prompt)
    assert len(loaded.records) == 1
    assert loaded.refused == tuple(Refusal(line=n, reason="its id belongs to another prompt above") for n in (2, 3))


def test_limit_counts_rows(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", "junk\n" + lines(PROMPTS))
    loaded = load(path, kind=Prompt, limit=2)
    assert (loaded.rows, len(loaded.records), len(loaded.refused)) == (2, 1, 1)


def test_more_rows_than_are_looked_at_to_find_the_format(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}"} for i in range(250)]
    assert texts(save(tmp_path / "a.jsonl", lines(rows))) == [f"p{i}" for i in range(250)]


def test_best_answer_of_a_ranking_becomes_a_demonstration(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    loaded = load(save(tmp_path / "a.jsonl", lines(rows)), kind=Demonstration)
    assert [m.content for m in loaded.records[0].messages] == ["p", "a"]


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
SPOKEN = TEXT.filter(str.strip)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    turns = []
    for text in draw(st.lists(SPOKEN, max_size=2)):
        turns += [Message(role="user", content=text), Message(role="assistant", content="yes")]
    about = draw(st.dictionaries(st.sampled_from(["topic", "n"]), TEXT | st.integers(-5, 5) | st.none(), max_size=2))
    return Prompt.of([*turns, Message(role="user", content=draw(SPOKEN))], **about)


PROMPT = prompts()
ANSWERS = st.lists(st.builds(Completion, text=TEXT, model=st.none() | TEXT), min_size=2, max_size=4).map(tuple)
COMPARISON = st.builds(Comparison.of, PROMPT, ANSWERS)


@st.composite
def preferences(draw: st.DrawFn) -> Preference:
    item = draw(COMPARISON)
    count = len(item.completions)
    return Preference(
        id=draw(TEXT),
        prompt=item.prompt,
        completions=item.completions,
        ranks=tuple(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))),
        probability=draw(st.none() | st.floats(0, 1)) if count == 2 else None,
        margin=draw(st.none() | st.floats(0, 9)),
        weight=draw(st.floats(0.5, 2)),
        judgements=("j1",),
        source="simulated",
        metadata={"note": draw(TEXT)},
    )


@st.composite
def judgements(draw: st.DrawFn) -> Judgement:
    order = tuple(draw(st.permutations([0, 1, 2])))
    ranks = draw(st.none() | st.just((0, 1, 1)))
    verdict = "skip" if ranks is None else "ranked"
    names = {"id": draw(TEXT), "item": draw(TEXT), "annotator": draw(TEXT)}
    return Judgement(**names, source="human", shown_order=order, ranks=ranks, verdict=verdict, comment=draw(TEXT))


STRATEGIES: dict[type[Record], st.SearchStrategy[Any]] = {
    Prompt: PROMPT,
    Demonstration: st.builds(
        lambda p, text, after: Demonstration.of(
            [*p.messages, Message(role="assistant", content=text), *after], **p.metadata
        ),
        PROMPT,
        SPOKEN,
        st.sampled_from([[], [Message(role="user", content="thanks")]]),
    ),
    Preference: preferences(),
    Rating: st.builds(Rating, id=TEXT, prompt=PROMPT, completion=ANSWERS.map(lambda a: a[0]), good=st.booleans()),
    Judgement: judgements(),
    Comparison: COMPARISON,
}


@pytest.mark.parametrize("kind", STRATEGIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_records_come_back_as_they_were_written(
    kind: type[Record], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    records = data.draw(st.lists(STRATEGIES[kind], min_size=1, max_size=4, unique_by=lambda r: r.id))
    path = tmp_path_factory.mktemp("trip") / "records.jsonl"
    write_records(path, records)
    loaded = load(path, kind=kind)
    assert loaded.records == tuple(records)
    assert (loaded.format, loaded.refused, loaded.duplicates) == ("records", (), 0)


def test_trl_rows_come_back_with_the_same_content(tmp_path: Path) -> None:
    prompt = Prompt.from_text("Q \u2028 naïve", system="Be brief.")
    pair = Preference.pair(prompt, "good\nanswer", "bad")
    ranking = Preference(
        id="k", prompt=prompt, completions=tuple(Completion(text=t) for t in "abc"), ranks=(1, 0, 1), margin=1.5
    )
    path = tmp_path / "trl.jsonl"
    assert write_trl(path, [pair, ranking]) == 3
    back = load(path, kind=Preference)
    assert back.format == "trl-preference"
    assert back.records[0] == pair
    assert [[c.text for c in r.completions] for r in back.records[1:]] == [["b", "a"], ["b", "c"]]
    assert {r.prompt.id for r in back.records} == {prompt.id}
    assert [r.margin for r in back.records] == [None, 1.5, 1.5]

    shown = Demonstration.of([*prompt.messages, Message(role="assistant", content="A")])
    assert write_trl(path, [shown]) == 1
    assert load(path, kind=Demonstration).records == (shown,)

    rating = Rating(id="r", prompt=prompt, completion=Completion(text="A"), good=False)
    write_trl(path, [rating])
    [again] = load(path, kind=Rating).records
    assert again.model_copy(update={"id": "r"}) == rating

    write_trl(path, [prompt])
    assert load(path, kind=Prompt).records == (prompt,)


def test_what_trl_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "trl.jsonl"
    pair = Preference.pair(Prompt.from_text("Q"), "a", "b")
    with pytest.raises(DataError, match="TRL has no row for a Comparison"):
        write_trl(path, [Comparison.of(pair.prompt, pair.completions)])
    with pytest.raises(DataError, match="Preference and Prompt do not fit in one TRL file"):
        write_trl(path, [pair, pair.prompt])
    with pytest.raises(DataError, match="at least one strict preference"):
        write_trl(path, [pair.model_copy(update={"ranks": (0, 0)})])
    assert not path.exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(JSON | st.binary(max_size=20), min_size=1, max_size=6), format=st.sampled_from(["auto", "hh"]))
def test_every_line_is_a_row_or_a_refusal(
    rows: list[Any], format: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = [row.replace(b"\n", b" ") if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path = save(tmp_path_factory.mktemp("any") / "any.jsonl", b"\n".join(raw))
    expected = [n for n, line in enumerate(raw, 1) if line.removeprefix(b"\xef\xbb\xbf" if n == 1 else b"").strip()]
    try:
        assert [row.line for row in read_rows(path)] == expected
        loaded = read(path, kind=Record, format=format)
    except DataError as error:
        assert str(path) in str(error)
        return
    assert loaded.rows == len(expected)
    assert {r.line for r in loaded.refused} <= set(expected)
    assert len(loaded.records) + len(loaded.refused) >= len(expected)


class FakeHub(types.ModuleType):
    """Stands for the ``datasets`` package: knows one data set, with a configuration and a folder."""

    def __init__(self) -> None:
        super().__init__("datasets")
        self.calls: list[dict[str, Any]] = []

    def load_dataset(self, path: str, **options: Any) -> list[dict[str, Any]]:
        self.calls.append({"path": path, **options})
        if path != "team/pairs":
            raise ConnectionError("cannot reach the hub\nsecond line")
        if options.get("name") == "folder":
            raise ValueError("BuilderConfig 'folder' not found")
        return [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "a", "rejected": None}]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("team/pairs", {"split": "train"}),
        ("team/pairs@test", {"split": "test"}),
        ("team/pairs#conf", {"split": "train", "name": "conf"}),
        ("team/pairs#folder@test", {"split": "test", "data_dir": "folder"}),
    ],
)
def test_hub_sources(hub: FakeHub, source: str, call: dict[str, Any]) -> None:
    loaded = load(source, kind=Preference)
    assert hub.calls[-1] == {"path": "team/pairs", "streaming": False, **call}
    assert loaded.source == source
    assert len(loaded.records) == 1
    assert loaded.refused == (Refusal(line=2, reason="'rejected' is null"),)


def test_a_limit_streams_from_the_hub(hub: FakeHub) -> None:
    assert load("team/pairs", kind=Preference, limit=1).rows == 1
    assert hub.calls[-1]["streaming"] is True


def test_a_file_comes_before_the_hub(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "team").mkdir()
    save(tmp_path / "team" / "pairs#1@x.jsonl", lines(PROMPTS))
    monkeypatch.chdir(tmp_path)
    assert texts("team/pairs#1@x.jsonl") == ["one", "two"]
    assert hub.calls == []


def test_the_hub_out_of_reach(hub: FakeHub) -> None:
    with pytest.raises(DataError, match=r"ConnectionError: cannot reach the hub\); check the name, the network"):
        load("team/other", kind=Preference)


def test_the_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install -c constraints.txt -e '\.\[data\]'"):
        load("team/pairs", kind=Preference)


def test_rows_are_what_the_file_says(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", '\n{"a": [1, null]}\n')
    assert list(read_rows(path)) == [Row(line=2, columns={"a": [1, None]})]
