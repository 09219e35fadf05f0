"""Davidson, Rao–Kupper and Dawid–Skene: gradients, published packages, planted annotators, coverage."""

import math
import time
from dataclasses import fields, replace

import numpy as np
import pytest

from trimtab.errors import ConfigError
from trimtab.feedback import AggregateConfig, aggregate
from trimtab.feedback.comparison_fit import HABITS, ComparisonFit, fit_comparisons
from trimtab.feedback.comparison_model import (
    Parameters,
    Votes,
    expected_log_likelihood,
    gaps,
    information,
    log_likelihood,
    outcome_logs,
    vote_probabilities,
)
from trimtab.feedback.dawid_skene import dawid_skene
from trimtab.feedback.model_labels import _earlier_preferred
from trimtab.records import Comparison, Judgement, Prompt

MODELS = ["davidson", "rao_kupper"]
COUNTS = [(0, 1, 20, 6, 9), (0, 2, 25, 5, 6), (1, 2, 14, 8, 10), (1, 3, 21, 7, 4), (2, 3, 16, 9, 8), (0, 3, 30, 3, 2)]
"""First answer, second answer, wins, ties, losses."""


def votes_of(rows, *, answers=None, annotators=None) -> Votes:
    """(first, second, outcome, annotator, shown[, weight]) as votes."""
    columns = [np.array(c) for c in zip(*(r if len(r) == 6 else (*r, 1.0) for r in rows), strict=True)]
    first, second, outcome, annotator = (c.astype(np.int64) for c in columns[:4])
    return Votes(
        first=first,
        second=second,
        outcome=outcome,
        annotator=annotator,
        shown=columns[4].astype(float),
        weight=columns[5].astype(float),
        answers=answers or int(max(first.max(), second.max())) + 1,
        annotators=annotators or int(annotator.max()) + 1,
    )


def planted(model, *, answers, annotators, n, seed, tie=-0.3) -> tuple[Parameters, Votes]:
    """Votes drawn from the model itself, with parameters drawn from its priors; skills average 1."""
    rng = np.random.default_rng(seed)
    skill = rng.normal(0, 0.4, annotators)
    truth = Parameters(
        score=rng.normal(0, 1, answers),
        skill=1 + skill - skill.mean(),
        tie=rng.normal(tie, 0.6, annotators),
        position=rng.normal(0.2, 0.3, annotators),
    )
    first = rng.integers(0, answers, n)
    votes = Votes(
        first=first,
        second=(first + rng.integers(1, answers, n)) % answers,
        outcome=np.zeros(n, dtype=np.int64),
        annotator=rng.integers(0, annotators, n),
        shown=rng.choice([-1.0, 1.0], n),
        weight=np.ones(n),
        answers=answers,
        annotators=annotators,
    )
    drawn = (rng.random(n)[:, None] > vote_probabilities(model, votes, truth).cumsum(1)).sum(1)
    return truth, replace(votes, outcome=drawn.astype(np.int64))


def counted(*, ties=True) -> Votes:
    rows = [
        (i, j, outcome, 0, 0.0, n)
        for i, j, *outcomes in COUNTS
        for outcome, n in enumerate(outcomes)
        if n and (ties or outcome != 1)
    ]
    return votes_of(rows)


# Likelihoods ------------------------------------------------------------------------------


def test_davidsons_probabilities_by_hand():
    # λ = e^.8 : 1, ν = ½: worths e^.4 : ½ : e^−.4 = 1.491825 : .5 : .670320, sum 2.662145
    logs, _, _ = outcome_logs("davidson", np.array([0.8]), np.log([0.5]))
    assert np.exp(logs[0]) == pytest.approx([0.560384, 0.187818, 0.251797], abs=1e-6)


