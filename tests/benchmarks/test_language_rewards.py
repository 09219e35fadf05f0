"""Reward models by folds, with a tiny model on a few real pairs. No row is printed."""

import json
from pathlib import Path

import pytest

from benchmarks.language_rewards import fold_of, main, ukp
from trimtab.testing import save_model, tiny_model

DATA = Path(__file__).parents[3] / "shared" / "data" / "pairwise"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"SKIPPED LOUDLY: no real data ({DATA})")


@pytest.mark.parametrize("what", ["hh", "ukp"])
def test_every_usable_pair_is_scored(tmp_path, what):
    model = save_model(tmp_path / "model", tiny_model(context=2048))
    out = tmp_path / "out.json"
    options = ["--layers", "1", "--limit", "40", "--epochs", "1", "--context", "2048"]
    assert main([what, "--data", str(DATA), "--model", str(model), "--json", str(out), *options]) == 0
    report = json.loads(out.read_text())
    [seed] = report["seeds"]
    assert 30 <= report["pairs"] <= 40
    for facts in seed.values():
        value, low, high = facts["accuracy"]
        assert 0 <= low <= value <= high <= 1
    assert set(seed["language model"]["gain"]) == {"longest", "shortest", "surface", "words"}


def test_both_sides_of_a_topic_are_in_one_fold():
    names = [p.prompt.id for p in ukp(DATA)]
    folds = dict(zip(names, fold_of(names), strict=True))
    assert len(folds) < 24  # debates are topics with a side
    assert len(set(folds.values())) == 5
