"""Every judgement is in an export, or in a statistic, or counted with its reason, whatever the project holds."""

import csv
import io
import json
import random
from typing import Any

import pytest

from trimtab.errors import ConfigError
from trimtab.feedback import aggregate, agreement_report, annotator_reports, left_out
from trimtab.feedback.aggregate import AggregateConfig
from trimtab.feedback.model_wins import model_wins
from trimtab.feedback.populations import population
from trimtab.records import Comparison, Judgement
from trimtab.records.annotation import Submission, Task, judgements_of
from trimtab.storage.project import ProjectConfig
from trimtab.storage.snapshot import Snapshot
from trimtab.storage.tasks import parse_tasks
from trimtab.web.exchange import FORMATS, render

CONFIG = ProjectConfig(criteria=[{"name": "helpful"}, {"name": "brief"}], min_cell=2)
ROWS = [
    {"id": "pair", "prompt": "q", "answers": ["a", "b"]},
    {"id": "other pair", "prompt": "q2", "answers": ["a", "=b"], "metadata": {"topic": "x"}},
    {"id": "three", "prompt": "q3", "answers": ["a", "b", "c"]},
    {"id": "gold", "prompt": "q4", "answers": ["a", "b"], "check": {"role": "gold", "ranks": [0, 1]}},
    {"id": "thumb", "prompt": "q5", "answers": ["a"], "kind": "thumbs"},
    {"id": "steps", "prompt": "q6", "steps": ["s", "t"], "kind": "steps"},
    {"id": "chat-1", "prompt": "q7", "answers": ["no", "b"], "metadata": {"blocked": [True, False]}},
]


def submission(rng: random.Random, task: Task, number: int) -> Submission:
    """A form that somebody may have sent about a task."""
    verdict = rng.choice(["judged"] * 4 + ["skip", "flag", "unsure"])
    count = len(task.completions) if task.kind == "compare" else 1
    values: dict[str, Any] = {"shown_order": tuple(rng.sample(range(count), count)), "verdict": verdict}
    if verdict == "judged" and task.kind == "compare":
        named = rng.choice([("helpful", "brief"), ("helpful",), ("brief",)])
        ranks = [[rng.randrange(2) for _ in range(count)] for _ in named]
        values["answers"] = [
            {"criterion": name, "ranks": [rank - min(given) for rank in given]}
            | (
                {"strength": rng.choice([0.3, 1.0])}
                if count == 2 and len(set(given)) == 2 and rng.random() < 0.5
                else {}
            )
            for name, given in zip(named, ranks, strict=True)
        ]
        if rng.random() < 0.3:
            values["rewrite"] = {"of": 0, "text": "better"}
    elif verdict == "judged":
        values |= {"good": rng.random() < 0.5} if task.kind == "thumbs" else {"first_wrong": rng.choice([None, 0, 1])}
    return Submission(
        id=f"s{number}",
        task=task.id,
        annotator=f"w{rng.randrange(4)}",
        source=rng.choice(["human", "simulated"]),
        cohort=rng.choice([None, "region=north", "language=de"]),
        comment=rng.choice(["", "=1+1", "two\nlines"]),
        adjudication=rng.random() < 0.2,
        **values,
    )


@pytest.mark.parametrize("format", FORMATS)
def test_used_and_dropped_are_all(format: str) -> None:
    tasks = tuple(task for task in parse_tasks(ROWS) if isinstance(task, Task))
    assert len(tasks) == len(ROWS)
    for seed in range(40):
        account(format, tasks, random.Random(seed), seed)


def account(format: str, tasks: tuple[Task, ...], rng: random.Random, count: int) -> None:
    submissions = tuple(submission(rng, rng.choice(tasks), number) for number in range(count))
    snapshot = Snapshot(
        config=CONFIG,
        tasks=tasks,
        submissions=submissions,
        guidelines=(),
        batches=(),
        retired=tuple(task.id for task in tasks if rng.random() < 0.15),
        excluded={"late": rng.randrange(3), "undone": rng.randrange(3), "changed": rng.randrange(3)},
    )
    files = render(snapshot, format)
    manifest = json.loads(files["manifest.json"])
    assert manifest["judgements"] == count + sum(snapshot.excluded.values())
    assert manifest["used"] + sum(manifest["dropped"].values()) == manifest["judgements"]
    assert all(number > 0 for number in manifest["dropped"].values())
    for name, facts in manifest["files"].items():
        if name.endswith(".jsonl"):
            assert facts["rows"] == len(files[name].splitlines())
    named = in_files(format, files)
    assert named is None or (len(named) == manifest["used"] and named <= {s.id for s in submissions})


