"""What a taste of each annotator explains of votes that were not fitted, on people's votes and on planted ones.

``python -m benchmarks.taste FILE`` reads UKPConvArg1 (Habernal and Gurevych 2016) as JSON lines: ``debate``,
``a1_id``, ``a1``, ``a2_id``, ``a2`` and ``annotations``, each with ``worker`` and ``value`` (a1, a2 or equal). The
taste is that of ``reward.annotators: [taste]`` (:mod:`trimtab.feedback.taste`), on the nine surface features, beside
habits of ties and skill. Intervals resample debates.

The same is done with votes that are drawn from the fitted model with a planted taste, which has to be found, and
without one, where there is nothing to find.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trimtab.errors import DataError, TrimtabError
from trimtab.evals.baselines import surface_features
from trimtab.feedback.comparison_fit import fit_comparisons
from trimtab.feedback.comparison_model import Floats, Votes, vote_probabilities
from trimtab.feedback.intervals import paired_bootstrap_interval
from trimtab.feedback.taste import select_taste
from trimtab.records.readers import Refusal, Row, read_rows

COLUMNS = ("debate", "a1_id", "a1", "a2_id", "a2", "annotations")
OUTCOMES = {"a1": 0, "equal": 1, "a2": 2}

PLANTED = 0.5
"""Standard deviation of a planted taste over votes, in log-odds."""


def read(path: str, debates: int) -> tuple[Votes, Floats, list[str]]:
    """Votes, the standardised features of the texts, and the debate of each vote, of the first debates.

    Raises:
        DataError: a line cannot be read, or is not as the module's text says.
    """
    texts: dict[str, int] = {}
    workers: dict[str, int] = {}
    features: list[list[float]] = []
    rows: list[tuple[int, int, int, int]] = []
    names: dict[str, None] = {}
    owners: list[str] = []
    for row in read_rows(path):
        item = _checked(path, row)
        if len(names | {item["debate"]: None}) > debates:
            continue
        names[item["debate"]] = None
        for side in ("a1", "a2"):
            if item[f"{side}_id"] not in texts:
                texts[item[f"{side}_id"]] = len(texts)
                features.append(surface_features(item[side]))
        for vote in item["annotations"]:
            worker = workers.setdefault(vote["worker"], len(workers))
            rows.append((texts[item["a1_id"]], texts[item["a2_id"]], OUTCOMES[vote["value"]], worker))
            owners.append(item["debate"])
    table, phi = np.array(rows, dtype=np.int64), np.array(features)
    votes = Votes(
        first=table[:, 0], second=table[:, 1], outcome=table[:, 2], annotator=table[:, 3],
        shown=np.zeros(len(table)), weight=np.ones(len(table)), answers=len(texts), annotators=len(workers),
    )  # fmt: skip
    return votes, (phi - phi.mean(0)) / phi.std(0), owners


def _checked(path: str, row: Row | Refusal) -> dict[str, Any]:
    """A row's columns, if they are what the benchmark needs."""
    if isinstance(row, Refusal):
        raise DataError(f"{path}:{row.line}: {row.reason}")
    if missing := [name for name in COLUMNS if name not in row.columns]:
        raise DataError(f"{path}:{row.line}: has no {', '.join(missing)}; needed are {', '.join(COLUMNS)}")
    votes = row.columns["annotations"]
    if not isinstance(votes, list) or not all(_is_vote(vote) for vote in votes):
        wanted = "a list of votes, each with worker and value a1, a2 or equal"
        raise DataError(f"{path}:{row.line}: annotations is not {wanted}")
    return row.columns


def _is_vote(vote: object) -> bool:
    return isinstance(vote, dict) and "worker" in vote and vote.get("value") in OUTCOMES


def measure(votes: Votes, phi: Floats, owners: Sequence[str]) -> dict[str, Any]:
    """Log-loss of a vote that was not fitted without and with a taste, and the gain with its interval."""
    apart = phi[votes.first] - phi[votes.second]
    choice = select_taste(votes, apart, model="davidson", habits=("tie", "skill"))
    without, best = choice.losses
    low, high = paired_bootstrap_interval(without.tolist(), best.tolist(), list(owners), seed=0)
    return {
        "votes": len(votes),
        "annotators": votes.annotators,
        "with a taste": choice.annotators,
        "without": choice.without,
        "trials": choice.trials,
        "used": choice.taste is not None,
        "gain": without.mean() - best.mean(),
        "low": low,
        "high": high,
    }


def drawn(votes: Votes, phi: Floats, planted: float, *, seed: int = 1) -> Votes:
    """The same votes with outcomes drawn from their fit, and a taste of this standard deviation."""
    draw = np.random.default_rng(seed)
    fit = fit_comparisons(votes, habits=("tie", "skill"))
    along = (phi[votes.first] - phi[votes.second]) @ draw.normal(size=phi.shape[1])
    taste = draw.normal(size=votes.annotators)[votes.annotator] * along
    shares = vote_probabilities("davidson", votes, fit.parameters, shift=planted * taste / taste.std())
    return replace(votes, outcome=(draw.random(len(votes))[:, None] > shares.cumsum(1)[:, :2]).sum(1))


def main(arguments: Sequence[str]) -> int:
    """Print the gains as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.taste", description="Measures annotators' tastes.")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--debates", type=int, default=1000, help="use the first of them only")
    given = parser.parse_args(arguments)
    try:
        votes, phi, owners = read(given.file, given.debates)
    except TrimtabError as error:
        print(error, file=sys.stderr)
        return 3
    print("people's votes:", json.dumps(measure(votes, phi, owners)), flush=True)
    for name, planted in (("planted taste", PLANTED), ("no taste", 0.0)):
        print(f"{name}:", json.dumps(measure(drawn(votes, phi, planted), phi, owners)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
