"""An AI judge with a made-up model: both orders, ties, failures, several principles, K answers, rubrics."""

import math
import re
from collections.abc import Callable

import pytest

from tests.constitution.test_principles import made, principle
from trimtab.feedback import (
    AggregateConfig,
    JudgeConfig,
    Question,
    Reply,
    against_people,
    aggregate,
    ensemble,
    judge,
    report_lines,
    run_facts,
)
from trimtab.feedback.judge import expected_score, questions_of
from trimtab.feedback.judge_report import cohen_kappa
from trimtab.feedback.principles import changed_labels, principle_report
from trimtab.feedback.reading import read_option
from trimtab.records import Comparison, Judgement, Prompt
from trimtab.testing.endpoint import material

RULES = made(principle("kind"), principle("brief"))


def item(*texts: str, asked: str = "Name a fish.") -> Comparison:
    return Comparison.of(Prompt.from_text(asked), list(texts))


def by_first(function: Callable[[str, str, str], float | str]):
    """An Ask whose P(A) is a function of (text A, text B, whole question); a text is a failure."""
    requests: list[Question] = []

    def ask(questions, keep):
        for question in questions:
            requests.append(question)
            _, a, b = material(question.messages[-1].content)[-3:]
            result = function(a, b, question.messages[-1].content)
            if isinstance(result, str):
                keep({question.key: Reply(failure=result)})
            else:
                keep({question.key: Reply(probabilities=(result, 1 - result), model="m")})

    ask.asked = requests  # type: ignore[attr-defined]
    return ask


def run(items, ask, config: JudgeConfig | None = None, rules=RULES, journal=None):
    return judge(
        items, rules, ask, config or JudgeConfig(), name="j", identity="m", journal={} if journal is None else journal
    )


def p_first(judgement: Judgement) -> float:
    assert judgement.probability is not None
    return judgement.probability if judgement.shown_order[0] == 0 else 1 - judgement.probability


def test_both_orders_are_averaged():
    one = item("good fish", "bad fish")
    ask = by_first(lambda a, b, _: 0.9 if a == "good fish" else 0.3)
    (result,) = run([one], ask).judgements
    assert len(ask.asked) == 2
    assert p_first(result) == pytest.approx((0.9 + 0.7) / 2)
    assert result.strength == pytest.approx(0.6)
    assert result.source == "ai" and result.guideline == RULES.version and result.principle in ("kind", "brief")
    best = result.shown_order[result.ranks.index(0)]
    assert best == 0


def test_a_judge_that_only_likes_a_place_gives_ties():
    many = [item(f"x {n}", f"y {n}") for n in range(8)]
    judged = run(many, by_first(lambda *_: 0.8))
    assert all(set(j.ranks) == {0} and j.probability == pytest.approx(0.5) for j in judged.judgements)
    facts = run_facts(many, judged)
    assert facts.position_bias.value == 1.0 and facts.flip_rate.value == 1.0
    assert any("100.0%" in line for line in report_lines(facts))


def test_a_contradiction_is_a_tie_with_the_mean_probability():
    (result,) = run([item("a", "b")], by_first(lambda a, b, _: 0.9 if a == "a" else 0.8)).judgements
    assert result.ranks == (0, 0) and p_first(result) == pytest.approx((0.9 + 0.2) / 2)


@pytest.mark.parametrize("failure", ["empty", "refused", "neither", "malformed", "too long"])
def test_no_answer_is_never_a_winner(failure: str):
    one = item("a", "b")
    judged = run([one], by_first(lambda a, b, _: failure if a == "b" else 0.9))
    (result,) = judged.judgements
    assert result.verdict == "unsure" and result.ranks is None and result.comment
    assert run_facts([one], judged).failures == {failure: 1}
    assert aggregate([one], [result]).preferences == ()


