"""The comparison of all methods on a table: its judges, its measures, and one method of each kind."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.method_curves import BETA, TREE, instance, interval, judged, main, measured
from trimtab.conformance.tables import gibbs


def test_the_optimum_closes_the_gap_and_the_reference_none_of_it():
    ref, reward = instance(0)
    old = TREE.path_logprobs(ref)
    assert measured(gibbs(old, reward, BETA), 0)["closed"] == pytest.approx(1.0)
    start = measured(old, 0)
    assert (start["reward"], start["kl"], start["closed"]) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


def test_judges_follow_the_reward():
    ref, reward = instance(0)
    pairs = judged(ref, reward, 4000, 2, 0)
    paths = TREE.paths().tolist()
    wins = expected = 0.0
    for ranking in pairs:
        first, second = (paths.index(s[1:]) for s in ranking.sequences)
        wins += ranking.weight * float(reward[first] > reward[second])
        both = abs(float(reward[first] - reward[second]))
        expected += ranking.weight * float(torch.sigmoid(torch.tensor(both)))
    assert sum(r.weight for r in pairs) == 2000
    assert wins / 2000 == pytest.approx(expected / 2000, abs=0.04)  # the better one wins as often as Bradley–Terry says
    assert {len(r.sequences) for r in judged(ref, reward, 400, 4, 0)} == {4}


def test_the_interval_is_students():
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]) == "3.00 ± 1.96"  # 2.776·√2.5/√5


def test_a_row_for_each_method(tmp_path: Path, capsys):
    out = tmp_path / "curves.json"
    only = ["rloo", "dpo", "plackett_luce"]
    assert main(["--seeds", "1", "--steps", "8", "--json", str(out), "--only", *only]) == 0
    rows = {row["method"]: row["seeds"][0] for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == only and all(r["reward"] > 0.1 and r["kl"] > 0.02 for r in rows.values())
    assert all(r["closed"] < 1 for r in rows.values())
    assert "| `dpo` |" in capsys.readouterr().out
    assert main(["--only", "rlo"]) == 2 and "no method is named rlo" in capsys.readouterr().err