def test_rao_and_kuppers_probabilities_by_hand():
    # λ = e^.8 = 2.225541, θ = 1.5: 2.225541/(2.225541 + 1.5) = .597374; 1/(1 + 1.5 · 2.225541) = .230504
    logs, _, _ = outcome_logs("rao_kupper", np.array([0.8]), np.log([math.log(1.5)]))
    assert np.exp(logs[0]) == pytest.approx([0.597374, 1 - 0.597374 - 0.230504, 0.230504], abs=1e-6)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("spread", [None, 0.7])
def test_gradients_are_finite_differences(model, spread):
    truth, votes = planted(model, answers=5, annotators=3, n=60, seed=1)
    votes = replace(votes, weight=np.linspace(0.2, 2.0, len(votes)))
    variance = None if spread is None else np.linspace(0, spread, len(votes))
    _, gradient = expected_log_likelihood(model, votes, truth, variance)
    for field in fields(Parameters):
        values = getattr(truth, field.name)
        for place in range(len(values)):
            step = np.zeros_like(values)
            step[place] = 1e-5
            up, down = (
                expected_log_likelihood(model, votes, replace(truth, **{field.name: values + s}), variance)[0]
                for s in (step, -step)
            )
            assert getattr(gradient, field.name)[place] == pytest.approx((up - down) / 2e-5, abs=1e-6), field.name


@pytest.mark.parametrize("model", MODELS)
def test_the_observed_outcomes_have_the_logs_and_slopes_of_the_whole_table(model):
    truth, votes = planted(model, answers=6, annotators=4, n=200, seed=2)
    rows = np.arange(len(votes))
    logs, by_d, by_tau = outcome_logs(model, *gaps(votes, truth))
    assert np.exp(logs).sum(1) == pytest.approx(np.ones(len(votes)))
    value, gradient = log_likelihood(model, votes, truth)
    assert value == pytest.approx(logs[rows, votes.outcome].sum())
    ties = np.bincount(votes.annotator, weights=by_tau[rows, votes.outcome], minlength=4)
    assert gradient.tie == pytest.approx(ties)
    sides = np.bincount(votes.annotator, weights=votes.shown * by_d[rows, votes.outcome], minlength=4)
    assert gradient.position == pytest.approx(sides)


@pytest.mark.parametrize("model", MODELS)
def test_the_information_is_the_variance_of_the_slopes(model):
    truth, votes = planted(model, answers=6, annotators=4, n=5, seed=3)
    logs, by_d, by_tau = outcome_logs(model, *gaps(votes, truth))
    share = np.exp(logs)
    assert (share * by_d).sum(1) == pytest.approx(np.zeros(5), abs=1e-12)  # slopes average 0
    assert (share * by_tau).sum(1) == pytest.approx(np.zeros(5), abs=1e-12)
    dd, dt, tt = information(model, votes, truth)
    step = 1e-4
    d, tau = gaps(votes, truth)
    up, down = (outcome_logs(model, d + s, tau) for s in (step, -step))
    assert dd == pytest.approx(-(share * (up[1] - down[1]) / (2 * step)).sum(1), abs=1e-6)
    assert dt == pytest.approx(-(share * (up[2] - down[2]) / (2 * step)).sum(1), abs=1e-6)
    up, down = (outcome_logs(model, d, tau + s) for s in (step, -step))
    assert tt == pytest.approx(-(share * (up[2] - down[2]) / (2 * step)).sum(1), abs=1e-6)


# Against published packages ---------------------------------------------------------------


def test_scores_without_a_prior_are_those_of_newmans_algorithm():
    # evalica 0.4.2: newman on COUNTS, tolerance 1e-13; log of its scores, centred, and its v = ν/2
    fit = fit_comparisons(counted(), habits=(), deviations={"score": 1e3})
    centred = fit.parameters.score - fit.parameters.score.mean()
    assert centred == pytest.approx([1.2647676030, 0.2504000964, -0.3037161833, -1.2114515160], abs=1e-3)
    assert math.exp(fit.common_tie) / 2 == pytest.approx(0.2893344825, abs=1e-4)


