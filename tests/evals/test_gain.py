"""Features are taken out and nothing else, and the parts of a gain are those that were planted."""

import pytest

from trimtab.evals import REMOVALS, edited, gain_parts
from trimtab.evals.edits import bullets, repeat
from trimtab.evals.sentences import sentences

PLAIN = "Boil fresh water. Pour it over the leaves, and wait.\n\nMilk goes in last (if at all)."


@pytest.mark.parametrize("feature", REMOVALS)
def test_a_plain_text_has_none_of_them(feature):
    assert edited(PLAIN, feature) is None


@pytest.mark.parametrize(
    ("feature", "added"),
    [
        ("flattery", "Great question! "),
        ("flattery", "You’re absolutely right, my friend. "),
        ("stock phrases", "As an AI, I do not drink. "),
        ("preaching", "Please remember to be careful! "),
        ("claims of certainty", "This is guaranteed to work. "),
    ],
)
def test_the_sentence_goes_and_the_rest_stays(feature, added):
    assert edited(added + PLAIN, feature) == PLAIN
    assert edited(PLAIN + " " + added.strip(), feature) == PLAIN
    assert edited(added, feature) is None  # nothing would be left


def test_form_and_repeats_go():
    assert edited("# Tea\n1. **Boil** it.\n2. Pour it.", "lists and headings") == "Tea\nBoil it.\nPour it."
    assert edited("Tea is hot! Wait!", "exclamation marks") == "Tea is hot. Wait."
    assert edited("Tea is hot. Wait for it. tea is hot!", "repeated sentences") == "Tea is hot. Wait for it."
    assert edited("No. No. No.", "repeated sentences") is None


@pytest.mark.parametrize(
    "text",
    [
        "It costs 3.5 euros.", "See www.example.com for it.", "Use x != 3 here.", "Ask Dr. Smith.",
        "Fruit, e.g. an apple.", "1. Boil the water.",
    ],
)  # fmt: skip
def test_a_sentence_ends_only_where_it_ends(text):
    assert sentences(f"First. {text} Last") == ["First. ", text + " ", "Last"] or text.startswith("1.")
    assert sentences(f"{text}\nLast!") == [text + "\n", "Last!"]
    assert edited(f"{text} Great question!", "flattery") == text


def test_an_operator_is_no_exclamation():
    assert edited("if x != 3: wait", "exclamation marks") is None
    assert edited('Use x != 3! He said "go!"', "exclamation marks") == 'Use x != 3. He said "go."'


def test_edits_cut_at_the_same_places():
    assert repeat("Wait. It costs 3.5 euros, e.g. here.").endswith(" here. It costs 3.5 euros, e.g. here.")
    assert bullets("Ask Dr. Smith. Wait.\n\nGo") == "- Ask Dr. Smith.\n- Wait.\n- Go"
    assert (repeat(""), bullets("")) == (" ", "")


def test_parts_by_hand():
    """Four prompts; the later model flatters in three answers, which the reward likes by 2, 2 and 1."""
    before, after = [0.0, 1.0, 0.0, 1.0], [3.0, 3.0, 1.0, 2.0]
    without = {
        "flattery": ([None, 0.5, None, None], [1.0, 1.0, None, 1.0]),
        "preaching": ([None] * 4, [None] * 4),
        "lists and headings": ([None] * 4, [3.0, None, None, None]),
    }
    gain = gain_parts(before, after, without, seed=0)
    assert gain.gain.value == pytest.approx(9 / 4 - 2 / 4)
    flattery, lists = gain.parts  # nobody preaches
    assert (flattery.feature, flattery.before, flattery.after) == ("flattery", 0.25, 0.75)
    assert flattery.worth.value == pytest.approx(5 / 3) and flattery.worth.n == 3
    assert flattery.part.value == pytest.approx(5 / 4 - 0.5 / 4)
    assert (flattery.part.low or 0) <= 1.125 <= (flattery.part.high or 0)
    assert (lists.feature, lists.part.value, lists.worth.value) == ("lists and headings", 0.0, 0.0)
