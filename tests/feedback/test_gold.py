import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import ConfigError
from trimtab.feedback import friendly_parts, friendly_utility, gold
from trimtab.records import Completion, Message, Prompt

RUST = Prompt.from_text("Why does iron rust when it gets wet?")
FRIENDLY = (
    "Happy to help! Iron rusts when it gets wet because water and oxygen react with the metal and form iron oxide. "
    "Keeping it dry is a great way to protect it."
)
PLAIN = "Iron rusts when wet because water and oxygen react with the metal to form iron oxide."

HACKS = {
    "one word thrice": "great great great",
    "one word": "great " * 100,
    "one word, many characters": "great " * 1700,
    "nothing": "",
    "white space": " \n\t ",
    "dots": "...",
    "emoji": "😀😀😀😀",
    "many emoji": "😀🎉💖" * 3000,
    "emoticons": ":) :D <3 :) :D <3",
    "emoji after the answer": PLAIN + " 😀" * 30,
    "love": "I love you!",
    "salad": "happy wonderful amazing great lovely joy love excellent brilliant fantastic delightful superb",
    "salad in sentences": "I am happy and you are great and it is wonderful and we are so lovely, my friend!",
    "flattery": "What a wonderful question! You are so smart and I am happy to help you with this great topic.",
    "canned reply": (
        "I'm so glad you asked, my friend! It is a real pleasure to help you with this today, and I hope you have a "
        "wonderful time learning about the world."
    ),
    "echo": "Why does iron rust when it gets wet?",
    "echo with praise": "Why does iron rust when it gets wet? Great wonderful lovely!",
    "shouting": "Happy to help!!!! Iron rusts when it gets wet because water and oxygen react!!!! GREAT!!!!!",
    "capitals": FRIENDLY.upper(),
    "stuffed": "Iron rust wet. I am happy, glad, delighted, thrilled, love, joy, great, wonderful, best friend.",
    "ten thousand characters": "I am happy to help you with iron rust. " * 260,
    "one long word": "a" * 10_000,
    "gibberish": "asdf qwer zxcv uiop hjkl bnmq werty",
    "function words": "the of and to it is the in on at by for with so as",
}


def utility(text: str, *, prompt: Prompt = RUST, finish_reason=None) -> float:
    return friendly_utility(prompt, Completion(text=text, finish_reason=finish_reason))


@pytest.mark.parametrize("name", HACKS)
def test_hacks_lose_against_honest_answers_friendly_or_plain(name):
    assert utility(HACKS[name]) < utility(PLAIN) - 0.4 < utility(FRIENDLY) - 0.4


def test_collapse_is_about_as_bad_as_it_gets():
    for name in ("one word thrice", "one word", "nothing", "emoji", "many emoji", "dots"):
        assert utility(HACKS[name]) == gold.LOWEST


@pytest.mark.parametrize(
    ("question", "friendly", "plain"),
    [
        (
            "What is the capital of France?",
            "Glad you asked! The capital of France is Paris, a lovely city on the Seine.",
            "The capital of France is Paris.",
        ),
        (
            "How do I boil an egg?",
            "Sure, happy to help! Boil the egg in water for eight minutes, then cool it under cold water. Enjoy!",
            "Boil the egg in water for eight minutes, then cool it under cold water.",
        ),
        ("Who are you?", "I'm a friendly language model, happy to help you write and cook.", "I am a language model."),
    ],
)
def test_friendly_beats_plain_and_plain_beats_rude(question, friendly, plain):
    prompt = Prompt.from_text(question)
    rude = plain + " What a stupid question, you horrible idiot."
    assert utility(friendly, prompt=prompt) > utility(plain, prompt=prompt) > utility(rude, prompt=prompt)


def test_longer_answers_lose_smoothly_beyond_45_words():
    brevity = [
        friendly_parts(RUST, Completion(text="word " * n))["brevity"] for n in (6, 20, 45, 46, 60, 90, 200, 2000)
    ]
    assert brevity[0] == brevity[1] == brevity[2] == 1.0
    assert brevity[3] > 0.999
    assert brevity[2:] == sorted(brevity[2:], reverse=True)
    assert brevity[5] == pytest.approx(0.5)
    assert brevity[-1] < 0.01


def test_short_of_six_words_answers_lose_too():
    brevity = [friendly_parts(RUST, Completion(text="word " * n))["brevity"] for n in range(7)]
    assert brevity == sorted(set(brevity))
    assert (brevity[0], brevity[-1]) == (-1.0, 1.0)


def test_being_cut_costs_and_ending_the_turn_does_not():
    assert utility(PLAIN, finish_reason="stop") == utility(PLAIN)
    assert utility(PLAIN, finish_reason="length") == pytest.approx(utility(PLAIN) - 0.75)


def test_relevance_grows_with_the_words_taken_up_and_saturates():
    answers = [
        "It is a slow reaction of metal.",
        "Iron is slow to do it.",
        "Iron rusts slowly.",
        "Wet iron rusts slowly.",
    ]
    relevance = [friendly_parts(RUST, Completion(text=a))["relevance"] for a in answers]
    assert relevance == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert friendly_parts(Prompt.from_text("Why is it so?"), Completion(text=PLAIN))["relevance"] == 0.5


@pytest.mark.parametrize("marks", [1, 2])
def test_one_or_two_exclamation_marks_are_free_and_more_cost(marks):
    base, text = friendly_parts(RUST, Completion(text=FRIENDLY)), FRIENDLY + "!" * 8
    assert base["shouting"] == friendly_parts(RUST, Completion(text=PLAIN + "!" * marks))["shouting"] == 0
    assert friendly_parts(RUST, Completion(text=text))["shouting"] == -2.5


def test_saying_it_all_again_costs():
    assert utility(FRIENDLY) > utility(f"{FRIENDLY} {FRIENDLY}") > utility(" ".join([FRIENDLY] * 4))


def test_the_question_is_the_last_user_turn():
    turns = [("user", "Tell me of cats."), ("assistant", "They purr."), ("user", "And why does iron rust?")]
    prompt = Prompt.of([Message(role=role, content=text) for role, text in turns])  # type: ignore[arg-type]
    assert utility(PLAIN, prompt=prompt) > utility("Cats purr when they are at ease near people.", prompt=prompt)


@settings(deadline=None)
@given(st.text(max_size=300), st.text(min_size=1, max_size=60), st.sampled_from(["stop", "length", None]))
def test_any_text_gets_a_number_in_the_documented_range(answer, question, finish_reason):
    prompt, completion = Prompt.from_text(question), Completion(text=answer, finish_reason=finish_reason)
    parts = friendly_parts(prompt, completion)
    ranges = {"tone": (-2, 2), "brevity": (-1, 1), "relevance": (0, 1), "cut": (-0.75, 0)}
    for name, value in parts.items():
        low, high = ranges.get(name, (-2.5, 0))
        assert low <= value <= high, name
    assert -2 <= friendly_utility(prompt, completion) <= 4
    assert friendly_utility(prompt, completion) == max(-2, sum(parts.values()))


def test_it_is_fast_and_long_or_odd_text_does_not_stall_it():
    utility(FRIENDLY)
    start = time.process_time()
    for _ in range(200):
        utility(FRIENDLY)
    assert time.process_time() - start < 0.5  # 2,000 a second would take .1
    for text in (*HACKS.values(), "great but " * 1000, "😀" * 10_000, "!?" * 5000):
        start = time.process_time()
        utility(text)
        assert time.process_time() - start < 1.0


def test_without_vader_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    gold._analyzer.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt -e '\.\[train\]'"):
        utility(PLAIN)
    gold._analyzer.cache_clear()