def test_scores_with_a_prior_are_those_of_choix():
    # choix 0.4.1: opt_pairwise on COUNTS without ties, alpha = .5, which is σ_x = 1
    fit = fit_comparisons(counted(ties=False), habits=(), deviations={"score": 1.0})
    assert fit.parameters.score == pytest.approx([1.1114882392, 0.2643266999, -0.2498691365, -1.1259458029], abs=2e-3)


def test_without_ties_it_is_logistic_regression():
    """Scores, position bias and their standard errors of statsmodels' Logit."""
    statsmodels = pytest.importorskip("statsmodels.api")
    _, votes = planted("davidson", answers=5, annotators=1, n=800, seed=4, tie=-30)
    fit = fit_comparisons(votes, habits=(), deviations={"score": 1e3}, pairs=(np.array([0]), np.array([1])))
    design = np.zeros((len(votes), 5))
    design[np.arange(len(votes)), votes.first] += 1
    design[np.arange(len(votes)), votes.second] -= 1
    design = np.column_stack([design[:, 1:], votes.shown])  # answer 0 is the reference
    theirs = statsmodels.Logit((votes.outcome == 0).astype(float), design).fit(disp=0)
    ours = fit.parameters.score[1:] - fit.parameters.score[0]
    assert ours == pytest.approx(theirs.params[:4], abs=5e-3)
    assert fit.common_position == pytest.approx(theirs.params[4], abs=0.02)  # it has a prior
    assert math.sqrt(fit.pair_variance[0]) == pytest.approx(theirs.bse[0], rel=0.02)


# Fits -------------------------------------------------------------------------------------


def coverage(model: str, runs: range) -> tuple[float, np.ndarray]:
    """Share of true contrasts of answers inside their intervals, and of true habits inside theirs."""
    pairs = np.triu_indices(20, 1)
    inside, habits = [], []
    for seed in runs:
        truth, votes = planted(model, answers=20, annotators=8, n=600, seed=seed)
        fit = fit_comparisons(votes, model=model, pairs=pairs)
        apart = [p.score[pairs[0]] - p.score[pairs[1]] for p in (fit.parameters, truth)]
        inside.append(np.mean(np.abs(apart[0] - apart[1]) < 1.96 * np.sqrt(fit.pair_variance)))
        habits.append([np.mean(hits(fit, truth, h)) for h in HABITS])
    return float(np.mean(inside)), np.mean(habits, axis=0)


def hits(fit: ComparisonFit, truth: Parameters, habit: str) -> np.ndarray:
    return np.abs(getattr(fit.parameters, habit) - getattr(truth, habit)) < 1.96 * getattr(fit, f"{habit}_deviation")


@pytest.mark.parametrize("model", MODELS)
def test_intervals_cover(model):
    answers, habits = coverage(model, range(12))
    assert 0.90 < answers < 0.98
    assert (habits > 0.85).all()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_intervals_cover_in_a_thousand_simulations(model):
    answers, habits = coverage(model, range(1000))
    print(f"{model}: answers {answers:.4f}, habits {habits}")
    assert 0.93 <= answers <= 0.97
    assert ((habits > 0.90) & (habits < 0.98)).all()


@pytest.mark.parametrize("model", MODELS)
def test_planted_habits_come_back(model):
    truth, votes = planted(model, answers=30, annotators=12, n=8000, seed=5)
    fit = fit_comparisons(votes, model=model)
    for name in ("score", *HABITS):
        result, true = getattr(fit.parameters, name), getattr(truth, name)
        assert np.corrcoef(result, true)[0, 1] > 0.9, name
    slope = np.polyfit(truth.score - truth.score.mean(), fit.parameters.score, 1)[0]
    assert slope == pytest.approx(1.0, abs=0.07)
    assert fit.deviations["score"] == pytest.approx(truth.score.std(), rel=0.25)


