"""Agreement against the published packages, on planted and on real judgements."""

import csv
import gzip
import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from trimtab.feedback import agreement_report, annotator_reports
from trimtab.records import Comparison, Judgement, Prompt

krippendorff = pytest.importorskip("krippendorff")
inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "pairwise"
shared = pytest.mark.skipif(not DATA.is_dir(), reason="NOT TESTED: the public data sets of ../shared/data are not here")
RANKS = {1: (0, 1), -1: (1, 0), 0: (0, 0)}


def records(votes: list[tuple[str, str, int]]) -> tuple[list[Comparison], list[Judgement]]:
    """(unit, annotator, vote) as records; a repeated vote of one annotator on a unit is left out."""
    units = {u: Comparison.of(Prompt.from_text(u), ["x", "yy"]) for u, _, _ in votes}
    once = {(u, a): v for u, a, v in reversed(votes)}
    made = [
        Judgement(id=f"{u}/{a}", item=units[u].id, annotator=a, source="imported", shown_order=(0, 1), ranks=RANKS[v])
        for (u, a), v in once.items()
    ]
    return list(units.values()), made


def tables(judgements: list[Judgement]) -> dict[str, dict[str, int]]:
    result: defaultdict[str, dict[str, int]] = defaultdict(dict)
    back = {ranks: vote for vote, ranks in RANKS.items()}
    for j in judgements:
        assert j.ranks is not None
        result[j.item][j.annotator] = back[j.ranks]  # pyright: ignore
    return result


def check_against_packages(votes: list[tuple[str, str, int]]) -> None:
    items, judgements = records(votes)
    report = agreement_report(items, judgements, resamples=2)
    table = tables(judgements)
    counts = [[Counter(v.values())[c] for c in (-1, 0, 1)] for v in table.values()]
    theirs = krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")
    assert report["krippendorff_alpha"].value == pytest.approx(theirs, abs=1e-9)
    sizes = Counter(sum(row) for row in counts if sum(row) > 1)
    usual = min(sizes, key=lambda m: (-sizes[m], m))
    equal = [row for row in counts if sum(row) == usual]
    assert report["fleiss_kappa"].value == pytest.approx(inter_rater.fleiss_kappa(equal), abs=1e-9)
    assert report["fleiss_kappa"].n == len(equal)
    first, second = Counter(j.annotator for j in judgements).most_common(2)
    two = [v for v in votes if v[1] in (first[0], second[0])]
    _, pair = records(two)
    both = [v for v in tables(pair).values() if len(v) == 2]
    if len(both) > 20:
        square = [[0] * 3 for _ in range(3)]
        for v in both:
            a, b = (v[name] for name in sorted(v))
            square[a + 1][b + 1] += 1
        ours = agreement_report(*records(two), resamples=2)["cohen_kappa"]
        assert ours.value == pytest.approx(inter_rater.cohens_kappa(square).kappa, abs=1e-9)


@shared
def test_llmfao_crowd():
    with gzip.open(DATA / "llmfao" / "crowd-comparisons.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    vote = {"left": 1, "right": -1, "tie": 0}
    check_against_packages([(r["id"], r["worker"], vote[r["winner"]]) for r in rows])


@shared
def test_ukpconvarg1():
    votes = []
    with gzip.open(DATA / "ukpconvarg1.jsonl.gz", "rt") as file:
        for row in map(json.loads, list(file)[:3000]):
            votes += [(row["id"], a["worker"], {"a1": 1, "a2": -1}.get(a["value"], 0)) for a in row["annotations"]]
    check_against_packages(votes)


def test_two_planted_annotators():
    rng = random.Random(0)
    check_against_packages([(f"u{i}", a, rng.choice([1, -1, 0])) for i in range(60) for a in ("a", "b")])


def test_ac1_where_kappa_fails():
    # 118 of 125 agree on one value, 5 and 2 are split: Gwet 2008, table 1 κ = -.0234, AC1 = .9408
    votes = [(f"u{i}", a, 1) for i in range(118) for a in ("a", "b")]
    for i in range(7):
        votes += [(f"d{i}", "a", 1 if i < 5 else -1), (f"d{i}", "b", -1 if i < 5 else 1)]
    report = agreement_report(*records(votes), resamples=50)
    assert report["cohen_kappa"].value == pytest.approx(-0.0234, abs=5e-5)
    assert report["gwet_ac1"].value == pytest.approx(0.9408, abs=5e-5)
    assert report["gwet_ac1"].low < 0.9408 < report["gwet_ac1"].high  # pyright: ignore


def test_planted_total_agreement_disagreement_and_one_annotator():
    both = [(f"u{i}", a, 1 if i % 2 else -1) for i in range(20) for a in "ab"]
    report = agreement_report(*records(both), resamples=50)
    assert [report[n].value for n in ("cohen_kappa", "fleiss_kappa", "gwet_ac1")] == [1, 1, 1]
    against = [(f"u{i}", a, 1 if (i % 2) == (a == "a") else -1) for i in range(20) for a in "ab"]
    report = agreement_report(*records(against), resamples=50)
    # half of each value: chance is ½, observed 0 → κ = −1; so is AC1: 2 · ½ · ½ = ½
    assert [report[n].value for n in ("cohen_kappa", "fleiss_kappa", "gwet_ac1")] == [-1, -1, -1]
    report = agreement_report(*records([(f"u{i}", "a", 1) for i in range(20)]), resamples=50)
    for name in ("cohen_kappa", "fleiss_kappa", "gwet_ac1"):
        assert report[name].value is None and "two annotators" in report[name].reason
    three = [(f"u{i}", a, 1 if i % 3 else -1) for i in range(9) for a in "abc"]
    assert "is for two annotators, 3 overlap" in agreement_report(*records(three), resamples=5)["cohen_kappa"].reason


@pytest.mark.parametrize(("last", "share"), [((0, 1), 0.0), ((1, 0), 1.0)])
def test_circles_of_three_answers(last, share):
    prompt = Prompt.from_text("q")
    items = [Comparison.of(prompt, pair) for pair in (["a", "b"], ["b", "c"], ["a", "c"])]
    rankings = [(0, 1), (0, 1), last]
    judgements = [
        Judgement(id=str(i), item=item.id, annotator="w", source="simulated", shown_order=(0, 1), ranks=ranks)
        for i, (item, ranks) in enumerate(zip(items, rankings, strict=True))
    ]
    result = agreement_report(items, judgements, resamples=5)["three_cycles"]
    assert (result.value, result.n) == (share, 1)


def test_a_report_of_one_annotator_by_hand():
    votes = [(f"u{i}", "a", 1) for i in range(4)] + [(f"u{i}", "b", 1 if i < 3 else -1) for i in range(4)]
    items, judgements = records(votes)
    judgements = [j.model_copy(update={"seconds": 1.0 if j.annotator == "a" else 9.0}) for j in judgements]
    a, b = annotator_reports(items, judgements, fast_seconds=3)
    assert (a.annotator, a.judgements, a.agreement.value, a.first_shown_wins.value) == ("a", 4, 0.75, 1.0)
    assert (a.longest_wins.value, b.longest_wins.value) == (0.0, 0.25)
    assert (a.seconds.value, a.fast.value, b.fast.value) == (1.0, 1.0, 0.0)
