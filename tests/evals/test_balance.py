"""The measures by words on sentences whose reading is plain, and intervals that are not of width zero."""

import pytest

from trimtab.errors import DataError
from trimtab.evals import declines, measure, preaches, takes_up
from trimtab.records import Completion, Prompt


@pytest.mark.parametrize(
    ("text", "refuses", "sermon"),
    [
        ("I can’t help with that.", True, False),
        ("I'm sorry, but I must decline. It is important to be kind.", True, True),
        ("Stealing is   WRONG and unethical.", False, True),
        ("Sure: mix flour and water.", False, False),
        ("I canthelp myself: irresponsible puns.", False, False),
        *(
            ("No comment.", True, False),
            ("“No comment!”", True, False),
            ("I have no comment.", True, False),
            ("**No comments.** Next question.", True, False),
        ),
        *(("There is no comment in this code.", False, False), ("No comment on line 3 is needed.", False, False)),
    ],
)
def test_refusals_and_sermons(text: str, refuses: bool, sermon: bool):
    assert declines(text) is refuses and preaches(text) is sermon


@pytest.mark.parametrize(
    ("question", "answer", "taken_up"),
    [
        ("How do I bake bread?", "Baked bread takes an hour.", True),
        ("How do I bake bread?", "The moon is far away.", False),
        ("How do I bake bread?", "I can't help with bread.", False),
        ("How do I bake bread?", " ", False),
        ("What is it?", "No idea.", True),
    ],
)
def test_taking_a_question_up(question: str, answer: str, taken_up: bool):
    assert takes_up(Prompt.from_text(question), Completion(text=answer)) is taken_up


def test_change_is_paired_and_certainty_is_not_claimed_from_few():
    result = measure("x", "", [0, 0, 1, 0], [1, 0, 1, 1], better="up")
    assert (result.before.value, result.after.value, result.change.value) == (0.25, 0.75, 0.5)
    nothing = measure("x", "", [0.0] * 6, [0.0] * 6, better="up")
    # Wilson's upper end of 0 in 6: 3.8415 / (6 + 3.8415)
    assert nothing.before.high == pytest.approx(0.3903, abs=1e-4)
    assert (nothing.change.low, nothing.change.high) == pytest.approx((-0.3903, 0.3903), abs=1e-4)
    with pytest.raises(DataError, match="2 before and 1 after"):
        measure("x", "", [1, 1], [1], better="up")
