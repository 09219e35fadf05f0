"""The paired test behind alarms, against enumeration, McNemar's exact test, and its rate of false alarms."""

import random
from dataclasses import replace
from itertools import product
from math import comb

import pytest

from trimtab import evals
from trimtab.errors import DataError
from trimtab.evals import Alarm, Evaluation, answer_p_values, probe_table
from trimtab.evals.chance import ANSWER_VALUES, SIGNIFICANT, paired_p_value
from trimtab.records import Message, Prompt, Rollout


def enumerated(differences: list[float]) -> float:
    """Share of all assignments of signs whose sum is at least as far from 0."""
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=10)]
    return sum(total >= abs(sum(differences)) - 1e-9 for total in sums) / len(sums)


def mcnemar(fewer: int, more: int) -> float:
    """Exact two-sided p-value from the pairs that changed."""
    n = fewer + more
    return min(1.0, 2 * sum(comb(n, k) for k in range(max(fewer, more), n + 1)) / 2**n)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_against_all_assignments_of_signs(shift):
    draw = random.Random(3)
    before = [draw.gauss(0, 1) for _ in range(10)]
    after = [x + draw.gauss(shift, 1) for x in before]
    expected = enumerated([b - a for a, b in zip(before, after, strict=True)])
    # 4 standard errors of 1,000 draws, and 1 of 1,001 for the constant that keeps p above 0
    tolerance = 4 * (expected * (1 - expected) / 1000) ** 0.5 + 0.001
    assert paired_p_value(before, after) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(("fewer", "more"), [(4, 2), (5, 0), (6, 0), (9, 1)])
def test_shares_are_tested_as_by_mcnemar(fewer, more):
    before, after = [1.0] * fewer + [0.0] * more + [1.0] * 5, [0.0] * fewer + [1.0] * more + [1.0] * 5
    expected = mcnemar(fewer, more)
    tolerance = 4 * (expected * (1 - expected) / 1000) ** 0.5 + 0.001
    assert paired_p_value(before, after) == pytest.approx(expected, abs=tolerance)


def test_pairs_belong_together():
    with pytest.raises(DataError, match="got 2 and 1"):
        paired_p_value([1.0, 0.0], [1.0])


def rollouts(ended: list[bool]) -> list[Rollout]:
    return [
        Rollout(
            id=f"q{i}",
            prompt=Prompt.of([Message(role="user", content=f"Where is harbour {i}?")]),
            prompt_tokens=[1],
            tokens=[2],
            logprobs=[-1.0],
            text=f"It is in town {i}.",
            finish_reason="stop" if end else "length",
            weight_version=0,
        )
        for i, end in enumerate(ended)
    ]


def fired(before: list[bool], after: list[bool]) -> tuple[Alarm, ...]:
    """Alarms about two models' answers, of which ``True`` ended."""
    answers = {"sft": rollouts(before), "policy": rollouts(after)}
    probes = {name: probe_table([r.completion for r in some]) for name, some in answers.items()}
    p_values = answer_p_values(answers["sft"], *answers.values())
    alarms = evals.alarms(Evaluation(models=tuple(answers), probes=probes, p_values=p_values))
    assert alarms is not None
    return alarms


def test_noise_on_twelve_answers_raises_no_alarm_and_a_loss_does():
    assert fired([True] * 6 + [False] * 6, [True] * 2 + [False] * 8 + [True] * 2) == ()  # 50 % to 33 %
    (alarm,) = fired([True] * 10 + [False] * 2, [True] * 2 + [False] * 10)
    assert alarm.name == "endings"
    (alarm,) = fired([True] * 128 + [False] * 128, [True] * 85 + [False] * 171)  # 50 % to 33 % of 256 answers
    assert alarm.name == "endings"


def test_two_equal_models_are_seldom_called_different():
    draw = random.Random(7)
    runs = 200
    false = 0
    for _ in range(runs):
        before, after = ([float(draw.random() < 0.5) for _ in range(12)] for _ in range(2))
        false += paired_p_value(before, after) <= SIGNIFICANT
    assert false / runs <= SIGNIFICANT


def test_every_value_is_the_one_that_the_probe_averages():
    question = "I think the harbour of Elm is deep. Is the harbour of Elm deep enough for a ferry?"
    texts = [
        "Great question! As an AI language model, I cannot see it.",
        "Great question! As an AI language model, I see. You are right, it is deep.",
        "Great question! You are right, it is deep.",
        "Great question! " + "It is very deep. " * 6,
        "Is the harbour of Elm deep enough for a ferry?",
        "You are right, it is.",
    ]
    prompt = Prompt.of([Message(role="user", content=question)])
    some = [replace(r, prompt=prompt, text=text) for r, text in zip(rollouts([True] * 5 + [False]), texts, strict=True)]
    table = probe_table([r.completion for r in some], [1] * 6, [r.prompt for r in some])
    means = {name: sum(map(value, some)) / 6 for name, value in ANSWER_VALUES.items()}
    assert means == pytest.approx({name: table[name] for name in ANSWER_VALUES})
    assert min(means.values()) > 0 and len(set(means.values())) == len(means), means
