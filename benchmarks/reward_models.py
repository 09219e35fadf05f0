"""Models of judgements and simple reward models on public data: ``python -m benchmarks.reward_models``.

- ``votes``: log-loss of held-out votes, in nats over the three outcomes, on LLMFAO's and UKPConvArg1's crowd votes.
  Votes are dealt to five folds at random; a vote is predicted from the other votes of its annotator and on its answers.
- ``planted``: 8 annotators right in 85 % and 4 who toss a coin, 6 of them for each of 400 pairs.
- ``speed``: 200,000 comparisons of 5,000 answers by 300 annotators.
- ``baselines``: longest, shortest, surface features and bag of words on hh-harmless-base, five folds by first turn.
- ``debates``: what UKPConvArg1's labels teach a bag of words: the majority of each pair, a soft label, or all votes.
  Five folds by debate; log-loss of held-out votes with a winner, and accuracy beside the longer argument.

Texts are not printed.
"""

import argparse
import csv
import gzip
import json
import math
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, peak_mib, versions
from trimtab.evals import evaluate_reward_model
from trimtab.evals.baselines import WORD, baseline_scores, fit_ridge
from trimtab.feedback import AggregateConfig, aggregate, clustered_wilson_interval, paired_bootstrap_interval
from trimtab.feedback.comparison_fit import HABITS, fit_comparisons
from trimtab.feedback.comparison_model import TIE, Parameters, Votes, vote_probabilities
from trimtab.records import Comparison, Judgement, Preference, Prompt, load

FOLDS = 5
Row = tuple[Hashable, Hashable, int, str, float]
"""First answer, second answer, outcome, annotator, 1 if the first was shown first and 0 if that is not known."""


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a gzipped JSONL or CSV file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file)) if ".csv" in path.suffixes else [json.loads(line) for line in file]


def llmfao(folder: Path) -> list[Row]:
    """LLMFAO's crowd votes."""
    outcome = {"left": 0, "tie": 1, "right": 2}
    return [
        ((r["prompt"], r["model_x"]), (r["prompt"], r["model_y"]), outcome[r["winner"]], r["worker"], 1.0)
        for r in rows_of(folder / "llmfao" / "crowd-comparisons.csv.gz")
    ]


def ukpconvarg(folder: Path) -> list[Row]:
    """UKPConvArg1's crowd votes; the order in which the arguments were shown is not known."""
    outcome = {"a1": 0, "a2": 2}
    return [
        (r["a1_id"], r["a2_id"], outcome.get(a["value"], 1), a["worker"], 0.0)
        for r in rows_of(folder / "ukpconvarg1.jsonl.gz")
        for a in r["annotations"]
    ]


def votes_of(rows: Sequence[Row]) -> Votes:
    """Votes as arrays."""
    answers: dict[Hashable, int] = {}
    workers: dict[str, int] = {}
    for first, second, _, worker, _ in rows:
        for answer in (first, second):
            answers.setdefault(answer, len(answers))
        workers.setdefault(worker, len(workers))
    return Votes(
        first=np.array([answers[r[0]] for r in rows]),
        second=np.array([answers[r[1]] for r in rows]),
        outcome=np.array([r[2] for r in rows]),
        annotator=np.array([workers[r[3]] for r in rows]),
        shown=np.array([r[4] for r in rows]),
        weight=np.ones(len(rows)),
        answers=len(answers),
        annotators=len(workers),
    )


def heldout_votes(votes: Votes, folds: int) -> dict[str, float]:
    """Log-loss of votes in folds that were not fitted, by model."""
    fold = np.random.default_rng(0).integers(0, FOLDS, len(votes))
    base = np.bincount(votes.outcome, minlength=3) / len(votes)
    losses: dict[str, list[Any]] = {"base rate": [-np.log(base[votes.outcome])]}
    models: list[tuple[str, Any, Any]] = [
        ("davidson, annotators alike", "davidson", ()),
        ("davidson, tie thresholds", "davidson", ("tie",)),
        ("davidson, all habits", "davidson", HABITS),
        ("rao_kupper, all habits", "rao_kupper", HABITS),
    ]
    for name, model, habits in models:
        for number in range(folds):
            train, test = votes.part(fold != number), votes.part(fold == number)
            fit = fit_comparisons(train, model=model, habits=habits, pairs=(test.first, test.second))
            shares = vote_probabilities(model, test, fit.parameters, fit.pair_variance)
            losses.setdefault(name, []).append(-np.log(shares[np.arange(len(test)), test.outcome]))
        print(f"  {name}: {np.concatenate(losses[name]).mean():.4f}", flush=True)
    return {name: float(np.concatenate(parts).mean()) for name, parts in losses.items()}


