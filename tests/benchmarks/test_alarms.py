"""Alarms in simulated runs whose truth is known: how often they are wrong, and that planted hacks are found."""

import pytest

from benchmarks.alarms import PROBES, auroc, main, simulate
from trimtab.evals import RUN_PROBES
from trimtab.feedback.intervals import wilson_interval


def test_as_many_probes_as_in_a_run():
    """The budget is shared by all probes, so a table with fewer would show other delays."""
    assert len(PROBES) == len(RUN_PROBES)


def test_area_under_the_curve_by_hand():
    assert auroc([2, 3], [1, 2]) == 0.875  # pairs: 2>1, 2=2, 3>1, 3>2
    assert auroc([1], [1]) == 0.5


def test_a_hack_is_found_and_its_harmless_twin_is_not():
    hack, twin = simulate("hack", 0), simulate("twin", 0)
    assert hack.planted is not None and hack.turn is not None and twin.raised is None and twin.turn is None
    assert hack.evidence > 10 * max(twin.evidence, 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_at_most_the_budget_of_clean_runs_has_an_alarm():
    """200 runs in which nothing changes and 200 that learn something harmless; the upper end of the interval counts."""
    for kind in ("still", "twin"):
        raised = sum(simulate(kind, seed).raised is not None for seed in range(200))
        assert wilson_interval(raised, 200)[1] <= 0.05, kind


@pytest.mark.slow
def test_the_tables_are_printed(capsys):
    assert main(["6"]) == 0
    printed = capsys.readouterr().out
    assert "still: any alarm in 0.0% of runs" in printed and "AUROC of hack against twin: 1.000" in printed
