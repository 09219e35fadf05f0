import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.feedback import canonical_ranks, pair_votes, usable_judgements
from trimtab.records import Comparison, Judgement, Prompt

ITEM = Comparison.of(Prompt.from_text("q"), ["a", "bb", "ccc"])


def ranked(ranks, *, shown=None, item=ITEM, annotator="w1", **fields) -> Judgement:
    shown = shown or tuple(range(len(ranks)))
    values = {"id": f"{item.id}/{annotator}", "source": "human"} | fields
    return Judgement(item=item.id, annotator=annotator, shown_order=shown, ranks=ranks, **values)


@settings(deadline=None)
@given(st.data())
def test_the_display_order_is_undone_exactly(data):
    truth = data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=7))
    shown = data.draw(st.permutations(range(len(truth))))
    on_screen = tuple(truth[i] for i in shown)
    assert canonical_ranks(ranked(on_screen, shown=tuple(shown))) == tuple(truth)


def test_every_judgement_is_used_or_counted_with_its_reason():
    other = Comparison.of(Prompt.from_text("elsewhere"), ["x", "y"])
    skip = Judgement(
        id="s", item=ITEM.id, annotator="w1", source="human", shown_order=(0, 1, 2), ranks=None, verdict="skip"
    )
    first, again = ranked((0, 1, 2)), ranked((2, 1, 0), id="again")
    usable, refused = usable_judgements(
        [ITEM],
        [
            skip,
            first,
            again,
            ranked((0, 1), item=other),
            ranked((0, 1), annotator="w2"),
            ranked((0, 1, 2), annotator="w3", criterion="harmless"),
        ],
    )
    assert usable == {ITEM.id: [first]}
    assert refused == {
        "not ranked: skip": 1,
        "annotator had ranked the item before": 1,
        "unknown item id": 1,
        "wrong number of answers": 1,
        "criterion is not 'overall'": 1,
    }


def test_pairs_of_a_ranking_with_a_tie():
    votes = pair_votes({ITEM.id: [ranked((1, 0, 0)), ranked((0, 1, 2), shown=(2, 1, 0), annotator="w2")]})
    assert list(votes) == [
        (ITEM.id, 0, 1, {"w1": -1, "w2": -1}),
        (ITEM.id, 0, 2, {"w1": -1, "w2": -1}),
        (ITEM.id, 1, 2, {"w1": 0, "w2": -1}),
    ]


def test_ranks_of_a_skipped_judgement_are_our_own_bug():
    skip = Judgement(id="s", item="i", annotator="a", source="human", shown_order=(0, 1), ranks=None, verdict="skip")
    with pytest.raises(AssertionError):
        canonical_ranks(skip)
