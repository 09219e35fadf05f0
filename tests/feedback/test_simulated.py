import math
from collections import Counter

import pytest

from trimtab.config import parse_config
from trimtab.errors import ConfigError, ScoringError
from trimtab.feedback import (
    CohortConfig,
    SimulationConfig,
    agreement_report,
    canonical_ranks,
    friendly_parts,
    friendly_utility,
    simulate,
)
from trimtab.feedback.simulated import rank_with_ties
from trimtab.records import Comparison, Completion, Prompt


def by_number(prompt: Prompt, completion: Completion) -> float:
    """A utility that is written in the answer."""
    return float(completion.text.split()[0])


def flat(prompt: Prompt, completion: Completion) -> float:
    return 0.0


def numbered(count: int, *answers: str) -> list[Comparison]:
    return [Comparison.of(Prompt.from_text(f"question {i}"), list(answers)) for i in range(count)]


def test_without_noise_the_ranks_are_those_of_the_utility():
    items = numbered(20, "2 b", "9 a", "2 c", "-1 d")
    judgements = simulate(items, by_number, SimulationConfig(noise=0.0, overlap=5))
    assert len(judgements) == 100
    assert {canonical_ranks(j) for j in judgements} == {(1, 0, 1, 2)}
    assert len({j.shown_order for j in judgements}) > 15  # of 24 orders


def test_judgements_say_that_they_are_simulated_and_by_whom():
    judgements = simulate(numbered(30, "1 a", "2 b"), by_number, SimulationConfig(annotators=4, overlap=2))
    assert {j.source for j in judgements} == {"simulated"}
    assert {j.annotator for j in judgements} == {f"simulated-0{i}" for i in range(4)}
    assert {j.created_at for j in judgements} == {None}
    assert len({j.id for j in judgements}) == 60
    assert set(Counter((j.item, j.annotator) for j in judgements).values()) == {1}
    assert set(Counter(j.item for j in judgements).values()) == {2}
    assert all(j.strength is not None and 0 <= j.strength <= 1 and (j.seconds or 0) > 0 for j in judgements)


def test_equal_seeds_give_equal_judgements_whatever_the_batches():
    items = numbered(25, "1 a", "2 bb", "3 ccc")
    config = SimulationConfig(
        annotators=7, overlap=3, position_bias=0.6, length_bias=0.1, skip_rate=0.1, tie_threshold=0.2, seed=5
    )
    whole = simulate(items, by_number, config)
    assert whole == simulate(items, by_number, config)
    assert whole == [j for item in items for j in simulate([item], by_number, config)]
    backwards = simulate(items[::-1], by_number, config)
    assert sorted(whole, key=lambda j: j.id) == sorted(backwards, key=lambda j: j.id)
    assert whole != simulate(items, by_number, config.model_copy(update={"seed": 6}))


def test_noise_makes_a_plackett_luce_ranking():
    # −log P(0 ≻ 1 ≻ 2) = .917481122 at utilities (1.2, .4, −.3), and −log σ(.8) = .371100666 for the first pair
    config = SimulationConfig(annotators=4000, overlap=4000, noise=1.0, spread=0.0)
    judgements = simulate(numbered(1, "1.2 a", "0.4 b", "-0.3 c"), by_number, config)
    ranks = [canonical_ranks(j) for j in judgements]
    for share, expected in (
        (sum(r == (0, 1, 2) for r in ranks) / 4000, math.exp(-0.917481122)),
        (sum(r[0] < r[1] for r in ranks) / 4000, math.exp(-0.371100666)),
    ):
        assert abs(share - expected) < 3.3 * math.sqrt(expected * (1 - expected) / 4000)


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("bias", [0.6, 0.5, 0.3])
def test_a_planted_position_bias_is_found(bias, noise):
    items = numbered(1200, "0 a", "0.5 b")
    config = SimulationConfig(annotators=10, position_bias=bias, noise=noise, spread=0.0)
    result = agreement_report(items, simulate(items, by_number, config), resamples=300)["first_shown_wins"]
    assert result.low <= bias <= result.high
    assert result.n == 1200


def test_the_interval_of_a_planted_bias_covers_it_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        items = numbered(100, "0 a", "0 b")
        config = SimulationConfig(position_bias=0.6, noise=1.0, spread=0.0, overlap=2, seed=seed)
        result = agreement_report(items, simulate(items, by_number, config), resamples=100)["first_shown_wins"]
        covered += result.low <= 0.6 <= result.high
    assert covered >= 51  # of 57 expected; P(fewer than 51 | .95) < 1 %


