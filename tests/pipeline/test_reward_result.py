"""``reward.json``: a file of an earlier run is read, written unchanged, and refused with a message if it is damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trimtab.errors import DataError
from trimtab.pipeline.learning import start_critic
from trimtab.pipeline.reward_models import load_objectives, load_ranking_scorer, load_reward_models
from trimtab.pipeline.reward_result import FILE, read_reward_result, read_trained, write_reward_result

ACCURACY = {"name": "", "value": 0.75, "low": 0.3, "high": 0.95, "n": 4, "reason": ""}
EVALUATION = {
    "accuracy": ACCURACY,
    "longest": ACCURACY | {"value": 0.5},
    "gain": ACCURACY | {"value": 0.25},
    "ece": 0.1,
    "log_loss": 0.6,
    "pairs": 4,
    "prompts": 4,
    "calibration": [],
    "brier": 0.2,
    "calibrated_ece": 0.05,
    "calibrated": [],
    "baselines": [{"name": "longest", "accuracy": ACCURACY, "gain": ACCURACY}],
    "slices": [],
    "length_correlation": ACCURACY | {"value": -0.1},
}
MODELS = [
    {"name": "reward", "file": "weights.safetensors", "judges": False, "mean": 0.5, "std": 2.0, "preferences": 40},
    {
        "name": "heldout",
        "file": "weights-heldout.safetensors",
        "judges": True,
        "mean": 0.1,
        "std": 1.5,
        "preferences": 41,
    },
]
ERRORS = {"names": ["reward", "heldout"], "error_rates": [0.25, 0.5], "correlation": ACCURACY, "effective": ACCURACY}
WHOLE = {"mean": 0.5, "std": 2.0, "evaluation": EVALUATION, "models": MODELS, "errors": ERRORS}
FURTHER = {
    "objectives": {"helpful": {"mean": 0.5, "std": 2.0, "evaluation": EVALUATION}},
    "annotators": {
        "habits": ["tie", "skill"],
        "trials": [{"habits": [], "log_loss": 0.9, "kept": True}],
        "common": {"tie": 0.1, "position": 0.0},
        "annotators": [{"annotator": "a1", "votes": 12, "tie": 0.2, "skill": 1.1}],
        "heldout": {"votes": 4, "alike": 0.9, "annotators": 0.8, "gain": ACCURACY | {"value": 0.1}},
        "taste": {
            "annotators": 2,
            "without": 0.8,
            "trials": [{"deviation": 1.0, "log_loss": 0.7}],
            "used": True,
            "direction": [0.5, -0.25],
        },
    },
}


def written(folder: Path, value: Any) -> Path:
    (folder / FILE).write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("value", [WHOLE, WHOLE | FURTHER, WHOLE | {"evaluation": None, "errors": None}])
def test_a_file_of_a_finished_run_is_read_and_written_unchanged(value: dict[str, Any], tmp_path: Path):
    result = read_reward_result(written(tmp_path, value))
    assert (result.mean, result.std) == (0.5, 2.0) and [m.judges for m in result.models] == [False, True]
    assert list(result.objectives) == list(value.get("objectives", {}))
    if result.evaluation is not None and result.errors is not None:
        assert result.evaluation.accuracy.value == 0.75 and result.errors.error_rates == (0.25, 0.5)
    write_reward_result(tmp_path, result)
    assert (tmp_path / FILE).read_text() == json.dumps(value, indent=2) + "\n"


def test_annotators_of_a_version_without_tastes_are_read_and_others_are_refused_with_the_field(tmp_path: Path):
    annotators = {name: value for name, value in FURTHER["annotators"].items() if name != "taste"}
    facts = read_reward_result(written(tmp_path, WHOLE | {"annotators": annotators | {"heldout": None}})).annotators
    assert facts is not None and facts.taste is None and facts.heldout is None
    assert (facts.annotators[0].skill, facts.annotators[0].position) == (1.1, None)
    row = {"annotator": "a1", "votes": 1, "mood": 0.5}
    with pytest.raises(DataError, match=r"annotators\.annotators\.0\.mood: Extra inputs are not permitted, got '0\.5'"):
        read_reward_result(written(tmp_path, WHOLE | {"annotators": annotators | {"annotators": [row]}}))


def test_the_first_versions_file_had_no_models(tmp_path: Path):
    result = read_reward_result(written(tmp_path, {"mean": 0.5, "std": 2.0, "evaluation": None}))
    assert result.std == 2.0 and result.models == () and result.errors is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"mean": 0.5}, r"no valid RewardResult: std: Field required; the file is damaged or by another version"),
        (WHOLE | {"std": "wide"}, r"std: Input should be a valid number.*, got 'wide'"),
        (
            WHOLE | {"models": [MODELS[0] | {"mean": []}]},
            r"models\.0\.mean: Input should be a valid number, got '\[\]'",
        ),
        (WHOLE | {"median": 1.0}, r"median: Extra inputs are not permitted, got '1\.0'"),
        ([], r"the file: Input should be a valid dictionary.*, got '\[\]'"),
    ],
)
def test_a_malformed_file_is_refused_with_its_field_and_the_next_step(value: Any, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message) as error:
        read_reward_result(written(tmp_path, value))
    assert str(tmp_path / FILE) in str(error.value) and "delete it and run again what writes it" in str(error.value)


def test_a_missing_file_names_the_next_step(tmp_path: Path):
    with pytest.raises(DataError, match="run the stage that writes it first"):
        read_reward_result(tmp_path)


@pytest.mark.parametrize(
    ("value", "missing"),
    [
        ({"mean": 0.5, "std": 2.0, "evaluation": None}, "the model 'reward' as the first of models"),
        (WHOLE | {"models": MODELS[1:]}, "the model 'reward' as the first of models"),
        (WHOLE | {"models": [MODELS[0] | {"judges": True}]}, "the model 'reward' as the first of models"),
        (WHOLE | FURTHER, "the objective 'harmless'"),
        (WHOLE | {"models": []}, "the model 'reward' as the first of models, the objective 'helpful', the objective"),
    ],
    ids=["no models", "no first one", "it only judges", "one objective", "nothing"],
)
def test_a_file_without_the_models_that_are_used_is_refused_with_the_next_step(
    value: dict[str, Any], missing: str, tmp_path: Path
):
    with pytest.raises(DataError) as error:
        read_trained(written(tmp_path, value), ["helpful", "harmless"] if "models" in value else [])
    message = str(error.value)
    assert message.startswith(f"{tmp_path / FILE}: it lacks {missing}") and "and run again what writes it" in message


def test_a_file_with_the_models_that_are_used_is_read(tmp_path: Path):
    assert read_trained(written(tmp_path, WHOLE)).models[0].std == 2.0
    assert read_trained(written(tmp_path, WHOLE | FURTHER), ["helpful"]).objectives["helpful"].std == 2.0


@pytest.mark.parametrize("use", [load_reward_models, load_objectives, load_ranking_scorer, start_critic])
def test_whatever_uses_the_models_refuses_the_first_versions_file(use: Callable[..., Any], tmp_path: Path):
    written(tmp_path, {"mean": 0.5, "std": 2.0, "evaluation": None})
    reward = SimpleNamespace(objectives=("helpful",), model=None, ensemble=None)
    context = SimpleNamespace(config=SimpleNamespace(reward=reward), folder=lambda name: tmp_path)
    with pytest.raises(DataError, match="lacks the model 'reward'"):
        use(context, SimpleNamespace())
