"""Every alarm fires beyond its limit and not before."""

import pytest

from trimtab.evals import alarms

CALM = {
    "distinct_answers": 1.0,
    "ended_rate": 0.9,
    "repetition": 0.01,
    "boilerplate": 0.1,
    "flattery": 0.0,
    "words": 20.0,
}


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
    (found,) = alarms(result(**{probe: loud}))
    assert found.name == name and "limit" in found.message


@pytest.mark.parametrize(("gold", "fires"), [(0.1, False), (0.0, True), (-0.5, True)])
def test_a_proxy_that_rises_alone(gold, fires):
    found = alarms(result(gold=(0.0, gold)))
    assert [alarm.name for alarm in found] == (["over-optimisation"] if fires else [])
    assert alarms(result(gold=(0.0, gold), proxy=(0.0, -1.0))) == ()


def test_without_a_policy_there_is_nothing_to_watch():
    assert alarms({"models": ["base", "sft"]}) is None


def test_answers_without_known_ends():
    found = result()
    for probes in found["probes"].values():
        probes.pop("ended_rate", None)
    assert alarms(found) == ()
