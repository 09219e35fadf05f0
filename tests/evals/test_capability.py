"""The capability check's arithmetic, against values made by hand."""

import json
import math

import pytest

from trimtab.errors import DataError
from trimtab.evals import (
    BUILT_IN,
    Capability,
    OpenAnswer,
    capability_lines,
    capability_report,
    is_complete,
    is_on_topic,
    load_capability,
)
from trimtab.evals.capability import change, exceeds, summary
from trimtab.feedback import Estimate

CHOICE = {"question": "What is 1 + 1?", "right": "2.", "wrong": "3."}


def model(
    *, right: int = 80, margin: float = 2.0, text: float = 3.0, sensible: int = 20, demonstrations: float | None = 2.0
) -> Capability:
    """100 questions, ``right`` of them answered rightly with mean margin ``margin``; 20 passages; 20 open questions."""
    wrong = 100 - right
    above = (100 * margin + wrong) / right
    held = {} if demonstrations is None else {f"d{i}": demonstrations + 0.01 * (i % 3) for i in range(20)}
    return Capability(
        margins={f"q{i}": above if i < right else -1.0 for i in range(100)},
        texts={f"t{i}": text + 0.01 * (i % 3) for i in range(20)},
        demonstrations=held,
        answers={f"o{i}": OpenAnswer(text="", on_topic=i < sensible, complete=True) for i in range(20)},
        reasons={} if held else {"demonstrations": "no demonstrations were held out of SFT"},
    )


def test_the_built_in_set_is_what_it_says():
    rows = load_capability(None)
    assert (len(rows.choices), len(rows.open), len(rows.texts)) == (136, 24, 16)
    assert BUILT_IN.read_text().isascii()
    for _, right, wrong in rows.choices:
        assert abs(len(right.split()) - len(wrong.split())) <= 2 and abs(len(right) - len(wrong)) <= 12
    for question, keywords in rows.open:
        assert not all(is_on_topic("I do not know what to say.", [word]) for word in keywords), question


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the capability set is empty; expected rows"),
        ("\n  \n", "the capability set is empty"),
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: a JSON object is expected, got list"),
        ("{}", r"line 1: has the keys \(none\)"),
        ('{"question": "a", "right": "b"}', "line 1: has the keys question, right"),
        ('{"question": "a", "right": "b", "wrong": "c", "topic": "d"}', "line 1: has the keys question, right, wrong"),
        ('{"question": "a", "right": 2, "wrong": "c"}', "line 1: right is 2, expected text that is not empty"),
        ('{"question": " ", "right": "b", "wrong": "c"}', 'line 1: question is " ", expected text'),
        ('{"question": "a", "right": "b ", "wrong": "b"}', "line 1: right and wrong are the same"),
        ('{"question": "a", "keywords": "tea"}', 'line 1: keywords is "tea", expected a list of words'),
        ('{"question": "a", "keywords": []}', r"line 1: keywords is \[\], expected a list of words"),
        ('{"question": "a", "keywords": ["tea", ""]}', "line 1: keywords is .* expected text that is not empty"),
        ('{"text": "Salt."}', "line 1: text has fewer than two words"),
        (f"{json.dumps(CHOICE)}\n\n{json.dumps(CHOICE)}", "line 3: repeats line 1"),
        ("1\n" * 7, "7 rows of the capability set are malformed(.|\n)*line 5.*\n  and 2 more"),
    ],
)
def test_a_malformed_set_is_refused(tmp_path, text, message):
    path = tmp_path / "set.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_capability(path)


