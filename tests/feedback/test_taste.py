"""Annotators' tastes: the slope against differences, a planted taste that is found, and none where there is none."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from trimtab.feedback.comparison_model import Parameters, Votes, vote_probabilities
from trimtab.feedback.taste import LEAST, CrossFit, fit_taste, mixed_logs, select_taste

U = np.array([2.0, -2.0, 1.0, -1.0, 3.0])
V = np.array([1.0, 0.0, -0.5])


def example(count: int, *, taste: bool = True, seed: int = 0) -> tuple[Votes, Parameters, np.ndarray, np.ndarray]:
    """Votes of four annotators, and a few by a fifth, on 12 answers with three features, drawn from U · (V Δφ)."""
    draw = np.random.default_rng(seed)
    first, who = draw.integers(0, 12, count), draw.integers(0, 4, count)
    who[:20] = 4
    votes = Votes(
        first=first,
        second=(first + draw.integers(1, 12, count)) % 12,
        outcome=np.zeros(count, dtype=np.int64),
        annotator=who,
        shown=draw.choice([-1.0, 0.0, 1.0], count),
        weight=np.ones(count),
        answers=12,
        annotators=5,
    )
    parameters = Parameters(
        score=draw.normal(size=12), skill=draw.uniform(0.5, 1.5, 5), tie=draw.normal(-1, 0.3, 5), position=np.zeros(5)
    )
    phi = draw.normal(size=(12, 3))
    apart = phi[votes.first] - phi[votes.second]
    wanted = U[who] * (apart @ V) if taste else np.zeros(count)
    shares = vote_probabilities("davidson", votes, parameters, shift=wanted)
    outcome = (draw.random(count)[:, None] > shares.cumsum(1)[:, :2]).sum(1)
    return replace(votes, outcome=outcome), parameters, apart, wanted


@pytest.mark.parametrize("model", ["davidson", "rao_kupper"])
def test_the_slope_against_differences(model):
    votes, parameters, *_ = example(30)
    variance, at = np.linspace(0, 1, 30), np.linspace(-1, 1, 30)

    def total(x: np.ndarray) -> float:
        return float(mixed_logs(model, votes, parameters, variance, x)[0].sum())

    slope = mixed_logs(model, votes, parameters, variance, at)[1]
    assert slope == pytest.approx(approx_fprime(at, total, 1e-6), abs=1e-4)


def test_no_variance_is_the_models_likelihood():
    votes, parameters, _, wanted = example(30)
    logs = mixed_logs("davidson", votes, parameters, np.zeros(30), wanted)[0]
    shares = vote_probabilities("davidson", votes, parameters, shift=wanted)
    assert logs == pytest.approx(np.log(shares[np.arange(30), votes.outcome]))


def test_a_planted_taste_is_recovered_where_scores_are_known():
    votes, parameters, apart, _ = example(4000)
    none = np.zeros(len(votes))
    known = CrossFit(model="davidson", votes=votes, parameters=(parameters,), fold=none.astype(np.int64), variance=none)
    taste = fit_taste(known, apart, deviation=1.0)
    own = votes.annotator < 4
    centred = np.append(U[:4] - np.average(U[votes.annotator[own]]), 0.0)
    learned = taste.offsets(apart, votes.annotator)
    assert learned[own] == pytest.approx((centred[votes.annotator] * (apart @ V))[own], abs=0.6)
    assert np.corrcoef(learned[own], (centred[votes.annotator] * (apart @ V))[own])[0, 1] > 0.98
    assert not learned[~own].any()  # 20 votes are fewer than 50
    counts = np.bincount(votes.annotator[own], minlength=5)
    assert taste.strength @ counts == pytest.approx(0.0, abs=1e-9)
    assert not taste.offsets(apart[:2], np.array([-1, 7])).any()  # people who are not in the data


def test_it_is_used_only_where_votes_that_were_not_fitted_speak_for_it():
    votes, _, apart, _ = example(1500)
    choice = select_taste(votes, apart, model="davidson", habits=())
    assert choice.taste is not None and choice.annotators == 4
    assert min(loss for _, loss in choice.trials) < choice.without - 0.05
    assert choice.losses[1].mean() == pytest.approx(min(loss for _, loss in choice.trials))
    shuffled = replace(votes, annotator=np.random.default_rng(0).permutation(votes.annotator))
    assert select_taste(shuffled, apart, model="davidson", habits=()).taste is None


def test_too_few_votes():
    votes, _, apart, _ = example(LEAST)
    choice = select_taste(votes, apart, model="davidson", habits=())
    assert choice.taste is None and choice.trials == () and choice.annotators == 0
