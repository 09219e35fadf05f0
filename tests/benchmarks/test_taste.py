"""The low-rank taste: its gradient against differences, and a planted taste that is found."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from benchmarks import taste
from trimtab.feedback.comparison_model import Parameters, Votes


def example(count: int, *, answers: int = 12, people: int = 4, seed: int = 0) -> tuple[Votes, Parameters, np.ndarray]:
    draw = np.random.default_rng(seed)
    first = draw.integers(0, answers, count)
    votes = Votes(
        first=first,
        second=(first + draw.integers(1, answers, count)) % answers,
        outcome=draw.integers(0, 3, count),
        annotator=draw.integers(0, people, count),
        shown=draw.choice([-1.0, 0.0, 1.0], count),
        weight=np.ones(count),
        answers=answers,
        annotators=people,
    )
    parameters = Parameters(
        score=draw.normal(size=answers),
        skill=draw.uniform(0.5, 1.5, people),
        tie=draw.normal(-1, 0.3, people),
        position=draw.normal(0, 0.2, people),
    )
    return votes, parameters, draw.normal(size=(answers, 3))


def test_the_slope_by_the_taste_against_differences():
    votes, parameters, _ = example(6)
    variance, at = np.linspace(0, 1, 6), np.linspace(-1, 1, 6)
    _, slope = taste.log_likelihood(votes, parameters, variance, at)

    def total(x: np.ndarray) -> float:
        return float(taste.log_likelihood(votes, parameters, variance, x)[0].sum())

    assert slope == pytest.approx(approx_fprime(at, total, 1e-6), abs=1e-5)


def test_outcomes_are_a_distribution():
    votes, parameters, _ = example(5)
    shares = [
        np.exp(taste.log_likelihood(replace(votes, outcome=np.full(5, k)), parameters, np.ones(5), np.ones(5))[0])
        for k in range(3)
    ]
    assert np.sum(shares, axis=0) == pytest.approx(np.ones(5))


def test_a_planted_taste_is_recovered(monkeypatch: pytest.MonkeyPatch):
    """Scores are known; outcomes follow u_a · V Δφ with u = 2, −2, 1, −1 and V = (1, 0, 0)."""
    votes, parameters, phi = example(4000)
    delta, people = phi[votes.first] - phi[votes.second], 4
    u, v = np.array([2.0, -2.0, 1.0, -1.0]), np.array([1.0, 0.0, 0.0])
    wanted = u[votes.annotator] * (delta @ v)
    draw = np.random.default_rng(1)
    none = np.zeros(len(votes))
    shares = np.stack(
        [
            np.exp(taste.log_likelihood(replace(votes, outcome=np.full(len(votes), k)), parameters, none, wanted)[0])
            for k in range(3)
        ],
        1,
    )
    votes = replace(votes, outcome=(draw.random(len(votes))[:, None] > shares.cumsum(1)[:, :2]).sum(1))
    fold = np.zeros(len(votes), dtype=np.int64)
    point = taste.fit_taste(votes, [parameters], none, fold, delta, votes.annotator, rank=1, sigma=1.0, people=people)
    learned = taste.tastes(point, 1, delta, votes.annotator, people)[0]
    assert np.corrcoef(learned, wanted)[0, 1] > 0.98 and learned.std() == pytest.approx(wanted.std(), rel=0.15)
    nobody = taste.tastes(point, 1, delta, np.full(len(votes), -1), people)[0]
    assert not nobody.any()