def test_an_undefeated_chain_has_finite_scores_in_order():
    votes = votes_of([(i, i + 1, 0, 0, 0.0) for i in range(9)])
    fit = fit_comparisons(votes, habits=(), pairs=(np.arange(9), np.arange(1, 10)))
    assert (np.diff(fit.parameters.score) < 0).all()
    assert np.isfinite(fit.pair_variance).all() and np.abs(fit.parameters.score).max() < 20


def test_no_vote_is_refused():
    empty = counted().part(slice(0, 0))
    with pytest.raises(ConfigError, match="no vote"):
        fit_comparisons(empty)


def test_many_answers_have_the_intervals_of_few(monkeypatch):
    """Above the limit of one matrix each group of answers has its own, and without habits nothing changes."""
    rows = []
    rng = np.random.default_rng(6)
    for group in range(40):  # of 2 or 3 answers, which nothing connects
        size = 2 + group % 2
        for _ in range(6):
            i, j = rng.choice(size, 2, replace=False)
            rows.append((3 * group + i, 3 * group + j, rng.integers(0, 3), 0, 0.0))
    votes = votes_of(rows, answers=120)
    pairs = (np.arange(0, 120, 3), np.arange(1, 120, 3))
    whole = fit_comparisons(votes, habits=(), pairs=pairs, deviations={"score": 1.0})
    monkeypatch.setattr("trimtab.feedback.comparison_fit.DENSE", 50)
    parts = fit_comparisons(votes, habits=(), pairs=pairs, deviations={"score": 1.0})
    assert parts.pair_variance == pytest.approx(whole.pair_variance)
    assert parts.variance == pytest.approx(whole.variance)


def test_of_one_large_group_the_series_is_close(monkeypatch):
    _, votes = planted("davidson", answers=60, annotators=1, n=6000, seed=7)
    pairs = (np.arange(0, 59), np.arange(1, 60))
    whole = fit_comparisons(votes, habits=(), pairs=pairs, deviations={"score": 1.0})
    monkeypatch.setattr("trimtab.feedback.comparison_fit.DENSE", 50)
    parts = fit_comparisons(votes, habits=(), pairs=pairs, deviations={"score": 1.0})
    assert parts.pair_variance == pytest.approx(whole.pair_variance, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("habits", "seconds"), [((), 5), (HABITS, 30)])
def test_two_hundred_thousand_comparisons(habits, seconds):
    truth, votes = planted("davidson", answers=5000, annotators=300, n=200_000, seed=0)
    start = time.process_time()
    fit = fit_comparisons(votes, habits=habits, pairs=(votes.first, votes.second))
    assert time.process_time() - start < seconds
    assert np.corrcoef(fit.parameters.score, truth.score)[0, 1] > 0.94


# Dawid and Skene --------------------------------------------------------------------------


def test_one_round_of_dawid_and_skene_by_hand():
    # Two tasks, two annotators: task 0 gets 0 and 1, task 1 gets 0 and 0; first shares (½, ½) and (1, 0).
    # counts of annotator 0: truth 0 says 0: ½ + 1; truth 1 says 0: ½ → it always says 0.
    # annotator 1: truth 0: says 1 ½, says 0 1 → ⅔ says 0; truth 1: says 1 ½ → always says 1.
    # prior (¾, ¼): task 0: ¾ · 1 · ⅓ = ¼ against ¼ · 1 · 1 = ¼; task 1: ¾ · 1 · ⅔ against 0.
    task, who, label = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.array([0, 1, 0, 0])
    fit = dawid_skene(task, who, label, classes=2, shrinkage=0.0, iterations=1)
    assert fit.probability == pytest.approx(np.array([[0.5, 0.5], [1.0, 0.0]]), abs=1e-9)
    assert fit.confusion[1] == pytest.approx(np.array([[2 / 3, 1 / 3], [0.0, 1.0]]), abs=1e-9)


