"""Thresholds, calibration and intervals against hand counts and other packages."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from trimtab.errors import DataError
from trimtab.guard.scores import auroc, auroc_difference, folds_of, platt, share, threshold_for, tpr_at


def test_the_budget_is_kept_and_used():
    draw = np.random.default_rng(0)
    for budget in (0.01, 0.05, 0.3):
        scores = draw.normal(size=400)
        limit = threshold_for(scores, budget)
        assert sum(scores > limit) == int(400 * budget)


def test_equal_scores_do_not_break_the_budget():
    assert sum(s > threshold_for([1.0] * 10 + [0.0] * 10, 0.2) for s in [1.0] * 10 + [0.0] * 10) == 0


def test_too_few_texts_for_a_budget_is_an_error():
    with pytest.raises(DataError, match="needs 100 harmless texts or more and there are 50"):
        threshold_for([0.0] * 50, 0.01)


def test_rewordings_of_a_subject_do_not_narrow_an_interval():
    blocked = [True] * 36 + [False] * 12  # four subjects in twelve wordings each
    clustered = share(blocked, [i // 12 for i in range(48)])
    by_subject, independent = share([True] * 3 + [False]), share(blocked)
    assert (clustered.low, clustered.high) == pytest.approx((by_subject.low, by_subject.high))
    assert clustered.n == 48 and clustered.low < independent.low - 0.2


def test_the_message_about_the_budget_says_what_it_counts():
    with pytest.raises(DataError, match="there are 50 about 4 subjects"):
        threshold_for([0.0] * 50, 0.01, subjects=4)


def test_auroc_is_the_mann_whitney_statistic():
    draw = np.random.default_rng(1)
    y = draw.integers(0, 2, 200)
    s = np.round(draw.normal(size=200) + y, 1)  # with ties
    u = mannwhitneyu(s[y == 1], s[y == 0]).statistic
    assert auroc(s, y) == pytest.approx(u / (sum(y == 1) * sum(y == 0)))


def test_tpr_at_a_rate_by_hand():
    benign, restricted = [i / 100 for i in range(100)], [0.5, 0.985, 0.995, 2.0]
    # One of a hundred may be blocked: the threshold is the second largest, 0.98.
    assert tpr_at([*benign, *restricted], [0] * 100 + [1] * 4, 0.01) == 0.75


def test_paired_interval_of_a_difference():
    draw = np.random.default_rng(2)
    y = np.repeat([0, 1], 150)
    good = draw.normal(size=300) + 2 * y
    poor = good + draw.normal(size=300) * 2
    gain = auroc_difference(good, poor, y, resamples=100)
    assert gain.low > 0 and gain.low < gain.value < gain.high
    same = auroc_difference(good, good, y, resamples=20)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_platt_finds_the_log_odds_it_was_drawn_with():
    draw = np.random.default_rng(3)
    z = draw.normal(size=20000)
    y = (draw.random(20000) < 1 / (1 + np.exp(-(2 * z)))).astype(int)
    slope, offset = platt(z, y)
    assert slope == pytest.approx(2, abs=0.1) and offset == pytest.approx(0, abs=0.1)
    assert platt(-z, y)[0] == 0  # a member that is worse than chance counts nothing


def test_groups_stay_in_one_fold_and_folds_are_balanced():
    groups = [f"g{i % 23}" for i in range(230)]
    fold = folds_of(groups, 5)
    assert all(len({f for f, g in zip(fold, groups, strict=True) if g == name}) == 1 for name in set(groups))
    assert max(np.bincount(fold)) - min(np.bincount(fold)) <= 10