def in_files(format: str, files: dict[str, bytes]) -> set[str] | None:
    """Ids of the judgements that an export names; None: it names none."""
    if format == "csv":
        return {row["submission"] for row in csv.DictReader(io.StringIO(files["judgements.csv"].decode()))}
    name = {"trl": "preferences", "ranking": "rankings", "unpaired": "ratings", "steps": "steps"}.get(format)
    name = {"judgements": "judgements", "trimtab": "submissions"}.get(format, name)
    if name is None:
        return None
    rows = [json.loads(line) for line in files[f"{name}.jsonl"].decode().split("\n") if line]
    ids = [
        one
        for row in rows
        for one in (row["judgements"] if "judgements" in row else [row.get("submission", row.get("id"))])
    ]
    return {one.partition("/")[0].partition("#")[0] for one in ids}


NAMED = [
    {"id": "named", "prompt": "q8", "answers": [{"text": "a", "model": "new"}, {"text": "b", "model": "old"}]},
    {"id": "one model", "prompt": "q9", "answers": [{"text": "a", "model": "new"}, {"text": "b", "model": "new"}]},
]
"""Items whose answers name their models."""


def random_judgements(rng: random.Random) -> tuple[list[Comparison], list[Judgement]]:
    """Judgements of comparisons by two criteria, some twice by one person, of unknown items, or of a changed item."""
    tasks = [task for task in parse_tasks([*ROWS, *NAMED]) if isinstance(task, Task) and task.kind == "compare"]
    submissions = [submission(rng, rng.choice(tasks), number) for number in range(rng.randrange(1, 40))]
    by_id = {task.id: task for task in tasks}
    judgements = []
    for judgement in (j for s in submissions for j in judgements_of(by_id[s.task], s)):
        if rng.random() < 0.1:
            judgement = judgement.model_copy(update={"item": rng.choice(["gone", "three", "pair"])})
        judgements.append(judgement)
    return [c for task in tasks if (c := task.comparison) is not None], judgements


def usable_by_hand(items: list[Comparison], judgements: list[Judgement], criterion: str) -> list[Judgement]:
    """The first ranking of each item by each person that is about this criterion and fits the item."""
    sizes, first = {item.id: len(item.completions) for item in items}, {}
    for j in judgements:
        if j.ranks is not None and j.criterion == criterion and sizes.get(j.item) == len(j.ranks):
            first.setdefault((j.item, j.annotator), j)
    return list(first.values())


@pytest.mark.parametrize("criterion", ["helpful", "brief"])
def test_statistics_use_or_count_every_judgement(criterion: str) -> None:
    for seed in range(60):
        items, judgements = random_judgements(random.Random(seed))
        total, everybody = len(judgements), [j for j in judgements if not j.adjudication]
        try:
            counted = left_out(items, judgements, criterion=criterion)
            reports = annotator_reports(items, judgements, criterion=criterion)
            wins = model_wins(items, judgements, criterion=criterion)
            cohorts = population(items, judgements, least=2, criterion=criterion)
            labels = aggregate(items, judgements, config=AggregateConfig(criterion=criterion, keep_tied=True))
        except ConfigError:
            assert all(j.ranks is None or j.criterion != criterion for j in judgements)
            continue
        used = usable_by_hand(items, everybody, criterion)
        assert len(used) + sum(counted.values()) == total and min(counted.values(), default=1) > 0, seed
        assert sum(report.judgements for report in reports) == len(used), seed
        assert wins.used + sum(wins.left_out.values()) == total, seed
        shown = sum(cohort.judgements for cohort in cohorts.cohorts)
        assert shown == total or cohorts.notes[0].startswith(f"{total - shown} of {total} judgements left out: "), seed
        in_labels = sum(len(p.judgements) for p in labels.preferences)
        assert in_labels + sum(labels.dropped_judgements.values()) == total, seed


STATISTICS = {
    "agreement": agreement_report,
    "annotators": annotator_reports,
    "wins": model_wins,
    "cohorts": population,
    "labels": lambda items, judgements, criterion: aggregate(
        items, judgements, config=AggregateConfig(criterion=criterion)
    ),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_a_criterion_by_which_nobody_judged_is_refused(name: str) -> None:
    items, judgements = random_judgements(random.Random(1))
    with pytest.raises(ConfigError, match=r"'nope'.*brief, helpful"):
        STATISTICS[name](items, judgements, criterion="nope")
