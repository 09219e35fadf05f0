"""Penalties that a recipe can name, by hand."""

import pytest

from trimtab.errors import ScoringError
from trimtab.evals.penalties import certainty, confident_error, length, repetition
from trimtab.records import Prompt, Rollout
from trimtab.rollout import FunctionReward, NamedRewards


def answer(text: str, reference: str | None = "4") -> Rollout:
    prompt = Prompt.from_text("What is 2 + 2?").model_copy(update={"metadata": {"reference": reference}})
    return Rollout(
        id="0", prompt=prompt, prompt_tokens=[1], tokens=[1] * len(text.split()), logprobs=[], text=text,
        finish_reason="stop", weight_version=0,
    )  # fmt: skip


def test_each_penalty_by_hand():
    plain, doubled = answer("It is 4."), answer("so it is four so it is four")
    assert length([plain, doubled]) == [3.0, 8.0]
    assert repetition([plain, doubled]) == [0.0, pytest.approx(1 / 5)]  # of its five 4-grams the last repeats the first
    assert certainty([plain, answer("It is guaranteed.")]) == [0.0, 1.0]


def test_only_certain_and_wrong_is_a_confident_error():
    sure = "I am certain it is "
    answers = [answer(f"{sure}5."), answer(f"{sure}4."), answer("It may be 5."), answer(f"{sure}hot.")]
    assert confident_error(answers) == [1.0, 0.0, 0.0, 1.0]
    with pytest.raises(ScoringError, match="has no reference number"):
        confident_error([answer("It is 4.", reference=None)])


def test_floor_and_cap_bend_a_penalty():
    """(tokens − 2)/2, not below 0 and not above 1.5."""
    source = FunctionReward(path="trimtab.evals.penalties.length", mean=2.0, std=2.0, floor=0.0, cap=1.5, weight=-1.0)
    scored = NamedRewards({"length": source}, {"length": length})(
        [answer("a"), answer("a b c"), answer("a b c d e f g h")]
    )
    assert scored == {"length": [0.0, 0.5, 1.5]}
    with pytest.raises(ValueError, match="floor is 1 and cap 1: nothing lies between them"):
        FunctionReward(path="a.b", floor=1.0, cap=1.0)
