"""Live tuning: what it says it has learned, and rounds that its process makes."""

import json
from random import Random

import pytest

from tests.pipeline.small_rounds import ADAPTER, go, small_recipe
from trimtab.errors import ConfigError
from trimtab.evals import anytime_interval
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.rounds import next_round
from trimtab.pipeline.tune_learning import Predicted, check_tunable, learned, predictions, tuned_rounds
from trimtab.pipeline.tuning import new_choices, train, work_left
from trimtab.records import Completion, Prompt
from trimtab.storage.chat import Ballot, ChatVotes, Shown
from trimtab.storage.database import Database
from trimtab.storage.labels import LabelStore
from trimtab.testing import sentences


def predicted(newest: list[float], start: list[float]) -> Predicted:
    return Predicted(policy="p", newest=tuple(newest), start=tuple(start), examples=())


def test_verdicts():
    first = predicted([1.0] * 24, [1.0] * 24)
    assert learned([]).verdict == learned([first]).verdict == "waiting", (
        "the first choices were predicted by no learner"
    )
    right, half = [1.0] * 24, [1.0, 0.0] * 12
    assert learned([first, predicted(half, half)]).verdict == "not_learned"
    assert learned([first, predicted(right, right)]).verdict == "no_better", "the model from before predicts as well"
    good = learned([first, predicted(right, half)])
    assert good.verdict == "learned" and good.choices == 24
    assert good.accuracy is not None and good.accuracy[0] == 1.0 and good.accuracy[1] > 0.5
    assert good.gain is not None and good.gain[0] == 0.5 and good.gain[1] > 0


def test_an_interval_that_may_be_looked_at_after_every_value():
    """Values of fair and unfair coins; the interval must hold at all times together in 95 % of the sequences."""
    draw, missed, decided = Random(0), 0, 0
    for _ in range(60):
        fair = [float(draw.random() < 0.5) for _ in range(96)]
        missed += any(not low <= 0.5 <= high for n in (12, 24, 48, 96) for low, high in [anytime_interval(fair[:n])])
        decided += anytime_interval([float(draw.random() < 0.9) for _ in range(24)])[0] > 0.5
    assert missed <= 5 and decided >= 45
    low, high = anytime_interval([1.0, 0.5, 0.0, 1.0])
    assert (1 - high, 1 - low) == pytest.approx(anytime_interval([0.0, 0.5, 1.0, 0.0]), abs=1e-6)


def choose(store: LabelStore, count: int, seed: int) -> None:
    """Choices of a simulated person who takes the answer with more letters e."""
    votes, draw, texts = ChatVotes(store, round_name="r", cap=10**6, source="simulated"), Random(seed), sentences(400)
    person = votes.visitor(votes.consent("v"), "v")
    assert person is not None
    for number in range(count):
        answers = draw.sample(texts, 2)
        shown = Shown(
            prompt=Prompt.from_text(draw.choice(texts)), order=(0, 1), details={},
            completions=tuple(Completion(text=text, model=name) for text, name in zip(answers, "xy", strict=True)),
        )  # fmt: skip
        left, right = (text.count("e") for text in answers)
        choice = "left" if left > right else "right" if right > left else "tie"
        token = votes.expose(person, "v", shown)
        assert token is not None
        votes.vote(person, "v", Ballot(token=token, key=f"key-{seed}-{number:05}", choice=choice))


DPO = {"method": "dpo", "adapter": ADAPTER, "epochs": 1, "batch": 8}


@pytest.mark.parametrize("sections", [{"reward": None, "align": DPO}], ids=["dpo"])
def test_rounds_of_choices_are_predicted_before_they_train(tmp_path, sections):
    run, _ = go(small_recipe(tmp_path / "run", sft=None, evaluate=None, **sections))
    store = LabelStore(Database(f"sqlite:///{tmp_path}/labels.db"))
    try:
        choose(store, 12, seed=1)
        new = new_choices(run, store)
        assert 0 < new <= 12 and not work_left(run)
        train(run.path, tmp_path)
        assert new_choices(run, store) == 0, "a round has taken them"
        choose(store, 12, seed=2)
        later = new_choices(run, store)
        assert train(run.path, tmp_path).number == 3
        first, second = (predictions(round) for round in tuned_rounds(run))
        assert first is not None and len(first.newest) == new and first.newest == first.start
        assert second is not None and len(second.newest) == later
        assert {x for x in (*second.newest, *second.start)} <= {0.0, 0.5, 1.0}
        assert len(second.examples) == 3 and all(prompt for prompt, _, _ in second.examples)
        assert learned([first, second]).choices == later

        (run.round(3).path / "predicted.json").unlink()  # killed between the round and its predictions
        assert work_left(run) and train(run.path, tmp_path).number == 3
        assert predictions(run.round(3)) == second and not work_left(run)
    finally:
        store.database.close()


@pytest.mark.slow
def test_a_round_after_tuning_is_evaluated_again(tmp_path):
    run, _ = go(small_recipe(tmp_path / "run", sft=None))
    store = LabelStore(Database(f"sqlite:///{tmp_path}/labels.db"))
    try:
        choose(store, 8, seed=1)
        assert train(run.path, tmp_path).status("evaluate") is None
        choose(store, 8, seed=2)
        made = next_round(run.path, tmp_path)
        assert made.status("evaluate") is not None and load_recipe(made.path / "config.yaml").evaluate is not None
    finally:
        store.database.close()


def test_recipes_that_cannot_learn_from_choices_are_refused(tmp_path):
    functions = {"short": {"kind": "function", "path": "trimtab.feedback.gold:friendly_utility"}}
    config = load_recipe(small_recipe(tmp_path))
    with pytest.raises(ConfigError, match="maximises functions only"):
        check_tunable(config.model_copy(update={"reward": None, "rewards": functions}))
    with pytest.raises(ConfigError, match="no align section"):
        check_tunable(config.model_copy(update={"align": None}))
    assert json.dumps(learned([]).model_dump(mode="json"))
