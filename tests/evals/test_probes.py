import pytest

from trimtab.errors import DataError
from trimtab.evals import LEXICONS, PROBES, copies, probe_table
from trimtab.evals.probes import distinct_answers, distinct_n, exclamation_rate, phrase_rate, repetition
from trimtab.records import Completion, Prompt


def test_distinct_n_by_hand():
    # words: the cat sat / the cat ran: 4 different of 6; pairs: 3 different of 4
    texts = ["The cat sat.", "the cat ran"]
    assert distinct_n(texts, 1) == pytest.approx(4 / 6)
    assert distinct_n(texts, 2) == pytest.approx(3 / 4)
    assert distinct_n(texts, 9) == 0.0


def test_distinct_answers_ignores_case_and_space():
    assert distinct_answers(["Yes.", " yes. ", "No."]) == pytest.approx(2 / 3)


def test_repetition_by_hand():
    assert repetition("one two three four") == 0.0
    # "a b c d a b c d": 4-grams abcd bcda cdab dabc abcd, of which one was said before
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("") == 0.0


def test_phrases_match_whole_words_and_typographic_apostrophes():
    assert phrase_rate(["You’re absolutely\nright, sir.", "no"], "flattery") == 0.5
    assert phrase_rate(["As an AI, I ...", "as an aid to memory"], "boilerplate") == 0.5


@pytest.mark.parametrize(("name", "phrase"), [(name, phrase) for name in LEXICONS for phrase in LEXICONS[name]])
def test_every_phrase_is_found(name, phrase):
    assert phrase == phrase.lower()
    assert phrase_rate([f"Well, {phrase.upper()} x"], name) == 1.0


def test_exclamations_per_hundred_words():
    assert exclamation_rate(["one two three four!", "five!!"]) == pytest.approx(60)
    assert exclamation_rate(["!!"]) == 200


def test_table():
    answers = [
        Completion(text="Great question! It is blue.", finish_reason="stop"),
        Completion(text="It is blue", finish_reason="length"),
        Completion(text="unknown end"),
    ]
    table = probe_table(answers, [6, 3, 3], [Prompt.from_text("Which colour is it? It is blue.")] * 3)
    assert list(table) == list(PROBES)
    assert table["ended_rate"] == 0.5
    assert table["tokens"] == 4
    assert table["words"] == pytest.approx(10 / 3)
    assert table["flattery"] == pytest.approx(1 / 3)
    assert table["distinct_answers"] == 1
    assert table["copied"] == pytest.approx(1 / 3)
    assert table["sycophancy"] == 0.0
    asked = [Prompt.from_text("I believe it is green, right?")] * 3
    assert probe_table([Completion(text=t) for t in ("Right!", "It is blue.", "I agree.")], prompts=asked)[
        "sycophancy"
    ] == pytest.approx(2 / 3)


def test_table_leaves_out_what_is_not_known():
    assert set(PROBES) - set(probe_table([Completion(text="")])) == {"tokens", "ended_rate", "copied", "sycophancy"}


NOTE = (
    "Summarise this message in one short sentence.\n\n"
    "The lift in the north wing is out of order until Friday. Please use the stairs, or the lift at the main entrance."
)


@pytest.mark.parametrize(
    ("answer", "copied"),
    [
        (NOTE, True),
        (NOTE.split("\n")[2], True),  # all of the message, without the instruction
        ("the lift in the north wing is OUT OF ORDER until friday", True),  # a whole sentence
        ("The lift in the north wing is out of order.", False),  # a part of one, 10 of 23 words
        (" ".join(NOTE.split("\n")[2].split()[:19]), True),  # 19 of 23 words
        (" ".join(NOTE.split("\n")[2].split()[:18]), False),
        ("Summarise this message in one short sentence.", True),
        ("The north lift is broken until Friday, so take the stairs or the main lift.", False),
        ("", False),
        ("Friday.", False),
    ],
)
def test_copies(answer, copied):
    assert copies(NOTE, answer) is copied


def test_table_refuses_prompts_of_another_number():
    with pytest.raises(DataError, match="1 answers and 2 prompts"):
        probe_table([Completion(text="a")], None, [Prompt.from_text("b")] * 2)


@pytest.mark.parametrize(("answers", "counts"), [([], None), ([Completion(text="a")], [1, 2])])
def test_table_refuses(answers, counts):
    with pytest.raises(DataError, match="probes need answers"):
        probe_table(answers, counts)
