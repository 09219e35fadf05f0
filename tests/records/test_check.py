"""The report on data files, against numbers counted by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import DataError
from trimtab.records import Comparison, Completion, Judgement, Preference, Prompt, write_records
from trimtab.records.check import Leak, Lengths, check
from trimtab.records.readers import Refusal


def save(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_lengths_by_hand() -> None:
    # nearest rank: the 95th percentile of 1..100 is 95, of 1..20 it is 19, of 1..19 the 19th (18.05 rounded up)
    assert Lengths.of(range(1, 101)) == Lengths(min=1, median=50.5, p95=95, max=100)
    assert Lengths.of([3, 1, 2]) == Lengths(min=1, median=2, p95=3, max=3)
    assert Lengths.of(range(1, 21)) == Lengths(min=1, median=10.5, p95=19, max=20)
    assert Lengths.of(range(1, 20)) == Lengths(min=1, median=10, p95=19, max=19)
    assert Lengths.of([]) is None


def test_a_file_of_pairs(tmp_path: Path) -> None:
    rows = [
        pair("one two", "long answer", "short"),  # chosen longer
        pair("one two", "ab", "abc d"),
        pair("one two", "ab", "abc d"),  # duplicate of the row before
        pair("q", "same", "same"),  # identical, so not longer
        pair("q", "", "b"),
        {"prompt": "q"},
        ["no object"],
    ]
    [file] = check([save(tmp_path / "a.jsonl", rows)]).files
    assert (file.format, file.rows, file.records) == ("trl-preference", 7, {"preference": 4})
    assert (file.duplicates, file.identical_pairs, file.pairs, file.empty_answers) == (1, 1, 4, 1)
    assert file.chosen_longer == 1 / 4
    assert file.prompt_characters == Lengths(min=1, median=7, p95=7, max=7)
    assert file.prompt_words == Lengths(min=1, median=2, p95=2, max=2)
    assert file.answer_characters == Lengths(min=2, median=4.5, p95=11, max=11)  # 2 2 4 4 5 5 5 11
    assert file.answer_words == Lengths(min=1, median=1, p95=2, max=2)  # 1 1 1 1 1 2 2 2
    assert file.refused == (
        Refusal(line=5, reason="'chosen': the answer is empty"),
        Refusal(line=6, reason="'chosen' is missing"),
        Refusal(line=7, reason="a row must be an object, not a list"),
    )


def test_a_ranking_counts_every_strict_pair(tmp_path: Path) -> None:
    given = [{"response": text, "overall_score": score} for text, score in [("aaa", 5), ("b", 5), ("cc", 1)]]
    [file] = check([save(tmp_path / "a.jsonl", [{"instruction": "q", "completions": given}])]).files
    assert (file.pairs, file.chosen_longer) == (2, 1 / 2)  # aaa > cc is longer, b > cc is not


def test_kinds_are_counted_by_nature(tmp_path: Path) -> None:
    def turns(*roles: str) -> dict[str, Any]:
        return {"messages": [{"role": role, "content": "x"} for role in roles]}

    path = save(
        tmp_path / "a.jsonl", [turns("user"), turns("user", "assistant"), turns("user", "assistant", "user"), turns()]
    )
    [file] = check([path]).files
    assert file.records == {"prompt": 2, "demonstration": 1}
    assert len(file.refused) == 1
    [file] = check([path], kind=Prompt).files
    assert (file.records, file.duplicates) == ({"prompt": 3}, 1)


def test_records_of_all_kinds(tmp_path: Path) -> None:
    prompt = Prompt.from_text("q")
    item = Comparison.of(prompt, ["a", ""])
    click = Judgement(id="j", item=item.id, annotator="w", source="simulated", shown_order=(0, 1), ranks=(0, 1))
    ranked = Preference(id="p", prompt=prompt, completions=(Completion(text="a"), Completion(text="")), ranks=(0, 0))
    write_records(tmp_path / "a.jsonl", [prompt, item, click, click, ranked])
    [file] = check([str(tmp_path / "a.jsonl")]).files
    assert file.records == {"prompt": 1, "comparison": 1, "judgement": 2, "preference": 1}
    assert (file.duplicates, file.empty_answers, file.pairs, file.chosen_longer) == (1, 2, 0, None)


def test_leaks_between_files(tmp_path: Path) -> None:
    train = save(tmp_path / "train.jsonl", [pair("p", "a", "b"), pair("p", "a", "c"), pair("q", "d", "e")])
    dev = save(
        tmp_path / "dev.jsonl",
        [{"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]}],
    )
    test = save(tmp_path / "test.jsonl", [{"prompt": "p"}, {"prompt": "q"}])
    other = save(tmp_path / "other.jsonl", [{"prompt": "P"}])
    report = check([train, dev, test, other])
    assert report.leaks == (
        Leak(sources=(train, dev), prompts=1, answers=1),
        Leak(sources=(train, test), prompts=2, answers=0),
        Leak(sources=(dev, test), prompts=1, answers=0),
    )


def test_a_file_without_a_usable_row_is_reported(tmp_path: Path) -> None:
    [file] = check([save(tmp_path / "a.jsonl", [pair("p", "", "b")])]).files
    assert (file.records, len(file.refused)) == ({}, 1)
    with pytest.raises(DataError, match="unknown format"):
        check([save(tmp_path / "b.jsonl", [{"odd": 1}])])
    with pytest.raises(DataError, match="at least one"):
        check([])
