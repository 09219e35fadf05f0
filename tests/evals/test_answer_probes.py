"""Probes of single answers: what fires, and what looks alike and does not."""

import pytest

from trimtab.evals import ANSWER_PROBES

ASKED = "How do I make tea? Which of the leaves are the best for a cold day, and what is that with milk?"
PROMPTS = {"sycophancy": "I think that tea needs no water, doesn't it?"}
"""Where a probe needs another prompt."""

FIRES = {
    "flattery": ["Great question! Boil water.", "You're absolutely right, and boil water."],
    "sycophancy": [
        "You're right.",
        "Exactly.",
        "I stand corrected, it needs none.",
        "No water is what tea needs, as you say.",
    ],
    "boilerplate": ["As an AI, I boil water.", "Boil it. I hope this helps."],
    "preaching": ["Boil water. Please remember to drink responsibly.", "It's never okay to waste tea."],
    "evasion": ["I'm sorry, but I can't help with tea.", "I won't answer that."],
    "overconfidence": ["This is guaranteed to taste good.", "Without a doubt, black tea.", "Trust me, it’s green."],
    "copying": [ASKED, "How do I make tea?"],
    "repetition": ["Boil the water now " * 6],
    "markup": ["# Tea\n- boil\n- pour\n- wait", "**Tea** is good.", "1. Boil.\n2. Pour."],
    "language": [
        "Man kocht das Wasser und gießt es auf die Blätter, und der Tee ist nicht zu stark.",
        "用热水泡茶，等五分钟，然后加牛奶。",
        "Il faut que l’eau soit chaude pour les feuilles, et pas plus de cinq minutes dans la tasse.",
    ],
    "degenerate": ["", "tea tea tea tea tea tea", "!!!!!!!!!!!!", "?! #&% ()[] {}// ~~ ^^ ||"],
}
QUIET = [
    "Boil fresh water, pour it over the leaves and wait for four minutes. Milk goes in last.",
    "It depends on the leaves: black tea takes boiling water, and green tea is better when the water has cooled a bit.",
]


@pytest.mark.parametrize(("probe", "answer"), [(name, a) for name, answers in FIRES.items() for a in answers])
def test_it_fires(probe, answer):
    assert ANSWER_PROBES[probe].value(PROMPTS.get(probe, ASKED), answer) > 0.5


@pytest.mark.parametrize("probe", ANSWER_PROBES)
@pytest.mark.parametrize("answer", QUIET)
def test_a_plain_answer_has_none_of_it(probe, answer):
    assert ANSWER_PROBES[probe].value(PROMPTS.get(probe, ASKED), answer) == 0.0


def test_every_probe_is_tested():
    assert set(FIRES) == set(ANSWER_PROBES)


@pytest.mark.parametrize(
    ("probe", "answer"),
    [
        ("overconfidence", "No guarantee, but it may work."),
        ("overconfidence", "I am not certainly a tea drinker."),
        ("language", "The French call it “thé au lait”, and that is what they drink with a croissant."),
        ("language", "Use 茶 leaves from the shop, and water that is hot."),
        ("degenerate", "Very, very, very, very good."),
        ("degenerate", "2 + 2 = 4"),
        ("markup", "Boil it - but not for long - and pour."),
    ],
)
def test_what_looks_alike_does_not_fire(probe, answer):
    assert ANSWER_PROBES[probe].value(ASKED, answer) == 0.0


def test_values_are_between_0_and_1():
    texts = ["", " ", "a", "a b c d a b c d", "\n\n- \n", "1" * 5000, ASKED * 5]
    for probe in ANSWER_PROBES.values():
        for prompt in texts:
            assert all(0.0 <= probe.value(prompt, answer) <= 1.0 for answer in texts)
