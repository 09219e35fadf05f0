"""Would a low-rank taste of each annotator explain votes that were not fitted? It is not built; this measures why.

``python -m benchmarks.taste FILE`` reads UKPConvArg1 (Habernal and Gurevych 2016) as JSON lines: ``debate``, ``a1_id``,
``a1``, ``a2_id``, ``a2`` and ``annotations``, each with ``worker`` and ``value`` (a1, a2 or equal). The gap of a vote
by annotator a is

    d = γ_a (x_i − x_j + u_a · V (φ_i − φ_j)) + s b_a

with the scores x, skill and position bias of :mod:`trimtab.feedback.comparison_model` and nine surface features φ,
standardised. V has rank one or two; u_a ~ N(0, 1) only for annotators with 50 votes or more in training, V ~ N(0, σ²).
In each of three folds, scores and habits come from the other two, so that a vote never explains itself. u and V are then
fitted to the votes of two folds by L-BFGS and tested on the third. The largest gain over the values of σ is printed, in
the taste's favour. Intervals resample debates.

The same is done with votes that are drawn from the fitted model with a planted taste of rank one. It has to be found.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import minimize

from trimtab.evals.baselines import surface_features
from trimtab.feedback.comparison_fit import fit_comparisons
from trimtab.feedback.comparison_model import (
    POINTS,
    Floats,
    Ints,
    Parameters,
    Votes,
    observed_logs,
    vote_probabilities,
)
from trimtab.feedback.intervals import paired_bootstrap_interval
from trimtab.records.readers import Row, read_rows

FOLDS, LEAST, RANKS, SIGMAS = 3, 50, (1, 2), (0.1, 0.3, 1.0)
PLANTED = 0.5
"""Standard deviation of a planted taste over votes, in log-odds."""


def read(path: str, debates: int) -> tuple[Votes, Floats, list[str]]:
    """Votes, the standardised features of the texts, and the debate of each vote, of the first debates."""
    texts: dict[str, int] = {}
    workers: dict[str, int] = {}
    features: list[list[float]] = []
    rows: list[tuple[int, int, int, int]] = []
    names: dict[str, None] = {}
    owners: list[str] = []
    for row in read_rows(path):
        assert isinstance(row, Row)
        item = row.columns
        if len(names | {item["debate"]: None}) > debates:
            continue
        names[item["debate"]] = None
        for side in ("a1", "a2"):
            if item[f"{side}_id"] not in texts:
                texts[item[f"{side}_id"]] = len(texts)
                features.append(surface_features(item[side]))
        for vote in item["annotations"]:
            worker = workers.setdefault(vote["worker"], len(workers))
            outcome = {"a1": 0, "equal": 1, "a2": 2}[vote["value"]]
            rows.append((texts[item["a1_id"]], texts[item["a2_id"]], outcome, worker))
            owners.append(item["debate"])
    table, phi = np.array(rows, dtype=np.int64), np.array(features)
    votes = Votes(
        first=table[:, 0], second=table[:, 1], outcome=table[:, 2], annotator=table[:, 3],
        shown=np.zeros(len(table)), weight=np.ones(len(table)), answers=len(texts), annotators=len(workers),
    )  # fmt: skip
    return votes, (phi - phi.mean(0)) / phi.std(0), owners


def log_likelihood(votes: Votes, parameters: Parameters, variance: Floats, taste: Floats) -> tuple[Floats, Floats]:
    """Log P(outcome) of every vote, averaged over the scores' variance, and its slope by the taste, ``[N]`` each."""
    skill, tau = parameters.skill[votes.annotator], parameters.tie[votes.annotator]
    apart = parameters.score[votes.first] - parameters.score[votes.second] + taste
    side = votes.shown * parameters.position[votes.annotator]
    total, slope = np.zeros(len(votes)), np.zeros(len(votes))
    for z, weight in POINTS:
        logs, by_d, _ = observed_logs("davidson", skill * (apart + z * np.sqrt(variance)) + side, tau, votes.outcome)
        share = weight * np.exp(logs)
        total += share
        slope += share * by_d * skill
    return np.log(total), slope / total


def tastes(point: Floats, rank: int, delta: Floats, who: Ints, people: int) -> tuple[Floats, Floats, Floats]:
    """u_a · V Δφ of every vote, ``[N]``, with u ``[A, r]`` and V ``[r, F]``; ``who`` < 0: none."""
    u, v = point[: people * rank].reshape(people, rank), point[people * rank :].reshape(rank, -1)
    own = np.where(who[:, None] >= 0, u[np.maximum(who, 0)], 0.0)
    return (own * (delta @ v.T)).sum(1), own, v