def test_a_set_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"\(No such file.*correct capability.file, or set capability: null"):
        load_capability(tmp_path / "nowhere.jsonl")
    (tmp_path / "latin").write_bytes('{"text": "Käse und Brot"}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load_capability(tmp_path / "latin")


def test_a_set_may_have_rows_of_one_kind(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(CHOICE) + "\n" + json.dumps({"question": CHOICE["question"], "keywords": ["2"]}))
    rows = load_capability(path)
    assert rows.choices == (("What is 1 + 1?", "2.", "3."),) and rows.open == (("What is 1 + 1?", ("2",)),)
    assert rows.texts == ()


def test_what_counts_as_an_answer():
    assert is_on_topic("Use Soapy water.", ["soap"]) and not is_on_topic("Resoap it.", ["soap"])
    assert is_complete("Wash them with soap. Then") and not is_complete("Wash them with soap, then")
    assert not is_complete("") and not is_complete("Yes. No.")
    assert not is_complete("It is a good day for it. " * 5)


def test_summaries_and_changes_by_hand():
    before, after = model(), model(right=70, margin=1.5, text=3.1, sensible=15)
    assert summary("right", before) == pytest.approx(0.8)
    assert summary("margins", before) == pytest.approx(2.0)
    assert summary("texts", before) == pytest.approx(math.exp(3 + 0.01 * 19 / 20))
    assert summary("answers", after) == pytest.approx(0.75)
    assert change("right", before, after).value == pytest.approx(-0.1)
    assert change("margins", before, after).value == pytest.approx(-0.25)
    rise = change("texts", before, after)  # every passage rises by 0.1 nats: no spread at all
    assert (rise.value, rise.low, rise.high) == pytest.approx((math.expm1(0.1),) * 3)


def test_only_what_both_were_measured_on_is_compared():
    before, after = model(), model(text=3.5)
    few = after.model_copy(update={"texts": {"t0": 3.5, "other": 9.0}})
    alone = change("texts", before, few)
    assert (alone.value, alone.low, alone.n) == (pytest.approx(math.expm1(0.5)), None, 1)
    assert alone.reason == "one item gives no interval"
    assert not exceeds("texts", change("texts", before, few))
    none = change("demonstrations", model(demonstrations=None), model(demonstrations=None))
    assert none.value is None and "no demonstrations were held out" in none.reason


@pytest.mark.parametrize(
    ("measure", "quiet", "loud"),
    [
        ("right", {"right": 75}, {"right": 74}),
        ("margins", {"margin": 1.71}, {"margin": 1.69}),
        ("answers", {"sensible": 17}, {"sensible": 14}),
        ("texts", {"text": 3.0 + math.log(1.24)}, {"text": 3.0 + math.log(1.26)}),
        ("demonstrations", {"demonstrations": 2.0 + math.log(1.49)}, {"demonstrations": 2.0 + math.log(1.51)}),
    ],
)
def test_alarms_at_their_limits(measure, quiet, loud):
    before = model()
    assert not exceeds(measure, change(measure, before, model(**quiet)))
    assert exceeds(measure, change(measure, before, model(**loud)))
    _, (alarm, *more) = capability_report({"Base": before, "SFT": model(**loud)})
    assert not more and "SFT is worse than Base" in alarm.message and "(limit " in alarm.message
    lines = capability_lines(before, model(**loud), names=("Base", "SFT"))
    assert lines[-1] == f"ALARM: {alarm.message}" and lines[0].startswith("capability: right answers 80 %")


def test_a_change_that_may_be_chance_is_no_alarm():
    assert not exceeds("right", Estimate(value=-0.2, low=-0.4, high=0.01, n=5))
    assert not exceeds("texts", Estimate(value=0.5, low=-0.01, high=1.0, n=5))


def test_losses_that_add_up_over_stages():
    models = {"Base": model(), "SFT": model(margin=1.75), "PPO": model(margin=1.55)}
    report, (alarm,) = capability_report(models)
    row = next(r for r in report.rows if "log-odds" in r.name)
    assert row.fired == ("Base to PPO",) and row.values == pytest.approx((2.0, 1.75, 1.55))
    assert "PPO is worse than Base" in alarm.message
    assert [r.fired for r in report.rows if r is not row] == [()] * 4


def test_a_model_that_knows_nothing_cannot_lose_anything():
    report, result = capability_report({"Base": model(right=50, margin=-0.1), "SFT": model(right=48, margin=-0.2)})
    reasons = {r.name: r.reason for r in report.rows}
    assert "Base is no better than guessing" in reasons["right answers"]
    assert "nothing to lose" in reasons["log-odds of right answers"] and result == ()
