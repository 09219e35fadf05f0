"""Packets for blind readers, and their tally."""

import json

import pytest

from benchmarks.reading import main, packet, tally
from trimtab.errors import DataError
from trimtab.records import Prompt

PROMPTS = [Prompt.from_text(f"Write.\n\nNote {i}") for i in range(20)]
ANSWERS = {model: [f"{model} {i}\nmore" for i in range(20)] for model in ("base", "sft", "policy")}


def judgements(key: list[list[str]], best: str) -> list[dict]:
    rows = []
    for n, models in enumerate(key, 1):
        letters = {model: letter for letter, model in zip("ABC", models, strict=True)}
        rest = [letters[m] for m in models if m != best]
        rows.append({"n": n, "ranking": [[letters[best]], rest], "ok": [letters[best]], "copies": rest[:1]})
    return rows


def test_a_packet_hides_the_models_and_its_key_finds_them():
    text, key = packet(PROMPTS, ANSWERS, seed=0)
    assert len({tuple(models) for models in key}) > 1  # the order differs between prompts
    for n, models in enumerate(key):
        for letter, model in zip("ABC", models, strict=True):
            assert f"  {letter}. {model} {n} / more" in text


def test_the_tally_counts_ties_as_half(tmp_path, capsys):
    _, key = packet(PROMPTS, ANSWERS, seed=0)
    lines = tally(key, judgements(key, "policy"))
    assert "policy: 20 of 20 ok, 0 copies" in lines
    assert any(line.startswith("policy over base: 100%") for line in lines)
    assert any(line.startswith("base over sft: 50%") for line in lines)
    (tmp_path / "key.json").write_text(json.dumps(key))
    (tmp_path / "ann.jsonl").write_text("\n".join(json.dumps(row) for row in judgements(key, "sft")))
    assert main(["--tally", str(tmp_path), str(tmp_path / "ann.jsonl")]) == 0
    assert "sft over policy: 100%" in capsys.readouterr().out


def test_missing_and_incomplete_judgements_are_refused():
    _, key = packet(PROMPTS, ANSWERS, seed=0)
    rows = judgements(key, "sft")
    with pytest.raises(DataError, match="19 judgements of 20 prompts"):
        tally(key, rows[1:])
    rows[4]["ranking"] = [["A"], ["B"]]
    with pytest.raises(DataError, match="prompt 5"):
        tally(key, rows)
