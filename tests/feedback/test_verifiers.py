"""Rewards by rule: numbers that mean the same, and for each instruction an answer that follows it and one that not."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import ScoringError
from trimtab.feedback.verifiers import INSTRUCTIONS, arithmetic, final_number, instructions
from trimtab.records import Prompt, Rollout


def rollout(text: str, **metadata) -> Rollout:
    prompt = Prompt.from_text("How many?", **metadata)
    return Rollout(
        id="p/0/0", prompt=prompt, prompt_tokens=[1], tokens=[2], logprobs=[0.0], text=text, finish_reason="stop",
        weight_version=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She sold 48 + 24 = 72 clips.", 72),
        ("48/2 = <<48/2=24>>24\n#### 72", 72),
        ("#### 1,200", 1200),
        ("It costs $1,200.50 in all.", Fraction("1200.5")),
        ("The answer is 7. I checked 3 times.", 7),
        ("Answer: -5", -5),
        ("so −5", -5),
        (r"thus \boxed{1/2} of 10", Fraction(1, 2)),
        ("between .5", Fraction(1, 2)),
        ("The answer is 3. No, the answer is 4.", 4),
        ("#### seventy\nso 70", 70),
        ("nothing here", None),
        ("", None),
        ("1/0", None),
        ("5-3", 3),  # a difference, not a number below zero
        ("(2)-3 = -1", -1),
        ("x -3", -3),
        (r"so \frac{1}{2}", Fraction(1, 2)),
        (r"\boxed{-\frac{3}{4}} of 10", Fraction(-3, 4)),
        (r"#### 3\dfrac{1}{2}", Fraction(7, 2)),
        (r"\frac12", Fraction(1, 2)),
        (r"\frac{1}{0}", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == number


def test_arithmetic():
    cases = [("#### 72", 1.0), ("It is 72.0", 1.0), ("73", 0.0), ("no idea", 0.0), ("", 0.0)]
    result = arithmetic([rollout(text, reference="<<24+48=72>> so\n#### 72") for text, _ in cases])
    assert result == [value for _, value in cases]
    assert arithmetic([rollout("72", answer=72)]) == [1.0]


@pytest.mark.parametrize("metadata", [{}, {"reference": "none"}])
def test_arithmetic_without_a_reference(metadata):
    with pytest.raises(ScoringError, match="has no reference number"):
        arithmetic([rollout("72", **metadata)])


CASES: list[tuple[str, dict, str, str]] = [
    ("punctuation:no_comma", {}, "One two", "One, two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "a b c", "a b"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "a b", "a b c"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "Hi. Go!", "Hi there."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen, more.",
        "First.\n\nMore then.",
    ),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and b"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a"),
    ("detectable_format:title", {}, "<<Rain>>\nIt rains.", "<Rain>\nIt rains."),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1 a Part 2",
        "Part 1",
    ),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [city]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye. P.S. Write!", "Bye."),
    ("keywords:existence", {"keywords": ["tea", "milk"]}, "Milk in tea", "Milk in team"),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "a team", "some Tea"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "tea, Tea", "tea"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, "tea", "tea tea"),
    ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "at least"}, "Zz", "z"),
    ("change_case:english_capital", {}, "ALL OF IT", "ALL of it"),
    ("change_case:english_lowercase", {}, "all of it", "All of it"),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "VERY GOOD tea",
        "VERY good tea",
    ),
    ("startend:end_checker", {"end_phrase": "the end"}, "So. The End", "The end, no."),
    ("startend:quotation", {}, '"Yes."', '"Yes."!'),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi"}, "say hi\nHi!", "Hi!"),
    ("combination:two_responses", {}, "a******b", "a******a"),
]


@pytest.mark.parametrize(("name", "settings", "good", "bad"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_instruction(name, settings, good, bad):
    padded = settings | {"unused": None}  # data files name every setting of every instruction, most of them null
    result = instructions([rollout(t, instruction_id_list=[name], kwargs=[padded]) for t in (good, bad, "  ")])
    assert result == [1.0, 0.0, 0.0]


def test_every_instruction_has_a_case():
    assert {name for name, *_ in CASES} == set(INSTRUCTIONS)


def test_share_of_instructions():
    both = {"instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"], "kwargs": [{}, {}]}
    assert instructions([rollout("a, b", **both), rollout("a b", **both)]) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"has no instructions to check.*has \[\]"),
        ({"instruction_id_list": ["a"], "kwargs": []}, "two lists of equal length"),
        ({"instruction_id_list": ["language:response_language"], "kwargs": [{}]}, "is not known; known: punctuation"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"words": ["a"]}]}, "keywords:existence.*words"),
    ],
)
def test_instructions_that_cannot_be_checked(metadata, message):
    with pytest.raises(ScoringError, match=message):
        instructions([rollout("a", **metadata)])


WRITTEN: dict[str, list[tuple[str, Fraction | int | None]]] = {
    "expressions": [
        ("The answer is 5 * 3 = 15.", 15),
        ("The answer is 5*3=15", 15),
        ("The answer is 5 × 3 = 15", 15),
        ("The answer is 5 times 3 = 15", 15),
        ("The answer is 3 plus 4 = 7", 7),
        ("The answer is 12 divided by 4 = 3", 3),
        ("The answer is 10 minus 4 = 6", 6),
        ("The answer is 20 % of 50 = 10", 10),
        ("The answer is 25% of 200 students.", 25),
        ("The answer is 3 times.", 3),
        (r"The answer is $5 \times 3 = 15$.", 15),
        ("The answer is 5 x 3 = 15.", 15),
        ("The answer is 3 + 4 = 7", 7),
        ("The answer is 3 + 4", 7),
        ("The answer is 10 - 4 = 6 apples.", 6),
        ("The answer is 12 / 4 = 3", 3),
        ("The answer is 12 ÷ 4", 3),
        ("The answer is 2^3 = 8", 8),
        ("The answer is 5 ** 2 = 25", 25),
        ("The answer is (5 + 2) * 3 = 21.", 21),
        ("The answer is 15 = 5 * 3", 15),
        ("The answer is x = 15", 15),
        ("The answer is x_1 = 5", 5),
        ("The answer is 5 apples * 3 = 15 apples", 15),
        ("The answer is $5 * 3 = $15.", 15),
        ("The answer is 1 + 2 = 3 + 4 = 7", 7),
        ("#### 5 * 3 = 15", 15),
        (r"\boxed{5 * 3 = 15}", 15),
        (r"\boxed{3+4}", 7),
        (r"\boxed{\sqrt{16} = 4}", 4),
        ("5 * 3 = 15", 15),
        ("15 = 5 * 3", 15),
    ],
    "what only follows the answer": [
        ("The answer is 3 because 1 + 2 = 3", 3),
        ("The answer is 3 (since 3 + 4 = 7)", 3),
        ("The answer is 7, as 3 + 4 = 8", 7),
        ("The answer is 3 since x = 5", 3),
        ("The answer is 7 of the 10 clips", 7),
        ("The answer is 15!", 15),
    ],
    "separators": [
        (r"\boxed{1{,}200}", 1200),
        (r"\boxed{1\,200}", 1200),
        (r"\boxed{1,\!200}", 1200),
        (r"\boxed{1{,}234{,}567.5}", Fraction("1234567.5")),
        ("Answer: 1\u202f200", 1200),
        ("Answer: 1'200", 1200),
        ("Answer: 1 200", 1200),
        ("#### 12 345 678", 12345678),
        ("The answer is 1 200,50 €.", Fraction("1200.5")),
        ("The answer is $1 200$.", 1200),
        ("So there are 1 200 apples.", 1200),
        ("The answer is 3 125/1000", Fraction(25, 8)),
        ("#### 5 12 300", 5),
        ("Answer: 1.200,50", Fraction("1200.5")),
        ("Answer: 12,34,567", 1234567),
        ("Final answer: 1,234,567.", 1234567),
        ("Answer: 3,4", Fraction("3.4")),
        (r"\boxed{2,3}", Fraction("2.3")),
        (r"\boxed{2{,}3}", Fraction("2.3")),
        (r"\boxed{(2,3)}", None),
        (r"\boxed{2, 3}", None),
        (r"\boxed{1,2,3}", None),
        (r"\boxed{2,300}", 2300),
        ("The answer is 3,50 €.", Fraction("3.5")),
        ("The answer is 3,1416", Fraction("3.1416")),
        ("The answer is 0,125 kg", Fraction(1, 8)),
        ("Die Antwort ist -2,5", Fraction("-2.5")),
        ("The answer is 1.234.567", 1234567),
        ("The answer is 1.234.567,89", Fraction("1234567.89")),
        ("The answer is 1,234", 1234),
        ("The answer is 3, 4 and 5 are wrong.", 3),
        ("#### 3,4,5", 3),
    ],
    "powers of ten": [
        ("The answer is 1.2e3", 1200),
        ("The answer is 1.2 × 10^3", 1200),
        (r"\boxed{1.2 \times 10^{3}}", 1200),
        (r"\boxed{5 \cdot 10^{-2}}", Fraction(1, 20)),
        ("It is 1.2×10³", 1200),
        ("The answer is 1e999999999", None),
        ("The answer is 9^9^9^9", None),
    ],
    "fractions": [
        ("The answer is 3 1/2", Fraction(7, 2)),
        ("The answer is 3½", Fraction(7, 2)),
        ("The answer is ½ cup", Fraction(1, 2)),
        (r"\boxed{\frac{-3}{4}}", Fraction(-3, 4)),
        (r"\boxed{\dfrac{1{,}200}{3}}", 400),
        (r"\boxed{\frac{\frac{1}{2}}{2}}", Fraction(1, 4)),
        (r"\boxed{3 \frac{1}{2}}", Fraction(7, 2)),
        ("The answer is 3:4", Fraction(3, 4)),
        ("The answer is 0.5 = 1/2", Fraction(1, 2)),
    ],
    "units and LaTeX": [
        (r"\boxed{15\text{ cm}}", 15),
        (r"\boxed{\text{15}}", 15),
        (r"\boxed{\textbf{15}}", 15),
        (r"\boxed{15\ \mathrm{km/h}}", 15),
        (r"\boxed{15\,\text{cm}^2}", 15),
        (r"\boxed{90^{\circ}}", 90),
        (r"\boxed{50\%}", 50),
        (r"\boxed{\$15}", 15),
        (r"\boxed{\left(15\right)}", 15),
        ("\\boxed 15", 15),
        ("$\\boxed{15}$.", 15),
        (r"The answer is $\boxed{15}$ not 3", 15),
        ("The answer is 50%.", 50),
        ("The answer is 15cm", 15),
        ("The answer is US$15.", 15),
        ("The answer is €1,200", 1200),
        ("The answer is 100 °C", 100),
    ],
    "signs": [
        ("The answer is minus 5", -5),
        ("The answer is negative 5.", -5),
        ("The answer is - 5", -5),
        ("Answer: -$5", -5),
        ("Answer: $-5", -5),
        ("The answer is (-5)", -5),
        ("#### −72", -72),
        ("- 5 apples\n- 3 pears", 3),
    ],
    "places": [
        ("The answer is **15**.", 15),
        ("**Answer:** 15", 15),
        ("**Answer: 15**", 15),
        ("The answer is `15`", 15),
        ("The answer is:\n\n$$15$$", 15),
        ("The answer is:\nStep 1: add 3 and 4\nSo 7", 7),
        ("<answer>15</answer>", 15),
        ("#### $72", 72),
        ("####72 clips", 72),
        ("#### Step 1\nso 15", 15),
        ("#### 1. First step\nIt is 15", 15),
        ("The answer to part 2 is 15", 15),
        ("The answer should be 42 and not 43", 42),
        ("The answer was 42; I first had 43", 42),
        ("The answer comes to 42 after 3 steps", 42),
        ("The answer becomes 42 in step 3", 42),
        ("The answer turns out to be 42 in step 3", 42),
    ],
    "what is denied": [
        ("The answer is not 5 but 6.", 6),
        ("The answer is not 5. It is 6.", 6),
        ("The answer isn't 5, it's 6", 6),
        ("The answer cannot be 5, so it is 6", 6),
        ("The answer does not equal 5", None),
        ("The answer is not 5", None),
        ("It is 6, not 5", 6),
        ("So 6 rather than 5", 6),
        ("The answer is not only 5 apples", 5),
        ("The answer is not 5/6 but 1/2.", Fraction(1, 2)),
        ("My first answer was 5. After a correction I get 6.", 6),
        ("The answer could be 5. But it is 6.", 6),
    ],
    "two numbers": [
        ("The answer is 5 or 6", None),
        ("The answer is 5 hours or 6 hours.", None),
        ("The answer is between 5 and 6", None),
        ("The answer is 5 to 6 kg", None),
        (r"\boxed{5 \text{ or } 6}", None),
        ("The answer is 3 and 1/2", Fraction(7, 2)),
        ("The answer is 5 or more", 5),
        ("The answer is 3.14 to 2 decimal places", Fraction("3.14")),
        ("The answer is 3.14 rounded to 2 d.p.", Fraction("3.14")),
        ("The answer is 15 compared to 3 before", 15),
        (r"The answer is \frac{1}{2} or 0.5", Fraction(1, 2)),
        ("The answer is 0.5 or 50%", Fraction(1, 2)),
        ("The answer is 90 minutes or 1.5 hours.", 90),
        ("The answer is 5% to 6%", None),
    ],
    "words for powers of ten": [
        ("The answer is 3 million", 3000000),
        ("The answer is $1.5 billion dollars", 1500000000),
        ("#### 2 hundred", 200),
        ("so 3,200 thousand", 3200000),
        ("The answer is 3 millionaires", 3),
        ("The answer is 3 million 200 thousand", 3200000),
        ("The answer is $3 million, 200 thousand.", 3200000),
        ("They have 3 million and 200 thousand in all", 3200000),
        ("The answer is 3 hundred and 5.", 305),
        ("The answer is 3 hundred 5", 305),
        ("There are 3 hundred and 5 boats", 305),
        ("The answer is 3 million 2024", 3000000),
        (r"\boxed{2 \text{ billion } 5 \text{ million}}", 2005000000),
        ("The answer is 5 hundred thousand", 500000),
        ("#### 1 million 2 hundred thousand", 1200000),
        ("The answer is 3 thousand 200", 3200),
        ("The answer is 3 thousand 200 dollars", 3200),
        ("First 200 thousand 3 million", 3000000),
        ("It was 3 million\n200 thousand", 200000),
        ("The answer is 3 million 2 million", 3000000),
        ("It is 7, not 3 million 200 thousand", 7),
        ("The answer is 1e99 trillion", Fraction(10**99)),
    ],
    "thoughts": [
        ("<think>the answer is 5</think>6", 6),
        ("maybe the answer is 5</think>\n\nThe answer is 6", 6),
        ("<think>5</think>I do not know", None),
        ("<thinking>5</thinking> 6", 6),
        ("<think>the answer is 5, or", None),
    ],
    "no number": [
        (r"\boxed{2\sqrt{3}}", None),
        (r"\boxed{\sqrt{15}}", None),
        (r"\boxed{3\pi}", None),
        (r"\boxed{x+2}", None),
        (r"\boxed{3 + x}", None),
        (r"\boxed{3x}", None),
        (r"\boxed{(1, 2)}", None),
        (r"The answer is 2\sqrt{3}.", None),
        ("The answer is log 2", None),
        (r"\boxed{\log_2 8}", None),
        (r"\boxed{\log_{10} 100}", None),
        (r"\boxed{-\ln 2}", None),
        ("Answer: The log is 12 feet long.", 12),
        ("Answer: each tan shirt costs 12 dollars", 12),
        ("The answer is log 100 = 2", 2),
        (r"\boxed{\sin 30^\circ}", None),
    ],
}


@pytest.mark.parametrize(("text", "number"), [case for cases in WRITTEN.values() for case in cases])
def test_final_number_as_people_and_models_write_it(text, number):
    assert final_number(text) == number


@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["{:,}", "{}", "{:,}.0", "{}.00", "${:,}$", r"\text{{{:,}}}", "**{}**", "{} apples", "{:,}."]),
    st.sampled_from(
        ["The answer is {}", "#### {}", r"so \boxed{{{}}}", "Answer: {}", "2 + 2 = 5\n#### {}", "It is {}"]
    ),
)
def test_every_way_to_write_a_number_is_read_as_that_number(value, form, frame):
    assert final_number(frame.format(form.format(value))) == value


@given(
    st.lists(st.tuples(st.sampled_from("+-*"), st.integers(1, 99)), min_size=1, max_size=4),
    st.integers(1, 99),
    st.booleans(),
    st.sampled_from(["The answer is {}.", "#### {}", r"\boxed{{{}}}", "Answer: {}"]),
)
def test_every_chain_is_read_as_its_last_number(steps, first, spaced, frame):
    gap = " " if spaced else ""
    expression = str(first) + "".join(f"{gap}{sign}{gap}{number}" for sign, number in steps)
    value = eval(expression)  # made above of digits and signs
    assert final_number(frame.format(f"{expression}{gap}={gap}{value}")) == value
    assert final_number(frame.format(expression)) == value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("(" * 5000 + "5", 5),
        (r"\frac{" * 2000, None),
        ("1," * 3000, 1),
        ("9" * 6000, None),  # more digits than Python converts
        (r"\boxed{" * 2000 + "5", 5),
    ],
)
def test_hostile_texts_end(text, number):
    assert final_number(text) == number
    assert final_number(f"The answer is {text}") == number
