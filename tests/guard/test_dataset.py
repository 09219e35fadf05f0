"""Twins, attacks, repetitions and splits."""

import json

import pytest

from trimtab.constitution import load_constitution, parse_constitution
from trimtab.errors import ConfigError, DataError
from trimtab.guard.dataset import REQUESTS, Example, attacked, deduplicated, from_constitution, read_examples, split

SHIPPED = from_constitution(load_constitution("default"))


def test_every_twin_is_there_with_every_frame_on_both_sides():
    rules = load_constitution("default").guard
    twins = sum(len(rule.twins) for rule in rules)
    requests = [e for e in SHIPPED if e.kind == "request"]
    assert len(requests) == 2 * twins * len(REQUESTS)
    for group in {e.group for e in requests}:
        labels = [e.restricted for e in requests if e.group == group]
        assert labels.count(True) == labels.count(False) == len(REQUESTS)


def test_a_split_keeps_twins_and_their_disguises_together():
    examples = [*SHIPPED, *attacked([e for e in SHIPPED if e.kind == "request"][:200], ["hex", "splitting"], seed=0)]
    train, held = split(examples, 0.25, seed=3)
    assert len(train) + len(held) == len(examples)
    assert not {e.group for e in train} & {e.group for e in held}
    rules = {e.rule for e in SHIPPED}
    for side in (train, held):
        assert {e.rule for e in side if e.kind == "request"} == {e.rule for e in side if e.kind == "answer"} == rules
    assert split(examples, 0.25, seed=3) == (train, held)
    assert {e.group for e in split(examples, 0.25, seed=4)[1]} != {e.group for e in held}


def test_repetitions_and_contradictions_are_counted():
    def example(text: str, restricted: bool) -> Example:
        return Example(text=text, restricted=restricted, group=text)

    left, repeated, contradictory = deduplicated(
        [example("One two", True), example("one  TWO\u200b", True), example("three", True), example("Three", False)]
    )
    assert [e.text for e in left] == ["One two"] and (repeated, contradictory) == (2, 1)


def test_attacks_keep_label_and_group_and_can_be_repeated():
    once = attacked(SHIPPED[:5], ["base64", "role play"], seed=1)
    assert once == attacked(SHIPPED[:5], ["base64", "role play"], seed=1)
    assert [(e.restricted, e.group) for e in once[::2]] == [(e.restricted, e.group) for e in SHIPPED[:5]]
    assert {e.family for e in once} == {"base64", "role play"}
    with pytest.raises(ConfigError, match="'base65' is no attack family; there are base64"):
        attacked(SHIPPED[:1], ["base65"], seed=1)


def test_a_constitution_without_guard_says_what_to_do():
    bare = parse_constitution(
        "name: bare\nprinciples:\n  - {id: a, text: b c, critique: d e, revision: f g, twin: h i, tags: [t]}\n",
        where="x",
    )
    with pytest.raises(ConfigError, match="'bare' has no section 'guard'"):
        from_constitution(bare)


def test_rows_of_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "Hello there", "restricted": False}) + "\n\n")
    [example] = read_examples(path)
    assert (example.text, example.restricted, example.kind, example.family) == (
        "Hello there",
        False,
        "request",
        "plain",
    )
    for bad, message in (
        ('{"text": "a"}', "line 1: expected an object"),
        ('{"text": "", "restricted": true}', "line 1: expected"),
        ('{"text": "a", "restricted": "yes"}', "line 1: expected"),
        ("[1]", "line 1: expected"),
        ('{"text": "a", "restricted": true, "kind": "poem"}', "kind is 'poem'"),
        ("", "no row"),
    ):
        path.write_text(bad)
        with pytest.raises(DataError, match=message):
            read_examples(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "absent.jsonl")
