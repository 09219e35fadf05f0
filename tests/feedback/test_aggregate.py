import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import ConfigError
from trimtab.feedback import AggregateConfig, SimulationConfig, aggregate, reliability_weights, simulate
from trimtab.records import Comparison, Judgement, Prompt

PAIR = Comparison.of(Prompt.from_text("pair"), ["a", "b"])
TRIPLE = Comparison.of(Prompt.from_text("triple"), ["a", "b", "c"])


def ranked(item, ranks, annotator="w1", **fields) -> Judgement:
    """A judgement in canonical order."""
    values = {"id": f"{item.id}/{annotator}", "source": "human", "shown_order": tuple(range(len(ranks)))} | fields
    return Judgement(item=item.id, annotator=annotator, ranks=ranks, **values)


def test_the_worked_example_of_the_records():
    item = Comparison.of(Prompt.from_text("What is a trim tab?"), ["The small surface on a rudder.", "No idea."])
    click = Judgement(id="j1", item=item.id, annotator="w3", source="human", shown_order=(1, 0), ranks=(1, 0))
    (preference,) = aggregate([item], [click]).preferences
    assert preference.ranks == (0, 1)
    assert preference.judgements == ("j1",)
    assert (preference.id, preference.prompt, preference.completions) == (item.id, item.prompt, item.completions)
    assert (preference.source, preference.probability) == ("human", 1.0)


def test_a_pair_goes_by_majority_with_ties_half():
    votes = [ranked(PAIR, r, f"w{i}") for i, r in enumerate([(0, 1), (0, 1), (1, 0), (0, 0)])]
    (preference,) = aggregate([PAIR], votes).preferences
    assert preference.ranks == (0, 1)
    assert preference.probability == 2.5 / 4
    (smooth,) = aggregate([PAIR], votes, config=AggregateConfig(smoothing=1.0)).preferences
    assert smooth.probability == 3 / 5


def test_weights_turn_a_majority_and_nought_leaves_one_out():
    votes = [ranked(PAIR, (0, 1), "w0"), ranked(PAIR, (1, 0), "w1"), ranked(PAIR, (1, 0), "w2")]
    assert aggregate([PAIR], votes).preferences[0].ranks == (1, 0)
    heavy = aggregate([PAIR], votes, weights={"w0": 3.0})
    assert heavy.preferences[0].ranks == (0, 1)
    assert heavy.preferences[0].probability == 3 / 5
    assert heavy.weights == {"w0": 3.0, "w1": 1.0, "w2": 1.0}
    without = aggregate([PAIR], votes, weights={"w0": 0.0})
    assert without.preferences[0].judgements == (votes[1].id, votes[2].id)
    assert without.dropped_judgements == {"annotator has weight 0": 1}
    alone = aggregate([PAIR], votes[:1], weights={"w0": 0.0})
    assert alone.dropped == {"no usable judgement": 1}


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_an_impossible_weight_is_refused(weight):
    with pytest.raises(ConfigError, match=r"annotator 'w1'"):
        aggregate([PAIR], [ranked(PAIR, (0, 1))], weights={"w1": weight})


def test_rankings_of_three_by_mean_rank():
    # ranks a: 0 0 2, b: 1 1 0, c: 2 2 1 → means ⅔ ⅔ 5/3: a and b tie although two of three put a first
    votes = [ranked(TRIPLE, r, f"w{i}") for i, r in enumerate([(0, 1, 2), (0, 1, 2), (2, 0, 1)])]
    (preference,) = aggregate([TRIPLE], votes).preferences
    assert preference.ranks == (0, 0, 1)
    assert preference.probability is None
    # a tie for the best counts 1½ beaten of 2 each: (0,0,1) and (1,0,2) → a 1.5+1, b 1.5+2, c 0+0
    votes = [ranked(TRIPLE, (0, 0, 1), "w0"), ranked(TRIPLE, (1, 0, 2), "w1")]
    assert aggregate([TRIPLE], votes).preferences[0].ranks == (1, 0, 2)


@settings(deadline=None)
@given(st.data())
def test_one_annotator_is_taken_at_their_word(data):
    levels = data.draw(st.lists(st.integers(0, 4), min_size=2, max_size=6).filter(lambda r: len(set(r)) > 1))
    shown = tuple(data.draw(st.permutations(range(len(levels)))))
    item = Comparison.of(Prompt.from_text("q"), [str(i) for i in range(len(levels))])
    click = ranked(item, tuple(levels[i] for i in shown), shown_order=shown)
    (preference,) = aggregate([item], [click]).preferences
    dense = {level: rank for rank, level in enumerate(sorted(set(levels)))}
    assert preference.ranks == tuple(dense[level] for level in levels)