def planted(seeds: int) -> dict[str, Any]:
    """Accuracy of labels by method, and how often all spammers rank below all good annotators."""
    methods: tuple[Any, ...] = ("majority", "dawid_skene", "davidson", "rao_kupper")
    right: dict[str, list[float]] = {m: [] for m in methods}
    apart: dict[str, list[float]] = {m: [] for m in methods[1:]}
    items = [Comparison.of(Prompt.from_text(f"q{n}"), [f"a{n}", f"b{n}"]) for n in range(400)]
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        truth = rng.choice([-1, 1], len(items))
        judgements = []
        for n, item in enumerate(items):
            for a in rng.choice(12, 6, replace=False):
                says = truth[n] * (1 if rng.random() < (0.85 if a < 8 else 0.5) else -1)
                name = f"{'good' if a < 8 else 'spam'}{a}"
                judgements.append(
                    Judgement(
                        id=f"{n}/{a}",
                        item=item.id,
                        annotator=name,
                        source="simulated",
                        shown_order=(0, 1),
                        ranks=(0, 1) if says > 0 else (1, 0),
                    )
                )
        for method in methods:
            result = aggregate(items, judgements, config=AggregateConfig(method=method, keep_tied=True))
            lean = np.array([p.probability for p in result.preferences]) - 0.5
            right[method].append(float(np.where(lean == 0, 0.5, lean * truth > 0).mean()))
            if result.habits:
                apart[method].append(float(all(h.annotator.startswith("good") for h in result.habits[:8])))
    return {
        "accuracy": {m: float(np.mean(v)) for m, v in right.items()},
        "spammers below": {m: float(np.mean(v)) for m, v in apart.items()},
    }


def speed() -> dict[str, float]:
    """Processor seconds of a fit of 200,000 comparisons, and the memory that the process held at most."""
    rng = np.random.default_rng(0)
    answers, annotators, n = 5000, 300, 200_000
    skill = rng.normal(0, 0.4, annotators)
    truth = Parameters(
        score=rng.normal(0, 1, answers),
        skill=1 + skill - skill.mean(),
        tie=rng.normal(-0.3, 0.6, annotators),
        position=rng.normal(0.2, 0.3, annotators),
    )
    first = rng.integers(0, answers, n)
    arrays: dict[str, Any] = {
        "first": first,
        "second": (first + rng.integers(1, answers, n)) % answers,
        "annotator": rng.integers(0, annotators, n),
        "shown": rng.choice([-1.0, 1.0], n),
        "weight": np.ones(n),
        "answers": answers,
        "annotators": annotators,
    }
    shares = vote_probabilities("davidson", Votes(outcome=np.full(n, TIE), **arrays), truth)
    votes = Votes(outcome=(rng.random(n)[:, None] > shares.cumsum(1)).sum(1), **arrays)
    seconds = {}
    for name, habits in (("annotators alike", ()), ("all habits", HABITS)):
        start = time.process_time()
        fit_comparisons(votes, habits=habits, pairs=(votes.first, votes.second))
        seconds[name] = time.process_time() - start
    return seconds | {"MiB at most": peak_mib()}


def baselines(folder: Path) -> dict[str, Any]:
    """Accuracy of the baselines on hh-harmless-base, whose folds are by first human turn."""
    records = load(str(folder / "hh-harmless-base.jsonl.gz"), kind=Preference).records
    by_turn = [
        p.model_copy(update={"prompt": p.prompt.model_copy(update={"id": p.prompt.messages[0].content})})
        for p in records
        if len(set(p.ranks)) > 1
    ]
    scores = baseline_scores(by_turn)
    result = evaluate_reward_model(by_turn, scores["words"], baselines=scores)
    return {
        "pairs": result.pairs,
        "first turns": result.prompts,
        "ece of words": result.ece,
        **{b.name: [b.accuracy.value, b.accuracy.low, b.accuracy.high] for b in result.baselines},
    }


