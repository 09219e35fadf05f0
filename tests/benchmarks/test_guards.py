"""The guard benchmark: what it reads, what it plants, and its table."""

from pathlib import Path
from random import Random

import pytest

from benchmarks.guards import planted_set, read_sets, table
from trimtab.testing import sentences, tiny_backbone

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason="REAL DATA NOT TESTED: ../shared/data is not here")
def test_the_sets_are_large_enough_for_their_budgets():
    sets = read_sets(DATA)
    assert len({row.source for row in sets["harmful"]}) == 4 and all(row.label for row in sets["harmful"])
    assert len(sets["benign"]) >= 800 and len(sets["other"]) >= 1030  # 4 of 1,030: upper end of the interval is 1 %
    assert not {row.text for row in sets["benign"]} & {row.text for row in sets["other"]}
    assert sum(not row.label for row in sets["xstest"]) == 99
    assert 0 < sum(row.label for row in sets["moderation"]) < len(sets["moderation"])


def test_the_onset_is_the_first_token_of_the_planted_text():
    backbone = tiny_backbone(context=2048)
    answers, topic = sentences(20, words=40), [f"red {text}" for text in sentences(20, start=300, words=30)]
    planted = planted_set(backbone, ["light the lamp"], answers, topic, 20, Random(0))
    decode = backbone.chat.tokenizer.decode
    for answer in planted:
        if answer.onset is None:
            continue
        assert decode(answer.answer[answer.onset :]).strip().startswith("red")
        assert any(text.startswith(decode(answer.answer[: answer.onset])) for text in answers)
        assert len(answer.answer) - answer.onset == 40
    assert sum(answer.onset is None for answer in planted) == 10
    assert {answer.fold for answer in planted} == set(range(5))


def test_folds_of_the_benchmark_share_no_text():
    backbone = tiny_backbone(context=2048)
    answers, topic = [f"{c} " * 30 for c in "ABCDEFGHIJKLMNO"], [f"{c} " * 15 for c in "abcdefghijklmno"]
    planted = planted_set(backbone, ["light the lamp"], answers * 2, topic * 2, 60, Random(0))
    decode = backbone.chat.tokenizer.decode
    words = [{w for p in planted if p.fold == f for w in decode(p.answer).split()} for f in range(5)]
    assert sum(map(len, words)) == len(set().union(*words)) > 20


def test_the_table_says_what_was_counted():
    share = {"blocked": 99, "n": 100, "value": 0.99, "low": 0.946, "high": 0.998}
    few = {"blocked": 3, "n": 1081, "value": 3 / 1081, "low": 0.001, "high": 0.008}
    left_out = {"benign": 1187, "ensemble 0.01": {"blocked": share, "other_refused": few}}
    contrast = {"safe_refused": few, "unsafe_blocked": share}
    text = table({"sources": {"advbench": left_out}, "xstest": {"auroc": 0.7, "0.01": contrast, "0.0025": contrast}})
    assert "99.0 % [94.6, 99.8] (99 of 100)" in text and "(3 of 1081)" in text and "budget 1 % of 1187" in text
    assert text.count("\n") == 5 and "budget 0.25 %" in text
