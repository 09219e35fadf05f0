"""How good the probes are: recall, false positives and precision, also where 1 % of answers have what is looked for.

``python -m benchmarks.probes`` measures every probe on our own sets (``probe_sets``); it fires where its value is above
the floor of its alarm. With files, it also measures on labels of others:

``--xstest FILE``
    Model completions of XSTest (P. Röttger et al. 2024, https://arxiv.org/abs/2308.01263) as JSON lines: ``id``,
    ``model``, ``completion``, ``final_label``. The probe of evasion against full refusals, by model; full compliance is
    negative, partial refusals are counted apart.
``--info FILE``, ``--truth FILE``
    TruthfulQA's training data of judges (S. Lin et al. 2021, https://arxiv.org/abs/2109.07958): ``question``,
    ``answer``, ``label`` yes or no. Evasion against answers that are not informative; over-confidence against answers
    that are not true. The latter is no probe's claim: it shows how little confident wording says about truth.
``--suggestions FILE``
    A suite of sycophancy (``trimtab eval``): ``qid``, ``variant``, ``prompt``, ``correct``, ``incorrect``. The probe of
    sycophancy on wrong answers after a wrong suggestion, against right ones; and how often it fires on right answers
    after a right suggestion, and on wrong answers after a doubt. The answers are bare statements, not a model's words.

Intervals are Wilson's, clustered by prompt. The precision at a base rate of 1 % follows from recall and false positive
rate, with the ends of their intervals that make it worst and best. No text is printed.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.probe_sets import probe_sets, sycophancy_set
from trimtab.errors import TrimtabError
from trimtab.evals import ANSWER_PROBES
from trimtab.feedback.intervals import clustered_wilson_interval
from trimtab.records.readers import Row, read_rows

REFUSED, COMPLIED, PARTIAL = "2_full_refusal", "1_full_compliance", "3_partial_refusal"
RARE = 0.01
"""Base rate for which the precision is stated too."""

Answer = tuple[str, str, str]
"""Cluster, prompt, answer."""


def precision_at(base: float, recall: float, false_positives: float) -> float:
    """P(positive | the probe fires), by Bayes' rule.

    >>> round(precision_at(0.01, 0.9, 0.01), 3)
    0.476
    """
    fires = base * recall + (1 - base) * false_positives
    return base * recall / fires if fires else 1.0


def share(probe: str, answers: Sequence[Answer]) -> tuple[float, float, float]:
    """How often a probe fires, with the interval."""
    facts = ANSWER_PROBES[probe]
    fires = [float(facts.value(prompt, answer) > facts.floor) for _, prompt, answer in answers]
    low, high = clustered_wilson_interval(fires, [cluster for cluster, _, _ in answers])
    return sum(fires) / len(fires), low, high


def line(name: str, probe: str, positive: Sequence[Answer], negative: Sequence[Answer]) -> str:
    """Recall, false positives and precision of a probe in words."""
    recall, low, high = share(probe, positive)
    wrong, least, most = share(probe, negative)
    rare = precision_at(RARE, recall, wrong)
    ends = precision_at(RARE, low, most), precision_at(RARE, high, least)
    here = precision_at(len(positive) / (len(positive) + len(negative)), recall, wrong)
    return (
        f"{name}: recall {recall:.1%} [{low:.1%}, {high:.1%}] of {len(positive)}, fires on {wrong:.1%} [{least:.1%}, "
        f"{most:.1%}] of {len(negative)} others; precision {here:.1%} here, {rare:.1%} [{ends[0]:.1%}, {ends[1]:.1%}] "
        f"at a base rate of {RARE:.0%}"
    )


def read(path: str) -> list[Mapping[str, Any]]:
    """The rows of a file."""
    return [row.columns for row in read_rows(path) if isinstance(row, Row)]


def xstest(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The probe of evasion over all models and by model."""

    def of(part: Sequence[Mapping[str, Any]], label: str) -> list[Answer]:
        return [(str(row["id"]), "", row["completion"]) for row in part if row["final_label"] == label]

    lines = []
    for model in ("all models", *sorted({row["model"] for row in rows})):
        part = [row for row in rows if model in ("all models", row["model"])]
        positive, negative = of(part, REFUSED), of(part, COMPLIED)
        known = bool(positive and negative)
        lines.append(line(model, "evasion", positive, negative) if known else f"{model}: lacks refusals or compliance")
    if partial := of(rows, PARTIAL):
        lines.append(fired("partial refusals", "evasion", partial))
    return lines


def judged(name: str, probe: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A probe against answers labelled no."""
    by: dict[str, list[Answer]] = {"no": [], "yes": []}
    for row in rows:
        by[row["label"]].append((row["question"], row["question"], row["answer"]))
    return line(name, probe, by["no"], by["yes"])


def fired(name: str, probe: str, answers: Sequence[Answer]) -> str:
    """How often a probe fires, in words."""
    rate, low, high = share(probe, answers)
    return f"{name}: fires on {rate:.1%} [{low:.1%}, {high:.1%}] of {len(answers)}"


def suggested(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The probe of sycophancy by what the user suggests."""

    def of(variant: str, column: str) -> list[Answer]:
        return [(str(row["qid"]), row["prompt"], row[column]) for row in rows if row["variant"] == variant]

    wrong = of("user_suggests_wrong", "incorrect"), of("user_suggests_wrong", "correct")
    return [
        line("wrong suggestions, wrong answers against right ones", "sycophancy", *wrong),
        fired("right suggestions, right answers", "sycophancy", of("user_suggests_right", "correct")),
        fired("doubted right answers, wrong answers", "sycophancy", of("user_doubts_right", "incorrect")),
    ]


def main(arguments: Sequence[str]) -> int:
    """Print a line for each probe and data set."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probes", description="Measures the probes.")
    for name in ("xstest", "info", "truth", "suggestions"):
        parser.add_argument(f"--{name}", metavar="FILE", help="labels of others, see the module's text")
    given = parser.parse_args(arguments)
    for probe, (positive, negative) in probe_sets().items():
        sides = [[(prompt, prompt, answer) for prompt, answer in cases] for cases in (positive, negative)]
        print(line(probe, probe, *sides))
    right = [(prompt, prompt, answer) for prompt, answer in sycophancy_set()["right"]]
    print(fired("sycophancy, answers that agree with a user who is right", "sycophancy", right))
    try:
        if given.xstest:
            print("evasion, XSTest:", *xstest(read(given.xstest)), sep="\n  ")
        if given.info:
            print(judged("evasion, answers that are not informative", "evasion", read(given.info)))
        if given.truth:
            print(judged("overconfidence, answers that are not true", "overconfidence", read(given.truth)))
        if given.suggestions:
            print("sycophancy, suggestions:", *suggested(read(given.suggestions)), sep="\n  ")
    except TrimtabError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
