"""The benchmark of items and solutions, on invented ones."""

import csv
import gzip
import json

import numpy as np

from benchmarks import small_sets


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        if ".csv" in path.suffixes:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.write("\n".join(map(json.dumps, rows)))


def test_humour_follows_the_planted_word(tmp_path, monkeypatch):
    monkeypatch.setattr(small_sets, "RESAMPLES", 50)
    rng = np.random.default_rng(7)
    fun = rng.integers(0, 6, 120)
    noise = [" ".join(rng.choice(["tea", "soup", "milk"], int(rng.integers(2, 9)))) for _ in fun]
    items = [{"item": n, "bws_score": float(k), "text": "joke " * int(k) + noise[n]} for n, k in enumerate(fun)]
    pairs = [rng.choice(120, 2, replace=False) for _ in range(1500)]
    ordered = [(a, b) if fun[a] > fun[b] else (b, a) for a, b in pairs if fun[a] != fun[b]]
    write(tmp_path / "pairwise" / "humour-items.jsonl.gz", items)
    write(tmp_path / "pairwise" / "humour-pairs.csv.gz", [{"winner": a, "loser": b} for a, b in ordered])
    result = small_sets.humour(tmp_path)
    assert result["Bradley–Terry on all pairs"][0] > 0.9 and result["text model, held-out items"][0] > 0.8
    assert result["text model minus length"][1] > 0


def test_gsm8k_finds_the_planted_sign_in_a_generator_it_never_saw(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for q in range(60):
        for model in "abcd":
            right = bool(rng.random() < 0.5)
            sign = "so we check" if right else "perhaps"
            text = f"{sign} {rng.choice(['x', 'y'])} the answer is {5 if right else q + 9}"
            rows.append({"idx": q, "model": model, "solution": text, "is_correct": right})
    write(tmp_path / "process" / "gsm8k-model-solutions.jsonl.gz", rows)
    result = small_sets.gsm8k(tmp_path)
    assert result["model"][0] > 0.95 and result["verdict"] in ("beats the majority", "does not beat the majority")
    assert 0.4 < result["random"][0] < 0.65 and result["mixed questions"] > 40