def test_nothing_is_asked_twice_and_ids_stay():
    items, journal = [item(f"a {n}", f"b {n}") for n in range(5)], {}
    first = run(items[:3], by_first(lambda *_: 0.7), journal=journal)
    ask = by_first(lambda *_: 0.7)
    again = run(items, ask, journal=journal)
    assert len(ask.asked) == 4 and again.asked == 4
    assert again.judgements[:3] == first.judgements
    assert len({j.id for j in again.judgements}) == 5
    run([*items, *items], by_first(lambda *_: pytest.fail("asked again")), journal=journal)


def test_a_killed_judge_goes_on_where_it_stopped():
    items, journal = [item(f"a {n}", f"b {n}") for n in range(5)], {}
    whole = run(items, by_first(lambda a, b, _: 0.6 if "a" in a else 0.2))
    inner = by_first(lambda a, b, _: 0.6 if "a" in a else 0.2)
    for stop in (1, 4, 7):

        def dies(questions, keep, stop=stop):
            inner(questions[: stop - len(journal)] if stop > len(journal) else [], keep)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(items, dies, journal=journal)
    resumed = run(items, inner, journal=journal)
    assert resumed.judgements == whole.judgements
    keys = [q.key for q in inner.asked]
    assert len(keys) == len(set(keys)) == 10


def test_an_edit_asks_only_what_it_touches():
    items = [item(f"a {n}", f"b {n}") for n in range(20)]
    rules, journal = made(*(principle(n) for n in "abcd")), {}
    before = run(items, by_first(lambda *_: 0.7), JudgeConfig(principles=None), rules, journal)
    edited = made(*(principle(n) for n in "abc"), principle("d", text="Something new."))
    ask = by_first(lambda a, b, text: 0.7 if "new" not in text else (0.1 if a[0] == "a" else 0.9))
    after = run(items, ask, JudgeConfig(principles=None), edited, journal)
    assert len(ask.asked) == 2 * 20 and all("Something new." in q.messages[-1].content for q in ask.asked)
    assert len(before.verdicts) == len(after.verdicts) == 80
    less = run(
        items, by_first(lambda *_: pytest.fail("asked")), JudgeConfig(principles=None), rules.without("a"), journal
    )
    assert len(less.verdicts) == 60
    drawn = {i.id: rules.draw(1, 0, i.id)[0].id for i in items}
    again = [
        i for i in items if questions_of(i, edited, JudgeConfig(), "m") != questions_of(i, rules, JudgeConfig(), "m")
    ]
    assert {i.id for i in again} == {k for k, v in drawn.items() if v == "d"}


def test_reasoning_is_clamped():
    (result,) = run(
        [item("a", "b")], by_first(lambda a, b, _: 0.99 if a == "a" else 0.45), JudgeConfig(mode="reason")
    ).judgements
    assert p_first(result) == pytest.approx((0.6 + 0.55) / 2)


def test_all_pairs_of_several_answers():
    worth = {"best": 3, "middle": 2, "worst": 0, "middle again": 2}
    one = item(*worth)
    ask = by_first(lambda a, b, _: 1 / (1 + math.exp(worth[b] - worth[a])))
    (result,) = run([one], ask).judgements
    assert len(ask.asked) == 12 and result.probability is None
    ranks = {one.completions[i].text: result.ranks[place] for place, i in enumerate(result.shown_order)}
    assert ranks == {"best": 0, "middle": 1, "middle again": 1, "worst": 2}
    contradiction = by_first(lambda a, b, _: 0.9 if "best" in (a, b) else 0.6 if worth[a] > worth[b] else 0.4)
    (result,) = run([one], contradiction).judgements
    ranks = {one.completions[i].text: result.ranks[place] for place, i in enumerate(result.shown_order)}
    # best: 3 · ½; the middle ones: ½ + .6 + ½ and ½ + .6 + ½; worst: ½ + .4 + .4
    assert ranks == {"best": 1, "middle": 0, "middle again": 0, "worst": 2}
    (result,) = run([one], by_first(lambda a, b, _: "empty" if {a, b} == {"best", "worst"} else 0.5)).judgements
    assert result.verdict == "unsure"