def test_all_tied_is_dropped_and_counted_or_kept_on_request():
    votes = [ranked(PAIR, (0, 1), "w0"), ranked(PAIR, (1, 0), "w1")]
    result = aggregate([PAIR, TRIPLE], votes)
    assert result.preferences == ()
    assert result.dropped == {"all answers tied": 1, "no usable judgement": 1}
    assert result.dropped_judgements == {"item dropped: all answers tied": 2}
    (preference,) = aggregate([PAIR], votes, config=AggregateConfig(keep_tied=True)).preferences
    assert (preference.ranks, preference.probability) == ((0, 0), 0.5)


def test_the_first_ranking_of_an_annotator_stands():
    result = aggregate([PAIR], [ranked(PAIR, (0, 1), id="first"), ranked(PAIR, (1, 0), id="second")])
    assert result.preferences[0].judgements == ("first",)
    assert result.dropped_judgements == {"annotator had ranked the item before": 1}


def test_an_item_given_twice_makes_one_preference():
    result = aggregate([PAIR, PAIR], [ranked(PAIR, (0, 1))])
    assert len(result.preferences) == 1
    assert result.dropped == {"item id already taken": 1}


@pytest.mark.parametrize(
    ("sources", "merged"),
    [
        (("human", "human"), "human"),
        (("human", "imported"), "imported"),
        (("imported", "ai", "human"), "ai"),
        (("human", "human", "simulated", "ai"), "simulated"),
    ],
)
def test_the_least_trusted_source_names_the_preference(sources, merged):
    votes = [ranked(PAIR, (0, 1), f"w{i}", source=source) for i, source in enumerate(sources)]
    assert aggregate([PAIR], votes).preferences[0].source == merged


def test_only_the_criterion_asked_for_counts():
    votes = [ranked(PAIR, (0, 1)), ranked(PAIR, (1, 0), id="h", criterion="harmless")]
    result = aggregate([PAIR], votes, config=AggregateConfig(criterion="harmless"))
    assert result.preferences[0].ranks == (1, 0)
    assert result.dropped_judgements == {"criterion is not 'harmless'": 1}


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 100).map(lambda n: n / 100), st.sampled_from([0.0, 0.7, 5.0]), st.booleans())
def test_every_item_and_every_judgement_is_accounted_for(seed, skip_rate, threshold, keep_tied):
    items = [Comparison.of(Prompt.from_text(f"q{i}"), ["a", "bb", "ccc"][: 2 + i % 2]) for i in range(12)]
    config = SimulationConfig(skip_rate=skip_rate, tie_threshold=threshold, overlap=2, seed=seed)
    judgements = simulate(items, lambda p, c: len(c.text), config)
    stray = [j.model_copy(update={"item": "gone"}) for j in judgements[:3]]
    result = aggregate(items[:10], [*judgements, *stray], config=AggregateConfig(keep_tied=keep_tied))
    assert len(result.preferences) + sum(result.dropped.values()) == 10
    used = sum(len(p.judgements) for p in result.preferences)
    assert used + sum(result.dropped_judgements.values()) == len(judgements) + len(stray)


def test_reliability_finds_the_random_clicker_and_helps():
    items = [Comparison.of(Prompt.from_text(f"q{i}"), ["1", "2"]) for i in range(300)]
    good = SimulationConfig(annotators=3, overlap=3, noise=0.9, spread=0.0)
    votes = simulate(items, lambda p, c: float(c.text), good)
    random = [
        j.model_copy(update={"annotator": f"clicker-{j.annotator}", "id": f"c{j.id}"})
        for j in simulate(items, lambda p, c: 0.0, good.model_copy(update={"seed": 1}))
    ]
    weights = reliability_weights(items, [*votes, *random])
    assert sum(weights.values()) / 6 == pytest.approx(1.0)
    assert min(weights[f"simulated-0{i}"] for i in range(3)) > 3 * max(
        weights[f"clicker-simulated-0{i}"] for i in range(3)
    )

    def correct(weighting):
        result = aggregate(items, [*votes, *random], config=AggregateConfig(weighting=weighting, keep_tied=True))
        return sum((p.ranks[1] < p.ranks[0]) + (p.ranks[1] == p.ranks[0]) / 2 for p in result.preferences) / 300

    assert correct("agreement") > correct("equal") + 0.02


def test_reliability_is_neutral_without_overlap_and_under_total_disagreement():
    alone = [ranked(PAIR, (0, 1), "w0"), ranked(TRIPLE, (0, 1, 2), "w1")]
    assert reliability_weights([PAIR, TRIPLE], alone) == {"w0": 1.0, "w1": 1.0}
    opposed = [ranked(PAIR, (0, 1), "w0"), ranked(PAIR, (1, 0), "w1")]
    assert reliability_weights([PAIR], opposed) == {"w0": 1.0, "w1": 1.0}
