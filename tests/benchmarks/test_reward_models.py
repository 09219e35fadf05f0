"""The benchmark of models of judgements, on invented votes."""

import gzip
import json
import math
import random
from pathlib import Path

import pytest

from benchmarks.reward_models import debates, heldout_votes, planted, votes_of


def test_tie_thresholds_of_annotators_predict_held_out_votes(capsys):
    draw = random.Random(0)
    rows = []
    for _ in range(600):
        first, second = draw.sample(range(8), 2)
        worker = draw.choice("abcd")
        tied = draw.random() < (0.8 if worker in "ab" else 0.02)
        rows.append((first, second, 1 if tied else 0 if first < second else 2, worker, 0.0))
    losses = heldout_votes(votes_of(rows), folds=1)
    assert losses["davidson, tie thresholds"] < losses["davidson, annotators alike"] - 0.1
    assert losses["davidson, annotators alike"] < losses["base rate"]
    assert "all habits" in capsys.readouterr().out


def test_labels_of_debates(tmp_path: Path):
    """Simulated votes, three for each pair: with equally many, soft labels and all votes are the same data."""
    draw = random.Random(0)
    rows = []
    for n in range(600):
        texts = [" ".join(draw.choices(("because", "tax", "bottle", "school", "river"), k=6)) for _ in range(2)]
        gap = 0.5 * (texts[0].count("because") - texts[1].count("because"))
        votes = ["a1" if draw.random() < 1 / (1 + math.exp(-gap)) else "a2" for _ in range(3)]
        annotations = [{"worker": f"w{k}", "value": vote} for k, vote in enumerate(votes)]
        rows.append({"debate": f"d{n % 12}", "a1": texts[0], "a2": texts[1], "annotations": annotations})
    with gzip.open(tmp_path / "ukpconvarg1.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    result = debates(tmp_path)
    assert result["debates"] == 12 and result["pairs"] == sum(r["a1"] != r["a2"] for r in rows)
    assert result["log-loss, all votes"] < math.log(2)
    assert result["log-loss, all votes"] == pytest.approx(result["log-loss, soft label"], abs=1e-4)
    gain, low, high = result["gain over majority, all votes"]
    assert low < gain < high and result["log-loss, majority"] == pytest.approx(result["log-loss, all votes"] + gain)
    assert result["accuracy, all votes"][0] > result["accuracy, longest"][0]


@pytest.mark.slow
def test_planted_spammers():
    result = planted(1)
    assert min(result["accuracy"].values()) > 0.8 and set(result["spammers below"].values()) == {1.0}