def test_several_principles_are_weighted_and_kept_apart():
    rules = made(principle("kind", weight=3.0), principle("brief"))
    ask = by_first(
        lambda a, b, text: (0.9 if "kind" in text else 0.1) if a == "a" else (0.1 if "kind" in text else 0.9)
    )
    judged = run([item("a", "b")], ask, JudgeConfig(principles=None), rules)
    result = {j.criterion: j for j in judged.judgements}
    assert set(result) == {"overall", "kind", "brief"}
    assert p_first(result["overall"]) == pytest.approx((3 * 0.9 + 0.1) / 4)
    assert p_first(result["kind"]) == pytest.approx(0.9) and p_first(result["brief"]) == pytest.approx(0.1)
    assert result["overall"].principle == "brief,kind"


def test_rubric_scores():
    assert expected_score(Reply(probabilities=(0, 0, 0.5, 0.5, 0))) == 3.5
    rules = made(principle("a"), principle("b", tags=["honest"]))

    def ask(questions, keep):
        for q in questions:
            text = q.messages[-1].content
            place = 4 if "good" in material(text)[-1] and "is a." in text else 0
            keep({q.key: Reply(probabilities=tuple(float(i == place) for i in range(5)))})

    config = JudgeConfig(mode="rubric", objectives=("helpful", "honest"))
    one = item("good", "bad")
    judged = run([one], ask, config, rules)
    result = {j.criterion: j for j in judged.judgements}
    assert p_first(result["helpful"]) == pytest.approx(1 / (1 + math.exp(-4)))
    assert result["honest"].ranks == (0, 0) and set(result) == {"overall", "helpful", "honest"}
    assert run_facts([one], judged).position_bias.value is None  # one by one: there is no order
    judged = run([one], ask, JudgeConfig(mode="rubric"), rules)
    assert {v.principle for v in judged.verdicts} == set(rules.tags) == {"helpful", "honest"}


def test_soft_labels_reach_the_preferences():
    one = item("a", "b")
    (result,) = run([one], by_first(lambda a, b, _: 0.8 if a == "a" else 0.4)).judgements
    (made_of,) = aggregate([one], [result], config=AggregateConfig()).preferences
    assert made_of.probability == pytest.approx(0.7) and made_of.ranks == (0, 1) and made_of.source == "ai"


def test_a_contradiction_is_a_tie_in_the_preference_and_keeps_its_probability():
    one = item("a", "b")
    (result,) = run([one], by_first(lambda a, b, _: 0.9 if a == "a" else 0.8)).judgements
    (made_of,) = aggregate([one], [result], config=AggregateConfig()).preferences
    assert made_of.ranks == (0, 0) and made_of.probability == pytest.approx(0.55)


def test_an_ensemble_speaks_for_the_judges_that_answered():
    """Judge a refuses the first item, both refuse the second, both answer the third."""
    items = [item(f"x {n}", f"y {n}") for n in range(3)]
    replies = {"a": ["refused", "refused", 0.9], "b": [0.8, "empty", 0.5]}

    def judgements(name):
        def p(a, b, _):
            result = replies[name][int(a[-1])]
            return result if isinstance(result, str) or a[0] == "x" else 1 - result

        return judge(items, RULES, by_first(p), JudgeConfig(), name=name, identity=name, journal={}).judgements

    first, third = ensemble(items, [*judgements("a"), *judgements("b")])
    assert (first.item, first.annotator, first.comment) == (items[0].id, "b", "")
    assert p_first(first) == pytest.approx(0.8) and first.verdict == "ranked"
    assert third.annotator == "a+b" and p_first(third) == pytest.approx(0.7)
    for result in (first, third):
        assert Judgement.model_validate(result.model_dump()) == result  # it reads back