def test_a_planted_length_bias_is_found():
    # one doubling (of characters + 1) is worth .8, against noise of scale .5: σ(1.6)
    items = numbered(1000, "0" + "-" * 8, "0" + "-" * 18)
    config = SimulationConfig(length_bias=0.8, noise=0.5, spread=0.0)
    result = agreement_report(items, simulate(items, flat, config), resamples=300)["longest_wins"]
    assert result.low <= 1 / (1 + math.exp(-1.6)) <= result.high


def test_annotators_differ_by_spread_and_average_to_the_configuration():
    items = numbered(1, "0 a", "0 b")
    config = SimulationConfig(annotators=1000, overlap=1000, base_seconds=10.0, reading_speed=1e9, spread=0.5)
    seconds = [j.seconds or 0.0 for j in simulate(items, by_number, config)]
    mean = sum(seconds) / 1000
    assert mean == pytest.approx(10 * math.exp(0.25**2 / 2), rel=0.06)  # each judgement's own jitter has mean e^(σ²/2)
    alike = [j.seconds or 0.0 for j in simulate(items, by_number, config.model_copy(update={"spread": 0.0}))]
    assert max(alike) / min(alike) < max(seconds) / min(seconds)


def test_skips_have_no_ranks():
    judgements = simulate(numbered(1000, "1 a", "2 b"), by_number, SimulationConfig(skip_rate=0.2))
    skipped = [j for j in judgements if j.verdict == "skip"]
    assert 150 < len(skipped) < 250  # 200 ± 4 standard deviations
    assert all(j.ranks is None and j.strength is None for j in skipped)


def test_ties_by_threshold():
    judgements = simulate(
        numbered(10, "1 a", "1.3 b"), by_number, SimulationConfig(noise=0.0, tie_threshold=0.5, annotators=1)
    )
    assert {j.ranks for j in judgements} == {(0, 0)}
    assert rank_with_ties([0.0, 0.4, 0.8], 0.5) == (1, 0, 0)  # the last is near the middle, not near the best
    assert rank_with_ties([1.0, 1.0, 0.0], 0.0) == (0, 0, 1)


def test_cohorts_have_their_shares_and_their_opinions():
    prompt = Prompt.from_text("Why does iron rust?")
    warm = "I am so happy to help you! Iron rusts as oxygen and water react with the metal, which is great to know."
    cold = "Iron rusts as oxygen and water react with the metal, which takes weeks or months in damp air."
    items = [Comparison.of(prompt, [warm, cold])]
    config = SimulationConfig(
        annotators=40,
        overlap=40,
        noise=0.0,
        cohorts=(CohortConfig(name="warm", share=3), CohortConfig(name="cold", share=1, weights={"tone": -2.0})),
    )
    judgements = simulate(items, friendly_utility, config)
    assert Counter(j.cohort for j in judgements) == {"warm": 30, "cold": 10}
    assert friendly_parts(prompt, Completion(text=warm))["tone"] > 0.5
    assert {(j.cohort, canonical_ranks(j)) for j in judgements} == {("warm", (0, 1)), ("cold", (1, 0))}


def test_an_unknown_part_is_named_with_those_there_are():
    config = SimulationConfig(cohorts=(CohortConfig(name="c", weights={"tome": 1.0}),))
    with pytest.raises(ConfigError, match=r"'tome'.*tone"):
        simulate(numbered(1, "1 a", "2 b"), by_number, config)


@pytest.mark.parametrize(
    ("utility", "says"),
    [(lambda p, c: math.nan, "gave nan"), (lambda p, c: 1 / 0, "ZeroDivisionError"), (lambda p, c: "x", "ValueError")],
)
def test_a_broken_utility_is_named_with_its_item(utility, says):
    items = numbered(1, "1 a", "2 b")
    with pytest.raises(ScoringError, match=says) as caught:
        simulate(items, utility, SimulationConfig())
    assert items[0].id in str(caught.value)


def test_more_overlap_than_annotators_is_refused():
    with pytest.raises(ConfigError, match=r"overlap is 9 .* only 5 annotators"):
        parse_config(SimulationConfig, {"annotators": 5, "overlap": 9}, where="recipe.yaml")
