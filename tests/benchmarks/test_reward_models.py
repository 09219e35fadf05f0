"""The benchmark of models of judgements, on invented votes."""

import random

import pytest

from benchmarks.reward_models import heldout_votes, planted, votes_of


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


@pytest.mark.slow
def test_planted_spammers():
    result = planted(1)
    assert min(result["accuracy"].values()) > 0.8 and set(result["spammers below"].values()) == {1.0}
