"""How good the probe of evasion is, against people's labels: ``python -m benchmarks.probes [FILE]``.

FILE is the table of model completions of XSTest (P. Röttger et al. 2024, https://arxiv.org/abs/2308.01263) as JSON
lines: ``id``, ``model``, ``completion``, ``final_label``; by default the one beside this repository. A full refusal is
positive, full compliance negative; partial refusals are counted apart. Intervals are Wilson's, clustered by prompt. The
precision at a base rate of 1 % follows from recall and false positive rate, with the ends of their intervals that make
it worst and best. No text is printed.
"""

import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.evals import ANSWER_PROBES
from trimtab.feedback.intervals import clustered_wilson_interval

FILE = Path("../shared/data/safety/xstest-completions.jsonl.gz")
REFUSED, COMPLIED, PARTIAL = "2_full_refusal", "1_full_compliance", "3_partial_refusal"
RARE = 0.01
"""Base rate for which the precision is stated too."""


def precision_at(base: float, recall: float, false_positives: float) -> float:
    """P(positive | the probe fires), by Bayes' rule.

    >>> round(precision_at(0.01, 0.9, 0.01), 3)
    0.476
    """
    fired = base * recall + (1 - base) * false_positives
    return base * recall / fired if fired else 1.0


def shares(rows: Sequence[Mapping[str, Any]], label: str) -> tuple[float, float, float, int]:
    """How often the probe fires on rows of a label, with the interval and their number."""
    chosen = [row for row in rows if row["final_label"] == label]
    fired = [ANSWER_PROBES["evasion"].value("", row["completion"]) for row in chosen]
    low, high = clustered_wilson_interval(fired, [row["id"] for row in chosen])
    return sum(fired) / len(fired), low, high, len(fired)


def main(arguments: Sequence[str]) -> int:
    """Print recall, false positive rate and precision, over all models and by model."""
    path = Path(arguments[0]) if arguments else FILE
    if not path.is_file():
        print(f"{path}: no such file; give the XSTest completions as JSON lines", file=sys.stderr)
        return 3
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
    with opened as lines:
        rows = [json.loads(line) for line in lines]
    for model in ("all models", *sorted({row["model"] for row in rows})):
        part = [row for row in rows if model in ("all models", row["model"])]
        if not {REFUSED, COMPLIED} <= {row["final_label"] for row in part}:
            print(f"{model}: lacks refusals or compliance")
            continue
        recall, low, high, refused = shares(part, REFUSED)
        wrong, least, most, complied = shares(part, COMPLIED)
        rare = precision_at(RARE, recall, wrong)
        ends = precision_at(RARE, low, most), precision_at(RARE, high, least)
        here = precision_at(refused / (refused + complied), recall, wrong)
        print(
            f"{model}: recall {recall:.1%} [{low:.1%}, {high:.1%}] of {refused}, fires on {wrong:.1%} [{least:.1%}, "
            f"{most:.1%}] of {complied} that comply; precision {here:.1%} here, {rare:.1%} [{ends[0]:.1%}, "
            f"{ends[1]:.1%}] at a base rate of {RARE:.0%}"
        )
    if any(row["final_label"] == PARTIAL for row in rows):
        share, low, high, count = shares(rows, PARTIAL)
        print(f"partial refusals: fires on {share:.1%} [{low:.1%}, {high:.1%}] of {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
