"""The simulated reader of summaries: what a person would prefer scores higher, and each hack scores low."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.feedback import simulate
from trimtab.feedback.simulated import SimulationConfig
from trimtab.feedback.summary_taste import LOWEST, copying, key_facts, message_of, summary_parts, summary_utility
from trimtab.records import Comparison, Completion, Prompt, Rollout

NOTE = (
    "Just to let you know that the lift in our building is out of order again. The engineer needs a part that comes "
    "from Leeds, so it will not work before Friday. Please use the back stairs, and mind the wet paint."
)
FACTS = ["lift", "out of order", "Friday", "back stairs"]
PROMPT = Prompt.from_text(f"Summarise this message in one short sentence.\n\n{NOTE}", facts=FACTS)
GOOD = "The lift in our building is out of order and will not work before Friday."

WORSE = {
    "nothing": "",
    "dots": "...",
    "the whole note": NOTE,
    "a whole sentence": "Just to let you know that the lift in our building is out of order again.",
    "talk about the message": "The message is clear and concise, and it provides useful information to the reader.",
    "invented": "The lift in our building is broken because of a fire in the basement last Monday.",
    "an invented day": "The lift in our building is out of order and will not work before Tuesday.",
    "an aside": "You should mind the wet paint.",
    "jumbled": "The engineer is out of order and the building needs a lift from Leeds before Friday.",
    "telegram": "Lift, order, Friday, stairs.",
    "a loose end": "The lift in our building is out of order and will not work before the.",
    "two sentences": "The lift is out of order. It will not work before Friday.",
    "a fragment": "out of order again, so before Friday",
    "repeated": "The lift the lift the lift is out of order out of order out of order Friday Friday.",
    "stock phrase": "The lift is out of order until Friday, and I hope this helps you, my friend!",
    "long": GOOD.rstrip(".") + ", so please use the back stairs and mind the wet paint, as the engineer needs a part.",
}


def utility(text: str, prompt: Prompt = PROMPT, finish: str | None = None) -> float:
    return summary_utility(prompt, Completion(text=text, finish_reason=finish))


@pytest.mark.parametrize("text", WORSE.values(), ids=WORSE.keys())
def test_a_good_summary_beats_every_hack(text: str) -> None:
    assert utility(GOOD) > 3.0
    assert utility(text) < utility(GOOD) - 0.4


def test_parts_name_what_is_wrong() -> None:
    def part(name: str, text: str) -> float:
        return summary_parts(PROMPT, Completion(text=text))[name]

    assert part("facts", GOOD) == pytest.approx(4.5 * 5 / 6)  # without the back stairs
    assert part("facts", WORSE["an aside"]) == 0.0
    assert part("copied", NOTE) == -1.0
    assert part("copied", WORSE["a whole sentence"]) == -1.0
    assert part("copied", GOOD) == 0.0
    assert part("invented", GOOD) == 0.0
    assert part("invented", WORSE["an invented day"]) < -0.4
    assert part("sentence", WORSE["two sentences"]) == -1.5
    assert part("sentence", "The lift in our building is out of the.") == -2.5
    assert part("rewired", "The lift in our building is out of order.") == 0.0
    assert part("rewired", GOOD) == 0.0  # one joint
    assert part("rewired", "Your building is out of order.") == -1.5  # whose?
    assert part("rewired", "The lift is out of order, so mind the stairs.") == -1.5  # a joint and two gaps
    assert part("rewired", "The lift needs a part that comes from Leeds.") == -1.5  # what the engineer needs
    assert part("rewired", WORSE["jumbled"]) == -3.0
    assert part("length", GOOD) == 1.0
    assert part("negation", "The lift is not in our building.") == 0.0  # the note has a negation too


ASKING = Prompt.from_text(
    "Summarise:\n\nHello Ada, is the pool open on Sunday, or is it still being painted? Could you please bring the "
    "long ladder back before that? Ours is broken.",
    facts=["pool", "open on Sunday"],
)


@pytest.mark.parametrize(
    ("text", "answered", "sentence"),
    [
        ("Is the pool open on Sunday?", 0.0, 0.0),
        ("The pool is open on Sunday.", -3.0, 0.0),
        ("Pool open on Sunday or is it still being painted.", -3.0, 0.0),
        ("You could bring the long ladder back.", -3.0, 0.0),
        ("Bring the long ladder back.", 0.0, 0.0),
        ("Somebody asks if the pool is open on Sunday.", 0.0, 0.0),
        ("Ours is broken.", 0.0, 0.0),
        ("Is the pool open on Sunday.", -3.0, -2.5),
    ],
)
def test_a_question_may_be_asked_again_and_not_answered(text: str, answered: float, sentence: float) -> None:
    parts = summary_parts(ASKING, Completion(text=text))
    assert (parts["answered"], parts["sentence"]) == (answered, sentence)


def test_a_question_is_no_summary_of_a_message_that_asks_nothing() -> None:
    assert summary_parts(PROMPT, Completion(text="Is the lift out of order?"))["sentence"] < 0


def test_a_negation_that_the_message_does_not_have_costs() -> None:
    prompt = Prompt.from_text("Summarise:\n\nThe hall opens at nine on Monday, and Aziz has the key.", facts=["hall"])
    parts = summary_parts(prompt, Completion(text="The hall is not open at nine on Monday."))
    assert parts["negation"] == -1.0


def test_a_cut_summary_costs_one() -> None:
    assert utility(GOOD, finish="length") == pytest.approx(utility(GOOD) - 1.0)


def test_without_facts_names_and_numbers_are_the_facts() -> None:
    prompt = Prompt.from_text("Summarise this message.\n\nOur stall moves to Bath Street on 4 May, Jane says.")
    assert key_facts(prompt, message_of(prompt)) == ["Bath", "Street", "4", "May", "Jane"]
    better = "The stall moves to Bath Street on 4 May."
    assert utility(better, prompt) > utility("The stall moves soon.", prompt)


def test_a_prompt_without_a_blank_line_is_all_message() -> None:
    assert message_of(Prompt.from_text("The gate is shut.")) == "The gate is shut."


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_any_text_has_a_finite_utility_in_range(text: str) -> None:
    assert LOWEST <= utility(text) <= 5.5


def test_simulated_annotators_prefer_the_good_summary_in_either_place() -> None:
    item = Comparison.of(PROMPT, [WORSE["an aside"], GOOD])
    config = SimulationConfig(annotators=20, overlap=20, noise=0.3, position_bias=0.55)
    judgements = simulate([item], summary_utility, config)
    firsts = [j.shown_order[j.ranks.index(min(j.ranks))] if len(set(j.ranks)) > 1 else None for j in judgements]
    assert sum(best == 1 for best in firsts) >= 15


def test_the_rule_against_copies_says_how_much_of_a_copy_an_answer_is() -> None:
    def rollout(text: str) -> Rollout:
        return Rollout(
            id="r",
            prompt=PROMPT,
            prompt_tokens=[1],
            tokens=[2],
            logprobs=[0.0],
            text=text,
            finish_reason="stop",
            weight_version=0,
        )

    texts = [NOTE, WORSE["a whole sentence"], GOOD, "", "The lift in our building is out of order again."]
    assert copying([rollout(text) for text in texts]) == [1.0, 1.0, 0.0, 0.0, 0.0]
