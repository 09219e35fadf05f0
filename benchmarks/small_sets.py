"""Items and solutions of public data, scored by models that did not see them: ``python -m benchmarks.small_sets``.

- ``humour``: Bradley–Terry on all pairs, its Spearman correlation with the published score of the items; and a text
  model (words and nine features of form) on items that no pair of its training has, beside their length. Five folds.
- ``gsm8k``: best of four solutions of four generators, on the questions that some of them solve. A solution is scored
  by a model of the other three generators' solutions to other questions, five folds, beside the majority of the
  answers.

No language model is used. Texts are not printed.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.labelling import text_features
from benchmarks.machine import machine, versions
from benchmarks.reward_models import rows_of
from trimtab.evals.baselines import fit_ridge
from trimtab.feedback.comparison_fit import fit_comparisons
from trimtab.feedback.comparison_model import Votes
from trimtab.feedback.final_number import final_number
from trimtab.feedback.intervals import RESAMPLES, paired_bootstrap_interval, wilson_interval

FOLDS = 5
PENALTY = 30.0


def humour(folder: Path) -> dict[str, Any]:
    """Correlations with the items' published score."""
    items = rows_of(folder / "pairwise" / "humour-items.jsonl.gz")
    place = {str(r["item"]): n for n, r in enumerate(items)}
    score = np.array([float(r["bws_score"]) for r in items])
    rows = [
        (place[r["winner"]], place[r["loser"]])
        for r in rows_of(folder / "pairwise" / "humour-pairs.csv.gz")
        if r["winner"] in place and r["loser"] in place
    ]
    pairs = np.array(rows)
    votes = Votes(
        first=pairs[:, 0],
        second=pairs[:, 1],
        outcome=np.zeros(len(pairs), dtype=np.int64),
        annotator=np.zeros(len(pairs), dtype=np.int64),
        shown=np.zeros(len(pairs)),
        weight=np.ones(len(pairs)),
        answers=len(items),
        annotators=1,
    )
    fitted = fit_comparisons(votes, habits=()).parameters.score
    texts = [r["text"] for r in items]
    features = text_features(texts, dimensions=100)
    fold = np.random.default_rng(0).integers(0, FOLDS, len(items))
    heldout = np.zeros(len(items))
    for number in range(FOLDS):
        known = (fold[pairs] != number).all(axis=1)
        gaps = features[pairs[known, 0]] - features[pairs[known, 1]]
        inside = fold == number
        raw = features[inside] @ fit_ridge(gaps, np.ones(len(gaps)), np.ones(len(gaps)), PENALTY)
        heldout[inside] = (raw - raw.mean()) / raw.std()  # folds have no common zero
    length = np.array([float(len(t)) for t in texts])
    return {
        "items": len(items),
        "pairs": len(pairs),
        "Bradley–Terry on all pairs": correlation(fitted, score),
        "text model, held-out items": correlation(heldout, score),
        "length": correlation(length, score),
        "text model minus length": correlation(heldout, score, length),
    }


def correlation(values: Any, score: Any, other: Any = None) -> list[float]:
    """Spearman's correlation, minus that of ``other``, with a bootstrap interval over items."""

    def value(places: Any) -> float:
        own = spearmanr(values[places], score[places]).statistic
        return float(own - (0.0 if other is None else spearmanr(other[places], score[places]).statistic))

    rng = np.random.default_rng(0)
    drawn = [value(rng.integers(0, len(score), len(score))) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [round(x, 4) for x in (value(np.arange(len(score))), float(low), float(high))]


def gsm8k(folder: Path) -> dict[str, Any]:
    """Share of the mixed questions that each way of choosing answers rightly."""
    every = rows_of(folder / "process" / "gsm8k-model-solutions.jsonl.gz")
    right = np.array([bool(r["is_correct"]) for r in every])
    question = np.array([int(r["idx"]) for r in every])
    generators = sorted({r["model"] for r in every})
    generator = np.array([generators.index(r["model"]) for r in every])
    features = np.hstack([text_features([r["solution"] for r in every], dimensions=100), np.ones((len(every), 1))])
    fold = np.random.default_rng(0).integers(0, FOLDS, int(question.max()) + 1)[question]
    scores = np.zeros(len(every))
    for left_out in range(len(generators)):
        for number in range(FOLDS):
            train = (generator != left_out) & (fold != number)
            inside = (generator == left_out) & (fold == number)
            weights = fit_ridge(features[train], right[train].astype(float), np.ones(int(train.sum())), PENALTY)
            scores[inside] = features[inside] @ weights
        own = generator == left_out
        scores[own] = (scores[own] - scores[own].mean()) / scores[own].std()  # models have no common zero
    hits: dict[str, list[float]] = {name: [] for name in ("model", "majority", "random", *generators)}
    for q in sorted(set(question.tolist())):
        places = np.flatnonzero(question == q)
        if len(places) != len(generators) or right[places].all() or not right[places].any():
            continue
        hits["model"].append(float(right[places[scores[places].argmax()]]))
        answers = [final_number(every[p]["solution"]) for p in places]
        counts = Counter(answers)
        best = [p for p, a in zip(places, answers, strict=True) if counts[a] == max(counts.values())]
        hits["majority"].append(float(np.mean([right[p] for p in best])))  # equal counts: any of them
        hits["random"].append(float(right[places].mean()))
        for number, name in enumerate(generators):
            hits[name].append(float(right[places[generator[places] == number]].mean()))
    result: dict[str, Any] = {"mixed questions": len(hits["model"])}
    for name, values in hits.items():
        low, high = wilson_interval(sum(values), len(values))
        result[name] = [round(x, 4) for x in (float(np.mean(values)), low, high)]
    ends = paired_bootstrap_interval(hits["model"], hits["majority"])
    gap = float(np.mean(hits["model"]) - np.mean(hits["majority"]))
    result["model minus majority"] = [round(x, 4) for x in (gap, *ends)]
    result["verdict"] = "beats the majority" if ends[0] > 0 else "does not beat the majority"
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["humour", "gsm8k"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": machine(), "versions": versions()}
    for what in options.what:
        results[what] = humour(options.data) if what == "humour" else gsm8k(options.data)
    print(json.dumps(results, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
