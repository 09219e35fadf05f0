"""What to label next, on real votes: ``python -m benchmarks.labelling``.

UKPConvArg1, one crowd vote a label. Features of an argument are 50 singular vectors of its words and nine numbers
about its form; the model is Bradley–Terry with a ridge penalty. In each repetition six of the 24 debates are the test
set.

- ``gain``: 100 random labels, then four times 100 more by each arm, a quarter of them by the random arm. Accuracy on
  the net votes of the test debates after each, minus that of the random arm. Also the share of ties in the pool, as the
  arm's labels say it with and without their propensities.
- ``more``: learning curves up to 400, 800 and 1,600 labels and what they predict for four times as many, beside what
  the same models then measure.

Texts are not printed.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, versions
from benchmarks.reward_models import rows_of
from trimtab.evals.baselines import fit_ridge, surface_features
from trimtab.feedback.acquisition import ARMS, arm_weights, corrected_share, inclusion_probabilities, systematic_sample
from trimtab.feedback.learning_curve import RESAMPLINGS, LearningCurve, doubling_sizes, gain_over_random, predict_gain
from trimtab.feedback.words import WORD

TEST_DEBATES = 6
START, STEP, ROUNDS = 100, 100, 4
POOL = 4000
"""Pairs that an arm chooses from."""
MEMBERS = 5
PENALTY = 10.0
RANDOM = 0.25
"""Share of the random arm beside another one."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """All pairs of arguments, P of them."""

    gaps: Any
    """``[P, D]``, features of the first argument minus those of the second."""
    debate: Any
    """``[P]``, number of the debate."""
    votes: list[list[float]]
    """Of each pair: 1 for the first argument, 0 for the second, ½ for neither."""
    net: Any
    """``[P]``, their mean."""


def ukpconvarg(folder: Path) -> Pairs:
    """The pairs, with features of the texts."""
    rows = [r for r in rows_of(folder / "ukpconvarg1.jsonl.gz") if r["annotations"]]
    texts = {r[f"{a}_id"]: r[a] for r in rows for a in ("a1", "a2")}
    features = dict(zip(texts, text_features(list(texts.values())), strict=True))
    debates = {name: number for number, name in enumerate(sorted({r["debate"] for r in rows}))}
    value = {"a1": 1.0, "a2": 0.0}
    votes = [[value.get(a["value"], 0.5) for a in r["annotations"]] for r in rows]
    return Pairs(
        gaps=np.array([features[r["a1_id"]] - features[r["a2_id"]] for r in rows]),
        debate=np.array([debates[r["debate"]] for r in rows]),
        votes=votes,
        net=np.array([np.mean(v) for v in votes]),
    )


def text_features(texts: Sequence[str], dimensions: int = 50) -> Any:
    """Singular vectors of log(1 + count) of words, and numbers about the form; ``[N, D]``, each of spread 1."""
    linalg: Any = import_module("scipy.sparse.linalg")
    sparse: Any = import_module("scipy.sparse")
    words: dict[str, int] = {}
    cells: dict[tuple[int, int], int] = {}
    for row, text in enumerate(texts):
        for word in WORD.findall(text.lower()):
            cell = (row, words.setdefault(word, len(words)))
            cells[cell] = cells.get(cell, 0) + 1
    places = np.array(list(cells))
    counts = np.log1p(np.array(list(cells.values()), dtype=float))
    matrix = sparse.csr_matrix((counts, (places[:, 0], places[:, 1])), shape=(len(texts), len(words)))
    left, size, _ = linalg.svds(matrix, k=min(dimensions, min(matrix.shape) - 1), random_state=0)
    table = np.hstack([left * size, np.array([surface_features(t) for t in texts])])
    return (table - table.mean(0)) / np.maximum(table.std(0), 1e-9)


def fitted(gaps: Any, labels: Any) -> Any:
    """Weights of the model after these labels."""
    return fit_ridge(gaps, labels, np.ones(len(labels)), PENALTY)


def accuracy(pairs: Pairs, weights: Any, test: Any) -> float:
    """Share of the test pairs with a net vote whose winner has the higher score; equal scores count half."""
    strict = test[pairs.net[test] != 0.5]
    side = np.sign(pairs.gaps[strict] @ weights) * np.sign(pairs.net[strict] - 0.5)
    return float((0.5 + 0.5 * side).mean())


def split(pairs: Pairs, rng: Any) -> tuple[Any, Any]:
    """Places of the pairs to label and of the test pairs, which are of other debates."""
    debates = rng.permutation(int(pairs.debate.max()) + 1)
    is_test = np.isin(pairs.debate, debates[:TEST_DEBATES])
    return rng.permutation(np.flatnonzero(~is_test)), np.flatnonzero(is_test)


def one_vote(pairs: Pairs, places: Any, rng: Any) -> Any:
    """A vote of one annotator on each pair."""
    return np.array([pairs.votes[p][rng.integers(len(pairs.votes[p]))] for p in places])


def one_repetition(pairs: Pairs, seed: int) -> tuple[dict[str, list[float]], dict[str, tuple[Any, Any, Any]]]:
    """Accuracy of each arm after each round, and the labels of its first round: places, votes, propensities."""
    rng = np.random.default_rng(seed)
    pool, test = split(pairs, rng)
    pool = pool[:POOL]
    every = one_vote(pairs, pool, rng)  # each pair has one vote, whichever arm asks for it
    curves: dict[str, list[float]] = {}
    first: dict[str, tuple[Any, Any, Any]] = {}
    for arm in ARMS:
        labelled = list(range(START))
        curves[arm] = []
        for number in range(ROUNDS):
            own = np.random.default_rng([seed, number])
            left = np.setdiff1d(np.arange(len(pool)), labelled)
            members = []
            for _ in range(MEMBERS):
                drawn = own.choice(labelled, len(labelled))
                members.append(fitted(pairs.gaps[pool[drawn]], every[drawn]))
            gaps = pairs.gaps[pool[left]]
            weights = arm_weights("random", gaps, count=STEP)
            if arm != "random":
                scores = gaps @ np.array(members).T
                wanted = round((1 - RANDOM) * STEP)
                weights = RANDOM * weights + (1 - RANDOM) * arm_weights(arm, scores, gaps, count=wanted)
            chances = inclusion_probabilities(weights, STEP)
            places = systematic_sample(chances, own)
            chosen = left[places]
            if number == 0:
                first[arm] = pool[chosen], every[chosen], chances[places]
            labelled += chosen.tolist()
            curves[arm].append(accuracy(pairs, fitted(pairs.gaps[pool[labelled]], every[labelled]), test))
    return curves, first


def gain(pairs: Pairs, repetitions: int) -> dict[str, Any]:
    """Gain of each arm over the random one, and a share of the pool as the arm's labels say it."""
    curves: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    ties: dict[str, list[tuple[float, float, bool]]] = {arm: [] for arm in ARMS}
    truth = float(np.mean([v == 0.5 for votes in pairs.votes for v in votes]))
    for seed in range(repetitions):
        own, first = one_repetition(pairs, seed)
        for arm in ARMS:
            curves[arm].append(own[arm])
            _, votes, chances = first[arm]
            outcomes = (votes == 0.5).astype(float).tolist()
            corrected = corrected_share("ties", outcomes, chances.tolist())
            assert corrected.value is not None and corrected.low is not None and corrected.high is not None
            covered = corrected.low <= truth <= corrected.high
            ties[arm].append((float(np.mean(outcomes)), corrected.value, covered))
    labels = [STEP * (n + 1) for n in range(ROUNDS)]
    result: dict[str, Any] = {"share of ties among all votes": truth}
    for arm in ARMS:
        over = gain_over_random(curves[arm], curves["random"], labels)
        raw, corrected, covered = (float(np.mean(column)) for column in zip(*ties[arm], strict=True))
        result[arm] = {
            "accuracy after each round": [round(float(a), 4) for a in np.mean(curves[arm], axis=0)],
            "points gained over random per 100 labels": [round(100 * x, 3) for x in (over.value, over.low, over.high)],  # pyright: ignore[reportOptionalOperand]
            "share of ties": {"as labelled": raw, "corrected": corrected, "intervals that hold it": covered},
        }
        if arm != "random":
            result[arm]["verdict"] = "beats random" if over.low > 0 else "does not beat random"  # pyright: ignore[reportOptionalOperand]
    return result


