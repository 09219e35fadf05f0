"""Every alarm fires beyond its limit and not before."""

from typing import Any

import pytest

from trimtab import evals
from trimtab.evals import Alarm, Evaluation
from trimtab.evals.alarms import LIKELIHOOD_DROP

CALM = {
    "distinct_answers": 1.0,
    "ended_rate": 0.9,
    "repetition": 0.01,
    "boilerplate": 0.1,
    "flattery": 0.0,
    "words": 20.0,
}


def alarms(values: dict[str, Any], **words: dict[str, str]) -> tuple[Alarm, ...] | None:
    return evals.alarms(Evaluation.model_validate(values), **words)


def result(*, gold: tuple[float, float] = (0.0, 1.0), proxy: tuple[float, float] = (0.0, 1.0), **after: float) -> dict:
    return {
        "models": ["base", "sft", "policy"],
        "judges": ["gold", "proxy"],
        "probes": {"base": {}, "sft": CALM, "policy": CALM | after},
        "means": {"sft": {"gold": gold[0], "proxy": proxy[0]}, "policy": {"gold": gold[1], "proxy": proxy[1]}},
    }


@pytest.mark.parametrize(
    ("name", "probe", "quiet", "loud"),
    [
        ("collapse", "distinct_answers", 0.9, 0.89),
        ("endings", "ended_rate", 0.81, 0.79),
        ("repetition", "repetition", 0.059, 0.061),
        ("stock phrases", "boilerplate", 0.29, 0.31),
        ("flattery", "flattery", 0.2, 0.21),
        ("length", "words", 30.0, 31.0),
    ],
)
def test_at_its_limit(name, probe, quiet, loud):
    assert alarms(result(**{probe: quiet})) == ()
    (outcome,) = alarms(result(**{probe: loud}))
    assert outcome.name == name and "limit" in outcome.message


@pytest.mark.parametrize(("gold", "fires"), [(0.1, False), (0.0, True), (-0.5, True)])
def test_a_proxy_that_rises_alone(gold, fires):
    outcome = alarms(result(gold=(0.0, gold)))
    assert [alarm.name for alarm in outcome] == (["over-optimisation"] if fires else [])
    assert alarms(result(gold=(0.0, gold), proxy=(0.0, -1.0))) == ()


@pytest.mark.parametrize(
    ("name", "probe", "value"),
    [
        ("endings", "ended_rate", 0.7),
        ("repetition", "repetition", 0.1),
        ("stock phrases", "boilerplate", 0.5),
        ("length", "words", 40.0),
    ],
)
def test_a_change_that_may_be_chance(name, probe, value):
    beyond = result(**{probe: value})
    assert alarms(beyond | {"p_values": {probe: 0.06}}) == ()
    assert [alarm.name for alarm in alarms(beyond | {"p_values": {probe: 0.05}})] == [name]


def test_a_proxy_that_rose_by_chance():
    lost_gold = result(gold=(0.0, -1.0))
    assert alarms(lost_gold | {"p_values": {"proxy": 0.06}}) == ()
    assert [alarm.name for alarm in alarms(lost_gold | {"p_values": {"proxy": 0.05}})] == ["over-optimisation"]


def test_a_rise_of_nothing_is_no_over_optimisation():
    lost_gold = result(gold=(0.0, -1.0), proxy=(0.0, 0.19))
    spreads = {"spreads": {"sft": {"proxy": 2.0}}}
    assert alarms(lost_gold | spreads) == ()
    (outcome,) = alarms(result(gold=(0.0, -1.0), proxy=(0.0, 0.21)) | spreads)
    assert outcome.name == "over-optimisation" and "standard deviations, 0.2)" in outcome.message


def test_one_model_alone_cannot_be_worse():
    assert alarms({"models": ["base"]}) is None


def lost(model: str, against: str, high: float, judge: str = "gold", worst: tuple[str, ...] = ()) -> dict:
    row = {"model": model, "against": against, "judge": judge, "rate": high - 0.1, "low": high - 0.2, "high": high}
    return row | {"n": 96, "wins": 30, "ties": 0, "losses": 66, "worst": worst}


@pytest.mark.parametrize(
    ("model", "against", "name"),
    [
        ("sft", "base", "SFT lost to the pretrained model"),
        ("policy", "base", "PPO lost to the pretrained model"),
        ("policy", "sft", "PPO lost to SFT"),
        ("best_of", "sft", None),
    ],
)
def test_a_model_that_lost_says_so(model, against, name):
    names = {"base": "the pretrained model", "sft": "SFT", "policy": "PPO"}
    assert alarms(result() | {"win_rates": [lost(model, against, 0.5)]}, names=names) == ()
    rows = [lost(model, against, 0.49, "gold", ("p1", "p2")), lost(model, against, 0.4, "proxy", ("p2", "p3"))]
    outcome = alarms(result() | {"win_rates": rows}, names=names, judges={"gold": "the gold utility"})
    assert [alarm.name for alarm in outcome] == ([name] if name else [])
    for alarm in outcome:
        assert alarm.samples == ("p1", "p2", "p3")
        assert "39% [29%, 49%] of 96 prompts, judged by the gold utility; 30% [20%, 40%]" in alarm.message
        assert "judged by proxy (limit: an interval that reaches 50 %)" in alarm.message


def test_a_run_with_sft_alone_is_watched_too():
    alone = {"models": ["base", "sft"], "probes": {"base": {}, "sft": {}}, "win_rates": [lost("sft", "base", 0.3)]}
    assert [alarm.name for alarm in alarms(alone)] == ["sft lost to base"]
    assert alarms(alone | {"win_rates": []}) == ()


def test_answers_that_the_pretrained_model_would_not_give():
    likely = {"base": -1.0, "sft": -1.0 - LIKELIHOOD_DROP, "policy": -2.5}
    (alarm,) = alarms(result() | {"likelihood": likely}, names={"policy": "PPO"})
    assert alarm.name == "PPO left the pretrained model’s language"
    assert "less likely under the pretrained model by 1.5 nats a token (limit 1.0)" in alarm.message
    assert alarms(result() | {"likelihood": None}) == ()


def test_copies_of_the_prompt():
    calm = result()
    for model, share in (("base", 0.02), ("sft", 0.12), ("policy", 0.13)):
        calm["probes"][model] = calm["probes"][model] | {"copied": share}
    (alarm,) = alarms(calm | {"copied": {"policy": ["p4", "p9"]}})
    assert (alarm.name, alarm.samples) == ("policy copies the prompt", ("p4", "p9"))
    assert "13% of answers copy their prompt or one of its sentences, 2% of those of base do" in alarm.message
    assert alarms(calm | {"p_values": {"copied": 0.06}}) == ()
    calm["probes"]["policy"] = calm["probes"]["policy"] | {"copied": 0.05}
    calm["probes"]["sft"] = calm["probes"]["sft"] | {"copied": 0.5}
    assert alarms(calm) == ()  # alignment undid what SFT did


def test_answers_without_known_ends():
    outcome = result()
    for probes in outcome["probes"].values():
        probes.pop("ended_rate", None)
    assert alarms(outcome) == ()