def fit_taste(
    votes: Votes,
    parameters: Sequence[Parameters],
    variance: Floats,
    fold: Ints,
    delta: Floats,
    who: Ints,
    *,
    rank: int,
    sigma: float,
    people: int,
    seed: int = 0,
) -> Floats:
    """The most probable u and V, as one vector; ``parameters`` are by fold of the votes."""

    def negative(point: Floats) -> tuple[float, Floats]:
        taste, own, v = tastes(point, rank, delta, who, people)
        u = point[: people * rank].reshape(people, rank)
        value, by_taste = 0.0, np.zeros(len(votes))
        for number in np.unique(fold):
            at = fold == number
            logs, by_taste[at] = log_likelihood(votes.part(at), parameters[number], variance[at], taste[at])
            value += logs.sum()
        projected = delta @ v.T
        by_u = np.stack(
            [np.bincount(np.maximum(who, 0), by_taste * (who >= 0) * projected[:, r], people) for r in range(rank)], 1
        )
        by_v = (own * by_taste[:, None]).T @ delta
        penalty = (u**2).sum() / 2 + (v**2).sum() / (2 * sigma**2)
        return penalty - value, np.concatenate([(u - by_u).ravel(), (v / sigma**2 - by_v).ravel()])

    start = np.random.default_rng(seed).normal(0, 0.1, people * rank + rank * delta.shape[1])
    return minimize(negative, start, jac=True, method="L-BFGS-B", options={"maxiter": 80}).x


def measure(votes: Votes, phi: Floats, owners: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """Log-loss of a held-out vote with habits alone, and the gain of a taste of each rank."""
    draw = np.random.default_rng(seed)
    fold, second = (draw.integers(0, FOLDS, len(votes)) for _ in range(2))
    delta = phi[votes.first] - phi[votes.second]
    parameters: list[Parameters] = []
    variance = np.zeros(len(votes))
    for number in range(FOLDS):
        test = fold == number
        pairs = votes.first[test], votes.second[test]
        fit = fit_comparisons(votes.part(~test), habits=("tie", "skill"), pairs=pairs)
        parameters.append(fit.parameters)
        variance[test] = fit.pair_variance
    alone = np.zeros(len(votes))
    for number in range(FOLDS):
        at = fold == number
        alone[at] = -log_likelihood(votes.part(at), parameters[number], variance[at], np.zeros(at.sum()))[0]
    result: dict[str, Any] = {"votes": len(votes), "annotators": votes.annotators, "habits": alone.mean(), "ranks": {}}
    for rank in RANKS:
        trials = [_trial(votes, parameters, variance, fold, second, delta, rank, sigma) for sigma in SIGMAS]
        losses, people, eligible = min(trials, key=lambda trial: trial[0].mean())
        low, high = paired_bootstrap_interval(alone.tolist(), losses.tolist(), list(owners), seed=0)
        gain = {"gain": alone.mean() - losses.mean(), "low": low, "high": high}
        result["ranks"][rank] = gain | {"people": people, "eligible": eligible}
    return result


def _trial(
    votes: Votes,
    parameters: Sequence[Parameters],
    variance: Floats,
    fold: Ints,
    second: Ints,
    delta: Floats,
    rank: int,
    sigma: float,
) -> tuple[Floats, int, int]:
    """Losses of all votes, each tested by a taste that was fitted without it; annotators and votes with a taste."""
    losses, people, eligible = np.zeros(len(votes)), 0, 0
    for number in range(FOLDS):
        test = second == number
        counts = np.bincount(votes.annotator[~test], minlength=votes.annotators)
        order = np.full(votes.annotators, -1)
        order[counts >= LEAST] = np.arange((counts >= LEAST).sum())
        who, size = order[votes.annotator], int((counts >= LEAST).sum())
        train = ~test & (who >= 0)
        point = fit_taste(
            votes.part(train),
            parameters,
            variance[train],
            fold[train],
            delta[train],
            who[train],
            rank=rank,
            sigma=sigma,
            people=size,
        )
        taste = tastes(point, rank, delta, who, size)[0]
        for own in range(FOLDS):
            at = test & (fold == own)
            losses[at] = -log_likelihood(votes.part(at), parameters[own], variance[at], taste[at])[0]
        people, eligible = max(people, size), eligible + int((test & (who >= 0)).sum())
    return losses, people, eligible


def planted(votes: Votes, phi: Floats, *, seed: int = 1) -> Votes:
    """The same votes with outcomes drawn from their fit and a taste of rank one."""
    draw = np.random.default_rng(seed)
    fit = fit_comparisons(votes, habits=("tie", "skill"))
    along = (phi[votes.first] - phi[votes.second]) @ draw.normal(size=phi.shape[1])
    taste = draw.normal(size=votes.annotators)[votes.annotator] * along
    taste *= PLANTED / taste.std()
    p = fit.parameters
    shares = np.zeros((len(votes), 3))
    for outcome in range(3):
        asked = replace(votes, outcome=np.full(len(votes), outcome))
        shares[:, outcome] = np.exp(log_likelihood(asked, p, np.zeros(len(votes)), taste)[0])
    assert np.allclose(shares.sum(1), 1) and vote_probabilities("davidson", votes, p).shape == shares.shape
    outcome = (draw.random(len(votes))[:, None] > shares.cumsum(1)[:, :2]).sum(1)
    return replace(votes, outcome=outcome)


def main(arguments: Sequence[str]) -> int:
    """Print the gains as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.taste", description="Measures a low-rank taste.")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--debates", type=int, default=1000, help="use the first of them only")
    given = parser.parse_args(arguments)
    votes, phi, owners = read(given.file, given.debates)
    print("people's votes:", json.dumps(measure(votes, phi, owners)), flush=True)
    print("planted taste:", json.dumps(measure(planted(votes, phi), phi, owners)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
