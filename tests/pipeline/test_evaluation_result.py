"""``evaluation.json``: a file of an earlier run is read, written unchanged, and refused with a message if damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import DataError
from trimtab.pipeline.evaluation_result import FILE, read_evaluation, write_evaluation

WIN = {
    "model": "policy",
    "against": "sft",
    "judge": "gold",
    "rate": 0.75,
    "low": 0.3,
    "high": 0.95,
    "n": 4,
    "wins": 3,
    "ties": 0,
    "losses": 1,
    "worst": ["p4"],
    "equal_length": {"value": 0.7, "low": 0.2, "high": 0.9},
}
GAIN = {"name": "", "value": 0.5, "low": 0.1, "high": 0.9, "n": 4, "reason": ""}
WHOLE = {
    "models": ["sft", "policy"],
    "judges": ["gold"],
    "win_rates": [WIN],
    "kl": {"value": 2.0, "low": 1.0, "high": 3.0, "n": 2, "per_answer": [1.5, 2.5]},
    "likelihood": {"sft": -2.0, "policy": -1.5},
    "probes": {"sft": {"words": 11.5}, "policy": {"words": 12.0}},
    "copied": {"sft": [], "policy": ["p4"]},
    "p_values": {"words": 0.5},
    "means": {"sft": {"gold": 0.5}, "policy": {"gold": 1.0}},
    "spreads": {"sft": {"gold": 1.0}, "policy": {"gold": 1.5}},
    "costs": {"policy": 0.25},
    "best_of": {"n": 4, "kl": 0.6, "kl_bound": 0.64},
    "gain": {"gain": GAIN, "parts": []},
}
ALONE = WHOLE | {"win_rates": [], "kl": None, "likelihood": None, "costs": {}, "best_of": None, "gain": None}


def written(folder: Path, value: Any) -> Path:
    (folder / FILE).write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("value", [WHOLE, ALONE, WHOLE | {"win_rates": [WIN | {"equal_length": None}]}])
def test_a_file_of_a_finished_run_is_read_and_written_unchanged(value: dict[str, Any], tmp_path: Path):
    result = read_evaluation(written(tmp_path, value))
    for row in result.win_rates:
        estimate = row.estimate("sft")
        assert (estimate.name, estimate.value, estimate.low, estimate.high, estimate.n) == ("sft", 0.75, 0.3, 0.95, 4)
    if result.kl is not None:
        assert result.kl.estimate().value == 2.0 and result.kl.per_answer == (1.5, 2.5)
    write_evaluation(tmp_path, result)
    assert (tmp_path / FILE).read_text() == json.dumps(value, indent=2) + "\n"


def test_the_first_versions_file_had_fewer_fields(tmp_path: Path):
    names = ("models", "judges", "kl", "probes", "means")
    rows = [{k: v for k, v in WIN.items() if k not in ("worst", "equal_length")}]
    result = read_evaluation(written(tmp_path, {k: WHOLE[k] for k in names} | {"win_rates": rows, "best_of": None}))
    assert result.win_rates[0].worst == () and result.win_rates[0].equal_length is None
    assert (result.likelihood, result.copied, result.spreads, result.costs, result.gain) == (None, {}, {}, {}, None)
    assert result.p_values == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, r"no valid Evaluation: models: Field required"),
        (
            WHOLE | {"win_rates": [WIN | {"rate": "high"}]},
            r"win_rates\.0\.rate: .* valid number.*, got 'high'",
        ),
        (WHOLE | {"kl": 2.0}, r"kl: Input should be a valid dictionary.*, got '2\.0'"),
    ],
)
def test_a_malformed_file_is_refused_with_its_field_and_the_next_step(value: Any, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message) as error:
        read_evaluation(written(tmp_path, value))
    assert "delete it and run again what writes it" in str(error.value)
