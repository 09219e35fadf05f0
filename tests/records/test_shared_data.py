"""Real public files, where they are at hand; counts that were made with other code."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.records import Demonstration, Preference, Prompt
from trimtab.records.check import check
from trimtab.records.importers import load

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="NOT TESTED: the public data sets of ../shared/data are not on this machine"
)


def raw(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def test_hh_transcripts() -> None:
    loaded = load(DATA / "pairwise" / "hh-harmless-base.jsonl.gz", kind=Preference)
    assert (loaded.format, loaded.rows) == ("hh", 1500)
    # counted with a regular expression beforehand: 3 pairs with an empty answer, 4 that differ by two turns
    assert len(loaded.records) == 1493
    assert sum("empty" in r.reason for r in loaded.refused) == 3
    assert sum("differ before" in r.reason for r in loaded.refused) == 4
    bad = {r.line for r in loaded.refused}
    rows = [row for line, row in enumerate(raw("pairwise/hh-harmless-base.jsonl.gz"), 1) if line not in bad]
    for row, pair in zip(rows, loaded.records, strict=True):
        chosen, rejected = (c.text for c in pair.completions)
        assert row["chosen"].rstrip().endswith(chosen)
        assert row["rejected"].rstrip().endswith(rejected)
        assert row["chosen"].count("\n\nHuman:") == sum(m.role == "user" for m in pair.prompt.messages)


def test_oasst_trees() -> None:
    path = DATA / "sft" / "oasst-en100-trees.jsonl.gz"

    def ranked_sets(node: dict[str, Any]) -> int:
        ranked = [r for r in node["replies"] if "rank" in r]
        return (len(ranked) > 1) + sum(ranked_sets(reply) for reply in node["replies"])

    expected = sum(ranked_sets(row["prompt"]) for row in raw("sft/oasst-en100-trees.jsonl.gz"))
    loaded = load(path, kind=Preference)
    assert (loaded.format, loaded.rows, loaded.refused) == ("oasst", 68, ())
    assert len(loaded.records) == expected == 139
    shown = load(path, kind=Demonstration)
    assert len(shown.records) >= 68
    assert all(record.messages[-1].role == "assistant" for record in shown.records)
    assert load(path, kind=Prompt).rows == 68


@pytest.mark.parametrize(
    ("name", "format", "kind", "count"),
    [
        ("sft/self-instruct-seed-tasks.jsonl.gz", "alpaca", "demonstration", 175),
        ("sft/ifeval-prompts.jsonl.gz", "trl-prompt-only", "prompt", 280),
        ("safety/xstest-prompts.csv.gz", "trl-prompt-only", "prompt", 181),
        ("safety/xstest-completions.jsonl.gz", "trl-prompt-completion", "demonstration", 822),
        ("honesty/sycophancy-probes-derived.jsonl.gz", "trl-prompt-only", "prompt", None),
    ],
)
def test_other_files(name: str, format: str, kind: str, count: int | None) -> None:
    [file] = check([DATA / name]).files
    assert (file.format, file.refused) == (format, ())
    assert file.records == {kind: count or file.rows}


def test_llmbar_pairs() -> None:
    loaded = load(DATA / "pairwise" / "llmbar-processed.jsonl.gz", kind=Preference)
    assert (loaded.format, loaded.rows, len(loaded.records)) == ("two-answers", 708, 707)
    assert [r.reason for r in loaded.refused] == ["'output_2': the answer is empty"]
    rows = [row for row in raw("pairwise/llmbar-processed.jsonl.gz") if row["output_2"].strip()]
    assert [pair.ranks.index(0) + 1 for pair in loaded.records] == [row["label"] for row in rows]
