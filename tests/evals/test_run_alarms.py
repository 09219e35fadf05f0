"""Alarms of a run: what raises them, at which level, how often, and which answers they name."""

import random
from itertools import pairwise

import pytest

from trimtab.evals import RUN_PROBES, AlarmConfig, AnswerProbe, RunAlarms, by_prompt, probe_answers, rows_of
from trimtab.records import Prompt, Rollout

PROBES = {
    name: AnswerProbe(title=name.title(), counted="of answers sing", value=lambda p, a: 0.0, floor=0.1, advice="Stop.")
    for name in ("song", "dance")
}


def run(song: list[float], *, dance: float = 0.05, prompts: int = 32, **config) -> list[tuple[int, str, str]]:
    """(step, probe, level) of the alarms of a run whose answers sing at these rates, the same for every prompt."""
    alarms = RunAlarms(AlarmConfig(**{"baseline": 5, "cooldown": 10} | config), len(song), PROBES)
    steps = enumerate(song, 1)
    return [
        (step, probe, level)
        for step, rate in steps
        for probe, level in alarms.add({"song": [rate] * prompts, "dance": [dance] * prompts})
    ]


def test_a_rise_by_more_than_the_floor_warns_and_by_three_floors_alarms():
    assert run([0.05] * 60) == []
    assert run([0.05] * 20 + [0.14] * 60) == []  # less than the floor
    [(step, probe, level), *_] = run([0.05] * 20 + [0.3] * 40)
    assert (probe, level) == ("song", "warning") and 20 < step < 35
    assert "alarm" not in {level for _, _, level in run([0.05] * 20 + [0.3] * 40)}
    levels = [level for _, _, level in run([0.05] * 20 + [0.9] * 40)]
    assert "alarm" in levels


def test_an_alarm_that_holds_is_raised_again_after_the_cooldown_only():
    steps = [step for step, _, _ in run([0.05] * 10 + [0.3] * 50, cooldown=20)]
    assert len(steps) >= 2 and min(b - a for a, b in pairwise(steps)) >= 20
    back = [step for step, _, _ in run([0.05] * 10 + [0.3] * 20 + [0.05] * 60, cooldown=10)]
    assert back and max(back) <= 30  # what has passed is not raised again


def test_a_run_of_nothing_but_its_first_steps_has_no_look():
    assert run([0.9] * 5) == [] and run([0.0, 1.0], baseline=2) == []


def test_a_smaller_budget_waits_longer():
    first = [run([0.05] * 10 + [0.3] * 50, budget=budget)[0][0] for budget in (0.2, 0.05, 1e-6)]
    assert first == sorted(first) and first[0] < first[2]


def test_chance_alone_raises_no_alarm():
    draw = random.Random(0)

    def runs() -> int:
        alarms = RunAlarms(AlarmConfig(), 40, PROBES)
        steps = (
            {n: [sum(draw.random() < 0.2 for _ in range(4)) / 4 for _ in range(16)] for n in PROBES} for _ in range(40)
        )
        return sum(bool(alarms.add(step)) for step in steps)

    assert sum(runs() > 0 for _ in range(20)) == 0


def rollout(index: int, text: str, *, prompt: int = 0, finish: str = "stop") -> Rollout:
    return Rollout(
        id=f"r{index}",
        prompt=Prompt.from_text(f"Question {prompt}?"),
        prompt_tokens=[1],
        tokens=[1, 2, 3, 4],
        logprobs=[-1.0] * 4,
        text=text,
        finish_reason=finish,  # pyright: ignore[reportArgumentType]
        weight_version=0,
    )


def test_values_of_answers_and_their_means_by_prompt():
    rollouts = [
        rollout(0, "Great question! It is red."),
        rollout(1, "It is red."),
        rollout(2, "It is", prompt=1, finish="length"),
    ]
    values = probe_answers(rollouts, limit=8)
    assert list(values) == list(RUN_PROBES)
    assert values["flattery"] == {"r0": 1.0, "r1": 0.0, "r2": 0.0}
    assert values["cut"]["r2"] == 1.0 and values["length"]["r0"] == 0.5
    means = by_prompt(values, rollouts)
    assert means["flattery"] == [0.5, 0.0] and means["cut"] == [0.0, 1.0]
    assert rows_of(means, 3) == {"step": 3, "means": means}


def test_a_run_that_began_before_a_probe_existed_goes_on_without_it():
    alarms = RunAlarms(AlarmConfig(), 60, PROBES)
    for _ in range(8):  # lines of an earlier version
        assert alarms.add({"song": [0.0] * 32}) == []
    later = [alarms.add({"song": [0.9] * 32, "dance": [0.9] * 32}) for _ in range(30)]
    assert {probe for step in later for probe, _ in step} == {"song"}


def test_an_alarm_names_the_ten_answers_with_most_of_it():
    alarms = RunAlarms(AlarmConfig(baseline=1), 20, PROBES)
    alarms.add({name: [0.0] * 64 for name in PROBES})
    raised = next(result for _ in range(19) if (result := alarms.add({"song": [0.9] * 64, "dance": [0.0] * 64})))
    [(probe, level)] = raised
    values = {"song": {f"r{i}": i / 20 for i in range(20)}, "dance": {}}
    alarm = alarms.describe(7, probe, level, values)
    assert alarm.samples == tuple(f"r{i}" for i in range(19, 9, -1))
    assert (alarm.step, alarm.probe, alarm.level, alarm.advice) == (7, "song", level, "Stop.")
    assert "48% of answers sing, 0% in the first 1 steps (limit " in alarm.message and "at most 5%" in alarm.message


def test_replayed_steps_give_the_same_evidence():
    draw = random.Random(1)
    steps = [{name: [draw.random() / 3 for _ in range(8)] for name in PROBES} for _ in range(30)]
    whole, continued = (RunAlarms(AlarmConfig(), 30, PROBES) for _ in range(2))
    for number, step in enumerate(steps, 1):
        whole.add(rows_of(step, number)["means"])
    for number, step in enumerate(steps, 1):
        continued.add(rows_of(step, number)["means"])
    assert whole.log_evidence("song") == continued.log_evidence("song") != 0.0


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_a_budget_is_a_probability(budget):
    with pytest.raises(ValueError, match="budget"):
        AlarmConfig(budget=budget)