def test_dawid_and_skene_as_published():
    # crowd-kit 1.4.2: DawidSkene on these rows (one annotator each, one character a task), 300 rounds
    rows = [
        "001122012012001122",
        "001121012011001022",
        "002122212012101122",
        "021122012010001112",
        "210011200121220010",
    ]
    label = np.array([int(c) for row in rows for c in row])
    task, who = np.tile(np.arange(18), 5), np.repeat(np.arange(5), 18)
    fit = dawid_skene(task, who, label, classes=3, shrinkage=0.0)
    assert fit.prior == pytest.approx([1 / 3] * 3, abs=1e-5)
    assert fit.probability.argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 2, 2]
    theirs = [[0.83333, 0.0, 0.16667], [0.0, 1.0, 0.0], [0.16667, 0.16667, 0.66667]]
    assert fit.confusion[3] == pytest.approx(np.array(theirs), abs=1e-4)


# Preferences ------------------------------------------------------------------------------

RANKS = {1: (0, 1), -1: (1, 0), 0: (0, 0)}


def records(votes) -> tuple[list[Comparison], list[Judgement]]:
    """(item, annotator, vote) as records, each item with answers of its own."""
    items = {n: Comparison.of(Prompt.from_text(f"q{n}"), [f"a{n}", f"b{n}"]) for n, _, _ in votes}
    rows = [
        Judgement(id=f"{n}/{a}", item=items[n].id, annotator=a, source="human", shown_order=(0, 1), ranks=RANKS[v])
        for n, a, v in votes
    ]
    return list(items.values()), rows


def eight_and_four(seed: int, items: int = 400, each: int = 6) -> tuple[list, np.ndarray, list[str]]:
    """8 annotators right in 85 % and 4 who toss a coin; 6 of the 12 judge each item."""
    rng = np.random.default_rng(seed)
    names = [f"good{i}" for i in range(8)] + [f"spam{i}" for i in range(4)]
    truth = rng.choice([-1, 1], items)
    rows = []
    for n in range(items):
        for a in rng.choice(12, each, replace=False):
            right = rng.random() < (0.85 if a < 8 else 0.5)
            rows.append((n, names[a], int(truth[n] if right else -truth[n])))
    return rows, truth, names


@pytest.mark.parametrize("method", ["dawid_skene", "davidson", "rao_kupper"])
def test_spammers_rank_below_everyone_and_labels_are_right(method):
    rows, truth, _ = eight_and_four(0)
    items, judgements = records(rows)
    result = aggregate(items, judgements, config=AggregateConfig(method=method, keep_tied=True))
    right = [(p.probability - 0.5) * t > 0 for p, t in zip(result.preferences, truth, strict=True)]
    votes = aggregate(items, judgements, config=AggregateConfig(keep_tied=True)).preferences
    by_majority = [
        0.5 if p.probability == 0.5 else (p.probability - 0.5) * t > 0 for p, t in zip(votes, truth, strict=True)
    ]
    assert np.mean(right) >= 0.90 and np.mean(right) > np.mean(by_majority)
    order = [h.annotator for h in result.habits]
    assert all(name.startswith("good") for name in order[:8])
    assert result.notes == () and result.preferences[0].judgements == tuple(
        j.id for j in judgements if j.item == items[0].id
    )


@pytest.mark.parametrize("method", ["dawid_skene", "davidson", "rao_kupper"])
def test_total_disagreement_gives_one_half_and_says_so(method):
    items, judgements = records([(n, a, v) for n in range(20) for a, v in (("x", 1), ("y", -1))])
    result = aggregate(items, judgements, config=AggregateConfig(method=method, keep_tied=True))
    assert [p.probability for p in result.preferences] == pytest.approx([0.5] * 20, abs=0.02)
    assert any("contradict" in note for note in result.notes)


