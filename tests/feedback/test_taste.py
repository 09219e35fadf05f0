"""Annotators' tastes: the slope against differences, a planted taste that is found, and none where there is none."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from trimtab.feedback.comparison_model import Parameters, Votes, outcome_logs, vote_probabilities
from trimtab.feedback.habit_selection import FOLDS, select_habits, vote_folds
from trimtab.feedback.taste import (
    MIN_VOTES,
    CrossFit,
    annotators_with_enough,
    cross_fit,
    fit_taste,
    mixed_logs,
    select_taste,
)

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


@pytest.mark.parametrize("model", ["davidson", "rao_kupper"])
@pytest.mark.parametrize("taste", [2000.0, -2000.0])
def test_a_vote_against_a_strong_taste_has_a_loss_and_a_slope(model, taste):
    votes, parameters, *_ = example(30)
    votes = replace(votes, outcome=np.arange(30) % 3)
    at = np.full(30, taste)
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        logs, slope = mixed_logs(model, votes, parameters, np.zeros(30), at)
        spread = mixed_logs(model, votes, parameters, np.ones(30), at)
    skill = parameters.skill[votes.annotator]
    gap = skill * (parameters.score[votes.first] - parameters.score[votes.second] + at)
    wanted, by_gap, _ = outcome_logs(model, gap, parameters.tie[votes.annotator])
    rows = np.arange(30)
    assert logs == pytest.approx(wanted[rows, votes.outcome], rel=1e-9, abs=1e-9) and logs.min() < -900
    assert slope == pytest.approx((by_gap * skill[:, None])[rows, votes.outcome], abs=1e-9)
    assert np.isfinite(spread).all() and (spread[0] <= 1e-9).all()


def test_a_planted_taste_is_recovered_where_scores_are_known():
    votes, parameters, apart, _ = example(4000)
    none = np.zeros(len(votes))
    known = CrossFit(model="davidson", votes=votes, parameters=(parameters,), fold=none.astype(np.int64), variance=none)
    taste = fit_taste(known, apart, eligible=annotators_with_enough(votes), deviation=1.0)
    own = votes.annotator < 4
    centred = np.append(U[:4] - np.average(U[votes.annotator[own]]), 0.0)
    learned = taste.offsets(apart, votes.annotator)
    assert learned[own] == pytest.approx((centred[votes.annotator] * (apart @ V))[own], abs=0.6)
    assert np.corrcoef(learned[own], (centred[votes.annotator] * (apart @ V))[own])[0, 1] > 0.98
    assert not learned[~own].any()  # 20 votes are fewer than 50
    counts = np.bincount(votes.annotator[own], minlength=5)
    assert taste.strength @ counts == pytest.approx(0.0, abs=1e-9)
    assert not taste.offsets(apart[:2], np.array([-1, 7])).any()  # people who are not in the data


def test_features_that_never_differ_or_always_differ_alike():
    """The first gets no weight, not a huge one for the day that it differs; the second is as good as any."""
    votes, parameters, apart, _ = example(2000)
    none = np.zeros(len(votes))
    known = CrossFit(model="davidson", votes=votes, parameters=(parameters,), fold=none.astype(np.int64), variance=none)
    given = np.column_stack([apart, np.zeros(len(votes)), np.full(len(votes), -1.1)])
    taste = fit_taste(known, given, eligible=annotators_with_enough(votes), deviation=1.0)
    assert taste.direction[3] == 0.0 and np.abs(taste.direction).max() < 10


def test_it_is_used_only_where_votes_that_were_not_fitted_speak_for_it():
    votes, _, apart, _ = example(1500)
    choice = select_taste(votes, apart, model="davidson", habits=())
    assert choice.taste is not None and choice.annotators == 4
    assert min(loss for _, loss in choice.trials) < choice.without - 0.05
    assert choice.losses[1].mean() == pytest.approx(min(loss for _, loss in choice.trials))
    shuffled = replace(votes, annotator=np.random.default_rng(0).permutation(votes.annotator))
    assert select_taste(shuffled, apart, model="davidson", habits=()).taste is None


def test_too_few_votes():
    votes, _, apart, _ = example(MIN_VOTES)
    choice = select_taste(votes, apart, model="davidson", habits=())
    assert choice.taste is None and choice.trials == () and choice.annotators == 0


def test_annotators_who_have_just_enough_votes_are_tested_too():
    """Of 53 to 69 votes, two of three folds hold fewer than 50; who has a taste is decided by all votes."""
    draw = np.random.default_rng(0)
    who = np.repeat(np.arange(17), np.arange(53, 70))
    first = draw.integers(0, 12, len(who))
    votes = Votes(
        first=first, second=(first + draw.integers(1, 12, len(who))) % 12, outcome=np.zeros(len(who), dtype=np.int64),
        annotator=who, shown=np.zeros(len(who)), weight=np.ones(len(who)), answers=12, annotators=17,
    )  # fmt: skip
    truth = Parameters(score=draw.normal(size=12), skill=np.ones(17), tie=np.full(17, -1.0), position=np.zeros(17))
    phi = draw.normal(size=(12, 3))
    apart = phi[votes.first] - phi[votes.second]
    wanted = np.where(who % 2, 1.5, -1.5) * (apart @ V)
    shares = vote_probabilities("davidson", votes, truth, shift=wanted)
    votes = replace(votes, outcome=(draw.random(len(who))[:, None] > shares.cumsum(1)[:, :2]).sum(1))
    choice = select_taste(votes, apart, model="davidson", habits=())
    assert choice.annotators == 17 and choice.taste is not None
    assert min(loss for _, loss in choice.trials) < choice.without - 0.05


def rankings_of_four(people: int = 20, each: int = 17) -> tuple[Votes, np.ndarray, np.ndarray]:
    """Rankings of four of 30 answers with six features: Plackett–Luce, so nobody has a taste.

    Returns:
        the six pairs of each ranking, which share the Gumbel noise of its four answers, φ_i − φ_j, and the rankings'
        numbers.
    """
    draw = np.random.default_rng(0)
    phi, score = draw.normal(size=(30, 6)), draw.normal(size=30)
    rows: list[tuple[int, int, int, int, int]] = []
    for number in range(people * each):
        chosen = draw.choice(30, 4, replace=False)
        liking = score[chosen] + draw.gumbel(size=4)
        rows += [
            (int(chosen[i]), int(chosen[j]), 0 if liking[i] > liking[j] else 2, number // each, number)
            for i, j in combinations(range(4), 2)
        ]
    table = np.array(rows)
    votes = Votes(
        first=table[:, 0], second=table[:, 1], outcome=table[:, 2], annotator=table[:, 3],
        shown=np.zeros(len(table)), weight=np.full(len(table), 0.5), answers=30, annotators=people,
    )  # fmt: skip
    return votes, phi[votes.first] - phi[votes.second], table[:, 4]


def test_pairs_of_one_ranking_do_not_speak_for_each_other():
    """Folds by row give a taste that nobody has; folds by ranking do not."""
    votes, apart, group = rankings_of_four()
    by_row = select_taste(votes, apart, model="davidson", habits=())
    by_ranking = select_taste(votes, apart, model="davidson", habits=(), group=group)
    assert by_row.taste is not None and by_ranking.taste is None
    assert by_ranking.without > by_row.without + 0.005  # scores gain by the noise too
    fold = cross_fit(votes, model="davidson", habits=(), group=group).fold.reshape(-1, 6)
    assert (fold == fold[:, :1]).all() and len(np.unique(fold)) == FOLDS


def test_habits_are_tested_on_whole_rankings():
    votes, _, group = rankings_of_four()
    _, by_row = select_habits(votes, model="davidson", habits=())
    _, by_ranking = select_habits(votes, model="davidson", habits=(), group=group)
    assert by_ranking[0].log_loss > by_row[0].log_loss + 0.005


def test_folds_of_judgements():
    def folds(rows: int, group: list[int] | None) -> list[int]:
        return vote_folds(rows, None if group is None else np.array(group), np.random.default_rng(0)).tolist()

    drawn = np.random.default_rng(0).integers(0, FOLDS, 9).tolist()
    assert folds(9, None) == folds(9, list(range(9))) == drawn
    assert folds(9, [n // 3 for n in range(9)]) == [drawn[n // 3] for n in range(9)]
    assert all(len(set(folds(n, None))) > 1 for n in range(2, 6))
    assert len(set(folds(6, [0] * 6))) > 1  # one judgement alone is divided
    assert len(set(folds(6, [0] * 3 + [1] * 3))) == 2


def test_pairs_of_a_ranking_count_as_its_votes():
    """16 rankings of four are 48 votes by their 96 pairs, and 17 are 51."""
    votes, *_ = rankings_of_four(2, 17)
    short = votes.part(np.arange(len(votes)) >= 6)
    assert annotators_with_enough(votes).tolist() == [0, 1] and annotators_with_enough(short).tolist() == [1]
    thirds = replace(votes.part(np.arange(75)), weight=np.full(75, 2 / 3))  # 25 rankings of three
    assert annotators_with_enough(thirds).tolist() == [0]