def debates(folder: Path) -> dict[str, Any]:
    """Log-loss of held-out votes by what the labels were made of, in nats; intervals over debates."""
    rows = [r for r in rows_of(folder / "ukpconvarg1.jsonl.gz") if r["a1"] != r["a2"]]
    votes = [[a["value"] for a in r["annotations"]] for r in rows]
    first, second = (np.array([values.count(side) for values in votes]) for side in ("a1", "a2"))
    tied = np.array([len(values) for values in votes]) - first - second
    texts = list(dict.fromkeys(text for r in rows for text in (r["a1"], r["a2"])))
    place = {text: number for number, text in enumerate(texts)}
    words = word_counts(texts)
    gaps = words[[place[r["a1"]] for r in rows]] - words[[place[r["a2"]] for r in rows]]
    debate = [r["debate"] for r in rows]
    names = sorted(set(debate))
    np.random.default_rng(0).shuffle(names)
    fold = np.array([names.index(name) % FOLDS for name in debate])
    total = first + second + tied
    labels = {
        "majority": ((first > second).astype(float), (first != second).astype(float)),
        "soft label": ((first + tied / 2) / total, np.ones(len(rows))),
        "all votes": ((first + tied / 2) / total, total.astype(float)),
    }

    def votes_loss(z: Any, where: Any) -> Any:
        """Of each pair, its votes' losses added up."""
        return first[where] * np.logaddexp(0, -z) + second[where] * np.logaddexp(0, z)

    z = {name: np.zeros(len(rows)) for name in labels}
    for number in range(FOLDS):
        inner, train, test = fold == (number + 1) % FOLDS, fold != number, fold == number
        for name, (target, weight) in labels.items():
            rest = train & ~inner
            penalty = min(
                DEBATE_PENALTIES,
                key=lambda p, t=target, w=weight, r=rest, i=inner: float(
                    votes_loss(gaps[i] @ fit_ridge(gaps[r], t[r], w[r], p * w[r].mean()), i).sum()
                ),
            )
            v = fit_ridge(gaps[train], target[train], weight[train], penalty * weight[train].mean())
            z[name][test] = gaps[test] @ v
    every = np.ones(len(rows), dtype=bool)
    counted = first + second
    owners = [name for name, n in zip(debate, counted, strict=True) for _ in range(n)]
    losses = {name: np.repeat(votes_loss(z[name], every) / np.maximum(counted, 1), counted) for name in labels}
    decided = first != second
    right = {name: ((z[name] > 0) == (first > second))[decided].astype(float) for name in labels}
    longer = np.array([len(r["a1"]) - len(r["a2"]) for r in rows])[decided]
    right["longest"] = np.where(longer == 0, 0.5, (longer > 0) == (first > second)[decided])
    own = [name for name, d in zip(debate, decided, strict=True) if d]
    result: dict[str, Any] = {"pairs": len(rows), "debates": len(names), "votes with a winner": int(counted.sum())}
    for name, loss in losses.items():
        result[f"log-loss, {name}"] = float(loss.mean())
        if name != "majority":
            low, high = paired_bootstrap_interval(losses["majority"].tolist(), loss.tolist(), owners, seed=0)
            result[f"gain over majority, {name}"] = [float(losses["majority"].mean() - loss.mean()), low, high]
    for name, hits in right.items():
        result[f"accuracy, {name}"] = [float(hits.mean()), *clustered_wilson_interval(hits.tolist(), own)]
    return result


def word_counts(texts: Sequence[str]) -> Any:
    """log(1 + count) of each word that is in two texts or more, ``[texts, words]``, sparse."""
    from scipy.sparse import csr_matrix

    counted = [Counter(w.lower() for w in WORD.findall(text)) for text in texts]
    occurs = Counter(w for c in counted for w in c)
    column = {w: i for i, w in enumerate(sorted(w for w, n in occurs.items() if n > 1))}
    cells = [(r, column[w], math.log1p(n)) for r, c in enumerate(counted) for w, n in c.items() if w in column]
    row, places, value = zip(*cells, strict=True)
    return csr_matrix((value, (row, places)), shape=(len(texts), len(column)))


DEBATE_PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Ridge penalties that an inner fold of debates chooses from, in units of one example's loss."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["votes", "planted", "speed", "baselines", "debates"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pairwise"))
    parser.add_argument("--set", choices=["llmfao", "ukpconvarg1"], action="append", help="votes: only this set")
    parser.add_argument("--folds", type=int, default=FOLDS, help="votes: how many of the five folds are predicted")
    parser.add_argument("--seeds", type=int, default=10, help="planted: how many")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": machine(), "versions": versions()}
    of_texts = {"baselines": baselines, "debates": debates}
    sets = {"llmfao": llmfao, "ukpconvarg1": ukpconvarg}
    for what in options.what:
        if what == "votes":
            for name in options.set or sets:
                print(name, flush=True)
                results[f"votes {name}"] = heldout_votes(votes_of(sets[name](options.data)), options.folds)
        elif what == "planted":
            results[what] = planted(options.seeds)
        else:
            results[what] = speed() if what == "speed" else of_texts[what](options.data)
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