@pytest.mark.parametrize("method", ["dawid_skene", "davidson", "rao_kupper"])
def test_one_annotator_is_taken_at_their_word(method):
    items, judgements = records([(n, "only", 1 if n % 3 else -1) for n in range(12)])
    result = aggregate(items, judgements, config=AggregateConfig(method=method))
    assert [p.ranks for p in result.preferences] == [(0, 1) if n % 3 else (1, 0) for n in range(12)]
    assert any("one annotator" in note for note in result.notes)


@pytest.mark.parametrize("method", ["dawid_skene", "davidson", "rao_kupper"])
def test_only_ties(method):
    items, judgements = records([(n, a, 0) for n in range(5) for a in "xy"])
    result = aggregate(items, judgements, config=AggregateConfig(method=method))
    assert result.preferences == () and result.dropped == {"all answers tied": 5}


def test_five_votes_weigh_more_than_one():
    votes = [(0, f"w{i}", 1) for i in range(5)] + [(1, "w0", 1)]
    votes += [(n, f"w{i}", v) for n, v in ((2, -1), (3, 1), (4, -1)) for i in range(5)]
    many, one = aggregate(*records(votes), config=AggregateConfig(method="davidson")).preferences[:2]
    assert many.weight > one.weight and many.probability > one.probability > 0.5


def test_rankings_and_the_order_shown():
    """A planted favour for the answer shown first is an annotator's habit and not the answers' quality."""
    rng = np.random.default_rng(8)
    items, judgements = [], []
    for n in range(150):
        item = Comparison.of(Prompt.from_text(f"q{n}"), [f"a{n}", f"b{n}", f"c{n}"])
        items.append(item)
        for a in range(4):
            shown = tuple(int(i) for i in rng.permutation(3))
            worth = np.array([1.5, 0.0, -1.5])[list(shown)] + rng.gumbel(size=3) + [1.0, 0.0, 0.0]
            ranks = tuple(int(r) for r in np.argsort(np.argsort(-worth)))
            judgements.append(
                Judgement(id=f"{n}/{a}", item=item.id, annotator=str(a), source="human", shown_order=shown, ranks=ranks)
            )
    result = aggregate(items, judgements, config=AggregateConfig(method="davidson"))
    assert np.mean([p.ranks[0] < p.ranks[2] for p in result.preferences]) > 0.9
    assert all(p.probability is None for p in result.preferences)
    assert all(h.position.low > 0.5 for h in result.habits)


def test_answers_shared_between_items_inform_each_other():
    """a beats b and b beats c, each five times; of a and c there is one vote, the other way."""
    prompt = Prompt.from_text("q")
    ab, bc, ac = (Comparison.of(prompt, list(pair)) for pair in ("ab", "bc", "ac"))
    judgements = [
        Judgement(id=f"{i.id}{n}", item=i.id, annotator=f"w{n}", source="human", shown_order=(0, 1), ranks=(0, 1))
        for i in (ab, bc)
        for n in range(5)
    ]
    judgements.append(Judgement(id="ca", item=ac.id, annotator="w0", source="human", shown_order=(0, 1), ranks=(1, 0)))
    result = aggregate([ab, bc, ac], judgements, config=AggregateConfig(method="davidson"))
    assert result.preferences[2].ranks == (0, 1) and result.preferences[2].probability > 0.6


def test_a_judges_probability_is_a_share_of_a_vote():
    items, _ = records([(n, "x", 1) for n in range(30)])
    shown = [(0, 1) if n % 2 else (1, 0) for n in range(30)]
    better = [n % 3 > 0 for n in range(30)]  # the item's first answer
    judgements = [
        Judgement(
            id=f"{n}",
            item=items[n].id,
            annotator="ai",
            source="ai",
            shown_order=s,
            ranks=(0, 1) if (s == (0, 1)) == b else (1, 0),
            probability=0.9 if (s == (0, 1)) == b else 0.1,
        )
        for n, (s, b) in enumerate(zip(shown, better, strict=True))
    ]
    result = aggregate(items, judgements, config=AggregateConfig(method="davidson"))
    assert [p.ranks for p in result.preferences] == [(0, 1) if b else (1, 0) for b in better]
    assert all(0.5 < max(p.probability, 1 - p.probability) < 0.9 for p in result.preferences)


