"""Small results of stages: a file of a run is read, and a damaged one is refused with file, field and next step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import DataError
from trimtab.pipeline.blind import load_keys
from trimtab.pipeline.run import origin
from trimtab.pipeline.small_results import (
    read_agreement,
    read_balance,
    read_capability,
    read_capability_after,
    read_sft,
)
from trimtab.pipeline.tune_learning import first_round
from trimtab.pipeline.vote_files import read_measured
from trimtab.storage import RunFolder, read_record

CHECKED = {"margins": {"q": 1.5}, "texts": {}, "demonstrations": {}, "answers": {}, "reasons": {}}
PAIR = {"model": "policy (ab)", "rival": "base (cd)", "rate": 0.5, "low": 0.2, "high": 0.8, "n": 4}
COUNTS = {"wins": 2, "ties": 0, "losses": 2, "equal_length": None}
VOTES = {"pairs": [PAIR | COUNTS], "dropped": {"check item": 1}, "project": "votes"}


def test_whole_files(tmp_path: Path):
    contents: dict[str, Any] = {
        "sft.json": {"heldout_nll_before": 2.5, "heldout_nll_after": None},
        "capability.json": {"before": CHECKED, "after": None},
        "balance.json": {"before": "base", "after": "policy", "measures": []},
        "agreement.json": {"leave_one_out": {"value": 0.75, "low": 0.5, "high": 1.0, "n": 8, "reason": ""}},
        "votes.json": VOTES,
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert read_sft(tmp_path).heldout_nll_before == 2.5
    assert read_capability(tmp_path).before.margins == {"q": 1.5}
    assert read_balance(tmp_path).measures == ()
    assert read_agreement(tmp_path)["leave_one_out"].value == 0.75
    assert read_measured(tmp_path).pairs[0].rate == 0.5
    with pytest.raises(DataError, match=r"capability\.json: after is null.*run again what writes it"):
        read_capability_after(tmp_path)


def tuned(folder: Path) -> Any:
    return first_round(RunFolder(folder))


def recipe_of_run(folder: Path) -> Any:
    return origin(folder / "config.yaml")


def blind_keys(folder: Path) -> Any:
    (folder / "blind").mkdir()
    (folder / "key.json").rename(folder / "blind" / "a.key.json")
    return load_keys(RunFolder(folder))


def word_weights(folder: Path) -> Any:
    return read_record(folder / "words.json", dict[str, float])


@pytest.mark.parametrize(
    ("name", "read", "content", "field"),
    [
        ("sft.json", read_sft, {"heldout_nll_before": "low", "heldout_nll_after": 1.0}, "heldout_nll_before: .*'low'"),
        ("capability.json", read_capability, {"before": CHECKED | {"texts": {"t": "x"}}}, r"before\.texts\.t: .*'x'"),
        ("balance.json", read_balance, {"before": "base", "after": "policy"}, "measures: Field required"),
        ("agreement.json", read_agreement, {"raw": {"value": 0.5, "median": 1}}, r"raw\.median: Extra inputs"),
        ("agreement.json", read_agreement, [1], "the file: .*dictionary"),
        ("votes.json", read_measured, VOTES | {"pairs": [PAIR]}, r"pairs\.0\.wins: Field required"),
        ("tune.json", tuned, {"round": "first"}, "round: .*'first'"),
        ("recipe.json", recipe_of_run, {"recipe": 3}, "recipe: .*name the recipe's own file"),
        ("key.json", blind_keys, {"digest": 1}, "no valid BlindKey"),
        ("words.json", word_weights, {"good": None}, "good: .*number"),
    ],
)
def test_a_damaged_file_names_the_field_and_what_to_do(
    name: str, read: Callable[[Path], Any], content: Any, field: str, tmp_path: Path
):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{name}: .*{field}") as raised:
        read(tmp_path)
    assert "delete it" in str(raised.value)
