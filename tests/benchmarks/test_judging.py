"""The judge's benchmarks on a random model and invented votes: what they compare is the same."""

import json
from pathlib import Path

import pytest

from benchmarks.hybrid_savings import errors, savings
from benchmarks.judging import main
from trimtab.testing import save_model, tiny_model


def test_it_measures_and_the_numbers_agree(tmp_path: Path, capsys):
    model = save_model(tmp_path / "model", tiny_model(layers=2, width=16, context=4096))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- judging -->\nold\n<!-- /judging -->\nafter\n")
    line = ["--model", str(model), "--pairs", "20", "--separate", "3", "--threads", "1", "--words", "6"]
    assert main([*line, "--out", str(tmp_path / "out.json"), "--docs", str(page)]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["pairs"] == 20 and result["separate_pairs"] == 3 and result["largest_difference"] < 1e-4
    assert "3 random pairs, scaled to all" in capsys.readouterr().out
    text = page.read_text()
    assert "| ratio |" in text and "old" not in text and text.startswith("before\n") and text.endswith("after\n")


def test_ai_and_people_are_scored_against_the_same_references():
    """Votes +, +, −: references 0, 0, + (people ½, ½ and wrong). An AI that says + is ½, ½ and right."""
    ai, people = errors({"i": {"a": 1, "b": 1, "c": -1}}, {"i": 1.0})
    assert people["i"] == pytest.approx(2 / 3) and ai["i"] == pytest.approx(1 / 3)
    assert errors({"i": {"a": 1}}, {"i": 1.0}) == ({}, {})  # nobody else voted


def test_the_share_is_chosen_on_other_prompts():
    """Ten items each, five confident; there the AI is right on prompt 0 and wrong on prompt 1, else the reverse.

    Chosen on 1: nothing. Chosen on 0 at people's error of ¼: k items with (k − 5) + ¼ (10 − k) ≤ 2.5, so 6; applied
    to 1 that is 5 wrong, 1 right and 4 of people: .6, .35 beyond.
    """
    names = [f"{g}-{n}" for g in range(2) for n in range(10)]
    confidence = {n: float(int(n[2:]) < 5) for n in names}
    ai = {n: float((n[0] == "1") == (confidence[n] == 1.0)) for n in names}
    result = savings(ai, dict.fromkeys(names, 0.25), confidence, {n: n[0] for n in names}, resamples=0)
    assert result[0]["saved"] == pytest.approx(0.3) and result[0]["beyond"] == pytest.approx(0.175)
