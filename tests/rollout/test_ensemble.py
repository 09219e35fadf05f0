"""Several reward models as one scorer."""

from typing import Any

import pytest

from trimtab.records import Prompt, Rollout
from trimtab.rollout import EnsembleConfig, RewardModels


def answers(*texts: str) -> list[Rollout]:
    return [
        Rollout(
            id=str(i), prompt=Prompt.from_text("?"), prompt_tokens=[1], tokens=[1], logprobs=[], text=text,
            finish_reason="stop", weight_version=0,
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip


class Counting:
    """A model whose score is a number times the length of the text, and that counts its calls."""

    def __init__(self, factor: float) -> None:
        self.factor, self.calls = factor, 0

    def __call__(self, rollouts: Any) -> list[float]:
        self.calls += 1
        return [self.factor * len(r.text) for r in rollouts]


def test_the_lowest_score_is_trained_on_and_the_spread_is_watched():
    members, judge = {"a": Counting(1.0), "b": Counting(3.0)}, Counting(-1.0)
    models = RewardModels(members, heldout=judge, config=EnsembleConfig(score="worst"), mean=0.5, std=2.0)
    texts = answers("xx", "x")
    assert models.reward(texts) == [0.75, 0.25]  # (2 − .5)/2 and (1 − .5)/2
    watched = models.watched(texts)
    assert watched["heldout"] == [-2.0, -1.0]
    assert watched["spread"] == pytest.approx([(32 / 3) ** 0.5, (8 / 3) ** 0.5])  # of 2, 6, −2 and of 1, 3, −1
    assert [m.calls for m in (*members.values(), judge)] == [1, 1, 1]  # nothing is scored twice
    assert models.reward([]) == [] and models.watched([]) == {"heldout": []}


def test_one_model_is_passed_through():
    models = RewardModels({"reward": Counting(0.1)})
    texts = answers("xxx")
    assert models.reward(texts) == pytest.approx([0.3]) and models.watched(texts) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 1}, "an ensemble of one member is a single reward model; set members to 2 or more, words: true"),
        ({"members": 1, "words": True, "halves": True}, "halves needs members of 2 or more"),
        ({"penalty": 2.0}, "penalty is 2 and score 'worst'; set score: penalised"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        EnsembleConfig(**settings)


def test_a_bag_of_words_beside_one_model_is_an_ensemble():
    assert EnsembleConfig(members=1, words=True).members == 1
