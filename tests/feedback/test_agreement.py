import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.feedback import (
    Estimate,
    SimulationConfig,
    agreement_report,
    interval_alpha,
    krippendorff_alpha,
    nominal_report,
    simulate,
    wilson_interval,
)
from trimtab.records import Comparison, Judgement, Prompt

ITEMS = [Comparison.of(Prompt.from_text(f"q{i}"), ["short", "a longer one"]) for i in range(40)]


def votes(annotator, ranks_of, items=ITEMS) -> list[Judgement]:
    """One judgement of each item in canonical order; ``ranks_of(index)`` gives the ranks."""
    return [
        Judgement(
            id=f"{annotator}/{i}",
            item=item.id,
            annotator=annotator,
            source="simulated",
            shown_order=tuple(range(len(item.completions))),
            ranks=ranks_of(i),
        )
        for i, item in enumerate(items)
    ]


def alternating(i):
    return (0, 1) if i % 2 else (1, 0)


def opposite(i):
    return alternating(i + 1)


@pytest.mark.parametrize(  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def columns(*rows: str) -> list[list[str]]:
    return [[v for v in unit if v != "."] for unit in zip(*(row.split() for row in rows), strict=True)]


@pytest.mark.parametrize(  # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", examples A, B and C
    ("units", "alpha"),
    [
        (columns("0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0"), 0.095),
        (columns("a a b b d c c c e d d a", "b a b b b c c c e d d d"), 0.692),
        (
            columns(
                "1 2 3 3 2 1 4 1 2 . . .",
                "1 2 3 3 2 2 4 1 2 5 . 3",
                ". 3 3 3 2 3 4 2 2 5 1 .",
                "1 2 3 3 2 4 4 1 2 5 1 .",
            ),
            0.743,
        ),
    ],
)
def test_krippendorff_as_published(units, alpha):
    assert krippendorff_alpha(units) == pytest.approx(alpha, abs=5e-4)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=8))
def test_krippendorff_is_one_minus_observed_over_expected_disagreement(units):
    paired = [u for u in units if len(u) > 1]
    values = [v for u in paired for v in u]
    n = len(values)
    observed = sum(sum(a != b for a in u for b in u) / (len(u) - 1) for u in paired)
    expected = sum(a != b for a in values for b in values)
    result = krippendorff_alpha(units)
    if expected:
        assert result == pytest.approx(1 - (observed / n) / (expected / (n * (n - 1))))
    else:
        assert result is None


def test_krippendorff_for_numbers_as_published():
    """Krippendorff 2011, section D: the data of example C by the interval metric."""
    rows = ("1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 .")
    assert interval_alpha([list(map(int, unit)) for unit in columns(*rows)]) == pytest.approx(0.849, abs=5e-4)


STRENGTHS = st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.25, 1.0, None])
"""Of the first answer over the second; 0: a tie; None: the first is better, by nobody knows how much."""


def with_strengths(units: list[list[float | None]]) -> list[Judgement]:
    return [
        Judgement(
            id=f"{n}/{k}", item=ITEMS[n].id, annotator=f"w{k}", source="human", shown_order=(0, 1) if k % 2 else (1, 0),
            ranks=(0, 0) if value == 0 else (0, 1) if (value is None or value > 0) == bool(k % 2) else (1, 0),
            strength=abs(value) if value else None,
        )
        for n, unit in enumerate(units)
        for k, value in enumerate(unit)
    ]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(STRENGTHS, max_size=4), min_size=1, max_size=8))
def test_the_alpha_of_strengths_is_one_minus_observed_over_expected_squares(units: list[list[float | None]]):
    """From every pair of numbers; ties and judgements without a strength are among them, and each answer order."""
    of_strength = agreement_report(ITEMS, with_strengths(units), resamples=20)["strength_alpha"]
    rated = [[v for v in unit if v is not None] for unit in units]
    paired = [unit for unit in rated if len(unit) > 1] if any(v for unit in rated for v in unit) else []
    values = [v for unit in paired for v in unit]
    n = len(values)
    observed = sum(sum((a - b) ** 2 for a in unit for b in unit) / (len(unit) - 1) for unit in paired)
    expected = sum((a - b) ** 2 for a in values for b in values)
    assert of_strength.n == n
    if expected:
        assert of_strength.value == pytest.approx(1 - (observed / n) / (expected / (n * (n - 1))))
        assert of_strength.low is None or of_strength.low <= of_strength.high
    else:
        assert (
            of_strength.value is None
            and ("all said the same" if n else "no pair of answers has a strength") in of_strength.reason
        )


def test_the_alpha_of_strengths_by_hand():
    """1, 1; 0, 0; ½, −½: four values of one kind of pair. Observed (0 + 0 + 2)/6; expected 2·(6·2.5 − 4)/30."""
    judgements = with_strengths([[1.0, 1.0], [0.0, 0.0], [0.5, -0.5]])
    of_strength = agreement_report(ITEMS, judgements, resamples=200)["strength_alpha"]
    assert of_strength.value == pytest.approx(1 - (2 / 6) / (22 / 30)) and of_strength.n == 6
    assert of_strength.low is not None and of_strength.low < of_strength.value <= of_strength.high
    plain = [j.model_copy(update={"strength": None}) for j in judgements]
    none = agreement_report(ITEMS, plain, resamples=20)["strength_alpha"]
    assert none.value is None and "no pair of answers has a strength" in none.reason
    stronger = agreement_report(ITEMS, with_strengths([[1.0, 0.75], [-0.5, -0.75]]), resamples=20)
    assert stronger["strength_alpha"].value < 1 and stronger["krippendorff_alpha"].value == 1.0