def curve(pairs: Pairs, sizes: Sequence[int], seed: int) -> Any:
    """Accuracy at each size in each resampling, ``[S, J]``."""
    values = np.zeros((len(sizes), RESAMPLINGS))
    for j in range(RESAMPLINGS):
        rng = np.random.default_rng([seed, j])
        pool, test = split(pairs, rng)
        votes = one_vote(pairs, pool[: sizes[-1]], rng)
        for s, size in enumerate(sizes):
            values[s, j] = accuracy(pairs, fitted(pairs.gaps[pool[:size]], votes[:size]), test)
    return values


def more(pairs: Pairs) -> dict[str, Any]:
    """What learning curves predict for four times as many labels, beside what is then measured."""
    results: dict[str, Any] = {}
    for largest in (400, 800, 1600):
        sizes = doubling_sizes(largest)
        values = curve(pairs, (*sizes, 4 * largest), seed=largest)
        outlook = predict_gain(
            LearningCurve(sizes=sizes, values=values[:-1], shared=TEST_DEBATES / (24 - TEST_DEBATES))
        )
        results[f"{largest} labels"] = {
            "accuracy by size": dict(zip(sizes, values[:-1].mean(1).round(4).tolist(), strict=True)),
            "outlook": outlook.line(),
            "weights of the laws": {law: round(w, 2) for law, w in outlook.weights.items()},
            "measured gain of four times as many": round(float(values[-1].mean() - values[-2].mean()), 4),
        }
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["gain", "more"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pairwise"))
    parser.add_argument("--repetitions", type=int, default=20, help="gain: how many")
    options = parser.parse_args(arguments)
    pairs = ukpconvarg(options.data)
    results: dict[str, Any] = {"machine": machine(), "versions": versions(), "pairs": len(pairs.votes)}
    for what in options.what:
        results[what] = gain(pairs, options.repetitions) if what == "gain" else more(pairs)
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