@pytest.mark.parametrize("setting", [{"smoothing": 1.0}, {"weighting": "agreement"}])
def test_settings_of_the_majority_are_refused_elsewhere(setting):
    with pytest.raises(ValueError, match="method 'majority'"):
        AggregateConfig(method="davidson", **setting)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trimtab.feedback.model_labels", None)
    items, judgements = records([(0, "x", 1)])
    with pytest.raises(ConfigError, match=r"pip install .*web"):
        aggregate(items, judgements, config=AggregateConfig(method="davidson"))


def split_votes(method: str, habits: tuple = ()):
    """150 people prefer the first answer, 105 see a tie and 45 prefer the second; each half is shown it earlier."""
    item = Comparison.of(Prompt.from_text("q"), ["a", "b"])
    judgements = [
        Judgement(
            id=str(n),
            item=item.id,
            annotator=str(n),
            source="human",
            shown_order=(0, 1) if n % 2 else (1, 0),
            ranks=(0, 0) if vote == 0 else (0, 1) if (vote > 0) == bool(n % 2) else (1, 0),
        )
        for n, vote in enumerate([1] * 150 + [0] * 105 + [-1] * 45)
    ]
    return aggregate([item], judgements, config=AggregateConfig(method=method, habits=habits))


@pytest.mark.parametrize("method", MODELS)
def test_a_soft_label_is_the_share_of_those_who_see_a_winner(method):
    assert split_votes(method).preferences[0].probability == pytest.approx(150 / 195, abs=0.02)


def test_position_bias_is_a_probability_given_a_winner_by_hand():
    # P(tie) = .35 between equals: η = 2 artanh .35 = .730888; σ(1 − η) = .566875, σ(−1 − η) = .150473
    tau = math.log(2 * math.atanh(0.35))
    assert _earlier_preferred("rao_kupper", tau, 1.0) == pytest.approx(0.566875 / (0.566875 + 0.150473), abs=1e-5)
    assert _earlier_preferred("davidson", math.log(0.5), 1.0) == pytest.approx(0.731059, abs=1e-6)  # σ(1)


@pytest.mark.parametrize("method", [*MODELS, "dawid_skene"])
def test_a_judgement_with_a_probability_is_one_judgement(method):
    item = Comparison.of(Prompt.from_text("q"), ["a", "b"])
    judgement = Judgement(
        id="s", item=item.id, annotator="ai", source="ai", shown_order=(0, 1), ranks=(0, 1), probability=0.9
    )
    (habits,) = aggregate([item], [judgement], config=AggregateConfig(method=method)).habits
    assert habits.votes == 1
    if method == "dawid_skene":
        assert (habits.position.n, habits.position.value) == (1, pytest.approx(0.9))


def test_dawid_and_skene_skill_has_no_interval_and_shrinks_as_if_each_label_were_there_once():
    rows, _, names = eight_and_four(3, items=30, each=4)
    items, judgements = records(rows)
    result = aggregate(items, judgements, config=AggregateConfig(method="dawid_skene", keep_tied=True))
    task, annotator = np.array([r[0] for r in rows]), np.array([names.index(r[1]) for r in rows])
    label = np.array([1 - r[2] for r in rows])
    both = dawid_skene(
        np.r_[task, task + 30], np.r_[annotator, annotator], np.r_[label, 2 - label], classes=3, shrinkage=8.0
    )
    for habits in result.habits:
        assert habits.skill.value == pytest.approx(both.accuracy[names.index(habits.annotator)], abs=1e-4)
        assert habits.skill.low is None and "estimated too" in habits.skill.reason