def test_total_agreement():
    report = agreement_report(ITEMS, votes("w0", alternating) + votes("w1", alternating))
    assert report["raw_agreement"].value == report["leave_one_out"].value == report["krippendorff_alpha"].value == 1.0
    assert (report["raw_agreement"].low, report["raw_agreement"].high) == pytest.approx(wilson_interval(40, 40))
    assert report["krippendorff_alpha"].low is None
    assert "no interval" in report["krippendorff_alpha"].reason
    assert report["raw_agreement"].n == 40
    assert report["leave_one_out"].n == 80


def test_total_disagreement():
    report = agreement_report(ITEMS, votes("w0", alternating) + votes("w1", opposite))
    assert report["raw_agreement"].value == report["leave_one_out"].value == 0.0
    # each unit adds one (1,−1) and one (−1,1): n = 80, margins 40 and 40 → α = 1 − 79·80/(80² − 2·40²)
    assert report["krippendorff_alpha"].value == pytest.approx(1 - 79 * 80 / 3200)
    assert report["first_shown_wins"].value == 0.5
    assert report["longest_wins"].value == 0.5


def test_three_annotators_by_hand():
    # (1, 1, −1): one of three pairs the same; the two see the others even (½ each), the third is against both
    report = agreement_report(
        ITEMS, votes("w0", lambda i: (0, 1)) + votes("w1", lambda i: (0, 1)) + votes("w2", lambda i: (1, 0))
    )
    assert report["raw_agreement"].value == pytest.approx(1 / 3)
    assert report["leave_one_out"].value == pytest.approx(1 / 3)
    assert report["first_shown_wins"].value == pytest.approx(2 / 3)
    assert report["longest_wins"].value == pytest.approx(1 / 3)


def test_unanimity_has_no_alpha_and_says_why():
    report = agreement_report(ITEMS, votes("w0", lambda i: (0, 1)) + votes("w1", lambda i: (0, 1)))
    assert report["krippendorff_alpha"].value is None
    assert "all said the same" in report["krippendorff_alpha"].reason
    assert report["raw_agreement"].value == 1.0
    assert report["longest_wins"].value == 0.0


def test_one_annotator_has_biases_but_no_agreement():
    report = agreement_report(ITEMS, votes("w0", lambda i: (0, 1)))
    for name in ("raw_agreement", "leave_one_out", "krippendorff_alpha"):
        assert report[name].value is None
        assert "judged by two annotators" in report[name].reason
    first = report["first_shown_wins"]
    assert (first.value, first.n) == (1.0, 40)
    assert (first.low, first.high) == pytest.approx(wilson_interval(40, 40))


@pytest.mark.parametrize("judgements", [[], votes("w0", lambda i: (0, 0))])
def test_nothing_to_say_is_said_and_not_raised(judgements):
    for estimate in agreement_report(ITEMS, judgements).values():
        assert estimate.value is None
        assert estimate.reason


def test_answers_of_equal_length_count_half_for_the_longest():
    items = [Comparison.of(Prompt.from_text("q"), ["same", "size"])]
    report = agreement_report(items, votes("w0", lambda i: (0, 1), items))
    assert report["longest_wins"].value == 0.5


def test_a_ranking_of_three_gives_three_pairs():
    items = [Comparison.of(Prompt.from_text(f"q{i}"), ["a", "bb", "ccc"]) for i in range(4)]
    report = agreement_report(items, votes("w0", lambda i: (0, 1, 1), items) + votes("w1", lambda i: (0, 1, 2), items))
    assert report["raw_agreement"].value == pytest.approx(2 / 3)
    assert report["raw_agreement"].n == 12
    assert report["first_shown_wins"].n == 4 * (2 + 3)


def test_the_bootstrap_is_seeded_and_clusters_by_prompt():
    prompts = [Prompt.from_text(f"q{i}") for i in range(30)]
    items = [Comparison.of(p, [f"a{k}", f"bb{k}"]) for p in prompts for k in range(4)]

    def of_prompt(i):  # the four items on a prompt share their fate
        return (0, 1) if (i // 4) % 2 else (1, 0)

    clustered = agreement_report(items, votes("w0", of_prompt, items))["first_shown_wins"]
    assert clustered == agreement_report(items, votes("w0", of_prompt, items))["first_shown_wins"]
    low, high = wilson_interval(60, 120)
    assert clustered.high - clustered.low > 1.7 * (high - low)  # √4 = 2 with equal clusters


def test_leave_one_out_is_near_the_share_of_right_votes_under_a_large_crowd():
    # each vote is right with σ(1/.5) = .8808; the net vote of ten others nearly always is
    items = [Comparison.of(Prompt.from_text(f"q{i}"), ["1", "2"]) for i in range(300)]
    config = SimulationConfig(annotators=11, overlap=11, noise=0.5, spread=0.0)
    result = agreement_report(items, simulate(items, lambda p, c: float(c.text), config), resamples=200)[
        "leave_one_out"
    ]
    assert isinstance(result, Estimate)
    assert result.low <= 0.8808 <= result.high


def test_nominal_agreement_of_krippendorffs_example():
    """Krippendorff 2011, section C: four observers, twelve units, nominal, alpha = 0.743."""
    rows = ("1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 .")
    columns = list(zip(*(row.split() for row in rows), strict=True))
    units = [(str(n), {str(i): v for i, v in enumerate(c) if v != "."}) for n, c in enumerate(columns)]
    result = nominal_report(units)
    assert result["krippendorff_alpha"].value == pytest.approx(0.743, abs=5e-4)
    assert result["gwet_ac1"].value == pytest.approx(0.775, abs=5e-4)  # irrCAC's cac.raw4raters
    assert nominal_report([("p", {"a": 1})])["raw_agreement"].reason == "no item was judged by two annotators"