@pytest.mark.parametrize(
    ("text", "reason", "found"),
    [
        ("A", False, ("A", "")),
        (" (B). ", False, ("B", "")),
        ("**B**", False, ("B", "")),
        ("Answer: A", False, ("A", "")),
        ("B\nBecause it is shorter than A.", False, ("B", "")),
        ("B\nA good answer is short, and A is not clearly so.", False, ("B", "")),
        ("A.\nNo wait, B is better", False, (None, "both")),
        ("A\nActually, it should be B.", False, (None, "both")),
        ("A\n\nOn reflection, answer B is much better than that.", False, (None, "both")),
        ("The better answer is B.", False, ("B", "")),
        ("B) because it is shorter", False, (None, "neither")),
        ("A) is wrong, B) is right", False, (None, "both")),
        ("I cannot decide whether answer A or B is better.", False, (None, "refused")),
        ("Neither answer A nor B", False, (None, "neither")),
        ("Answer: A\nAnswer: B", False, (None, "both")),
        ("A good question.", False, (None, "neither")),
        ("Either.", False, (None, "neither")),
        ("Answer A and answer B are alike.", False, (None, "both")),
        ("I'm sorry, I can't judge that.", False, (None, "refused")),
        ("  \n", False, (None, "empty")),
        ("Answer A is kind. Answer B is not.\nAnswer: A", True, ("A", "")),
        ("Answer: A\nNo, wait.\n**Answer:** B", True, ("B", "")),
        ("Both are fine.", True, (None, "neither")),
        ("Answer: A or B", True, (None, "both")),
        ("Answer: A/B", True, (None, "both")),
        ("Answer: A and B are equal", True, (None, "both")),
        ("Answer: A\nAnswer: A or B", True, (None, "both")),
        ("I cannot see a fault in A.\nAnswer: A", True, ("A", "")),
    ],
)
def test_reading_words(text: str, reason: bool, found):
    assert read_option(text, ("A", "B"), reason=reason) == found


NAMES_B = [
    *(r"\boxed{B}", r"$\boxed{\text{B}}$", r"The answer is \boxed{B}.", "So I pick\n\n\\boxed{ B }", "[[B]]", "[B]"),
    *("My final verdict is: [[B]]", "<answer>B</answer>", '{"winner": "B"}', "{'choice': 'B', 'why': 'it is short'}"),
    *("Verdict: B", "My choice: B", "I choose B.", "I prefer answer B", "Response B", "Winner: Answer B", "Answer → B"),
    *("The better response is B", "The better one is B.", "B is better.", "B is the better answer", "Answer: option B"),
    *('It says "winner": "A".\nVerdict: B', "Answer B is better.", "Response B is the better response"),
    *("Answer: B, because A is longer.", "Answer: B (confidence 0.8)", "Ｂ", "(b)", "“B”", "B<|im_end|>", "B</s>"),
    *(
        "<think>Answer: A. No: \\boxed{A}</think>\nB",
        "so A?</think>B",
        "<think>\nA\n</think>\n\n**B**",
        "### Answer\nB",
    ),
]
NAMES_NONE = [
    *(r"\boxed{A}\boxed{B}", r"\boxed{A or B}", "[[A]] or [[B]]", "[[C]]", "<think>B", "<think>A</think>", "Loser: B"),
    *(
        "{'loser': 'B'}",
        "Verdict: A, B",
        "I choose neither",
        "A or B is better.",
        "Answer: not A",
        "В",
        "Better than B",
    ),
    *("It says [[A]].\nB is better.", '{"winner": "A"}\nVerdict: B', r"It ends with \boxed{A}. I pick B."),
    *("Output B, as written, is wrong.", "Answer B, because it ignores the prompt, loses.", r"\boxed{A, B}"),
    *(
        "Response A:\nIt is rude.\n\nTherefore B wins.",
        "Verdict: A, since it is short; B is better.",
        '{"winner": "A,B"}',
    ),
    *('It says "winner": "B" and is wrong.', "A is better, B is best."),
    *("B is better at sums.", "Answer: A\n\\boxed{B}", "Verdict: B\nNo, wait: A"),
]


@pytest.mark.parametrize("reason", [False, True])
def test_the_ways_in_which_models_name_an_option(reason: bool):
    for text in NAMES_B:
        assert read_option(text, ("A", "B"), reason=reason) == ("B", ""), text
        if "better" in text and ":" not in text:  # "5 is the best" tells what the scale means
            continue
        score = re.sub(r"\bB\b", "4", re.sub(r"\bA\b", "it", text))
        assert "4" not in score or read_option(score, tuple("12345"), reason=reason) == ("4", ""), score
    for text in NAMES_NONE:
        named = read_option(text, ("A", "B"), reason=reason)[0]
        assert named is None or (reason and text in NAMES_NONE[-2:]), text  # its last line or its Answer: line counts


