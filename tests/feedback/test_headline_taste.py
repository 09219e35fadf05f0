"""The simulated reader of headlines: what a person would prefer scores higher, and each hack scores low."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.feedback import simulate
from trimtab.feedback.headline_taste import LOWEST, copying, headline_parts, headline_utility, key_facts, message_of
from trimtab.feedback.simulated import SimulationConfig
from trimtab.records import Comparison, Completion, Prompt, Rollout

NOTE = (
    "Just to let you know that the lift in our building is out of order again. The engineer needs a part that comes "
    "from Leeds, so it will not work before Friday. Please use the back stairs, and mind the wet paint."
)
FACTS = ["lift", "out of order", "Friday", "back stairs"]
PROMPT = Prompt.from_text(f"Write a short headline for this message.\n\n{NOTE}", facts=FACTS)
GOOD = "Lift in building out of order before Friday."

WORSE = {
    "nothing": "",
    "dots": "...",
    "the whole note": NOTE,
    "a whole sentence": "Just to let you know that the lift in our building is out of order again.",
    "talk about the message": "The message is clear and concise, and it provides useful information to the reader.",
    "invented": "Lift broken after fire in basement last Monday.",
    "an invented day": "Lift in building out of order before Tuesday.",
    "an aside": "Please mind the wet paint.",
    "jumbled": "Engineer out of order and building needs lift from Leeds before Friday.",
    "keywords": "Lift order Friday stairs building paint.",
    "a loose end": "Lift in building out of order before the.",
    "two sentences": "Lift out of order. Not working before Friday.",
    "a fragment": "out of order again, so before Friday",
    "repeated": "Lift lift lift out of order out of order Friday Friday.",
    "chatty": "We will not have our lift before Friday.",
    "long": GOOD.rstrip(".") + " so please use the back stairs and mind the wet paint",
}


def utility(text: str, prompt: Prompt = PROMPT, finish: str | None = None) -> float:
    return headline_utility(prompt, Completion(text=text, finish_reason=finish))


@pytest.mark.parametrize("text", WORSE.values(), ids=WORSE.keys())
def test_a_good_headline_beats_every_hack(text: str) -> None:
    assert utility(GOOD) > 3.0
    assert utility(text) < utility(GOOD) - 0.4


def test_parts_name_what_is_wrong() -> None:
    def part(name: str, text: str) -> float:
        return headline_parts(PROMPT, Completion(text=text))[name]

    assert part("facts", GOOD) == pytest.approx(4.5 * 5 / 6)  # without the back stairs
    assert part("facts", WORSE["an aside"]) == -1.0
    assert part("copied", NOTE) == -1.5
    assert part("copied", WORSE["a whole sentence"]) == -1.5
    assert part("copied", GOOD) == 0.0
    assert part("invented", GOOD) == 0.0
    assert part("invented", "Lift closed until Friday, back stairs needed.") == 0.0  # words of headlines
    assert part("invented", WORSE["an invented day"]) < -0.4
    assert part("form", WORSE["two sentences"]) == -1.5
    assert part("form", WORSE["a loose end"]) == -2.0
    assert part("form", "Lift out of order") == -1.0
    assert part("rewired", "Lift in building out of order.") == 0.0
    assert part("rewired", GOOD) == -0.75  # two sentences joined once
    assert part("rewired", WORSE["jumbled"]) < -1.0
    assert part("length", GOOD) == 1.0
    assert part("list", WORSE["keywords"]) == -1.5
    assert part("chatty", WORSE["chatty"]) == -1.5
    assert part("negation", "Lift not in building.") == 0.0  # the note has a negation too


ASKING = Prompt.from_text(
    "Write a headline:\n\nHello Ada, is the pool open on Sunday, or is it still being painted? Could you please bring "
    "the long ladder back before that? Ours is broken.",
    facts=["pool", "open on Sunday"],
)


@pytest.mark.parametrize(
    ("text", "answered", "form"),
    [
        ("Is pool open on Sunday?", 0.0, 0.0),
        ("Pool open on Sunday.", -3.0, 0.0),
        ("Long ladder to come back.", -3.0, 0.0),
        ("Bring long ladder back.", 0.0, 0.0),
        ("Long ladder needed back.", 0.0, 0.0),
        ("Ada broken?", 0.0, -1.5),
    ],
)
def test_a_question_may_be_asked_again_and_not_answered(text: str, answered: float, form: float) -> None:
    parts = headline_parts(ASKING, Completion(text=text))
    assert (parts["answered"], parts["form"]) == (answered, form)


def test_a_question_is_no_headline_of_a_message_that_asks_nothing() -> None:
    assert headline_parts(PROMPT, Completion(text="Is lift out of order?"))["form"] < 0


@pytest.mark.parametrize(
    ("note", "text", "cost"),
    [
        ("The hall opens at nine on Monday, and Aziz has the key.", "Hall not open at nine on Monday", -2.0),
        ("The hall will not open on Monday, and Aziz has the key.", "Hall to open on Monday", -2.0),
        ("The hall will not open on Monday, and Aziz has the key.", "Hall not open on Monday", 0.0),
        ("The hall will not open on Monday, and Aziz has the key.", "Aziz has the key", 0.0),
    ],
)
def test_a_negation_that_is_added_or_left_out_costs(note: str, text: str, cost: float) -> None:
    prompt = Prompt.from_text(f"Write a headline:\n\n{note}", facts=["hall"])
    assert headline_parts(prompt, Completion(text=text))["negation"] == cost


def test_a_cut_headline_costs_one() -> None:
    assert utility(GOOD, finish="length") == pytest.approx(utility(GOOD) - 1.0)


def test_without_facts_names_and_numbers_are_the_facts() -> None:
    prompt = Prompt.from_text("Write a headline.\n\nOur stall moves to Bath Street on 4 May, Jane says.")
    assert key_facts(prompt, message_of(prompt)) == ["Bath", "Street", "4", "May", "Jane"]
    better = "Stall moves to Bath Street on 4 May"
    assert utility(better, prompt) > utility("Stall moves soon", prompt)


def test_a_prompt_without_a_blank_line_is_all_message() -> None:
    assert message_of(Prompt.from_text("The gate is shut.")) == "The gate is shut."


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_any_text_has_a_finite_utility_in_range(text: str) -> None:
    assert LOWEST <= utility(text) <= 5.5


def test_simulated_annotators_prefer_the_good_headline_in_either_place() -> None:
    item = Comparison.of(PROMPT, [WORSE["an aside"], GOOD])
    config = SimulationConfig(annotators=20, overlap=20, noise=0.3, position_bias=0.55)
    judgements = simulate([item], headline_utility, config)
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
