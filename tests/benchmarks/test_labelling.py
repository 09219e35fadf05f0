"""The benchmark of what to label next, on invented votes."""

import numpy as np

from benchmarks import labelling
from benchmarks.labelling import Pairs, curve, gain, text_features


def invented(count: int = 400) -> Pairs:
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=(count, 4))
    chance = 1 / (1 + np.exp(-3 * gaps[:, 0]))
    tied = np.abs(gaps[:, 0]) < 0.2
    votes = [[0.5] * 3 if t else (rng.random(3) < p).astype(float).tolist() for p, t in zip(chance, tied, strict=True)]
    return Pairs(gaps=gaps, debate=np.arange(count) % 24, votes=votes, net=np.array([np.mean(v) for v in votes]))


def test_margin_arm_finds_ties_and_the_correction_undoes_it(monkeypatch):
    monkeypatch.setattr(labelling, "START", 20)
    monkeypatch.setattr(labelling, "STEP", 20)
    monkeypatch.setattr(labelling, "ROUNDS", 2)
    monkeypatch.setattr(labelling, "ARMS", ("random", "margin"))
    result = gain(invented(), repetitions=3)
    truth, ties = result["share of ties among all votes"], result["margin"]["share of ties"]
    assert ties["as labelled"] > truth + 0.1 and abs(ties["corrected"] - truth) < ties["as labelled"] - truth
    assert result["random"]["points gained over random per 100 labels"] == [0, 0, 0]
    assert result["margin"]["verdict"] in ("beats random", "does not beat random")


def test_learning_curve_rises():
    values = curve(invented(), (10, 40, 160), seed=0)
    assert values.shape == (3, labelling.RESAMPLINGS) and values[-1].mean() > values[0].mean()


def test_text_features():
    table = text_features(["a good tea", "a bad soup", "good soup today", "what a day"], dimensions=2)
    assert table.shape == (4, 11) and np.isfinite(table).all()