def test_reading_digits():
    assert read_option("4/5", tuple("12345")) == ("4", "")
    assert read_option("Score: 2", tuple("12345")) == ("2", "")
    assert read_option("4 or 5", tuple("12345"))[0] is None
    assert read_option("1. It does X.\n2. It does Y.\nScore: 4", tuple("12345")) == ("4", "")
    assert read_option("Score: 4.5", tuple("12345"))[0] is None
    assert read_option("B\nI prefer A's tone, but B is right.", ("A", "B")) == ("B", "")
    assert read_option("5 is the best.", tuple("12345"))[0] is None
    assert read_option(r"\boxed{4.5}", tuple("12345"))[0] is None
    assert read_option("Rating: [[4]]", tuple("12345")) == ("4", "")


# Against people -----------------------------------------------------------------------------


def human(one: Comparison, ranks, name: str = "w") -> Judgement:
    return Judgement(id=f"{one.id}{name}", item=one.id, annotator=name, source="human", shown_order=(0, 1), ranks=ranks)


def test_agreement_by_hand():
    items = [item(f"long answer {n}", f"b {n}", asked=f"q {n}") for n in range(10)]
    right = {i.id for i in items[:7]}
    rank = {i.id: (0, 1) if n % 2 else (1, 0) for n, i in enumerate(items)}
    ai = [human(i, rank[i.id] if i.id in right else rank[i.id][::-1], "ai") for i in items]
    result = against_people(items, ai, [human(i, rank[i.id]) for i in items])
    assert result.accuracy.value == result.agreement.value == 0.7 and result.pairs == 10
    low = result.accuracy.low
    assert result.longest.value == 0.5 and low is not None and 0.39 < low < 0.40  # Wilson 7 of 10: .397, .892
    assert result.confusion["first"] == {"first": 3, "tie": 0, "second": 1}
    assert result.kappa.value == pytest.approx((0.7 - 0.5) / 0.5)
    assert result.calibration is not None
    assert result.calibration["as said"].ece == pytest.approx(0.3)
    nobody = against_people(items, ai, [])
    assert nobody.accuracy.value is None and "no pair in common" in nobody.accuracy.reason


def test_kappa_of_one_outcome_is_undefined():
    assert cohen_kappa([("a", "a")] * 5) is None


# Principles ---------------------------------------------------------------------------------


def test_principles_firing_conflicts_and_removal():
    rules = made(principle("kind", weight=2.0), principle("brief"), principle("dull"))
    items = [item(f"a{n}", f"b{n}", asked=f"q {n}") for n in range(10)]
    votes = {(i.id, (0, 1)): 1.0 for i in items}

    def says(a, b, text):
        if "dull" in text:
            return 0.5
        p = 0.9 if "kind" in text else 0.2
        return p if a[0] == "a" else 1 - p

    judged = run(items, by_first(says), JudgeConfig(principles=None), rules)
    result = principle_report(items, judged.verdicts, votes)
    rows = result.principles
    assert rows["kind"].firing_rate.value == 1.0 and rows["dull"].firing_rate.value == 0.0
    assert rows["kind"].agreement.value == 1.0 and rows["brief"].agreement.value == 0.0
    assert rows["dull"].agreement.value is None
    assert rows["kind"].removed == {"same": 0, "changed": 10, "unknown": 0}  # brief and dull: (.2 + .5) / 2 < ½
    assert rows["brief"].removed == {"same": 10, "changed": 0, "unknown": 0}
    (conflict,) = result.conflicts
    assert conflict.principles == ("brief", "kind") and conflict.rate.value == 1.0
    less = run(items, by_first(says), JudgeConfig(principles=None), rules.without("kind"))
    assert changed_labels(judged.verdicts, less.verdicts) == {"same": 0, "changed": 10, "lost": 0, "new": 0}
